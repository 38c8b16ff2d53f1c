//! Keywords that nobody here enforces.

use std::collections::HashSet;

use serde_json::Value;

use super::Keywords;

/// They bind a document in some draft of JSON Schema, and are refused in all: what is ignored
/// would look as if it were followed.
const KEYWORDS: [&str; 19] = [
    "$dynamicRef",
    "$recursiveRef",
    "contains",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "disallow",
    "divisibleBy",
    "else",
    "extends",
    "if",
    "maxContains",
    "minContains",
    "not",
    "propertyNames",
    "then",
    "unevaluatedItems",
    "unevaluatedProperties",
    "uniqueItems",
];

/// Refuses the keywords of a schema that are not followed.
pub(super) fn check(keywords: &Keywords, is_root: bool) -> Result<(), String> {
    let is_refused = |key: &&str| match keywords.get(*key) {
        None => false,
        Some(value) => *key != "uniqueItems" || *value != false,
    };
    if let Some(key) = KEYWORDS.iter().find(|key| is_refused(key)) {
        return Err(format!("{key} is not supported"));
    }
    // References within would be relative to it.
    if !is_root && keywords.contains_key("$id") {
        return Err("$id is supported for the whole schema only".into());
    }
    check_patterns(keywords)?;
    check_min_properties(keywords)
}

/// llguidance's regular expressions have a group of a meaning of its own: what follows the text.
fn check_patterns(keywords: &Keywords) -> Result<(), String> {
    let pattern = keywords.get("pattern").and_then(Value::as_str);
    let names = keywords.get("patternProperties").and_then(Value::as_object);
    let mut patterns =
        pattern.into_iter().chain(names.into_iter().flatten().map(|(name, _)| &**name));
    match patterns.find(|pattern| pattern.contains("<stop>")) {
        Some(pattern) => Err(format!("a group called stop ({pattern}) is not supported")),
        None => Ok(()),
    }
}

/// Of the names that a schema does not give, one may be written twice, and count twice.
fn check_min_properties(keywords: &Keywords) -> Result<(), String> {
    let Some(min) = keywords.get("minProperties").and_then(Value::as_u64) else {
        return Ok(());
    };
    let required = keywords.get("required").and_then(Value::as_array);
    let required: HashSet<&str> =
        required.into_iter().flatten().filter_map(Value::as_str).collect();
    let most = required.len() as u64 + 1;
    if min > most {
        return Err(format!("minProperties ({min}) must be at most {most}, required and one more"));
    }
    Ok(())
}
