//! JSON as Python's `json.dumps` writes it: a model has seen that spelling in training.

use std::fmt::Write;

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};

use super::functions::is_float;

/// Deeper values than any request can carry are a template's own making.
const MAX_DEPTH: usize = 200;

/// The widest indentation: a template's typo must not fill the memory with blanks.
const MAX_INDENT: usize = 64;

/// The keyword arguments of `json.dumps`.
pub(super) struct Style {
    ensure_ascii: bool,
    /// What one level of depth is indented by; `None` for one line.
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    sort_keys: bool,
}

impl Default for Style {
    /// One line, with a blank behind each comma and colon.
    fn default() -> Self {
        Style {
            ensure_ascii: false,
            indent: None,
            item_separator: ", ".to_owned(),
            key_separator: ": ".to_owned(),
            sort_keys: false,
        }
    }
}

impl Style {
    /// `indent` is a number of spaces or a string, `separators` a pair of strings.
    pub(super) fn new(
        ensure_ascii: bool,
        indent: Option<&Value>,
        separators: Option<&Value>,
        sort_keys: bool,
    ) -> Result<Self, Error> {
        let invalid = |text: &'static str| Error::new(ErrorKind::InvalidOperation, text);
        let indent = match indent {
            None => None,
            Some(value) => Some(match value.as_str() {
                Some(text) => text.to_owned(),
                None => " ".repeat(usize::try_from(i64::try_from(value.clone())?).unwrap_or(0)),
            }),
        };
        if indent.as_ref().is_some_and(|indent| indent.len() > MAX_INDENT) {
            return Err(invalid("tojson: indent is too wide"));
        }
        let (item_separator, key_separator) = match separators {
            Some(pair) => {
                let pair: Vec<Value> = pair.try_iter()?.collect();
                match pair.as_slice() {
                    [item, key] => (item.to_string(), key.to_string()),
                    _ => return Err(invalid("tojson: separators must be a pair")),
                }
            }
            // Python leaves out the blank where the line ends anyway.
            None if indent.is_some() => (",".to_owned(), ": ".to_owned()),
            None => (", ".to_owned(), ": ".to_owned()),
        };
        Ok(Style { ensure_ascii, indent, item_separator, key_separator, sort_keys })
    }

    fn new_line(&self, depth: usize, out: &mut String) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(indent.as_str(), depth));
        }
    }
}

/// `value` as JSON.
pub(super) fn dumps(value: &Value, style: &Style) -> Result<String, Error> {
    let mut out = String::new();
    write_value(value, style, 0, &mut out)?;
    Ok(out)
}

fn write_value(value: &Value, style: &Style, depth: usize, out: &mut String) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(Error::new(ErrorKind::BadSerialization, "the value is nested too deeply"));
    }
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number if is_float(value) => {
            out.push_str(&json_float(f64::try_from(value.clone())?));
        }
        ValueKind::Number => out.push_str(&value.to_string()),
        ValueKind::String => write_string(&value.to_string(), style, out),
        ValueKind::Seq | ValueKind::Iterable => write_list(value, style, depth, out)?,
        ValueKind::Map => write_map(value, style, depth, out)?,
        kind => {
            let detail = format!("tojson: {kind} is not JSON serializable");
            return Err(Error::new(ErrorKind::BadSerialization, detail));
        }
    }
    Ok(())
}

fn write_list(value: &Value, style: &Style, depth: usize, out: &mut String) -> Result<(), Error> {
    let mut items = value.try_iter()?.peekable();
    if items.peek().is_none() {
        out.push_str("[]");
        return Ok(());
    }
    out.push('[');
    for (index, item) in items.enumerate() {
        if index > 0 {
            out.push_str(&style.item_separator);
        }
        style.new_line(depth + 1, out);
        write_value(&item, style, depth + 1, out)?;
    }
    style.new_line(depth, out);
    out.push(']');
    Ok(())
}

fn write_map(value: &Value, style: &Style, depth: usize, out: &mut String) -> Result<(), Error> {
    let mut pairs = Vec::new();
    for key in value.try_iter()? {
        let item = value.get_item(&key)?;
        let key = match key.kind() {
            ValueKind::String => key.to_string(),
            ValueKind::None | ValueKind::Bool | ValueKind::Number => dumps(&key, style)?,
            kind => {
                let detail = format!("tojson: keys must be strings, not {kind}");
                return Err(Error::new(ErrorKind::BadSerialization, detail));
            }
        };
        pairs.push((key, item));
    }
    if pairs.is_empty() {
        out.push_str("{}");
        return Ok(());
    }
    if style.sort_keys {
        pairs.sort_by(|(left, _), (right, _)| left.cmp(right));
    }
    out.push('{');
    for (index, (key, item)) in pairs.iter().enumerate() {
        if index > 0 {
            out.push_str(&style.item_separator);
        }
        style.new_line(depth + 1, out);
        write_string(key, style, out);
        out.push_str(&style.key_separator);
        write_value(item, style, depth + 1, out)?;
    }
    style.new_line(depth, out);
    out.push('}');
    Ok(())
}

fn write_string(text: &str, style: &Style, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if c < ' ' || (style.ensure_ascii && !(' '..='~').contains(&c)) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    // Writing to a string does not fail.
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

fn json_float(number: f64) -> String {
    if number.is_nan() {
        "NaN".to_owned()
    } else if number.is_infinite() {
        if number > 0.0 { "Infinity" } else { "-Infinity" }.to_owned()
    } else {
        float(number)
    }
}

/// Python's `repr` of a float: the shortest digits that read back, with an exponent below 1e-4
/// and from 1e16.
pub(super) fn float(number: f64) -> String {
    if number.is_nan() {
        return "nan".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if number == 0.0 || (-4..16).contains(&exponent) {
        let text = number.to_string();
        if text.contains('.') { text } else { text + ".0" }
    } else {
        let sign = if exponent < 0 { '-' } else { '+' };
        format!("{digits}e{sign}{:02}", exponent.abs())
    }
}
