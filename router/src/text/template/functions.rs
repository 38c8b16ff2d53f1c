//! The functions, filters and tests that templates expect from Transformers and Jinja2.

use std::time::SystemTime;

use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Value};

use super::{json, time};

/// What a template said with `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Raised(pub(super) String);

/// Adds everything of this file to an environment.
pub(super) fn register(environment: &mut Environment<'static>, clock: fn() -> SystemTime) {
    environment.add_function("raise_exception", raise_exception);
    // The present in UTC, where Python gives local time: a server's zone is UTC or an accident.
    environment.add_function("strftime_now", move |format: &str| time::strftime(format, clock()));
    environment.add_filter("tojson", tojson);
    environment.add_filter("length", length);
    environment.add_filter("count", length);
    environment.add_filter("default", default);
    environment.add_filter("d", default);
    environment.add_filter("int", int);
    environment.add_filter("float", float);
    environment.add_test("sequence", is_sequence);
    environment.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
    environment.add_test("callable", |value: &Value| value.kind() == ValueKind::Plain);
    environment.set_formatter(|out, _, value| {
        // The rest prints as in Python already.
        if is_float(value) {
            out.write_str(&json::float(f64::try_from(value.clone())?))
        } else {
            out.write_fmt(format_args!("{value}"))
        }
        .map_err(|_| Error::new(ErrorKind::WriteFailure, "the output is closed"))
    });
}

fn raise_exception(message: &Value) -> Result<Value, Error> {
    let message = message.to_string();
    Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
}

#[expect(clippy::needless_pass_by_value, reason = "minijinja hands arguments over by value")]
fn tojson(value: &Value, positional: Rest<Value>, kwargs: Kwargs) -> Result<String, Error> {
    let names = ["ensure_ascii", "indent", "separators", "sort_keys"];
    if positional.len() > names.len() {
        return Err(Error::from(ErrorKind::TooManyArguments));
    }
    let argument = |index: usize| -> Result<Option<Value>, Error> {
        let value = match positional.get(index) {
            Some(value) => Some(value.clone()),
            None => kwargs.get::<Option<Value>>(names[index])?,
        };
        Ok(value.filter(|value| !value.is_none() && !value.is_undefined()))
    };
    let style = json::Style::new(
        argument(0)?.is_some_and(|value| value.is_true()),
        argument(1)?.as_ref(),
        argument(2)?.as_ref(),
        argument(3)?.is_some_and(|value| value.is_true()),
    )?;
    kwargs.assert_all_used()?;
    json::dumps(value, &style)
}

fn length(value: &Value) -> Result<usize, Error> {
    if value.is_undefined() {
        return Ok(0);
    }
    value.len().ok_or_else(|| {
        let detail = format!("{} has no length", value.kind());
        Error::new(ErrorKind::InvalidOperation, detail)
    })
}

#[expect(clippy::needless_pass_by_value, reason = "minijinja hands arguments over by value")]
fn default(
    value: &Value,
    other: Option<Value>,
    boolean: Option<bool>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    let other = match other {
        Some(other) => other,
        None => kwargs.get::<Option<Value>>("default_value")?.unwrap_or_else(|| Value::from("")),
    };
    let boolean = match boolean {
        Some(boolean) => boolean,
        None => kwargs.get::<Option<bool>>("boolean")?.unwrap_or(false),
    };
    kwargs.assert_all_used()?;
    let missing = value.is_undefined() || (boolean && !value.is_true());
    Ok(if missing { other } else { value.clone() })
}

/// Jinja2's `int`: what cannot be converted is the default, not an error.
fn int(value: &Value, default: Option<Value>) -> Value {
    let number = match value.kind() {
        ValueKind::Bool => Some(i64::from(value.is_true())),
        ValueKind::Number => match f64::try_from(value.clone()) {
            // An `as` cast cuts towards zero, as Python does.
            Ok(number) if is_float(value) => Some(number as i64),
            _ => return value.clone(),
        },
        ValueKind::String => value.as_str().and_then(|text| {
            let text = text.trim();
            text.parse().ok().or_else(|| text.parse::<f64>().ok().map(|number| number as i64))
        }),
        _ => None,
    };
    number.map_or_else(|| default.unwrap_or_else(|| Value::from(0)), Value::from)
}

/// Jinja2's `float`: what cannot be converted is the default, not an error.
fn float(value: &Value, default: Option<Value>) -> Value {
    let number = match value.kind() {
        ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        ValueKind::Number => f64::try_from(value.clone()).ok(),
        ValueKind::String => value.as_str().and_then(|text| text.trim().parse().ok()),
        _ => None,
    };
    number.map_or_else(|| default.unwrap_or_else(|| Value::from(0.0)), Value::from)
}

/// Jinja2 asks for a length and an index: strings and mappings have both.
fn is_sequence(value: &Value) -> bool {
    matches!(
        value.kind(),
        ValueKind::Seq
            | ValueKind::Iterable
            | ValueKind::String
            | ValueKind::Map
            | ValueKind::Undefined
    )
}

/// Whether a number is a float, also where its value is whole.
pub(super) fn is_float(value: &Value) -> bool {
    value.kind() == ValueKind::Number && !value.is_integer()
}

/// Replaces `{% generation %}` and `{% endgeneration %}`, which mark the assistant's text for
/// training, by a block that prints the same and keeps the marks for blanks.
pub(super) fn without_generation_tags(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(begin) = rest.find("{%") {
        let (before, tag) = rest.split_at(begin);
        text.push_str(before);
        let end = tag.find("%}").map_or(tag.len(), |end| end + 2);
        let (tag, after) = tag.split_at(end);
        let word = tag.trim_matches(|c: char| "{%}-+".contains(c) || c.is_whitespace());
        match word {
            "generation" => text.push_str(&tag.replacen("generation", "if true", 1)),
            "endgeneration" => text.push_str(&tag.replacen("endgeneration", "endif", 1)),
            _ => text.push_str(tag),
        }
        rest = after;
    }
    text.push_str(rest);
    text
}
