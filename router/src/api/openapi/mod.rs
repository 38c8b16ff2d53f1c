//! The API as a document, `/openapi.json`, and as a page that reads it, `/docs`.
//!
//! Requests are read and answers written by hand, field by field. What is said of them here are
//! types of their own, one file for each API: [`openai`] and [`answers`], [`tgi`], [`tokens`],
//! [`platforms`], [`server`], [`errors`]. [`routes`] says which path takes and answers which.
//! Tests hold them to the code: every field that is read is documented and the other way round,
//! every answer matches its schema, and every path is there.

// Only their schemas are used: no value of these types is ever made.
#[expect(dead_code, reason = "types that describe JSON")]
mod answers;
#[expect(dead_code, reason = "types that describe JSON")]
mod errors;
#[expect(dead_code, reason = "types that describe JSON")]
mod openai;
#[expect(dead_code, clippy::large_enum_variant, reason = "types that describe JSON")]
mod platforms;
mod routes;
#[expect(dead_code, reason = "types that describe JSON")]
mod server;
#[expect(dead_code, reason = "types that describe JSON")]
mod tgi;
#[expect(dead_code, reason = "types that describe JSON")]
mod tokens;

use std::sync::Arc;

use axum::Router;
use axum::http::{HeaderName, header};
use axum::routing::get;
use bytes::Bytes;
use serde_json::{Value, json};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{ComponentsBuilder, InfoBuilder, OpenApiBuilder};

use super::App;
use super::config::RequestLimits;
use routes::Routes;

pub(super) const DOCUMENT: &str = "/openapi.json";
/// Where TGI has it.
pub(super) const TGI_DOCUMENT: &str = "/api-doc/openapi.json";
pub(super) const PAGE: &str = "/docs";

/// The page, which loads nothing but the document.
const HTML: &str = include_str!("page.html");
/// The page may run its own script and ask its own server, and nothing else.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src \
     'unsafe-inline'; img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; \
     frame-ancestors 'self'";

const DESCRIPTION: &str = "\
An LLM server with OpenAI's API and that of Text Generation Inference.

`null` counts as absent in every request. Fields that are not documented change nothing; the \
answer's header `x-ignored-fields` names those that may have been meant to. Fields that would \
change the answer and are not implemented are refused by name.";

/// The routes of the document and its page.
pub(super) fn routes(app: &App) -> Router<Arc<App>> {
    let document = Bytes::from(document(&app.limits, app.api_key.is_some()).to_string());
    let json = [(header::CONTENT_TYPE, "application/json")];
    let document = get(move || async move { (json, document) });
    let html: [(HeaderName, &str); 2] = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, PAGE_POLICY),
    ];
    Router::new()
        .route(DOCUMENT, document.clone())
        .route(TGI_DOCUMENT, document)
        .route(PAGE, get(move || async move { (html, HTML) }))
}

/// The document of a server with these limits, which asks for a key or not.
pub(super) fn document(limits: &RequestLimits, asks_for_key: bool) -> Value {
    let Routes { paths, schemas } = Routes::all();
    let key = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some("The key that the server was started with."))
        .build();
    let components = ComponentsBuilder::new().schemas_from_iter(schemas);
    let mut document = OpenApiBuilder::new()
        .info(
            InfoBuilder::new()
                .title("Millstream")
                .version(env!("CARGO_PKG_VERSION"))
                .description(Some(DESCRIPTION))
                .build(),
        )
        .paths(paths);
    document = if asks_for_key {
        document
            .components(Some(components.security_scheme("key", SecurityScheme::Http(key)).build()))
            .security(Some([SecurityRequirement::new("key", [] as [&str; 0])]))
    } else {
        document.components(Some(components.build()))
    };
    let document = serde_json::to_value(document.build());
    let mut document = document.expect("the document can be written to memory");
    state_limits(&mut document["components"]["schemas"], limits);
    document
}

/// Writes what the operator decides into the schemas, and bounds that types cannot state.
fn state_limits(schemas: &mut Value, limits: &RequestLimits) {
    let choices = limits.max_choices;
    let (top, stops, batch) =
        (limits.max_top_logprobs, limits.max_stop_sequences, limits.max_client_batch_size);
    let stated = [
        ("/SharedOptions/properties/n", "maximum", choices),
        ("/Stop/oneOf/1", "maxItems", stops),
        ("/ChatCompletionRequest/allOf/3/properties/top_logprobs", "maximum", top),
        ("/CompletionRequest/allOf/2/properties/logprobs", "maximum", top),
        ("/CompletionRequest/allOf/2/properties/best_of", "maximum", choices),
        ("/Prompt/oneOf/1", "minItems", 1),
        ("/Prompt/oneOf/2", "minItems", 1),
        ("/Prompt/oneOf/2", "maxItems", batch),
        ("/GenerateParameters/allOf/1/properties/best_of", "maximum", choices),
        ("/GenerateParameters/allOf/1/properties/top_n_tokens", "maximum", top),
        ("/PredictRequest/properties/instances", "maxItems", batch),
    ];
    for (place, keyword, limit) in stated {
        let schema = schemas.pointer_mut(place).expect("a field with a limit is documented");
        schema[keyword] = json!(limit);
    }
}
