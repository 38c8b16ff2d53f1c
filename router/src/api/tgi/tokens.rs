//! Texts as tokens and back, without a generation.
//!
//! `/tokenize` has two forms: TGI's, which a body with `inputs` asks for, and vLLM's, which one
//! with `prompt` or `messages` does. `/detokenize` is vLLM's, and so are its errors.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::error::TgiError;
use super::request::{read_inputs, read_truncate};
use crate::api::App;
use crate::api::chat::Conversation;
use crate::api::error::ApiError;
use crate::api::fields::{Fields, must_be, token_ids};
use crate::api::handlers::Received;
use crate::api::options::read_model;
use crate::api::platforms::Kind;
use crate::api::tools::read_shown_tools;
use crate::text::{TextError, TextModel, TokenSpan};

/// `POST /tokenize`.
pub(crate) async fn tokenize(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, TgiError> {
    let received = app.receive_any(request).await?;
    let fields = Fields::parse(&received.body)?;
    match Kind::of(&fields) {
        Kind::Inputs => Ok(app.spans(fields).await?),
        kind => Ok(app.tokens(&received, fields, kind).await.into_response()),
    }
}

/// `POST /chat_tokenize`: a conversation as the model reads it.
pub(crate) async fn chat_tokenize(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, TgiError> {
    let received = app.receive_any(request).await?;
    let mut fields = Fields::parse(&received.body)?;
    read_model(&mut fields, &app.names)?;
    let shown = read_shown_tools(&mut fields)?;
    let conversation = Conversation::read(&mut fields, shown)?;
    let encode = move |text: &TextModel| {
        let templated = conversation.render(text)?;
        let spans = text.encode_spans(&templated, false).map_err(not_encoded("messages"))?;
        Ok::<_, ApiError>((templated, spans))
    };
    let (templated, spans) = app.encode(encode).await??;
    let tokens = simple_tokens(&templated, &spans);
    Ok(Json(json!({"tokenize_response": tokens, "templated_text": templated})).into_response())
}

/// `POST /detokenize`.
pub(crate) async fn detokenize(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, ApiError> {
    let received = app.receive_any(request).await?;
    let mut fields = Fields::parse(&received.body)?;
    read_model(&mut fields, &app.names)?;
    let tokens = match fields.value("tokens") {
        Some(Value::Array(tokens)) => token_ids("tokens", &tokens, received.info.vocab_size)?,
        Some(other) => return Err(must_be("tokens", "a list of token ids", &other)),
        None => return Err(ApiError::field("tokens", "must be given")),
    };
    let prompt = app.encode(move |text| text.decode(&tokens, false)).await?;
    Ok(Json(json!({"prompt": prompt})).into_response())
}

impl App {
    /// TGI's form: each token with its place in the text.
    async fn spans(&self, mut fields: Fields) -> Result<Response, ApiError> {
        let inputs = read_inputs(&mut fields)?;
        let add_special_tokens = fields.flag("add_special_tokens", true)?;
        let parameters = fields.object("parameters")?.unwrap_or_default();
        let mut parameters = Fields::inside("parameters.", parameters);
        let truncate = read_truncate(&mut parameters)?.unwrap_or(usize::MAX);
        let encode =
            move |text: &TextModel| (text.encode_spans(&inputs, add_special_tokens), inputs);
        let (spans, inputs) = self.encode(encode).await?;
        let spans = spans.map_err(not_encoded("inputs"))?;
        let kept = &spans[spans.len().saturating_sub(truncate)..];
        Ok(Json(simple_tokens(&inputs, kept)).into_response())
    }

    /// vLLM's form: the ids of a prompt or of a conversation.
    async fn tokens(
        &self,
        received: &Received,
        mut fields: Fields,
        kind: Kind,
    ) -> Result<Response, ApiError> {
        read_model(&mut fields, &self.names)?;
        let names_tokens = fields.flag("return_token_strs", false)?;
        let tokens = if kind == Kind::Messages {
            let shown = read_shown_tools(&mut fields)?;
            let conversation = Conversation::read(&mut fields, shown)?;
            self.encode(move |text| conversation.encode(text)).await??.0
        } else {
            let prompt = fields.string("prompt")?;
            let prompt = prompt.ok_or_else(|| {
                ApiError::field("prompt", "must be given, unless inputs or messages are")
            })?;
            let add_special_tokens = fields.flag("add_special_tokens", true)?;
            let encode = move |text: &TextModel| text.encode(&prompt, add_special_tokens);
            self.encode(encode).await?.map_err(not_encoded("prompt"))?
        };
        let names = |id: &u32| self.text.token_name(*id);
        let names = names_tokens.then(|| tokens.iter().map(names).collect::<Vec<_>>());
        Ok(Json(json!({
            "count": tokens.len(),
            "max_model_len": self.max_model_len(&received.info),
            "tokens": tokens,
            "token_strs": names,
        }))
        .into_response())
    }
}

fn not_encoded(field: &'static str) -> impl Fn(TextError) -> ApiError {
    move |error| ApiError::field(field, format!("cannot be encoded: {error}"))
}

/// Each token with its characters, which `start` and `stop` count.
fn simple_tokens(text: &str, spans: &[TokenSpan]) -> Vec<Value> {
    let mut ends: Vec<usize> = text.char_indices().map(|(start, _)| start).collect();
    ends.push(text.len());
    let token = |&TokenSpan { id, start, stop }: &TokenSpan| {
        let text = &text[ends[start]..ends[stop]];
        json!({"id": id, "text": text, "start": start, "stop": stop})
    };
    spans.iter().map(token).collect()
}
