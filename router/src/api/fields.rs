//! Reading the fields of a JSON body one by one, with the range of each.
//!
//! A field is looked up by name, its value moved out; `null` counts as absent. An error names the
//! field, the rule and a short form of the value. Unknown fields are left alone, as clients of
//! every server send some; an answer names them ([`super::ignored`]).

use std::fmt::Display;
use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::error::ApiError;

/// Characters of a client's value that an error repeats at most.
const MAX_SHOWN: usize = 40;

/// The fields of an object that have not been read yet.
pub(crate) struct Fields {
    unread: Map<String, Value>,
    /// What stands before their names, where they are inside of a field.
    prefix: &'static str,
    /// Objects inside of them that have been read as far as they will be.
    inner: Vec<Fields>,
}

#[cfg(test)]
thread_local! {
    /// Every field that was looked up on this thread.
    pub(crate) static ASKED: std::cell::RefCell<std::collections::BTreeSet<String>> =
        const { std::cell::RefCell::new(std::collections::BTreeSet::new()) };
}

impl From<Map<String, Value>> for Fields {
    fn from(fields: Map<String, Value>) -> Fields {
        Fields::inside("", fields)
    }
}

impl Fields {
    /// Parses a body. The depth is bounded by serde_json, at 128 levels.
    pub(crate) fn parse(body: &[u8]) -> Result<Fields, ApiError> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(fields)) => Ok(fields.into()),
            Ok(other) => Err(ApiError::Invalid {
                param: String::new(),
                message: format!("the request body must be a JSON object, not {}", shown(&other)),
            }),
            Err(error) => Err(ApiError::Json(error.to_string())),
        }
    }

    /// The fields inside of another one, which `prefix` names.
    pub(crate) fn inside(prefix: &'static str, fields: Map<String, Value>) -> Fields {
        Fields { unread: fields, prefix, inner: Vec::new() }
    }

    /// Keeps an object from inside of these fields, for what was not read of it.
    pub(crate) fn keep(&mut self, inner: Fields) {
        self.inner.push(inner);
    }

    /// The names of what nothing has asked for, in no particular order; `null` is nothing.
    pub(crate) fn ignored(&self) -> Box<dyn Iterator<Item = String> + '_> {
        let unread = self.unread.iter().filter(|(_, value)| !value.is_null());
        let unread = unread.map(|(name, _)| format!("{}{name}", self.prefix));
        Box::new(unread.chain(self.inner.iter().flat_map(Fields::ignored)))
    }

    /// Whether a field is given.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.unread.get(name).is_some_and(|value| !value.is_null())
    }

    pub(crate) fn value(&mut self, name: &str) -> Option<Value> {
        #[cfg(test)]
        ASKED.with_borrow_mut(|asked| asked.insert(format!("{}{name}", self.prefix)));
        // Order does not matter to a reader by name.
        self.unread.swap_remove(name).filter(|value| !value.is_null())
    }

    pub(crate) fn bool(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(other) => Err(must_be(name, "true or false", &other)),
        }
    }

    pub(crate) fn flag(&mut self, name: &str, default: bool) -> Result<bool, ApiError> {
        Ok(self.bool(name)?.unwrap_or(default))
    }

    pub(crate) fn string(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::String(value)) => Ok(Some(value)),
            Some(other) => Err(must_be(name, "a string", &other)),
        }
    }

    /// An integer within `range`; `16.0` is one too.
    pub(crate) fn integer(
        &mut self,
        name: &str,
        range: RangeInclusive<i64>,
    ) -> Result<Option<i64>, ApiError> {
        let Some(value) = self.value(name) else { return Ok(None) };
        let number = integer(&value).filter(|number| range.contains(number));
        let number = number.ok_or_else(|| out_of(name, "an integer", &range, &value))?;
        Ok(Some(number))
    }

    /// A finite number within `range`.
    pub(crate) fn number(
        &mut self,
        name: &str,
        range: RangeInclusive<f64>,
    ) -> Result<Option<f64>, ApiError> {
        let Some(value) = self.value(name) else { return Ok(None) };
        let number = value.as_f64().filter(|number| range.contains(number));
        let number = number.ok_or_else(|| out_of(name, "a number", &range, &value))?;
        Ok(Some(number))
    }

    /// A number above 0 and at most `max`, which stays above 0 as an f32.
    pub(crate) fn positive(&mut self, name: &str, max: f64) -> Result<Option<f64>, ApiError> {
        let Some(value) = self.value(name) else { return Ok(None) };
        let number = value.as_f64().filter(|number| *number > 0.0 && *number <= max);
        let number = number
            .ok_or_else(|| must_be(name, &format!("a number above 0 and at most {max}"), &value))?;
        Ok(Some(number.max(f64::from(f32::MIN_POSITIVE))))
    }

    /// An object's fields, as readable as the body's own.
    pub(crate) fn object(&mut self, name: &str) -> Result<Option<Map<String, Value>>, ApiError> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::Object(fields)) => Ok(Some(fields)),
            Some(other) => Err(must_be(name, "an object", &other)),
        }
    }

    /// Token ids below `vocab_size`, at most `max` of them.
    pub(crate) fn token_ids(
        &mut self,
        name: &str,
        max: usize,
        vocab_size: u32,
    ) -> Result<Vec<u32>, ApiError> {
        match self.value(name) {
            None => Ok(Vec::new()),
            Some(Value::Array(ids)) if ids.len() > max => {
                let rule = format!("must hold at most {max} token ids, not {}", ids.len());
                Err(ApiError::field(name, rule))
            }
            Some(Value::Array(ids)) => token_ids(name, &ids, vocab_size),
            Some(other) => Err(must_be(name, "a list of token ids", &other)),
        }
    }
}

/// Token ids of one list, each below `vocab_size`.
pub(crate) fn token_ids(name: &str, ids: &[Value], vocab_size: u32) -> Result<Vec<u32>, ApiError> {
    let last = i64::from(vocab_size) - 1;
    let id = |(i, value)| match integer(value) {
        Some(id) if (0..=last).contains(&id) => Ok(id as u32),
        _ => Err(out_of(&format!("{name}[{i}]"), "a token id", &(0..=last), value)),
    };
    ids.iter().enumerate().map(id).collect()
}

fn integer(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| {
        let number = value.as_f64()?;
        let whole = number.fract() == 0.0 && number.abs() < (1_i64 << 53) as f64;
        whole.then_some(number as i64)
    })
}

/// "`name` must be `what`, not `value`".
pub(crate) fn must_be(name: &str, what: &str, value: &Value) -> ApiError {
    ApiError::field(name, format!("must be {what}, not {}", shown(value)))
}

fn out_of<T: Display>(
    name: &str,
    what: &str,
    range: &RangeInclusive<T>,
    value: &Value,
) -> ApiError {
    let (low, high) = (range.start(), range.end());
    must_be(name, &format!("{what} from {low} to {high}"), value)
}

/// A value, short enough for a message.
pub(crate) fn shown(value: &Value) -> String {
    match value {
        Value::Array(values) => format!("a list of {}", values.len()),
        Value::Object(_) => "an object".into(),
        Value::String(text) => quoted(text),
        other => other.to_string(),
    }
}

/// A string in quotes, without control characters, cut short.
pub(crate) fn quoted(text: &str) -> String {
    let mut kept: String =
        text.chars().take(MAX_SHOWN).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if kept.len() < text.len() {
        kept.push_str("...");
    }
    format!("\"{kept}\"")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_message_repeats_little_of_what_was_sent() {
        let cases = [
            (json!("x".repeat(10_000)), format!("\"{}...\"", "x".repeat(MAX_SHOWN))),
            (json!("a\u{1b}[31m\nb"), "\"a [31m b\"".into()),
            (json!([1, 2]), "a list of 2".into()),
            (json!({"a": 1}), "an object".into()),
            (json!(1.5), "1.5".into()),
        ];
        for (value, expected) in cases {
            assert_eq!(shown(&value), expected);
        }
    }

    #[test]
    fn a_positive_number_is_above_zero_in_either_precision() {
        let read = |value: Value| {
            let mut fields = Fields::from(Map::from_iter([("x".to_owned(), value)]));
            fields.positive("x", 2.0)
        };
        assert_eq!(read(json!(null)), Ok(None));
        assert_eq!(read(json!(2)), Ok(Some(2.0)));
        assert!(read(json!(1e-300)).unwrap().is_some_and(|number| number as f32 > 0.0));
        for value in [json!(0), json!(-0.0), json!(-1), json!(2.1), json!("1"), json!([1])] {
            let message = read(value.clone()).unwrap_err().to_string();
            let expected =
                format!("x must be a number above 0 and at most 2, not {}", shown(&value));
            assert_eq!(message, expected);
        }
    }

    #[test]
    fn integers_are_whole_and_within_the_range() {
        let read = |value: Value| {
            let mut fields = Fields::from(Map::from_iter([("x".to_owned(), value)]));
            fields.integer("x", 0..=10)
        };
        assert_eq!(read(json!(null)), Ok(None));
        assert_eq!(read(json!(10)), Ok(Some(10)));
        assert_eq!(read(json!(4.0)), Ok(Some(4)));
        for value in [json!(-1), json!(11), json!(4.5), json!(1e300), json!(u64::MAX), json!("4")] {
            let message = read(value.clone()).unwrap_err().to_string();
            let expected = format!("x must be an integer from 0 to 10, not {}", shown(&value));
            assert_eq!(message, expected);
        }
    }
}
