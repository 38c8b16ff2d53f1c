//! Tokens are drawn as often as the parameters say: chi-square tests with fixed seeds and the
//! 99.9 % quantiles, so that they always pass or always fail.

use super::reference::plain;
use super::*;

const NUM_DRAWS: usize = 20_000;

/// The 99.9 % quantiles of the chi-square distribution with 1, 2, .. 20 degrees of freedom.
const QUANTILES: [f64; 20] = [
    10.828, 13.816, 16.266, 18.467, 20.515, 22.458, 24.322, 26.124, 27.877, 29.588, 31.264, 32.909,
    34.528, 36.123, 37.697, 39.252, 40.790, 42.312, 43.820, 45.315,
];

/// How often each token is drawn at `n` positions from the end of the sequence on.
pub(super) fn count(logits: &[f32], sequence: &Sequence, n: usize) -> Vec<usize> {
    let mut counts = vec![0; logits.len()];
    let mut sampler = Sampler::new(logits.len());
    let end = sequence.tokens.len();
    for position in end..end + n {
        let token = sampler.sample(&mut logits.to_vec(), sequence, position).unwrap().token;
        counts[token as usize] += 1;
    }
    counts
}

/// Chi-square of some draws, as a share of its bound. Tokens of which fewer than 5 are expected
/// count as one; what cannot be drawn never is.
fn chi_square(counts: &[usize], expected: &[f64]) -> f64 {
    let num_draws: usize = counts.iter().sum();
    let (mut sum, mut num_classes, mut rest) = (0.0, 0, (0.0, 0.0));
    let mut add = |count: f64, expected: f64| {
        sum += (count - expected).powi(2) / expected;
        num_classes += 1;
    };
    for (count, p) in counts.iter().zip(expected) {
        let (count, expected) = (*count as f64, p * num_draws as f64);
        match expected {
            0.0 if count > 0.0 => return f64::INFINITY,
            0.0 => {}
            5.0.. => add(count, expected),
            _ => rest = (rest.0 + count, rest.1 + expected),
        }
    }
    if rest.1 > 0.0 {
        add(rest.0, rest.1.max(1e-3));
    }
    if num_classes < 2 { 0.0 } else { sum / QUANTILES[num_classes - 2] }
}

/// Probabilities at temperature 1.
const FIVE: [f64; 5] = [0.1, 0.4, 0.05, 0.25, 0.2];

fn logits_of(probabilities: &[f64]) -> Vec<f32> {
    probabilities.iter().map(|p| p.ln() as f32).collect()
}

#[track_caller]
fn check(params: SamplingParams, prompt_len: usize, tokens: &[u32], expected: [f64; 5]) {
    let sequence = sequence_of(params, prompt_len, tokens);
    let counts = count(&logits_of(&FIVE), &sequence, NUM_DRAWS);
    let sum: f64 = expected.iter().sum();
    let ratio = chi_square(&counts, &expected.map(|p| p / sum));
    assert!(ratio < 1.0, "{:?}: {counts:?}, chi-square {ratio} of its bound", sequence.sampling);
}

/// What the parameters mean, worked out by hand.
#[test]
fn tokens_are_drawn_as_often_as_the_filters_say() {
    let check = |params, expected: [f64; 5]| check(params, 1, &[0], expected);
    check(warm(1.0), FIVE);
    check(warm(0.5), FIVE.map(|p| p * p));
    check(warm(2.0), FIVE.map(f64::sqrt));
    check(SamplingParams { top_k: 2, ..warm(1.0) }, [0.0, 0.4, 0.0, 0.25, 0.0]);
    // 0.4 + 0.25 is not 0.7 yet; with 0.2 it is.
    check(SamplingParams { top_p: 0.7, ..warm(1.0) }, [0.0, 0.4, 0.0, 0.25, 0.2]);
    // Of the three that top_k keeps, 0.4 is 47 % and 0.4 + 0.25 is 76 %.
    let both = SamplingParams { top_k: 3, top_p: 0.75, ..warm(1.0) };
    check(both, [0.0, 0.4, 0.0, 0.25, 0.0]);
    // 0.2 is half of the likeliest, rounding aside; 0.1 is a quarter.
    check(SamplingParams { min_p: 0.49, ..warm(1.0) }, [0.0, 0.4, 0.0, 0.25, 0.2]);
    // The entropy is 1.415 nats. The information of 0.25 is 1.386, of 0.2 1.609, of 0.4 0.916, of
    // 0.1 2.303: in this order they are typical.
    check(SamplingParams { typical_p: 0.3, ..warm(1.0) }, [0.0, 0.0, 0.0, 0.25, 0.2]);
    check(SamplingParams { typical_p: 0.5, ..warm(1.0) }, [0.0, 0.4, 0.0, 0.25, 0.2]);
    check(SamplingParams { typical_p: 0.9, ..warm(1.0) }, [0.1, 0.4, 0.0, 0.25, 0.2]);
    // Of 0.4, 0.25 and 0.2 the second is the most typical, and 29 % of them.
    let nucleus = SamplingParams { top_p: 0.7, typical_p: 0.25, ..warm(1.0) };
    check(nucleus, [0.0, 0.0, 0.0, 1.0, 0.0]);
    // The bias triples the odds of token 2.
    let bias = SamplingParams { bias: vec![(2, 3.0_f32.ln())], ..warm(1.0) };
    check(bias, [0.1, 0.4, 0.15, 0.25, 0.2]);
}

#[test]
fn tokens_that_are_there_are_drawn_as_rarely_as_the_penalties_say() {
    let penalised = |penalties| SamplingParams { penalties, ..warm(1.0) };
    let off = Penalties::default();
    // Prompt 1 3, output 3 3 4.
    let check = |params, expected: [f64; 5]| check(params, 2, &[1, 3, 3, 3, 4], expected);
    // All logits are below 0, so probabilities are raised to the penalty's power.
    let repetition = penalised(Penalties { repetition: 1.5, ..off });
    let powers = [0.1, 0.4_f64.powf(1.5), 0.05, 0.25_f64.powf(1.5), 0.2_f64.powf(1.5)];
    check(repetition, powers);
    // Only the output counts, once or for each time.
    let (once, e) = (penalised(Penalties { presence: 1.0, ..off }), 1.0_f64.exp());
    check(once, [0.1, 0.4, 0.05, 0.25 / e, 0.2 / e]);
    let each = penalised(Penalties { frequency: 1.0, ..off });
    check(each, [0.1, 0.4, 0.05, 0.25 / (e * e), 0.2 / e]);
    let reward = penalised(Penalties { frequency: -0.5, presence: -0.5, ..off });
    check(reward, [0.1, 0.4, 0.05, 0.25 * e.powf(1.5), 0.2 * e]);
    let all = penalised(Penalties { repetition: 1.5, presence: 0.5, frequency: 0.5 });
    let [a, b, c, d, f] = powers;
    check(all, [a, b, c, d / e.powf(1.5), f / e]);
    // Penalties before temperature and top_k: of the three likeliest one has changed.
    let top_k = SamplingParams {
        temperature: 0.5,
        top_k: 3,
        ..penalised(Penalties { presence: 1.0, ..off })
    };
    check(top_k, [0.01, 0.16, 0.0, (0.25 / e).powi(2), 0.0]);
}

#[test]
fn any_combination_draws_as_often_as_the_plain_reference_says() {
    let mut rng = StdRng::seed_from_u64(7);
    let mut num_checked = 0;
    while num_checked < 120 {
        let vocab_size = rng.random_range(2..=21);
        let logits: Vec<f32> = (0..vocab_size).map(|_| rng.random_range(-2.0..2.0)).collect();
        let tokens: Vec<u32> = (0..12).map(|_| rng.random_range(0..vocab_size as u32)).collect();
        let mut sequence = sequence_of(random_params(&mut rng, vocab_size), 5, &tokens);
        sequence.seed = rng.random();
        sequence.sampling.min_tokens = 0;
        let expected = plain(&logits, &sequence, tokens.len());
        // One token that always comes is no statistics.
        if expected.is_close || expected.probabilities.contains(&1.0) {
            continue;
        }
        let counts = count(&logits, &sequence, NUM_DRAWS);
        let ratio = chi_square(&counts, &expected.probabilities);
        assert!(ratio < 1.0, "{:?}: {counts:?}, chi-square {ratio}", sequence.sampling);
        num_checked += 1;
    }
}

#[test]
fn the_test_notices_a_distribution_that_is_a_little_off() {
    let logits = logits_of(&FIVE);
    let ratio = |drawn: SamplingParams, expected: [f64; 5]| {
        let counts = count(&logits, &sequence_of(drawn, 1, &[0]), NUM_DRAWS);
        let sum: f64 = expected.iter().sum();
        chi_square(&counts, &expected.map(|p| p / sum))
    };
    assert!(ratio(warm(1.1), FIVE) > 1.0);
    assert!(ratio(SamplingParams { bias: vec![(2, 0.3)], ..warm(1.0) }, FIVE) > 1.0);
    assert!(ratio(warm(1.0), [0.0, 0.4, 0.05, 0.25, 0.3]) > 1.0);
}
