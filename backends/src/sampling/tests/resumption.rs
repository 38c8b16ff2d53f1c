//! A text that is interrupted anywhere, and added again from what was received, goes on as if
//! nothing had been: through the worker's own slots.

use millstream_proto::{AddSequence, CacheGroup, Sampling, Step, WorkerInfo};

use super::*;
use crate::slots::{RowPlan, Slots};

const VOCAB_SIZE: u32 = 24;
const PROMPT: [u32; 6] = [3, 1, 4, 1, 5, 9];

fn slots() -> Slots {
    let info = WorkerInfo {
        max_model_len: 256,
        vocab_size: VOCAB_SIZE,
        block_size: 256,
        max_slots: 1,
        max_batch_tokens: 256,
        cache_groups: vec![CacheGroup { num_blocks: 1, ..CacheGroup::default() }],
        ..WorkerInfo::default()
    };
    Slots::new(&info, None)
}

/// Logits that follow from the token before alone, so that only sampling can tell histories apart.
fn logits_after(token: u32) -> Vec<f32> {
    (0..VOCAB_SIZE).map(|id| ((token * 7 + id * 11) % 13) as f32 / 4.0 - 1.0).collect()
}

/// Adds a sequence to an empty slot and draws until it has `len` tokens.
fn run(sampling: &Sampling, prompt_len: usize, tokens: &[u32], len: usize) -> Vec<u32> {
    let mut slots = slots();
    let mut sampler = Sampler::new(VOCAB_SIZE as usize);
    let mut tokens = tokens.to_vec();
    let mut add = Some(AddSequence {
        prompt_len: prompt_len as u32,
        tokens: tokens.clone(),
        sampling: Some(sampling.clone()),
        stop_token_ids: vec![0, 2],
        seed: 9,
        ..AddSequence::default()
    });
    while tokens.len() < len {
        let is_first = add.is_some();
        let plans = slots.apply(Step {
            add: add.take().into_iter().collect(),
            new_block_slot: vec![0; usize::from(is_first)],
            new_block_group: vec![0; usize::from(is_first)],
            new_block: vec![0; usize::from(is_first)],
            row_slot: vec![0],
            row_start: vec![if is_first { 0 } else { millstream_proto::CONTINUE }],
            row_len: vec![if is_first { tokens.len() as u32 } else { 1 }],
            row_sample: vec![1],
            ..Step::default()
        });
        let [RowPlan::Run(row)] = plans[..] else { panic!("{plans:?}") };
        let (sequence, end) = (slots.get(0).unwrap(), tokens.len());
        let mut logits = logits_after(sequence.tokens[end - 1]);
        let token = sampler.sample(&mut logits, sequence, end).unwrap().token;
        tokens.push(token);
        slots.finish(row, Ok(Some(SampledToken { token, logprobs: None }))).unwrap();
        if slots.get(0).unwrap().ended {
            break;
        }
    }
    tokens
}

#[test]
fn a_text_continued_from_anywhere_is_the_undisturbed_text() {
    let plain = Sampling { temperature: 1.0, top_p: 1.0, min_tokens: 40, ..Sampling::default() };
    let repetition = Sampling { repetition_penalty: 1.4, ..plain.clone() };
    let output = Sampling { presence_penalty: 0.7, frequency_penalty: 0.3, ..plain.clone() };
    let all = Sampling { repetition_penalty: 1.2, typical_p: 0.8, top_k: 9, ..output.clone() };
    let greedy = Sampling { temperature: 0.0, ..all.clone() };
    for sampling in [plain, repetition, output, all, greedy] {
        let whole = run(&sampling, PROMPT.len(), &PROMPT, 60);
        assert!(whole.len() > PROMPT.len() + 40, "min_tokens keep it going");
        for cut in PROMPT.len()..whole.len() {
            let resumed = run(&sampling, PROMPT.len(), &whole[..cut], 60);
            assert_eq!(resumed, whole, "cut at {cut} of {sampling:?}");
        }
    }
}

#[test]
fn what_was_received_is_no_prompt() {
    // A worker that took the tokens received for a prompt would write another text.
    let sampling = Sampling {
        top_p: 1.0,
        presence_penalty: 0.7,
        frequency_penalty: 0.3,
        min_tokens: 40,
        ..Sampling::default()
    };
    let whole = run(&sampling, PROMPT.len(), &PROMPT, 40);
    let cut = PROMPT.len() + 10;
    assert_ne!(run(&sampling, cut, &whole[..cut], 40), whole);
}
