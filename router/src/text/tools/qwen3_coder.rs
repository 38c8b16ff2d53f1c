//! Calls in tags: `<tool_call><function=name><parameter=key>value</parameter></function>
//! </tool_call>`, each tag on a line of its own.
//!
//! A value is bare text; what it is in JSON follows from the tool's schema. Arguments are sent
//! one by one, each when it is complete.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::grammar::{Calls, json_schema};
use super::hermes::{CLOSE, OPEN, after_close};
use super::parts::Content;
use super::{Parts, Tool};
use crate::text::lark::{Lark, quoted};

const FUNCTION: &str = "<function=";
const FUNCTION_END: &str = "</function>";
const PARAMETER: &str = "<parameter=";
const PARAMETER_END: &str = "</parameter>";

/// What ends a value: its own tag, or the next one where that was forgotten.
const VALUE_ENDS: [&str; 3] = [PARAMETER_END, "\n<parameter=", "\n</function>"];

/// The parser of one answer.
pub(in crate::text) struct Qwen3Coder {
    tools: Arc<[Tool]>,
    content: Content,
    state: State,
    /// The function that is being called.
    name: String,
    num_arguments: usize,
}

enum State {
    Content,
    /// Behind `<tool_call>`.
    Open(String),
    /// Behind `<function=`, and what precedes it.
    Name(String, String),
    /// Between parameters.
    Body(String),
    /// Behind `<parameter=key>`.
    Value(String, String),
    Closing(String),
}

impl Qwen3Coder {
    pub(super) fn new(tools: Arc<[Tool]>) -> Qwen3Coder {
        Qwen3Coder {
            tools,
            content: Content::default(),
            state: State::Content,
            name: String::new(),
            num_arguments: 0,
        }
    }

    pub(super) fn push(&mut self, text: &str, out: &mut Parts) {
        let mut text = text.to_owned();
        while let Some(rest) = self.step(&text, out) {
            text = rest;
        }
    }

    /// Goes on by one state and returns what is left of the text; `None` if more is needed.
    fn step(&mut self, text: &str, out: &mut Parts) -> Option<String> {
        let (state, rest) = match &mut self.state {
            State::Content => match self.content.push(text, &[OPEN, FUNCTION], out)? {
                (OPEN, rest) => (State::Open(String::new()), rest),
                (_, rest) => (State::Name(FUNCTION.to_owned(), String::new()), rest),
            },
            State::Open(held) => {
                held.push_str(text);
                match next_tag(held, &[FUNCTION])? {
                    Some((_, rest)) => {
                        let opened = format!("{OPEN}{}", &held[..held.len() - rest.len()]);
                        (State::Name(opened, String::new()), rest)
                    }
                    None => {
                        self.content.give_back(OPEN, out);
                        (State::Content, std::mem::take(held))
                    }
                }
            }
            State::Name(opened, held) => {
                held.push_str(text);
                let end = held.find(['>', '<', '\n'])?;
                if end > 0 && held[end..].starts_with('>') {
                    held[..end].clone_into(&mut self.name);
                    self.num_arguments = 0;
                    out.call(&self.name);
                    (State::Body(String::new()), held.split_off(end + 1))
                } else {
                    self.content.give_back(opened, out);
                    (State::Content, std::mem::take(held))
                }
            }
            State::Body(held) => {
                held.push_str(text);
                match next_tag(held, &[PARAMETER, FUNCTION_END])? {
                    Some((PARAMETER, rest)) => {
                        let end = rest.find('>')?;
                        let key = rest[..end].to_owned();
                        (State::Value(key, String::new()), rest[end + 1..].to_owned())
                    }
                    tag => {
                        out.arguments(if self.num_arguments == 0 { "{}" } else { "}" });
                        self.content.call_ended();
                        let rest = tag.map_or_else(|| std::mem::take(held), |(_, rest)| rest);
                        (State::Closing(String::new()), rest)
                    }
                }
            }
            State::Value(key, held) => {
                let (at, end) = push_value(held, text)?;
                let is_own = end == PARAMETER_END;
                let rest = held.split_off(at + if is_own { end.len() } else { 0 });
                let (key, value) = (std::mem::take(key), held[..at].to_owned());
                self.send(&key, &value, out);
                (State::Body(String::new()), rest)
            }
            State::Closing(held) => (State::Content, after_close(held, text)?),
        };
        self.state = state;
        Some(rest)
    }

    /// Sends an argument, in JSON.
    fn send(&mut self, key: &str, value: &str, out: &mut Parts) {
        let tool = self.tools.iter().find(|tool| tool.name == self.name);
        let schema = tool.and_then(|tool| tool.parameters.get("properties")?.get(key));
        let value = value.strip_prefix('\n').unwrap_or(value);
        let value = to_json(value.strip_suffix('\n').unwrap_or(value), schema);
        let open = if self.num_arguments == 0 { "{" } else { ", " };
        out.arguments(&format!("{open}{}: {value}", Value::from(key)));
        self.num_arguments += 1;
    }

    pub(super) fn finish(&mut self, out: &mut Parts) {
        match std::mem::replace(&mut self.state, State::Content) {
            State::Open(held) => {
                self.content.give_back(OPEN, out);
                out.content(&held);
            }
            State::Name(opened, held) => {
                self.content.give_back(&opened, out);
                out.content(&held);
            }
            // Without the bracket that would say that the arguments are complete.
            State::Value(key, value) => self.send(&key, &value, out),
            State::Content | State::Body(_) | State::Closing(_) => {}
        }
        self.content.finish(out);
    }
}

/// Appends to a value and finds its end. What was searched before is not searched again.
fn push_value(held: &mut String, text: &str) -> Option<(usize, &'static str)> {
    let longest = VALUE_ENDS.iter().map(|end| end.len()).max().unwrap_or(0);
    let mut begin = held.len().saturating_sub(longest);
    while !held.is_char_boundary(begin) {
        begin -= 1;
    }
    held.push_str(text);
    let ends = VALUE_ENDS.iter().filter_map(|end| Some((begin + held[begin..].find(end)?, *end)));
    ends.min()
}

/// Which of `tags` comes next, and what follows it; `Some(None)` if none does, and `None` while
/// that is open.
fn next_tag<'t>(held: &str, tags: &[&'t str]) -> Option<Option<(&'t str, String)>> {
    let seen = held.trim_start();
    for tag in tags {
        if let Some(rest) = seen.strip_prefix(tag) {
            return Some(Some((tag, rest.to_owned())));
        }
    }
    (!tags.iter().any(|tag| tag.starts_with(seen))).then_some(None)
}

/// A bare value as JSON: what the schema expects if the value is that, else a string.
fn to_json(value: &str, schema: Option<&Value>) -> Value {
    let kinds = schema.map(kinds).unwrap_or_default();
    let is_text = kinds.is_empty() || kinds.contains(&"string");
    let literal = match value.trim() {
        "None" => "null",
        "True" => "true",
        "False" => "false",
        other => other,
    };
    let parsed = serde_json::from_str(literal).ok();
    match parsed {
        Some(Value::Null) if kinds.contains(&"null") => Value::Null,
        Some(parsed) if !is_text => parsed,
        _ => Value::from(value),
    }
}

/// The types that a schema names, itself or in its alternatives. A reference is any type.
fn kinds(schema: &Value) -> Vec<&str> {
    let mut kinds = Vec::new();
    match &schema["type"] {
        Value::String(kind) => kinds.push(kind.as_str()),
        Value::Array(list) => kinds.extend(list.iter().filter_map(Value::as_str)),
        _ => {}
    }
    for key in ["anyOf", "oneOf", "allOf"] {
        let alternatives = schema[key].as_array().into_iter().flatten();
        kinds.extend(alternatives.flat_map(self::kinds));
    }
    for value in schema["enum"].as_array().into_iter().flatten().chain(schema.get("const")) {
        kinds.push(match value {
            Value::String(_) => "string",
            Value::Null => "null",
            _ => "other",
        });
    }
    if schema.get("$ref").is_some() {
        kinds.push("reference");
    }
    kinds
}

/// The grammar of calls. Parameters come in the order of the schema, the optional ones or not.
pub(super) fn calls(lark: &mut Lark<'_>, calls: &Calls<'_>) -> String {
    let functions = calls.any_tool(lark, |lark, tool| {
        let empty = Map::new();
        let properties = tool.parameters.get("properties").and_then(Value::as_object);
        let required = tool.parameters.get("required").and_then(Value::as_array);
        let mut body = quoted(&format!("{FUNCTION}{}>\n", tool.name));
        for (key, schema) in properties.unwrap_or(&empty) {
            let is_required = required.is_some_and(|keys| keys.iter().any(|name| name == key));
            let parameter = parameter(lark, tool, key, schema);
            body.push_str(&format!(" {parameter}{}", if is_required { "" } else { "?" }));
        }
        format!("{body} {}", quoted(FUNCTION_END))
    });
    let body = format!("\"\\n\" {functions} \"\\n\" {}", lark.marker(CLOSE));
    calls.marked(lark, OPEN, &body, "\"\\n\"?")
}

fn parameter(lark: &mut Lark<'_>, tool: &Tool, key: &str, schema: &Value) -> String {
    let open = quoted(&format!("{PARAMETER}{key}>\n"));
    let close = format!("\n{PARAMETER_END}\n");
    let kinds = kinds(schema);
    let words = schema["enum"].as_array().filter(|_| !kinds.contains(&"other"));
    if let Some(words) = words {
        let words = words.iter().map(|word| quoted(word.as_str().unwrap_or("null")));
        let words = words.collect::<Vec<_>>().join(" | ");
        return lark.rule(&format!("{open} ({words}) {}", quoted(&close)));
    }
    if kinds.is_empty() || kinds.contains(&"string") {
        let text = lark.until_text(&close);
        return lark.rule(&format!("{open} {text}"));
    }
    let mut schema = schema.clone();
    // A reference points into the whole schema.
    for key in ["$defs", "definitions"] {
        if let (Some(definitions), Some(schema)) =
            (tool.parameters.get(key), schema.as_object_mut())
        {
            schema.insert(key.to_owned(), definitions.clone());
        }
    }
    let value = json_schema(schema, tool.strict);
    lark.rule(&format!("{open} {value} {}", quoted(&close)))
}
