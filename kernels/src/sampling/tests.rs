//! What the host gives and reads. That the tokens are the sampler's is tested where the sampler is.

use super::*;
use crate::cuda::testing::gpu;
use crate::testing::assert_error;

#[test]
fn biases_of_a_token_stand_together_in_their_order() {
    let mut lists = Lists::default();
    let tokens = lists.tokens(&[8, 9]);
    let biases = lists.biases(&[(5, 1.0), (2, 2.0), (5, -1.0), (2, 0.5)]);
    assert_eq!((tokens, biases), (Span { first: 0, count: 2 }, Span { first: 2, count: 4 }));
    let bits = [2.0, 0.5, 1.0, -1.0].map(f32::to_bits);
    let expected = [8, 9, 2, bits[0], 0, 2, bits[1], 0, 5, bits[2], 0, 5, bits[3], 0];
    assert_eq!(lists.words(), expected);
    lists.clear();
    assert_eq!(lists.tokens(&[]), Span::default());
}

#[test]
fn a_slots_counts_are_those_of_its_text_alone() {
    let Some(gpu) = gpu() else { return };
    const VOCAB_SIZE: usize = 5;
    let mut lists = Lists::default();
    // What is no token is counted nowhere.
    let tokens = lists.tokens(&[3, 1, 3, 9, 3, 0, 0]);
    let text = Text { slot: 1, tokens, prompt_len: 3 };
    let padding = Text { slot: NONE, ..text };
    let words = [padding, text, padding].map(|text| text.words()).concat();
    let [texts, lists] = [&words, lists.words()].map(|words| gpu.upload(words).unwrap());
    let counts = gpu.upload(&[7_u32; 3 * VOCAB_SIZE]).unwrap();
    reset_counts(&gpu, &counts, VOCAB_SIZE, &texts, &lists).unwrap();
    let prompt = 1 << 31;
    let expected = [[7; VOCAB_SIZE], [2, prompt, 0, prompt + 1, 0], [7; VOCAB_SIZE]].concat();
    assert_eq!(gpu.download::<u32>(&counts).unwrap(), expected);
}

#[test]
fn wrong_arguments_are_named() {
    let Some(gpu) = gpu() else { return };
    let [u32s, f32s, i64s] =
        [DType::U32, DType::F32, DType::I64].map(|dtype| gpu.zeros(dtype, 5_000).unwrap());
    let right = Draw {
        vocab_size: 40,
        logits: &f32s.slice(0..2 * 41),
        rows: &u32s.slice(0..2 * ROW_WORDS),
        lists: &u32s,
        masks: &u32s.slice(0..4),
        counts: &u32s.slice(0..3 * 40),
        last_token: &u32s.slice(0..3),
        findings: &i64s.slice(0..2 * FINDINGS_LEN),
        outcomes: &u32s.slice(0..2 * OUTCOME_WORDS),
    };
    let fails = |wrong: Draw<'_>, message: &str| assert_error(draw(&gpu, &wrong), message);
    let rule = "vocab_size: expected 1 token at least and fewer than 2^24, found ";
    fails(Draw { vocab_size: 0, ..right }, &format!("{rule}0"));
    fails(Draw { vocab_size: 1 << 24, ..right }, &format!("{rule}16777216"));
    let narrow = &f32s.slice(0..2 * 39);
    fails(Draw { logits: narrow, ..right }, "logits: expected rows of 40 at least, found 39");
    let odd = &f32s.slice(0..2 * 41 + 1);
    fails(Draw { logits: odd, ..right }, "logits: expected shape [2, 41], found [83]");
    fails(Draw { logits: &u32s, ..right }, "logits: expected dtype f32, found U32");
    let short = &u32s.slice(0..3);
    fails(Draw { rows: &u32s.slice(0..20), ..right }, "rows: expected shape [1, 19], found [20]");
    fails(Draw { masks: short, ..right }, "masks: expected shape [1, 2], found [3]");
    fails(Draw { counts: short, ..right }, "counts: expected shape [3, 40], found [3]");
    fails(Draw { findings: &i64s, ..right }, "findings: expected shape [2, 2112], found [5000]");
    fails(Draw { outcomes: short, ..right }, "outcomes: expected shape [2, 44], found [3]");
    // Rows of slot 0 that are all 0: greedy, and none of them is padding.
    draw(&gpu, &right).unwrap();
    let scored = Score {
        vocab_size: 40,
        logits: right.logits,
        tokens: &u32s.slice(0..2),
        num_top: short,
        outcomes: right.outcomes,
    };
    assert_error(score(&gpu, &scored), "num_top: expected shape [2], found [3]");
    let texts = &u32s.slice(0..5);
    let result = reset_counts(&gpu, right.counts, 40, texts, &u32s);
    assert_error(result, "texts: expected shape [1, 4], found [5]");
}
