//! What is asked: random prompts of a given length, equal for equal seeds.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use crate::load::{Endpoint, Load};

/// Common words, about one token each in most vocabularies.
const WORDS: [&str; 48] = [
    "the", "and", "that", "have", "for", "not", "with", "you", "this", "but", "his", "from",
    "they", "say", "her", "she", "will", "one", "all", "would", "there", "their", "what", "out",
    "about", "who", "get", "which", "when", "make", "can", "like", "time", "just", "him", "know",
    "take", "people", "into", "year", "your", "good", "some", "could", "them", "see", "other",
    "than",
];

/// The path of an endpoint.
pub(crate) fn path(endpoint: Endpoint) -> &'static str {
    match endpoint {
        Endpoint::Chat => "/v1/chat/completions",
        Endpoint::Completions => "/v1/completions",
    }
}

/// The body of request number `index`.
pub(crate) fn body(load: &Load, model: &str, index: u32) -> String {
    // The odd constant spreads neighbouring indices over the generator's seeds.
    let seed = load.seed.wrapping_add(u64::from(index).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mut random = StdRng::seed_from_u64(seed);
    let mut body = json!({
        "model": model,
        "max_tokens": load.output_tokens,
        "min_tokens": load.output_tokens,
        "ignore_eos": true,
        // Random prompts have random answers: every token shows, so that every token is timed.
        "skip_special_tokens": false,
        "temperature": 0,
        "stream": true,
        "stream_options": {"include_usage": true},
    });
    match load.endpoint {
        Endpoint::Completions => {
            let ids = (0..load.prompt_tokens).map(|_| random.random_range(0..load.vocab_size));
            body["prompt"] = ids.collect::<Vec<u32>>().into();
        }
        Endpoint::Chat => {
            let words = (0..load.prompt_tokens).map(|_| WORDS[random.random_range(0..WORDS.len())]);
            let content: Value = words.collect::<Vec<_>>().join(" ").into();
            body["messages"] = json!([{"role": "user", "content": content}]);
        }
    }
    body.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(endpoint: Endpoint, seed: u64) -> Load {
        Load { endpoint, seed, prompt_tokens: 20, vocab_size: 50, ..Load::default() }
    }

    #[test]
    fn equal_seeds_ask_the_same_and_each_request_asks_something_else() {
        for endpoint in [Endpoint::Chat, Endpoint::Completions] {
            let ask = |seed, index| body(&load(endpoint, seed), "m", index);
            assert_eq!(ask(1, 7), ask(1, 7));
            assert_ne!(ask(1, 7), ask(1, 8));
            assert_ne!(ask(1, 7), ask(2, 7));
        }
    }

    #[test]
    fn a_prompt_has_the_length_that_was_asked_for_and_ids_below_the_vocabulary() {
        let body: Value =
            serde_json::from_str(&body(&load(Endpoint::Completions, 3), "m", 0)).unwrap();
        let ids = body["prompt"].as_array().unwrap();
        assert_eq!(ids.len(), 20);
        assert!(ids.iter().all(|id| id.as_u64().unwrap() < 50));
    }
}
