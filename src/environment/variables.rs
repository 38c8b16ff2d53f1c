//! The variables that mean something here, as they are set; a secret is only said to be set.

use std::collections::BTreeSet;

use crate::args;

/// Variables that are read, by us or by what we use, without being a flag or TGI's.
const OTHERS: &[&str] = &[
    "ALL_PROXY",
    "CURL_CA_BUNDLE",
    "HF_ENDPOINT",
    "HF_HUB_CACHE",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN",
    "HF_HUB_DISABLE_PROGRESS_BARS",
    "HF_HUB_DISABLE_SYMLINKS",
    "HF_HUB_DOWNLOAD_TIMEOUT",
    "HF_HUB_ETAG_TIMEOUT",
    "HF_TOKEN_PATH",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "NO_COLOR",
    "NO_PROXY",
    "RUST_BACKTRACE",
    "REQUESTS_CA_BUNDLE",
    "RUST_LOG",
    "SSL_CERT_FILE",
    "TMPDIR",
    "TRANSFORMERS_OFFLINE",
    "XDG_CACHE_HOME",
];

/// What stands for a secret.
const HIDDEN: &str = "(hidden)";

/// What is set, in alphabetical order.
pub(super) fn set() -> Vec<(String, String)> {
    let known = known().into_iter();
    let set = known.filter_map(|name| {
        let value = std::env::var_os(&name)?;
        let value = shown(&name, &value.to_string_lossy());
        Some((name, value))
    });
    set.collect()
}

fn known() -> BTreeSet<String> {
    let tgi = args::tgi::TABLE.iter().map(|variable| variable.name.to_owned());
    let others = OTHERS.iter().map(|name| (*name).to_owned());
    tgi.chain(others).chain(args::variables()).collect()
}

fn is_secret(name: &str) -> bool {
    name.ends_with("_KEY") || name.ends_with("TOKEN") && name != "HF_HUB_DISABLE_IMPLICIT_TOKEN"
}

/// A value as it may be shown to everybody.
fn shown(name: &str, value: &str) -> String {
    if is_secret(name) && !value.is_empty() {
        return HIDDEN.into();
    }
    // Addresses of proxies and collectors may hold a user and a password.
    let Some((scheme, rest)) = value.split_once("://") else { return value.into() };
    match rest.rsplit_once('@') {
        Some((_, host)) => format!("{scheme}://{HIDDEN}@{host}"),
        None => value.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_hidden_and_the_rest_is_shown() {
        for (name, value, expected) in [
            ("API_KEY", "s3cret", HIDDEN),
            ("API_KEY", "", ""),
            ("HF_TOKEN", "hf_x", HIDDEN),
            ("MAX_TOTAL_TOKENS", "512", "512"),
            ("HTTPS_PROXY", "http://me:p@ss@proxy:3128", "http://(hidden)@proxy:3128"),
            ("HF_ENDPOINT", "https://hub.example", "https://hub.example"),
        ] {
            assert_eq!(shown(name, value), expected, "{name}");
        }
        let secrets: Vec<String> = known().into_iter().filter(|name| is_secret(name)).collect();
        assert_eq!(
            secrets,
            ["API_KEY", "HF_API_TOKEN", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "NGROK_AUTHTOKEN"]
        );
    }
}
