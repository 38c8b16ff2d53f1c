//! The functions, filters and tests that templates expect from Transformers and Jinja2.

use std::borrow::Cow;
use std::time::SystemTime;

use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Value};

use super::strings::{self, Ends};
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
    environment.add_function("cycler", minijinja_contrib::globals::cycler);
    environment.add_function("joiner", minijinja_contrib::globals::joiner);
    environment.add_filter("tojson", tojson);
    environment.add_filter("length", length);
    environment.add_filter("count", length);
    environment.add_filter("default", default);
    environment.add_filter("d", default);
    environment.add_filter("int", int);
    environment.add_filter("float", float);
    environment.add_filter("string", |value: &Value| text_of(value).into_owned());
    environment.add_filter("trim", trim);
    environment.add_filter("replace", replace);
    environment.add_filter("indent", indent);
    environment.add_filter("items", items);
    environment.add_filter("dictsort", dictsort);
    environment.add_filter("first", first);
    environment.add_filter("last", last);
    environment.add_test("sequence", is_sequence);
    environment.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
    environment.add_test("callable", |value: &Value| value.kind() == ValueKind::Plain);
    environment.set_formatter(|out, _, value| {
        out.write_str(&text_of(value))
            .map_err(|_| Error::new(ErrorKind::WriteFailure, "the output is closed"))
    });
}

/// `str(value)`.
fn text_of(value: &Value) -> Cow<'_, str> {
    match value.as_str() {
        Some(text) => Cow::Borrowed(text),
        None if is_float(value) => {
            Cow::Owned(json::float(f64::try_from(value.clone()).unwrap_or(f64::NAN)))
        }
        // The rest prints as in Python already.
        None => Cow::Owned(value.to_string()),
    }
}

fn raise_exception(message: &Value) -> Result<Value, Error> {
    let message = message.to_string();
    Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
}

fn tojson(value: &Value, args: Rest<Value>, kwargs: Kwargs) -> Result<String, Error> {
    let names = ["ensure_ascii", "indent", "separators", "sort_keys"];
    let given = arguments(args, kwargs, names)?;
    let [ensure_ascii, indent, separators, sort_keys] =
        given.map(|value| value.filter(|value| !value.is_none() && !value.is_undefined()));
    let style = json::Style::new(
        ensure_ascii.is_some_and(|value| value.is_true()),
        indent.as_ref(),
        separators.as_ref(),
        sort_keys.is_some_and(|value| value.is_true()),
    )?;
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

/// `value`, or another one where it is undefined; with `boolean` where it is not true.
fn default(value: &Value, args: Rest<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let [other, boolean] = arguments(args, kwargs, ["default_value", "boolean"])?;
    let missing =
        value.is_undefined() || (boolean.is_some_and(|b| b.is_true()) && !value.is_true());
    let other = || other.unwrap_or_else(|| Value::from(""));
    Ok(if missing { other() } else { value.clone() })
}

/// Arguments that may be given by position or by name. An explicit `none` counts as given.
#[expect(clippy::needless_pass_by_value, reason = "minijinja hands arguments over by value")]
fn arguments<const N: usize>(
    args: Rest<Value>,
    kwargs: Kwargs,
    names: [&str; N],
) -> Result<[Option<Value>; N], Error> {
    if args.len() > N {
        return Err(Error::from(ErrorKind::TooManyArguments));
    }
    let mut given = [const { None }; N];
    for (index, name) in names.into_iter().enumerate() {
        given[index] = match args.get(index) {
            Some(value) => Some(value.clone()),
            None if kwargs.has(name) => Some(kwargs.get(name)?),
            None => None,
        };
    }
    kwargs.assert_all_used()?;
    Ok(given)
}

fn trim(value: &Value, chars: Option<&str>) -> String {
    strings::strip(&text_of(value), chars, Ends::Both).to_owned()
}

fn replace(value: &Value, args: Rest<Value>, kwargs: Kwargs) -> Result<String, Error> {
    let [old, new, count] = arguments(args, kwargs, ["old", "new", "count"])?;
    let (Some(old), Some(new)) = (old, new) else {
        return Err(Error::from(ErrorKind::MissingArgument));
    };
    let (text, old, new) = (text_of(value), text_of(&old), text_of(&new));
    // A negative count, as none, is all of them.
    let count = count.filter(|count| !count.is_none()).map(i64::try_from).transpose()?;
    let count = count.and_then(|count| usize::try_from(count).ok());
    Ok(text.replacen(&*old, &new, count.unwrap_or(usize::MAX)))
}

/// The widest indentation: a template's typo must not fill the memory with blanks.
const MAX_INDENT: i64 = 10_000;

/// Indents every line but the first, and but the empty ones.
fn indent(value: &Value, args: Rest<Value>, kwargs: Kwargs) -> Result<String, Error> {
    let [width, first, blank] = arguments(args, kwargs, ["width", "first", "blank"])?;
    let [first, blank] = [first, blank].map(|value| value.is_some_and(|value| value.is_true()));
    let width = match &width {
        None => "    ".to_owned(),
        Some(width) => match width.as_str() {
            Some(text) => text.to_owned(),
            None => " ".repeat(i64::try_from(width.clone())?.clamp(0, MAX_INDENT) as usize),
        },
    };
    // As in Jinja2: with a line end more, the last line counts even where it is empty.
    let text = format!("{}\n", text_of(value));
    let mut out = String::new();
    for (index, line) in strings::split_lines(&text, false).into_iter().enumerate() {
        if index > 0 {
            out.push('\n');
        }
        let is_indented = if index == 0 { first } else { blank || !line.is_empty() };
        if is_indented {
            out.push_str(&width);
        }
        out.push_str(line);
    }
    Ok(out)
}

fn items(value: &Value) -> Result<Value, Error> {
    if value.is_undefined() {
        return Ok(Value::from(Vec::<Value>::new()));
    }
    minijinja::filters::items(value)
}

fn dictsort(value: &Value, args: Rest<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let names = ["case_sensitive", "by", "reverse"];
    let given = arguments(args, kwargs, names)?;
    let named = names.into_iter().zip(given);
    let named = named.filter_map(|(name, value)| Some((name, value?)));
    minijinja::filters::dictsort(value, named.collect())
}

fn first(value: &Value) -> Result<Value, Error> {
    if value.is_undefined() { Ok(Value::UNDEFINED) } else { minijinja::filters::first(value) }
}

fn last(value: Value) -> Result<Value, Error> {
    if value.is_undefined() { Ok(Value::UNDEFINED) } else { minijinja::filters::last(value) }
}

/// Jinja2's `int`: what cannot be converted is the default, not an error.
fn int(value: &Value, args: Rest<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let [default, base] = arguments(args, kwargs, ["default", "base"])?;
    let base = base.map_or(Ok(10), u32::try_from)?;
    let number = match value.kind() {
        ValueKind::Bool => Some(i64::from(value.is_true())),
        ValueKind::Number => match f64::try_from(value.clone()) {
            // An `as` cast cuts towards zero, as Python does.
            Ok(number) if is_float(value) => Some(number as i64),
            _ => return Ok(value.clone()),
        },
        ValueKind::String => value.as_str().and_then(|text| {
            let text = text.trim();
            let float = || text.parse::<f64>().ok().map(|number| number as i64);
            parse_int(text, base).or_else(float)
        }),
        _ => None,
    };
    Ok(number.map_or_else(|| default.unwrap_or_else(|| Value::from(0)), Value::from))
}

/// Python's `int(text, base)`, for the bases that have a prefix.
fn parse_int(text: &str, base: u32) -> Option<i64> {
    let prefixes = match base {
        2 => ["0b", "0B"],
        8 => ["0o", "0O"],
        16 => ["0x", "0X"],
        10 => [""; 2],
        _ => return None,
    };
    let digits = prefixes.iter().find_map(|prefix| text.strip_prefix(prefix)).unwrap_or(text);
    i64::from_str_radix(&digits.replace('_', ""), base).ok()
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
