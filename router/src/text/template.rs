//! Chat templates: a conversation to a prompt, as Python's Jinja2 and Transformers would.
//!
//! A template is a program that comes with the model. It is compiled once, sees plain data, and
//! is bounded in steps ([`MAX_FUEL`]), in depth and in output ([`MAX_OUTPUT_BYTES`]). Settings
//! and globals are those of Transformers' `apply_chat_template`: `trim_blocks`, `lstrip_blocks`,
//! no escaping, lenient undefined values, loop controls.
//!
//! What Jinja2 has and minijinja lacks stands in `template/`: string methods, `tojson`, dates; and
//! what clients write in another way than templates expect: `messages.rs`. Four things are still
//! missing: `%` on strings, the unary plus, `kwargs` and `varargs` inside macros, and the filters
//! for HTML pages. Dates are in UTC.

mod functions;
mod json;
mod messages;
mod methods;
#[cfg(test)]
mod tests;
mod time;

use std::io;
use std::time::SystemTime;

use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, ErrorKind, Value};
use serde_json::{Map, Value as Json, json};

use super::TextError;
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
    /// The model's chat template does not compile.
    #[error("the model's chat template is not usable: {0}")]
    Unusable(String),
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
    /// Why the template is not usable, where it is not.
    broken: Option<String>,
    content_form: ContentForm,
    special_tokens: Map<String, Json>,
}

/// How a template can read the content of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum ContentForm {
    /// A string or a list of parts.
    Any,
    /// A string only.
    Text,
    /// A list of parts only.
    Parts,
}

/// The files that may hold a checkpoint's templates.
pub(super) struct TemplateFiles {
    /// `chat_template.jinja`, which wins over all others.
    pub(super) default: Option<String>,
    /// `additional_chat_templates/tool_use.jinja`, which may stand beside it.
    pub(super) tool_use: Option<String>,
    /// Files whose `chat_template` is a template, or a list of named ones; the first with one
    /// counts.
    pub(super) json: Vec<Json>,
}

const DEFAULT: &str = "default";
const TOOL_USE: &str = "tool_use";

impl ChatTemplates {
    /// `None` for a checkpoint without a template.
    pub(super) fn load(
        files: TemplateFiles,
        special_tokens: Map<String, Json>,
    ) -> Result<Option<Self>, TextError> {
        let sources: Vec<(String, String)> = if let Some(default) = files.default {
            let named = [(DEFAULT, Some(default)), (TOOL_USE, files.tool_use)];
            named
                .into_iter()
                .filter_map(|(name, source)| Some((name.to_owned(), source?)))
                .collect()
        } else {
            let found = files.json.iter().map(|file| &file["chat_template"]);
            named_templates(found.into_iter().find(|value| !value.is_null()))?
        };
        if sources.is_empty() {
            return Ok(None);
        }
        Ok(Some(Self::new(sources, special_tokens, SystemTime::now)))
    }

    fn new(
        sources: Vec<(String, String)>,
        special_tokens: Map<String, Json>,
        clock: fn() -> SystemTime,
    ) -> Self {
        let mut environment = environment(clock);
        let has_tool_use = sources.iter().any(|(name, _)| name == TOOL_USE);
        let mut broken = None;
        for (name, source) in sources {
            let source = functions::without_generation_tags(&source);
            if let Err(error) = environment.add_template_owned(name, source) {
                // A model whose template we cannot read still completes plain text.
                let reason = describe(&error);
                tracing::warn!(reason, "the chat template does not compile");
                broken = Some(reason);
            }
        }
        let content_form = ContentForm::Any;
        let mut templates =
            ChatTemplates { environment, has_tool_use, broken, content_form, special_tokens };
        templates.content_form = templates.probe_content_form();
        templates
    }

    /// Asks the template itself: a content that it cannot read makes it fail, or comes out
    /// quoted, or not at all.
    fn probe_content_form(&self) -> ContentForm {
        const PROBE: &str = "a5f3c81e";
        let reads = |content: Json| {
            let prompt = ChatPrompt {
                messages: &[json!({ "role": "user", "content": content })],
                tools: None,
                add_generation_prompt: true,
                continue_final_message: false,
                kwargs: &Map::new(),
            };
            let quoted = [format!("'{PROBE}'"), format!("\"{PROBE}\"")];
            self.render(&prompt).is_ok_and(|text| {
                text.contains(PROBE) && !quoted.iter().any(|quoted| text.contains(quoted))
            })
        };
        match (reads(PROBE.into()), reads(json!([{ "type": "text", "text": PROBE }]))) {
            (true, false) => ContentForm::Text,
            (false, true) => ContentForm::Parts,
            // A template that reads neither wants more than one message of a user.
            _ => ContentForm::Any,
        }
    }

    pub(super) fn render(&self, prompt: &ChatPrompt<'_>) -> Result<String, TemplateError> {
        if let Some(reason) = &self.broken {
            return Err(TemplateError::Unusable(reason.clone()));
        }
        let prepare = |message| messages::prepare(message, self.content_form);
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

/// A `chat_template`: a string, or a list of `{name, template}`.
fn named_templates(value: Option<&Json>) -> Result<Vec<(String, String)>, TextError> {
    let invalid = |reason: &str| TextError::Invalid {
        file: "tokenizer_config.json",
        reason: format!("chat_template: {reason}"),
    };
    let list = match value {
        None => return Ok(Vec::new()),
        Some(Json::String(source)) => return Ok(vec![(DEFAULT.to_owned(), source.clone())]),
        Some(Json::Array(list)) => list,
        Some(_) => return Err(invalid("expected a string or a list of named templates")),
    };
    let mut named = Vec::new();
    for entry in list {
        match (entry["name"].as_str(), entry["template"].as_str()) {
            (Some(name), Some(source)) => named.push((name.to_owned(), source.to_owned())),
            _ => return Err(invalid("a named template needs the strings `name` and `template`")),
        }
    }
    // A single template under another name is still the only choice.
    if let [(name, _)] = named.as_mut_slice() {
        *name = DEFAULT.to_owned();
    }
    Ok(named)
}

/// The special tokens that a template may name (`bos_token`, ...), from the two files that list
/// them; a token is a string, or an object with its `content`.
pub(super) fn special_tokens(map: &Json, tokenizer_config: &Json) -> Map<String, Json> {
    let mut tokens = Map::new();
    for file in [map, tokenizer_config] {
        for (key, value) in file.as_object().into_iter().flatten() {
            let content = value.as_str().or_else(|| value["content"].as_str());
            if let Some(content) = content.filter(|_| key.ends_with("_token")) {
                tokens.insert(key.clone(), content.into());
            }
        }
    }
    tokens
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

fn describe(error: &minijinja::Error) -> String {
    let mut text = error.kind().to_string();
    if let Some(detail) = error.detail() {
        text.push_str(": ");
        text.push_str(detail);
    }
    if let Some(line) = error.line() {
        text.push_str(&format!(" (line {line})"));
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
