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

/// What a draw left behind.
struct Drawn {
    outcomes: Vec<Result<kernel::Outcome, Failure>>,
    /// By slot.
    last_token: Vec<u32>,
    /// By slot, those of the whole vocabulary.
    counts: Vec<u32>,
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
        let counts = gpu.upload(&vec![UNTOUCHED; num_slots * vocab_size]).unwrap();
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

    /// Draws for one row per case, case i in slot i; behind a row of padding if there are several.
    fn draw(&self, cases: &[Case]) -> Drawn {
        /// What lies behind the vocabulary in each row.
        const BEHIND: usize = 3;
        let (mut lists, mut masks) = (Lists::default(), Vec::new());
        let (mut rows, mut logits) = (Vec::new(), Vec::new());
        if cases.len() > 1 {
            rows.push(Row::PADDING);
            logits.resize(self.vocab_size + BEHIND, f32::NAN);
        }
        for (slot, case) in (0..).zip(cases) {
            rows.push(case.row(slot, &mut lists, &mut masks));
            logits.extend(case.logits.iter().chain(&[f32::NAN; BEHIND]));
        }
        let num_rows = rows.len();
        let rows: Vec<u32> = rows.iter().flat_map(Row::words).collect();
        let outcomes = self.gpu.upload(&vec![UNTOUCHED; num_rows * kernel::OUTCOME_WORDS]).unwrap();
        let num_findings = num_rows * kernel::FINDINGS_LEN;
        let draw = kernel::Draw {
            vocab_size: self.vocab_size,
            logits: &self.gpu.upload(&logits).unwrap(),
            rows: &self.gpu.upload(&rows).unwrap(),
            lists: &self.gpu.upload(lists.words()).unwrap(),
            masks: &self.gpu.upload(&masks).unwrap(),
            counts: &self.counts,
            last_token: &self.last_token,
            findings: &self.gpu.upload(&vec![1_i64 << 50; num_findings]).unwrap(),
            outcomes: &outcomes,
        };
        kernel::draw(&self.gpu, &draw).unwrap();
        let [outcomes, last_token, counts] = [&outcomes, &self.last_token, &self.counts]
            .map(|array| self.gpu.download::<u32>(array).unwrap());
        let mut outcomes: Vec<&[u32]> = outcomes.chunks(kernel::OUTCOME_WORDS).collect();
        for padding in outcomes.drain(..num_rows - cases.len()) {
            assert!(padding.iter().all(|word| *word == UNTOUCHED), "padding");
        }
        Drawn { outcomes: outcomes.into_iter().map(kernel::outcome).collect(), last_token, counts }
    }
}

/// The words of the slot's counts that stand for a sequence's tokens.
fn counts_of(sequence: &Sequence, vocab_size: usize) -> Vec<u32> {
    if sequence.sampling.penalties.is_off() {
        return vec![UNTOUCHED; vocab_size];
    }
    let mut counts = vec![0; vocab_size];
    let (prompt, output) = sequence.tokens.split_at(sequence.prompt_len);
    prompt.iter().for_each(|token| counts[*token as usize] |= 1 << 31);
    output.iter().for_each(|token| counts[*token as usize] += 1);
    counts
}

fn random_case(rng: &mut StdRng, vocab_size: usize) -> Case {
    let logits = shaped_logits(rng, vocab_size);
    // Tokens that are likely, so that what is done to them shows.
    let mut likely: Vec<u32> = (0..vocab_size as u32).collect();
    likely.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]));
    likely.truncate(20);
    let mut any = || likely[rng.random_range(0..likely.len())];
    let len = 1 + any() as usize % 60;
    let tokens: Vec<u32> = (0..len).map(|_| any()).collect();
    let biased = [any(), any()];
    let mut params = random_sampling(rng, vocab_size);
    if rng.random_range(0..3) == 0 {
        let [one, other] = biased;
        params.bias = vec![(one, 1.5), (0, 0.1), (other, f32::NEG_INFINITY), (one, 2.0)];
    }
    // Nobody's token.
    params.bias.push((vocab_size as u32, 9.0));
    let mut sequence = sequence_of(params, rng.random_range(1..=len), &tokens);
    (sequence.seed, sequence.choice) = (rng.random(), rng.random_range(0..3));
    let num_stops = rng.random_range(0..4);
    sequence.stop_token_ids =
        (0..num_stops).map(|_| rng.random_range(0..=vocab_size as u32)).collect();
    let share = [0.02, 0.5, 0.98][rng.random_range(0..3)];
    let mask = (rng.random_range(0..4) == 0)
        .then(|| (0..vocab_size).map(|_| rng.random_bool(share)).collect());
    Case { logits, sequence, mask }
}

fn random_sampling(rng: &mut StdRng, vocab_size: usize) -> SamplingParams {
    let mut params = random_params(rng, vocab_size);
    let temperatures = [0.0, 0.3, 0.7, 1.0, 5.0, f32::MIN_POSITIVE, f32::from_bits(1), f32::MAX];
    params.temperature = temperatures[rng.random_range(0..temperatures.len())];
    params.logprobs = [None, Some(0), Some(1), Some(20)][rng.random_range(0..4)];
    params.bias.clear();
    if rng.random_range(0..3) > 0 {
        params.penalties = Penalties::default();
    }
    if rng.random_range(0..4) == 0 {
        params.top_k = rng.random_range(1..=vocab_size.min(1_500));
    }
    // Half of the rows are shared by several blocks.
    if rng.random_bool(0.5) {
        params = SamplingParams { logprobs: None, top_k: 0, typical_p: 1.0, ..params };
    }
    params
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
        // Differences beyond f32.
        4 => logits.iter_mut().for_each(|logit| *logit *= 2.8e37),
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
    // NaN is what the sampler makes of logits that are all -inf.
    let is_close = found.1.to_bits() == expected.1.to_bits()
        || (found.1 - expected.1).abs() <= tolerance
        || found.1.is_nan() && expected.1.is_nan();
    assert!(found.0 == expected.0 && is_close, "expected {expected:?}, found {found:?}");
}

/// Draws for random cases and checks all that it leaves behind.
fn check_launch(device: &Device, cases: &[Case]) {
    device.reset_counts(cases);
    let drawn = device.draw(cases);
    for (slot, case) in cases.iter().enumerate() {
        check(case, &drawn.outcomes[slot]);
        let mut counts = counts_of(&case.sequence, device.vocab_size);
        let mut last_token = UNTOUCHED;
        if let Ok(outcome) = &drawn.outcomes[slot] {
            last_token = outcome.token;
            let counted = u32::from(!case.sequence.sampling.penalties.is_off());
            counts[last_token as usize] += counted;
        }
        assert_eq!(drawn.last_token[slot], last_token);
        assert_eq!(drawn.counts[slot * device.vocab_size..][..device.vocab_size], counts);
    }
}

#[test]
fn every_row_draws_what_the_sampler_draws() {
    for (vocab_size, num_launches) in [(1, 9), (7, 120), (33, 120), (4_097, 80), (32_000, 12)] {
        for seed in 0..num_launches {
            let mut rng = StdRng::seed_from_u64(seed);
            // The fewer there are, the more parts has each.
            let num_rows = [1, 1, 2, 4, 16][rng.random_range(0..5)];
            let Some(device) = Device::new(vocab_size, num_rows) else { return };
            let cases: Vec<Case> =
                (0..num_rows).map(|_| random_case(&mut rng, vocab_size)).collect();
            check_launch(&device, &cases);
        }
    }
}

#[test]
fn ties_and_extremes_are_drawn_alike() {
    let (mut rng, mut numbers) = (StdRng::seed_from_u64(3), StdRng::seed_from_u64(6));
    let mut cases = Vec::new();
    let mut add = |logits: &[f32], params: SamplingParams| {
        let mut sequence = sequence(params);
        sequence.seed = rng.random();
        cases.push(Case { logits: logits.to_vec(), sequence, mask: None });
    };
    // As many of seven equals as are asked for.
    for top_k in (0..7).cycle().take(70) {
        add(&[0.5; 7], SamplingParams { top_k, ..warm(1.0) });
        add(&[2.0, 3.0, 2.0, 2.0, -1.0, 2.0, 3.0], SamplingParams { top_k, ..warm(9.0) });
        let share = top_k as f32 / 7.0;
        add(&[0.5; 7], SamplingParams { top_p: share, ..warm(1.0) });
        add(&[0.5; 7], SamplingParams { typical_p: share.max(0.01), ..warm(1.0) });
    }
    let (min, max) = (f32::MIN, f32::MAX);
    let odd = [
        [min, max, 0.0, 0.0, min, f32::NEG_INFINITY, 1.0],
        [f32::NEG_INFINITY, f32::NEG_INFINITY, min, min, min, min, min],
        [0.0, f32::from_bits(1), -f32::from_bits(1), f32::from_bits(2), -0.0, 0.0, 0.0],
        [0.0, 80.0, 79.0, 78.0, 0.0, -80.0, 80.0],
    ];
    for logits in odd {
        for temperature in [0.0, f32::from_bits(1), f32::MIN_POSITIVE, 1.0, 1e38, f32::MAX] {
            for _ in 0..5 {
                add(&logits, warm(temperature));
                add(&logits, SamplingParams { top_p: 0.5, ..warm(temperature) });
                add(&logits, SamplingParams { typical_p: 0.5, ..warm(temperature) });
            }
        }
    }
    // Weights next to the least that stays: an error of 1e-9 would move some across.
    for _ in 0..300 {
        let logit = numbers.random_range(-3.0..0.0_f32);
        let mut logits = [logit; 7];
        logits[3] = 0.0;
        add(&logits, SamplingParams { min_p: f64::from(logit).exp() as f32, ..warm(1.0) });
    }
    // What a bias or a ban would hide.
    for hidden in [f32::NAN, f32::INFINITY] {
        let mut logits = [0.0; 7];
        logits[1] = hidden;
        for bias in [1.0, f32::NEG_INFINITY] {
            add(&logits, SamplingParams { bias: vec![(1, bias)], ..warm(1.0) });
        }
    }
    let Some(device) = Device::new(7, cases.len()) else { return };
    check_launch(&device, &cases);
}

#[test]
fn a_text_goes_on_from_what_the_device_has_counted() {
    const VOCAB_SIZE: usize = 24;
    let Some(device) = Device::new(VOCAB_SIZE, 3) else { return };
    let mut rng = StdRng::seed_from_u64(5);
    let penalties = Penalties { repetition: 1.3, presence: 0.4, frequency: 0.2 };
    let params = SamplingParams { penalties, logprobs: Some(2), ..warm(0.8) };
    let mut cases: Vec<Case> = (0..3)
        .map(|seed| {
            let mut sequence = sequence(params.clone());
            sequence.seed = seed;
            Case { logits: Vec::new(), sequence, mask: None }
        })
        .collect();
    device.reset_counts(&cases);
    for _ in 0..40 {
        for case in &mut cases {
            case.logits = (0..VOCAB_SIZE).map(|_| rng.random_range(-2.0..2.0)).collect();
        }
        let drawn = device.draw(&cases);
        for (case, outcome) in cases.iter_mut().zip(drawn.outcomes) {
            check(case, &outcome);
            let token = outcome.unwrap().token;
            case.sequence.tokens.push(token);
            case.sequence.counts.push(&penalties, token);
        }
    }
}

#[test]
fn given_tokens_have_the_samplers_log_probabilities() {
    const NUM_ROWS: usize = 12;
    for vocab_size in [1, 7, 33, 4_097] {
        let Some(Device { gpu, .. }) = Device::new(vocab_size, 1) else { return };
        let mut rng = StdRng::seed_from_u64(4);
        let logits: Vec<Vec<f32>> =
            (0..NUM_ROWS).map(|_| shaped_logits(&mut rng, vocab_size)).collect();
        let mut tokens: Vec<u32> =
            (0..NUM_ROWS).map(|_| rng.random_range(0..vocab_size as u32)).collect();
        tokens[0] = NONE;
        let num_top: Vec<u32> = (0..NUM_ROWS).map(|_| rng.random_range(0..=20)).collect();
        let outcomes = gpu.upload(&[UNTOUCHED; NUM_ROWS * kernel::OUTCOME_WORDS]).unwrap();
        let score = kernel::Score {
            vocab_size,
            logits: &gpu.upload(&logits.concat()).unwrap(),
            tokens: &gpu.upload(&tokens).unwrap(),
            num_top: &gpu.upload(&num_top).unwrap(),
            outcomes: &outcomes,
        };
        kernel::score(&gpu, &score).unwrap();
        let outcomes = gpu.download::<u32>(&outcomes).unwrap();
        let outcomes: Vec<&[u32]> = outcomes.chunks(kernel::OUTCOME_WORDS).collect();
        assert!(outcomes[0].iter().all(|word| *word == UNTOUCHED), "padding");
        for row in 1..NUM_ROWS {
            let mut sampler = Sampler::new(vocab_size);
            let expected = sampler.score(&logits[row], tokens[row], num_top[row] as usize);
            let found = kernel::outcome(outcomes[row]);
            let (Ok(expected), Ok(found)) = (&expected, &found) else {
                assert_eq!(found, Err(Failure::NoNumber));
                assert!(expected.is_err());
                continue;
            };
            assert_close((found.token, found.logprob), (tokens[row], expected.logprob));
            assert_eq!(found.top.len(), expected.top.len());
            found.top.iter().zip(&expected.top).for_each(|(a, b)| assert_close(*a, *b));
        }
    }
}
