//! Answers of TGI's API, whole and streamed: their shapes, and that they say the same.

use serde_json::{Value, json};

use super::*;
use crate::engine::FinishReason;
use crate::testing::{EOS, event, logprobs, tokens};

/// In more than ASCII, so that tokens cut characters.
const TEXT: &str = "caf\u{e9} \"\u{20ac}\"\n\u{1f600}";

async fn answering() -> Server {
    start_answering(|_| (), |_| TEXT.into()).await
}

/// The payloads of the events; no `[DONE]` is among them.
fn events(answer: &Answer) -> Vec<Value> {
    let payload = |event: &str| {
        let payload = event.strip_prefix("data: ").unwrap_or_else(|| panic!("{event:?}"));
        serde_json::from_str(payload).unwrap()
    };
    answer.body.split_terminator("\n\n").map(payload).collect()
}

/// What tokens that are not special add, one after the other.
fn joined(tokens: &[&Value]) -> String {
    let texts = tokens.iter().filter(|token| token["special"] == false);
    texts.map(|token| token["text"].as_str().unwrap()).collect()
}

fn token(id: u32, text: &str) -> Value {
    json!({"id": id, "text": text, "logprob": -0.5, "special": id == EOS})
}

#[tokio::test]
async fn a_whole_answer_has_tgis_shape_with_and_without_details() {
    let server = start_answering(|_| (), |_| "a\u{e9}".into()).await;
    let body = json!({"inputs": "hi", "parameters": {"max_new_tokens": 9}});
    let answer = server.post("/generate", &body).await;
    assert_eq!(answer.headers[CONTENT_TYPE], "application/json");
    assert_eq!(answer.json(), json!({"generated_text": "a\u{e9}"}));
    let parameters = json!({"details": true, "top_n_tokens": 2, "do_sample": true, "seed": 7});
    let body = json!({"inputs": "hi", "parameters": parameters});
    let half = "\u{fffd}";
    let top = |id: u32, text: &str, next: &str| {
        let next = json!({"id": id + 1, "text": next, "logprob": -1.5, "special": false});
        json!([token(id, text), next])
    };
    assert_eq!(
        server.post("/generate", &body).await.json(),
        json!({
            "generated_text": "a\u{e9}",
            "details": {
                "finish_reason": "eos_token", "generated_tokens": 4, "seed": 7, "prefill": [],
                "tokens": [
                    token(97, "a"), token(0xc3, ""), token(0xa9, "\u{e9}"), token(EOS, "<eos>"),
                ],
                "top_tokens": [
                    top(97, "a", "b"), top(0xc3, half, half), top(0xa9, half, half),
                    [
                        {"id": 0, "text": "\0", "logprob": -0.5, "special": false},
                        {"id": 1, "text": "\u{1}", "logprob": -1.5, "special": false},
                    ],
                ],
            },
        })
    );
}

#[tokio::test]
async fn the_prompts_tokens_are_told_where_they_are_asked_for() {
    let server = start_answering(|_| (), |_| "x".into()).await;
    let parameters = json!({"details": true, "decoder_input_details": true});
    let body = json!({"inputs": "abc", "parameters": parameters});
    let answer = server.post("/generate", &body).await.json();
    let token =
        |id: u32, text: &str, logprob: Value| json!({"id": id, "text": text, "logprob": logprob});
    assert_eq!(
        answer["details"]["prefill"],
        json!([
            token(97, "a", Value::Null),
            token(98, "b", json!(-0.5)),
            token(99, "c", json!(-0.5))
        ])
    );
    let refused = server.post("/generate_stream", &body).await;
    assert_eq!(refused.status, 422);
    assert!(refused.body.contains("decoder_input_details (true) cannot be streamed"));
}

#[tokio::test]
async fn the_root_answers_with_a_list_that_repeats_the_prompt_or_with_events() {
    let server = answering().await;
    let whole = server.post("/", &json!({"inputs": "hi "})).await.json();
    assert_eq!(whole, json!([{"generated_text": format!("hi {TEXT}")}]));
    let alone = json!({"inputs": "hi ", "parameters": {"return_full_text": false}});
    assert_eq!(server.post("/", &alone).await.json(), json!([{"generated_text": TEXT}]));
    let streamed = server.post("/", &json!({"inputs": "hi ", "stream": true})).await;
    assert_eq!(streamed.headers[CONTENT_TYPE], "text/event-stream");
    let events = events(&streamed);
    assert_eq!(events.last().unwrap()["generated_text"], format!("hi {TEXT}"));
    assert_eq!(joined(&events.iter().map(|event| &event["token"]).collect::<Vec<_>>()), TEXT);
}

#[tokio::test]
async fn a_stream_has_an_event_for_each_token_and_the_whole_in_the_last() {
    let server = start_answering(|_| (), |_| "a\u{e9}".into()).await;
    for details in [false, true] {
        let parameters = json!({"details": details, "seed": 7});
        let body = json!({"inputs": "hi", "parameters": parameters});
        let answer = server.post("/generate_stream", &body).await;
        assert_eq!(answer.headers["x-accel-buffering"], "no");
        assert_eq!(answer.headers["x-compute-type"], "cpu");
        assert_eq!(answer.headers["x-compute-characters"], "2");
        let one = |index: u32, token: Value| {
            let event = json!({"index": index, "generated_text": null, "details": null});
            with(event, Value::from_iter([("token", token)]))
        };
        let told = json!({
            "finish_reason": "eos_token", "generated_tokens": 4, "seed": null, "input_length": 2,
        });
        let last = json!({
            "index": 4, "token": token(EOS, "<eos>"), "generated_text": "a\u{e9}",
            "details": if details { told } else { Value::Null },
        });
        let expected =
            [one(1, token(97, "a")), one(2, token(0xc3, "")), one(3, token(0xa9, "\u{e9}")), last];
        assert_eq!(events(&answer), expected);
    }
}

#[tokio::test]
async fn a_stream_says_what_the_whole_answer_says() {
    let server = answering().await;
    for (parameters, reason, text) in [
        (json!({}), "eos_token", TEXT),
        (json!({"top_n_tokens": 2, "return_full_text": true}), "eos_token", TEXT),
        (json!({"do_sample": true, "seed": 3}), "eos_token", TEXT),
        (json!({"max_new_tokens": 5}), "length", "caf\u{e9}"),
        // Half a character is one that never became whole.
        (json!({"max_new_tokens": 4}), "length", "caf\u{fffd}"),
        (json!({"stop": ["\u{20ac}"]}), "stop_sequence", "caf\u{e9} \"\u{20ac}"),
        (json!({"stop": ["f\u{e9} ", "zz"]}), "stop_sequence", "caf\u{e9} "),
    ] {
        let body =
            json!({"inputs": "hi", "parameters": with(parameters, json!({"details": true}))});
        let whole = server.post("/generate", &body).await.json();
        let details = &whole["details"];
        let echo = if body["parameters"]["return_full_text"] == true { "hi" } else { "" };
        assert_eq!(whole["generated_text"], format!("{echo}{text}"), "{body}");
        assert_eq!(details["finish_reason"], reason, "{body}");
        let all: Vec<&Value> = details["tokens"].as_array().unwrap().iter().collect();
        assert_eq!(joined(&all), text, "{body}");
        assert_eq!(details["generated_tokens"], all.len(), "{body}");

        let answer = server.post("/generate_stream", &body).await;
        let events = events(&answer);
        let streamed: Vec<&Value> = events.iter().map(|event| &event["token"]).collect();
        assert_eq!(streamed, all, "{body}");
        let (last, earlier) = events.split_last().unwrap();
        assert!(earlier.iter().all(|event| event["generated_text"].is_null()), "{body}");
        assert_eq!(last["generated_text"], whole["generated_text"], "{body}");
        for field in ["finish_reason", "generated_tokens", "seed"] {
            assert_eq!(last["details"][field], details[field], "{field} of {body}");
        }
        for (i, event) in events.iter().enumerate() {
            assert_eq!(event["index"], i + 1, "{body}");
            let top = details.get("top_tokens").map(|top| &top[i]);
            assert_eq!(event.get("top_tokens"), top, "{body}");
        }
    }
}

#[tokio::test]
async fn a_token_is_told_with_its_text_when_that_is_certain() {
    let (server, mut engine) = start(|_| ()).await;
    let body = json!({"inputs": "p", "parameters": {"stop": ["STOP"]}});
    let mut response = server.send(post("/generate_stream", body.to_string())).await;
    let (id, _) = engine.added().await;
    let mut say = |byte: char, finish: Option<FinishReason>| {
        let mut event = event(id, tokens(&byte.to_string()), finish);
        event.logprobs = vec![logprobs(event.tokens[0], 0)];
        engine.step(vec![event]);
    };
    let told = |part: &str| {
        let text = |event: &str| {
            let event: Value = serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap();
            event["token"]["text"].as_str().unwrap().to_owned()
        };
        part.split_terminator("\n\n").map(text).collect::<Vec<_>>()
    };
    say('a', None);
    assert_eq!(told(&next_part(&mut response).await), ["a"]);
    "ST".chars().for_each(|byte| say(byte, None));
    say('b', None);
    assert_eq!(told(&next_part(&mut response).await), ["S", "T", "b"]);
    say('c', Some(FinishReason::Length));
    let rest = whole(response).await;
    assert_eq!(told(&rest.body), ["c"]);
    assert!(rest.body.contains("\"generated_text\":\"aSTbc\""), "{}", rest.body);
}

#[tokio::test]
async fn what_is_left_of_a_text_belongs_to_the_last_token_that_is_seen() {
    let (server, mut engine) = start(|_| ()).await;
    let body = json!({"inputs": "p", "parameters": {"details": true}});
    for path in ["/generate", "/generate_stream"] {
        let request = server.post(path, &body);
        let answer = async {
            let (id, _) = engine.added().await;
            // Half a character, and a special token that ends nothing.
            let mut last = event(id, vec![0xc3, EOS], Some(FinishReason::Length));
            last.logprobs = vec![logprobs(0xc3, 0), logprobs(EOS, 0)];
            engine.step(vec![last]);
        };
        let (answer, ()) = tokio::join!(request, answer);
        let expected = json!([token(0xc3, "\u{fffd}"), token(EOS, "<eos>")]);
        let (tokens, whole) = if path == "/generate" {
            (answer.json()["details"]["tokens"].take(), answer.json())
        } else {
            let events = events(&answer);
            let tokens = events.iter().map(|event| event["token"].clone()).collect();
            (tokens, events.last().unwrap().clone())
        };
        assert_eq!((tokens, &whole["generated_text"]), (expected, &json!("\u{fffd}")), "{path}");
    }
}

#[tokio::test]
async fn the_best_of_several_is_the_one_whose_tokens_are_the_likeliest_on_average() {
    let (server, mut engine) = start(|_| ()).await;
    let parameters = json!({"best_of": 3, "do_sample": true, "seed": 5, "details": true});
    let body = json!({"inputs": "p", "parameters": parameters});
    let request = server.post("/generate", &body);
    let answer = async {
        // Of the likeliest text on average the sum is the least.
        for (text, logprob) in [("a", -0.9), ("bbbb", -0.3), ("cc", -0.5)] {
            let (id, sequence) = engine.added().await;
            assert_eq!(sequence.seed, 5);
            for (i, token) in tokens(text).into_iter().enumerate() {
                let finish = (i + 1 == text.len()).then_some(FinishReason::Length);
                let mut event = event(id, vec![token], finish);
                event.logprobs = vec![logprobs(token, 0)];
                event.logprobs[0].logprob = logprob;
                engine.step(vec![event]);
            }
        }
    };
    let (answer, ()) = tokio::join!(request, answer);
    assert_eq!(answer.headers["x-generated-tokens"], "4");
    let answer = answer.json();
    assert_eq!(answer["generated_text"], "bbbb");
    assert_eq!(answer["details"]["generated_tokens"], 4);
    let others = answer["details"]["best_of_sequences"].as_array().unwrap();
    let texts: Vec<&Value> = others.iter().map(|other| &other["generated_text"]).collect();
    assert_eq!(texts, ["cc", "a"]);
    assert_eq!(others[0]["tokens"].as_array().unwrap().len(), 2);
    assert_eq!((&others[0]["finish_reason"], &others[0]["seed"]), (&json!("length"), &json!(5)));
}

#[tokio::test]
async fn headers_tell_where_the_time_went() {
    let (server, mut engine) = start(|config| {
        config.deployment.compute_type = Some("1-test".into());
    })
    .await;
    let request = server.post("/generate", &json!({"inputs": "caf\u{e9}"}));
    let answer = async {
        let (id, _) = engine.added().await;
        let mut first = event(id, tokens("ab"), Some(FinishReason::Length));
        first.waited = Some(std::time::Duration::from_millis(1234));
        engine.step(vec![first]);
    };
    let (answer, ()) = tokio::join!(request, answer);
    let header = |name: &str| answer.headers[name].to_str().unwrap().to_owned();
    for (name, value) in [
        ("x-compute-type", "1-test"),
        ("x-compute-characters", "4"),
        ("x-prompt-tokens", "5"),
        ("x-generated-tokens", "2"),
        ("x-queue-time", "1234"),
        // Less than was waited for is left.
        ("x-inference-time", "0"),
        ("x-time-per-token", "0"),
    ] {
        assert_eq!(header(name), value, "{name}");
    }
    header("x-total-time").parse::<u64>().unwrap();
    header("x-validation-time").parse::<u64>().unwrap();
    header("x-compute-time").parse::<f64>().unwrap();
}

#[tokio::test]
async fn a_failure_is_a_status_before_the_stream_and_an_event_in_it() {
    let (server, mut engine) = start(|config| config.limits.max_concurrent_requests = 1).await;
    let body = json!({"inputs": "p"});
    let nan = || Some(FinishReason::Error("the logits are NaN".into()));
    let request = server.post("/generate", &body);
    let fail = async {
        let (id, _) = engine.added().await;
        engine.say(id, "half", nan());
    };
    let (answer, ()) = tokio::join!(request, fail);
    let failed = json!({"error": "the logits are NaN", "error_type": "generation"});
    assert_eq!((answer.status.as_u16(), answer.json()), (424, failed.clone()));

    let held = server.send(post("/generate_stream", body.to_string())).await;
    let (id, _) = engine.added().await;
    for path in ["/generate", "/generate_stream", "/", "/invocations"] {
        let refused = server.post(path, &body).await;
        assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS, "{path}");
        assert_eq!(refused.headers["retry-after"], "1");
        assert_eq!(refused.json()["error_type"], "overloaded");
    }
    let mut first = event(id, tokens("a"), None);
    first.logprobs = vec![logprobs(97, 0)];
    engine.step(vec![first, event(id, vec![], nan())]);
    let events = events(&whole(held).await);
    assert_eq!(events[0]["token"]["text"], "a");
    assert_eq!(events[1..], [failed]);
}

#[tokio::test]
async fn info_tells_the_limits_as_they_are() {
    let server = start_answering(
        |config| {
            config.api_key = Some("k".into());
            config.validation_workers = 3;
            config.limits.max_input_tokens = Some(100);
            config.limits.max_total_tokens = Some(300);
            config.deployment.model_sha = Some("c0ffee".into());
        },
        |_| "never".into(),
    )
    .await;
    assert_eq!(
        server.get("/info").await.json(),
        json!({
            "model_id": "demo", "model_sha": "c0ffee", "model_pipeline_tag": "text-generation",
            "max_concurrent_requests": 512, "max_best_of": 128, "max_stop_sequences": 4,
            "max_input_tokens": 100, "max_total_tokens": 300, "validation_workers": 3,
            "max_client_batch_size": 4, "router": "millstream-router",
            "version": env!("CARGO_PKG_VERSION"), "sha": null, "docker_label": null,
        })
    );
}
