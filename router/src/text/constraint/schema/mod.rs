//! What a JSON schema asks for, in words that llguidance follows to the letter.
//!
//! A document must satisfy its schema for whoever validates it (JSON Schema 2020-12, `format`
//! included). What llguidance would accept and read otherwise is put into other words here, or
//! refused by its name and place:
//!
//! | in the schema | llguidance alone | here |
//! |---|---|---|
//! | `uniqueItems`, `not`, ... (`refused.rs`) | refused, but for those that the `$schema` does not know | refused |
//! | `uniqueItems: false` | refused | left out |
//! | `oneOf` of alternatives behind `$ref` | refused | followed where a constant tells them apart |
//! | `format` of dates, times, hosts, mail | February 29 in any year, `10:00:60`, hosts of any length | a pattern besides (`formats.rs`) |
//! | names that are not in `properties` | may spell one that is: `\u0061` for `a` | no `\u` in any string |
//! | `minProperties` over names that are free | met by one name given twice | refused from two such names on |
//! | `const`, `enum` and bounds beyond 2^53 | rounded | refused; bounds of 64 bits are followed |
//! | keywords on both sides of `anyOf` and the like | read as separate schemas | put side by side |
//! | `x-guidance` | its options, lenient ones included | how white space is written, nothing else |
//!
//! Properties are written in the order of the schema: llguidance knows no other.

mod formats;
mod numbers;
mod one_of;
mod refused;
#[cfg(test)]
mod tests;

use std::collections::HashSet;

use serde_json::{Map, Value, json};

/// What white space may stand between the parts of a JSON document: a space, or new lines with an
/// indentation. Without a bound, a model that has begun to indent may never stop.
const WHITE_SPACE: &str = r"( |\n{1,2}[ \t]{0,20})";

/// Where a schema says how its documents are written: llguidance's own key.
const WRITING: &str = "x-guidance";

/// What it may say there: anything else would change which documents satisfy the schema.
const WRITINGS: [&str; 4] =
    ["item_separator", "key_separator", "whitespace_flexible", "whitespace_pattern"];

/// The letters behind a backslash. Without `u`, a character is written in one way only, so a
/// property's name is known by its bytes.
pub(in crate::text) const ESCAPES: &str = "nrbtf\\\"";

/// Keywords that look into the same value as the schema in which they stand.
const IN_PLACE: [&str; 6] = ["$ref", "allOf", "anyOf", "const", "enum", "oneOf"];

/// Keywords whose value is a schema, or for `items` a list of them.
const SCHEMAS: [&str; 3] = ["additionalItems", "additionalProperties", "items"];

/// Keywords whose value holds schemas: a list of them, or one by each name.
const COLLECTIONS: [&str; 8] = [
    "$defs",
    "allOf",
    "anyOf",
    "definitions",
    "oneOf",
    "patternProperties",
    "prefixItems",
    "properties",
];

type Keywords = Map<String, Value>;

/// The schema for the worker, or why it cannot be followed.
pub(super) fn followed(schema: &Value) -> Result<Value, String> {
    let mut root = match schema {
        Value::Bool(true) => json!({}),
        schema => schema.clone(),
    };
    // Places by their JSON pointers. What a reference leads to may lie where no keyword does.
    let mut waiting = vec![String::new()];
    let mut seen: HashSet<String> = waiting.iter().cloned().collect();
    while let Some(place) = waiting.pop() {
        let found =
            follow(&mut root, &place).map_err(|reason| format!("{reason} (at #{place})"))?;
        waiting.extend(found.into_iter().filter(|place| seen.insert(place.clone())));
    }
    if let Value::Object(keywords) = &mut root {
        write(keywords)?;
    }
    Ok(root)
}

/// Puts the schema at `place` into other words; gives the places of the schemas that it uses.
fn follow(root: &mut Value, place: &str) -> Result<Vec<String>, String> {
    let Some(Value::Object(keywords)) = root.pointer(place) else { return Ok(Vec::new()) };
    refused::check(keywords, place.is_empty())?;
    numbers::check(keywords)?;
    let are_told_apart = one_of::are_told_apart(root, keywords);
    let reference = reference(root, keywords)?;
    let Some(Value::Object(keywords)) = root.pointer_mut(place) else { return Ok(Vec::new()) };
    keywords.shift_remove("uniqueItems");
    if are_told_apart && let Some(options) = keywords.shift_remove("oneOf") {
        keywords.insert("anyOf".into(), options);
    }
    formats::narrow(keywords);
    numbers::limit_integers(keywords);
    let (in_place, others): (Keywords, Keywords) =
        std::mem::take(keywords).into_iter().partition(|(key, _)| IN_PLACE.contains(&key.as_str()));
    keywords.extend(others.into_iter().chain(in_place));
    Ok(inner(keywords, place).into_iter().chain(reference).collect())
}

/// The places of the schemas within the one at `place`.
fn inner(keywords: &Keywords, place: &str) -> Vec<String> {
    let mut places = Vec::new();
    for (key, value) in keywords {
        let is_collection = COLLECTIONS.contains(&key.as_str());
        match value {
            Value::Array(items) if is_collection || key == "items" => {
                places.extend((0..items.len()).map(|index| format!("{place}/{key}/{index}")));
            }
            Value::Object(named) if is_collection => {
                let escaped = named.keys().map(|name| name.replace('~', "~0").replace('/', "~1"));
                places.extend(escaped.map(|name| format!("{place}/{key}/{name}")));
            }
            _ if SCHEMAS.contains(&key.as_str()) => places.push(format!("{place}/{key}")),
            _ => {}
        }
    }
    places
}

/// Where a schema's `$ref` leads.
fn reference(root: &Value, keywords: &Keywords) -> Result<Option<String>, String> {
    let Some(reference) = keywords.get("$ref") else { return Ok(None) };
    let place = reference.as_str().and_then(|reference| target(root, reference));
    match place {
        Some(place) => Ok(Some(place.to_owned())),
        None => Err(format!("$ref ({reference}) must name a place in the same schema")),
    }
}

/// The place that a reference names, as llguidance finds it: it knows no escapes.
fn target<'a>(root: &Value, reference: &'a str) -> Option<&'a str> {
    let place = reference.strip_prefix('#')?;
    let is_plain = !place.contains(['~', '%']) && place != "/";
    (is_plain && root.pointer(place).is_some()).then_some(place)
}

/// Says how documents are written, where the schema does not.
fn write(keywords: &mut Keywords) -> Result<(), String> {
    let mut writing = match keywords.shift_remove(WRITING) {
        None => json!({"whitespace_pattern": WHITE_SPACE}),
        Some(writing) => writing,
    };
    let Value::Object(options) = &mut writing else {
        return Err(format!("{WRITING} ({writing}) must be an object"));
    };
    if let Some(key) = options.keys().find(|key| !WRITINGS.contains(&key.as_str())) {
        return Err(format!("{WRITING}.{key} is not supported"));
    }
    options.insert("json_allowed_escapes".into(), ESCAPES.into());
    keywords.insert(WRITING.into(), writing);
    Ok(())
}
