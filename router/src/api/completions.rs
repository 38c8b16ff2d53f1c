//! `POST /v1/completions`: what a request says, and how it becomes prompts.

use serde_json::Value;

use super::error::ApiError;
use super::fields::{Fields, must_be, shown, token_ids};
use super::options::{MaxTokens, Options, Rules};
use super::tools::refuse_tools;
use crate::text::TextModel;

/// A validated request.
#[derive(Debug)]
pub(crate) struct CompletionRequest {
    pub(crate) options: Options,
    pub(crate) prompts: Prompts,
    /// Whether the prompt's text precedes the answer's.
    pub(crate) echo: bool,
    /// How many of the choices that are generated for a prompt are returned: the best ones.
    pub(crate) num_returned: u32,
}

/// The prompts, still as they were sent.
#[derive(Debug)]
pub(crate) struct Prompts {
    prompts: Vec<PromptText>,
    add_special_tokens: bool,
    /// What stands after the answer.
    suffix: Option<String>,
}

#[derive(Debug)]
enum PromptText {
    Text(String),
    Tokens(Vec<u32>),
}

/// A prompt ready for the engine.
pub(crate) struct EncodedPrompt {
    pub(crate) tokens: Vec<u32>,
    /// Its text, where the answer is to begin with it.
    pub(crate) echo: String,
}

impl CompletionRequest {
    /// Tokens generated where the request does not say; OpenAI's number.
    pub(crate) const DEFAULT_MAX_TOKENS: u32 = 16;

    pub(crate) fn read(
        fields: &mut Fields,
        rules: &Rules<'_>,
    ) -> Result<CompletionRequest, ApiError> {
        let rules = &Rules { least_max_tokens: 0, ..*rules };
        let best_of = fields.integer("best_of", 1..=rules.limits.max_choices as i64)?;
        let mut options = Options::read(fields, rules)?;
        let num_returned = options.num_choices;
        options.num_choices = best_of.map_or(num_returned, |best_of| best_of as u32);
        check_best_of(&options, num_returned)?;
        refuse_tools(fields)?;
        let logprobs = fields.integer("logprobs", 0..=rules.limits.max_top_logprobs as i64)?;
        options.sampling.logprobs = logprobs.is_some();
        options.sampling.top_logprobs = logprobs.unwrap_or(0) as u32;
        let echo = fields.flag("echo", false)?;
        options.prompt_logprobs = echo && logprobs.is_some();
        if let Some(MaxTokens { field, count: 0 }) = options.max_tokens
            && !echo
        {
            return Err(ApiError::field(field, "(0) needs echo: true, or nothing is left to say"));
        }
        let prompts = Prompts::read(fields, rules)?;
        Ok(CompletionRequest { options, prompts, echo, num_returned })
    }
}

fn check_best_of(options: &Options, num_returned: u32) -> Result<(), ApiError> {
    let best_of = options.num_choices;
    let rule = if best_of < num_returned {
        format!("({best_of}) must be at least n ({num_returned})")
    } else if best_of > num_returned && options.stream {
        format!("({best_of}) cannot be streamed unless n ({num_returned}) is the same")
    } else {
        return Ok(());
    };
    Err(ApiError::field("best_of", rule))
}

impl Prompts {
    fn read(fields: &mut Fields, rules: &Rules<'_>) -> Result<Prompts, ApiError> {
        let vocab_size = rules.vocab_size;
        let prompts = match fields.value("prompt") {
            None => return Err(ApiError::field("prompt", "must be given")),
            Some(Value::String(text)) => vec![PromptText::Text(text)],
            Some(Value::Array(items)) if items.first().is_some_and(Value::is_number) => {
                vec![PromptText::Tokens(token_ids("prompt", &items, vocab_size)?)]
            }
            Some(Value::Array(items)) => {
                let max = rules.limits.max_client_batch_size;
                if items.is_empty() || items.len() > max {
                    let rule = format!("must hold 1 to {max} prompts, not {}", items.len());
                    return Err(ApiError::field("prompt", rule));
                }
                let read = |(i, item)| PromptText::read(i, item, vocab_size);
                items.into_iter().enumerate().map(read).collect::<Result<_, _>>()?
            }
            Some(other) => {
                return Err(must_be("prompt", "a string, token ids, or a list of these", &other));
            }
        };
        let suffix = fields.string("suffix")?.filter(|suffix| !suffix.is_empty());
        let is_tokens = |prompt: &PromptText| matches!(prompt, PromptText::Tokens(_));
        if suffix.is_some() && prompts.iter().any(is_tokens) {
            return Err(ApiError::field("suffix", "needs prompts as strings, not as token ids"));
        }
        let add_special_tokens = fields.flag("add_special_tokens", true)?;
        Ok(Prompts { prompts, add_special_tokens, suffix })
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.prompts.len()
    }

    /// Encodes them; takes milliseconds for long prompts.
    pub(crate) fn encode(
        &self,
        text: &TextModel,
        echo: bool,
    ) -> Result<Vec<EncodedPrompt>, ApiError> {
        let encode = |prompt: &PromptText| match prompt {
            PromptText::Text(prompt) => {
                let tokens = self.encode_text(text, prompt)?;
                let echo = if echo { prompt.clone() } else { String::new() };
                Ok(EncodedPrompt { tokens, echo })
            }
            PromptText::Tokens(tokens) => {
                let echo = if echo { text.decode(tokens, true) } else { String::new() };
                Ok(EncodedPrompt { tokens: tokens.clone(), echo })
            }
        };
        self.prompts.iter().map(encode).collect()
    }

    fn encode_text(&self, text: &TextModel, prompt: &str) -> Result<Vec<u32>, ApiError> {
        let tokens = match &self.suffix {
            None => text.encode(prompt, self.add_special_tokens).map(Some),
            Some(suffix) => text.encode_infill(prompt, suffix, self.add_special_tokens),
        };
        let refused = |error| ApiError::field("prompt", format!("cannot be encoded: {error}"));
        tokens.map_err(refused)?.ok_or_else(|| {
            ApiError::field("suffix", "cannot be used: this model was not made to fill in")
        })
    }
}

impl PromptText {
    fn read(index: usize, item: Value, vocab_size: u32) -> Result<PromptText, ApiError> {
        let at = format!("prompt[{index}]");
        match item {
            Value::String(text) => Ok(PromptText::Text(text)),
            Value::Array(ids) => Ok(PromptText::Tokens(token_ids(&at, &ids, vocab_size)?)),
            other => {
                let rule =
                    format!("must be a string or a list of token ids, not {}", shown(&other));
                Err(ApiError::field(at, rule))
            }
        }
    }
}
