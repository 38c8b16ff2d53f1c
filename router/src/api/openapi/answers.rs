//! The answers of OpenAI's API: whole ones, and the events of streams.

use std::collections::HashMap;

use utoipa::ToSchema;

use super::errors::ErrorBody;

/// A whole answer of `POST /v1/chat/completions`.
#[derive(ToSchema)]
pub(super) struct ChatCompletion {
    id: String,
    object: ChatObject,
    /// Seconds since 1970.
    created: u64,
    /// The name that the request used.
    model: String,
    /// Which model and build answered.
    system_fingerprint: String,
    choices: Vec<ChatChoice>,
    usage: Usage,
}

#[derive(ToSchema)]
#[schema(description = "The kind of object.")]
enum ChatObject {
    #[serde(rename = "chat.completion")]
    Whole,
}

/// One of the answers.
#[derive(ToSchema)]
struct ChatChoice {
    index: u32,
    /// With `return_token_ids`.
    #[schema(nullable = false)]
    prompt_token_ids: Option<Vec<u32>>,
    message: AnswerMessage,
    #[schema(required)]
    logprobs: Option<ChatLogprobs>,
    finish_reason: FinishReason,
    #[schema(required)]
    stop_reason: Option<StopReason>,
    /// With `return_token_ids`, the one that ended the text among them.
    #[schema(nullable = false)]
    token_ids: Option<Vec<u32>>,
}

/// What the model said.
#[derive(ToSchema)]
struct AnswerMessage {
    role: AssistantRole,
    /// Null beside calls that come without text.
    #[schema(required)]
    content: Option<String>,
    /// What the model thought before it answered.
    #[schema(nullable = false)]
    reasoning: Option<String>,
    /// The same under its older name.
    #[schema(nullable = false)]
    reasoning_content: Option<String>,
    #[schema(nullable = false)]
    tool_calls: Option<Vec<ToolCall>>,
    /// Always null.
    #[schema(required)]
    refusal: Option<String>,
}

/// A call of a function.
#[derive(ToSchema)]
struct ToolCall {
    id: String,
    r#type: CallKind,
    function: FunctionCall,
}

/// Functions are called.
#[derive(ToSchema)]
#[serde(rename_all = "lowercase")]
enum CallKind {
    Function,
}

/// What is called, and with what.
#[derive(ToSchema)]
struct FunctionCall {
    name: String,
    /// A JSON object as text.
    arguments: String,
}

/// The model's role.
#[derive(ToSchema)]
#[serde(rename_all = "lowercase")]
enum AssistantRole {
    Assistant,
}

/// Why a text ended: at a stop token or string, at a limit of tokens, or with calls.
#[derive(ToSchema)]
#[serde(rename_all = "snake_case")]
enum FinishReason {
    Stop,
    Length,
    ToolCalls,
}

/// Which of the request's own stop strings or tokens ended the text.
#[derive(ToSchema)]
#[serde(untagged)]
enum StopReason {
    Text(String),
    Token(u32),
}

/// Tokens of a whole request.
#[derive(ToSchema)]
struct Usage {
    prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
    prompt_tokens_details: PromptTokensDetails,
}

/// Of the prompt's tokens.
#[derive(ToSchema)]
struct PromptTokensDetails {
    /// Tokens that were not computed again.
    cached_tokens: usize,
}

/// Log-probabilities of the tokens of an answer.
#[derive(ToSchema)]
struct ChatLogprobs {
    content: Vec<ChatToken>,
    /// Always null.
    #[schema(required)]
    refusal: Option<String>,
}

/// A token of an answer.
#[derive(ToSchema)]
struct ChatToken {
    /// Its text; bytes that are no UTF-8 by themselves show as U+FFFD.
    token: String,
    /// The natural logarithm of its probability, -9999 at least.
    logprob: f64,
    bytes: Vec<u8>,
    top_logprobs: Vec<Alternative>,
}

/// A likely token.
#[derive(ToSchema)]
struct Alternative {
    token: String,
    logprob: f64,
    bytes: Vec<u8>,
}

/// What an event of a streamed chat holds; the last event is `[DONE]`.
#[derive(ToSchema)]
#[serde(untagged)]
pub(super) enum ChatEvent {
    Chunk(ChatCompletionChunk),
    Error(ErrorBody),
}

/// A part of a streamed chat.
#[derive(ToSchema)]
pub(super) struct ChatCompletionChunk {
    id: String,
    object: ChatChunkObject,
    /// Seconds since 1970.
    created: u64,
    model: String,
    system_fingerprint: String,
    /// One choice; none in the event that tells the usage.
    choices: Vec<ChatChunkChoice>,
    /// With `include_usage`: null until the last event.
    usage: Option<Usage>,
}

#[derive(ToSchema)]
#[schema(description = "The kind of object.")]
enum ChatChunkObject {
    #[serde(rename = "chat.completion.chunk")]
    Chunk,
}

/// What is new of one choice.
#[derive(ToSchema)]
struct ChatChunkChoice {
    index: u32,
    /// With `return_token_ids`, in the first event.
    #[schema(nullable = false)]
    prompt_token_ids: Option<Vec<u32>>,
    delta: Delta,
    #[schema(required)]
    logprobs: Option<ChatLogprobs>,
    #[schema(required)]
    finish_reason: Option<FinishReason>,
    /// Beside a `finish_reason`.
    stop_reason: Option<StopReason>,
    /// With `return_token_ids`: the ids of these tokens.
    #[schema(nullable = false)]
    token_ids: Option<Vec<u32>>,
}

/// What is added to a message.
#[derive(ToSchema)]
struct Delta {
    #[schema(nullable = false)]
    role: Option<AssistantRole>,
    #[schema(nullable = false)]
    content: Option<String>,
    /// What the model thinks before it answers.
    #[schema(nullable = false)]
    reasoning: Option<String>,
    /// The same under its older name.
    #[schema(nullable = false)]
    reasoning_content: Option<String>,
    #[schema(nullable = false)]
    tool_calls: Option<Vec<ToolCallDelta>>,
}

/// What is new of a call: its id, type and name at once, then its arguments.
#[derive(ToSchema)]
struct ToolCallDelta {
    index: u32,
    #[schema(nullable = false)]
    id: Option<String>,
    #[schema(nullable = false)]
    r#type: Option<CallKind>,
    function: FunctionCallDelta,
}

/// What is new of what is called.
#[derive(ToSchema)]
struct FunctionCallDelta {
    #[schema(nullable = false)]
    name: Option<String>,
    /// A part of the text of a JSON object.
    arguments: String,
}

/// A whole answer of `POST /v1/completions`.
#[derive(ToSchema)]
pub(super) struct Completion {
    id: String,
    object: CompletionObject,
    /// Seconds since 1970.
    created: u64,
    /// The name that the request used.
    model: String,
    /// Which model and build answered.
    system_fingerprint: String,
    /// The choices of the first prompt, then those of the next.
    choices: Vec<CompletionChoice>,
    usage: Usage,
}

#[derive(ToSchema)]
#[schema(description = "The kind of object.")]
enum CompletionObject {
    #[serde(rename = "text_completion")]
    TextCompletion,
}

/// One of the continuations.
#[derive(ToSchema)]
struct CompletionChoice {
    index: u32,
    /// With `return_token_ids`.
    #[schema(nullable = false)]
    prompt_token_ids: Option<Vec<u32>>,
    text: String,
    #[schema(required)]
    logprobs: Option<CompletionLogprobs>,
    finish_reason: FinishReason,
    #[schema(required)]
    stop_reason: Option<StopReason>,
    /// With `return_token_ids`, the one that ended the text among them.
    #[schema(nullable = false)]
    token_ids: Option<Vec<u32>>,
}

/// Log-probabilities of the tokens of a continuation; the lists are equally long.
#[derive(ToSchema)]
struct CompletionLogprobs {
    tokens: Vec<String>,
    /// Natural logarithms, -9999 at least; null for the first token of an echoed prompt.
    token_logprobs: Vec<Option<f64>>,
    /// The likeliest tokens and the token itself; null where none are asked for.
    #[schema(required)]
    top_logprobs: Option<Vec<Option<HashMap<String, f64>>>>,
    /// Characters of the text before each token.
    text_offset: Vec<usize>,
}

/// What an event of a streamed completion holds; the last event is `[DONE]`.
#[derive(ToSchema)]
#[serde(untagged)]
pub(super) enum CompletionEvent {
    Chunk(CompletionChunk),
    Error(ErrorBody),
}

/// A part of a streamed completion.
#[derive(ToSchema)]
pub(super) struct CompletionChunk {
    id: String,
    object: CompletionObject,
    /// Seconds since 1970.
    created: u64,
    model: String,
    system_fingerprint: String,
    /// One choice; none in the event that tells the usage.
    choices: Vec<CompletionChunkChoice>,
    /// With `include_usage`: null until the last event.
    usage: Option<Usage>,
}

/// What is new of one choice.
#[derive(ToSchema)]
struct CompletionChunkChoice {
    index: u32,
    /// With `return_token_ids`, in the first event.
    #[schema(nullable = false)]
    prompt_token_ids: Option<Vec<u32>>,
    text: String,
    #[schema(required)]
    logprobs: Option<CompletionLogprobs>,
    #[schema(required)]
    finish_reason: Option<FinishReason>,
    /// Beside a `finish_reason`.
    stop_reason: Option<StopReason>,
    /// With `return_token_ids`: the ids of these tokens.
    #[schema(nullable = false)]
    token_ids: Option<Vec<u32>>,
}
