//! The mock is an oracle only if it notices: undisturbed texts are the reference's, and each
//! mistake with a block changes the text.

use super::*;
use crate::slots::Sequence;

const PROMPT: [u32; 9] = [3, 1, 4, 1, 5, 9, 2, 6, 5];

fn config() -> MockConfig {
    MockConfig {
        vocab_size: 1_000_003,
        block_size: 4,
        cache_groups: vec![MockGroup::full(16)],
        ..MockConfig::default()
    }
}

fn sequence(tokens: &[u32], blocks: &[u32]) -> Sequence {
    Sequence {
        prompt_len: tokens.len(),
        tokens: tokens.to_vec(),
        block_tables: vec![blocks.to_vec()],
        seed: 7,
        ..Sequence::default()
    }
}

/// Runs one step; a row is a sequence, its start and its length, and every row samples.
fn step(model: &mut MockModel, rows: &[(&Sequence, usize, usize)]) -> Vec<u32> {
    let rows = rows.iter().map(|(sequence, start, len)| BatchRow {
        slot: 0,
        sequence,
        start: *start,
        len: *len,
        sample: true,
    });
    let results = model.forward(&Batch::new(rows.collect()));
    results.into_iter().map(|result| result.unwrap().unwrap().token).collect()
}

fn first_token(prompt: &[u32]) -> u32 {
    reference_text(&config(), prompt, 7, 0, 1)[0]
}

/// Two groups, one of which sees three positions.
fn windowed() -> MockConfig {
    let window = MockGroup { num_blocks: 16, window: Some(3) };
    MockConfig { cache_groups: vec![window, MockGroup::full(16)], ..config() }
}

/// A sequence of [`windowed`].
fn windowed_sequence(tokens: &[u32], window: &[u32], full: &[u32]) -> Sequence {
    Sequence { block_tables: vec![window.to_vec(), full.to_vec()], ..sequence(tokens, &[]) }
}

#[test]
fn an_undisturbed_text_is_the_references_however_its_tokens_are_cut_into_steps() {
    let window = |window| MockGroup { num_blocks: 16, window: Some(window) };
    let groups = [
        vec![MockGroup::full(16)],
        vec![window(1)],
        vec![window(5), MockGroup::full(16)],
        vec![window(4), window(2)],
    ];
    let cases = groups.iter().flat_map(|groups| [(groups, false), (groups, true)]);
    for (groups, trusting) in cases {
        let cache_groups = groups.clone();
        let config = MockConfig { trusting, eos_every: Some(5), cache_groups, ..config() };
        let reference = reference_text(&config, &PROMPT, 7, 0, 8);
        for chunk in 1..=PROMPT.len() {
            let mut model = MockModel::new(config.clone());
            let mut sequence = sequence(&PROMPT, &[9, 2, 11, 0, 5]);
            sequence.block_tables = vec![sequence.block_tables[0].clone(); groups.len()];
            let mut start = 0;
            while sequence.tokens.len() < PROMPT.len() + 8 {
                let len = chunk.min(sequence.tokens.len() - start);
                let token = step(&mut model, &[(&sequence, start, len)])[0];
                start += len;
                if start == sequence.tokens.len() {
                    sequence.tokens.push(token);
                }
            }
            assert_eq!(sequence.tokens[PROMPT.len()..], reference, "{groups:?}, chunks of {chunk}");
        }
    }
}

#[test]
fn a_hit_on_a_block_of_an_earlier_step_is_right() {
    let mut model = MockModel::new(config());
    let first = sequence(&PROMPT, &[0, 1, 2]);
    step(&mut model, &[(&first, 0, 9)]);
    let other_end = [&PROMPT[..8], &[8]].concat();
    let second = sequence(&other_end, &[0, 1, 3]);
    assert_eq!(step(&mut model, &[(&second, 8, 1)]), [first_token(&other_end)]);
}

#[test]
fn a_hit_on_a_block_that_is_computed_in_the_same_step_is_noticed() {
    let mut model = MockModel::new(config());
    let first = sequence(&PROMPT, &[0, 1, 2]);
    let second = sequence(&PROMPT, &[0, 1, 3]);
    // Whichever of the two rows comes first.
    for rows in [[(&first, 0, 9), (&second, 8, 1)], [(&second, 8, 1), (&first, 0, 9)]] {
        let right = step(&mut model, &rows).into_iter().filter(|t| *t == first_token(&PROMPT));
        assert_eq!(right.count(), 1);
    }
}

#[test]
fn a_wrong_block_is_noticed() {
    let mut model = MockModel::new(config());
    step(&mut model, &[(&sequence(&PROMPT, &[0, 1, 2]), 0, 8)]);
    let swapped = sequence(&PROMPT, &[1, 0, 2]);
    assert_ne!(step(&mut model, &[(&swapped, 8, 1)]), [first_token(&PROMPT)]);
}

#[test]
fn an_uncomputed_cell_is_noticed() {
    let mut model = MockModel::new(config());
    let skipping = sequence(&PROMPT, &[0, 1, 2]);
    step(&mut model, &[(&skipping, 0, 7)]);
    assert_ne!(step(&mut model, &[(&skipping, 8, 1)]), [first_token(&PROMPT)]);
}

#[test]
fn a_block_that_another_sequence_stole_is_noticed() {
    let mut model = MockModel::new(config());
    let owner = sequence(&PROMPT, &[0, 1, 2]);
    step(&mut model, &[(&owner, 0, 8)]);
    let thief = sequence(&[8, 8, 8], &[1]);
    step(&mut model, &[(&thief, 0, 3)]);
    assert_ne!(step(&mut model, &[(&owner, 8, 1)]), [first_token(&PROMPT)]);

    // In the same step too, where a real model would write before it reads.
    let mut model = MockModel::new(config());
    step(&mut model, &[(&owner, 0, 8)]);
    let tokens = step(&mut model, &[(&owner, 8, 1), (&thief, 0, 3)]);
    assert_ne!(tokens[0], first_token(&PROMPT));
}

#[test]
fn within_the_window_every_block_counts_and_behind_it_none_does() {
    let text = reference_text(&windowed(), &PROMPT, 7, 0, 1);
    // The last token, at position 8, sees positions 6 to 8.
    for (stolen, is_noticed) in [(0, false), (1, true)] {
        let mut model = MockModel::new(windowed());
        let owner = windowed_sequence(&PROMPT, &[0, 1, 2], &[0, 1, 2]);
        step(&mut model, &[(&owner, 0, 8)]);
        let thief = windowed_sequence(&[8, 8, 8, 8], &[stolen], &[3]);
        step(&mut model, &[(&thief, 0, 4)]);
        assert_eq!(step(&mut model, &[(&owner, 8, 1)]) != text, is_noticed, "block {stolen}");
    }
    let mut model = MockModel::new(windowed());
    step(&mut model, &[(&windowed_sequence(&PROMPT, &[0, 1, 2], &[0, 1, 2]), 0, 8)]);
    let nothing = millstream_proto::NO_BLOCK;
    let hit = windowed_sequence(&PROMPT, &[nothing, 1, 3], &[0, 1, 3]);
    assert_eq!(step(&mut model, &[(&hit, 8, 1)]), text);
}

#[test]
fn a_block_of_another_group_is_noticed() {
    let mut model = MockModel::new(windowed());
    step(&mut model, &[(&windowed_sequence(&PROMPT, &[0, 1, 2], &[3, 4, 5]), 0, 8)]);
    let mixed = windowed_sequence(&PROMPT, &[3, 4, 5], &[0, 1, 2]);
    let text = reference_text(&windowed(), &PROMPT, 7, 0, 1);
    assert_ne!(step(&mut model, &[(&mixed, 8, 1)]), text);
}

#[test]
fn texts_of_other_windows_are_of_another_model() {
    let [one, other] = [windowed(), config()].map(MockModel::new);
    assert_ne!(one.info().fingerprint, other.info().fingerprint);
    let text = |config: &MockConfig| reference_text(config, &PROMPT, 7, 0, 4);
    assert_ne!(text(&windowed()), text(&config()));
}

#[test]
fn the_same_tokens_after_another_beginning_are_another_block() {
    let mut model = MockModel::new(config());
    let other = [[9, 9, 9, 9], [5, 9, 2, 6]].concat();
    step(&mut model, &[(&sequence(&other, &[4, 1]), 0, 8)]);
    step(&mut model, &[(&sequence(&PROMPT, &[0]), 0, 4)]);
    let hit = sequence(&PROMPT, &[0, 1, 2]);
    assert_ne!(step(&mut model, &[(&hit, 8, 1)]), [first_token(&PROMPT)]);
}

#[test]
fn a_block_remembered_from_an_earlier_epoch_is_noticed() {
    let mut model = MockModel::new(config());
    let sequence = sequence(&PROMPT, &[0, 1, 2]);
    step(&mut model, &[(&sequence, 0, 8)]);
    model.reset();
    assert_ne!(step(&mut model, &[(&sequence, 8, 1)]), [first_token(&PROMPT)]);
}

#[test]
fn seed_choice_and_prompt_each_make_another_text() {
    let text = |prompt: &[u32], seed, choice| reference_text(&config(), prompt, seed, choice, 4);
    let texts =
        [text(&[1, 2], 7, 0), text(&[1, 2], 8, 0), text(&[1, 2], 7, 1), text(&[2, 1], 7, 0)];
    for (index, one) in texts.iter().enumerate() {
        assert!(texts[..index].iter().all(|other| other != one));
    }
    assert_eq!(text(&[1, 2], 7, 0), texts[0]);
}

#[test]
fn about_one_token_in_n_ends_a_text() {
    let config = MockConfig { eos_every: Some(10), ..config() };
    let text = reference_text(&config, &PROMPT, 7, 0, 10_000);
    let num_ends = text.iter().filter(|token| **token == EOS).count();
    assert!((900..1100).contains(&num_ends), "{num_ends}");
    let endless = MockConfig { eos_every: None, ..config };
    assert!(!reference_text(&endless, &PROMPT, 7, 0, 10_000).contains(&EOS));
}
