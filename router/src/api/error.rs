//! Every way in which a request can be refused or fail, and how each looks on the wire.
//!
//! The shape is OpenAI's: `{"error": {"message", "type", "param", "code"}}`. A message names the
//! field, the rule and the value, and repeats at most a few characters of what was sent.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::engine::SubmitError;

/// Seconds after which a client may try again.
const RETRY_AFTER: &str = "1";

/// Why a request was not served.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub(crate) enum ApiError {
    /// A field breaks a rule.
    #[error("{message}")]
    Invalid { param: String, message: String },
    /// A field asks for something that is not there yet.
    #[error("{field} ({value}) is not supported yet; leave it out")]
    Unsupported { field: &'static str, value: String },
    /// Prompt and output do not fit together.
    #[error("{message}")]
    ContextLength { param: &'static str, message: String },
    #[error("the request body is not valid JSON: {0}")]
    Json(String),
    #[error("the request body ended early or could not be read")]
    BodyLost,
    #[error("content-type must be application/json, not {0}")]
    ContentType(String),
    #[error("the request body exceeds the limit of {limit} bytes")]
    BodyTooLarge { limit: usize },
    #[error("the request body did not arrive within {seconds} s")]
    BodyTimeout { seconds: u64 },
    #[error("no valid API key was given; send it as `Authorization: Bearer <key>`")]
    Unauthorized,
    #[error("the model {asked} does not exist here; this server serves `{served}`")]
    UnknownModel { asked: String, served: String },
    #[error("there is no route {method} {path}")]
    UnknownRoute { method: String, path: String },
    #[error("{path} does not answer {method}")]
    MethodNotAllowed { method: String, path: String },
    #[error(transparent)]
    Overloaded(#[from] Overloaded),
    #[error("the model is not ready yet: {0}")]
    Loading(String),
    #[error("the server is shutting down")]
    Draining,
    /// Accepted, then ended by the server.
    #[error("{0}")]
    Interrupted(String),
    /// Accepted, then failed.
    #[error("{0}")]
    Failed(String),
    #[error("an internal error; the server's log says more")]
    Internal,
}

/// The limit at the door was reached.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{limit} sequences are queued or running, the most this server accepts; try again later")]
pub(crate) struct Overloaded {
    pub(crate) limit: usize,
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> ApiError {
        match error {
            SubmitError::Overloaded { limit } => Overloaded { limit }.into(),
            SubmitError::Closed => ApiError::Draining,
        }
    }
}

impl ApiError {
    /// `field` breaks `rule`, which continues the sentence "`field` ...".
    pub(crate) fn field(field: impl Into<String>, rule: impl std::fmt::Display) -> ApiError {
        let param = field.into();
        let message = format!("{param} {rule}");
        ApiError::Invalid { param, message }
    }

    /// Status, OpenAI's type and code.
    fn class(&self) -> (StatusCode, &'static str, Option<&'static str>) {
        const INVALID: &str = "invalid_request_error";
        use StatusCode as S;
        match self {
            Self::Invalid { .. } => (S::BAD_REQUEST, INVALID, Some("invalid_value")),
            Self::Unsupported { .. } => (S::BAD_REQUEST, INVALID, Some("unsupported_parameter")),
            Self::ContextLength { .. } => {
                (S::BAD_REQUEST, INVALID, Some("context_length_exceeded"))
            }
            Self::Json(_) => (S::BAD_REQUEST, INVALID, Some("invalid_json")),
            Self::BodyLost => (S::BAD_REQUEST, INVALID, None),
            Self::ContentType(_) => {
                (S::UNSUPPORTED_MEDIA_TYPE, INVALID, Some("unsupported_content_type"))
            }
            Self::BodyTooLarge { .. } => (S::PAYLOAD_TOO_LARGE, INVALID, Some("request_too_large")),
            Self::BodyTimeout { .. } => (S::REQUEST_TIMEOUT, INVALID, Some("request_timeout")),
            Self::Unauthorized => (S::UNAUTHORIZED, INVALID, Some("invalid_api_key")),
            Self::UnknownModel { .. } => (S::NOT_FOUND, INVALID, Some("model_not_found")),
            Self::UnknownRoute { .. } => (S::NOT_FOUND, INVALID, Some("unknown_url")),
            Self::MethodNotAllowed { .. } => {
                (S::METHOD_NOT_ALLOWED, INVALID, Some("method_not_allowed"))
            }
            Self::Overloaded(_) => {
                (S::TOO_MANY_REQUESTS, "rate_limit_error", Some("rate_limit_exceeded"))
            }
            Self::Loading(_) => (S::SERVICE_UNAVAILABLE, "server_error", Some("model_loading")),
            Self::Draining => (S::SERVICE_UNAVAILABLE, "server_error", Some("shutting_down")),
            Self::Interrupted(_) => (S::SERVICE_UNAVAILABLE, "server_error", Some("interrupted")),
            Self::Failed(_) => {
                (S::INTERNAL_SERVER_ERROR, "server_error", Some("generation_failed"))
            }
            Self::Internal => (S::INTERNAL_SERVER_ERROR, "server_error", None),
        }
    }

    fn param(&self) -> Option<&str> {
        match self {
            Self::Invalid { param, .. } => Some(param),
            Self::Unsupported { field, .. } => Some(field),
            Self::ContextLength { param, .. } => Some(param),
            Self::UnknownModel { .. } => Some("model"),
            _ => None,
        }
    }

    /// The JSON body, also the payload of an error event in a stream.
    pub(crate) fn body(&self) -> String {
        let (_, kind, code) = self.class();
        let message = self.to_string();
        json!({"error": {"message": message, "type": kind, "param": self.param(), "code": code}})
            .to_string()
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, _, _) = self.class();
        let mut response = Response::new(Body::from(self.body()));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        match self {
            Self::Overloaded(_) | Self::Loading(_) | Self::Interrupted(_) => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER));
            }
            Self::Draining => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER));
                // The next request should find another server.
                headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Self::Unauthorized => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            // The rest of the body is not read.
            Self::BodyTooLarge { .. } | Self::BodyTimeout { .. } => {
                headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            _ => {}
        }
        response
    }
}
