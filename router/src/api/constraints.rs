//! What a request says of the form of its answer.
//!
//! | field | value |
//! |---|---|
//! | `response_format` | OpenAI's `text`, `json_object`, `json_schema` (strict or not: it is followed); TGI's `json` and `regex` with a `value` |
//! | `structured_outputs` | vLLM's: one of `json`, `json_object`, `regex`, `choice`, `grammar` (Lark), with `whitespace_pattern` and `disable_any_whitespace` |
//! | `guided_json`, `guided_regex`, `guided_choice`, `guided_grammar` | vLLM's older names of these, with `guided_whitespace_pattern` |
//!
//! A request has at most one. A schema is an object, `true`, or a string that holds it. Which
//! grammars can be followed is for the text model to say, once the fields are read.

use serde_json::{Map, Value, json};

use super::error::ApiError;
use super::fields::{Fields, must_be, shown};
use crate::text::Constraint;

/// Texts to choose from at most.
const MAX_CHOICES: usize = 1024;

/// A constraint, and the field that asked for it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Asked {
    pub(crate) field: &'static str,
    pub(crate) constraint: Constraint,
    /// False: where it cannot be followed, the answer is free.
    pub(crate) is_needed: bool,
}

/// How the white space of a JSON document is written, in llguidance's words.
type Writing = Map<String, Value>;

/// Reads the fields above.
pub(crate) fn read_constraint(fields: &mut Fields) -> Result<Option<Asked>, ApiError> {
    let all =
        [read_response_format(fields)?, read_structured_outputs(fields)?, read_guided(fields)?];
    let mut asked = all.into_iter().flatten();
    let first = asked.next();
    match (&first, asked.next()) {
        (Some(first), Some(second)) => Err(together(second.field, first.field)),
        _ => Ok(first),
    }
}

/// Two fields that exclude each other.
pub(crate) fn together(field: &'static str, other: &'static str) -> ApiError {
    ApiError::field(field, format!("cannot be used together with {other}"))
}

fn read_response_format(fields: &mut Fields) -> Result<Option<Asked>, ApiError> {
    const FIELD: &str = "response_format";
    let Some(mut format) = fields.object(FIELD)? else { return Ok(None) };
    let kind = format.swap_remove("type").unwrap_or_default();
    let value = format.swap_remove("value");
    let constraint = match kind.as_str().unwrap_or_default() {
        "text" => return Ok(None),
        "json_object" if value.is_none() => any_object(FIELD, &Writing::new())?,
        "json_schema" if value.is_none() => {
            let name = "response_format.json_schema";
            let mut inner = match format.swap_remove("json_schema") {
                Some(Value::Object(inner)) => inner,
                other => return Err(must_be(name, "an object", &other.unwrap_or_default())),
            };
            let schema = inner.swap_remove("schema").unwrap_or_default();
            schema_of(&format!("{name}.schema"), schema, &Writing::new())?
        }
        "json" | "json_object" | "json_schema" => {
            schema_of("response_format.value", value.unwrap_or_default(), &Writing::new())?
        }
        "regex" => regex("response_format.value", value.unwrap_or_default())?,
        _ => {
            let kinds = "text, json_object, json_schema, json or regex";
            return Err(must_be("response_format.type", kinds, &kind));
        }
    };
    Ok(Some(Asked { field: FIELD, constraint, is_needed: true }))
}

fn read_structured_outputs(fields: &mut Fields) -> Result<Option<Asked>, ApiError> {
    const FIELD: &str = "structured_outputs";
    let Some(given) = fields.object(FIELD)? else { return Ok(None) };
    let mut writing = Writing::new();
    let mut found: Option<(String, Value)> = None;
    for (key, value) in given {
        let name = format!("{FIELD}.{key}");
        match (key.as_str(), value) {
            (_, Value::Null) => {}
            ("disable_any_whitespace" | "disable_additional_properties", Value::Bool(false)) => {}
            ("disable_any_whitespace", Value::Bool(true)) => {
                writing.insert("whitespace_flexible".into(), false.into());
            }
            ("whitespace_pattern", Value::String(pattern)) => {
                writing.insert("whitespace_pattern".into(), pattern.into());
            }
            ("json" | "json_object" | "regex" | "choice" | "grammar", value) => {
                if let Some((other, _)) = &found {
                    return Err(ApiError::field(name, format!("cannot go with {FIELD}.{other}")));
                }
                found = Some((key, value));
            }
            (_, value) => {
                let rule = format!("({}) is not supported", shown(&value));
                return Err(ApiError::field(name, rule));
            }
        }
    }
    let Some((kind, value)) = found else {
        let rule = "must have one of json, json_object, regex, choice or grammar";
        return Err(ApiError::field(FIELD, rule));
    };
    let constraint = constraint(&format!("{FIELD}.{kind}"), &kind, value, &writing)?;
    Ok(constraint.map(|constraint| Asked { field: FIELD, constraint, is_needed: true }))
}

/// vLLM's older names, each with what it is among the newer ones.
const GUIDED: [(&str, &str); 5] = [
    ("guided_json", "json"),
    ("guided_json_object", "json_object"),
    ("guided_regex", "regex"),
    ("guided_choice", "choice"),
    ("guided_grammar", "grammar"),
];

fn read_guided(fields: &mut Fields) -> Result<Option<Asked>, ApiError> {
    let mut writing = Writing::new();
    if let Some(pattern) = fields.string("guided_whitespace_pattern")? {
        writing.insert("whitespace_pattern".into(), pattern.into());
    }
    let mut found: Option<Asked> = None;
    for (field, kind) in GUIDED {
        let Some(value) = fields.value(field) else { continue };
        let Some(constraint) = constraint(field, kind, value, &writing)? else { continue };
        if let Some(other) = &found {
            return Err(together(field, other.field));
        }
        found = Some(Asked { field, constraint, is_needed: true });
    }
    Ok(found)
}

/// What `value` asks for under one of vLLM's names; `None` for an object that may be anything.
fn constraint(
    name: &str,
    kind: &str,
    value: Value,
    writing: &Writing,
) -> Result<Option<Constraint>, ApiError> {
    Ok(Some(match kind {
        "json" => schema_of(name, value, writing)?,
        "json_object" => match value {
            Value::Bool(true) => any_object(name, writing)?,
            Value::Bool(false) => return Ok(None),
            other => return Err(must_be(name, "true or false", &other)),
        },
        "regex" => regex(name, value)?,
        "choice" => choice(name, &value)?,
        _ => match value {
            Value::String(lark) => Constraint::Lark(lark),
            other => return Err(must_be(name, "a string", &other)),
        },
    }))
}

fn any_object(name: &str, writing: &Writing) -> Result<Constraint, ApiError> {
    schema_of(name, json!({"type": "object"}), writing)
}

fn schema_of(name: &str, value: Value, writing: &Writing) -> Result<Constraint, ApiError> {
    let what = "a JSON schema: an object, true, or a string that holds it";
    let mut schema = match value {
        Value::String(text) => {
            serde_json::from_str(&text).map_err(|_| must_be(name, what, &Value::String(text)))?
        }
        value => value,
    };
    if schema == Value::Bool(true) {
        schema = json!({});
    }
    if !schema.is_object() {
        return Err(must_be(name, what, &schema));
    }
    write_as(&mut schema, writing);
    Constraint::json_schema(&schema).map_err(|reason| ApiError::field(name, reason))
}

fn write_as(schema: &mut Value, writing: &Writing) {
    if let (Value::Object(keys), false) = (schema, writing.is_empty()) {
        keys.insert("x-guidance".into(), writing.clone().into());
    }
}

fn regex(name: &str, value: Value) -> Result<Constraint, ApiError> {
    match value {
        Value::String(regex) => Ok(Constraint::Regex(regex)),
        other => Err(must_be(name, "a regular expression as a string", &other)),
    }
}

fn choice(name: &str, value: &Value) -> Result<Constraint, ApiError> {
    let texts = match value {
        Value::Array(texts) if (1..=MAX_CHOICES).contains(&texts.len()) => texts,
        _ => return Err(must_be(name, &format!("a list of 1 to {MAX_CHOICES} strings"), value)),
    };
    let text = |(i, text): (usize, &Value)| match text {
        Value::String(text) if !text.is_empty() => Ok(text.clone()),
        other => Err(must_be(&format!("{name}[{i}]"), "a string that is not empty", other)),
    };
    texts.iter().enumerate().map(text).collect::<Result<_, _>>().map(Constraint::Choice)
}
