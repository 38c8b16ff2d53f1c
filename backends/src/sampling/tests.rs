//! The sampler against a plain reference that sorts, its statistics, and its edges.

use millstream_proto::row_error::Kind;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

/// The same rules, written down as plainly as they read: sort, walk, cut.
fn reference(logits: &[f32], sequence: &Sequence, position: usize) -> u32 {
    let params = &sequence.sampling;
    let mut logits = logits.to_vec();
    for (token, bias) in &params.bias {
        logits[*token as usize] += bias;
    }
    if position - sequence.prompt_len < params.min_tokens {
        for stop in &sequence.stop_token_ids {
            logits[*stop as usize] = f32::NEG_INFINITY;
        }
    }
    let mut ranked: Vec<(u32, f32)> =
        logits.iter().enumerate().map(|(id, logit)| (id as u32, *logit)).collect();
    ranked.sort_by(|(a_id, a), (b_id, b)| b.partial_cmp(a).unwrap().then(a_id.cmp(b_id)));
    let (likeliest, max) = ranked[0];
    if params.temperature == 0.0 {
        return likeliest;
    }
    let beta = 1.0 / f64::from(params.temperature);
    if params.top_k > 0 {
        ranked.truncate(params.top_k);
    }
    let mut kept: Vec<(u32, u64)> =
        ranked.iter().map(|(id, logit)| (*id, weights::weight(*logit, max, beta))).collect();
    if params.top_p < 1.0 {
        let total: u64 = kept.iter().map(|(_, weight)| weight).sum();
        let mass = (f64::from(params.top_p) * total as f64).ceil() as u64;
        let mut sum = 0;
        let num_kept = kept.iter().take_while(|(_, weight)| {
            let goes_on = sum < mass.max(1);
            sum += weight;
            goes_on
        });
        let num_kept = num_kept.count();
        kept.truncate(num_kept);
    }
    kept.retain(|(_, weight)| *weight as f64 >= f64::from(params.min_p) * weights::ONE as f64);
    kept.sort_by_key(|(id, _)| *id);
    let total: u64 = kept.iter().map(|(_, weight)| weight).sum();
    let random = philox::draw(sequence.seed, sequence.choice, position as u64);
    let mut target = ((u128::from(random) * u128::from(total)) >> 64) as u64;
    for (id, weight) in kept {
        if target < weight {
            return id;
        }
        target -= weight;
    }
    unreachable!("the target is below the total");
}

fn sequence(sampling: SamplingParams) -> Sequence {
    Sequence { prompt_len: 3, tokens: vec![1, 2, 3], seed: 42, sampling, ..Sequence::default() }
}

fn warm(temperature: f32) -> SamplingParams {
    SamplingParams { temperature, ..SamplingParams::default() }
}

fn sample(logits: &[f32], sequence: &Sequence, position: usize) -> u32 {
    let sampled = Sampler::new(logits.len()).sample(&mut logits.to_vec(), sequence, position);
    sampled.unwrap().token
}

/// How often each token is drawn at the positions `3..3 + n`.
fn count(logits: &[f32], sequence: &Sequence, n: usize) -> Vec<usize> {
    let mut counts = vec![0; logits.len()];
    let mut sampler = Sampler::new(logits.len());
    for position in 3..3 + n {
        let token = sampler.sample(&mut logits.to_vec(), sequence, position).unwrap().token;
        counts[token as usize] += 1;
    }
    counts
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
        bias: (0..rng.random_range(0..3))
            .map(|_| (rng.random_range(ids.clone()), rng.random_range(-5.0..5.0)))
            .collect(),
        logprobs: [None, Some(0), Some(5)][rng.random_range(0..3)],
        min_tokens: rng.random_range(0..4),
    }
}

#[test]
fn every_case_draws_what_the_plain_reference_draws() {
    let mut rng = StdRng::seed_from_u64(1);
    for case in 0..20_000 {
        let logits = random_logits(&mut rng);
        let mut sequence = sequence(random_params(&mut rng, logits.len()));
        sequence.seed = rng.random();
        if logits.len() > 2 {
            sequence.stop_token_ids = vec![rng.random_range(0..logits.len() as u32)];
        }
        let position = rng.random_range(3..10);
        let stops = &sequence.stop_token_ids;
        let left = logits.iter().enumerate();
        let left = left.filter(|(id, logit)| logit.is_finite() && !stops.contains(&(*id as u32)));
        if left.count() == 0 {
            continue;
        }
        let expected = reference(&logits, &sequence, position);
        assert_eq!(sample(&logits, &sequence, position), expected, "case {case}");
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

/// Chi-square over 10,000 draws at a fixed seed, against the distribution the filters define.
/// The bound is the 99.9 % quantile of the distribution with as many degrees of freedom.
fn check_distribution(params: &SamplingParams, expected: &[f64; 5], chi_square_bound: f64) {
    // Probabilities at temperature 1.
    let logits = [0.1_f64, 0.4, 0.05, 0.25, 0.2].map(|p| p.ln() as f32);
    let counts = count(&logits, &sequence(params.clone()), 10_000);
    let mut chi_square = 0.0;
    for (count, share) in counts.iter().zip(expected) {
        if *share == 0.0 {
            assert_eq!(*count, 0, "{params:?}: {counts:?}");
            continue;
        }
        let expected = share * 10_000.0;
        chi_square += (*count as f64 - expected).powi(2) / expected;
    }
    assert!(chi_square < chi_square_bound, "{params:?}: {counts:?}, chi-square {chi_square}");
}

#[test]
fn tokens_are_drawn_as_often_as_the_filters_say() {
    let four_degrees = 18.47;
    check_distribution(&warm(1.0), &[0.1, 0.4, 0.05, 0.25, 0.2], four_degrees);
    // At temperature 1/2 probabilities are squared, and sum to 0.275.
    let squared = [0.01, 0.16, 0.0025, 0.0625, 0.04].map(|p| p / 0.275);
    check_distribution(&warm(0.5), &squared, four_degrees);
    let top_k = SamplingParams { top_k: 2, ..warm(1.0) };
    check_distribution(&top_k, &[0.0, 0.4 / 0.65, 0.0, 0.25 / 0.65, 0.0], 10.83);
    // 0.4 + 0.25 is not 0.7 yet; with 0.2 it is.
    let top_p = SamplingParams { top_p: 0.7, ..warm(1.0) };
    check_distribution(&top_p, &[0.0, 0.4 / 0.85, 0.0, 0.25 / 0.85, 0.2 / 0.85], 13.82);
    // Of the three that top_k keeps, 0.4 is 47 % and 0.4 + 0.25 is 76 %.
    let both = SamplingParams { top_k: 3, top_p: 0.75, ..warm(1.0) };
    check_distribution(&both, &[0.0, 0.4 / 0.65, 0.0, 0.25 / 0.65, 0.0], 10.83);
    // 0.2 is half of the likeliest, rounding aside; 0.1 is a quarter.
    let min_p = SamplingParams { min_p: 0.49, ..warm(1.0) };
    check_distribution(&min_p, &[0.0, 0.4 / 0.85, 0.0, 0.25 / 0.85, 0.2 / 0.85], 13.82);
    // The bias triples the odds of token 2, to 0.15 of 1.1.
    let bias = SamplingParams { bias: vec![(2, 3.0_f32.ln())], ..warm(1.0) };
    check_distribution(&bias, &[0.1, 0.4, 0.15, 0.25, 0.2].map(|p| p / 1.1), four_degrees);
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
    let counts = count(&[0.0, 80.0], &sequence(warm(f32::MAX)), 2_000);
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
fn log_probabilities_are_the_models_own_before_everything() {
    let logits = [0.1_f64, 0.4, 0.2, 0.2, 0.1].map(|p| p.ln() as f32 + 3.0);
    let params = SamplingParams {
        bias: vec![(0, 30.0), (0, 1.0)],
        top_k: 1,
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
