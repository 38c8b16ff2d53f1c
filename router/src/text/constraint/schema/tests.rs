use serde_json::{Value, json};

use super::*;

/// The schema that goes to the worker, but for how it is written.
fn rewritten(schema: &Value) -> Value {
    let mut schema = followed(schema).unwrap();
    let writing = schema.as_object_mut().unwrap().shift_remove(WRITING).unwrap();
    assert_eq!(writing["json_allowed_escapes"], ESCAPES);
    schema
}

fn refusal(schema: &Value) -> String {
    followed(schema).expect_err("it is refused")
}

#[test]
fn most_schemas_stay_as_they_are() {
    for schema in [
        json!({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}),
        json!({"$defs": {"a": {"type": "string"}}, "items": {"$ref": "#/$defs/a"}}),
        json!({"type": "object", "properties": {"not": {"type": "null"}, "format": {}}}),
        json!({"const": {"not": 1, "uniqueItems": true, "format": "date"}}),
        json!({"default": {"uniqueItems": true}, "type": "object"}),
    ] {
        assert_eq!(rewritten(&schema), schema);
    }
    assert_eq!(rewritten(&json!(true)), json!({}));
    assert_eq!(followed(&json!("text")), Ok(json!("text")));
}

#[test]
fn a_refusal_names_the_keyword_and_its_place() {
    for (schema, reason) in [
        (
            json!({"properties": {"a/b": {"items": {"not": {}}}}}),
            "not is not supported (at #/properties/a~1b/items)",
        ),
        (
            json!({"anyOf": [{}, {"uniqueItems": true}]}),
            "uniqueItems is not supported (at #/anyOf/1)",
        ),
        (json!({"x": [{"contains": 1}], "$ref": "#/x/0"}), "contains is not supported (at #/x/0)"),
        (
            json!({"items": {"$ref": "https://a.de"}}),
            "$ref (\"https://a.de\") must name a place in the same schema (at #/items)",
        ),
        (
            json!({"minProperties": 3, "required": ["a", "a"]}),
            "minProperties (3) must be at most 2, required and one more (at #)",
        ),
        (json!({"enum": [[{"a": -9007199254740993_i64}]]}), "must not be beyond 2^53 (at #)"),
        (json!({"x-guidance": {"lenient": true}}), "x-guidance.lenient is not supported"),
        (json!({"x-guidance": 1}), "x-guidance (1) must be an object"),
    ] {
        let refusal = refusal(&schema);
        assert!(refusal.contains(reason), "{schema}: {refusal}");
    }
}

#[test]
fn a_place_that_is_used_twice_is_put_into_other_words_once() {
    let date = json!({"type": "string", "format": "date"});
    let schema = json!({"$defs": {"d": date}, "items": {"$ref": "#/$defs/d"}, "not used": 1});
    let rewritten = rewritten(&schema);
    assert_eq!(rewritten["$defs"]["d"]["allOf"].as_array().map(Vec::len), Some(1));
}

#[test]
fn keywords_of_one_object_stand_side_by_side() {
    let schema = json!({"items": [{}], "anyOf": [{}], "additionalItems": false});
    let keywords: Vec<String> = rewritten(&schema).as_object().unwrap().keys().cloned().collect();
    assert_eq!(keywords, ["items", "additionalItems", "anyOf"]);
}

#[test]
fn alternatives_are_told_apart_by_a_text_that_all_require() {
    let option = |kind: Value, required: Value| json!({"type": "object", "properties": {"kind": kind}, "required": required});
    let apart = |a: Value, b: Value| {
        let references = json!([{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}]);
        rewritten(&json!({"$defs": {"a": a, "b": b}, "oneOf": references})).get("anyOf").is_some()
    };
    let kind = json!(["kind"]);
    let constant = |text: &str| option(json!({"const": text}), kind.clone());
    assert!(apart(constant("a"), constant("b")));
    assert!(apart(constant("a"), option(json!({"enum": ["b", "c"]}), json!(["n", "kind"]))));
    assert!(!apart(constant("a"), constant("a")));
    assert!(!apart(constant("b"), option(json!({"enum": ["b", "c"]}), kind.clone())));
    assert!(!apart(constant("a"), option(json!({"const": "b"}), json!(["n"]))));
    assert!(!apart(constant("a"), option(json!({"const": 1}), kind.clone())));
    assert!(!apart(constant("a"), option(json!({"type": "string"}), kind.clone())));
    assert!(!apart(constant("a"), json!({"$ref": "#/$defs/b"})), "a circle ends");
}

#[test]
fn a_date_is_of_its_calendar() {
    let narrowed = rewritten(&json!({"format": "date"}));
    let pattern = jsonschema::validator_for(&narrowed["allOf"][0]).unwrap();
    let options = jsonschema::options().should_validate_formats(true);
    let format = options.build(&json!({"format": "date"})).unwrap();
    // llguidance sees to the lengths of months otherwise.
    for year in 0..10_000 {
        for day in ["01-31", "02-01", "02-10", "02-28", "02-29", "10-31", "12-29"] {
            let date = json!(format!("{year:04}-{day}"));
            assert_eq!(pattern.is_valid(&date), format.is_valid(&date), "{date}");
        }
    }
}
