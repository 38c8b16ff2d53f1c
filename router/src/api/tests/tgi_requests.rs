//! What TGI's API accepts, what it becomes, and how the rest is refused.

use serde_json::{Value, json};

use super::*;
use crate::engine::{EngineState, FinishReason, SamplingParams};
use crate::testing::EOS;
use crate::text::Constraint;

fn with_parameters(parameters: Value) -> Value {
    Value::from_iter([("inputs", json!("abc")), ("parameters", parameters)])
}

/// What the engine is asked for by each body.
async fn sequence_of(server: &Server, engine: &mut ScriptedEngine, body: &Value) -> NewSequence {
    let request = server.send(post("/generate", body.to_string()));
    let answer = async {
        let (id, sequence) = engine.added().await;
        engine.say(id, "", Some(FinishReason::Length));
        sequence
    };
    tokio::join!(request, answer).1
}

#[tokio::test]
async fn every_rule_names_the_field_the_rule_and_the_value_before_a_stream_begins() {
    let server = start_answering(|_| (), |_| "never".into()).await;
    let bodies = [
        (json!({}), "inputs must be given"),
        (json!({"inputs": ""}), "inputs must not be empty"),
        (json!({"inputs": ["a"]}), "inputs must be a string, not a list of 1"),
        (json!({"inputs": "a", "parameters": 5}), "parameters must be an object, not 5"),
        (json!({"inputs": "y".repeat(512)}), "maximum context length is 512 tokens"),
    ];
    let parameters = [
        (json!({"temperature": -1}), "temperature must be a number from 0 to 100, not -1"),
        (json!({"top_k": -2}), "top_k must be an integer from -1"),
        (json!({"top_p": 1.5}), "top_p must be a number from 0 to 1, not 1.5"),
        (json!({"typical_p": 0}), "typical_p must be a number above 0 and at most 1, not 0"),
        (json!({"repetition_penalty": 0}), "repetition_penalty must be a number above 0"),
        (json!({"frequency_penalty": 2.5}), "frequency_penalty must be a number from -2 to 2"),
        (json!({"do_sample": "yes"}), "do_sample must be true or false"),
        (json!({"max_new_tokens": 0}), "max_new_tokens must be an integer from 1"),
        (json!({"max_new_tokens": 510}), "max_new_tokens (510) exceeds the context left"),
        (json!({"truncate": 0}), "truncate must be an integer from 1"),
        (json!({"stop": ["a", "b", "c", "d", "e"]}), "stop must hold at most 4 strings, not 5"),
        (json!({"stop": [""]}), "stop[0] must have 1 to 1024 bytes"),
        (json!({"seed": -1.5}), "seed must be an integer of 64 bits, not -1.5"),
        (json!({"top_n_tokens": 21}), "top_n_tokens must be an integer from 0 to 20, not 21"),
        (json!({"best_of": 0}), "best_of must be an integer from 1 to 128, not 0"),
        (json!({"best_of": 129}), "best_of must be an integer from 1 to 128, not 129"),
        (json!({"details": 1}), "details must be true or false, not 1"),
        (json!({"watermark": true}), "watermark (true) is not supported yet"),
        (json!({"adapter_id": "a/b"}), "adapter_id (\"a/b\") is not supported yet"),
        (json!({"grammar": "a"}), "grammar must be an object, not \"a\""),
        (json!({"grammar": {"value": {}}}), "grammar.type must be given"),
        (json!({"grammar": {"type": "ebnf"}}), "json_schema or regex, not \"ebnf\""),
        (json!({"grammar": {"type": "regex"}}), "grammar.value must be a regular expression"),
        (json!({"grammar": {"type": "json"}}), "grammar.value must be a JSON schema, not null"),
        (json!({"grammar": {"type": "json", "value": "{"}}), "must be a JSON schema, not \"{\""),
        (
            json!({"grammar": {"type": "json_schema", "value": {"name": "a"}}}),
            "grammar.value.schema must be a JSON schema, not null",
        ),
    ];
    let parameters = parameters.map(|(fields, part)| (with_parameters(fields), part));
    for (body, part) in bodies.into_iter().chain(parameters) {
        for path in ["/generate", "/generate_stream", "/", "/invocations"] {
            // A body without any known field is nobody's.
            if path == "/invocations" && body == json!({}) {
                continue;
            }
            let answer = server.post(path, &body).await;
            assert_eq!(answer.status.as_u16(), 422, "{path} {body}: {}", answer.body);
            let error = answer.json();
            assert_eq!(error["error_type"], "validation", "{path} {body}");
            let message = error["error"].as_str().unwrap();
            assert!(message.contains(part) && message.len() < 300, "{path}: {message}");
        }
    }
    for (path, parameters, part) in [
        ("/generate", json!({"best_of": 2}), "best_of (2) needs sampling"),
        ("/generate_stream", json!({"best_of": 2, "top_k": 5}), "best_of (2) cannot be streamed"),
    ] {
        let answer = server.post(path, &with_parameters(parameters)).await;
        assert_eq!(answer.status.as_u16(), 422, "{}", answer.body);
        assert!(answer.json()["error"].as_str().unwrap().contains(part), "{}", answer.body);
    }
}

#[tokio::test]
async fn a_body_that_cannot_be_read_is_refused_in_tgis_shape_too() {
    let (server, engine) = start(|config| config.limits.payload_limit = 100).await;
    for (body, kind, status) in [
        ("{\"inputs\": ", "application/json", 400),
        ("[1]", "application/json", 422),
        ("{\"inputs\": \"a\"}", "text/plain", 415),
        (&*" ".repeat(101), "application/json", 413),
    ] {
        for path in ["/generate", "/generate_stream", "/", "/tokenize", "/invocations", "/vertex"] {
            let mut request = post(path, body.to_owned());
            request.headers_mut().insert(CONTENT_TYPE, kind.parse().unwrap());
            let answer = server.call(request).await;
            let found = (answer.status.as_u16(), answer.json()["error_type"].take());
            assert_eq!(found, (status, json!("validation")), "{path} {body:?}");
        }
    }
    engine.set_state(EngineState::Starting("loading weights".into()));
    let body = json!({"inputs": "a"});
    for answer in [server.post("/generate", &body).await, server.get("/info").await] {
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(answer.json()["error_type"], "healthcheck");
    }
}

#[tokio::test]
async fn tokens_are_drawn_where_something_asks_for_it_and_the_checkpoint_is_not_asked() {
    let (server, mut engine) = start(|_| ()).await;
    let drawn = SamplingParams { temperature: 1.0, top_p: 1.0, ..SamplingParams::default() };
    let greedy = SamplingParams { temperature: 0.0, ..drawn.clone() };
    let cases = [
        (json!({"inputs": "a"}), drawn.clone()),
        (json!({"inputs": "a", "parameters": null}), drawn.clone()),
        (with_parameters(json!({})), greedy.clone()),
        (with_parameters(json!({"do_sample": true})), drawn.clone()),
        (
            with_parameters(json!({"temperature": 1.0, "top_p": 1.0, "typical_p": 1})),
            greedy.clone(),
        ),
        (with_parameters(json!({"temperature": 0, "do_sample": true})), greedy.clone()),
        (
            with_parameters(json!({"temperature": 0.5, "do_sample": false})),
            SamplingParams { temperature: 0.5, ..drawn.clone() },
        ),
        (with_parameters(json!({"top_k": 3})), SamplingParams { top_k: 3, ..drawn.clone() }),
        (with_parameters(json!({"top_p": 0.25})), SamplingParams { top_p: 0.25, ..drawn.clone() }),
        (
            with_parameters(json!({"typical_p": 0.5})),
            SamplingParams { typical_p: 0.5, ..drawn.clone() },
        ),
        (
            with_parameters(json!({"repetition_penalty": 1.5, "frequency_penalty": -0.5})),
            SamplingParams { repetition_penalty: 1.5, frequency_penalty: -0.5, ..greedy.clone() },
        ),
        (
            with_parameters(json!({"details": true, "top_n_tokens": 4})),
            SamplingParams { logprobs: true, top_logprobs: 4, ..greedy.clone() },
        ),
        // Nobody would be told them.
        (with_parameters(json!({"top_n_tokens": 4})), greedy),
    ];
    for (body, expected) in cases {
        let sequence = sequence_of(&server, &mut engine, &body).await;
        assert_eq!(sequence.sampling, expected, "{body}");
    }
}

#[tokio::test]
async fn what_the_engine_is_asked_for_is_what_the_request_said() {
    let (server, mut engine) = start(|_| ()).await;
    // Parameters, then: the prompt's end, tokens at most.
    let cases = [
        (json!({}), "abc", 509),
        (json!({"max_new_tokens": null, "truncate": null}), "abc", 509),
        (json!({"max_new_tokens": 7}), "abc", 7),
        (json!({"max_new_tokens": 509}), "abc", 509),
        (json!({"truncate": 2}), "bc", 510),
        (json!({"truncate": 9}), "abc", 509),
    ];
    for (parameters, prompt, max_tokens) in cases {
        let body = with_parameters(parameters);
        let sequence = sequence_of(&server, &mut engine, &body).await;
        assert_eq!(&sequence.prompt[..], crate::testing::tokens(prompt), "{body}");
        assert_eq!(sequence.max_tokens, max_tokens, "{body}");
        assert_eq!(&sequence.stop_token_ids[..], [EOS], "{body}");
    }
    let seeded = with_parameters(json!({"seed": u64::MAX}));
    assert_eq!(sequence_of(&server, &mut engine, &seeded).await.seed, u64::MAX);
}

#[tokio::test]
async fn more_new_tokens_than_fit_are_cut_where_a_thousand_fit() {
    let (server, mut engine) = start(|_| ()).await;
    let mut large = crate::testing::worker_info();
    large.max_model_len = 2000;
    engine.set_state(EngineState::Ready(Arc::new(large)));
    let asked = |max_new_tokens: u32| with_parameters(json!({"max_new_tokens": max_new_tokens}));
    for (count, expected) in [(1500, 1500), (1997, 1997), (1_000_000, 1997)] {
        let sequence = sequence_of(&server, &mut engine, &asked(count)).await;
        assert_eq!(sequence.max_tokens, expected);
    }
    let long = json!({"inputs": "y".repeat(1000), "parameters": {"max_new_tokens": 5000}});
    assert_eq!(server.post("/generate", &long).await.status.as_u16(), 422);
}

#[tokio::test]
async fn a_grammar_becomes_a_constraint_in_each_of_its_forms() {
    let (server, mut engine) = start(|_| ()).await;
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}});
    let of_schema = Constraint::json_schema(&schema).unwrap();
    let object = Constraint::json_schema(&json!({"type": "object"})).unwrap();
    for (grammar, expected) in [
        (json!({"type": "regex", "value": "[a-z]+"}), Constraint::Regex("[a-z]+".into())),
        (json!({"type": "json", "value": schema}), of_schema.clone()),
        (json!({"type": "json", "value": schema.to_string()}), of_schema.clone()),
        (json!({"type": "json_object", "value": schema}), of_schema.clone()),
        (json!({"type": "json_object"}), object),
        (json!({"type": "json_schema", "value": {"name": "n", "schema": schema}}), of_schema),
    ] {
        let body = with_parameters(json!({"grammar": grammar}));
        let sequence = sequence_of(&server, &mut engine, &body).await;
        assert_eq!(*sequence.grammar.unwrap(), expected.encode(), "{body}");
    }
}
