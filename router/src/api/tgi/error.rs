//! How an error looks in TGI's API: `{"error": "...", "error_type": "..."}`.
//!
//! TGI answered a refused stream with 200 and an event; here it is the error's own status. Bodies
//! that are no JSON, too large or too slow keep the status that they have in OpenAI's API, which is
//! also TGI's.

use axum::body::Body;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::api::error::ApiError;

/// An error on its way to a client of TGI.
#[derive(Debug)]
pub(crate) struct TgiError(pub(crate) ApiError);

impl From<ApiError> for TgiError {
    fn from(error: ApiError) -> TgiError {
        TgiError(error)
    }
}

impl TgiError {
    /// The status, where it is not that of OpenAI's API, and TGI's type.
    fn class(&self) -> (Option<StatusCode>, &'static str) {
        use ApiError as E;
        match &self.0 {
            E::Invalid { .. } | E::Unsupported { .. } | E::ContextLength { .. } => {
                (Some(StatusCode::UNPROCESSABLE_ENTITY), "validation")
            }
            E::Failed(_) => (Some(StatusCode::FAILED_DEPENDENCY), "generation"),
            E::Interrupted(_) => (None, "incomplete_generation"),
            E::Overloaded(_) => (None, "overloaded"),
            E::Loading(_) | E::Draining => (None, "healthcheck"),
            E::Unauthorized => (None, "authentication"),
            E::Internal => (None, "internal"),
            E::Json(_)
            | E::BodyLost
            | E::ContentType(_)
            | E::BodyTooLarge { .. }
            | E::BodyTimeout { .. }
            | E::UnknownModel { .. }
            | E::UnknownRoute { .. }
            | E::MethodNotAllowed { .. } => (None, "validation"),
        }
    }

    /// The JSON body, also the payload of an error event in a stream.
    pub(crate) fn body(&self) -> String {
        json!({"error": self.0.to_string(), "error_type": self.class().1}).to_string()
    }
}

impl IntoResponse for TgiError {
    fn into_response(self) -> Response {
        let (status, body) = (self.class().0, self.body());
        // Its headers are the same in either API.
        let mut response = self.0.into_response();
        *response.status_mut() = status.unwrap_or(response.status());
        *response.body_mut() = Body::from(body);
        response
    }
}
