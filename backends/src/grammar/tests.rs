use std::path::Path;

use millstream_proto::Grammar;
use millstream_proto::row_error::Kind;

use super::*;
use crate::{Sampler, SamplingParams, Sequence};

const TESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/tokenizers");
const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../src/demo/model/tokenizer.json");

/// Tokens that the tests' model has.
const VOCAB_SIZE: usize = 1780;
/// Ends a text.
const EOS: u32 = 1;

/// One of the tests' tokenizers.
fn fixture(name: &str) -> Grammars {
    let file = std::fs::read(Path::new(TESTS).join(format!("{name}.json"))).unwrap();
    let fixture: serde_json::Value = serde_json::from_slice(&file).unwrap();
    let tokenizer = fixture["tokenizer"].to_string().into_bytes();
    Grammars::new(tokenizer.into(), VOCAB_SIZE).unwrap()
}

fn demo() -> Grammars {
    Grammars::new(std::fs::read(DEMO).unwrap().into(), VOCAB_SIZE).unwrap()
}

fn grammar(kind: &str, source: &str) -> Grammar {
    let digest = format!("{kind} {source}").into_bytes();
    Grammar { digest, kind: kind.into(), source: source.into() }
}

fn sequence(constrained: &Constrained, sampling: SamplingParams) -> Sequence {
    Sequence {
        prompt_len: 1,
        tokens: vec![5],
        sampling,
        stop_token_ids: vec![EOS],
        grammar: Some(constrained.clone()),
        ..Sequence::default()
    }
}

/// What greedy decoding of logits that prefer small ids, and EOS least, comes to.
fn greedy(grammars: &Grammars, grammar: Grammar, min_tokens: usize) -> Vec<u32> {
    let constrained = grammars.begin(grammar, Vec::new());
    let sampling = SamplingParams { min_tokens, ..SamplingParams::default() };
    let mut sequence = sequence(&constrained, sampling);
    let mut sampler = Sampler::new(VOCAB_SIZE);
    loop {
        let mut logits: Vec<f32> = (0..VOCAB_SIZE).map(|id| -(id as f32)).collect();
        logits[EOS as usize] = -1e9;
        let position = sequence.tokens.len();
        let token = sampler.sample(&mut logits, &sequence, position).unwrap().token;
        if token == EOS || position > 64 {
            return sequence.tokens.split_off(1);
        }
        sequence.tokens.push(token);
        constrained.advance(token);
    }
}

fn text(tokens: &[u32]) -> String {
    let json = serde_json::from_slice(&std::fs::read(DEMO).unwrap()).unwrap();
    let words = llguidance::token_bytes_from_tokenizer_json(&json).unwrap();
    let bytes: Vec<u8> = tokens.iter().flat_map(|&token| words[token as usize].clone()).collect();
    String::from_utf8(bytes).unwrap()
}

#[test]
fn every_text_is_in_its_language_and_ends_where_it_is_whole() {
    let grammars = demo();
    for (kind, source, expected) in [
        ("regex", "(ab){3}", "ababab"),
        ("lark", r#"start: "yes" | "no, not \"ever\"" "#, "yes"),
        ("json_schema", r#"{"const": {"a": [1, true, null]}}"#, r#"{"a":[1,true,null]}"#),
        ("json_schema", r#"{"enum": ["Füchse"]}"#, r#""Füchse""#),
    ] {
        let greedy = text(&greedy(&grammars, grammar(kind, source), 0));
        let compact: String = greedy.chars().filter(|char| !char.is_whitespace()).collect();
        let expected: String = expected.chars().filter(|char| !char.is_whitespace()).collect();
        let others = ["no,not\"ever\""];
        assert!(compact == expected || others.contains(&compact.as_str()), "{source}: {greedy}");
    }
}

#[test]
fn a_text_that_is_whole_ends_before_min_tokens() {
    let greedy = greedy(&demo(), grammar("regex", "(ab){3}"), 40);
    assert_eq!(text(&greedy), "ababab");
}

#[test]
fn a_resumed_text_may_go_on_as_the_undisturbed_one() {
    let grammars = demo();
    let schema = r#"{"type": "object", "properties": {"n": {"type": "integer"}}}"#;
    let grammar = grammar("json_schema", schema);
    let whole = greedy(&grammars, grammar.clone(), 12);
    let bits = |constrained: &Constrained| {
        let mut logits = vec![0.0; VOCAB_SIZE];
        constrained.with_mask(|mask| mask.apply(&mut logits, &[EOS])).unwrap();
        logits
    };
    let undisturbed = grammars.begin(grammar.clone(), Vec::new());
    for len in 0..whole.len() {
        let resumed = grammars.begin(grammar.clone(), whole[..len].to_vec());
        assert!(bits(&undisturbed) == bits(&resumed), "after {len} tokens");
        undisturbed.advance(whole[len]);
    }
}

#[test]
fn a_lexer_that_is_full_gives_way_to_a_new_one() {
    let grammars = demo();
    let source = r#"{"type": "string", "pattern": "[0-9].{0,30}[a-z]x"}"#;
    let grammar = grammar("json_schema", source);
    for text in 0..60 {
        let constrained = grammars.begin(grammar.clone(), Vec::new());
        // A quote, then digits and letters in an order of this text's own, and no backslash.
        let letter = |place: u32| 20 + (text * 131 + place * (place + text) * 7) % 70;
        let letters = (0..30).map(letter).filter(|letter| *letter != 64);
        for token in std::iter::once(6).chain(letters) {
            constrained.with_mask(|_| ()).unwrap_or_else(|why| panic!("text {text}: {why}"));
            constrained.advance(token);
        }
        constrained.with_mask(|_| ()).unwrap_or_else(|why| panic!("text {text}: {why}"));
    }
    let compiled = grammars.0.compiler.compiled(&grammar, 0).unwrap();
    assert!(compiled.edition > 0, "the texts fill a lexer");
}

#[test]
fn log_probabilities_are_those_of_the_model_alone() {
    let constrained = demo().begin(grammar("regex", "(ab){3}"), Vec::new());
    let mut sampler = Sampler::new(VOCAB_SIZE);
    let mut logprobs = |grammar: Option<Constrained>| {
        let sampling = SamplingParams { logprobs: Some(3), ..SamplingParams::default() };
        let sequence = Sequence { grammar, ..sequence(&constrained, sampling) };
        let mut logits: Vec<f32> = (0..VOCAB_SIZE).map(|id| (id % 7) as f32).collect();
        sampler.sample(&mut logits, &sequence, 1).unwrap()
    };
    let (free, bound) = (logprobs(None), logprobs(Some(constrained.clone())));
    assert_ne!(free.token, bound.token);
    assert_eq!(free.logprobs.unwrap().top, bound.logprobs.unwrap().top);
}

#[test]
fn what_cannot_be_satisfied_fails_in_words() {
    let grammars = demo();
    let failure = |grammar: Grammar, output: &[u32]| {
        grammars.begin(grammar, output.to_vec()).with_mask(|_| ()).unwrap_err()
    };
    let broken = failure(grammar("json_schema", r#"{"type": "thing"}"#), &[]);
    assert_eq!(broken.kind, Kind::Grammar);
    assert!(broken.message.contains("thing"), "{broken}");
    let unknown = failure(grammar("poem", "roses"), &[]);
    assert!(unknown.message.contains("poem"), "{unknown}");
    let foreign = failure(grammar("regex", "(ab){3}"), &[7, 7, 7]);
    assert_eq!(foreign.kind, Kind::Grammar);

    let constrained = grammars.begin(grammar("regex", "(ab){3}"), Vec::new());
    let banned = SamplingParams {
        bias: (0..VOCAB_SIZE as u32).map(|token| (token, f32::NEG_INFINITY)).collect(),
        ..SamplingParams::default()
    };
    let mut logits = vec![0.0; VOCAB_SIZE];
    let sequence = sequence(&constrained, banned);
    let failure = Sampler::new(VOCAB_SIZE).sample(&mut logits, &sequence, 1).unwrap_err();
    assert_eq!(failure.kind, Kind::Grammar);
}

#[test]
fn a_tokenizer_serves_grammars_or_says_why_it_cannot() {
    for (name, expected) in [
        ("deepseek", ""),
        ("digits", ""),
        ("gemma", ""),
        ("gpt2", ""),
        ("gpt_oss", ""),
        ("llama2", ""),
        ("llama2_metaspace", ""),
        ("llama3", ""),
        ("phi3", ""),
        ("prefixed", ""),
        ("qwen2", ""),
        ("tekken", ""),
        ("t5", "grammars do not work with this tokenizer: "),
        ("unigram_fallback", "grammars do not work with this tokenizer: "),
        ("xlm_roberta", "grammars do not work with this tokenizer: "),
    ] {
        let problem = fixture(name).problem();
        let is_expected = match expected {
            "" => problem.is_empty(),
            start => problem.starts_with(start),
        };
        assert!(is_expected, "{name}: {problem}");
    }
    let broken = Grammars::new(b"{".as_slice().into(), VOCAB_SIZE).unwrap();
    assert!(broken.problem().starts_with("tokenizer.json cannot be read: EOF"));
}
