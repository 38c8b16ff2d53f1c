//! HTTP in, HTTP out: the messages of OpenAI and of TGI, checked at the door.
//!
//! A request is let in ([`gate`]: request id, key), read and checked ([`fields`], [`options`],
//! [`sampling`], [`chat`], [`completions`]), handed on ([`handlers`]), and answered whole or as
//! events ([`chunks`], [`stream`]). TGI's own API is in [`tgi`], what platforms ask for in
//! [`platforms`]. Either API's types end here: what leaves is a `GenerationRequest`.
//!
//! Every route but [`PUBLIC`] asks for the key, unknown ones included: who has no key learns
//! nothing of what is there.

mod answer;
mod best_of;
mod chat;
mod chunks;
mod completions;
pub(crate) mod config;
mod constraints;
pub(crate) mod cors;
pub(crate) mod drain;
pub(crate) mod error;
mod fields;
mod handlers;
pub(crate) mod health;
mod ignored;
pub(crate) mod listen;
mod messages;
mod openapi;
mod options;
mod platforms;
mod sampling;
mod stream;
#[cfg(test)]
mod tests;
mod tgi;
mod tools;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use millstream_proto::WorkerInfo;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tower_http::catch_panic::CatchPanicLayer;
use tracing::error;
use uuid::Uuid;

use crate::generate::Generator;
use crate::metrics::Metrics;
use crate::text::{EncoderPool, TextModel};
use config::{Deployment, RequestLimits};
use drain::Drain;
use error::ApiError;
use fields::quoted;
use options::Rules;
use tgi::TgiError;

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
const INVOCATIONS: &str = "/invocations";
const VERTEX: &str = "/vertex";

/// The paths that are served, as metrics name them.
const PATHS: &[&str] = &[
    CHAT,
    COMPLETIONS,
    "/v1/models",
    "/metrics",
    "/health",
    "/live",
    "/ready",
    "/ping",
    "/info",
    "/",
    "/generate",
    "/generate_stream",
    "/tokenize",
    "/detokenize",
    "/chat_tokenize",
    INVOCATIONS,
    VERTEX,
    openapi::DOCUMENT,
    openapi::TGI_DOCUMENT,
    openapi::PAGE,
];

/// The paths that ask for no key: probes, scrapers and readers of the document have none. `GET /`
/// is one of them too.
const PUBLIC: &[&str] = &[
    "/health",
    "/live",
    "/ready",
    "/metrics",
    "/ping",
    "/info",
    openapi::DOCUMENT,
    openapi::TGI_DOCUMENT,
    openapi::PAGE,
];

/// The paths that generate text, where they are posted to.
const GENERATING: &[&str] =
    &[CHAT, COMPLETIONS, "/", "/generate", "/generate_stream", INVOCATIONS, VERTEX];

/// The paths whose errors have TGI's form.
const TGI: &[&str] = &[
    "/",
    "/generate",
    "/generate_stream",
    "/info",
    "/tokenize",
    "/chat_tokenize",
    INVOCATIONS,
    VERTEX,
];

static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Characters of a client's request id that are echoed at most.
const MAX_REQUEST_ID: usize = 128;

/// What the handlers share.
pub(crate) struct App {
    pub(crate) generator: Generator,
    pub(crate) encoders: EncoderPool,
    /// Prompts that are encoded at a time.
    pub(crate) validation_workers: usize,
    pub(crate) deployment: Deployment,
    pub(crate) text: Arc<TextModel>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) drain: Arc<Drain>,
    pub(crate) limits: RequestLimits,
    /// The served name, then its aliases.
    pub(crate) names: Vec<String>,
    /// SHA-256 of the key that is asked for.
    pub(crate) api_key: Option<[u8; 32]>,
    pub(crate) client_timeout: Duration,
    pub(crate) keep_alive: Duration,
    /// When the server started, in seconds since 1970.
    pub(crate) created: u64,
}

impl App {
    /// The longest sequence that the model, its cache and the operator allow.
    fn max_model_len(&self, info: &WorkerInfo) -> u32 {
        let limit = self.limits.max_total_tokens.unwrap_or(usize::MAX);
        info.max_model_len.min(u32::try_from(limit).unwrap_or(u32::MAX))
    }

    /// The longest prompt that is accepted.
    fn max_input_tokens(&self, info: &WorkerInfo) -> usize {
        let rest = (self.max_model_len(info) as usize).saturating_sub(1);
        self.limits.max_input_tokens.map_or(rest, |limit| limit.min(rest))
    }

    fn rules(&self, info: &WorkerInfo) -> Rules<'_> {
        Rules {
            limits: &self.limits,
            names: &self.names,
            vocab_size: info.vocab_size,
            least_max_tokens: 1,
            defaults: self.text.generation_defaults(),
            formats: self.text.answer_formats(),
        }
    }

    /// The path of the table that answers at `path`.
    fn label(&self, path: &str) -> &'static str {
        let Deployment { predict_route, health_route, .. } = &self.deployment;
        match PATHS.iter().copied().find(|known| *known == path) {
            Some(known) => known,
            None if predict_route.as_deref() == Some(path) => VERTEX,
            None if health_route.as_deref() == Some(path) => "/health",
            None => "other",
        }
    }

    /// Compares digests in constant time, so the time says nothing of the key or its length.
    fn is_authorized(&self, headers: &HeaderMap) -> bool {
        let Some(expected) = &self.api_key else { return true };
        let given = headers.get(header::AUTHORIZATION).and_then(|value| {
            let (scheme, key) = value.as_bytes().split_at_checked(7)?;
            scheme.eq_ignore_ascii_case(b"bearer ").then_some(key.trim_ascii())
        });
        given.is_some_and(|given| digest(given).ct_eq(expected).into())
    }
}

/// SHA-256.
pub(crate) fn digest(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// Seconds since 1970.
pub(crate) fn unix_time() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs())
}

/// Everything that is served.
pub(crate) fn routes(app: Arc<App>) -> Router {
    let mut routes = Router::new()
        .route(CHAT, post(handlers::chat))
        .route(COMPLETIONS, post(handlers::completions))
        .route("/v1/models", get(health::models))
        .route("/v1/models/{*name}", get(health::model))
        .route("/metrics", get(health::metrics))
        .route("/health", get(health::health))
        .route("/live", get(health::live))
        .route("/ready", get(health::ready))
        .route("/ping", get(health::health))
        .route("/", get(health::health).post(tgi::compat))
        .route("/generate", post(tgi::generate))
        .route("/generate_stream", post(tgi::generate_stream))
        .route("/info", get(tgi::info))
        .route("/tokenize", post(tgi::tokenize))
        .route("/detokenize", post(tgi::detokenize))
        .route("/chat_tokenize", post(tgi::chat_tokenize))
        .route(INVOCATIONS, post(platforms::invoke))
        .route(VERTEX, post(platforms::invoke))
        .merge(openapi::routes(&app));
    let Deployment { predict_route, health_route, .. } = &app.deployment;
    // A path that is there already does what it does.
    if let Some(path) = predict_route.as_deref().filter(|path| !PATHS.contains(path)) {
        routes = routes.route(path, post(platforms::invoke));
    }
    if let Some(path) = health_route.as_deref().filter(|path| !PATHS.contains(path)) {
        routes = routes.route(path, get(health::health));
    }
    routes
        .fallback(unknown_route)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(CatchPanicLayer::custom(|_| {
            error!("a handler panicked");
            ApiError::Internal.into_response()
        }))
        .layer(from_fn_with_state(app.clone(), gate))
        .with_state(app)
}

async fn unknown_route(method: Method, uri: Uri) -> ApiError {
    ApiError::UnknownRoute { method: method.to_string(), path: quoted(uri.path()) }
}

async fn method_not_allowed(method: Method, uri: Uri) -> ApiError {
    ApiError::MethodNotAllowed { method: method.to_string(), path: quoted(uri.path()) }
}

/// What every request passes on its way in and out.
async fn gate(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let id = request_id(request.headers());
    let label = app.label(request.uri().path());
    let generates = request.method() == Method::POST && GENERATING.contains(&label);
    let is_public = PUBLIC.contains(&label) || (label == "/" && request.method().is_safe());
    let mut response = if is_public || app.is_authorized(request.headers()) {
        next.run(request).await
    } else {
        refuse(label, ApiError::Unauthorized)
    };
    app.metrics.http.answered(label, response.status().as_u16(), generates);
    response.headers_mut().insert(REQUEST_ID.clone(), id);
    response
}

/// An error in the form of the API that a path belongs to.
pub(crate) fn refuse(path: &str, error: ApiError) -> Response {
    if TGI.contains(&path) { TgiError(error).into_response() } else { error.into_response() }
}

/// The client's own id if it is harmless in logs and headers, else a new one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let is_harmless = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:/+=".contains(byte);
    let given = headers.get(&REQUEST_ID).filter(|id| {
        let id = id.as_bytes();
        (1..=MAX_REQUEST_ID).contains(&id.len()) && id.iter().all(is_harmless)
    });
    given.cloned().unwrap_or_else(|| {
        let id = Uuid::new_v4().simple().to_string();
        HeaderValue::from_str(&id).expect("hexadecimal digits fit a header")
    })
}
