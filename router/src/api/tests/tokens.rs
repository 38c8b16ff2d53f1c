//! Texts as tokens and back.

use serde_json::json;

use super::*;
use crate::testing::EOS;

#[tokio::test]
async fn a_text_becomes_tokens_in_tgis_form_with_their_characters() {
    let server = start_answering(|_| (), |_| "never".into()).await;
    let all = json!([
        {"id": 97, "text": "a", "start": 0, "stop": 1},
        {"id": 0xc3, "text": "\u{e9}", "start": 1, "stop": 2},
        {"id": 0xa9, "text": "\u{e9}", "start": 1, "stop": 2},
        {"id": 98, "text": "b", "start": 2, "stop": 3},
    ]);
    let body = json!({"inputs": "a\u{e9}b", "prompt": "not this"});
    assert_eq!(server.post("/tokenize", &body).await.json(), all);
    let body = json!({"inputs": "a\u{e9}b", "parameters": {"truncate": 1}});
    assert_eq!(server.post("/tokenize", &body).await.json(), json!([all[3]]));
}

#[tokio::test]
async fn a_text_becomes_tokens_in_vllms_form_and_back() {
    let server = start_answering(|c| c.limits.max_total_tokens = Some(300), |_| "no".into()).await;
    let body = json!({"model": "demo", "prompt": "a b", "return_token_strs": true});
    assert_eq!(
        server.post("/tokenize", &body).await.json(),
        json!({
            "count": 3, "max_model_len": 300, "tokens": [97, 32, 98],
            "token_strs": ["a", "\u{120}", "b"],
        })
    );
    let messages = json!([{"role": "user", "content": "hi"}]);
    let chat = server.post("/tokenize", &json!({"messages": messages})).await.json();
    assert_eq!((&chat["count"], &chat["token_strs"]), (&json!(20), &json!(null)));
    let back = server.post("/detokenize", &json!({"tokens": chat["tokens"]})).await.json();
    assert_eq!(back, json!({"prompt": "user: hi\nassistant: "}));
    let open = json!({"messages": messages, "add_generation_prompt": false});
    assert_eq!(server.post("/tokenize", &open).await.json()["count"], 9);
    let special = server.post("/detokenize", &json!({"tokens": [97, EOS]})).await.json();
    assert_eq!(special["prompt"], "a<eos>");
}

#[tokio::test]
async fn a_conversation_is_shown_as_the_model_reads_it() {
    let server = start_answering(|_| (), |_| "never".into()).await;
    let body = json!({"model": "tgi", "messages": [{"role": "user", "content": "h\u{e9}"}]});
    let answer = server.post("/chat_tokenize", &body).await.json();
    assert_eq!(answer["templated_text"], "user: h\u{e9}\nassistant: ");
    let tokens = answer["tokenize_response"].as_array().unwrap();
    assert_eq!(tokens.len(), 21);
    assert_eq!(tokens[7], json!({"id": 0xc3, "text": "\u{e9}", "start": 7, "stop": 8}));
}

#[tokio::test]
async fn what_cannot_be_tokenized_is_refused_in_the_form_of_its_api() {
    let (server, _engine) = start(|_| ()).await;
    for (path, body, part) in [
        ("/tokenize", json!({"inputs": 5}), "inputs must be a string, not 5"),
        ("/chat_tokenize", json!({}), "messages must be given"),
    ] {
        let answer = server.post(path, &body).await;
        assert_eq!(answer.status.as_u16(), 422, "{body}");
        assert!(answer.json()["error"].as_str().unwrap().contains(part), "{}", answer.body);
    }
    for (path, body, status, part) in [
        ("/tokenize", json!({}), 400, "prompt must be given"),
        ("/tokenize", json!({"prompt": "a", "model": "gpt-9"}), 404, "\"gpt-9\" does not exist"),
        ("/tokenize", json!({"messages": []}), 400, "at least one message"),
        ("/detokenize", json!({"tokens": [257]}), 400, "tokens[0] must be a token id"),
        ("/detokenize", json!({"tokens": "a"}), 400, "a list of token ids"),
        ("/detokenize", json!({}), 400, "tokens must be given"),
    ] {
        let answer = server.post(path, &body).await;
        assert_eq!(answer.status.as_u16(), status, "{body}: {}", answer.body);
        let message = answer.json()["error"]["message"].take();
        assert!(message.as_str().unwrap().contains(part), "{message}");
    }
}
