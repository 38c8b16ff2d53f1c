//! Whole answers and streamed ones: their shapes, and that they say the same.

use serde_json::{Value, json};

use super::*;
use crate::engine::FinishReason;
use crate::testing::{EOS, event, logprobs, tokens};

/// What the scripted model answers: another text for every choice, in more than ASCII.
fn text_of(sequence: &NewSequence) -> String {
    format!(
        "choice {} of {}: caf\u{e9} \"\u{20ac}\"\n\t\u{7f}\u{1f600}",
        sequence.choice,
        sequence.prompt.len()
    )
}

async fn answering() -> Server {
    start_answering(|_| (), text_of).await
}

fn chat(fields: Value) -> Value {
    with(json!({"model": "demo", "messages": [{"role": "user", "content": "hi"}]}), fields)
}

fn completion(prompt: Value, fields: Value) -> Value {
    let prompt = Value::from_iter([("prompt", prompt)]);
    with(with(json!({"model": "demo", "max_tokens": 100}), prompt), fields)
}

/// Tokens of "user: hi\nassistant: ".
const CHAT_TOKENS: usize = 20;

#[tokio::test]
async fn a_whole_chat_answer_has_openais_shape() {
    let server = answering().await;
    let answer = server.post(CHAT, &chat(json!({}))).await;
    assert_eq!(answer.headers[CONTENT_TYPE], "application/json");
    let mut answer = answer.json();
    let id = answer["id"].take();
    assert!(id.as_str().unwrap().starts_with("chatcmpl-"), "{id}");
    assert!(answer["created"].take().as_u64().unwrap() > 1_700_000_000);
    let text = format!("choice 0 of {CHAT_TOKENS}: caf\u{e9} \"\u{20ac}\"\n\t\u{7f}\u{1f600}");
    let tokens = text.len() + 1;
    assert_eq!(
        answer,
        json!({
            "id": null, "object": "chat.completion", "created": null, "model": "demo",
            "system_fingerprint": "fp_sha2560123",
            "choices": [{
                "index": 0,
                "message": {"role": "assistant", "content": text, "refusal": null},
                "logprobs": null,
                "finish_reason": "stop",
                "stop_reason": null,
            }],
            "usage": {
                "prompt_tokens": CHAT_TOKENS, "completion_tokens": tokens,
                "total_tokens": CHAT_TOKENS + tokens,
                "prompt_tokens_details": {"cached_tokens": 2},
            },
        })
    );
}

#[tokio::test]
async fn a_whole_completion_has_openais_shape() {
    let server = answering().await;
    let body =
        completion(json!(["ab", [97, 98, 99]]), json!({"n": 2, "max_tokens": 10, "echo": true}));
    let mut answer = server.post(COMPLETIONS, &body).await.json();
    assert!(answer["id"].take().as_str().unwrap().starts_with("cmpl-"));
    answer["created"].take();
    let choice = |index: usize, text: &str| json!({"index": index, "text": text, "logprobs": null, "finish_reason": "length", "stop_reason": null});
    assert_eq!(
        answer,
        json!({
            "id": null, "object": "text_completion", "created": null, "model": "demo",
            "system_fingerprint": "fp_sha2560123",
            "choices": [
                choice(0, "abchoice 0 o"), choice(1, "abchoice 1 o"),
                choice(2, "abcchoice 0 o"), choice(3, "abcchoice 1 o"),
            ],
            "usage": {
                "prompt_tokens": 5, "completion_tokens": 40, "total_tokens": 45,
                "prompt_tokens_details": {"cached_tokens": 4},
            },
        })
    );
}

#[tokio::test]
async fn a_chat_stream_is_role_then_content_then_end_then_usage() {
    let server = answering().await;
    for include_usage in [false, true] {
        let fields = json!({"stream": true, "stream_options": {"include_usage": include_usage}, "max_tokens": 9});
        let answer = server.post(CHAT, &chat(fields)).await;
        assert_eq!(answer.headers[CONTENT_TYPE], "text/event-stream");
        assert_eq!(answer.headers["cache-control"], "no-cache");
        assert_eq!(answer.headers["x-accel-buffering"], "no");
        let mut events = answer.events();
        for event in &mut events {
            assert_eq!(event["object"], "chat.completion.chunk");
            assert_eq!(event["model"], "demo");
            assert!(event["id"].as_str().unwrap().starts_with("chatcmpl-"));
        }
        let id = events[0]["id"].clone();
        assert!(events.iter().all(|event| event["id"] == id));
        if include_usage {
            let usage = events.pop().unwrap();
            assert_eq!(usage["choices"], json!([]));
            assert_eq!(usage["usage"]["total_tokens"], CHAT_TOKENS + 9);
            assert!(events.iter().all(|event| event.get("usage") == Some(&Value::Null)));
        } else {
            assert!(events.iter().all(|event| event.get("usage").is_none()));
        }
        let choice = |delta: Value, reason: Value| json!([{"index": 0, "delta": delta, "logprobs": null, "finish_reason": reason}]);
        let first = choice(json!({"role": "assistant", "content": ""}), Value::Null);
        assert_eq!(events[0]["choices"], first);
        let mut last = choice(json!({}), json!("length"));
        last[0]["stop_reason"] = Value::Null;
        assert_eq!(events.last().unwrap()["choices"], last);
        let middle = &events[1..events.len() - 1];
        let content =
            |event: &Value| event["choices"][0]["delta"]["content"].as_str().unwrap().to_owned();
        assert_eq!(middle.iter().map(content).collect::<String>(), "choice 0 ");
        assert_eq!(middle.len(), 9, "one event per token");
    }
}

#[tokio::test]
async fn a_stream_says_what_the_whole_answer_says() {
    let server = answering().await;
    let bodies = [
        (CHAT, chat(json!({"n": 3}))),
        (CHAT, chat(json!({"stop": ["caf", "\u{20ac}"]}))),
        (CHAT, chat(json!({"stop": "caf\u{e9}", "include_stop_str_in_output": true}))),
        (CHAT, chat(json!({"logprobs": true, "top_logprobs": 2}))),
        (COMPLETIONS, completion(json!(["a", "bc"]), json!({"n": 2, "echo": true}))),
        (COMPLETIONS, completion(json!("a"), json!({"logprobs": 2, "stop": "\""}))),
        (COMPLETIONS, completion(json!(["a", "bc"]), json!({"logprobs": 1, "echo": true}))),
        (COMPLETIONS, completion(json!("abc"), json!({"echo": true, "max_tokens": 0}))),
    ];
    for (path, mut body) in bodies {
        let whole = server.post(path, &body).await.json();
        body["stream"] = json!(true);
        body["stream_options"] = json!({"include_usage": true});
        let answer = server.post(path, &body).await;
        let mut events = answer.events();
        let usage = events.pop().unwrap()["usage"].clone();
        assert_eq!(usage, whole["usage"], "{body}");
        for choice in whole["choices"].as_array().unwrap() {
            let parts: Vec<&Value> = events
                .iter()
                .map(|event| &event["choices"][0])
                .filter(|part| part["index"] == choice["index"])
                .collect();
            for field in ["finish_reason", "stop_reason"] {
                assert_eq!(parts.last().unwrap()[field], choice[field], "{field} of {body}");
            }
            let text = |part: &&Value| {
                let text = part["delta"].get("content").unwrap_or(&part["text"]);
                text.as_str().unwrap_or_default().to_owned()
            };
            let whole_text =
                if path == CHAT { &choice["message"]["content"] } else { &choice["text"] };
            assert_eq!(&json!(parts.iter().map(text).collect::<String>()), whole_text, "{body}");
            for list in ["content", "tokens", "token_logprobs", "top_logprobs", "text_offset"] {
                let Some(whole) = choice["logprobs"].get(list) else { continue };
                let parts: Vec<&Value> = parts
                    .iter()
                    .filter_map(|part| part["logprobs"].get(list)?.as_array())
                    .flatten()
                    .collect();
                assert_eq!(json!(parts), *whole, "{list} of {body}");
            }
        }
    }
}

#[tokio::test]
async fn a_choice_says_which_stop_of_the_request_ended_it() {
    let server = start_answering(|_| (), |_| "a b".into()).await;
    for (fields, reason, stop_reason) in [
        (json!({}), "stop", json!(null)),
        (json!({"stop": ["zz", " "]}), "stop", json!(" ")),
        (json!({"stop_token_ids": [32]}), "stop", json!(32)),
        (json!({"max_tokens": 2}), "length", json!(null)),
    ] {
        for (path, body) in
            [(CHAT, chat(fields.clone())), (COMPLETIONS, completion(json!("p"), fields))]
        {
            let answer = server.post(path, &body).await.json();
            let choice = &answer["choices"][0];
            assert_eq!(choice["finish_reason"], reason, "{body}");
            assert_eq!(choice["stop_reason"], stop_reason, "{body}");
        }
    }
}

#[tokio::test]
async fn the_best_of_several_completions_are_the_likeliest_and_all_of_them_are_counted() {
    let (server, mut engine) = start(|_| ()).await;
    let body = completion(json!(["x", "y"]), json!({"n": 2, "best_of": 3}));
    let request = server.post(COMPLETIONS, &body);
    let answer = async {
        for (text, logprob) in
            [("aa", -0.9), ("b", -0.2), ("cc", -0.5), ("dd", -0.1), ("e", -0.3), ("ff", -0.7)]
        {
            let (id, _) = engine.added().await;
            let mut last = event(id, tokens(text), Some(FinishReason::Length));
            last.logprobs = last.tokens.iter().map(|token| logprobs(*token, 0)).collect();
            last.logprobs.iter_mut().for_each(|reported| reported.logprob = logprob);
            engine.step(vec![last]);
        }
    };
    let (answer, ()) = tokio::join!(request, answer);
    let answer = answer.json();
    let choices = answer["choices"].as_array().unwrap();
    let texts: Vec<&Value> = choices.iter().map(|choice| &choice["text"]).collect();
    assert_eq!(texts, ["b", "cc", "dd", "e"]);
    for (index, choice) in choices.iter().enumerate() {
        assert_eq!((&choice["index"], &choice["logprobs"]), (&json!(index), &Value::Null));
    }
    assert_eq!(answer["usage"]["completion_tokens"], 10);
}

#[tokio::test]
async fn logprobs_have_openais_shapes() {
    let server = start_answering(|_| (), |_| "a\u{e9}".into()).await;
    let fields = json!({"logprobs": true, "top_logprobs": 1});
    let answer = server.post(CHAT, &chat(fields)).await.json();
    let entry = |token: &str, byte: u8| {
        json!({
            "token": token, "logprob": -0.5, "bytes": [byte],
            "top_logprobs": [{"token": token, "logprob": -0.5, "bytes": [byte]}],
        })
    };
    let half = "\u{fffd}";
    assert_eq!(
        answer["choices"][0]["logprobs"],
        json!({"content": [entry("a", 97), entry(half, 0xc3), entry(half, 0xa9)], "refusal": null})
    );
    let answer =
        server.post(COMPLETIONS, &completion(json!("p"), json!({"logprobs": 2}))).await.json();
    assert_eq!(
        answer["choices"][0]["logprobs"],
        json!({
            "tokens": ["a", half, half], "token_logprobs": [-0.5, -0.5, -0.5],
            "top_logprobs": [{"a": -0.5, "b": -1.5}, {half: -0.5}, {half: -0.5}],
            "text_offset": [0, 1, 1],
        })
    );
    let answer =
        server.post(COMPLETIONS, &completion(json!("p"), json!({"logprobs": 0}))).await.json();
    assert_eq!(answer["choices"][0]["logprobs"]["top_logprobs"], Value::Null);
}

#[tokio::test]
async fn a_prompt_that_is_echoed_is_scored_from_its_second_token_on() {
    let server = start_answering(|_| (), |_| "x".into()).await;
    let fields = json!({"logprobs": 1, "echo": true, "max_tokens": 1, "n": 2});
    let answer = server.post(COMPLETIONS, &completion(json!("a\u{e9}b"), fields)).await.json();
    let half = "\u{fffd}";
    for choice in answer["choices"].as_array().unwrap() {
        assert_eq!(choice["text"], "a\u{e9}bx");
        assert_eq!(
            choice["logprobs"],
            json!({
                "tokens": ["a", half, half, "b", "x"],
                "token_logprobs": [null, -0.5, -0.5, -0.5, -0.5],
                "top_logprobs": [null, {half: -0.5}, {half: -0.5}, {"b": -0.5}, {"x": -0.5}],
                "text_offset": [0, 1, 1, 2, 3],
            })
        );
    }
}

#[tokio::test]
async fn a_prompt_can_be_scored_alone() {
    let server = start_answering(|_| (), |_| "x".into()).await;
    let fields = json!({"logprobs": 0, "echo": true, "max_tokens": 0});
    for (prompt, logprobs) in [("ab", json!([null, -0.5])), ("a", json!([null]))] {
        let body = completion(json!(prompt), fields.clone());
        let answer = server.post(COMPLETIONS, &body).await.json();
        let choice = &answer["choices"][0];
        assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!(prompt), &json!("length")));
        assert_eq!(choice["logprobs"]["token_logprobs"], logprobs);
        assert_eq!(answer["usage"]["completion_tokens"], 0);
    }
}

#[tokio::test]
async fn the_ids_of_tokens_are_told_whole_and_piece_by_piece() {
    let server = start_answering(|_| (), |_| "a\u{e9}".into()).await;
    let output = json!([97, 0xc3, 0xa9, EOS]);
    let ids = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let bodies = [
        (CHAT, chat(json!({"n": 2}))),
        (COMPLETIONS, completion(json!(["p", "q"]), json!({"n": 2}))),
        (COMPLETIONS, completion(json!(["p", "q"]), json!({"echo": true, "logprobs": 1}))),
    ];
    for (path, mut body) in bodies {
        body["return_token_ids"] = json!(true);
        let whole = server.post(path, &body).await.json();
        body["stream"] = json!(true);
        let events = server.post(path, &body).await.events();
        for choice in whole["choices"].as_array().unwrap() {
            assert_eq!(choice["token_ids"], output, "{body}");
            let parts = events.iter().map(|event| &event["choices"][0]);
            let parts: Vec<&Value> =
                parts.filter(|part| part["index"] == choice["index"]).collect();
            let told: Vec<Value> = parts.iter().flat_map(|part| ids(&part["token_ids"])).collect();
            assert_eq!(json!(told), output, "{body}");
            assert_eq!(parts[0]["prompt_token_ids"], choice["prompt_token_ids"], "{body}");
            assert!(!ids(&choice["prompt_token_ids"]).is_empty());
        }
        if path == COMPLETIONS {
            let last = whole["choices"].as_array().unwrap().last().unwrap();
            assert_eq!(last["prompt_token_ids"], json!([113]));
        }
    }
}

#[tokio::test]
async fn a_final_message_can_be_continued() {
    let (server, mut engine) = start(|_| ()).await;
    let messages =
        json!([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "well"}]);
    let body = json!({"messages": messages, "continue_final_message": true});
    let request = server.send(post(CHAT, body.to_string()));
    let answer = async {
        let (id, sequence) = engine.added().await;
        engine.say(id, "x", Some(FinishReason::Length));
        sequence
    };
    let (_, sequence) = tokio::join!(request, answer);
    let prompt: Vec<u8> = sequence.prompt.iter().map(|token| *token as u8).collect();
    assert_eq!(String::from_utf8(prompt).unwrap(), "user: hi\nassistant: well");
}

#[tokio::test]
async fn equal_prompts_of_a_request_without_a_seed_are_drawn_differently() {
    let (server, mut engine) = start(|_| ()).await;
    for (seed, prompts_differ) in [(Value::Null, true), (json!(5), false)] {
        let body = completion(json!(["a", "a"]), json!({"n": 2, "seed": seed}));
        let request = server.send(post(COMPLETIONS, body.to_string()));
        let answer = async {
            let mut drawn = Vec::new();
            for _ in 0..4 {
                let (id, sequence) = engine.added().await;
                drawn.push((sequence.seed, sequence.choice));
                engine.say(id, "", Some(FinishReason::Length));
            }
            drawn
        };
        let (_, drawn) = tokio::join!(request, answer);
        assert_eq!(drawn[0].0, drawn[1].0);
        assert_eq!(drawn.iter().map(|drawn| drawn.1).collect::<Vec<_>>(), [0, 1, 0, 1]);
        assert_eq!(drawn[0].0 != drawn[2].0, prompts_differ);
    }
}
