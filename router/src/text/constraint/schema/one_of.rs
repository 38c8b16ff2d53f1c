//! Alternatives of which a document satisfies one at most.

use serde_json::Value;

use super::{Keywords, target};

/// References that are followed one after the other at most.
const MAX_REFERENCES: usize = 16;

/// Whether the alternatives of a schema's `oneOf` are objects that one property tells apart: all
/// require it, and no two allow it the same text. Then `anyOf` says the same.
pub(super) fn are_told_apart(root: &Value, keywords: &Keywords) -> bool {
    let Some(Value::Array(options)) = keywords.get("oneOf") else { return false };
    if keywords.contains_key("anyOf") {
        return false;
    }
    let options: Option<Vec<&Value>> = options.iter().map(|option| resolve(root, option)).collect();
    let Some(options) = options.filter(|options| !options.is_empty()) else { return false };
    let names = options[0]["required"].as_array().map_or(&[][..], Vec::as_slice);
    names.iter().filter_map(Value::as_str).any(|name| {
        let texts: Option<Vec<_>> =
            options.iter().map(|option| texts(root, option, name)).collect();
        let mut texts: Vec<&str> = texts.unwrap_or_default().into_iter().flatten().collect();
        let num_texts = texts.len();
        texts.sort_unstable();
        texts.dedup();
        num_texts > 0 && texts.len() == num_texts
    })
}

/// A schema, or what its reference leads to.
fn resolve<'a>(root: &'a Value, mut schema: &'a Value) -> Option<&'a Value> {
    for _ in 0..MAX_REFERENCES {
        match schema.get("$ref") {
            None => return Some(schema),
            Some(reference) => schema = root.pointer(target(root, reference.as_str()?)?)?,
        }
    }
    None
}

/// The texts that an object's property may be, if it is required and they are known.
fn texts<'a>(root: &'a Value, object: &'a Value, name: &str) -> Option<Vec<&'a str>> {
    let is_object = object["type"] == "object";
    let is_required = object["required"].as_array()?.iter().any(|required| required == name);
    let property = resolve(root, object["properties"].get(name)?)?;
    let values = match (property.get("const"), property.get("enum")) {
        (Some(value), _) => std::slice::from_ref(value),
        (None, values) => values?.as_array()?.as_slice(),
    };
    let texts: Option<Vec<&str>> = values.iter().map(Value::as_str).collect();
    texts.filter(|_| is_object && is_required)
}
