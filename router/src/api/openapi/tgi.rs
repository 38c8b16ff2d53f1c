//! TGI's own API: its requests, its answers and its events.

use serde_json::Value;
use utoipa::ToSchema;

use super::errors::TgiErrorBody;
use super::openai::{Sampling, Stop};

/// The body of `POST /generate` and `POST /generate_stream`.
#[derive(ToSchema)]
#[schema(example = json!({
    "inputs": "Once upon a time", "parameters": {"max_new_tokens": 32, "details": true},
}))]
pub(super) struct GenerateRequest {
    /// The prompt.
    #[schema(min_length = 1)]
    inputs: String,
    parameters: Option<GenerateParameters>,
}

/// The body of `POST /`.
#[derive(ToSchema)]
#[schema(example = json!({
    "inputs": "Once upon a time", "parameters": {"max_new_tokens": 32}, "stream": false,
}))]
pub(super) struct CompatGenerateRequest {
    /// The prompt.
    #[schema(min_length = 1)]
    inputs: String,
    parameters: Option<GenerateParameters>,
    /// Answers as `POST /generate_stream` does.
    #[schema(default = false)]
    stream: Option<bool>,
}

/// How a text is generated. Nothing is taken from the checkpoint's recommendations here. A
/// `temperature`, `top_k`, `top_p` or `typical_p` other than the default makes tokens drawn, even
/// beside `do_sample: false`.
#[derive(ToSchema)]
pub(super) struct GenerateParameters {
    #[serde(flatten)]
    sampling: Sampling,
    /// Tokens are drawn rather than the likeliest taken. True where there are no `parameters`.
    #[schema(default = false)]
    do_sample: Option<bool>,
    /// The same seed draws the same text. Any, if it is left out.
    #[schema(minimum = -9223372036854775808_i64, maximum = 18446744073709551615_u64)]
    seed: Option<i128>,
    /// Generates so many texts and answers with the likeliest one. Above 1 it needs sampling, and
    /// cannot be streamed.
    #[schema(minimum = 1, default = 1)]
    best_of: Option<u32>,
    /// Tokens to generate at most; without it, what fits the context.
    #[schema(minimum = 1, maximum = 4294967295_i64, example = 32)]
    max_new_tokens: Option<i64>,
    /// Texts of 1 to 1024 bytes that end the answer, which shows the one that did.
    stop: Option<Stop>,
    /// Reads only so many tokens of the prompt, from its end.
    #[schema(minimum = 1, maximum = 4294967295_i64)]
    truncate: Option<i64>,
    /// Begins the answer with the prompt. True by default for `POST /`.
    #[schema(default = false)]
    return_full_text: Option<bool>,
    /// Tells the tokens, their log-probabilities, and why the text ended.
    #[schema(default = false)]
    details: Option<bool>,
    /// Tells the tokens of the prompt in the details too; cannot be streamed.
    #[schema(default = false)]
    decoder_input_details: Option<bool>,
    /// The likeliest tokens that are told with each token.
    #[schema(minimum = 0, default = 0)]
    top_n_tokens: Option<u32>,
    /// The form that the answer must have.
    grammar: Option<Grammar>,
}

/// The form that an answer must have.
#[derive(ToSchema)]
struct Grammar {
    r#type: GrammarType,
    /// A regular expression, or a JSON schema as an object or a string; with the type
    /// `json_schema`, an object that has it as `schema`.
    value: Option<Value>,
}

/// What `value` is.
#[derive(ToSchema)]
#[serde(rename_all = "snake_case")]
enum GrammarType {
    Json,
    JsonObject,
    JsonSchema,
    Regex,
}

/// A whole answer of `POST /generate`; `POST /` answers with a list of one.
#[derive(ToSchema)]
pub(super) struct GenerateResponse {
    generated_text: String,
    #[schema(nullable = false)]
    details: Option<Details>,
}

/// Of the best sequence, and of the others.
#[derive(ToSchema)]
struct Details {
    finish_reason: TgiFinishReason,
    generated_tokens: u32,
    /// Null where nothing was drawn.
    #[schema(required)]
    seed: Option<u64>,
    prefill: Vec<PrefillToken>,
    tokens: Vec<Token>,
    /// The likeliest tokens in the place of each one.
    #[schema(nullable = false)]
    top_tokens: Option<Vec<Vec<Token>>>,
    #[schema(nullable = false)]
    best_of_sequences: Option<Vec<BestOfSequence>>,
}

/// A sequence that was not the best.
#[derive(ToSchema)]
struct BestOfSequence {
    generated_text: String,
    finish_reason: TgiFinishReason,
    generated_tokens: u32,
    #[schema(required)]
    seed: Option<u64>,
    prefill: Vec<PrefillToken>,
    tokens: Vec<Token>,
    #[schema(nullable = false)]
    top_tokens: Option<Vec<Vec<Token>>>,
}

/// Why a text ended.
#[derive(ToSchema)]
#[serde(rename_all = "snake_case")]
enum TgiFinishReason {
    Length,
    EosToken,
    StopSequence,
}

/// A token of the prompt.
#[derive(ToSchema)]
struct PrefillToken {
    id: u32,
    text: String,
    /// Null for the first one, which nothing predicts.
    #[schema(required)]
    logprob: Option<f64>,
}

/// A token of the answer.
#[derive(ToSchema)]
struct Token {
    id: u32,
    /// What it added to the text; a special token is shown as it is spelled.
    text: String,
    /// The natural logarithm of its probability, -9999 at least.
    logprob: f64,
    /// A special token, which is not in the text.
    special: bool,
}

/// What an event of a stream holds.
#[derive(ToSchema)]
#[serde(untagged)]
pub(super) enum StreamEvent {
    Token(StreamResponse),
    Error(TgiErrorBody),
}

/// One token of a stream.
#[derive(ToSchema)]
pub(super) struct StreamResponse {
    /// Counts from 1.
    #[schema(minimum = 1)]
    index: u32,
    token: Token,
    #[schema(nullable = false)]
    top_tokens: Option<Vec<Token>>,
    /// The whole text, in the last event.
    #[schema(required)]
    generated_text: Option<String>,
    /// In the last event, where details are asked for.
    #[schema(required)]
    details: Option<StreamDetails>,
}

/// How a text ended.
#[derive(ToSchema)]
struct StreamDetails {
    finish_reason: TgiFinishReason,
    generated_tokens: u32,
    #[schema(required)]
    seed: Option<u64>,
    /// Tokens of the prompt.
    input_length: u32,
}

/// What is served, and within which limits.
#[derive(ToSchema)]
pub(super) struct Info {
    model_id: String,
    /// The commit of the model on the hub.
    #[schema(required)]
    model_sha: Option<String>,
    model_pipeline_tag: String,
    max_concurrent_requests: usize,
    max_best_of: usize,
    max_stop_sequences: usize,
    /// Tokens of the longest prompt.
    max_input_tokens: usize,
    /// Tokens of prompt and answer together.
    max_total_tokens: usize,
    validation_workers: usize,
    max_client_batch_size: usize,
    router: String,
    version: String,
    #[schema(required)]
    sha: Option<String>,
    #[schema(required)]
    docker_label: Option<String>,
}
