//! TGI's API and the platforms' routes, on a real model.

use serde_json::{Value, json};

use crate::common::{Server, request, stream};

const PROMPT: &str = "Once upon a time, a fox found a red kite";

fn generate(parameters: Value) -> Value {
    Value::from_iter([("inputs", json!(PROMPT)), ("parameters", parameters)])
}

/// What the tokens that are not special add, one after the other.
fn joined<'a>(tokens: impl IntoIterator<Item = &'a Value>) -> String {
    let seen = tokens.into_iter().filter(|token| token["special"] == false);
    seen.map(|token| token["text"].as_str().unwrap()).collect()
}

#[test]
fn a_stream_of_tgis_api_says_what_the_whole_answer_says() {
    let server = Server::start(&[]);
    for parameters in [
        json!({"max_new_tokens": 24, "details": true}),
        json!({"max_new_tokens": 24, "details": true, "top_k": 9, "seed": 7, "top_n_tokens": 2}),
        // Ends by itself.
        json!({"details": true}),
        json!({"details": true, "stop": ["."]}),
    ] {
        let body = generate(parameters);
        let whole = server.post("/generate", &body);
        assert_eq!(whole.status, 200, "{body}");
        assert!(whole.header("x-queue-time").unwrap().parse::<u64>().is_ok());
        let whole = whole.json();
        let details = &whole["details"];
        let tokens = details["tokens"].as_array().unwrap();
        assert_eq!(joined(tokens), whole["generated_text"].as_str().unwrap(), "{body}");
        assert_eq!(details["generated_tokens"], tokens.len(), "{body}");

        let mut stream = stream(server.address(), "/generate_stream", &body);
        let mut events: Vec<Value> = Vec::new();
        // No `[DONE]` follows the event that has the whole text.
        while events.last().is_none_or(|event| event["generated_text"].is_null()) {
            events.extend(stream.next_event());
        }
        let streamed: Vec<&Value> = events.iter().map(|event| &event["token"]).collect();
        assert_eq!(json!(streamed), details["tokens"], "{body}");
        let last = events.last().unwrap();
        assert_eq!(last["generated_text"], whole["generated_text"], "{body}");
        assert_eq!(last["details"]["finish_reason"], details["finish_reason"], "{body}");
    }
}

#[test]
fn the_variables_of_vertex_ai_name_the_port_and_the_routes() {
    let routes = [("AIP_PREDICT_ROUTE", "/predict"), ("AIP_HEALTH_ROUTE", "/healthy")];
    let server = Server::start_with(&["--api-key", "k"], &routes);
    assert_eq!(server.get("/healthy").status, 200);
    let body = json!({"instances": [generate(json!({"max_new_tokens": 4}))]});
    assert_eq!(server.post("/predict", &body).status, 401);
    let key = [("authorization", "Bearer k")];
    let answer = request(server.address(), "POST", "/predict", Some(&body), &key).json();
    assert!(answer["predictions"][0].as_str().is_some_and(|text| !text.is_empty()), "{answer}");
}
