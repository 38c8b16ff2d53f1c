//! The routes of SageMaker and Vertex AI.

use hyper::header::AUTHORIZATION;
use serde_json::{Value, json};

use super::*;

async fn answering(configure: impl FnOnce(&mut RouterConfig)) -> Server {
    start_answering(configure, |sequence| format!("{} tokens", sequence.prompt.len())).await
}

fn with_key(mut request: Request<Full<Bytes>>) -> Request<Full<Bytes>> {
    request.headers_mut().insert(AUTHORIZATION, "Bearer k".parse().unwrap());
    request
}

#[tokio::test]
async fn an_invocation_is_what_its_fields_say() {
    let server = answering(|_| ()).await;
    let chat = json!([{"role": "user", "content": "hi"}]);
    let cases = [
        (json!({"inputs": "ab", "stream": false}), "/0/generated_text", "ab2 tokens"),
        (json!({"messages": chat, "model": "tgi"}), "/choices/0/message/content", "20 tokens"),
        (json!({"prompt": "abc", "model": "dummy"}), "/choices/0/text", "3 tokens"),
        (json!({"instances": [{"inputs": "ab"}]}), "/predictions/0", "2 tokens"),
    ];
    for (body, at, text) in cases {
        for path in ["/invocations", "/vertex"] {
            let answer = server.post(path, &body).await.json();
            assert_eq!(answer.pointer(at), Some(&json!(text)), "{path} {body}: {answer}");
            assert_eq!(answer.get("model").unwrap_or(&json!("demo")), "demo");
        }
    }
    let stream = json!({"inputs": "ab", "stream": true});
    let answer = server.post("/invocations", &stream).await;
    assert_eq!(answer.headers[CONTENT_TYPE], "text/event-stream");

    // Each is refused by the API that it belongs to.
    let refused = server.post("/invocations", &json!({"input": "ab"})).await;
    assert_eq!(refused.json()["error_type"], "validation");
    let refused = server.post("/invocations", &json!({"prompt": "a", "model": "gpt-9"})).await;
    assert_eq!(refused.json()["error"]["code"], "model_not_found");
}

#[tokio::test]
async fn instances_are_answered_in_order_with_their_own_parameters_or_the_common_ones() {
    let server = answering(|_| ()).await;
    let body = json!({
        "instances": [
            {"inputs": "a"},
            {"inputs": "ab", "parameters": {"max_new_tokens": 3}},
            {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4},
            {"inputs": "abc", "parameters": {"top_k": 9, "best_of": 2, "return_full_text": true}},
        ],
        "parameters": {"max_new_tokens": 1},
    });
    let answer = server.post("/vertex", &body).await.json();
    assert_eq!(answer, json!({"predictions": ["1", "2 t", "20 t", "abc3 tokens"]}));
}

#[tokio::test]
async fn instances_that_break_a_rule_are_refused_together() {
    let server = answering(|config| config.limits.max_concurrent_requests = 5).await;
    let drawn = json!({"inputs": "a", "parameters": {"best_of": 3, "do_sample": true}});
    for (instances, part) in [
        (json!([]), "instances must hold 1 to 4 instances, not 0"),
        (json!([1, 2, 3, 4, 5]), "not 5"),
        (json!("a"), "instances must be a list of objects"),
        (json!(["a"]), "instances must be a list of objects"),
        (json!([{"inputs": "a"}, {"inputs": ""}]), "inputs must not be empty"),
        (json!([{"inputs": "a", "stream": true}]), "stream (true) cannot be asked for"),
        (
            json!([{"messages": [{"role": "user", "content": "a"}], "stream": true}]),
            "stream (true)",
        ),
        (json!([drawn, drawn]), "ask for 6 choices together, more than 5"),
        (json!([{"inputs": "a"}, {"inputs": "y".repeat(600)}]), "maximum context length"),
    ] {
        let answer = server.post("/vertex", &json!({"instances": instances})).await;
        assert_eq!(answer.status.as_u16(), 422, "{}", answer.body);
        assert!(answer.json()["error"].as_str().unwrap().contains(part), "{}", answer.body);
    }
    // Nothing of them is left at the door.
    let five = json!({"instances": vec![json!({"inputs": "a"}); 4]});
    assert_eq!(server.post("/vertex", &five).await.status, StatusCode::OK);
}

#[tokio::test]
async fn vertex_ai_names_its_own_paths() {
    let server = answering(|config| {
        config.api_key = Some("k".into());
        config.deployment.predict_route = Some("/v1/endpoints/1/deployedModels/2:predict".into());
        config.deployment.health_route = Some("/v1/endpoints/1/deployedModels/2".into());
    })
    .await;
    let (predict, health) =
        ("/v1/endpoints/1/deployedModels/2:predict", "/v1/endpoints/1/deployedModels/2");
    assert_eq!(server.get(health).await.status, StatusCode::OK);
    let body = json!({"instances": [{"inputs": "ab"}]}).to_string();
    let refused = server.call(post(predict, body.clone())).await;
    assert_eq!(refused.status, StatusCode::UNAUTHORIZED);
    assert_eq!(refused.json()["error_type"], "authentication");
    let answer = server.call(with_key(post(predict, body))).await;
    assert_eq!(answer.json(), json!({"predictions": ["2 tokens"]}));
    let metrics = server.get("/metrics").await.body;
    let line = "millstream_http_requests_total{route=\"/vertex\",status=\"200\"} 1";
    assert!(metrics.lines().any(|have| have == line), "{metrics}");
    assert!(metrics.lines().any(|have| have == "tgi_request_count 2"), "{metrics}");
}

#[tokio::test]
async fn a_path_that_is_there_already_stays_what_it_is() {
    let server = answering(|config| {
        config.deployment.predict_route = Some("/v1/chat/completions".into());
        config.deployment.health_route = Some("/".into());
    })
    .await;
    assert_eq!(server.get("/").await.status, StatusCode::OK);
    let body = json!({"messages": [{"role": "user", "content": "hi"}]});
    let answer: Value = server.post(CHAT, &body).await.json();
    assert_eq!(answer["choices"][0]["message"]["content"], "20 tokens");
}
