//! The sampler's edges. Beside them: a plain reference that sorts, the statistics of what is drawn,
//! and a text that is interrupted.

#[cfg(feature = "cuda")]
mod cuda;
mod distribution;
mod reference;
mod resumption;

use millstream_proto::row_error::Kind;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

/// A prompt of three tokens.
fn sequence(sampling: SamplingParams) -> Sequence {
    sequence_of(sampling, 3, &[1, 2, 3])
}

fn sequence_of(sampling: SamplingParams, prompt_len: usize, tokens: &[u32]) -> Sequence {
    Sequence {
        prompt_len,
        counts: TokenCounts::of(&sampling.penalties, prompt_len, tokens),
        tokens: tokens.to_vec(),
        seed: 42,
        sampling,
        ..Sequence::default()
    }
}

fn warm(temperature: f32) -> SamplingParams {
    SamplingParams { temperature, ..SamplingParams::default() }
}

fn sample(logits: &[f32], sequence: &Sequence, position: usize) -> u32 {
    let sampled = Sampler::new(logits.len()).sample(&mut logits.to_vec(), sequence, position);
    sampled.unwrap().token
}

/// Logits of one of several shapes: peaked, flat, with many equals, with bans.
fn random_logits(rng: &mut StdRng) -> Vec<f32> {
    let vocab_size = rng.random_range(1..400);
    let (scale, levels) = (rng.random_range(0.0..12.0_f32), rng.random_range(1..60_u32));
    let mut logits: Vec<f32> = (0..vocab_size)
        .map(|_| match rng.random_range(0..20) {
            0 => f32::NEG_INFINITY,
            1..10 => rng.random_range(0..levels) as f32 * scale / levels as f32,
            _ => rng.random_range(-scale..=scale),
        })
        .collect();
    logits[rng.random_range(0..vocab_size)] = scale;
    logits
}

fn random_params(rng: &mut StdRng, vocab_size: usize) -> SamplingParams {
    let ids = 0..vocab_size as u32;
    SamplingParams {
        temperature: [0.0, 0.01, 0.7, 1.0, 2.0, 100.0][rng.random_range(0..6)],
        top_k: [0, 0, 1, 2, 40, vocab_size, vocab_size + 1][rng.random_range(0..7)],
        top_p: [1.0, 1.0, 0.0, 0.3, 0.9, 0.999][rng.random_range(0..6)],
        min_p: [0.0, 0.0, 0.05, 0.5, 1.0][rng.random_range(0..5)],
        typical_p: [1.0, 1.0, 0.01, 0.2, 0.5, 0.95][rng.random_range(0..6)],
        penalties: Penalties {
            repetition: [1.0, 1.0, 0.5, 1.1, 3.0][rng.random_range(0..5)],
            presence: [0.0, 0.0, -2.0, 0.3, 2.0][rng.random_range(0..5)],
            frequency: [0.0, 0.0, -0.2, 0.7, 2.0][rng.random_range(0..5)],
        },
        bias: (0..rng.random_range(0..3))
            .map(|_| (rng.random_range(ids.clone()), rng.random_range(-5.0..5.0)))
            .collect(),
        logprobs: [None, Some(0), Some(5)][rng.random_range(0..3)],
        min_tokens: rng.random_range(0..4),
    }
}

#[test]
fn a_sampler_remembers_nothing_of_other_rows() {
    let mut rng = StdRng::seed_from_u64(2);
    let mut used = Sampler::new(50);
    for _ in 0..300 {
        let mut logits: Vec<f32> = (0..64).map(|_| rng.random_range(-3.0..3.0)).collect();
        let sequence = sequence(random_params(&mut rng, 50));
        let alone = Sampler::new(50).sample(&mut logits.clone(), &sequence, 3);
        assert_eq!(used.sample(&mut logits.clone(), &sequence, 3), alone);
        // A failing row between them leaves nothing behind either.
        logits.fill(f32::NEG_INFINITY);
        assert!(used.sample(&mut logits, &sequence, 3).is_err());
    }
}

#[test]
fn seeds_and_choices_draw_independently() {
    // Two texts agree at one position of four when four tokens are equally likely.
    let logits = [0.0; 4];
    let mut other = sequence(warm(1.0));
    other.choice = 1;
    let one = sequence(warm(1.0));
    let agreements = (3..4_003)
        .filter(|position| sample(&logits, &one, *position) == sample(&logits, &other, *position));
    // Binomial(4000, 1/4) has a standard deviation of 27.
    assert!((890..1110).contains(&agreements.count()));
}

#[test]
fn greedy_takes_the_largest_logit_and_the_smallest_id_among_equals() {
    let greedy = sequence(SamplingParams::default());
    let cases: [(&[f32], u32); 5] = [
        (&[1.0, 3.0, 2.0], 1),
        (&[2.0, 3.0, 3.0], 1),
        (&[-0.0, 0.0], 0),
        (&[f32::NEG_INFINITY, -5.0], 1),
        (&[-7.0], 0),
    ];
    for (logits, expected) in cases {
        assert_eq!(sample(logits, &greedy, 3), expected);
    }
    let mut long = vec![0.0; 1_000];
    long[999] = 1.0;
    assert_eq!(sample(&long, &greedy, 3), 999);
}

#[test]
fn ids_beyond_the_vocabulary_are_neither_sampled_nor_counted() {
    let padded = [0.0, 0.0, 50.0, f32::NAN, f32::INFINITY];
    let mut sampler = Sampler::new(2);
    for params in [SamplingParams::default(), warm(1.0), SamplingParams { top_k: 3, ..warm(1.0) }] {
        let params =
            SamplingParams { logprobs: Some(4), bias: vec![(2, 9.0), (77, 9.0)], ..params };
        for position in 3..50 {
            let sampled =
                sampler.sample(&mut padded.clone(), &sequence(params.clone()), position).unwrap();
            let logprobs = sampled.logprobs.unwrap();
            assert!(sampled.token < 2);
            assert_eq!((logprobs.top.len(), logprobs.logprob), (2, 0.5_f32.ln()));
        }
    }
}

#[test]
fn logits_that_are_no_numbers_are_a_numeric_failure() {
    let cases = [vec![0.0, f32::NAN, 1.0], vec![0.0, f32::INFINITY], vec![f32::NEG_INFINITY; 40]];
    for logits in cases {
        for params in [SamplingParams::default(), warm(0.8)] {
            let mut sampler = Sampler::new(logits.len());
            let failure = sampler.sample(&mut logits.clone(), &sequence(params), 3).unwrap_err();
            assert_eq!(failure.kind, Kind::Numeric);
        }
    }
    let banned = SamplingParams { bias: vec![(0, f32::NEG_INFINITY)], ..warm(1.0) };
    assert!(Sampler::new(1).sample(&mut [1.0], &sequence(banned), 3).is_err());
}

#[test]
fn extreme_logits_and_temperatures_still_draw() {
    let huge = SamplingParams { bias: vec![(1, 100.0)], ..warm(1.0) };
    assert_eq!(sample(&[0.0, f32::MAX], &sequence(huge), 3), 1);
    assert_eq!(sample(&[f32::MIN, f32::MAX, 0.0], &sequence(warm(1.0)), 3), 1);
    assert_eq!(sample(&[1.0, 1.1, 1.0], &sequence(warm(f32::MIN_POSITIVE)), 3), 1);
    for typical_p in [f32::MIN_POSITIVE, 0.5] {
        let typical = SamplingParams { typical_p, ..warm(1.0) };
        assert_eq!(sample(&[f32::MIN, f32::MAX, 0.0], &sequence(typical), 3), 1);
    }
    let counts = distribution::count(&[0.0, 80.0], &sequence(warm(f32::MAX)), 2_000);
    assert!(counts[0] > 800, "{counts:?}");
}

#[test]
fn stop_tokens_are_banned_until_min_tokens_are_out() {
    let params = SamplingParams { min_tokens: 2, ..SamplingParams::default() };
    let mut sequence = sequence(params);
    sequence.stop_token_ids = vec![1, 9];
    // The prompt has 3 tokens: position 5 is the third output.
    for (position, expected) in [(3, 2), (4, 2), (5, 1)] {
        assert_eq!(sample(&[0.0, 5.0, 1.0], &sequence, position), expected);
    }
}

#[test]
fn penalties_are_greedys_too_and_come_after_the_bias() {
    let repetition = Penalties { repetition: 2.0, ..Penalties::default() };
    let greedy = |bias: &[(u32, f32)]| SamplingParams {
        penalties: repetition,
        bias: bias.to_vec(),
        ..SamplingParams::default()
    };
    // Tokens 1, 2 and 3 are there: 5 becomes 2.5.
    assert_eq!(sample(&[3.0, 5.0, 1.0, 1.0], &sequence(greedy(&[])), 3), 0);
    // (5 + 2) / 2 is above 3; 5 / 2 + 2 would be above 4 as well.
    assert_eq!(sample(&[3.0, 5.0, 1.0, 1.0], &sequence(greedy(&[(1, 2.0)])), 3), 1);
    assert_eq!(sample(&[4.0, 5.0, 1.0, 1.0], &sequence(greedy(&[(1, 2.0)])), 3), 0);
}

#[test]
fn the_top_of_the_log_probabilities_is_that_of_a_sorted_vocabulary() {
    let mut rng = StdRng::seed_from_u64(5);
    for _ in 0..500 {
        let logits = random_logits(&mut rng);
        let num_top = [0, 1, 5, 20, logits.len(), logits.len() + 3][rng.random_range(0..6)];
        let params = SamplingParams { logprobs: Some(num_top), ..warm(0.7) };
        let mut sampler = Sampler::new(logits.len());
        let sampled = sampler.sample(&mut logits.clone(), &sequence(params), 3).unwrap();
        let expected = reference::ranked_logprobs(&logits);
        let logprobs = sampled.logprobs.unwrap();
        assert_eq!(logprobs.top.len(), num_top.min(logits.len()));
        for ((token, logprob), (expected, expected_logprob)) in logprobs.top.iter().zip(&expected) {
            assert_eq!(token, expected);
            let is_close = (f64::from(*logprob) - expected_logprob).abs() < 1e-5;
            assert!(is_close || f64::from(*logprob) == *expected_logprob, "{token}: {logprob}");
        }
        let of_token = expected.iter().find(|(token, _)| *token == sampled.token).unwrap();
        assert!((f64::from(logprobs.logprob) - of_token.1).abs() < 1e-5);
    }
}

#[test]
fn log_probabilities_are_the_models_own_before_everything() {
    let logits = [0.1_f64, 0.4, 0.2, 0.2, 0.1].map(|p| p.ln() as f32 + 3.0);
    let params = SamplingParams {
        bias: vec![(0, 30.0), (0, 1.0)],
        top_k: 1,
        penalties: Penalties { repetition: 3.0, presence: 1.0, frequency: 1.0 },
        logprobs: Some(3),
        ..warm(0.3)
    };
    let sampled = Sampler::new(5).sample(&mut logits.clone(), &sequence(params), 3).unwrap();
    let logprobs = sampled.logprobs.unwrap();
    assert_eq!(sampled.token, 0);
    let expected = [(0, 0.1_f32), (1, 0.4), (2, 0.2), (3, 0.2)];
    let reported = [(0, logprobs.logprob)].into_iter().chain(logprobs.top);
    for ((token, logprob), (expected_token, probability)) in reported.zip(expected) {
        assert_eq!(token, expected_token);
        assert!((logprob - probability.ln()).abs() < 1e-6, "{token}: {logprob}");
    }
}
