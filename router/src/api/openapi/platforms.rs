//! What SageMaker and Vertex AI send to their one path.

use utoipa::ToSchema;

use super::answers::{ChatCompletion, ChatCompletionChunk, Completion, CompletionChunk};
use super::errors::{ErrorBody, TgiErrorBody};
use super::openai::{ChatCompletionRequest, CompletionRequest};
use super::tgi::{
    CompatGenerateRequest, GenerateParameters, GenerateRequest, GenerateResponse, StreamResponse,
};

/// A request of another route, told by its fields, or Vertex AI's own form.
#[derive(ToSchema)]
#[serde(untagged)]
#[schema(example = json!({"inputs": "Once upon a time", "parameters": {"max_new_tokens": 32}}))]
pub(super) enum InvokeRequest {
    Inputs(CompatGenerateRequest),
    Chat(ChatCompletionRequest),
    Completion(CompletionRequest),
    Instances(PredictRequest),
}

/// Vertex AI's form: several requests that are answered together and whole.
#[derive(ToSchema)]
pub(super) struct PredictRequest {
    #[schema(min_items = 1)]
    instances: Vec<Instance>,
    /// Those of instances that have none of their own.
    parameters: Option<GenerateParameters>,
}

/// One of the requests.
#[derive(ToSchema)]
#[serde(untagged)]
enum Instance {
    Inputs(GenerateRequest),
    Chat(ChatCompletionRequest),
}

/// The answer of the route that is meant.
#[derive(ToSchema)]
#[serde(untagged)]
pub(super) enum InvokeResponse {
    Inputs(Vec<GenerateResponse>),
    Chat(ChatCompletion),
    Completion(Completion),
    Instances(PredictResponse),
}

/// One text for each instance.
#[derive(ToSchema)]
pub(super) struct PredictResponse {
    predictions: Vec<String>,
}

/// An event of the route that is meant.
#[derive(ToSchema)]
#[serde(untagged)]
pub(super) enum InvokeEvent {
    Inputs(StreamResponse),
    Chat(ChatCompletionChunk),
    Completion(CompletionChunk),
    TgiError(TgiErrorBody),
    Error(ErrorBody),
}

/// An error of the route that is meant.
#[derive(ToSchema)]
#[serde(untagged)]
pub(super) enum InvokeError {
    Tgi(TgiErrorBody),
    OpenAi(ErrorBody),
}
