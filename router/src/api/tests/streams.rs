//! Streams while they run: what comes when, what goes wrong, and who is not disturbed.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use super::*;
use crate::engine::{Command, FinishReason};
use crate::testing::{EOS, event};

fn streamed(fields: Value) -> Request<Full<Bytes>> {
    let body =
        with(json!({"prompt": "p", "stream": true, "max_tokens": 400, "ignore_eos": true}), fields);
    post(COMPLETIONS, body.to_string())
}

/// The text in the events of a part of a stream.
fn text_in(part: &str) -> String {
    let text = |event: &str| {
        let event: Value = serde_json::from_str(event.strip_prefix("data: ")?).ok()?;
        Some(event["choices"][0]["text"].as_str()?.to_owned())
    };
    part.split_terminator("\n\n").filter_map(text).collect()
}

#[tokio::test]
async fn every_token_leaves_at_once_and_every_part_holds_whole_events() {
    let (server, mut engine) = start(|_| ()).await;
    let mut response = server.send(streamed(json!({}))).await;
    let (id, _) = engine.added().await;
    for letter in "one by one".chars() {
        engine.say(id, &letter.to_string(), None);
        let part = next_part(&mut response).await;
        assert!(part.starts_with("data: {") && part.ends_with("}\n\n"), "{part:?}");
        assert_eq!(text_in(&part), letter.to_string());
    }
    engine.step(vec![event(id, vec![EOS], Some(FinishReason::StopToken(EOS)))]);
    let answer = whole(response).await;
    assert_eq!(answer.events()[0]["choices"][0]["finish_reason"], "stop");
}

#[tokio::test]
async fn nothing_that_may_become_a_stop_string_is_sent_before_it_cannot() {
    let (server, mut engine) = start(|_| ()).await;
    let mut response = server.send(streamed(json!({"stop": ["STOP"]}))).await;
    let (id, _) = engine.added().await;
    engine.say(id, "aST", None);
    assert_eq!(text_in(&next_part(&mut response).await), "a");
    engine.say(id, "b", None);
    assert_eq!(text_in(&next_part(&mut response).await), "STb");
    engine.say(id, "STOP", None);
    assert_eq!(engine.aborted().await, id);
    let events = whole(response).await.events();
    assert_eq!(events.len(), 1);
    assert_eq!(events[0]["choices"][0]["text"], "");
    assert_eq!(events[0]["choices"][0]["finish_reason"], "stop");
}

#[tokio::test]
async fn a_failure_in_mid_stream_is_an_event_and_the_last_but_done() {
    let (server, mut engine) = start(|_| ()).await;
    let mut response = server.send(streamed(json!({"n": 2}))).await;
    let (first, second) = (engine.added().await.0, engine.added().await.0);
    engine.say(first, "fine", None);
    assert!(text_in(&next_part(&mut response).await).starts_with('f'));
    engine.step(vec![event(
        second,
        vec![],
        Some(FinishReason::Error("the logits are NaN".into())),
    )]);
    let answer = whole(response).await;
    let last = answer.events().pop().unwrap();
    assert_eq!(
        last,
        json!({"error": {
            "message": "the logits are NaN", "type": "server_error", "param": null,
            "code": "generation_failed",
        }})
    );
    assert_eq!(engine.aborted().await, first, "the other choice is of no use any more");
}

#[tokio::test]
async fn a_failure_before_a_whole_answer_is_its_status() {
    let (server, mut engine) = start(|_| ()).await;
    let request = server.post(COMPLETIONS, &json!({"prompt": "p"}));
    let fail = async {
        let (id, _) = engine.added().await;
        engine.say(id, "half", Some(FinishReason::Error("the logits are NaN".into())));
    };
    let (answer, ()) = tokio::join!(request, fail);
    assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(answer.json()["error"]["message"], "the logits are NaN");
}

#[tokio::test]
async fn a_client_that_leaves_is_aborted_before_during_and_without_a_stream() {
    let (server, mut engine) = start(|config| config.limits.max_concurrent_requests = 1).await;
    let whole = json!({"prompt": "p"}).to_string();
    for (request, said) in
        [(streamed(json!({})), ""), (streamed(json!({})), "some"), (post(COMPLETIONS, whole), "")]
    {
        let stream = TcpStream::connect(server.address).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        let connection = tokio::spawn(connection);
        let asked = tokio::spawn(sender.send_request(request));
        let (id, _) = engine.added().await;
        engine.say(id, said, None);
        connection.abort();
        assert_eq!(engine.aborted().await, id);
        asked.abort();
    }
    // The only place is free again.
    let again = server.post(COMPLETIONS, &json!({"prompt": "p"}));
    let say = async {
        let (id, _) = engine.added().await;
        engine.say(id, "x", Some(FinishReason::Length));
    };
    assert_eq!(tokio::join!(again, say).0.status, StatusCode::OK);
}

#[tokio::test]
async fn a_client_that_does_not_read_delays_nobody_and_gets_everything_later() {
    let (server, mut engine) = start(|_| ()).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4 << 10).unwrap();
    let slow = send_on(socket.connect(server.address).await.unwrap(), streamed(json!({}))).await;
    let (slow_id, _) = engine.added().await;
    let mut fast = server.send(streamed(json!({}))).await;
    let (fast_id, _) = engine.added().await;
    // More events than the sockets between the server and the slow client can hold.
    let num_tokens = 8000;
    for i in 0..num_tokens {
        let token = vec![u32::from(b'a') + i % 26];
        engine.step(vec![event(slow_id, token.clone(), None), event(fast_id, token, None)]);
        assert_eq!(text_in(&next_part(&mut fast).await).len(), 1);
    }
    engine.step(vec![event(slow_id, vec![], Some(FinishReason::Length))]);
    let events = whole(slow).await.events();
    let text: String = events.iter().map(|e| e["choices"][0]["text"].as_str().unwrap()).collect();
    let said: String = (0..num_tokens).map(|i| char::from(b'a' + (i % 26) as u8)).collect();
    assert_eq!(text, said);
    assert!(events.len() < num_tokens as usize / 2, "{} events: nothing was merged", events.len());
}

#[tokio::test]
async fn a_client_that_takes_nothing_for_too_long_is_aborted() {
    let (server, mut engine) = start(|c| c.client_timeout = Duration::from_millis(20)).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4 << 10).unwrap();
    let mut stream = socket.connect(server.address).await.unwrap();
    let body = json!({"prompt": "p", "stream": true}).to_string();
    let head =
        format!("POST {COMPLETIONS} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n");
    let request = format!("{head}content-length: {}\r\n\r\n{body}", body.len());
    stream.write_all(request.as_bytes()).await.unwrap();
    let (id, _) = engine.added().await;
    let command = loop {
        engine.say(id, "never read", None);
        tokio::select! {
            biased;
            command = engine.command() => break command,
            () = tokio::task::yield_now() => {}
        }
    };
    assert!(matches!(command, Command::Abort(aborted) if aborted == id));
}

#[tokio::test]
async fn silence_is_broken_by_comments_until_the_first_token() {
    let (server, mut engine) = start(|c| c.keep_alive = Duration::from_millis(1)).await;
    let mut response = server.send(streamed(json!({}))).await;
    let (id, _) = engine.added().await;
    assert_eq!(next_part(&mut response).await, ": keep-alive\n\n");
    assert_eq!(next_part(&mut response).await, ": keep-alive\n\n");
    engine.say(id, "x", Some(FinishReason::Length));
    let events = whole(response).await.events();
    assert_eq!(events[0]["choices"][0]["text"], "x");
}
