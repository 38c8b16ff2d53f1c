//! The server around the answers: keys, probes, limits at the door, the way to the end.

use std::time::Duration;

use hyper::Method;
use hyper::header::{ALLOW, AUTHORIZATION, CONNECTION, RETRY_AFTER};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::api::{PATHS, PUBLIC, TGI};
use crate::engine::{EngineState, FinishReason};
use crate::testing::{EOS, event, worker_info};

fn request(method: Method, path: &str) -> Request<Full<Bytes>> {
    let request = Request::builder().method(method).uri(path);
    request.header(CONTENT_TYPE, "application/json").body(Full::default()).unwrap()
}

#[tokio::test]
async fn every_route_but_health_metrics_and_the_document_asks_for_the_key() {
    let server =
        start_answering(|config| config.api_key = Some("k-1".into()), |_| "a".into()).await;
    let unknown = ["/v1", "/v1/models/demo", "/v1/none", "/health/", "/HEALTH", "//health"];
    for path in PATHS.iter().copied().chain(unknown) {
        for method in [Method::GET, Method::POST, Method::DELETE] {
            let answer = server.call(request(method.clone(), path)).await;
            let is_public = PUBLIC.contains(&path) || (path == "/" && method == Method::GET);
            assert_eq!(answer.status == StatusCode::UNAUTHORIZED, !is_public, "{method} {path}");
            if is_public {
                continue;
            }
            let body = answer.json();
            let code =
                if TGI.contains(&path) { &body["error_type"] } else { &body["error"]["code"] };
            assert!(*code == "authentication" || *code == "invalid_api_key", "{path}: {body}");
        }
    }
    let probes = ["/health", "/live", "/ready", "/metrics", "/ping", "/info"];
    assert_eq!(
        PUBLIC,
        [&probes[..], &["/openapi.json", "/api-doc/openapi.json", "/docs"]].concat()
    );
}

#[tokio::test]
async fn only_the_exact_key_opens() {
    let server =
        start_answering(|config| config.api_key = Some("k-1".into()), |_| "a".into()).await;
    let cases = [
        ("Bearer k-1", 200),
        ("bearer k-1", 200),
        ("Bearer  k-1", 200),
        ("Bearer K-1", 401),
        ("Bearer k-", 401),
        ("Bearer k-11", 401),
        ("Bearer", 401),
        ("Bearer ", 401),
        ("Basic k-1", 401),
        ("k-1", 401),
    ];
    for (given, status) in cases {
        let mut asked = get("/v1/models");
        asked.headers_mut().insert(AUTHORIZATION, given.parse().unwrap());
        assert_eq!(server.call(asked).await.status.as_u16(), status, "{given:?}");
    }
}

#[tokio::test]
async fn unknown_routes_and_methods_are_refused_in_openais_shape() {
    let server = start_answering(|_| (), |_| "a".into()).await;
    let cases = [
        (Method::GET, "/v1/none", 404, "unknown_url"),
        (Method::POST, "/generate/", 404, "unknown_url"),
        (Method::GET, "/v1/models/none", 404, "model_not_found"),
        (Method::GET, "/v1/models/%ff", 404, "model_not_found"),
        (Method::GET, CHAT, 405, "method_not_allowed"),
        (Method::POST, "/v1/models", 405, "method_not_allowed"),
        (Method::POST, "/live", 405, "method_not_allowed"),
    ];
    for (method, path, status, code) in cases {
        let answer = server.call(request(method, path)).await;
        assert_eq!(answer.status.as_u16(), status, "{path}");
        assert_eq!(answer.json()["error"]["code"], code, "{path}");
        assert_eq!(answer.headers.contains_key(ALLOW), status == 405, "{path}");
    }
}

#[tokio::test]
async fn the_models_are_the_accepted_names() {
    let server = start_answering(|c| c.limits.max_total_tokens = Some(300), |_| "a".into()).await;
    let models = server.get("/v1/models").await.json();
    assert_eq!(models["object"], "list");
    let ids: Vec<_> = models["data"].as_array().unwrap().iter().map(|card| &card["id"]).collect();
    assert_eq!(ids, ["demo", "demo-alias"]);
    // What clients say that know only a URL.
    assert_eq!(server.get("/v1/models/tgi").await.json()["id"], "demo");
    let card = server.get("/v1/models/demo").await.json();
    assert_eq!(card, models["data"][0]);
    assert_eq!(card["object"], "model");
    assert_eq!(card["owned_by"], "millstream");
    assert_eq!(card["max_model_len"], 300);
    assert!(card["created"].is_u64());
}

#[tokio::test]
async fn probes_tell_loading_serving_and_recovering_apart() {
    let (server, engine) = start(|_| ()).await;
    let loading = EngineState::Starting("loading weights: 40 %".into());
    let recovering = EngineState::Recovering(Arc::new(worker_info()));
    let ready = EngineState::Ready(Arc::new(worker_info()));
    for (state, status, reason) in [
        (loading.clone(), 503, Some("loading weights: 40 %")),
        (ready, 200, None),
        (recovering, 503, Some("the worker is being restarted")),
    ] {
        engine.set_state(state);
        assert_eq!(server.get("/live").await.status, StatusCode::OK);
        let answer = server.get("/ready").await;
        assert_eq!(answer.status.as_u16(), status);
        assert_eq!(answer.json()["reason"].as_str(), reason);
        for path in ["/health", "/ping", "/"] {
            let answer = server.get(path).await;
            assert_eq!(answer.status.as_u16(), status);
            let unhealthy = json!({"error": "unhealthy", "error_type": "healthcheck"});
            assert!(status == 200 || answer.json() == unhealthy, "{}", answer.body);
        }
    }
    engine.set_state(loading);
    let answer = server.post(COMPLETIONS, &json!({"prompt": "p"})).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.headers[RETRY_AFTER], "1");
    assert_eq!(answer.json()["error"]["code"], "model_loading");
}

#[tokio::test]
async fn a_request_waits_while_the_worker_is_restarted() {
    let (server, mut engine) = start(|_| ()).await;
    engine.set_state(EngineState::Recovering(Arc::new(worker_info())));
    let request = server.post(COMPLETIONS, &json!({"prompt": "p"}));
    let say = async {
        let (id, _) = engine.added().await;
        engine.say(id, "x", Some(FinishReason::Length));
    };
    assert_eq!(tokio::join!(request, say).0.status, StatusCode::OK);
}

#[tokio::test]
async fn one_request_too_many_is_told_to_come_back_before_anything_is_done_for_it() {
    let (server, mut engine) = start(|config| config.limits.max_concurrent_requests = 2).await;
    let body = json!({"prompt": "p", "stream": true});
    let held = server.send(post(COMPLETIONS, body.to_string())).await;
    let (id, _) = engine.added().await;
    // One place is left, and this asks for two; the next asks for one while none is left.
    let two = server.post(COMPLETIONS, &json!({"prompt": "p", "n": 2})).await;
    let other = server.send(post(COMPLETIONS, body.to_string())).await;
    engine.added().await;
    let one = server.post(COMPLETIONS, &json!({"prompt": "p"})).await;
    for refused in [two, one] {
        assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(refused.headers[RETRY_AFTER], "1");
        assert_eq!(refused.json()["error"]["code"], "rate_limit_exceeded");
    }
    engine.step(vec![event(id, vec![EOS], Some(FinishReason::StopToken(EOS)))]);
    assert_eq!(whole(held).await.events().len(), 1);
    let again = server.send(post(COMPLETIONS, body.to_string())).await;
    assert_eq!(again.status(), StatusCode::OK);
    drop(other);
}

#[tokio::test]
async fn a_shutdown_lets_streams_finish_and_takes_nothing_new() {
    let (mut server, mut engine) = start(|_| ()).await;
    let body = json!({"prompt": "p", "stream": true});
    let mut held = server.send(post(COMPLETIONS, body.to_string())).await;
    let (id, _) = engine.added().await;
    server.shut_down();
    while server.get("/ready").await.status == StatusCode::OK {
        tokio::task::yield_now().await;
    }
    assert_eq!(server.get("/health").await.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(server.get("/live").await.status, StatusCode::OK);
    let refused = server.post(COMPLETIONS, &json!({"prompt": "p"})).await;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.json()["error"]["code"], "shutting_down");
    assert_eq!(refused.headers[CONNECTION], "close");
    assert!(refused.headers.contains_key(RETRY_AFTER));
    engine.say(id, "x", None);
    assert!(next_part(&mut held).await.contains("\"x\""));
    engine.say(id, "y", Some(FinishReason::Length));
    let events = whole(held).await.events();
    assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], "length");
    server.ended.await.unwrap().unwrap();
    assert!(TcpStream::connect(server.address).await.is_err());
}

#[tokio::test]
async fn what_does_not_finish_in_time_ends_with_an_error() {
    let (mut server, mut engine) =
        start(|config| config.graceful_termination_timeout = Duration::ZERO).await;
    let stream =
        server.send(post(COMPLETIONS, json!({"prompt": "p", "stream": true}).to_string())).await;
    let (id, _) = engine.added().await;
    let shutdown = server.shutdown.take().unwrap();
    let held = server.post(COMPLETIONS, &json!({"prompt": "p"}));
    let end = async {
        let (other, _) = engine.added().await;
        shutdown.send(()).unwrap();
        let mut aborted = [engine.aborted().await, engine.aborted().await];
        aborted.sort();
        assert_eq!(aborted, [id, other]);
    };
    let (answer, ()) = tokio::join!(held, end);
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    let events = whole(stream).await.events();
    assert_eq!(events[0]["error"]["code"], "interrupted");
    server.ended.await.unwrap().unwrap();
}

#[tokio::test]
async fn an_engine_that_ends_ends_the_server() {
    let (server, engine) = start(|_| ()).await;
    drop(engine);
    assert!(matches!(server.ended.await.unwrap(), Err(RouterError::EngineEnded)));
}

#[tokio::test]
async fn the_first_readiness_is_announced_once() {
    let (announce, announced) = std::sync::mpsc::channel();
    let (server, engine) = start(|config| {
        config.on_ready = Some(Box::new(move |info| announce.send(info.max_model_len).unwrap()));
    })
    .await;
    for state in [EngineState::Recovering, EngineState::Ready] {
        engine.set_state(state(Arc::new(worker_info())));
        assert_eq!(server.get("/live").await.status, StatusCode::OK);
    }
    assert_eq!(announced.iter().collect::<Vec<_>>().len(), 1);
}

#[tokio::test]
async fn a_request_id_is_echoed_if_harmless_and_made_if_not() {
    let server = start_answering(|_| (), |_| "a".into()).await;
    let long = "a".repeat(129);
    for (given, is_echoed) in [
        (Some("req-1.A_b:c/d+e="), true),
        (Some("a b"), false),
        (Some("\"><script>"), false),
        (Some(""), false),
        (Some(long.as_str()), false),
        (None, false),
    ] {
        for path in ["/live", "/v1/none"] {
            let mut asked = get(path);
            if let Some(given) = given {
                asked.headers_mut().insert("x-request-id", given.parse().unwrap());
            }
            let id = server.call(asked).await.headers["x-request-id"].clone();
            assert_eq!(Some(id.to_str().unwrap()) == given, is_echoed, "{given:?}");
            assert!(is_echoed || id.len() == 32, "{id:?}");
        }
    }
}

#[tokio::test]
async fn metrics_count_what_happened_and_name_no_path_of_a_client() {
    let server = start_answering(|_| (), |_| "four".into()).await;
    server.post(COMPLETIONS, &json!({"prompt": "p"})).await;
    server.post(COMPLETIONS, &json!({"prompt": 1})).await;
    server.get("/secret-path").await;
    let answer = server.get("/metrics").await;
    assert!(
        answer.headers[CONTENT_TYPE].to_str().unwrap().starts_with("text/plain; version=0.0.4")
    );
    for line in [
        "millstream_http_requests_total{route=\"/v1/completions\",status=\"200\"} 1",
        "millstream_http_requests_total{route=\"/v1/completions\",status=\"400\"} 1",
        "millstream_http_requests_total{route=\"other\",status=\"404\"} 1",
        "tgi_request_count 2",
        "tgi_request_success 1",
        "tgi_request_failure{err=\"validation\"} 1",
        "millstream_finished_total{reason=\"stop\"} 1",
        "millstream_generated_tokens_sum 5",
        "millstream_time_to_first_token_seconds_count 1",
        "millstream_inter_token_latency_seconds_count 4",
    ] {
        assert!(answer.body.lines().any(|have| have == line), "{line} lacks in\n{}", answer.body);
    }
    assert!(!answer.body.contains("secret-path"));
}

#[tokio::test]
async fn connections_are_kept_between_requests_and_speak_http_1_and_2() {
    let server = start_answering(|_| (), |_| "a".into()).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    for _ in 0..2 {
        stream.write_all(b"GET /live HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"}") {
            assert_ne!(stream.read_buf(&mut answer).await.unwrap(), 0);
        }
        assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n"));
    }
    let stream = TcpStream::connect(server.address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http2::handshake(
        hyper_util::rt::TokioExecutor::new(),
        TokioIo::new(stream),
    )
    .await
    .unwrap();
    tokio::spawn(connection);
    let body = json!({"prompt": "p", "stream": true});
    let mut asked = post(COMPLETIONS, body.to_string());
    *asked.uri_mut() = format!("http://{}{COMPLETIONS}", server.address).parse().unwrap();
    let answer = whole(sender.send_request(asked).await.unwrap()).await;
    assert_eq!(answer.events().len(), 2);
}
