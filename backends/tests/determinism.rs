//! A row's logits do not depend on its neighbours, nor on how its tokens were cut into steps: not
//! in a single bit.

mod fixture;

use fixture::{Row, Runner, load, load_with, prompt};
use millstream_backends::candle::{LoadOptions, Quantization};

const LEN: usize = 45;
/// Between them they have every kind of layer.
const CASES: [&str; 10] = [
    "cohere2",
    "gemma3-text",
    "glm4-moe",
    "gpt-oss-mxfp4",
    "llama-biases",
    "llama3-scaling",
    "ministral3",
    "olmo3",
    "qwen3",
    "qwen3-bf16",
];

/// The bits of every logit of sequence 0 after these steps.
fn bits(runner: &mut Runner, others: usize, steps: &[Vec<Row>]) -> Vec<u32> {
    runner.start((0..=others).map(|seed| prompt(LEN, seed)).collect());
    steps.iter().for_each(|rows| runner.step(rows));
    assert_eq!(runner.logits(0).len(), LEN, "every token is computed once");
    runner.logits(0).iter().flatten().map(|logit| logit.to_bits()).collect()
}

fn check(others: usize, schedules: &[Vec<Vec<Row>>]) {
    for case in CASES {
        let mut runner = Runner::new(load(case, None), Vec::new());
        let alone = bits(&mut runner, 0, &[vec![(0, LEN)]]);
        for steps in schedules {
            let same = bits(&mut runner, others, steps) == alone;
            assert!(same, "{case}: other bits after {steps:?}");
        }
    }
}

#[test]
fn a_prompt_cut_anywhere_has_the_same_bits() {
    let cut = |at| vec![vec![(0, at)], vec![(0, LEN - at)]];
    check(0, &(1..LEN).map(cut).collect::<Vec<_>>());
}

#[test]
fn tokens_decoded_one_by_one_have_the_same_bits() {
    check(0, &[vec![vec![(0, 1)]; LEN]]);
}

#[test]
fn a_sequence_among_31_others_has_the_same_bits() {
    // First and last in the batch, whole and in chunks, beside prompts and beside decodes.
    let whole = |len: usize| -> Vec<Row> { (0..32).map(|index| (index, len)).collect() };
    let backwards = |len: usize| -> Vec<Row> { (0..32).rev().map(|index| (index, len)).collect() };
    let ragged: Vec<Row> = (0..32).map(|index| (index, 1 + index % 9)).collect();
    let then = vec![(0, LEN - 1 - 3)];
    check(
        31,
        &[
            vec![whole(LEN)],
            vec![backwards(LEN)],
            vec![whole(17), backwards(LEN - 17)],
            vec![ragged, then, backwards(1), whole(1), vec![(0, 1)]],
        ],
    );
}

#[test]
fn a_prompt_that_finds_its_beginning_in_the_cache_has_the_same_bits() {
    for case in CASES {
        let mut runner = Runner::new(load(case, None), vec![prompt(LEN, 0), prompt(LEN, 0)]);
        runner.step(&[(0, LEN)]);
        runner.share(0, 1, 2);
        runner.step(&[(1, 10)]);
        runner.step(&[(1, LEN - 42)]);
        assert!(runner.logits(0) == runner.logits(1), "{case}");
    }
}

#[test]
fn a_token_has_the_same_bits_whatever_else_is_asked_for() {
    let rows = [(0, 17), (1, 1), (2, 30)];
    let some: [&[u32]; 6] =
        [&[16, 17, 47], &[47], &[], &[0], &[3, 4, 5, 17, 18, 19, 30], &[20, 3, 20]];
    for case in CASES {
        let mut runner = Runner::new(load(case, None), (0..3).map(|i| prompt(LEN, i)).collect());
        // A context that the tokens asked for come after, and see.
        runner.step(&[(0, 12), (1, 15), (2, 1)]);
        let all = runner.ask(&rows, &(0..48).collect::<Vec<_>>());
        for tokens in some {
            let expected: Vec<_> = tokens.iter().map(|&token| &all[token as usize]).collect();
            let asked = runner.ask(&rows, tokens);
            assert!(asked.iter().eq(expected), "{case}: other bits of {tokens:?}");
        }
    }
}

#[test]
fn a_sequence_has_the_same_bits_where_weights_are_quantised() {
    for quantize in [Quantization::Int8, Quantization::Int4] {
        let options = LoadOptions { quantize: Some(quantize), ..LoadOptions::default() };
        let mut runner = Runner::new(load_with("qwen3-moe", &options), Vec::new());
        let alone = bits(&mut runner, 0, &[vec![(0, LEN)]]);
        let mixed = [vec![(1, 9), (0, 20), (2, 1)], vec![(2, 30), (0, 25)]];
        for steps in [mixed.to_vec(), vec![vec![(0, 1)]; LEN]] {
            assert!(bits(&mut runner, 2, &steps) == alone, "{quantize:?}: other bits");
        }
    }
}
