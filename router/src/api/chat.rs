//! `POST /v1/chat/completions`: what a request says, and how it becomes a prompt.

use serde_json::{Map, Value};

use super::error::ApiError;
use super::fields::Fields;
use super::messages::read_messages;
use super::options::{Options, Rules, read_template_kwargs};
use super::tools::ToolRequest;
use crate::text::{ChatPrompt, Opening, TextModel};

/// A validated request.
#[derive(Debug)]
pub(crate) struct ChatRequest {
    pub(crate) options: Options,
    pub(crate) conversation: Conversation,
    pub(crate) tools: ToolRequest,
}

/// What the chat template is given.
#[derive(Debug)]
pub(crate) struct Conversation {
    messages: Vec<Value>,
    /// The tools that the model is shown.
    tools: Option<Value>,
    add_generation_prompt: bool,
    continue_final_message: bool,
    add_special_tokens: bool,
    kwargs: Map<String, Value>,
}

impl ChatRequest {
    pub(crate) fn read(fields: &mut Fields, rules: &Rules<'_>) -> Result<ChatRequest, ApiError> {
        let mut options = Options::read(fields, rules)?;
        if fields.flag("echo", false)? {
            return Err(ApiError::Unsupported { field: "echo", value: "true".into() });
        }
        let logprobs = fields.flag("logprobs", false)?;
        let max_top = rules.limits.max_top_logprobs as i64;
        let top_logprobs = fields.integer("top_logprobs", 0..=max_top)?.unwrap_or(0);
        if top_logprobs > 0 && !logprobs {
            let rule = format!("({top_logprobs}) needs logprobs: true");
            return Err(ApiError::field("top_logprobs", rule));
        }
        options.sampling.logprobs = logprobs;
        options.sampling.top_logprobs = top_logprobs as u32;
        let (tools, shown) = ToolRequest::read(fields, rules.formats)?;
        if options.ignore_eos && tools.insists_on_form() {
            let rule = "(true) cannot be used together with calls that a grammar holds to a form";
            return Err(ApiError::field("ignore_eos", rule));
        }
        let conversation = Conversation::read(fields, shown)?;
        Ok(ChatRequest { options, conversation, tools })
    }
}

impl Conversation {
    pub(crate) fn read(
        fields: &mut Fields,
        tools: Option<Value>,
    ) -> Result<Conversation, ApiError> {
        let messages = read_messages(fields)?;
        let continue_final_message = fields.flag("continue_final_message", false)?;
        let add_generation_prompt =
            fields.flag("add_generation_prompt", !continue_final_message)?;
        if continue_final_message && add_generation_prompt {
            let rule = "(true) cannot go with add_generation_prompt: true";
            return Err(ApiError::field("continue_final_message", rule));
        }
        let last_role = messages.last().map(|last| &last["role"]);
        if continue_final_message && last_role.is_none_or(|role| role != "assistant") {
            let rule = "(true) needs an assistant's message at the end";
            return Err(ApiError::field("continue_final_message", rule));
        }
        Ok(Conversation {
            messages,
            tools,
            add_generation_prompt,
            continue_final_message,
            // A template writes the special tokens itself.
            add_special_tokens: fields.flag("add_special_tokens", false)?,
            kwargs: read_template_kwargs(fields)?,
        })
    }

    /// Renders and encodes, and says where the prompt leaves the model; takes milliseconds for
    /// long prompts.
    pub(crate) fn encode(&self, text: &TextModel) -> Result<(Vec<u32>, Opening), ApiError> {
        let prompt = self.render(text)?;
        let tokens = text
            .encode_chat(&prompt, self.add_special_tokens)
            .map_err(|error| ApiError::field("messages", format!("cannot be encoded: {error}")))?;
        Ok((tokens, text.answer_formats().opening(&prompt)))
    }

    /// The text that the model's template makes of it.
    pub(crate) fn render(&self, text: &TextModel) -> Result<String, ApiError> {
        if !text.has_chat_template() {
            let rule = "cannot be used: this model has no chat template; use /v1/completions";
            return Err(ApiError::field("messages", rule));
        }
        let prompt = ChatPrompt {
            messages: &self.messages,
            tools: self.tools.as_ref(),
            add_generation_prompt: self.add_generation_prompt,
            continue_final_message: self.continue_final_message,
            kwargs: &self.kwargs,
        };
        text.render_chat(&prompt)
            .map_err(|error| ApiError::field("messages", format!("cannot be rendered: {error}")))
    }
}
