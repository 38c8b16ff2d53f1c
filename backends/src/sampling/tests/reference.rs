//! What the sampler should do, written down as plainly as it reads: f64, sorts, and no thought of
//! speed. Where rounding could decide, it says so instead of guessing.

use super::*;

/// A cut or a draw that is decided by less than this is not compared.
const TOO_CLOSE: f64 = 1e-9;

/// The distribution that a token is drawn from.
pub(super) struct Plain {
    /// Per id; 0 for those that were filtered out.
    pub(super) probabilities: Vec<f64>,
    /// A filter's cut runs between two tokens that differ by next to nothing.
    pub(super) is_close: bool,
}

/// The logits after bias, bans and penalties.
fn changed(logits: &[f32], sequence: &Sequence, position: usize) -> Vec<f32> {
    let SamplingParams { bias, min_tokens, penalties, .. } = &sequence.sampling;
    let mut logits = logits.to_vec();
    for (token, bias) in bias {
        logits[*token as usize] += bias;
    }
    if position - sequence.prompt_len < *min_tokens {
        for stop in &sequence.stop_token_ids {
            logits[*stop as usize] = f32::NEG_INFINITY;
        }
    }
    let output = &sequence.tokens[sequence.prompt_len..];
    for (id, logit) in logits.iter_mut().enumerate() {
        let mut penalised = f64::from(*logit);
        if sequence.tokens.contains(&(id as u32)) {
            let repetition = f64::from(penalties.repetition);
            penalised =
                if penalised > 0.0 { penalised / repetition } else { penalised * repetition };
        }
        let num_outputs = output.iter().filter(|token| **token == id as u32).count();
        penalised -= num_outputs as f64 * f64::from(penalties.frequency);
        penalised -= if num_outputs > 0 { f64::from(penalties.presence) } else { 0.0 };
        *logit = penalised as f32;
    }
    logits
}

/// Ids with their numbers, the largest first, the smaller id first among equals.
fn ranked(logits: &[f32]) -> Vec<(u32, f64)> {
    let mut ranked: Vec<(u32, f64)> =
        logits.iter().enumerate().map(|(id, logit)| (id as u32, f64::from(*logit))).collect();
    ranked.sort_by(|(_, a), (_, b)| b.partial_cmp(a).unwrap());
    ranked
}

/// The vocabulary by likelihood, with the logarithms of its probabilities.
pub(super) fn ranked_logprobs(logits: &[f32]) -> Vec<(u32, f64)> {
    let mut ranked = ranked(logits);
    let max = ranked[0].1;
    let log_sum = max + ranked.iter().map(|(_, logit)| (logit - max).exp()).sum::<f64>().ln();
    ranked.iter_mut().for_each(|(_, logit)| *logit -= log_sum);
    ranked
}

/// Leaves as many of the first tokens as have this share of the mass together, at least one. Tells
/// whether one more or one less would nearly do.
fn keep_mass(tokens: &mut Vec<(u32, f64)>, mass: f32) -> bool {
    let mass = f64::from(mass) * tokens.iter().map(|(_, p)| p).sum::<f64>();
    let (mut sum, mut num_kept) = (0.0, 0);
    while num_kept < tokens.len() && (num_kept == 0 || sum < mass) {
        sum += tokens[num_kept].1;
        num_kept += 1;
    }
    let before = sum - tokens[num_kept - 1].1;
    let is_close = (sum - mass).abs() < TOO_CLOSE || (num_kept > 1 && (mass - before) < TOO_CLOSE);
    tokens.truncate(num_kept);
    is_close
}

fn normalise(tokens: &mut [(u32, f64)]) {
    let sum: f64 = tokens.iter().map(|(_, p)| p).sum();
    tokens.iter_mut().for_each(|(_, p)| *p /= sum);
}

/// Locally typical sampling as its paper defines it, of normalised probabilities.
fn keep_typical(tokens: &mut Vec<(u32, f64)>, mass: f32) -> bool {
    tokens.retain(|(_, p)| *p > 0.0);
    let entropy: f64 = tokens.iter().map(|(_, p)| -p * p.ln()).sum();
    let deviation = |p: f64| (-p.ln() - entropy).abs();
    tokens.sort_by_key(|(id, _)| *id);
    tokens.sort_by(|(_, a), (_, b)| deviation(*a).total_cmp(&deviation(*b)));
    let all = tokens.clone();
    let is_close = keep_mass(tokens, mass);
    // Equal probabilities go by id, in exact arithmetic as in this; others must differ clearly.
    let cut = tokens.len();
    is_close
        || all.get(cut).is_some_and(|(_, out)| {
            let last = all[cut - 1].1;
            last != *out && (deviation(last) - deviation(*out)).abs() < 1e-6
        })
}

/// The distribution of the token at `position`.
pub(super) fn plain(logits: &[f32], sequence: &Sequence, position: usize) -> Plain {
    let params = &sequence.sampling;
    let mut tokens = ranked(&changed(logits, sequence, position));
    let mut probabilities = vec![0.0; logits.len()];
    if params.temperature == 0.0 {
        probabilities[tokens[0].0 as usize] = 1.0;
        return Plain { probabilities, is_close: false };
    }
    let max = tokens[0].1;
    for (_, logit) in &mut tokens {
        *logit = ((*logit - max) / f64::from(params.temperature)).exp();
    }
    if params.top_k > 0 {
        tokens.truncate(params.top_k);
    }
    normalise(&mut tokens);
    let mut is_close = params.top_p < 1.0 && keep_mass(&mut tokens, params.top_p);
    let (likeliest, min_p) = (tokens[0].1, f64::from(params.min_p));
    is_close |= tokens
        .iter()
        .any(|(_, p)| *p != likeliest && min_p > 0.0 && (*p / likeliest - min_p).abs() < TOO_CLOSE);
    tokens.retain(|(_, p)| *p >= min_p * likeliest);
    normalise(&mut tokens);
    is_close |= params.typical_p < 1.0 && keep_typical(&mut tokens, params.typical_p);
    normalise(&mut tokens);
    for (id, p) in tokens {
        probabilities[id as usize] = p;
    }
    Plain { probabilities, is_close }
}

/// The token whose share of the distribution, in the order of ids, holds this random number;
/// `None` next to the border of two.
fn draw(plain: &Plain, random: u64) -> Option<u32> {
    let target = random as f64 / 2.0_f64.powi(64);
    let mut sum = 0.0;
    for (id, p) in plain.probabilities.iter().enumerate().filter(|(_, p)| **p > 0.0) {
        let begin = sum;
        sum += p;
        if target < sum || sum > 1.0 - TOO_CLOSE {
            let is_inside = target - begin > TOO_CLOSE && sum - target > TOO_CLOSE;
            return (is_inside || *p > 1.0 - TOO_CLOSE).then_some(id as u32);
        }
    }
    None
}

fn random_sequence(rng: &mut StdRng, vocab_size: usize) -> Sequence {
    let len = rng.random_range(1..40);
    let prompt_len = rng.random_range(1..=len);
    // Few distinct ones, so that many stand there twice.
    let last = (vocab_size as u32 - 1).min(12);
    let tokens: Vec<u32> = (0..len).map(|_| rng.random_range(0..=last)).collect();
    let mut sequence = sequence_of(random_params(rng, vocab_size), prompt_len, &tokens);
    sequence.seed = rng.random();
    if vocab_size > 2 {
        sequence.stop_token_ids = vec![rng.random_range(0..vocab_size as u32)];
    }
    sequence
}

#[test]
fn every_case_draws_what_the_plain_reference_draws() {
    let mut rng = StdRng::seed_from_u64(1);
    let (mut num_compared, mut num_close) = (0, 0);
    for case in 0..40_000 {
        let logits = random_logits(&mut rng);
        let sequence = random_sequence(&mut rng, logits.len());
        let position = sequence.tokens.len();
        let stops = &sequence.stop_token_ids;
        let left = logits.iter().enumerate();
        let left = left.filter(|(id, logit)| logit.is_finite() && !stops.contains(&(*id as u32)));
        if left.count() == 0 {
            continue;
        }
        let expected = plain(&logits, &sequence, position);
        if expected.is_close {
            num_close += 1;
            continue;
        }
        let mut sampler = Sampler::new(logits.len());
        let token = sampler.sample(&mut logits.clone(), &sequence, position).unwrap().token;
        if sequence.sampling.temperature > 0.0 {
            let total: u64 = sampler.weights.iter().sum();
            for (id, (weight, p)) in sampler.weights.iter().zip(&expected.probabilities).enumerate()
            {
                let share = *weight as f64 / total as f64;
                assert!((share - p).abs() < TOO_CLOSE, "case {case}, token {id}: {share} {p}");
            }
        }
        let random = philox::draw(sequence.seed, sequence.choice, position as u64);
        match draw(&expected, random) {
            Some(expected) => assert_eq!(token, expected, "case {case}"),
            None => num_close += 1,
        }
        num_compared += 1;
    }
    assert!(num_compared > 30_000 && num_close < 400, "{num_compared} and {num_close}");
}

/// What Transformers 5.x makes of some logits at temperature 1.3, with its own processors in the
/// order of its generation, after the prompt 0 5 and the output 3 3 0.
#[test]
fn transformers_keeps_the_same_tokens() {
    let logits = [2.0, -1.0, 1.25, 0.5, -0.25, 1.75, -3.0, 0.0, 1.0, -2.0];
    let typical = |typical_p| SamplingParams { typical_p, ..warm(1.3) };
    let repetition = |repetition| SamplingParams {
        penalties: Penalties { repetition, ..Penalties::default() },
        ..warm(1.3)
    };
    let cases = [
        (typical(0.3), [0.0, 0.0, 0.3035729, 0.0, 0.0, 0.4459635, 0.0, 0.0, 0.2504637, 0.0]),
        (
            typical(0.6),
            [0.3159091, 0.0, 0.1774221, 0.0996445, 0.0, 0.2606418, 0.0, 0.0, 0.1463826, 0.0],
        ),
        (
            repetition(1.8),
            [
                0.1797449, 0.0354317, 0.2000117, 0.094681, 0.063088, 0.1615316, 0.0076076,
                0.0764653, 0.1650203, 0.016418,
            ],
        ),
        (
            repetition(0.6),
            [
                0.4098641, 0.0146215, 0.0825382, 0.0599043, 0.0260343, 0.2974698, 0.0031394,
                0.0315547, 0.0680984, 0.0067752,
            ],
        ),
        (
            SamplingParams { top_k: 6, top_p: 0.8, ..typical(0.7) },
            [0.4189926, 0.0, 0.2353162, 0.0, 0.0, 0.3456911, 0.0, 0.0, 0.0, 0.0],
        ),
        (
            SamplingParams { top_p: 0.9, min_p: 0.2, ..typical(0.5) },
            [0.0, 0.0, 0.3035729, 0.0, 0.0, 0.4459635, 0.0, 0.0, 0.2504637, 0.0],
        ),
        (
            SamplingParams {
                bias: vec![(0, -1.0), (4, 1.5)],
                top_k: 7,
                top_p: 0.95,
                min_p: 0.05,
                typical_p: 0.8,
                ..repetition(1.3)
            },
            [0.1504257, 0.0, 0.2177379, 0.0, 0.2177379, 0.2344533, 0.0, 0.0, 0.1796453, 0.0],
        ),
    ];
    for (params, expected) in cases {
        let sequence = sequence_of(params, 2, &[0, 5, 3, 3, 0]);
        let mut sampler = Sampler::new(logits.len());
        sampler.sample(&mut logits.to_vec(), &sequence, 5).unwrap();
        let total: u64 = sampler.weights.iter().sum();
        let of_us = sampler.weights.iter().map(|weight| *weight as f64 / total as f64);
        for (id, (share, p)) in of_us.zip(expected).enumerate() {
            assert!((share - p).abs() < 1e-6, "{:?}, token {id}: {share}", sequence.sampling);
        }
    }
}
