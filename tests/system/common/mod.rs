//! A running server, and what tests ask of it.

mod http;
mod server;

pub(crate) use http::{Response, Stream, request, stream};
pub(crate) use server::{Server, executable, is_running, send_signal};

use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Longer than anything that works takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// Waits until `condition` holds; `what` names it where it never does.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A greedy chat request of one question; fields of `more` are added.
pub(crate) fn chat(question: &str, more: Value) -> Value {
    let mut body = json!({
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
    });
    let (Value::Object(body_fields), Value::Object(more)) = (&mut body, more) else {
        panic!("both are objects")
    };
    body_fields.extend(more);
    body
}

/// A greedy chat request that generates exactly `num_tokens`, streamed with its usage.
pub(crate) fn long_chat(question: &str, num_tokens: u32) -> Value {
    chat(
        question,
        json!({
            "stream": true,
            "stream_options": {"include_usage": true},
            "max_tokens": num_tokens,
            "ignore_eos": true,
        }),
    )
}

/// The same in eight choices, which takes long enough for something else to happen meanwhile.
pub(crate) fn slow_chat(question: &str) -> Value {
    let mut body = long_chat(question, 900);
    body["n"] = 8.into();
    body
}
