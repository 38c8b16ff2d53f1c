//! Python's methods on strings, mappings and lists.
//!
//! minijinja-contrib has most of them; what templates use besides stands here.

use minijinja::value::{Kwargs, Rest, Tuple, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;

use super::strings::{self, Ends};

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
            let lines = strings::split_lines(text, keep_ends.is_some_and(|value| value.is_true()));
            lines.into_iter().map(Value::from).collect()
        }
        "strip" => strip(text, Ends::Both, args)?,
        "lstrip" => strip(text, Ends::Left, args)?,
        "rstrip" => strip(text, Ends::Right, args)?,
        "startswith" => has_affix(text, |text, affix| text.starts_with(affix), args)?,
        "endswith" => has_affix(text, |text, affix| text.ends_with(affix), args)?,
        "find" | "rfind" | "index" | "rindex" => find(text, method, args)?,
        "count" => {
            let (part, start, end): (&str, Option<i64>, Option<i64>) = from_args(args)?;
            let found = strings::window(text, start, end);
            Value::from(found.map_or(0, |(text, _)| text.matches(part).count()))
        }
        "title" => Value::from(strings::title(text)),
        "swapcase" => Value::from(strings::swap_case(text)),
        "casefold" => Value::from(text.to_lowercase()),
        "isspace" => Value::from(!text.is_empty() && text.chars().all(strings::is_space)),
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
        let parts = strings::split_blanks(text, from_right, max);
        return Ok(parts.into_iter().map(Value::from).collect());
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

fn strip(text: &str, ends: Ends, args: &[Value]) -> Result<Value, Error> {
    let (chars,): (Option<&str>,) = from_args(args)?;
    Ok(Value::from(strings::strip(text, chars, ends)))
}

/// `startswith` and `endswith`: one string or any of several, in a part of the text.
fn has_affix(text: &str, has: fn(&str, &str) -> bool, args: &[Value]) -> Result<Value, Error> {
    let (affix, start, end): (&Value, Option<i64>, Option<i64>) = from_args(args)?;
    let Some((text, _)) = strings::window(text, start, end) else { return Ok(Value::from(false)) };
    if let Some(affix) = affix.as_str() {
        return Ok(Value::from(has(text, affix)));
    }
    let not_text = || {
        let detail = format!("expected a string or a tuple of strings, not {}", affix.kind());
        Error::new(ErrorKind::InvalidOperation, detail)
    };
    if !matches!(affix.kind(), ValueKind::Seq | ValueKind::Iterable) {
        return Err(not_text());
    }
    for affix in affix.try_iter()? {
        if has(text, affix.as_str().ok_or_else(not_text)?) {
            return Ok(Value::from(true));
        }
    }
    Ok(Value::from(false))
}

/// Where a part stands, in characters; the methods named `find` say -1 where it does not.
fn find(text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let (part, start, end): (&str, Option<i64>, Option<i64>) = from_args(args)?;
    let found = strings::window(text, start, end).and_then(|(text, before)| {
        let at = if method.starts_with('r') { text.rfind(part) } else { text.find(part) };
        at.map(|at| before + text[..at].chars().count())
    });
    match found {
        Some(at) => Ok(Value::from(at)),
        None if method.ends_with("find") => Ok(Value::from(-1)),
        None => Err(Error::new(ErrorKind::InvalidOperation, "substring not found")),
    }
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
