//! From an address to a stream of bytes: TCP, a proxy where the environment names one, TLS.
//!
//! It knows no HTTP but the proxy's `CONNECT`. Certificates are checked against Mozilla's
//! authorities, which are part of the executable, and those of the file in `SSL_CERT_FILE`.

use std::error::Error;
use std::io;
use std::path::Path;
use std::sync::Arc;

use hyper::Uri;
use hyper::header::HeaderValue;
use hyper::http::uri::Scheme;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};
use tower::ServiceExt;

use super::HubError;
use super::settings::Settings;

/// A stream to a server, perhaps by way of a proxy.
pub(super) struct Connection {
    pub(super) stream: Box<dyn Stream>,
    /// Set where a proxy reads the requests itself, so each must name its whole address.
    pub(super) forwarder: Option<Forwarder>,
}

/// A proxy for plain HTTP.
pub(super) struct Forwarder {
    /// What it wants to see, if it wants to know who asks.
    pub(super) authorization: Option<HeaderValue>,
}

pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Why there is no connection.
#[derive(Debug)]
pub(super) enum ConnectError {
    /// What may be better next time.
    Passing(String),
    /// What somebody has to change first.
    Lasting(String),
}

/// Opens connections.
pub(super) struct Connector {
    tcp: HttpConnector,
    proxies: Matcher,
    tls: TlsConnector,
    timeout: std::time::Duration,
}

impl Connector {
    pub(super) fn new(settings: &Settings, proxies: Matcher) -> Result<Connector, HubError> {
        let mut tcp = HttpConnector::new();
        // The scheme says what is spoken on top; here it only tells the port.
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(settings.etag_timeout));
        let mut roots = RootCertStore::from_iter(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        if let Some((name, file)) = &settings.authorities {
            add_authorities(&mut roots, name, file)?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| HubError::Setting {
                name: "TLS".into(),
                rule: format!("cannot be set up: {error}"),
            })?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let tls = TlsConnector::from(Arc::new(config));
        Ok(Connector { tcp, proxies, tls, timeout: settings.etag_timeout })
    }

    /// A stream on which HTTP can be spoken with the host of `uri`.
    pub(super) async fn connect(&self, uri: &Uri) -> Result<Connection, ConnectError> {
        let is_tls = uri.scheme() == Some(&Scheme::HTTPS);
        let Some(proxy) = self.proxies.intercept(uri) else {
            let stream = self.tcp.clone().oneshot(uri.clone()).await.map_err(passing)?;
            return self.secured(stream.into_inner(), uri, is_tls).await;
        };
        let address = proxy.uri();
        if address.scheme() != Some(&Scheme::HTTP) {
            let scheme = address.scheme_str().unwrap_or("");
            let reason =
                format!("a proxy that speaks {scheme} is not supported; use an http:// one");
            return Err(ConnectError::Lasting(reason));
        }
        let authorization = proxy.basic_auth().cloned();
        if !is_tls {
            let stream = self.tcp.clone().oneshot(address.clone()).await.map_err(by_proxy)?;
            let forwarder = Some(Forwarder { authorization });
            return Ok(Connection { stream: Box::new(stream.into_inner()), forwarder });
        }
        let mut tunnel = Tunnel::new(address.clone(), self.tcp.clone());
        if let Some(authorization) = authorization {
            tunnel = tunnel.with_auth(authorization);
        }
        let stream: TokioIo<TcpStream> = timeout(self.timeout, tunnel.oneshot(uri.clone()))
            .await
            .map_err(|_| ConnectError::Passing("the proxy does not answer".into()))?
            .map_err(by_proxy)?;
        self.secured(stream.into_inner(), uri, true).await
    }

    async fn secured(
        &self,
        stream: TcpStream,
        uri: &Uri,
        is_tls: bool,
    ) -> Result<Connection, ConnectError> {
        if !is_tls {
            return Ok(Connection { stream: Box::new(stream), forwarder: None });
        }
        let host = uri.host().unwrap_or("").trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| ConnectError::Lasting(format!("`{host}` is no name of a host")))?;
        match timeout(self.timeout, self.tls.connect(name, stream)).await {
            Ok(Ok(stream)) => Ok(Connection { stream: Box::new(stream), forwarder: None }),
            Ok(Err(error)) => Err(tls_error(&error)),
            Err(_) => Err(ConnectError::Passing("no TLS handshake in time".into())),
        }
    }
}

fn add_authorities(roots: &mut RootCertStore, name: &str, file: &Path) -> Result<(), HubError> {
    let wrong = |reason: String| HubError::Setting {
        name: name.to_owned(),
        rule: format!("must name a file of certificates; `{}`: {reason}", file.display()),
    };
    let certificates = CertificateDer::pem_file_iter(file).map_err(|e| wrong(e.to_string()))?;
    let mut num_added = 0;
    for certificate in certificates {
        let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
        // Bundles hold a few that nobody can read any more.
        num_added += usize::from(roots.add(certificate).is_ok());
    }
    if num_added == 0 { Err(wrong("it holds none".into())) } else { Ok(()) }
}

/// The whole chain of reasons: the first alone says little more than "error".
pub(super) fn reasons(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let reason = error.to_string();
        if !text.contains(&reason) {
            text += &format!(": {reason}");
        }
        source = error.source();
    }
    text
}

fn passing(error: impl Error) -> ConnectError {
    ConnectError::Passing(reasons(&error))
}

fn by_proxy(error: impl Error) -> ConnectError {
    ConnectError::Passing(format!("the proxy cannot be used: {}", reasons(&error)))
}

fn tls_error(error: &io::Error) -> ConnectError {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(reason)) => ConnectError::Lasting(format!(
            "its certificate is not trusted ({reason:?}); SSL_CERT_FILE may name a file with \
             its authority"
        )),
        _ => ConnectError::Passing(error.to_string()),
    }
}
