//! What a chat request says of tools and reasoning, and what follows from it for the answer.
//!
//! | field | values | without it |
//! |---|---|---|
//! | `tools` | functions, each with a name | none |
//! | `tool_choice` | `none`, `auto`, `required`, or a function's name | `auto` |
//! | `parallel_tool_calls` | false: one call at most, where a grammar can say so | true |
//! | `include_reasoning` | false: the reasoning is left out of the answer | true |
//!
//! Calls that are `required`, or of a named function, are enforced by a grammar, arguments
//! included. With `auto` a grammar leaves text free and holds calls to their schemas; where it is
//! refused and no tool is `strict`, the model is free.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::answer::{AnswerForm, Shows};
use super::constraints::Asked;
use super::error::ApiError;
use super::fields::{Fields, must_be, quoted, shown};
use super::options::is_empty;
use crate::text::{AnswerFormats, CallRules, Constraint, Opening, TextModel, Tool};

/// OpenAI's limit.
const MAX_TOOLS: usize = 128;

/// What a request says of tools and reasoning, validated.
#[derive(Debug)]
pub(crate) struct ToolRequest {
    tools: Arc<[Tool]>,
    choice: Choice,
    parallel: bool,
    formats: AnswerFormats,
    include_reasoning: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Choice {
    None,
    Auto,
    Required,
    /// The index of the function.
    Named(usize),
}

impl ToolRequest {
    /// Also returns the tools as the model is shown them.
    pub(crate) fn read(
        fields: &mut Fields,
        formats: AnswerFormats,
    ) -> Result<(ToolRequest, Option<Value>), ApiError> {
        let Offer { shown, tools, choice } = Offer::read(fields)?;
        let parallel = fields.flag("parallel_tool_calls", true)?;
        let include_reasoning = fields.flag("include_reasoning", true)?;
        let formats = match choice {
            Choice::None => AnswerFormats { tools: None, ..formats },
            Choice::Auto if formats.tools.is_some() => formats,
            Choice::Auto => {
                let rule = "cannot be used with tool_choice: auto, for the chat template does not \
                            show how this model writes calls; start the server with \
                            --tool-call-parser, or ask for tool_choice: required";
                return Err(ApiError::field("tools", rule));
            }
            // A grammar can make any model write calls in some form.
            Choice::Required | Choice::Named(_) => {
                AnswerFormats { tools: Some(formats.enforced_tools()), ..formats }
            }
        };
        let tools = tools.into();
        let request = ToolRequest { tools, choice, parallel, formats, include_reasoning };
        Ok((request, shown))
    }

    /// Whether the answer may call.
    pub(crate) fn offers_calls(&self) -> bool {
        !self.tools.is_empty() && self.choice != Choice::None
    }

    /// How answers to a prompt that ends like this are read; `None` where all text is content.
    /// What is asked of the content becomes what is asked of the answer, with the reasoning before
    /// it and the calls beside it.
    pub(crate) fn prepare(
        self,
        text: &TextModel,
        opening: Opening,
        constraint: &mut Option<Asked>,
    ) -> Option<AnswerForm> {
        let content = constraint.take();
        *constraint = match (self.choice != Choice::None, content) {
            (true, content) => {
                let is_needed = content.is_some() || self.insists_on_form();
                let content = content.map(|asked| asked.constraint);
                let constraint = self.call_constraint(text, opening, content.as_ref());
                Some(Asked { field: "tools", constraint, is_needed })
            }
            (false, Some(asked)) => {
                let constraint = text.after_reasoning(&asked.constraint, opening);
                Some(Asked { constraint, ..asked })
            }
            (false, None) => None,
        };
        if self.formats.is_plain() {
            return None;
        }
        let shows = Shows {
            reasoning: self.include_reasoning,
            tool_calls_reason: !matches!(self.choice, Choice::Named(_)),
        };
        let markers = text.marker_tokens(self.formats);
        Some(AnswerForm { formats: self.formats, opening, tools: self.tools, markers, shows })
    }

    /// Whether calls must be held to a form. Else a grammar that is refused, as one of very many
    /// tools may be, is left out: what the model writes is read all the same.
    pub(crate) fn insists_on_form(&self) -> bool {
        match self.choice {
            Choice::None => false,
            Choice::Auto => self.tools.iter().any(|tool| tool.strict),
            Choice::Required | Choice::Named(_) => true,
        }
    }

    fn call_constraint(
        &self,
        text: &TextModel,
        opening: Opening,
        content: Option<&Constraint>,
    ) -> Constraint {
        let (tools, parallel) = match self.choice {
            // Who names a function wants it called once.
            Choice::Named(index) => (&self.tools[index..=index], false),
            _ => (&self.tools[..], self.parallel),
        };
        let rules = CallRules { tools, required: self.choice != Choice::Auto, parallel };
        text.call_constraint(self.formats, opening, rules, content)
    }
}

/// The tools of a request, and who chooses among them.
struct Offer {
    /// As the model is shown them.
    shown: Option<Value>,
    tools: Vec<Tool>,
    choice: Choice,
}

impl Offer {
    fn read(fields: &mut Fields) -> Result<Offer, ApiError> {
        let given = fields.value("tools").filter(|tools| !is_empty(tools));
        let tools = given.as_ref().map_or(Ok(Vec::new()), read_tools)?;
        let choice = read_choice(fields, &tools)?;
        Ok(Offer { shown: given.filter(|_| choice != Choice::None), tools, choice })
    }
}

/// The tools as a model is shown them, where nothing is generated and any model will do.
pub(crate) fn read_shown_tools(fields: &mut Fields) -> Result<Option<Value>, ApiError> {
    Ok(Offer::read(fields)?.shown)
}

fn read_tools(tools: &Value) -> Result<Vec<Tool>, ApiError> {
    let Value::Array(tools) = tools else { return Err(must_be("tools", "a list of tools", tools)) };
    if tools.len() > MAX_TOOLS {
        let rule = format!("must hold at most {MAX_TOOLS} tools, not {}", tools.len());
        return Err(ApiError::field("tools", rule));
    }
    let mut read: Vec<Tool> = Vec::with_capacity(tools.len());
    for (i, tool) in tools.iter().enumerate() {
        let at = format!("tools[{i}].function");
        let tool = read_tool(&format!("tools[{i}]"), &at, tool)?;
        if read.iter().any(|other| other.name == tool.name) {
            let rule = format!("({}) must not be another tool's name too", quoted(&tool.name));
            return Err(ApiError::field(format!("{at}.name"), rule));
        }
        read.push(tool);
    }
    Ok(read)
}

fn read_tool(tool_at: &str, at: &str, tool: &Value) -> Result<Tool, ApiError> {
    match tool.get("type") {
        Some(kind) if kind == "function" => {}
        Some(other) => return Err(must_be(&format!("{tool_at}.type"), "\"function\"", other)),
        None if tool.is_object() => {
            return Err(ApiError::field(format!("{tool_at}.type"), "must be given"));
        }
        None => return Err(must_be(tool_at, "an object", tool)),
    }
    let function = match tool.get("function") {
        Some(Value::Object(function)) => function,
        Some(other) => return Err(must_be(at, "an object", other)),
        None => return Err(ApiError::field(at, "must be given")),
    };
    let given = |key| function.get(key).filter(|value: &&Value| !value.is_null());
    let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    let name = match given("name") {
        Some(Value::String(name))
            if (1..=Tool::MAX_NAME).contains(&name.len()) && name.chars().all(is_word) =>
        {
            name.clone()
        }
        Some(other) => {
            let rule = format!("1 to {} letters, digits, _ or -", Tool::MAX_NAME);
            return Err(must_be(&format!("{at}.name"), &rule, other));
        }
        None => return Err(ApiError::field(format!("{at}.name"), "must be given")),
    };
    if let Some(other) = given("description").filter(|description| !description.is_string()) {
        return Err(must_be(&format!("{at}.description"), "a string", other));
    }
    let parameters = match given("parameters") {
        None => None,
        Some(Value::Object(parameters)) => Some(parameters.clone()),
        Some(other) => return Err(must_be(&format!("{at}.parameters"), "a JSON schema", other)),
    };
    let strict = match given("strict") {
        None => false,
        Some(Value::Bool(strict)) => *strict,
        Some(other) => return Err(must_be(&format!("{at}.strict"), "true or false", other)),
    };
    let parameters = match parameters {
        Some(schema) if strict => Some(followed(&format!("{at}.parameters"), schema)?),
        given => given,
    };
    Ok(Tool::new(name, parameters, strict))
}

/// The parameters of a strict tool, in words that are followed to the letter.
fn followed(at: &str, schema: Map<String, Value>) -> Result<Map<String, Value>, ApiError> {
    match Constraint::json_schema(&Value::Object(schema.clone())) {
        Ok(Constraint::JsonSchema(Value::Object(followed))) => Ok(followed),
        Ok(_) => Ok(schema),
        Err(reason) => Err(ApiError::field(at, reason)),
    }
}

/// OpenAI's forms, and a bare name as TGI takes it.
fn read_choice(fields: &mut Fields, tools: &[Tool]) -> Result<Choice, ApiError> {
    let Some(choice) = fields.value("tool_choice") else {
        return Ok(if tools.is_empty() { Choice::None } else { Choice::Auto });
    };
    let name = match choice.as_str() {
        Some("none") => return Ok(Choice::None),
        Some("auto") if tools.is_empty() => return Ok(Choice::None),
        Some("auto") => return Ok(Choice::Auto),
        Some("required") if !tools.is_empty() => return Ok(Choice::Required),
        Some("required") => None,
        Some(name) => Some(name),
        None => {
            let is_function = choice.get("type").is_some_and(|kind| kind == "function");
            let name = choice.pointer("/function/name").and_then(Value::as_str);
            let rule = "none, auto, required, or a function with its name";
            Some(
                name.filter(|_| is_function)
                    .ok_or_else(|| must_be("tool_choice", rule, &choice))?,
            )
        }
    };
    if tools.is_empty() {
        let rule = format!("({}) needs tools", shown(&choice));
        return Err(ApiError::field("tool_choice", rule));
    }
    let named = tools.iter().position(|tool| Some(tool.name.as_str()) == name);
    let rule = || format!("names {}, which is none of the tools", quoted(name.unwrap_or_default()));
    named.map(Choice::Named).ok_or_else(|| ApiError::field("tool_choice", rule()))
}

/// Plain completions have no tools; those that may not be called change nothing.
pub(crate) fn refuse_tools(fields: &mut Fields) -> Result<(), ApiError> {
    let tools = fields.value("tools").filter(|tools| !is_empty(tools));
    if let Some(other) = tools.as_ref().filter(|tools| !tools.is_array()) {
        return Err(must_be("tools", "a list of tools", other));
    }
    match (tools, fields.value("tool_choice")) {
        (_, Some(choice)) if choice == "none" => Ok(()),
        (Some(tools), _) => Err(ApiError::Unsupported { field: "tools", value: shown(&tools) }),
        (None, None) => Ok(()),
        (None, Some(choice)) if choice == "auto" => Ok(()),
        (None, Some(choice)) => {
            Err(ApiError::Unsupported { field: "tool_choice", value: shown(&choice) })
        }
    }
}
