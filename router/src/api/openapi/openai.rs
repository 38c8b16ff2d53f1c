//! The requests of OpenAI's API.

use std::collections::HashMap;

use serde_json::Value;
use utoipa::ToSchema;

/// How tokens are drawn. What a request leaves open is taken from the checkpoint's
/// `generation_config.json`, where it recommends a value, and from the default that is given here.
#[derive(ToSchema)]
pub(super) struct Sampling {
    /// Divides the logits. 0 takes the likeliest token each time.
    #[schema(minimum = 0, maximum = 100, default = 1.0)]
    temperature: Option<f64>,
    /// Keeps the likeliest tokens that have this probability together; 0 keeps only the likeliest.
    #[schema(minimum = 0, maximum = 1, default = 1.0)]
    top_p: Option<f64>,
    /// Keeps so many of the likeliest tokens; 0 and -1 keep all.
    #[schema(minimum = -1, maximum = 4294967295_i64, default = 0)]
    top_k: Option<i64>,
    /// Keeps tokens that have at least this part of the likeliest one's probability.
    #[schema(minimum = 0, maximum = 1, default = 0.0)]
    min_p: Option<f64>,
    /// Keeps the tokens whose information is nearest to what is expected, with this probability
    /// together.
    #[schema(exclusive_minimum = 0, maximum = 1, default = 1.0)]
    typical_p: Option<f64>,
    /// Makes tokens of the prompt and of the output less likely where it is above 1.
    #[schema(exclusive_minimum = 0, maximum = 100, default = 1.0)]
    repetition_penalty: Option<f64>,
    /// Taken from the logit of every token that is in the output.
    #[schema(minimum = -2, maximum = 2, default = 0.0)]
    presence_penalty: Option<f64>,
    /// Taken from the logit of a token for each time that it is in the output.
    #[schema(minimum = -2, maximum = 2, default = 0.0)]
    frequency_penalty: Option<f64>,
    /// Added to the logits of tokens: from a token id to -100 .. 100, for at most 1024 tokens.
    #[schema(example = json!({"42": -100}))]
    logit_bias: Option<HashMap<String, f64>>,
    /// Before so many tokens none that ends the text is drawn.
    #[schema(minimum = 0, maximum = 4294967295_i64, default = 0)]
    min_tokens: Option<i64>,
}

/// What chat and plain completions have in common.
#[derive(ToSchema)]
pub(super) struct SharedOptions {
    /// The served name or an alias of it; `tgi` and `dummy` stand for it too. Without it, what is
    /// served answers.
    model: Option<String>,
    /// Choices for each prompt.
    #[schema(minimum = 1, default = 1)]
    n: Option<u32>,
    /// Answers as server-sent events, one for each token or so, and `[DONE]` at the end.
    #[schema(default = false)]
    stream: Option<bool>,
    /// Only together with `stream`.
    stream_options: Option<StreamOptions>,
    /// Tokens to generate at most. A chat without a limit has what is left of the context, or the
    /// checkpoint's `max_new_tokens` if that is less; a completion has 16. Only a completion with
    /// `echo` may have 0.
    #[schema(minimum = 0, maximum = 4294967295_i64, example = 64)]
    max_tokens: Option<i64>,
    /// The newer name of `max_tokens`, which wins where both are given.
    #[schema(minimum = 0, maximum = 4294967295_i64)]
    max_completion_tokens: Option<i64>,
    /// Texts of 1 to 1024 bytes that end the answer, which does not show them.
    stop: Option<Stop>,
    /// Shows the stop string that ended the text.
    #[schema(default = false)]
    include_stop_str_in_output: Option<bool>,
    /// Tokens that end the answer, beside the model's own and whatever `ignore_eos` says.
    #[schema(max_items = 128)]
    stop_token_ids: Option<Vec<u32>>,
    /// The model's own tokens do not end the text.
    #[schema(default = false)]
    ignore_eos: Option<bool>,
    /// Leaves special tokens out of the text.
    #[schema(default = true)]
    skip_special_tokens: Option<bool>,
    /// The same seed draws the same text from the same server, in any company: 64 bits, signed or
    /// not. Any, if it is left out.
    #[schema(minimum = -9223372036854775808_i64, maximum = 18446744073709551615_u64)]
    seed: Option<i128>,
    /// Tells the ids of the tokens of prompt and answer.
    #[schema(default = false)]
    return_token_ids: Option<bool>,
    /// Only requests with the same salt share what is cached of their prompts: 1 to 256 bytes.
    #[schema(min_length = 1, max_length = 256)]
    cache_salt: Option<String>,
    /// The form that the answer must have.
    response_format: Option<ResponseFormat>,
    /// The same in vLLM's words; only one of them may be given.
    structured_outputs: Option<StructuredOutputs>,
    /// A JSON schema, as `structured_outputs.json`.
    guided_json: Option<Value>,
    /// As `structured_outputs.json_object`.
    guided_json_object: Option<bool>,
    /// As `structured_outputs.regex`.
    guided_regex: Option<String>,
    /// As `structured_outputs.choice`.
    #[schema(min_items = 1, max_items = 1024)]
    guided_choice: Option<Vec<String>>,
    /// As `structured_outputs.grammar`.
    guided_grammar: Option<String>,
    /// As `structured_outputs.whitespace_pattern`, for the `guided_` fields.
    guided_whitespace_pattern: Option<String>,
}

/// What a stream tells beside the text.
#[derive(ToSchema)]
struct StreamOptions {
    /// Adds an event with the number of tokens, before `[DONE]`.
    #[schema(default = false)]
    include_usage: Option<bool>,
}

/// One text or several.
#[derive(ToSchema)]
#[serde(untagged)]
pub(super) enum Stop {
    One(String),
    Many(Vec<String>),
}

/// The form that an answer must have. It is followed whether `strict` is given or not.
#[derive(ToSchema)]
struct ResponseFormat {
    r#type: FormatKind,
    /// With the type `json_schema`.
    json_schema: Option<NamedSchema>,
    /// In TGI's form: the JSON schema, as an object or a string, or the regular expression.
    value: Option<Value>,
}

/// `text` is free, `json_object` any JSON object; `json` and `regex` are TGI's.
#[derive(ToSchema)]
#[serde(rename_all = "snake_case")]
enum FormatKind {
    Text,
    JsonObject,
    JsonSchema,
    Json,
    Regex,
}

/// A JSON schema with OpenAI's fields around it.
#[derive(ToSchema)]
struct NamedSchema {
    /// Changes nothing.
    name: Option<String>,
    /// The JSON schema: an object, `true`, or a string that holds one.
    schema: Value,
    /// Changes nothing: schemas are followed.
    strict: Option<bool>,
}

/// vLLM's words for the form of an answer. Exactly one of `json`, `json_object`, `regex`, `choice`
/// and `grammar` is given.
#[derive(ToSchema)]
struct StructuredOutputs {
    /// A JSON schema: an object, `true`, or a string that holds one.
    json: Option<Value>,
    /// Any JSON object.
    json_object: Option<bool>,
    /// A regular expression that matches the whole answer.
    regex: Option<String>,
    /// One of these texts, none of them empty.
    #[schema(min_items = 1, max_items = 1024)]
    choice: Option<Vec<String>>,
    /// A grammar in Lark's notation.
    grammar: Option<String>,
    /// The regular expression of white space between the parts of a JSON document.
    whitespace_pattern: Option<String>,
    /// No white space between the parts of a JSON document.
    #[schema(default = false)]
    disable_any_whitespace: Option<bool>,
}

/// The body of `POST /v1/chat/completions`.
#[derive(ToSchema)]
#[schema(example = json!({
    "messages": [{"role": "user", "content": "Tell me a short story about a fox."}],
    "max_tokens": 64,
    "stream": true,
}))]
pub(super) struct ChatCompletionRequest {
    #[serde(flatten)]
    conversation: Conversation,
    #[serde(flatten)]
    options: SharedOptions,
    #[serde(flatten)]
    sampling: Sampling,
    /// Tells the log-probability of each token of the answer.
    #[schema(default = false)]
    logprobs: Option<bool>,
    /// The likeliest tokens that are told with each token; needs `logprobs`.
    #[schema(minimum = 0, default = 0)]
    top_logprobs: Option<u32>,
    /// False: one call at most, where a grammar can say so.
    #[schema(default = true)]
    parallel_tool_calls: Option<bool>,
    /// False: the reasoning is left out of the answer.
    #[schema(default = true)]
    include_reasoning: Option<bool>,
}

/// A conversation, what its template is told, and what may be called.
#[derive(ToSchema)]
pub(super) struct Conversation {
    /// The conversation so far.
    #[schema(min_items = 1)]
    messages: Vec<RequestMessage>,
    /// Ends the prompt with the beginning of an answer. True, unless `continue_final_message` is.
    add_generation_prompt: Option<bool>,
    /// The answer goes on with the last message, which must be the assistant's.
    #[schema(default = false)]
    continue_final_message: Option<bool>,
    /// Adds the tokenizer's special tokens too; a template writes those it needs itself.
    #[schema(default = false)]
    add_special_tokens: Option<bool>,
    /// Variables of the chat template.
    chat_template_kwargs: Option<HashMap<String, Value>>,
    /// The template's variable of the same name.
    reasoning_effort: Option<String>,
    /// The template's variable of the same name.
    enable_thinking: Option<bool>,
    /// Functions that the model may call.
    #[schema(max_items = 128)]
    tools: Option<Vec<Tool>>,
    /// Whether it calls. `auto`, if it is left out. What is required is enforced, arguments
    /// included; with `auto` text is free, and calls are held to their form.
    tool_choice: Option<ToolChoice>,
}

/// A function that the model may call.
#[derive(ToSchema)]
struct Tool {
    r#type: ToolKind,
    function: Function,
}

/// There are functions.
#[derive(ToSchema)]
#[serde(rename_all = "lowercase")]
enum ToolKind {
    Function,
}

/// What the model is told of a function.
#[derive(ToSchema)]
struct Function {
    /// Letters, digits, `_` and `-`; no other tool has the same.
    #[schema(min_length = 1, max_length = 64, pattern = "^[A-Za-z0-9_-]+$")]
    name: String,
    description: Option<String>,
    /// The JSON schema of the arguments, an object's.
    parameters: Option<HashMap<String, Value>>,
    /// Holds calls to the schema.
    #[schema(default = false)]
    strict: Option<bool>,
}

/// `none`, `auto`, `required`, the name of a function, or an object that names it.
#[derive(ToSchema)]
#[serde(untagged)]
enum ToolChoice {
    Word(String),
    Function(NamedTool),
}

/// The function that has to be called.
#[derive(ToSchema)]
struct NamedTool {
    r#type: ToolKind,
    function: FunctionName,
}

/// The name of one of the tools.
#[derive(ToSchema)]
struct FunctionName {
    name: String,
}

/// One message of a conversation.
#[derive(ToSchema)]
struct RequestMessage {
    role: Role,
    /// May be left out only beside `tool_calls`.
    content: Option<Content>,
    /// Who speaks, where a template shows it.
    name: Option<String>,
    /// The call that a message of the role `tool` answers.
    tool_call_id: Option<String>,
    /// What the assistant called.
    tool_calls: Option<Vec<RequestToolCall>>,
    /// What the assistant had thought, where a template shows it.
    reasoning_content: Option<String>,
    /// Another name for it.
    reasoning: Option<String>,
}

/// Who speaks.
#[derive(ToSchema)]
#[serde(rename_all = "lowercase")]
enum Role {
    System,
    Developer,
    User,
    Assistant,
    Tool,
}

/// A text, or parts that are joined to one.
#[derive(ToSchema)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<TextPart>),
}

/// A part of a message.
#[derive(ToSchema)]
struct TextPart {
    r#type: TextPartKind,
    text: String,
}

/// This server reads text.
#[derive(ToSchema)]
#[serde(rename_all = "lowercase")]
enum TextPartKind {
    Text,
}

/// A call in the history of a conversation.
#[derive(ToSchema)]
struct RequestToolCall {
    id: Option<String>,
    r#type: Option<String>,
    function: RequestFunctionCall,
}

/// The function that was called.
#[derive(ToSchema)]
struct RequestFunctionCall {
    name: String,
    /// A JSON object, or a string that holds one.
    arguments: Option<Value>,
}

/// The body of `POST /v1/completions`.
#[derive(ToSchema)]
#[schema(example = json!({"prompt": "Once upon a time", "max_tokens": 32}))]
pub(super) struct CompletionRequest {
    prompt: Prompt,
    #[serde(flatten)]
    options: SharedOptions,
    #[serde(flatten)]
    sampling: Sampling,
    /// Tells the log-probability of each token, and so many of the likeliest ones with it.
    #[schema(minimum = 0)]
    logprobs: Option<u32>,
    /// Begins the answer with the prompt; with `logprobs` its tokens are told too.
    #[schema(default = false)]
    echo: Option<bool>,
    /// Generates so many choices for each prompt and answers with the `n` likeliest. More than
    /// `n` cannot be streamed. As many as `n`, if it is left out.
    #[schema(minimum = 1)]
    best_of: Option<u32>,
    /// What stands after the answer; for models that were made to fill in, and prompts as text.
    suffix: Option<String>,
    /// Adds the tokenizer's special tokens to the prompt.
    #[schema(default = true)]
    add_special_tokens: Option<bool>,
}

/// A prompt or a list of them; each has answers of its own.
#[derive(ToSchema)]
#[serde(untagged)]
enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
    List(Vec<OnePrompt>),
}

/// A text or its token ids.
#[derive(ToSchema)]
#[serde(untagged)]
enum OnePrompt {
    Text(String),
    Tokens(Vec<u32>),
}
