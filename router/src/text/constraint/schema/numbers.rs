//! Numbers that llguidance reads as they are written: it keeps them in 64 bits of floating point,
//! and integers in 64 bits.

use serde_json::{Number, Value};

use super::Keywords;

/// Integers up to here are floats of 64 bits, each of them.
const MAX_EXACT: u64 = 1 << 53;

/// The largest float that is an integer of 64 bits.
const MAX_FLOAT_BELOW_64_BITS: i64 = i64::MAX - 1023;

/// Refuses a number that would be another.
pub(super) fn check(keywords: &Keywords) -> Result<(), String> {
    for key in ["const", "enum"] {
        if let Some(number) = keywords.get(key).and_then(rounded) {
            return Err(too_large(key, number));
        }
    }
    for key in ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"] {
        match keywords.get(key) {
            Some(Value::Number(number)) if !is_exact(number) && limit(keywords, key).is_none() => {
                return Err(too_large(key, number));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Moves the bounds of 64 bits, which programs write for an integer of theirs, to the next ones
/// that are exact.
pub(super) fn limit_integers(keywords: &mut Keywords) {
    for key in ["minimum", "maximum"] {
        if let Some(limit) = limit(keywords, key) {
            keywords.insert(key.into(), limit.into());
        }
    }
}

/// What stands for a bound that no integer of 64 bits passes.
fn limit(keywords: &Keywords, key: &str) -> Option<i64> {
    let is_integer = keywords.get("type")? == "integer";
    let bound = keywords.get(key)?;
    let is_limit = match key {
        "minimum" => bound.as_i64() == Some(i64::MIN),
        "maximum" => bound.as_u64().is_some_and(|bound| bound >= i64::MAX as u64),
        _ => false,
    };
    let limit = if key == "minimum" { -MAX_FLOAT_BELOW_64_BITS } else { MAX_FLOAT_BELOW_64_BITS };
    (is_integer && is_limit).then_some(limit)
}

fn too_large(key: &str, number: &Number) -> String {
    format!("{key} ({number}) must not be beyond 2^53")
}

/// The first number within a value that would be rounded.
fn rounded(value: &Value) -> Option<&Number> {
    match value {
        Value::Number(number) => Some(number).filter(|number| !is_exact(number)),
        Value::Array(items) => items.iter().find_map(rounded),
        Value::Object(named) => named.values().find_map(rounded),
        _ => None,
    }
}

fn is_exact(number: &Number) -> bool {
    let size = number.as_i64().map(i64::unsigned_abs).or(number.as_u64());
    size.map_or_else(
        || number.as_f64().is_some_and(|number| number.abs() <= MAX_EXACT as f64),
        |size| size <= MAX_EXACT,
    )
}
