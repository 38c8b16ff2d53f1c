//! How tokens are drawn, as far as a client sees it.

use std::collections::HashSet;

use serde_json::{Value, json};

use crate::common::{Server, chat, long_chat, send_signal};

const QUESTION: &str = "Tell me a story about a fox and a red kite.";

#[test]
fn penalties_reach_the_worker_and_neutral_ones_change_nothing() {
    let server = Server::start(&[]);
    let tokens = |more: Value| -> Vec<String> {
        let mut fields = json!({"max_tokens": 200, "ignore_eos": true, "logprobs": true});
        fields.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let answer = server.chat(&chat(QUESTION, fields));
        let tokens = answer["choices"][0]["logprobs"]["content"].as_array().unwrap();
        tokens.iter().map(|token| token["token"].to_string()).collect()
    };
    let plain = tokens(json!({}));
    assert_eq!(plain.len(), 200);
    let neutral = json!({"repetition_penalty": 1, "frequency_penalty": 0, "presence_penalty": 0});
    assert_eq!(tokens(neutral), plain);
    for penalty in [json!({"presence_penalty": 2}), json!({"repetition_penalty": 1.5})] {
        assert_ne!(tokens(penalty.clone()), plain, "{penalty}");
    }
    // What costs more every time is not written for ever.
    let num_distinct = |tokens: &[String]| tokens.iter().collect::<HashSet<_>>().len();
    let varied = tokens(json!({"frequency_penalty": 2}));
    assert!(num_distinct(&varied) > num_distinct(&plain), "{varied:?} {plain:?}");
}

#[test]
fn a_penalised_text_goes_on_unchanged_after_the_death_of_its_worker() {
    let server = Server::start(&[]);
    let mut request = long_chat(QUESTION, 300);
    let fields = json!({
        "temperature": 1, "seed": 3, "typical_p": 0.9, "repetition_penalty": 1.1,
        "presence_penalty": 0.5, "frequency_penalty": 0.2,
    });
    request.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    let undisturbed = server.stream(&request).rest();
    let mut stream = server.stream(&request);
    let mut text: String = (0..3).map(|_| stream.next_text().expect("it ended early")).collect();
    send_signal("KILL", server.worker());
    text += &stream.rest();
    assert_eq!(text, undisturbed);
    assert_eq!(server.workers().len(), 2);
}
