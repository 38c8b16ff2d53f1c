//! Answers: streamed and not, counted, stopped, refused.

use std::process::Stdio;

use serde_json::{Value, json};

use crate::common::{Server, chat, executable, long_chat, slow_chat, wait_until};

const QUESTION: &str = "Tell me a story about a fox and a red kite.";

#[test]
fn a_streamed_chat_brings_text_and_counts_its_tokens() {
    let server = Server::start(&[]);
    let mut stream = server.stream(&long_chat(QUESTION, 40));
    let mut text = String::new();
    let mut finish_reasons = Vec::new();
    let mut usage = Value::Null;
    while let Some(event) = stream.next_event() {
        assert_eq!(event["object"], "chat.completion.chunk");
        text += event["choices"][0]["delta"]["content"].as_str().unwrap_or("");
        finish_reasons.extend(event["choices"][0]["finish_reason"].as_str().map(str::to_owned));
        if event["usage"].is_object() {
            usage = event["usage"].clone();
        }
    }
    assert!(text.split_whitespace().count() >= 5, "`{text}` is no story");
    assert_eq!(finish_reasons, ["length"]);
    assert_eq!(usage["completion_tokens"], 40);
    let prompt_tokens = usage["prompt_tokens"].as_u64().unwrap();
    assert!(prompt_tokens > 0);
    assert_eq!(usage["total_tokens"], prompt_tokens + 40);

    let whole = server.chat(&chat(QUESTION, json!({"max_tokens": 40, "ignore_eos": true})));
    assert_eq!(whole["choices"][0]["message"]["content"], text);
    assert_eq!(whole["usage"]["prompt_tokens"], prompt_tokens);
    assert_eq!(whole["model"], "millstream-demo");
}

#[test]
fn an_answer_of_the_demo_ends_by_itself() {
    let server = Server::start(&[]);
    let answer = server.chat(&chat("What is 2 + 3?", json!({"max_tokens": 200})));
    assert_eq!(answer["choices"][0]["finish_reason"], "stop", "{answer}");
    assert!(answer["usage"]["completion_tokens"].as_u64().unwrap() < 200, "{answer}");
    assert_ne!(answer["choices"][0]["message"]["content"], "", "{answer}");
}

#[test]
fn the_demo_answers_with_quantised_weights_too() {
    for method in ["int8", "int4"] {
        let server = Server::start(&["--quantize", method]);
        let answer = server.chat(&chat(QUESTION, json!({"max_tokens": 200, "temperature": 0})));
        let text = answer["choices"][0]["message"]["content"].as_str().unwrap();
        assert!(text.contains("fox") && text.split_whitespace().count() >= 20, "{method}: {text}");
        assert_eq!(answer["choices"][0]["finish_reason"], "stop", "{method}: {answer}");
    }
}

#[test]
fn a_stop_string_ends_the_text_before_it_and_frees_the_sequence() {
    let server = Server::start(&[]);
    let ask = |more| server.chat(&chat(QUESTION, more));
    let whole = ask(json!({"max_tokens": 40, "ignore_eos": true}));
    let whole = whole["choices"][0]["message"]["content"].as_str().unwrap();
    // A piece from the middle of the text, across the border of two words.
    let words: Vec<&str> = whole.split(' ').collect();
    let (left, right) = (words[words.len() / 2], words[words.len() / 2 + 1]);
    let stop = format!("{} {}", &left[left.len() - 1..], &right[..1]);
    let end = whole.find(&stop).unwrap();

    let stopped = ask(json!({"max_tokens": 40, "ignore_eos": true, "stop": [stop]}));
    assert_eq!(stopped["choices"][0]["message"]["content"], whole[..end]);
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
    wait_until("nothing runs", || server.metric("millstream_running") == 0.0);
}

#[test]
fn a_client_that_goes_away_frees_what_it_held() {
    let server = Server::start(&[]);
    let mut stream = server.stream(&slow_chat(QUESTION));
    assert!(stream.next_text().is_some());
    assert!(server.metric("millstream_running") > 0.0);
    drop(stream);
    wait_until("nothing runs", || server.metric("millstream_running") == 0.0);
    assert_eq!(server.metric("millstream_waiting"), 0.0);
}

#[test]
fn more_requests_than_allowed_are_refused_before_any_work() {
    let server = Server::start(&["--max-concurrent-requests", "16"]);
    // Eight choices each: all that there is room for.
    let mut first = server.stream(&slow_chat("Who are you?"));
    let mut second = server.stream(&slow_chat("Tell me a joke."));
    assert!(first.next_text().is_some() && second.next_text().is_some());

    let refused = server.post("/v1/chat/completions", &chat(QUESTION, json!({})));
    assert_eq!(refused.status, 429, "{}", refused.body);
    assert!(refused.header("retry-after").is_some(), "{:?}", refused.headers);
    assert!(refused.json()["error"]["message"].is_string(), "{}", refused.body);

    drop(first);
    wait_until("a place is free", || {
        server.post("/v1/chat/completions", &chat(QUESTION, json!({"max_tokens": 2}))).status == 200
    });
    drop(second);
}

#[test]
fn a_key_is_asked_for_on_every_route_but_health_and_metrics() {
    let server = Server::start(&["--api-key", "s3cret"]);
    for path in ["/health", "/live", "/ready", "/metrics"] {
        assert_eq!(server.get(path).status, 200, "{path}");
    }
    for path in ["/v1/models", "/no/such/route"] {
        assert_eq!(server.get(path).status, 401, "{path}");
        let wrong = server.get_with(path, ("authorization", "Bearer s3cre"));
        assert_eq!(wrong.status, 401, "{path}");
    }
    let right = server.get_with("/v1/models", ("authorization", "Bearer s3cret"));
    assert_eq!((right.status, &right.json()["data"][0]["id"]), (200, &json!("millstream-demo")));
    assert_eq!(server.post("/v1/chat/completions", &chat("Hi!", json!({}))).status, 401);
    assert!(!server.log_contains("s3cret"));
}

#[test]
fn a_bad_request_is_told_by_field_rule_and_value() {
    let server = Server::start(&[]);
    let cases = [
        (json!({"temperature": -1}), 400, "temperature"),
        (json!({"max_tokens": "many"}), 400, "max_tokens"),
        (json!({"stop": vec!["x"; 17]}), 400, "stop"),
        (json!({"model": "no-such-model"}), 404, "no-such-model"),
        (json!({"max_tokens": 1_000_000}), 400, "1000000"),
    ];
    for (more, status, named) in cases {
        let refused = server.post("/v1/chat/completions", &chat(QUESTION, more));
        let message = refused.json()["error"]["message"].as_str().unwrap().to_owned();
        assert_eq!(refused.status, status, "{message}");
        assert!(message.contains(named), "`{message}` does not name {named}");
    }
}

#[test]
fn the_load_tester_measures_every_token_of_every_request() {
    let server = Server::start(&[]);
    for endpoint in ["chat", "completions"] {
        let output = executable()
            .args(["bench", "--url", &format!("http://{}", server.address())])
            .args(["--endpoint", endpoint, "--requests", "12", "--concurrency", "4"])
            .args(["--prompt-tokens", "20", "--output-tokens", "16", "--json", "-"])
            .stderr(Stdio::inherit())
            .output()
            .expect("cannot start the executable");
        assert!(output.status.success());
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["num_answered"], 12, "{report}");
        assert_eq!(report["num_other_length"], 0, "{report}");
        assert_eq!(report["output_tokens"], 12 * 16, "{report}");
        assert!(report["ttft_ms"]["p50"].as_f64().unwrap() > 0.0, "{report}");
    }
}
