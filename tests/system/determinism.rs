//! A text depends on its request alone: not on who else is served, not on how its tokens are cut
//! into steps, not on what is cached, not on which worker computes it.
//!
//! What is compared is the whole choice with its log-probabilities, digit by digit.

use serde_json::{Value, json};

use crate::common::{Server, chat, send_signal, wait_until};

const NUM_REQUESTS: usize = 32;

/// A model, as flags, and a cache that holds one sequence of its longest length and far from all
/// 32.
struct Case<'a> {
    model: &'a [&'a str],
    small_cache: &'a str,
}

impl Case<'_> {
    fn start(&self, flags: &[&str]) -> Server {
        Server::start(&[self.model, flags].concat())
    }
}

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
fn undisturbed(case: &Case<'_>) -> Vec<Value> {
    let server = case.start(&["--prefix-caching", "false"]);
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

fn check(case: &Case<'_>) {
    let expected = undisturbed(case);

    let server = case.start(&[]);
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

    let server = case.start(&["--max-batch-prefill-tokens", "40"]);
    check_equal(&all_at_once(&server, || {}), &expected, "in small chunks");

    let server = case.start(&["--kv-cache-memory", case.small_cache]);
    check_equal(&all_at_once(&server, || {}), &expected, "with preemptions");
    assert!(server.metric("millstream_preemptions_total") > 0.0, "nobody was preempted");
}

#[test]
fn a_text_is_the_same_alone_and_among_31_others_whatever_happens_to_them() {
    check(&Case { model: &[], small_cache: "3MiB" });
}

/// Two of three layers see the last 40 tokens only: their blocks are given back as a text grows,
/// taken again by others, and found again by later prompts.
#[test]
fn so_it_is_where_most_layers_see_a_window_only() {
    let directory = tempfile::tempdir().expect("no temporary directory");
    let config = json!({
        "model_type": "gemma3_text", "vocab_size": 1792, "hidden_size": 64,
        "intermediate_size": 128, "num_hidden_layers": 6, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "query_pre_attn_scalar": 16,
        "sliding_window": 40, "sliding_window_pattern": 3, "max_position_embeddings": 1024,
        "eos_token_id": 1, "torch_dtype": "bfloat16",
    });
    std::fs::write(directory.path().join("config.json"), config.to_string()).unwrap();
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/src/demo/model");
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        let from = std::path::Path::new(demo).join(file);
        std::fs::copy(from, directory.path().join(file)).expect("the demo's tokenizer");
    }
    let path = directory.path().to_str().expect("a path in UTF-8");
    check(&Case { model: &["--model-id", path, "--load-format", "dummy"], small_cache: "1MiB" });
}
