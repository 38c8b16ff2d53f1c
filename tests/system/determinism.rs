//! A text depends on its request alone: not on who else is served, not on how its tokens are cut
//! into steps, not on what is cached, not on which worker computes it.
//!
//! What is compared is the whole choice with its log-probabilities, digit by digit.

use serde_json::{Value, json};

use crate::common::{Server, chat, send_signal, wait_until};

const NUM_REQUESTS: usize = 32;

/// Holds one sequence of the demo's longest length, and far from all 32.
const SMALL_CACHE: &str = "3MiB";

/// Half greedy, half seeded; some begin alike, some are much longer than others.
fn requests() -> Vec<Value> {
    let questions = [
        "Tell me a story about a fox and a red kite.",
        "Who are you?",
        "What is 3 + 4?",
        "Tell me a story about a small boat. It should be a long story with a happy end.",
    ];
    (0..NUM_REQUESTS)
        .map(|i| {
            let question = questions[i % questions.len()].repeat(1 + i / 8);
            let temperature = if i % 2 == 0 { 0.0 } else { 0.9 };
            let more = json!({
                "temperature": temperature,
                "seed": i,
                "top_p": 0.95,
                "max_tokens": 24 + i,
                "ignore_eos": true,
                "logprobs": true,
                "top_logprobs": 2,
            });
            chat(&question, more)
        })
        .collect()
}

fn choice(server: &Server, request: &Value) -> Value {
    server.chat(request)["choices"][0].clone()
}

/// All requests at once; `meanwhile` happens beside them.
fn all_at_once(server: &Server, meanwhile: impl FnOnce()) -> Vec<Value> {
    let requests = requests();
    std::thread::scope(|scope| {
        let ask = |request| scope.spawn(move || choice(server, request));
        let asked: Vec<_> = requests.iter().map(ask).collect();
        meanwhile();
        asked.into_iter().map(|asked| asked.join().expect("a request failed")).collect()
    })
}

/// Each request alone, nothing cached, whole prompts in one step where they fit.
fn undisturbed() -> Vec<Value> {
    let server = Server::start(&["--prefix-caching", "false"]);
    let choices = requests().iter().map(|request| choice(&server, request)).collect();
    assert_eq!(server.metric("millstream_prefix_cache_hits_total"), 0.0);
    choices
}

fn check_equal(found: &[Value], expected: &[Value], when: &str) {
    assert_eq!(found.len(), expected.len());
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert_eq!(found, expected, "request {i}, {when}");
    }
}

#[test]
fn a_text_is_the_same_alone_and_among_31_others_whatever_happens_to_them() {
    let expected = undisturbed();

    let server = Server::start(&[]);
    check_equal(&all_at_once(&server, || {}), &expected, "among 31 others");
    let cached_before = server.metric("millstream_prefix_cache_hits_total");
    check_equal(&all_at_once(&server, || {}), &expected, "with prefix hits");
    assert!(server.metric("millstream_prefix_cache_hits_total") > cached_before, "nothing was hit");

    let worker = server.worker();
    let generated_before = server.metric("millstream_generated_tokens_total");
    let kill_in_the_middle = || {
        wait_until("tokens flow", || {
            server.metric("millstream_generated_tokens_total") >= generated_before + 100.0
        });
        send_signal("KILL", worker);
    };
    check_equal(&all_at_once(&server, kill_in_the_middle), &expected, "after a worker's death");
    assert_eq!(server.metric("millstream_worker_losses_total"), 1.0);

    let server = Server::start(&["--max-batch-prefill-tokens", "40"]);
    check_equal(&all_at_once(&server, || {}), &expected, "in small chunks");

    let server = Server::start(&["--kv-cache-memory", SMALL_CACHE]);
    check_equal(&all_at_once(&server, || {}), &expected, "with preemptions");
    assert!(server.metric("millstream_preemptions_total") > 0.0, "nobody was preempted");
}
