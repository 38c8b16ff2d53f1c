//! The kernel draws what the sampler draws, token for token.

use millstream_kernels::cuda::{Array, Gpu};
use millstream_kernels::sampling as kernel;
use millstream_kernels::sampling::{Failure, Lists, NONE, Row, Text};

use super::*;

/// A row of a launch.
struct Case {
    logits: Vec<f32>,
    sequence: Sequence,
    /// Ids that a mask lets follow; `None` where all may.
    mask: Option<Vec<bool>>,
}

impl Case {
    fn position(&self) -> usize {
        self.sequence.tokens.len()
    }

    /// What the sampler draws. A mask is a bias of -inf to it, which no penalty changes.
    fn expected(&self) -> Result<SampledToken, RowFailure> {
        let mut sequence = self.sequence.clone();
        for (id, _) in self.mask.iter().flatten().enumerate().filter(|(_, allowed)| !**allowed) {
            sequence.sampling.bias.push((id as u32, f32::NEG_INFINITY));
        }
        let mut logits = self.logits.clone();
        Sampler::new(logits.len()).sample(&mut logits, &sequence, self.position())
    }

    fn row(&self, slot: u32, lists: &mut Lists, masks: &mut Vec<u32>) -> Row {
        let Sequence { sampling: params, seed, choice, stop_token_ids, .. } = &self.sequence;
        let num_outputs = self.position() - self.sequence.prompt_len;
        let bans = if num_outputs < params.min_tokens { stop_token_ids } else { &Vec::new() };
        let num_words = self.logits.len().div_ceil(32);
        let mask = self.mask.as_ref().map_or(NONE, |allowed| {
            masks.extend(allowed.chunks(32).map(|allowed| {
                allowed.iter().rev().fold(0, |word, allowed| word << 1 | u32::from(*allowed))
            }));
            (masks.len() / num_words) as u32 - 1
        });
        Row {
            slot,
            position: self.position() as u32,
            seed: *seed,
            choice: *choice,
            temperature: params.temperature,
            top_k: params.top_k as u32,
            top_p: params.top_p,
            min_p: params.min_p,
            typical_p: params.typical_p,
            repetition_penalty: params.penalties.repetition,
            presence_penalty: params.penalties.presence,
            frequency_penalty: params.penalties.frequency,
            num_top: params.logprobs.map_or(NONE, |num_top| num_top as u32),
            biases: lists.biases(&params.bias),
            bans: lists.tokens(bans),
            mask,
        }
    }
}

/// A device's memory for sequences of one vocabulary.
struct Device {
    gpu: Gpu,
    vocab_size: usize,
    counts: Array,
    last_token: Array,
}

/// What stands where nothing was written.
const UNTOUCHED: u32 = 0xabad_cafe;

impl Device {
    fn new(vocab_size: usize, num_slots: usize) -> Option<Self> {
        let gpu = match Gpu::open(0) {
            Ok(gpu) => gpu,
            Err(error) => {
                println!("skipped: {error}");
                return None;
            }
        };
        let counts = gpu.upload(&vec![77_u32; num_slots * vocab_size]).unwrap();
        let last_token = gpu.upload(&vec![UNTOUCHED; num_slots]).unwrap();
        Some(Device { gpu, vocab_size, counts, last_token })
    }

    fn reset_counts(&self, cases: &[Case]) {
        let mut lists = Lists::default();
        let texts: Vec<u32> = (0..)
            .zip(cases)
            .map(|(slot, case)| Text {
                slot: if case.sequence.sampling.penalties.is_off() { NONE } else { slot },
                tokens: lists.tokens(&case.sequence.tokens),
                prompt_len: case.sequence.prompt_len as u32,
            })
            .flat_map(|text| text.words())
            .collect();
        let [texts, lists] = [&texts, lists.words()].map(|words| self.gpu.upload(words).unwrap());
        kernel::reset_counts(&self.gpu, &self.counts, self.vocab_size, &texts, &lists).unwrap();
    }

    /// Draws for one row per case, case i in slot i, between rows of padding.
    fn draw(&self, cases: &[Case]) -> Vec<Result<kernel::Outcome, Failure>> {
        /// What lies behind the vocabulary in each row.
        const BEHIND: usize = 3;
        let (mut lists, mut masks) = (Lists::default(), Vec::new());
        let mut rows = vec![Row::PADDING];
        let mut logits = vec![f32::NAN; self.vocab_size + BEHIND];
        for (slot, case) in (0..).zip(cases) {
            rows.push(case.row(slot, &mut lists, &mut masks));
            logits.extend(case.logits.iter().chain(&[f32::NAN; BEHIND]));
        }
        let rows: Vec<u32> = rows.iter().flat_map(Row::words).collect();
        let before = vec![UNTOUCHED; (1 + cases.len()) * kernel::OUTCOME_WORDS];
        let outcomes = self.gpu.upload(&before).unwrap();
        let draw = kernel::Draw {
            vocab_size: self.vocab_size,
            logits: &self.gpu.upload(&logits).unwrap(),
            rows: &self.gpu.upload(&rows).unwrap(),
            lists: &self.gpu.upload(lists.words()).unwrap(),
            masks: &self.gpu.upload(&masks).unwrap(),
            counts: &self.counts,
            last_token: &self.last_token,
            outcomes: &outcomes,
        };
        kernel::draw(&self.gpu, &draw).unwrap();
        let outcomes = self.gpu.download::<u32>(&outcomes).unwrap();
        let mut outcomes = outcomes.chunks(kernel::OUTCOME_WORDS);
        assert!(outcomes.next().unwrap().iter().all(|word| *word == UNTOUCHED), "padding");
        outcomes.map(kernel::outcome).collect()
    }
}

fn random_case(rng: &mut StdRng, vocab_size: usize) -> Case {
    let logits = shaped_logits(rng, vocab_size);
    let len = rng.random_range(1..60);
    let prompt_len = rng.random_range(1..=len);
    // Many of them stand there twice.
    let last = (vocab_size as u32 - 1).min(40);
    let tokens: Vec<u32> = (0..len).map(|_| rng.random_range(0..=last)).collect();
    let mut params = random_params(rng, vocab_size);
    params.temperature =
        [0.0, 0.3, 0.7, 1.0, 1.0, 5.0, f32::MIN_POSITIVE, f32::MAX][rng.random_range(0..8)];
    params.logprobs = [None, None, Some(0), Some(1), Some(20)][rng.random_range(0..5)];
    if rng.random_range(0..3) > 0 {
        params.penalties = Penalties::default();
    }
    if rng.random_range(0..4) == 0 {
        params.top_k = rng.random_range(1..=vocab_size.min(1_500));
    }
    if rng.random_range(0..10) == 0 {
        let token = rng.random_range(0..vocab_size as u32);
        params.bias = vec![(token, 1.5), (0, 0.1), (token, f32::NEG_INFINITY), (0, 0.2)];
    }
    params.bias.push((vocab_size as u32, 9.0));
    let mut sequence = sequence_of(params, prompt_len, &tokens);
    (sequence.seed, sequence.choice) = (rng.random(), rng.random_range(0..3));
    let num_stops = rng.random_range(0..4);
    sequence.stop_token_ids =
        (0..num_stops).map(|_| rng.random_range(0..=vocab_size as u32)).collect();
    let share = [0.02, 0.5, 0.98][rng.random_range(0..3)];
    let mask = (rng.random_range(0..4) == 0)
        .then(|| (0..vocab_size).map(|_| rng.random_bool(share)).collect());
    Case { logits, sequence, mask }
}

/// Logits of one of many shapes, few of them such as a model gives.
fn shaped_logits(rng: &mut StdRng, vocab_size: usize) -> Vec<f32> {
    // The sum of uniform numbers is near enough to normal.
    let mut normal = |_| (0..4).map(|_| rng.random_range(-3.0..3.0_f32)).sum();
    let mut logits: Vec<f32> = (0..vocab_size).map(&mut normal).collect();
    let anywhere = rng.random_range(0..vocab_size);
    match rng.random_range(0..12) {
        0 => logits.fill([0.0, -0.0, 7.25, f32::MIN, f32::NEG_INFINITY][anywhere % 5]),
        1 => logits.iter_mut().for_each(|logit| *logit = logit.round()),
        2 => logits.iter_mut().for_each(|logit| {
            *logit = f32::from_bits(logit.to_bits() & 0xffff_0000);
        }),
        3 => logits.iter_mut().for_each(|logit| {
            *logit = if *logit < 0.5 { f32::NEG_INFINITY } else { *logit };
        }),
        4 => logits.iter_mut().for_each(|logit| *logit *= 1e37),
        5 => logits.iter_mut().for_each(|logit| *logit *= 1e-42),
        6 => logits[anywhere] = f32::MAX,
        7 => logits[anywhere] = 25.0,
        8 => logits[anywhere] = [f32::NAN, -f32::NAN, f32::INFINITY][anywhere % 3],
        9 => {
            for logit in logits.iter_mut().step_by(2) {
                *logit = if logit.is_sign_negative() { -0.0 } else { 0.0 };
            }
        }
        10 => logits.sort_by(f32::total_cmp),
        _ => {}
    }
    logits
}

#[track_caller]
fn check(case: &Case, found: &Result<kernel::Outcome, Failure>) {
    let params = &case.sequence.sampling;
    let expected = match (case.expected(), found) {
        (Ok(expected), Ok(found)) => {
            assert_eq!(found.token, expected.token, "{params:?} of {}", case.logits.len());
            expected
        }
        (Err(_), Err(failure)) => {
            let is_fine = case.logits.iter().all(|logit| *logit < f32::INFINITY);
            assert_eq!(*failure, if is_fine { Failure::NoToken } else { Failure::NoNumber });
            return;
        }
        (expected, found) => panic!("{params:?}: expected {expected:?}, found {found:?}"),
    };
    let found = found.as_ref().unwrap();
    let logprobs = expected.logprobs.unwrap_or(SampledLogprobs { logprob: 0.0, top: Vec::new() });
    assert_close((found.token, found.logprob), (expected.token, logprobs.logprob));
    assert_eq!(found.top.len(), logprobs.top.len(), "{params:?}");
    found.top.iter().zip(logprobs.top).for_each(|(found, expected)| assert_close(*found, expected));
}

/// Log-probabilities of one token.
#[track_caller]
fn assert_close(found: (u32, f32), expected: (u32, f32)) {
    let tolerance = 1e-5 * expected.1.abs().max(1.0);
    let is_close = found.1 == expected.1 || (found.1 - expected.1).abs() <= tolerance;
    assert!(found.0 == expected.0 && is_close, "expected {expected:?}, found {found:?}");
}

#[test]
fn every_row_draws_what_the_sampler_draws() {
    const NUM_ROWS: usize = 16;
    for (vocab_size, num_launches) in [(1, 4), (7, 20), (33, 40), (4_097, 30), (32_000, 4)] {
        let Some(device) = Device::new(vocab_size, NUM_ROWS) else { return };
        for seed in 0..num_launches {
            let mut rng = StdRng::seed_from_u64(seed);
            let cases: Vec<Case> =
                (0..NUM_ROWS).map(|_| random_case(&mut rng, vocab_size)).collect();
            device.reset_counts(&cases);
            let found = device.draw(&cases);
            for (case, found) in cases.iter().zip(&found) {
                check(case, found);
            }
        }
    }
}
