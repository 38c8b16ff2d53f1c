//! Tool calls and reasoning, whole and streamed.

use serde_json::{Value, json};

use super::*;
use crate::engine::FinishReason;
use crate::testing::{EOS, VOCAB_SIZE, event, text_model_with, tokens};

/// As Qwen3's: it shows the tools, writes calls between tags, and may think.
const QWEN: &str = "{% if tools %}{{ tools | tojson }}\n{# <tool_call> arguments <think> #}\
                    {% endif %}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}\
                    assistant: {% if enable_thinking %}<think>\n{% endif %}";

pub(super) const CALL: &str = "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Köln\"}}\n\
                    </tool_call>";
const SECOND: &str = "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>";

async fn start_model(template: &str) -> (Server, ScriptedEngine) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    start_with(text_model_with(template, &["<|odd|>", "</think>"]), listener, |_| ())
}

async fn start_qwen() -> (Server, ScriptedEngine) {
    start_model(QWEN).await
}

/// A server whose model always says this.
pub(super) async fn saying(text: &'static str) -> Server {
    let (server, engine) = start_qwen().await;
    tokio::spawn(engine.answer_all(move |_| text.into()));
    server
}

pub(super) fn tools() -> Value {
    let parameters = json!({"type": "object", "properties": {"city": {"type": "string"}}});
    json!([
        {"type": "function", "function": {"name": "weather", "parameters": parameters}},
        {"type": "function", "function": {"name": "now", "description": "the time"}},
    ])
}

fn chat(fields: Value) -> Value {
    with(json!({"messages": [{"role": "user", "content": "hi"}]}), fields)
}

/// A message or a list of deltas with the ids of its calls checked, and taken out.
fn without_ids(mut value: Value) -> Value {
    let mut ids = Vec::new();
    let messages = match &mut value {
        Value::Array(deltas) => deltas.iter_mut().collect(),
        message => vec![message],
    };
    for message in messages {
        for call in message["tool_calls"].as_array_mut().into_iter().flatten() {
            if let Some(id) = call.as_object_mut().unwrap().shift_remove("id") {
                ids.push(id.as_str().unwrap().to_owned());
            }
        }
        // Looking for calls has left a null where there are none.
        if message["tool_calls"].is_null() {
            message.as_object_mut().unwrap().shift_remove("tool_calls");
        }
    }
    for id in &ids {
        assert!(id.strip_prefix("call_").is_some_and(|id| id.len() == 32), "{id}");
        assert_eq!(ids.iter().filter(|other| *other == id).count(), 1, "{id} is there twice");
    }
    value
}

#[tokio::test]
async fn a_whole_answer_with_calls_has_openais_shape() {
    let text: &'static str = format!("I look.\n{CALL}\n{SECOND}").leak();
    let server = saying(text).await;
    let answer = server.post(CHAT, &chat(json!({"tools": tools()}))).await.json();
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls");
    let call = |name: &str, arguments: &str| json!({"type": "function", "function": {"name": name, "arguments": arguments}});
    let calls = json!([call("weather", "{\"city\": \"Köln\"}"), call("now", "{}")]);
    assert_eq!(
        without_ids(choice["message"].clone()),
        json!({
            "role": "assistant", "content": "I look.", "tool_calls": calls, "refusal": null,
        })
    );
    let server = saying(CALL).await;
    let answer = server.post(CHAT, &chat(json!({"tools": tools()}))).await.json();
    assert_eq!(answer["choices"][0]["message"]["content"], Value::Null);
}

/// The deltas of a choice, without its first and last one, and its finish reason.
fn deltas(answer: &Answer, choice: usize) -> (Vec<Value>, Value) {
    let events = answer.events();
    let of_choice = |event: &Value| Some(event["choices"].get(0)?.clone());
    let choices = events.iter().filter_map(of_choice).filter(|part| part["index"] == choice);
    let mut parts: Vec<Value> = choices.collect();
    let last = parts.pop().unwrap();
    assert_eq!(last["delta"], json!({}));
    assert_eq!(parts[0]["delta"], json!({"role": "assistant", "content": ""}));
    let deltas = parts[1..].iter().map(|part| part["delta"].clone());
    (deltas.collect(), last["finish_reason"].clone())
}

#[tokio::test]
async fn a_streamed_call_is_its_name_and_then_its_arguments() {
    let text: &'static str = format!("So.\n{CALL}\n{SECOND}").leak();
    let server = saying(text).await;
    let body = chat(json!({"tools": tools(), "stream": true, "n": 2}));
    let answer = server.post(CHAT, &body).await;
    for choice in 0..2 {
        let (deltas, reason) = deltas(&answer, choice);
        assert_eq!(reason, "tool_calls");
        let begin = |index: usize, name: &str| {
            json!({"tool_calls": [{
                "index": index, "type": "function", "function": {"name": name, "arguments": ""},
            }]})
        };
        let more = |index: usize, text: &str| json!({"tool_calls": [{"index": index, "function": {"arguments": text}}]});
        assert!(deltas.len() > 10, "{deltas:?}");
        assert_eq!(
            without_ids(json!(merged(deltas))),
            json!([
                {"content": "So."},
                begin(0, "weather"),
                more(0, "{\"city\": \"Köln\"}"),
                begin(1, "now"),
                more(1, "{}"),
            ])
        );
    }
}

/// Neighbours that are texts of the same place are one: a reader that is late gets fewer pieces.
fn merged(deltas: Vec<Value>) -> Vec<Value> {
    let text = |delta: &Value| {
        let is_begin = delta.pointer("/tool_calls/0/id").is_some();
        let places = ["/content", "/tool_calls/0/function/arguments"];
        let place = places.into_iter().find(|place| delta.pointer(place).is_some());
        place.filter(|_| !is_begin)
    };
    let mut merged: Vec<Value> = Vec::new();
    for delta in deltas {
        let place = text(&delta);
        match (place, merged.last_mut()) {
            (Some(place), Some(last)) if text(last) == Some(place) => {
                let more = delta.pointer(place).unwrap().as_str().unwrap();
                let joined = last.pointer(place).unwrap().as_str().unwrap().to_owned() + more;
                *last.pointer_mut(place).unwrap() = json!(joined);
            }
            _ => merged.push(delta),
        }
    }
    merged
}

#[tokio::test]
async fn the_reason_to_end_follows_the_choice_and_the_length() {
    let server = saying(CALL).await;
    let named = json!({"type": "function", "function": {"name": "weather"}});
    for (fields, reason) in [
        (json!({}), "tool_calls"),
        (json!({"tool_choice": "auto"}), "tool_calls"),
        (json!({"tool_choice": "required"}), "tool_calls"),
        (json!({"tool_choice": named}), "stop"),
        (json!({"tool_choice": "weather"}), "stop"),
        (json!({"max_tokens": 60}), "length"),
        (json!({"stop": "Köl"}), "tool_calls"),
    ] {
        let mut body = chat(with(json!({"tools": tools()}), fields));
        let answer = server.post(CHAT, &body).await.json();
        let choice = &answer["choices"][0];
        assert_eq!(choice["finish_reason"], reason, "{body}");
        assert_eq!(choice["message"]["tool_calls"][0]["function"]["name"], "weather");
        body["stream"] = json!(true);
        assert_eq!(deltas(&server.post(CHAT, &body).await, 0).1, reason, "{body}");
    }
    // Without a call the reason is the text's own.
    let server = saying("No.").await;
    let answer = server.post(CHAT, &chat(json!({"tools": tools()}))).await.json();
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert_eq!(answer["choices"][0]["message"]["content"], "No.");
}

#[tokio::test]
async fn calls_are_held_to_a_form_wherever_one_can_be_followed() {
    let (server, mut engine) = start_qwen().await;
    let mut strict = tools();
    strict[0]["function"]["strict"] = json!(true);
    let mut odd = tools();
    odd[0]["function"]["parameters"]["properties"]["city"]["pattern"] = json!("(");
    for (fields, is_shown, grammar) in [
        (json!({"tools": tools()}), true, Some("suffix")),
        (json!({"tools": tools(), "ignore_eos": true}), true, None),
        (json!({"tools": odd}), true, None),
        (json!({"tools": tools(), "tool_choice": "none"}), false, None),
        (json!({"tools": strict, "tool_choice": "none"}), false, None),
        (json!({"tools": strict}), true, Some("suffix")),
        (json!({"tools": tools(), "tool_choice": "required"}), true, Some("now")),
        (json!({"tools": tools(), "tool_choice": "weather"}), true, Some("weather")),
    ] {
        let request = server.post(CHAT, &chat(fields.clone()));
        let script = async {
            let (id, sequence) = engine.added().await;
            engine.say(id, "ok", Some(FinishReason::Length));
            sequence
        };
        let (_, sequence) = tokio::join!(request, script);
        let shown = tokens("the time");
        let is_there = sequence.prompt.windows(shown.len()).any(|window| window == shown);
        assert_eq!(is_there, is_shown, "{fields}");
        let source = sequence.grammar.as_ref().map(|grammar| {
            assert_eq!(grammar.kind, "lark");
            String::from_utf8(grammar.source.clone()).unwrap()
        });
        assert_eq!(source.is_some(), grammar.is_some(), "{fields}");
        let (source, part) = (source.unwrap_or_default(), grammar.unwrap_or_default());
        assert!(source.contains(part), "{fields}: {source}");
        let names_all = source.contains("weather") && source.contains("now");
        assert_eq!(names_all, grammar.is_some() && part != "weather", "{fields}: {source}");
    }
}

#[tokio::test]
async fn a_form_that_is_asked_for_begins_behind_the_reasoning_and_leaves_room_for_calls() {
    let (server, mut engine) = start_qwen().await;
    let format = json!({"response_format": {"type": "json_object"}});
    let thinking = json!({"chat_template_kwargs": {"enable_thinking": true}});
    for (fields, parts) in [
        (json!({}), ["%json", "<think>"]),
        (thinking, ["%json", "</think>"]),
        (json!({"tools": tools()}), ["%json", "weather"]),
        (json!({"tools": tools(), "tool_choice": "none"}), ["%json", "<think>"]),
    ] {
        let body = chat(with(format.clone(), fields));
        let request = server.post(CHAT, &body);
        let script = async {
            let (id, sequence) = engine.added().await;
            engine.say(id, "{}", Some(FinishReason::Length));
            sequence
        };
        let (_, sequence) = tokio::join!(request, script);
        let grammar = sequence.grammar.unwrap();
        let source = String::from_utf8(grammar.source.clone()).unwrap();
        assert_eq!(grammar.kind, "lark", "{body}");
        assert!(parts.iter().all(|part| source.contains(part)), "{body}: {source}");
    }
}

#[tokio::test]
async fn what_a_grammar_cannot_hold_is_refused_before_anything_is_said() {
    let server = saying("never").await;
    let mut strict = tools();
    strict[0]["function"]["strict"] = json!(true);
    let mut impossible = strict.clone();
    impossible[0]["function"]["parameters"] = json!({"not": {"type": "object"}});
    for (fields, param, part) in [
        (json!({"tools": impossible}), "tools[0].function.parameters", "cannot be followed"),
        (json!({"tools": strict, "ignore_eos": true}), "ignore_eos", "a grammar holds"),
    ] {
        let answer = server.post(CHAT, &chat(fields.clone())).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{fields}: {}", answer.body);
        let error = &answer.json()["error"];
        assert_eq!(error["param"], param, "{fields}: {error}");
        assert!(error["message"].as_str().unwrap().contains(part), "{fields}: {error}");
    }
}

#[tokio::test]
async fn nothing_is_read_as_a_call_where_none_may_be_made() {
    let server = saying(CALL).await;
    for fields in [json!({}), json!({"tools": tools(), "tool_choice": "none"})] {
        let answer = server.post(CHAT, &chat(fields)).await.json();
        assert_eq!(answer["choices"][0]["message"]["content"], CALL);
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    }
}

#[tokio::test]
async fn reasoning_goes_by_two_names_or_by_none() {
    let server = saying("Hm.\nYes.\n</think>\n\nNo.").await;
    let thinking = json!({"chat_template_kwargs": {"enable_thinking": true}});
    let message = |fields: Value| {
        let body = chat(with(thinking.clone(), fields));
        let answer = server.post(CHAT, &body);
        async move { answer.await.json()["choices"][0]["message"].clone() }
    };
    let thought = "Hm.\nYes.";
    assert_eq!(
        message(json!({})).await,
        json!({
            "role": "assistant", "content": "No.", "reasoning": thought,
            "reasoning_content": thought, "refusal": null,
        })
    );
    let left_out = message(json!({"include_reasoning": false})).await;
    assert_eq!(left_out, json!({"role": "assistant", "content": "No.", "refusal": null}));

    for include in [true, false] {
        let fields = json!({"stream": true, "include_reasoning": include});
        let answer = server.post(CHAT, &chat(with(thinking.clone(), fields))).await;
        let (deltas, reason) = deltas(&answer, 0);
        assert_eq!(reason, "stop");
        let joined = |name: &str| -> String {
            deltas.iter().filter_map(|delta| delta.get(name)?.as_str()).collect()
        };
        assert_eq!(joined("content"), "No.");
        let expected = if include { thought } else { "" };
        assert_eq!(joined("reasoning"), expected);
        assert_eq!(joined("reasoning_content"), expected);
    }
    // A prompt that does not end inside the reasoning leaves the answer alone.
    let answer = server.post(CHAT, &chat(json!({}))).await.json();
    assert_eq!(answer["choices"][0]["message"]["content"], "Hm.\nYes.\n</think>\n\nNo.");
}

#[tokio::test]
async fn a_prediction_is_the_content_alone() {
    let server = saying("Hm.\n</think>\n\nNo.").await;
    let instance = |fields: Value| {
        let thinking = json!({"chat_template_kwargs": {"enable_thinking": true}});
        json!({"instances": [with(chat(thinking), fields)]})
    };
    let answer = server.post("/vertex", &instance(json!({}))).await.json();
    assert_eq!(answer, json!({"predictions": ["No."]}));
    let answer = server.post("/vertex", &instance(json!({"tools": tools()}))).await;
    assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{}", answer.body);
    assert!(answer.body.contains("tools cannot be called in an instance"), "{}", answer.body);
}

#[tokio::test]
async fn a_conversation_is_tokenized_with_the_tools_that_would_be_shown() {
    let server = saying("never").await;
    for (choice, is_shown) in [("auto", true), ("none", false)] {
        let body = chat(json!({"tools": tools(), "tool_choice": choice}));
        let answer = server.post("/chat_tokenize", &body).await.json();
        let text = answer["templated_text"].as_str().unwrap();
        assert_eq!(text.contains("the time"), is_shown, "{text}");
    }
    // Also for a model that could not be asked to choose.
    let server = start_answering(|_| (), |_| "never".into()).await;
    let answer = server.post("/tokenize", &chat(json!({"tools": tools()}))).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
}

#[tokio::test]
async fn every_token_is_reported_with_its_log_probability() {
    let text: &'static str = format!("Hm.</think>\n\nSo.\n{CALL}\n").leak();
    let server = saying(text).await;
    for include in [true, false] {
        let mut body = chat(json!({
            "tools": tools(), "logprobs": true, "chat_template_kwargs": {"enable_thinking": true},
            "include_reasoning": include,
        }));
        let whole = server.post(CHAT, &body).await.json();
        let whole = whole["choices"][0]["logprobs"]["content"].clone();
        assert_eq!(whole.as_array().unwrap().len(), text.len());
        body["stream"] = json!(true);
        let events = server.post(CHAT, &body).await.events();
        let parts: Vec<&Value> = events
            .iter()
            .filter_map(|event| event["choices"][0]["logprobs"]["content"].as_array())
            .flatten()
            .collect();
        assert_eq!(json!(parts), whole);
    }
}

#[tokio::test]
async fn markers_are_seen_though_they_are_special_and_other_special_tokens_are_not() {
    let (server, mut engine) = start_qwen().await;
    let (odd, end_of_thought) = (VOCAB_SIZE, VOCAB_SIZE + 1);
    let body = chat(json!({"chat_template_kwargs": {"enable_thinking": true}}));
    let request = server.post(CHAT, &body);
    let script = async {
        let (id, _) = engine.added().await;
        let said = [tokens("a"), vec![odd, end_of_thought], tokens("b"), vec![odd, EOS]].concat();
        engine.step(vec![event(id, said, Some(FinishReason::StopToken(EOS)))]);
    };
    let (answer, ()) = tokio::join!(request, script);
    let message = &answer.json()["choices"][0]["message"];
    assert_eq!((&message["reasoning"], &message["content"]), (&json!("a"), &json!("b")));
}

#[tokio::test]
async fn a_model_without_a_format_calls_only_where_it_is_made_to() {
    let server = start_answering(|_| (), |_| CALL.into()).await;
    let auto = server.post(CHAT, &chat(json!({"tools": tools()}))).await;
    assert_eq!(auto.status, StatusCode::BAD_REQUEST);
    let error = &auto.json()["error"];
    assert_eq!(error["param"], "tools");
    assert!(error["message"].as_str().unwrap().contains("--tool-call-parser"), "{error}");
    let body = chat(json!({"tools": tools(), "tool_choice": "required"}));
    let answer = server.post(CHAT, &body).await.json();
    let call = &answer["choices"][0]["message"]["tool_calls"][0]["function"];
    assert_eq!(call["name"], "weather");
}

#[tokio::test]
async fn ids_are_such_as_the_template_takes_back() {
    let (server, engine) = start_model("{# [TOOL_CALLS] #}{{ messages[0].content }}").await;
    tokio::spawn(engine.answer_all(|_| "[TOOL_CALLS]now[ARGS]{}[TOOL_CALLS]now[ARGS]{}".into()));
    let answer = server.post(CHAT, &chat(json!({"tools": tools()}))).await.json();
    let calls = answer["choices"][0]["message"]["tool_calls"].clone();
    let ids = [&calls[0]["id"], &calls[1]["id"]].map(|id| id.as_str().unwrap());
    assert!(ids.iter().all(|id| id.len() == 9), "{calls}");
    assert_ne!(ids[0], ids[1]);
}

#[tokio::test]
async fn every_rule_of_the_tools_names_the_place_the_rule_and_the_value() {
    let server = saying("never").await;
    let tool = |function: Value| json!({"tools": [{"type": "function", "function": function}]});
    let long = "x".repeat(65);
    let twice = json!([tools()[0], tools()[0]]);
    let many: Vec<Value> = (0..129)
        .map(|i| json!({"type": "function", "function": {"name": format!("f{i}")}}))
        .collect();
    let choice = |choice: Value| json!({"tools": tools(), "tool_choice": choice});
    for (fields, param, part) in [
        (json!({"tools": "x"}), "tools", "a list of tools, not \"x\""),
        (json!({"tools": many}), "tools", "at most 128 tools, not 129"),
        (json!({"tools": [1]}), "tools[0]", "an object, not 1"),
        (json!({"tools": [{}]}), "tools[0].type", "must be given"),
        (json!({"tools": [{"type": "code"}]}), "tools[0].type", "\"function\", not \"code\""),
        (json!({"tools": [{"type": "function"}]}), "tools[0].function", "must be given"),
        (tool(json!("f")), "tools[0].function", "an object, not \"f\""),
        (tool(json!({})), "tools[0].function.name", "must be given"),
        (tool(json!({"name": "a b"})), "tools[0].function.name", "letters, digits"),
        (tool(json!({"name": long})), "tools[0].function.name", "1 to 64"),
        (tool(json!({"name": "f", "description": 1})), "tools[0].function.description", "a string"),
        (tool(json!({"name": "f", "parameters": []})), "tools[0].function.parameters", "schema"),
        (tool(json!({"name": "f", "strict": 1})), "tools[0].function.strict", "true or false"),
        (json!({"tools": twice}), "tools[1].function.name", "(\"weather\") must not be"),
        (choice(json!(1)), "tool_choice", "none, auto, required, or a function"),
        (choice(json!({"type": "function"})), "tool_choice", "an object"),
        (choice(json!("other")), "tool_choice", "names \"other\", which is none of the tools"),
        (json!({"tool_choice": "required"}), "tool_choice", "(\"required\") needs tools"),
        (choice(json!({"type": "allowed_tools"})), "tool_choice", "an object"),
        (
            with(json!({"parallel_tool_calls": 1}), json!({"tools": tools()})),
            "parallel_tool_calls",
            "true or false",
        ),
        (json!({"include_reasoning": "no"}), "include_reasoning", "true or false"),
    ] {
        let answer = server.post(CHAT, &chat(fields.clone())).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{fields}: {}", answer.body);
        let error = &answer.json()["error"];
        assert_eq!(error["param"], param, "{fields}: {error}");
        assert!(error["message"].as_str().unwrap().contains(part), "{fields}: {error}");
    }
}
