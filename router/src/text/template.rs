//! Chat templates: a conversation to a prompt, as Python's Jinja2 and Transformers would.
//!
//! A template is a program that comes with the model. It is compiled once, sees plain data, and
//! is bounded in steps ([`MAX_FUEL`]), in depth and in output ([`MAX_OUTPUT_BYTES`]). Settings
//! and globals are those of Transformers' `apply_chat_template`: `trim_blocks`, `lstrip_blocks`,
//! no escaping, lenient undefined values, loop controls.
//!
//! What Jinja2 does in another way than minijinja stands in `template/`: its reading of the text
//! ([`source`]), string methods, filters, `tojson`, dates; and what clients write in another way
//! than templates expect ([`forms`], [`messages`]). Still missing, each an error that names it:
//! `%` on strings, the unary plus, `kwargs` and `varargs` inside macros, arithmetic on booleans,
//! methods that change a list or a mapping, and the filters for HTML pages. Different without an
//! error: `safe` and `escape` give plain strings; a loop over the characters of a string knows no
//! `loop.last`; a slice with a negative step and an end (`x[-1:0:-1]`) takes one element too many;
//! a macro's default does not see its other arguments; `x.items` is the key `items` where there is
//! one, and the method in Python; dates are in UTC. More lenient: `none` can be looped over.

mod files;
mod forms;
mod functions;
mod json;
mod messages;
mod methods;
mod source;
mod strings;
#[cfg(test)]
mod tests;
mod time;

use std::io;
use std::time::SystemTime;

use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, ErrorKind, Value};
use serde_json::{Map, Value as Json};

use super::reasoning::ReasoningFormat;
use super::tools::ToolFormat;
use super::{AnswerFormats, ReadFile, TextError};
use files::{DEFAULT, Source, TOOL_USE};
pub(super) use files::{JsonFile, special_tokens};
use forms::Forms;
use functions::Raised;

/// Steps that one rendering may take: some hundred times what a long conversation needs.
const MAX_FUEL: u64 = 10_000_000;

/// The longest prompt text that one rendering may write.
const MAX_OUTPUT_BYTES: usize = 32 << 20;

/// A conversation to render.
#[derive(Clone, Copy, Debug)]
pub struct ChatPrompt<'a> {
    /// Messages as OpenAI writes them: objects with `role` and `content`.
    pub messages: &'a [Json],
    /// The tools offered, as OpenAI writes them; selects the template named `tool_use`.
    pub tools: Option<&'a Json>,
    /// Ends the prompt where the assistant's answer begins.
    pub add_generation_prompt: bool,
    /// Ends the prompt inside the last message; excludes `add_generation_prompt`.
    pub continue_final_message: bool,
    /// What the client wants the template to see besides (`enable_thinking`, ...).
    pub kwargs: &'a Map<String, Json>,
}

/// Why a conversation could not be rendered. The text is fit for the client to read.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The model has no chat template.
    #[error("this model has no chat template; use the completions endpoint")]
    NoTemplate,
    /// The template itself refused the conversation (`raise_exception`).
    #[error("{0}")]
    Raised(String),
    /// The conversation does not fit the template.
    #[error("the chat template failed: {0}")]
    Failed(String),
    /// The rendering took too many steps or wrote too much.
    #[error("the chat template exceeded its limit of {0}")]
    TooExpensive(String),
    /// The last message cannot be continued.
    #[error("continue_final_message: {0}")]
    CannotContinue(&'static str),
}

/// The compiled templates of a checkpoint.
pub(super) struct ChatTemplates {
    environment: Environment<'static>,
    /// Whether there is a template for conversations with tools.
    has_tool_use: bool,
    forms: Forms,
    /// How the templates write what an answer may hold beside content.
    pub(super) formats: AnswerFormats,
    special_tokens: Map<String, Json>,
    /// What every template sees unless the request says otherwise.
    kwargs: Map<String, Json>,
}

/// What every rendering of a checkpoint's templates sees.
pub(super) struct Globals {
    /// `bos_token` and the like.
    pub(super) special_tokens: Map<String, Json>,
    /// The operator's own variables, which a request's go before.
    pub(super) kwargs: Map<String, Json>,
}

impl ChatTemplates {
    /// `None` for a checkpoint without a template. `given` goes before the checkpoint's files,
    /// `json` is asked where they hold no template.
    pub(super) fn load(
        read: &ReadFile<'_>,
        given: Option<JsonFile<'_>>,
        json: [JsonFile<'_>; 2],
        globals: Globals,
    ) -> Result<Option<Self>, TextError> {
        let sources = files::find(read, given, json)?;
        if sources.is_empty() {
            return Ok(None);
        }
        Self::new(sources, globals, SystemTime::now).map(Some)
    }

    fn new(
        sources: Vec<Source>,
        globals: Globals,
        clock: fn() -> SystemTime,
    ) -> Result<Self, TextError> {
        let mut environment = environment(clock);
        let has_tool_use = sources.iter().any(|source| source.name == TOOL_USE);
        let with_tools = sources.iter().find(|source| source.name == TOOL_USE);
        let with_tools = with_tools.or(sources.first());
        let formats = AnswerFormats {
            tools: with_tools.and_then(|source| ToolFormat::of_template(&source.text)),
            reasoning: with_tools.and_then(|source| ReasoningFormat::of_template(&source.text)),
        };
        for Source { name, file, text } in sources {
            let compiled = environment.add_template_owned(name, source::for_minijinja(&text));
            compiled.map_err(|error| TextError::Invalid {
                file,
                reason: format!("the chat template does not compile: {}", describe(&error)),
            })?;
        }
        let Globals { special_tokens, kwargs } = globals;
        let forms = Forms::default();
        let mut templates =
            ChatTemplates { environment, has_tool_use, forms, formats, special_tokens, kwargs };
        templates.probe_forms();
        Ok(templates)
    }

    pub(super) fn render(&self, prompt: &ChatPrompt<'_>) -> Result<String, TemplateError> {
        let prepare = |message| messages::prepare(message, self.forms);
        let mut messages: Vec<Json> = prompt.messages.iter().map(prepare).collect();
        let last_text = if prompt.continue_final_message {
            if prompt.add_generation_prompt {
                return Err(TemplateError::CannotContinue(
                    "it cannot be used together with add_generation_prompt",
                ));
            }
            Some(messages::tag_final_message(&mut messages)?)
        } else {
            None
        };
        let mut text = self.render_messages(&messages, prompt)?;
        if let Some(last_text) = last_text {
            messages::cut_at_tag(&mut text, &last_text)?;
        }
        Ok(text)
    }

    fn render_messages(
        &self,
        messages: &[Json],
        prompt: &ChatPrompt<'_>,
    ) -> Result<String, TemplateError> {
        let tools = prompt.tools.filter(|tools| !tools.is_null());
        let name = if tools.is_some() && self.has_tool_use { TOOL_USE } else { DEFAULT };
        // Later entries win: a client can replace a special token, never the conversation.
        let mut context: Vec<(&str, Value)> = vec![("documents", Value::from(()))];
        context.extend(self.special_tokens.iter().map(|(key, value)| (key.as_str(), plain(value))));
        context.extend(self.kwargs.iter().map(|(key, value)| (key.as_str(), plain(value))));
        context.extend(prompt.kwargs.iter().map(|(key, value)| (key.as_str(), plain(value))));
        context.push(("messages", messages.iter().map(plain).collect()));
        context.push(("tools", tools.map_or(Value::from(()), plain)));
        context.push(("add_generation_prompt", Value::from(prompt.add_generation_prompt)));

        let mut output = BoundedOutput::default();
        let context = Value::from_pairs(context);
        let rendered = self
            .environment
            .get_template(name)
            .and_then(|template| template.render_captured_to(context, &mut output).map(|_| ()));
        match rendered {
            Ok(()) => String::from_utf8(output.bytes)
                .map_err(|error| TemplateError::Failed(error.to_string())),
            Err(_) if output.full => {
                Err(TemplateError::TooExpensive(format!("{MAX_OUTPUT_BYTES} bytes")))
            }
            Err(error) => Err(template_error(&error)),
        }
    }
}

/// An environment with the settings and the globals of Transformers.
fn environment(clock: fn() -> SystemTime) -> Environment<'static> {
    let mut environment = Environment::new();
    let mut syntax = SyntaxConfig::builder();
    syntax.trim_blocks(true).lstrip_blocks(true);
    // Only custom delimiters can fail to build.
    environment.set_syntax(syntax.build().unwrap_or_default());
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_debug(false);
    environment.set_fuel(Some(MAX_FUEL));
    environment.set_unknown_method_callback(methods::call);
    functions::register(&mut environment, clock);
    environment
}

/// JSON as the template sees it.
fn plain(value: &Json) -> Value {
    match value {
        Json::Null => Value::from(()),
        Json::Bool(value) => Value::from(*value),
        Json::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
            (Some(number), _, _) => Value::from(number),
            (_, Some(number), _) => Value::from(number),
            (_, _, number) => Value::from(number.unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => Value::from(items.iter().map(plain).collect::<Vec<_>>()),
        Json::Object(object) => {
            Value::from_pairs(object.iter().map(|(key, value)| (key.as_str(), plain(value))))
        }
    }
}

fn template_error(error: &minijinja::Error) -> TemplateError {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(cause) = source {
        if let Some(Raised(message)) = cause.downcast_ref::<Raised>() {
            return TemplateError::Raised(message.clone());
        }
        source = cause.source();
    }
    match error.kind() {
        ErrorKind::OutOfFuel => TemplateError::TooExpensive(format!("{MAX_FUEL} steps")),
        _ => TemplateError::Failed(describe(error)),
    }
}

/// An error's line, kind and detail.
fn describe(error: &minijinja::Error) -> String {
    let mut text = error.line().map_or_else(String::new, |line| format!("line {line}: "));
    text.push_str(&error.kind().to_string());
    if let Some(detail) = error.detail() {
        text.push_str(": ");
        text.push_str(detail);
    }
    text
}

/// Output that refuses to grow beyond [`MAX_OUTPUT_BYTES`].
#[derive(Default)]
struct BoundedOutput {
    bytes: Vec<u8>,
    full: bool,
}

impl io::Write for BoundedOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > MAX_OUTPUT_BYTES {
            self.full = true;
            return Err(io::Error::other("the output is too long"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
