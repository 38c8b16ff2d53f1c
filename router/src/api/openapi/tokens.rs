//! Texts as tokens and back.

use utoipa::ToSchema;

use super::openai::Conversation;

/// The body of `POST /tokenize`, in one of three forms.
#[derive(ToSchema)]
#[serde(untagged)]
#[schema(example = json!({"inputs": "Once upon a time"}))]
pub(super) enum TokenizeRequest {
    Inputs(TokenizeInputs),
    Prompt(TokenizePrompt),
    Messages(TokenizeMessages),
}

/// TGI's form.
#[derive(ToSchema)]
pub(super) struct TokenizeInputs {
    /// The text.
    #[schema(min_length = 1)]
    inputs: String,
    /// Adds the tokenizer's special tokens.
    #[schema(default = true)]
    add_special_tokens: Option<bool>,
    parameters: Option<TokenizeParameters>,
}

/// What of TGI's parameters means something here.
#[derive(ToSchema)]
pub(super) struct TokenizeParameters {
    /// Tells only so many tokens, from the end.
    #[schema(minimum = 1, maximum = 4294967295_i64)]
    truncate: Option<i64>,
}

/// vLLM's form for a text.
#[derive(ToSchema)]
pub(super) struct TokenizePrompt {
    /// The served name or an alias of it.
    model: Option<String>,
    prompt: String,
    /// Adds the tokenizer's special tokens.
    #[schema(default = true)]
    add_special_tokens: Option<bool>,
    /// Tells the tokens' names too.
    #[schema(default = false)]
    return_token_strs: Option<bool>,
}

/// vLLM's form for a conversation.
#[derive(ToSchema)]
pub(super) struct TokenizeMessages {
    /// The served name or an alias of it.
    model: Option<String>,
    #[serde(flatten)]
    conversation: Conversation,
    /// Tells the tokens' names too.
    #[schema(default = false)]
    return_token_strs: Option<bool>,
}

/// The answer has the form of the request.
#[derive(ToSchema)]
#[serde(untagged)]
pub(super) enum TokenizeResponse {
    Spans(Vec<SimpleToken>),
    Tokens(TokenList),
}

/// A token and its place in the text.
#[derive(ToSchema)]
pub(super) struct SimpleToken {
    id: u32,
    text: String,
    /// Characters before it.
    start: usize,
    /// Characters up to its end.
    stop: usize,
}

/// The tokens of a text.
#[derive(ToSchema)]
pub(super) struct TokenList {
    count: usize,
    /// Tokens of prompt and answer together.
    max_model_len: u32,
    tokens: Vec<u32>,
    #[schema(required)]
    token_strs: Option<Vec<String>>,
}

/// The body of `POST /chat_tokenize`.
#[derive(ToSchema)]
#[schema(example = json!({"messages": [{"role": "user", "content": "Hello!"}]}))]
pub(super) struct ChatTokenizeRequest {
    /// The served name or an alias of it.
    model: Option<String>,
    #[serde(flatten)]
    conversation: Conversation,
}

/// A conversation as the model reads it.
#[derive(ToSchema)]
pub(super) struct ChatTokenizeResponse {
    tokenize_response: Vec<SimpleToken>,
    /// What the chat template made of the conversation.
    templated_text: String,
}

/// The body of `POST /detokenize`.
#[derive(ToSchema)]
#[schema(example = json!({"tokens": [1, 2, 3]}))]
pub(super) struct DetokenizeRequest {
    /// The served name or an alias of it.
    model: Option<String>,
    tokens: Vec<u32>,
}

/// The text of tokens, special ones included.
#[derive(ToSchema)]
pub(super) struct DetokenizeResponse {
    prompt: String,
}
