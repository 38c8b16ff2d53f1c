//! The document and the code say the same: of fields, of paths, of answers.

use std::collections::BTreeSet;

use hyper::Method;
use jsonschema::Validator;
use serde_json::{Value, json};

use super::calls::{CALL, saying, tools};
use super::*;
use crate::api::config::RequestLimits;
use crate::api::fields::ASKED;
use crate::api::openapi::document;
use crate::api::options::unsupported;
use crate::api::{INVOCATIONS, PATHS, VERTEX};
use crate::engine::{EngineState, FinishReason};
use crate::testing::event;

fn documented() -> Value {
    document(&RequestLimits::default(), false)
}

fn names<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.into_iter().map(str::to_owned).collect()
}

/// The fields of a type and of what it consists of, those inside of `parameters` too.
fn fields_of(document: &Value, schema: &Value) -> BTreeSet<String> {
    if let Some(reference) = schema["$ref"].as_str() {
        let schema = document.pointer(&reference[1..]).unwrap_or_else(|| panic!("{reference}"));
        return fields_of(document, schema);
    }
    let mut names = BTreeSet::new();
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        names.insert(name.clone());
        if name == "parameters" {
            let inner = fields_of(document, field);
            names.extend(inner.iter().map(|inner| format!("parameters.{inner}")));
        }
    }
    for key in ["allOf", "oneOf"] {
        let parts = schema[key].as_array().into_iter().flatten();
        parts.for_each(|part| names.extend(fields_of(document, part)));
    }
    names
}

#[tokio::test]
async fn every_field_that_is_read_is_documented_and_the_other_way_round() {
    let unsupported = || unsupported().map(str::to_owned).collect::<BTreeSet<_>>();
    let chat = json!({"messages": [{"role": "user", "content": "a"}]});
    let generate = json!({"inputs": "a", "parameters": {"max_new_tokens": 1}});
    let refused_by_tgi = names(["parameters.watermark", "parameters.adapter_id"]);
    let none = BTreeSet::new;
    let cases = [
        (CHAT, &chat, "ChatCompletionRequest", &unsupported() | &names(["best_of", "echo"])),
        (
            COMPLETIONS,
            &json!({"prompt": "a"}),
            "CompletionRequest",
            &unsupported() | &names(["tools", "tool_choice"]),
        ),
        ("/generate", &generate, "GenerateRequest", refused_by_tgi.clone()),
        ("/generate_stream", &generate, "GenerateRequest", refused_by_tgi.clone()),
        ("/", &generate, "CompatGenerateRequest", refused_by_tgi),
        ("/tokenize", &json!({"inputs": "a", "parameters": {}}), "TokenizeInputs", none()),
        ("/tokenize", &json!({"prompt": "a"}), "TokenizePrompt", none()),
        ("/tokenize", &chat, "TokenizeMessages", none()),
        ("/chat_tokenize", &chat, "ChatTokenizeRequest", none()),
        ("/detokenize", &json!({"tokens": [97]}), "DetokenizeRequest", none()),
    ];
    let server = start_answering(|_| (), |_| "a".into()).await;
    let document = documented();
    for (path, body, schema, refused) in cases {
        // Requests are read on the only thread of this test.
        ASKED.take();
        let answer = server.post(path, body).await;
        assert_eq!(answer.status, StatusCode::OK, "{path}: {}", answer.body);
        let read = &ASKED.take() - &refused;
        let schema = json!({"$ref": format!("#/components/schemas/{schema}")});
        assert_eq!(fields_of(&document, &schema), read, "{path}: documented, read");
    }
}

#[tokio::test]
async fn every_path_is_documented_and_every_documented_method_answers() {
    let server = start_answering(|_| (), |_| "a".into()).await;
    let document = documented();
    let paths = document["paths"].as_object().unwrap();
    let served: BTreeSet<&str> = PATHS.iter().copied().chain(["/v1/models/{name}"]).collect();
    assert_eq!(paths.keys().map(String::as_str).collect::<BTreeSet<_>>(), served);
    for (path, item) in paths {
        let path = path.replace("{name}", "demo");
        for method in [Method::GET, Method::POST, Method::PUT, Method::DELETE] {
            let is_documented = item.get(method.as_str().to_lowercase()).is_some();
            let request = Request::builder().method(method.clone()).uri(&path);
            let answer = server.call(request.body(Full::default()).unwrap()).await;
            let is_served = ![405, 404].contains(&answer.status.as_u16());
            assert_eq!(is_served, is_documented, "{method} {path}: {}", answer.body);
        }
    }
}

/// The document, with every field in its answers that is not documented forbidden.
struct Checker(Value);

impl Checker {
    fn new() -> Checker {
        let mut document = documented();
        forbid_others(&mut document["components"]["schemas"]);
        Checker(document)
    }

    /// An answer to `POST path` matches what is documented of its status.
    fn check(&self, path: &str, answer: &Answer) {
        self.check_method("post", path, answer);
    }

    fn check_method(&self, method: &str, path: &str, answer: &Answer) {
        let status = answer.status.as_str();
        let known = &self.0["paths"][path][method]["responses"][status];
        assert!(known.is_object(), "{method} {path} answers {status}: {}", answer.body);
        let Some(kind) = answer.headers.get(CONTENT_TYPE) else {
            assert!(known.get("content").is_none() && answer.body.is_empty(), "{}", answer.body);
            return;
        };
        let kind = kind.to_str().unwrap().split(';').next().unwrap();
        let schema = &known["content"][kind]["schema"];
        assert!(schema.is_object(), "{method} {path} answers {status} as {kind}");
        let validator = self.validator(schema);
        for value in values(kind, &answer.body) {
            let errors: Vec<String> =
                validator.iter_errors(&value).map(|error| error.to_string()).collect();
            assert!(errors.is_empty(), "{method} {path} {status}: {errors:?} in {value}");
        }
    }

    fn validator(&self, schema: &Value) -> Validator {
        let mut schema = schema.clone();
        schema["components"] = self.0["components"].clone();
        jsonschema::draft202012::new(&schema).unwrap()
    }
}

fn forbid_others(schema: &mut Value) {
    match schema {
        Value::Object(keys) => {
            keys.values_mut().for_each(forbid_others);
            if keys.get("properties").is_some_and(|fields| fields.get("properties").is_none()) {
                keys.entry("additionalProperties").or_insert(json!(false));
            }
        }
        Value::Array(items) => items.iter_mut().for_each(forbid_others),
        _ => {}
    }
}

/// The values of a body: one, or one for each event.
fn values(kind: &str, body: &str) -> Vec<Value> {
    match kind {
        "application/json" => vec![serde_json::from_str(body).unwrap()],
        "text/event-stream" => {
            let payloads = body.lines().filter_map(|line| line.strip_prefix("data: "));
            let payloads = payloads.filter(|payload| *payload != "[DONE]");
            let values: Vec<Value> =
                payloads.map(|payload| serde_json::from_str(payload).unwrap()).collect();
            assert!(!values.is_empty(), "{body}");
            values
        }
        _ => vec![body.into()],
    }
}

/// Requests of every route that generates, with what shows in an answer.
fn generating() -> Vec<(&'static str, Value)> {
    let chat = |fields| with(json!({"messages": [{"role": "user", "content": "hi"}]}), fields);
    let completion = |fields| with(json!({"prompt": ["ab", [97, 98]], "max_tokens": 3}), fields);
    let inputs = |parameters| json!({"inputs": "hi", "parameters": parameters});
    let details = json!({
        "details": true, "top_n_tokens": 2, "seed": 7, "do_sample": true, "max_new_tokens": 2,
    });
    let best = with(details.clone(), json!({"best_of": 2, "decoder_input_details": true}));
    let usage = json!({"stream": true, "stream_options": {"include_usage": true}});
    vec![
        (CHAT, chat(json!({}))),
        (CHAT, chat(json!({"n": 2, "logprobs": true, "top_logprobs": 2, "max_tokens": 2}))),
        (CHAT, chat(json!({"stop": "b", "include_stop_str_in_output": true}))),
        (CHAT, chat(json!({"stop_token_ids": [98], "return_token_ids": true}))),
        (CHAT, chat(usage.clone())),
        (COMPLETIONS, completion(json!({"return_token_ids": true}))),
        (COMPLETIONS, completion(json!({"logprobs": 0, "stop_token_ids": [98]}))),
        (COMPLETIONS, completion(json!({"logprobs": 2, "echo": true, "stop": "b"}))),
        (COMPLETIONS, completion(usage)),
        ("/generate", inputs(json!({}))),
        ("/generate", inputs(details.clone())),
        ("/generate", inputs(best.clone())),
        ("/generate_stream", inputs(json!({"stop": ["b"]}))),
        ("/generate_stream", inputs(details.clone())),
        ("/", inputs(details.clone())),
        (VERTEX, inputs(best)),
        (VERTEX, json!({"instances": [inputs(json!({})), chat(json!({}))]})),
        (INVOCATIONS, chat(json!({}))),
        (INVOCATIONS, completion(json!({}))),
        (INVOCATIONS, inputs(details)),
    ]
}

#[tokio::test]
async fn every_answer_and_every_event_matches_its_schema() {
    let server = start_answering(|_| (), |_| "ab\u{e9}".into()).await;
    let checker = Checker::new();
    for (path, body) in generating() {
        let answer = server.post(path, &body).await;
        assert_eq!(answer.status, StatusCode::OK, "{path} {body}: {}", answer.body);
        checker.check(path, &answer);
        let is_whole = path == "/generate"
            || body.get("instances").is_some()
            || body["parameters"].get("best_of").is_some();
        if !is_whole {
            let streamed = server.post(path, &with(body, json!({"stream": true}))).await;
            assert_eq!(streamed.headers[CONTENT_TYPE], "text/event-stream", "{path}");
            checker.check(path, &streamed);
        }
    }
    let messages = json!({"messages": [{"role": "user", "content": "hi"}]});
    let tokens = [
        ("/tokenize", json!({"inputs": "caf\u{e9}"})),
        ("/tokenize", json!({"prompt": "a"})),
        ("/tokenize", with(messages.clone(), json!({"return_token_strs": true}))),
        ("/chat_tokenize", messages),
        ("/detokenize", json!({"tokens": [97]})),
    ];
    for (path, body) in tokens {
        let answer = server.post(path, &body).await;
        assert_eq!(answer.status, StatusCode::OK, "{path} {body}: {}", answer.body);
        checker.check(path, &answer);
    }
    for (path, item) in documented()["paths"].as_object().unwrap() {
        if item.get("get").is_some() {
            let answer = server.get(&path.replace("{name}", "demo")).await;
            assert_eq!(answer.status, StatusCode::OK, "{path}: {}", answer.body);
            checker.check_method("get", path, &answer);
        }
    }
}

#[tokio::test]
async fn calls_and_reasoning_match_their_schema() {
    let text: &'static str = format!("I think.</think>I look.\n{CALL}").leak();
    let server = saying(text).await;
    let checker = Checker::new();
    for stream in [false, true] {
        let body = json!({
            "messages": [{"role": "user", "content": "hi"}], "tools": tools(), "stream": stream,
            "enable_thinking": true, "logprobs": true, "top_logprobs": 1,
        });
        let answer = server.post(CHAT, &body).await;
        assert!(answer.body.contains("\"tool_calls\""), "{}", answer.body);
        assert!(answer.body.contains("\"reasoning_content\""), "{}", answer.body);
        checker.check(CHAT, &answer);
    }
}

#[tokio::test]
async fn every_error_matches_its_schema() {
    let (server, engine) = start(|config| {
        config.limits.payload_limit = 1000;
        config.limits.max_concurrent_requests = 2;
    })
    .await;
    let checker = Checker::new();
    let document = documented();
    let posts: Vec<&String> = document["paths"]
        .as_object()
        .unwrap()
        .iter()
        .filter_map(|(path, item)| item.get("post").map(|_| path))
        .collect();
    let wrong = json!({
        "prompt": 1, "messages": 1, "inputs": 1, "tokens": 1, "instances": 1, "model": "demo",
    });
    let one_of_each = |path: &str| match path {
        CHAT | "/chat_tokenize" => json!({"messages": 1, "model": "other"}),
        COMPLETIONS | "/detokenize" => json!({"prompt": "a", "model": "other"}),
        _ => json!({"prompt": 1}),
    };
    for path in &posts {
        for body in ["{".into(), "[]".into(), "x".repeat(1001), wrong.to_string()] {
            checker.check(path, &server.call(post(path, body)).await);
        }
        checker.check(path, &server.post(path, &one_of_each(path)).await);
        let request = Request::post(path.as_str()).body(Full::default()).unwrap();
        checker.check(path, &server.call(request).await);
    }
    let unknown = server.get("/v1/models/other").await;
    checker.check_method("get", "/v1/models/{name}", &unknown);
    engine.set_state(EngineState::Starting("soon".into()));
    for path in &posts {
        checker.check(path, &server.post(path, &json!({"inputs": "a"})).await);
    }
    for path in ["/", "/health", "/ping", "/ready", "/info"] {
        checker.check_method("get", path, &server.get(path).await);
    }
    let (keyed, _engine) = start(|config| config.api_key = Some("k".into())).await;
    for path in &posts {
        let answer = keyed.post(path, &json!({})).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
        checker.check(path, &answer);
    }
    for path in ["/v1/models", "/v1/models/{name}"] {
        checker.check_method("get", path, &keyed.get(path).await);
    }
}

#[tokio::test]
async fn a_failure_matches_its_schema_before_and_within_a_stream() {
    let (server, mut engine) = start(|config| config.limits.max_concurrent_requests = 1).await;
    let checker = Checker::new();
    let chat = json!({"messages": [{"role": "user", "content": "a"}]});
    let bodies = [
        (CHAT, chat.clone()),
        (COMPLETIONS, json!({"prompt": "a"})),
        ("/generate", json!({"inputs": "a"})),
        ("/generate_stream", json!({"inputs": "a"})),
        ("/", json!({"inputs": "a"})),
        (INVOCATIONS, chat),
        (VERTEX, json!({"inputs": "a"})),
    ];
    for (path, body) in &bodies {
        for stream in [false, true] {
            let body = with(body.clone(), json!({"stream": stream}));
            let failing = async {
                let (id, _) = engine.added().await;
                // The only place is taken.
                checker.check(path, &server.post(path, &body).await);
                let reason = FinishReason::Error("broken".into());
                engine.step(vec![event(id, Vec::new(), Some(reason))]);
            };
            checker.check(path, &tokio::join!(server.post(path, &body), failing).0);
        }
    }
}

#[tokio::test]
async fn the_document_and_its_page_are_public_and_load_nothing_else() {
    let (server, _engine) = start(|config| config.api_key = Some("k".into())).await;
    let document = server.get("/openapi.json").await;
    assert_eq!(document.status, StatusCode::OK);
    assert_eq!(server.get("/api-doc/openapi.json").await.json(), document.json());
    let limits = &document.json()["components"]["schemas"];
    assert_eq!(limits["Stop"]["oneOf"][1]["maxItems"], 4, "what the rig allows");
    let page = server.get("/docs").await;
    assert_eq!(page.status, StatusCode::OK);
    assert!(page.headers["content-security-policy"].to_str().unwrap().contains("'none'"));
    for elsewhere in ["http:", "https:", "src=", "@import", "url("] {
        assert!(!page.body.contains(elsewhere), "{elsewhere}");
    }
}

#[tokio::test]
async fn fields_that_are_not_known_are_named_in_a_header_of_every_answer() {
    let server = start_answering(|_| (), |_| "a".into()).await;
    let header = |answer: &Answer| {
        answer.headers.get("x-ignored-fields").map(|names| names.to_str().unwrap().to_owned())
    };
    for (path, body) in generating() {
        let answer = server.post(path, &body).await;
        assert_eq!(header(&answer), None, "{path} {body}");
        let more = json!({"verbosity": "low", "user": "u", "metadata": {}, "unset": null});
        let mut body = with(body, more);
        let mut expected = "verbosity";
        if let Some(parameters) = body.get_mut("parameters") {
            parameters["top_a"] = json!(1);
            expected = "verbosity,parameters.top_a";
        }
        let answer = server.post(path, &body).await;
        assert_eq!(answer.status, StatusCode::OK, "{path} {body}: {}", answer.body);
        assert_eq!(header(&answer).as_deref(), Some(expected), "{path} {body}");
    }
    let refused = server.post(CHAT, &json!({"verbosity": "low"})).await;
    assert_eq!(header(&refused), None);
}
