//! What probes, scrapers and clients ask before they ask for text.
//!
//! None of these waits: each reads the state that the engine last announced.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::App;
use super::error::ApiError;
use super::options::find_model;
use crate::engine::EngineState;

/// The process runs, draining or not.
pub(crate) async fn live() -> Response {
    Json(json!({"status": "alive"})).into_response()
}

/// New requests are welcome here, or why they are not.
pub(crate) async fn ready(State(app): State<Arc<App>>) -> Response {
    match app.why_not_ready() {
        None => Json(json!({"status": "ready"})).into_response(),
        Some(reason) => {
            let body = Json(json!({"status": "not ready", "reason": reason}));
            (StatusCode::SERVICE_UNAVAILABLE, body).into_response()
        }
    }
}

/// TGI's probe: able to serve or not.
pub(crate) async fn health(State(app): State<Arc<App>>) -> Response {
    match app.why_not_ready() {
        None => StatusCode::OK.into_response(),
        Some(_) => unhealthy(),
    }
}

/// TGI's words for a server that is not able to serve.
pub(crate) fn unhealthy() -> Response {
    let body = Json(json!({"error": "unhealthy", "error_type": "healthcheck"}));
    (StatusCode::SERVICE_UNAVAILABLE, body).into_response()
}

/// The text format of Prometheus.
pub(crate) async fn metrics(State(app): State<Arc<App>>) -> Response {
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (kind, app.metrics.render()).into_response()
}

/// Every accepted name.
pub(crate) async fn models(State(app): State<Arc<App>>) -> Response {
    let cards: Vec<Value> = app.names.iter().map(|name| card(&app, name)).collect();
    Json(json!({"object": "list", "data": cards})).into_response()
}

/// One accepted name.
pub(crate) async fn model(
    State(app): State<Arc<App>>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    // What is not UTF-8 is no accepted name either.
    let name = name.map(|Path(name)| name).unwrap_or_default();
    Ok(Json(card(&app, &find_model(&name, &app.names)?)).into_response())
}

fn card(app: &App, name: &str) -> Value {
    let max_model_len = app.generator.state().info().map(|info| app.max_model_len(info));
    json!({
        "id": name,
        "object": "model",
        "created": app.created,
        "owned_by": "millstream",
        "max_model_len": max_model_len,
    })
}

impl App {
    /// Why new requests should go elsewhere; `None` where they should not.
    pub(crate) fn why_not_ready(&self) -> Option<String> {
        if self.drain.is_draining() {
            return Some("the server is shutting down".into());
        }
        match self.generator.state() {
            EngineState::Ready(_) => None,
            EngineState::Starting(reason) => Some(reason),
            EngineState::Recovering(_) => Some("the worker is being restarted".into()),
        }
    }
}
