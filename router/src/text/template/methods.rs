//! Python's methods on strings, mappings and lists.
//!
//! minijinja-contrib has most of them; what templates use besides stands here.

use minijinja::value::{Kwargs, Rest, Tuple, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;

/// Calls `method` of `value`: ours, else minijinja-contrib's.
pub(super) fn call(
    state: &mut State<'_, '_>,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    let own = match value.kind() {
        ValueKind::String => string_method(value.as_str().unwrap_or_default(), method, args)?,
        ValueKind::Map if method == "copy" => Some(value.clone()),
        ValueKind::Seq | ValueKind::Iterable => list_method(value, method, args)?,
        _ => None,
    };
    match own {
        Some(result) => Ok(result),
        None => pycompat::unknown_method_callback(state, value, method, args),
    }
}

fn string_method(text: &str, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let result = match method {
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Value::from(text.strip_prefix(prefix).unwrap_or(text))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Value::from(text.strip_suffix(suffix).unwrap_or(text))
        }
        "partition" => {
            let (separator,): (&str,) = from_args(args)?;
            partition(text.split_once(nonempty(separator)?), separator, [text, "", ""])
        }
        "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            partition(text.rsplit_once(nonempty(separator)?), separator, ["", "", text])
        }
        "split" | "rsplit" => split(text, method == "rsplit", args)?,
        "splitlines" => {
            let (positional, kwargs): (Rest<Value>, Kwargs) = from_args(args)?;
            let keep_ends = argument(&positional, 0, &kwargs, "keepends")?;
            kwargs.assert_all_used()?;
            split_lines(text, keep_ends.is_some_and(|value| value.is_true()))
        }
        "index" => {
            let (part,): (&str,) = from_args(args)?;
            let found = text
                .find(part)
                .ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "substring not found"))?;
            Value::from(text[..found].chars().count())
        }
        "swapcase" => text.chars().map(swap_case).collect::<String>().into(),
        "casefold" => Value::from(text.to_lowercase()),
        "isdecimal" => Value::from(!text.is_empty() && text.chars().all(|c| c.is_ascii_digit())),
        "zfill" | "ljust" | "rjust" | "center" => pad(text, method, args)?,
        _ => return Ok(None),
    };
    Ok(Some(result))
}

fn list_method(value: &Value, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    match method {
        "index" => {
            let (item,): (&Value,) = from_args(args)?;
            let found = value.try_iter()?.position(|candidate| candidate == *item);
            let missing = || Error::new(ErrorKind::InvalidOperation, "value is not in list");
            Ok(Some(Value::from(found.ok_or_else(missing)?)))
        }
        "copy" => Ok(Some(value.clone())),
        _ => Ok(None),
    }
}

/// A named argument that may also be given by position.
fn argument(
    positional: &[Value],
    index: usize,
    kwargs: &Kwargs,
    name: &str,
) -> Result<Option<Value>, Error> {
    let value = match positional.get(index) {
        Some(value) => Some(value.clone()),
        None => kwargs.get::<Option<Value>>(name)?,
    };
    Ok(value.filter(|value| !value.is_none()))
}

fn nonempty(separator: &str) -> Result<&str, Error> {
    if separator.is_empty() {
        return Err(Error::new(ErrorKind::InvalidOperation, "empty separator"));
    }
    Ok(separator)
}

fn partition(found: Option<(&str, &str)>, separator: &str, missing: [&str; 3]) -> Value {
    let parts = found.map_or(missing, |(before, after)| [before, separator, after]);
    Value::from(Tuple::from(parts.map(Value::from)))
}

/// Python's `split` and `rsplit`: without a separator at runs of blanks, none of them kept.
fn split(text: &str, from_right: bool, args: &[Value]) -> Result<Value, Error> {
    let (positional, kwargs): (Rest<Value>, Kwargs) = from_args(args)?;
    let separator = argument(&positional, 0, &kwargs, "sep")?;
    let max = argument(&positional, 1, &kwargs, "maxsplit")?;
    kwargs.assert_all_used()?;
    let max = match max {
        Some(max) => usize::try_from(i64::try_from(max)?).unwrap_or(usize::MAX),
        None => usize::MAX,
    };
    let max_parts = max.saturating_add(1);
    let Some(separator) = separator else {
        return Ok(split_blanks(text, from_right, max));
    };
    let separator = separator
        .as_str()
        .ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "the separator must be a string"))?;
    let separator = nonempty(separator)?;
    if from_right {
        let mut parts: Vec<&str> = text.rsplitn(max_parts, separator).collect();
        parts.reverse();
        Ok(parts.into_iter().map(Value::from).collect())
    } else {
        Ok(text.splitn(max_parts, separator).map(Value::from).collect())
    }
}

/// The last part keeps the blanks on its far side, which only `max` leaves there.
fn split_blanks(text: &str, from_right: bool, max: usize) -> Value {
    let mut parts = Vec::new();
    let mut rest = if from_right { text.trim_end() } else { text.trim_start() };
    while !rest.is_empty() && parts.len() < max {
        let (word, after) = if from_right {
            let (after, word) = rest.rsplit_once(char::is_whitespace).unwrap_or(("", rest));
            (word, after.trim_end())
        } else {
            let (word, after) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
            (word, after.trim_start())
        };
        parts.push(word);
        rest = after;
    }
    if !rest.is_empty() {
        parts.push(rest);
    }
    if from_right {
        parts.reverse();
    }
    parts.into_iter().map(Value::from).collect()
}

fn split_lines(text: &str, keep_ends: bool) -> Value {
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(end) = rest.find(['\n', '\r']) {
        let width = if rest[end..].starts_with("\r\n") { 2 } else { 1 };
        lines.push(Value::from(&rest[..if keep_ends { end + width } else { end }]));
        rest = &rest[end + width..];
    }
    if !rest.is_empty() {
        lines.push(Value::from(rest));
    }
    Value::from(lines)
}

fn swap_case(c: char) -> String {
    if c.is_lowercase() { c.to_uppercase().collect() } else { c.to_lowercase().collect() }
}

/// The widest field that a template may pad to.
const MAX_WIDTH: usize = 10_000;

fn pad(text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let (width, fill): (usize, Option<&str>) = from_args(args)?;
    let fill = fill.unwrap_or(if method == "zfill" { "0" } else { " " });
    if width > MAX_WIDTH {
        return Err(Error::new(ErrorKind::InvalidOperation, "the width is too large"));
    }
    let missing = width.saturating_sub(text.chars().count());
    Ok(Value::from(match method {
        "ljust" => format!("{text}{}", fill.repeat(missing)),
        "rjust" => format!("{}{text}", fill.repeat(missing)),
        "center" => {
            // Python puts the odd blank to the left where the width is odd.
            let left = missing / 2 + (missing & width & 1);
            format!("{}{text}{}", fill.repeat(left), fill.repeat(missing - left))
        }
        _ => {
            let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
            let sign = &text[..text.len() - digits.len()];
            format!("{sign}{}{digits}", fill.repeat(missing))
        }
    }))
}
