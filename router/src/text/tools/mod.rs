//! Tool calls in the text of an answer: how a model writes them, and how they are read.
//!
//! A [`ToolFormat`] is the form in which a model was taught to write calls. Each has a file with
//! its parser, which takes an answer in pieces cut anywhere, and with the grammar of its calls.
//!
//! What holds for every format:
//! - the pieces decide nothing: a text gives the same parts however it was cut;
//! - markers are not content, and white space beside a call is not either;
//! - text that cannot be a call is content, with its markers, and nothing is lost;
//! - once a call's name is known the call has begun, and its arguments are passed on as they are
//!   written: a model may break off, or write arguments that are no JSON.

mod grammar;
pub(super) mod harmony;
mod hermes;
mod json;
mod llama3_json;
mod mistral;
mod parts;
mod qwen3_coder;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use serde_json::{Map, Value, json};

pub(super) use grammar::call_grammar;
pub(super) use harmony::Harmony;
use hermes::Hermes;
use llama3_json::Llama3Json;
use mistral::Mistral;
pub(super) use parts::push_until;
pub use parts::{Part, Parts};
use qwen3_coder::Qwen3Coder;

/// How a model writes tool calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolFormat {
    /// `<tool_call>{"name": .., "arguments": {..}}</tool_call>`: Hermes, Qwen2.5, Qwen3.
    Hermes,
    /// `<tool_call><function=name><parameter=key>value</parameter></function></tool_call>`.
    Qwen3Coder,
    /// `{"name": .., "parameters": {..}}` as the whole answer: Llama 3 and 4.
    Llama3Json,
    /// `[TOOL_CALLS][{"name": .., "arguments": {..}}]`, or `[TOOL_CALLS]name[ARGS]{..}`.
    Mistral,
    /// A message to `functions.name` in a channel: gpt-oss.
    Harmony,
}

impl ToolFormat {
    /// The format in which a chat template writes calls, or tells a model to.
    pub(super) fn of_template(source: &str) -> Option<ToolFormat> {
        let has = |text: &str| source.contains(text);
        if has("<|start|>") && has("<|channel|>") && has("<|message|>") {
            Some(ToolFormat::Harmony)
        } else if has("[TOOL_CALLS]") {
            Some(ToolFormat::Mistral)
        } else if has("<tool_call>") && has("<function=") {
            Some(ToolFormat::Qwen3Coder)
        // Others write no JSON between these tags (GLM), or a name before it (Hunyuan).
        } else if has("<tool_call>") && has("arguments") && !has("<arg_key>") && !has("```json") {
            Some(ToolFormat::Hermes)
        } else if has("ipython") && has("\"parameters\"") {
            Some(ToolFormat::Llama3Json)
        } else {
            None
        }
    }

    /// The markers that may be single tokens.
    pub(super) fn markers(self) -> &'static [&'static str] {
        match self {
            ToolFormat::Hermes | ToolFormat::Qwen3Coder => &["<tool_call>", "</tool_call>"],
            ToolFormat::Llama3Json => &["<|python_tag|>"],
            ToolFormat::Mistral => &["[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"],
            ToolFormat::Harmony => harmony::MARKERS,
        }
    }
}

/// A function that the model may call.
#[derive(Clone, Debug, PartialEq)]
pub struct Tool {
    /// 1 to [`Tool::MAX_NAME`] letters, digits, `_` and `-`.
    pub name: String,
    /// The JSON schema of its arguments.
    pub parameters: Map<String, Value>,
    /// Whether the client asked for arguments that follow the schema to the letter.
    pub strict: bool,
}

impl Tool {
    /// Characters of a name at most; OpenAI's number.
    pub const MAX_NAME: usize = 64;

    /// A tool whose schema is an object's, whatever the client left out. Without parameters it
    /// takes none.
    pub fn new(name: String, parameters: Option<Map<String, Value>>, strict: bool) -> Tool {
        let mut parameters = parameters.unwrap_or_default();
        if parameters.is_empty() {
            parameters.insert("properties".to_owned(), json!({}));
            parameters.insert("additionalProperties".to_owned(), Value::Bool(false));
        }
        parameters.entry("type").or_insert_with(|| "object".into());
        Tool { name, parameters, strict }
    }
}

/// Which calls an answer may hold.
#[derive(Clone, Copy, Debug)]
pub struct CallRules<'a> {
    /// The tools that may be called; at least one.
    pub tools: &'a [Tool],
    /// The answer is nothing but calls, at least one.
    pub required: bool,
    /// More than one call is allowed, where the format knows several.
    pub parallel: bool,
}

/// The parser of one answer; but for Harmony, whose answers are more than content and calls.
pub(super) enum ToolParser {
    Hermes(Hermes),
    Qwen3Coder(Qwen3Coder),
    Llama3Json(Llama3Json),
    Mistral(Mistral),
}

impl ToolParser {
    /// `None` for Harmony, which has its own reader.
    pub(super) fn new(format: ToolFormat, tools: Arc<[Tool]>) -> Option<ToolParser> {
        match format {
            ToolFormat::Hermes => Some(ToolParser::Hermes(Hermes::default())),
            ToolFormat::Qwen3Coder => Some(ToolParser::Qwen3Coder(Qwen3Coder::new(tools))),
            ToolFormat::Llama3Json => Some(ToolParser::Llama3Json(Llama3Json::new(tools))),
            ToolFormat::Mistral => Some(ToolParser::Mistral(Mistral::default())),
            ToolFormat::Harmony => None,
        }
    }

    pub(super) fn push(&mut self, text: &str, out: &mut Parts) {
        match self {
            ToolParser::Hermes(parser) => parser.push(text, out),
            ToolParser::Qwen3Coder(parser) => parser.push(text, out),
            ToolParser::Llama3Json(parser) => parser.push(text, out),
            ToolParser::Mistral(parser) => parser.push(text, out),
        }
    }

    /// The text is over.
    pub(super) fn finish(&mut self, out: &mut Parts) {
        match self {
            ToolParser::Hermes(parser) => parser.finish(out),
            ToolParser::Qwen3Coder(parser) => parser.finish(out),
            ToolParser::Llama3Json(parser) => parser.finish(out),
            ToolParser::Mistral(parser) => parser.finish(out),
        }
    }
}
