//! Cross-origin requests: which web pages may read the answers.
//!
//! The layer stands outside the gate that asks for the key, because a browser sends no key with
//! the preflight request. A preflight tells nothing of what is here: every path, served or not,
//! gets the same answer.

use std::str::FromStr;
use std::time::Duration;

use axum::Router;
use axum::http::{HeaderValue, Method, header};
use tower::Layer;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use super::REQUEST_ID;
use super::ignored::IGNORED_FIELDS;

/// How long a browser may keep the answer to a preflight.
const MAX_AGE: Duration = Duration::from_secs(600);

/// Web pages that may read answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Every page; written `*`.
    Any,
    /// The pages of one origin, as browsers name it: `https://chat.example.com`.
    Exact(HeaderValue),
}

/// A text that names no origin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected * or SCHEME://HOST[:PORT] without a path, such as https://chat.example.com")]
pub struct InvalidOrigin;

impl FromStr for Origin {
    type Err = InvalidOrigin;

    fn from_str(text: &str) -> Result<Origin, InvalidOrigin> {
        // Browsers send scheme and host in lower case, and compare bytes.
        let text = text.trim().to_ascii_lowercase();
        if text == "*" {
            return Ok(Origin::Any);
        }
        let text = text.strip_suffix('/').unwrap_or(&text);
        let (scheme, host) = text.split_once("://").ok_or(InvalidOrigin)?;
        let is_scheme = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
        let is_host = !host.is_empty()
            && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte));
        if !is_scheme || !is_host {
            return Err(InvalidOrigin);
        }
        text.parse().map(Origin::Exact).map_err(|_| InvalidOrigin)
    }
}

/// Lets the pages of these origins read answers; no origin at all stands for every one.
pub(crate) fn allow(allowed: &[Origin], routes: Router) -> Router {
    // Around the whole router: a layer of each route would tell by `Allow` which paths there are.
    Router::new().fallback_service(layer(allowed).layer(routes))
}

fn layer(allowed: &[Origin]) -> CorsLayer {
    let exact: Option<Vec<HeaderValue>> = allowed
        .iter()
        .map(|origin| match origin {
            Origin::Any => None,
            Origin::Exact(origin) => Some(origin.clone()),
        })
        .collect();
    let origins = match exact {
        Some(exact) if !exact.is_empty() => AllowOrigin::list(exact),
        _ => AllowOrigin::any(),
    };
    CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([Method::GET, Method::POST])
        // A wildcard would leave out `Authorization`, and clients add headers of their own.
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([REQUEST_ID.clone(), IGNORED_FIELDS.clone(), header::RETRY_AFTER])
        .max_age(MAX_AGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_a_scheme_a_host_and_perhaps_a_port() {
        for (text, expected) in [
            ("https://chat.example.com", "https://chat.example.com"),
            (" HTTPS://Chat.Example.com/ ", "https://chat.example.com"),
            ("http://localhost:5173", "http://localhost:5173"),
            ("http://[::1]:80", "http://[::1]:80"),
            ("chrome-extension://abc", "chrome-extension://abc"),
        ] {
            assert_eq!(text.parse(), Ok(Origin::Exact(HeaderValue::from_static(expected))));
        }
        assert_eq!("*".parse(), Ok(Origin::Any));
        for text in ["", "null", "example.com", "https://", "://h", "https://h/app", "https://*.h"]
        {
            assert_eq!(text.parse::<Origin>(), Err(InvalidOrigin), "{text}");
        }
    }
}
