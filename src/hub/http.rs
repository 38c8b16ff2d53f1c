//! Requests to the hub: redirects followed, the token shown to the hub alone, answers told apart.
//!
//! One connection a request: a model is some ten files, so there is nothing to win by keeping
//! them. Redirects are followed here, because the token must not follow them to another host:
//! the hub sends who asks for a large file to a server of somebody else's.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use tokio::time::timeout;
use tracing::debug;

use super::HubError;
use super::connect::{ConnectError, Connection, Connector, reasons};
use super::error::Failure;
use super::settings::{Settings, Token};

/// Redirects of one request, at most.
const MAX_REDIRECTS: usize = 10;
/// Of an answer that is read into memory.
const MAX_TEXT_BYTES: usize = 64 << 20;
/// Longest wait that a server may ask for before the next attempt.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);
/// Hosts that the token belongs to, whichever endpoint is set.
const HUB_HOSTS: [&str; 2] = ["huggingface.co", "hf.co"];
/// What may not stand in an address as it is; a `%` is part of what is already encoded.
const NOT_IN_ADDRESS: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'<')
    .add(b'>')
    .add(b'\\')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}')
    .add(b'#');

/// One question.
pub(super) struct Call<'a> {
    pub(super) method: Method,
    pub(super) url: &'a str,
    /// First byte that is wanted.
    pub(super) start: u64,
    /// How long the head of an answer, and each part of its body, may take.
    pub(super) patience: Duration,
}

/// The last answer to a question.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    /// Where it comes from, without what may be signed.
    pub(super) url: String,
    /// True if the hub itself says this, and not a server that it sent us to.
    pub(super) is_of_hub: bool,
    body: Incoming,
    patience: Duration,
}

/// Asks the hub.
pub(super) struct Client {
    connector: Connector,
    token: Option<Token>,
    endpoint: Uri,
    user_agent: HeaderValue,
}

impl Client {
    pub(super) fn new(settings: &Settings, proxies: Matcher) -> Result<Client, HubError> {
        let wrong = |name: &str| HubError::Setting {
            name: name.to_owned(),
            rule: "cannot be part of a request".into(),
        };
        Ok(Client {
            connector: Connector::new(settings, proxies)?,
            token: settings.token.clone(),
            endpoint: settings.endpoint.parse().map_err(|_| wrong("HF_ENDPOINT"))?,
            user_agent: HeaderValue::from_str(&settings.user_agent)
                .map_err(|_| wrong("HF_HUB_USER_AGENT_ORIGIN"))?,
        })
    }

    /// The name of where the token was found, if there is one.
    pub(super) fn token_source(&self) -> Option<&'static str> {
        self.token.as_ref().map(|token| token.source)
    }

    /// Asks, and follows redirects; a `HEAD` stays with the hub, whose answer says what is meant.
    ///
    /// Any status but a redirect's is an answer; whether it is a good one is for the caller.
    pub(super) async fn ask(&self, call: &Call<'_>) -> Result<Answer, Failure> {
        let mut uri = parse(call.url)?;
        for _ in 0..=MAX_REDIRECTS {
            let response = self.ask_once(call, &uri).await?;
            let target = match response.headers().get(header::LOCATION) {
                Some(location) if response.status().is_redirection() => redirect(&uri, location)?,
                _ => return Ok(self.answer(response, &uri, call.patience)),
            };
            if call.method == Method::HEAD && !self.is_hub(&target) {
                return Ok(self.answer(response, &uri, call.patience));
            }
            debug!(from = shown(&uri), to = shown(&target), "redirected");
            uri = target;
        }
        let reason = format!("more than {MAX_REDIRECTS} redirects");
        Err(HubError::Protocol { url: shown(&parse(call.url)?), reason }.into())
    }

    fn answer(&self, response: Response<Incoming>, uri: &Uri, patience: Duration) -> Answer {
        let (head, body) = response.into_parts();
        Answer {
            status: head.status,
            headers: head.headers,
            url: shown(uri),
            is_of_hub: self.is_hub(uri),
            body,
            patience,
        }
    }

    async fn ask_once(&self, call: &Call<'_>, uri: &Uri) -> Result<Response<Incoming>, Failure> {
        let passing = |reason| Failure::Passing { url: shown(uri), reason, retry_after: None };
        let connection = match self.connector.connect(uri).await {
            Ok(connection) => connection,
            Err(ConnectError::Passing(reason)) => return Err(passing(reason)),
            Err(ConnectError::Lasting(reason)) => {
                return Err(HubError::Unreachable { url: shown(uri), reason }.into());
            }
        };
        let request = self.request(call, uri, &connection)?;
        let (mut sender, driver) = http1::handshake(TokioIo::new(connection.stream))
            .await
            .map_err(|error| passing(reasons(&error)))?;
        // Ends with the body of the answer, or with whoever reads it.
        tokio::spawn(driver);
        match timeout(call.patience, sender.send_request(request)).await {
            Ok(response) => response.map_err(|error| passing(reasons(&error))),
            Err(_) => Err(passing(format!("no answer within {} s", call.patience.as_secs_f64()))),
        }
    }

    fn request(
        &self,
        call: &Call<'_>,
        uri: &Uri,
        connection: &Connection,
    ) -> Result<Request<Empty<Bytes>>, HubError> {
        let host = uri.authority().map_or("", |authority| authority.as_str());
        let mut request = Request::builder()
            .method(call.method.clone())
            .header(header::HOST, host)
            .header(header::USER_AGENT, &self.user_agent)
            // Sizes and hashes are those of the bytes as they are.
            .header(header::ACCEPT_ENCODING, "identity");
        if call.start > 0 {
            request = request.header(header::RANGE, format!("bytes={}-", call.start));
        }
        if let Some(token) = self.token.as_ref().filter(|_| self.is_hub(uri)) {
            request = request.header(header::AUTHORIZATION, &token.authorization);
        }
        request = match &connection.forwarder {
            None => request.uri(uri.path_and_query().map_or("/", |path| path.as_str())),
            Some(forwarder) => {
                if let Some(authorization) = &forwarder.authorization {
                    request = request.header(header::PROXY_AUTHORIZATION, authorization);
                }
                request.uri(uri.clone())
            }
        };
        let wrong = |error: hyper::http::Error| HubError::Protocol {
            url: shown(uri),
            reason: error.to_string(),
        };
        request.body(Empty::new()).map_err(wrong)
    }

    /// True where the token may be shown: at the endpoint, and at the hub itself.
    fn is_hub(&self, uri: &Uri) -> bool {
        let is_endpoint = uri.scheme() == self.endpoint.scheme()
            && uri.host().zip(self.endpoint.host()).is_some_and(|(a, b)| a.eq_ignore_ascii_case(b))
            && port(uri) == port(&self.endpoint);
        let host = uri.host().unwrap_or("").to_ascii_lowercase();
        let is_hub = uri.scheme_str() == Some("https")
            && port(uri) == Some(443)
            && HUB_HOSTS.contains(&host.as_str());
        is_endpoint || is_hub
    }
}

impl Answer {
    /// A header's text, if there is one that is text.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
        self.headers.get(name)?.to_str().ok()
    }

    /// How long the server asks to be left alone.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        let seconds = self.header("retry-after")?.trim().parse().ok()?;
        Some(Duration::from_secs(seconds).min(MAX_RETRY_AFTER))
    }

    /// The next part of the body, or `None` at its end.
    pub(super) async fn next_part(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            let frame = match timeout(self.patience, self.body.frame()).await {
                Ok(Some(Ok(frame))) => frame,
                Ok(Some(Err(error))) => return Err(self.passing(reasons(&error))),
                Ok(None) => return Ok(None),
                Err(_) => {
                    let seconds = self.patience.as_secs_f64();
                    return Err(self.passing(format!("no byte within {seconds} s")));
                }
            };
            // What is no data is a trailer, which nobody asked for.
            if let Ok(part) = frame.into_data() {
                return Ok(Some(part));
            }
        }
    }

    /// The whole body.
    pub(super) async fn text(mut self) -> Result<Vec<u8>, Failure> {
        let mut text = Vec::new();
        while let Some(part) = self.next_part().await? {
            if text.len() + part.len() > MAX_TEXT_BYTES {
                let reason = format!("more than {MAX_TEXT_BYTES} bytes");
                return Err(HubError::Protocol { url: self.url, reason }.into());
            }
            text.extend_from_slice(&part);
        }
        Ok(text)
    }

    /// This answer failed, and another attempt may not.
    pub(super) fn passing(&self, reason: String) -> Failure {
        Failure::Passing { url: self.url.clone(), reason, retry_after: self.retry_after() }
    }
}

fn parse(url: &str) -> Result<Uri, HubError> {
    let encoded = utf8_percent_encode(url, NOT_IN_ADDRESS).to_string();
    match encoded.parse::<Uri>() {
        Ok(uri) if uri.host().is_some() && port(&uri).is_some() => Ok(uri),
        _ => {
            let url = url.split(['?', '#']).next().unwrap_or("").to_owned();
            Err(HubError::Protocol { url, reason: "it is no address of HTTP".into() })
        }
    }
}

/// Where an answer of `from` sends us.
fn redirect(from: &Uri, location: &HeaderValue) -> Result<Uri, HubError> {
    let Ok(location) = std::str::from_utf8(location.as_bytes()) else {
        let reason = "a redirect to what is no text".into();
        return Err(HubError::Protocol { url: shown(from), reason });
    };
    let scheme = from.scheme_str().unwrap_or("https");
    let host = from.authority().map_or("", |authority| authority.as_str());
    if location.contains("://") && !location.starts_with('/') {
        parse(location)
    } else if let Some(rest) = location.strip_prefix("//") {
        parse(&format!("{scheme}://{rest}"))
    } else if location.starts_with('/') {
        parse(&format!("{scheme}://{host}{location}"))
    } else {
        let folder = from.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        parse(&format!("{scheme}://{host}{folder}/{location}"))
    }
}

fn port(uri: &Uri) -> Option<u16> {
    match (uri.port_u16(), uri.scheme_str()) {
        (Some(port), Some("http" | "https")) => Some(port),
        (None, Some("https")) => Some(443),
        (None, Some("http")) => Some(80),
        _ => None,
    }
}

/// An address for messages: the query is left out, because it may be signed.
fn shown(uri: &Uri) -> String {
    let scheme = uri.scheme_str().unwrap_or("http");
    let host = uri.host().unwrap_or("");
    let port = uri.port_u16().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{scheme}://{host}{port}{}", uri.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_may_be_whole_or_a_part_of_an_address() {
        let from = parse("https://h:8443/a/resolve/main/x.json?download=true").unwrap();
        for (location, expected) in [
            ("https://cdn.example/f?sig=a%2Fb|c", "https://cdn.example/f?sig=a%2Fb%7Cc"),
            ("//cdn.example/f", "https://cdn.example/f"),
            ("/api/x?u=http://y", "https://h:8443/api/x?u=http://y"),
            ("y.json", "https://h:8443/a/resolve/main/y.json"),
        ] {
            let location = HeaderValue::from_str(location).unwrap();
            assert_eq!(redirect(&from, &location).unwrap().to_string(), expected);
        }
        for wrong in ["file:///etc/passwd", "ftp://h/x", "https://"] {
            assert!(redirect(&from, &HeaderValue::from_static(wrong)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_message_never_shows_what_signs_an_address() {
        let uri = parse("https://user:pass@cdn.example/f?X-Amz-Signature=abc").unwrap();
        assert_eq!(shown(&uri), "https://cdn.example/f");
        let error = parse("gopher://h/x?X-Amz-Signature=abc").unwrap_err().to_string();
        assert!(!error.contains("abc"), "{error}");
    }

    #[test]
    fn the_token_is_for_the_endpoint_and_the_hub_alone() {
        let variables = |name: &str| (name == "HF_ENDPOINT").then(|| "http://mirror:81/hf".into());
        let settings = Settings::read(&variables).unwrap();
        let client = Client::new(&settings, Matcher::builder().build()).unwrap();
        for (url, expected) in [
            ("http://mirror:81/other", true),
            ("http://MIRROR:81/", true),
            ("https://huggingface.co/x", true),
            ("https://huggingface.co:444/x", false),
            ("http://huggingface.co/x", false),
            ("http://mirror/hf", false),
            ("https://mirror:81/hf", false),
            ("https://cdn-lfs.huggingface.co/x", false),
            ("https://huggingface.co.example/x", false),
        ] {
            assert_eq!(client.is_hub(&parse(url).unwrap()), expected, "{url}");
        }
    }
}
