//! What a request may say of the form of its answer, and what reaches the engine.

use serde_json::json;

use super::*;

const SCHEMA: &str = r#"{"type": "object", "properties": {"a": {"type": "integer"}}}"#;

fn schema() -> Value {
    serde_json::from_str(SCHEMA).unwrap()
}

/// The kind and source of the grammar that a chat with these fields has.
async fn grammar_of(fields: Value) -> Option<(String, String)> {
    let (server, mut engine) = start(|_| ()).await;
    let mut body = json!({"messages": [{"role": "user", "content": "hi"}], "stream": true});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    let request = tokio::spawn(async move { server.post(CHAT, &body).await });
    let (id, added) = engine.added().await;
    engine.say(id, "x", Some(crate::engine::FinishReason::Length));
    assert_eq!(request.await.unwrap().status, 200);
    added.grammar.map(|grammar| {
        assert_eq!(grammar.digest.len(), 32);
        (grammar.kind.clone(), String::from_utf8(grammar.source.clone()).unwrap())
    })
}

/// A schema without what was added about its writing.
fn bare(source: &str) -> Value {
    let mut schema: Value = serde_json::from_str(source).unwrap();
    assert!(schema.as_object_mut().unwrap().remove("x-guidance").is_some(), "{source}");
    schema
}

#[tokio::test]
async fn each_form_of_a_schema_is_the_same_grammar() {
    for fields in [
        json!({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "strict": true, "schema": schema()}}}),
        json!({"response_format": {"type": "json", "value": schema()}}),
        json!({"response_format": {"type": "json_object", "value": schema()}}),
        json!({"structured_outputs": {"json": schema(), "regex": null}}),
        json!({"structured_outputs": {"json": SCHEMA}}),
        json!({"guided_json": SCHEMA}),
    ] {
        let (kind, source) = grammar_of(fields).await.unwrap();
        assert_eq!((kind.as_str(), bare(&source)), ("json_schema", schema()));
    }
}

#[tokio::test]
async fn each_other_form_reaches_the_engine() {
    let lark = "start: \"a\" | \"b\"";
    for (fields, kind, expected) in [
        (json!({"response_format": {"type": "regex", "value": "a+"}}), "regex", "a+"),
        (json!({"structured_outputs": {"regex": "a+"}}), "regex", "a+"),
        (json!({"guided_regex": "a+"}), "regex", "a+"),
        (json!({"structured_outputs": {"choice": ["a", "b"]}}), "lark", lark),
        (json!({"guided_choice": ["a", "b"]}), "lark", lark),
        (json!({"structured_outputs": {"grammar": lark}}), "lark", lark),
        (json!({"guided_grammar": lark}), "lark", lark),
    ] {
        let (got, source) = grammar_of(fields.clone()).await.unwrap();
        assert_eq!((got.as_str(), source.as_str()), (kind, expected), "{fields}");
    }
    for fields in [
        json!({"response_format": {"type": "json_object"}}),
        json!({"structured_outputs": {"json_object": true}}),
        json!({"guided_json_object": true}),
    ] {
        let (_, source) = grammar_of(fields).await.unwrap();
        assert_eq!(bare(&source), json!({"type": "object"}));
    }
    let spaced = json!({"structured_outputs": {"json": {}, "disable_any_whitespace": true}});
    let (_, source) = grammar_of(spaced).await.unwrap();
    assert!(source.contains(r#""whitespace_flexible":false"#), "{source}");
    for free in [json!({"response_format": {"type": "text"}}), json!({"guided_json_object": false})]
    {
        assert_eq!(grammar_of(free).await, None);
    }
}

#[tokio::test]
async fn a_constraint_that_cannot_be_followed_is_refused_before_a_token() {
    let server = start_answering(|_| (), |_| "never".into()).await;
    for (fields, param, part) in [
        (json!({"response_format": []}), "response_format", "an object"),
        (json!({"response_format": {}}), "response_format.type", "json_schema"),
        (json!({"response_format": {"type": "xml"}}), "response_format.type", "xml"),
        (
            json!({"response_format": {"type": "json_schema"}}),
            "response_format.json_schema",
            "an object",
        ),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}}),
            "response_format.json_schema.schema",
            "a JSON schema",
        ),
        (
            json!({"response_format": {"type": "json", "value": {"type": "thing"}}}),
            "response_format",
            "cannot be followed: Invalid type: thing",
        ),
        (json!({"guided_regex": "("}), "guided_regex", "cannot be followed"),
        (json!({"guided_regex": 3}), "guided_regex", "a string, not 3"),
        (json!({"guided_choice": []}), "guided_choice", "1 to 1024"),
        (json!({"guided_choice": ["a", ""]}), "guided_choice[1]", "not empty"),
        (json!({"guided_grammar": "root ::= a"}), "guided_grammar", "cannot be followed"),
        (json!({"structured_outputs": {}}), "structured_outputs", "one of"),
        (
            json!({"structured_outputs": {"regex": "a", "choice": ["a"]}}),
            "structured_outputs.choice",
            "cannot go with structured_outputs.regex",
        ),
        (
            json!({"structured_outputs": {"structural_tag": "{}"}}),
            "structured_outputs.structural_tag",
            "not supported",
        ),
        (
            json!({"guided_regex": "a", "response_format": {"type": "json_object"}}),
            "guided_regex",
            "cannot be used together with response_format",
        ),
        (json!({"guided_regex": "a", "ignore_eos": true}), "ignore_eos", "constraint"),
    ] {
        for (path, base) in [
            (CHAT, json!({"messages": [{"role": "user", "content": "hi"}]})),
            (COMPLETIONS, json!({"prompt": "hi"})),
        ] {
            let mut body = base;
            body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
            let answer = server.post(path, &body).await;
            assert_eq!(answer.status, 400, "{fields}: {}", answer.body);
            let error = &answer.json()["error"];
            let message = error["message"].as_str().unwrap();
            assert_eq!(error["param"], param, "{fields}: {message}");
            assert!(message.contains(part), "{fields}: {message}");
        }
    }
}
