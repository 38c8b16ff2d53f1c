//! What is refused, and how it is said; what is accepted, and what it becomes.

use serde_json::{Value, json};

use super::*;
use crate::engine::SamplingParams;
use crate::testing::EOS;

/// A body with everything it needs and `fields` over it.
fn body(path: &str, fields: Value) -> Value {
    with(
        match path {
            CHAT => json!({"messages": [{"role": "user", "content": "hi"}]}),
            _ => json!({"prompt": "hi"}),
        },
        fields,
    )
}

/// Sends each case and compares status, param and a part of the message.
async fn check(path: &str, cases: &[(Value, u16, Value, &str)]) {
    let server = start_answering(|_| (), |_| "never".into()).await;
    for (fields, status, param, part) in cases {
        let answer = server.post(path, &body(path, fields.clone())).await;
        assert_eq!(answer.status.as_u16(), *status, "{fields}: {}", answer.body);
        let error = &answer.json()["error"];
        let message = error["message"].as_str().unwrap();
        assert_eq!(&error["param"], param, "{fields}: {message}");
        assert!(message.contains(part), "{fields}: {message:?} lacks {part:?}");
        assert!(message.len() < 300, "{fields}: {} bytes", message.len());
        assert!(error["type"].is_string(), "{fields}: {error}");
    }
}

/// The shared fields, in either API.
#[tokio::test]
async fn every_rule_of_a_shared_field_names_the_field_the_rule_and_the_value() {
    let huge = "x".repeat(2000);
    let cases = |path: &str| -> Vec<(Value, u16, Value, &'static str)> {
        let invalid =
            |fields: Value, param: &str, part: &'static str| (fields, 400, json!(param), part);
        let mut cases = vec![
            (json!({"model": "gpt-9"}), 404, json!("model"), "\"gpt-9\" does not exist"),
            invalid(json!({"model": 7}), "model", "a string, not 7"),
            invalid(json!({"n": 0}), "n", "from 1 to 128, not 0"),
            invalid(json!({"n": 129}), "n", "not 129"),
            invalid(json!({"n": 1.5}), "n", "an integer"),
            invalid(json!({"temperature": -0.1}), "temperature", "from 0 to 100, not -0.1"),
            invalid(json!({"temperature": 1e300}), "temperature", "not 1e+300"),
            invalid(json!({"temperature": "hot"}), "temperature", "a number"),
            invalid(json!({"top_p": 1.01}), "top_p", "from 0 to 1, not 1.01"),
            invalid(json!({"top_p": -1}), "top_p", "not -1"),
            invalid(json!({"top_k": -2}), "top_k", "from -1"),
            invalid(json!({"top_k": 1e12}), "top_k", "an integer"),
            invalid(json!({"min_p": 2}), "min_p", "from 0 to 1, not 2"),
            invalid(json!({"typical_p": 0}), "typical_p", "above 0 and at most 1, not 0"),
            invalid(json!({"typical_p": 1.5}), "typical_p", "not 1.5"),
            invalid(
                json!({"repetition_penalty": 0}),
                "repetition_penalty",
                "above 0 and at most 100, not 0",
            ),
            invalid(json!({"repetition_penalty": -1.1}), "repetition_penalty", "not -1.1"),
            invalid(json!({"repetition_penalty": "1.1"}), "repetition_penalty", "not \"1.1\""),
            invalid(json!({"presence_penalty": 2.5}), "presence_penalty", "from -2 to 2, not 2.5"),
            invalid(json!({"frequency_penalty": -3}), "frequency_penalty", "from -2 to 2, not -3"),
            invalid(json!({"frequency_penalty": [1]}), "frequency_penalty", "a number"),
            invalid(json!({"seed": "one"}), "seed", "an integer of 64 bits"),
            invalid(json!({"seed": 1.5}), "seed", "not 1.5"),
            invalid(json!({"max_tokens": 0}), "max_tokens", "0"),
            invalid(json!({"max_tokens": -5}), "max_tokens", "not -5"),
            invalid(json!({"max_completion_tokens": 1e18}), "max_completion_tokens", "an integer"),
            invalid(json!({"stop": ["a", "b", "c", "d", "e"]}), "stop", "at most 4 strings, not 5"),
            invalid(json!({"stop": [""]}), "stop[0]", "1 to 1024 bytes, not 0"),
            invalid(json!({"stop": ["a", huge]}), "stop[1]", "not 2000"),
            invalid(json!({"stop": ["a", 1]}), "stop[1]", "a string, not 1"),
            invalid(json!({"stop": 1}), "stop", "a string or a list"),
            invalid(
                json!({"stop_token_ids": [257]}),
                "stop_token_ids[0]",
                "from 0 to 256, not 257",
            ),
            invalid(json!({"stop_token_ids": [-1]}), "stop_token_ids[0]", "not -1"),
            invalid(json!({"stop_token_ids": vec![1; 129]}), "stop_token_ids", "at most 128"),
            invalid(json!({"stop_token_ids": 5}), "stop_token_ids", "a list"),
            invalid(json!({"logit_bias": {"257": 1}}), "logit_bias", "below 257, not \"257\""),
            invalid(json!({"logit_bias": {"a": 1}}), "logit_bias", "not \"a\""),
            invalid(json!({"logit_bias": {"5": 101}}), "logit_bias.5", "from -100 to 100, not 101"),
            invalid(json!({"logit_bias": [1]}), "logit_bias", "an object, not a list of 1"),
            invalid(json!({"min_tokens": -1}), "min_tokens", "from 0"),
            invalid(
                json!({"min_tokens": 9, "max_tokens": 8}),
                "min_tokens",
                "(9) must not exceed max_tokens (8)",
            ),
            invalid(json!({"ignore_eos": "yes"}), "ignore_eos", "true or false, not \"yes\""),
            invalid(json!({"cache_salt": ""}), "cache_salt", "1 to 256 bytes, not 0"),
            invalid(json!({"stream": 1}), "stream", "true or false"),
            invalid(json!({"stream_options": {}}), "stream_options", "stream: true"),
            invalid(
                json!({"stream": true, "stream_options": {"include_usage": 1}}),
                "stream_options.include_usage",
                "true or false",
            ),
            invalid(json!({"tools": "x"}), "tools", "a list of tools"),
        ];
        let prompt = if path == CHAT { "messages" } else { "prompt" };
        let too_long = |limit: &str| {
            (json!({(limit): 512}), 400, json!(limit), "exceeds the context left after the prompt")
        };
        cases.extend([too_long("max_tokens"), too_long("max_completion_tokens")]);
        let long = "y".repeat(512);
        let long =
            if path == CHAT { json!([{"role": "user", "content": long}]) } else { json!(long) };
        let fields = json!({(prompt): long});
        cases.push((fields, 400, json!(prompt), "maximum context length is 512 tokens"));
        cases
    };
    for path in [CHAT, COMPLETIONS] {
        check(path, &cases(path)).await;
    }
}

#[tokio::test]
async fn a_field_that_would_change_the_answer_and_is_not_there_yet_is_refused_by_name() {
    let fields = [
        ("no_repeat_ngram_size", json!(3)),
        ("length_penalty", json!(2)),
        ("priority", json!(1)),
        ("prompt_logprobs", json!(0)),
        ("functions", json!([{"name": "f"}])),
        ("function_call", json!({"name": "f"})),
        ("audio", json!({"voice": "a"})),
        ("modalities", json!(["text", "audio"])),
        ("use_beam_search", json!(true)),
        ("bad_words", json!(["a"])),
        ("allowed_token_ids", json!([1])),
        ("truncate_prompt_tokens", json!(1)),
        ("chat_template", json!("{{ messages }}")),
    ];
    let cases: Vec<_> = fields
        .into_iter()
        .map(|(name, value)| (json!({(name): value}), 400, json!(name), "is not supported yet"))
        .collect();
    for path in [CHAT, COMPLETIONS] {
        check(path, &cases).await;
    }
    for (name, value) in [("echo", json!(true)), ("best_of", json!(2))] {
        check(CHAT, &[(json!({(name): value}), 400, json!(name), "not supported yet")]).await;
    }
    let tools = json!([{"type": "function", "function": {"name": "f"}}]);
    let for_chats = [
        (json!({"tools": tools}), 400, json!("tools"), "not supported yet"),
        (json!({"tool_choice": "required"}), 400, json!("tool_choice"), "not supported yet"),
    ];
    check(COMPLETIONS, &for_chats).await;
}

#[tokio::test]
async fn every_rule_of_a_conversation_names_the_place_the_rule_and_the_value() {
    let message = |message: Value| json!({"messages": [{"role": "user", "content": "a"}, message]});
    let call = |function: Value| {
        message(json!({"role": "assistant", "tool_calls": [{"id": "c", "function": function}]}))
    };
    let function = "messages[1].tool_calls[0].function";
    let deep = "[".repeat(200) + &"]".repeat(200);
    let cases = [
        (json!({"messages": null}), "messages", "must be given"),
        (json!({"messages": []}), "messages", "at least one message"),
        (json!({"messages": "hi"}), "messages", "a list of messages, not \"hi\""),
        (json!({"messages": [1]}), "messages[0]", "an object, not 1"),
        (message(json!({"content": "a"})), "messages[1].role", "must be given"),
        (message(json!({"role": "robot"})), "messages[1].role", "system, developer, user"),
        (message(json!({"role": "user"})), "messages[1].content", "must be given"),
        (message(json!({"role": "user", "content": 5})), "messages[1].content", "not 5"),
        (
            message(json!({"role": "user", "content": [{"type": "image_url", "image_url": {}}]})),
            "messages[1].content[0].type",
            "\"image_url\"",
        ),
        (
            message(json!({"role": "user", "content": [{"type": "text"}]})),
            "messages[1].content[0].text",
            "must be given",
        ),
        (
            message(json!({"role": "user", "content": ["a"]})),
            "messages[1].content[0]",
            "an object with a type",
        ),
        (
            message(json!({"role": "user", "content": "a", "name": 1})),
            "messages[1].name",
            "a string, not 1",
        ),
        (
            message(json!({"role": "assistant", "tool_calls": {}})),
            "messages[1].tool_calls",
            "a list of tool calls",
        ),
        (call(json!("f")), function, "an object with a name"),
        (call(json!({})), &format!("{function}.name"), "must be given"),
        (
            call(json!({"name": "f", "arguments": "{"})),
            &format!("{function}.arguments"),
            "a JSON object as a string, not \"{\"",
        ),
        (
            call(json!({"name": "f", "arguments": deep})),
            &format!("{function}.arguments"),
            "a JSON object as a string",
        ),
        (json!({"logprobs": 1}), "logprobs", "true or false"),
        (json!({"top_logprobs": 2}), "top_logprobs", "(2) needs logprobs: true"),
        (json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs", "from 0 to 20, not 21"),
        (json!({"chat_template_kwargs": 1}), "chat_template_kwargs", "an object, not 1"),
        (
            json!({"continue_final_message": true}),
            "continue_final_message",
            "needs an assistant's message",
        ),
        (
            json!({"continue_final_message": true, "add_generation_prompt": true}),
            "continue_final_message",
            "cannot go with add_generation_prompt",
        ),
    ];
    let cases: Vec<_> =
        cases.into_iter().map(|(fields, param, part)| (fields, 400, json!(param), part)).collect();
    check(CHAT, &cases).await;
}

#[tokio::test]
async fn every_rule_of_a_prompt_names_the_place_the_rule_and_the_value() {
    let cases = [
        (json!({"prompt": null}), "prompt", "must be given"),
        (json!({"prompt": {}}), "prompt", "a string, token ids, or a list of these"),
        (json!({"prompt": ""}), "prompt", "at least one token"),
        (json!({"prompt": []}), "prompt", "1 to 4 prompts, not 0"),
        (json!({"prompt": ["a", "b", "c", "d", "e"]}), "prompt", "not 5"),
        (json!({"prompt": ["a", 5]}), "prompt[1]", "a string or a list of token ids, not 5"),
        (json!({"prompt": [5, "a"]}), "prompt[1]", "a token id from 0 to 256"),
        (json!({"prompt": [5, 300]}), "prompt[1]", "not 300"),
        (json!({"prompt": [[5], [-1]]}), "prompt[1][0]", "not -1"),
        (json!({"prompt": [[]]}), "prompt", "at least one token"),
        (
            json!({"prompt": ["a", "b", "c", "d"], "n": 128}),
            "n",
            "(128) times the number of prompts (4)",
        ),
        (json!({"best_of": 129}), "best_of", "from 1 to 128, not 129"),
        (json!({"best_of": 2, "n": 3}), "best_of", "(2) must be at least n (3)"),
        (json!({"best_of": 2, "stream": true}), "best_of", "(2) cannot be streamed"),
        (json!({"logprobs": 21}), "logprobs", "from 0 to 20, not 21"),
        (json!({"logprobs": true}), "logprobs", "an integer"),
        (json!({"max_tokens": 0}), "max_tokens", "(0) needs echo: true"),
        (json!({"suffix": "end"}), "suffix", "not made to fill in"),
        (json!({"suffix": "end", "prompt": [5]}), "suffix", "not as token ids"),
        (json!({"min_tokens": 17}), "min_tokens", "(17) exceeds the tokens to generate (16)"),
    ];
    let cases: Vec<_> =
        cases.into_iter().map(|(fields, param, part)| (fields, 400, json!(param), part)).collect();
    let server = start_answering(|c| c.limits.max_concurrent_requests = 500, |_| "no".into()).await;
    for (fields, status, param, part) in cases {
        let answer = server.post(COMPLETIONS, &body(COMPLETIONS, fields.clone())).await;
        let error = answer.json()["error"].clone();
        assert_eq!(
            (answer.status.as_u16(), &error["param"]),
            (status, &param),
            "{fields}: {error}"
        );
        assert!(error["message"].as_str().unwrap().contains(part), "{fields}: {error}");
    }
}

#[tokio::test]
async fn neutral_values_and_fields_without_effect_are_accepted() {
    let server = start_answering(|_| (), |_| "yes".into()).await;
    let tool = json!([{"type": "function", "function": {"name": "f"}}]);
    for fields in [
        json!({"frequency_penalty": 0, "presence_penalty": 0.0, "repetition_penalty": 1}),
        json!({"frequency_penalty": 2, "presence_penalty": -2, "repetition_penalty": 0.5}),
        json!({"typical_p": 1, "length_penalty": 1, "no_repeat_ngram_size": 0}),
        json!({"best_of": 1, "suffix": "", "use_beam_search": false, "bad_words": []}),
        json!({"n": 2, "best_of": 2}),
        json!({"response_format": {"type": "text"}, "modalities": ["text"], "functions": []}),
        json!({"tools": tool, "tool_choice": "none", "parallel_tool_calls": true}),
        json!({"tools": [], "tool_choice": "auto", "function_call": "none"}),
        json!({"user": "u", "metadata": {"a": "b"}, "store": true, "service_tier": "auto"}),
        json!({"temperature": 0, "top_p": 0, "top_k": -1, "min_p": 0, "seed": -1, "stop": "z"}),
        json!({"seed": u64::MAX, "max_tokens": 4.0, "max_completion_tokens": 2, "stop": null}),
        json!({"model": "demo-alias", "logit_bias": {}, "stop_token_ids": [], "tools": null}),
        json!({"stream": false, "stream_options": null, "some_future_field": {"a": [1]}}),
        json!({"skip_special_tokens": false, "add_special_tokens": true, "cache_salt": "a"}),
    ] {
        for path in [CHAT, COMPLETIONS] {
            let answer = server.post(path, &body(path, fields.clone())).await;
            assert_eq!(answer.status, StatusCode::OK, "{fields}: {}", answer.body);
        }
    }
}

#[tokio::test]
async fn a_body_that_is_not_json_is_refused_with_its_position_and_without_its_content() {
    let server = start_answering(|c| c.limits.payload_limit = 5000, |_| "no".into()).await;
    let secret = "s3cr3t".repeat(20);
    let deep = format!("{{\"metadata\": {}1{}}}", "[".repeat(300), "]".repeat(300));
    let cases: Vec<(Vec<u8>, u16, &str, &str)> = vec![
        (
            format!("{{\"prompt\": \"{secret}\",, }}").into(),
            400,
            "invalid_json",
            "at line 1 column",
        ),
        (b"".to_vec(), 400, "invalid_json", "line 1 column 0"),
        (b"{\"prompt\": \"\xff\"}".to_vec(), 400, "invalid_json", "line 1"),
        (b"{\"prompt\": \"\\ud800\"}".to_vec(), 400, "invalid_json", "line 1"),
        (b"{\"temperature\": NaN}".to_vec(), 400, "invalid_json", "line 1"),
        (b"{\"temperature\": 1e999}".to_vec(), 400, "invalid_json", "out of range"),
        (deep.into(), 400, "invalid_json", "recursion limit"),
        (b"[1, 2]".to_vec(), 400, "invalid_value", "a JSON object, not a list of 2"),
        (vec![b' '; 5001], 413, "request_too_large", "5000 bytes"),
        (vec![b' '; 8 << 20], 413, "request_too_large", "5000 bytes"),
    ];
    for (body, status, code, part) in cases {
        let answer = server.call(post(COMPLETIONS, body)).await;
        let error = answer.json()["error"].clone();
        assert_eq!(
            (answer.status.as_u16(), error["code"].as_str()),
            (status, Some(code)),
            "{error}"
        );
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(part) && !message.contains("s3cr3t"), "{message}");
    }
}

#[tokio::test]
async fn the_content_type_must_be_json() {
    let server = start_answering(|_| (), |_| "a".into()).await;
    let cases = [
        (Some("application/json; charset=utf-8"), 200),
        (Some("Application/JSON"), 200),
        (Some("application/problem+json"), 200),
        (Some("text/plain"), 415),
        (Some("application/x-www-form-urlencoded"), 415),
        (None, 415),
    ];
    for (kind, status) in cases {
        let mut request = post(COMPLETIONS, "{\"prompt\": \"a\"}");
        request.headers_mut().remove(CONTENT_TYPE);
        if let Some(kind) = kind {
            request.headers_mut().insert(CONTENT_TYPE, kind.parse().unwrap());
        }
        let answer = server.call(request).await;
        assert_eq!(answer.status.as_u16(), status, "{kind:?}: {}", answer.body);
        if status == 415 {
            assert_eq!(answer.json()["error"]["code"], "unsupported_content_type");
        }
    }
}

#[tokio::test]
async fn sampling_is_the_requests_else_the_checkpoints_else_neutral() {
    let (server, mut engine) = start(|_| ()).await;
    let neutral =
        SamplingParams { temperature: 0.5, top_k: 40, top_p: 1.0, ..SamplingParams::default() };
    let greedy = SamplingParams { temperature: 0.0, top_k: 0, ..neutral.clone() };
    let bias = (vec![65, 66], vec![-100.0, 1.5]);
    let cases = [
        (json!({}), neutral.clone()),
        (json!({"temperature": 0}), greedy.clone()),
        (json!({"temperature": 1e-6, "top_k": 7, "min_p": 0.1}), greedy.clone()),
        (json!({"top_p": 0}), greedy.clone()),
        // Penalties are greedy's too; what only sampling reads is not sent.
        (
            json!({"temperature": 0, "typical_p": 0.5, "repetition_penalty": 1.5}),
            SamplingParams { repetition_penalty: 1.5, ..greedy },
        ),
        (
            json!({"typical_p": 0.75, "presence_penalty": -0.5, "frequency_penalty": 2}),
            SamplingParams {
                typical_p: 0.75,
                presence_penalty: -0.5,
                frequency_penalty: 2.0,
                ..neutral.clone()
            },
        ),
        (
            json!({
                "typical_p": 1, "repetition_penalty": 1.0, "presence_penalty": null,
                "temperature": null, "top_k": null, "min_p": null, "min_tokens": null,
            }),
            neutral.clone(),
        ),
        (
            json!({"temperature": 1, "top_k": 0, "top_p": 0.9, "min_p": 0.25, "min_tokens": 3}),
            SamplingParams {
                temperature: 1.0,
                top_k: 0,
                top_p: 0.9,
                min_p: 0.25,
                min_tokens: 3,
                ..neutral.clone()
            },
        ),
        (
            json!({"logit_bias": {"65": -100, "66": 1.5}, "logprobs": 0}),
            SamplingParams { bias_token: bias.0, bias: bias.1, logprobs: true, ..neutral.clone() },
        ),
    ];
    for (fields, expected) in cases {
        let fields = body(COMPLETIONS, fields);
        let request = server.send(post(COMPLETIONS, fields.to_string()));
        let answer = async {
            let (id, sequence) = engine.added().await;
            engine.say(id, "", Some(crate::engine::FinishReason::Length));
            sequence
        };
        let (_, sequence) = tokio::join!(request, answer);
        assert_eq!(sequence.sampling, expected, "{fields}");
    }
}

#[tokio::test]
async fn what_the_engine_is_asked_for_is_what_the_request_said() {
    let (server, mut engine) = start(|_| ()).await;
    let base = json!({"prompt": "abc"});
    // Fields, then: tokens at most, stop tokens, seed if known, salt.
    type Expected = (u32, Vec<u32>, Option<u64>, Option<&'static str>);
    let cases: Vec<(Value, Expected)> = vec![
        (json!({}), (16, vec![EOS], None, None)),
        (json!({"max_tokens": 509}), (509, vec![EOS], None, None)),
        (json!({"stop_token_ids": [9, 7, 9]}), (16, vec![7, 9, EOS], None, None)),
        (json!({"ignore_eos": true}), (16, vec![], None, None)),
        (json!({"ignore_eos": true, "stop_token_ids": [4]}), (16, vec![4], None, None)),
        (json!({"seed": -1, "cache_salt": "s"}), (16, vec![EOS], Some(u64::MAX), Some("s"))),
    ];
    for (fields, (max_tokens, stop, seed, salt)) in cases {
        let asked = with(base.clone(), fields.clone());
        let request = server.send(post(COMPLETIONS, asked.to_string()));
        let answer = async {
            let (id, sequence) = engine.added().await;
            engine.say(id, "", Some(crate::engine::FinishReason::Length));
            sequence
        };
        let (_, sequence) = tokio::join!(request, answer);
        assert_eq!(&sequence.prompt[..], [97, 98, 99], "{fields}");
        assert_eq!(sequence.max_tokens, max_tokens, "{fields}");
        assert_eq!(&sequence.stop_token_ids[..], stop, "{fields}");
        assert_eq!(sequence.cache_salt.as_deref(), salt, "{fields}");
        if let Some(seed) = seed {
            assert_eq!(sequence.seed, seed, "{fields}");
        }
    }
}

#[tokio::test]
async fn a_chat_that_names_no_limit_gets_the_checkpoints_where_there_is_room() {
    let (server, mut engine) = start(|_| ()).await;
    let long = json!([{"role": "user", "content": "y".repeat(400)}]);
    // Fields, and the tokens at most; the checkpoint recommends 300.
    let cases = [
        (json!({}), Some(300)),
        (json!({"max_tokens": 400}), Some(400)),
        (json!({"min_tokens": 350}), Some(350)),
        // What is left of the context.
        (json!({"messages": long}), None),
    ];
    for (fields, expected) in cases {
        let request = server.send(post(CHAT, body(CHAT, fields.clone()).to_string()));
        let answer = async {
            let (id, sequence) = engine.added().await;
            engine.say(id, "", Some(crate::engine::FinishReason::Length));
            sequence
        };
        let (_, sequence) = tokio::join!(request, answer);
        let left = 512 - sequence.prompt.len() as u32;
        assert_eq!(sequence.max_tokens, expected.unwrap_or(left), "{fields}");
    }
}
