//! What the engine alone reaches: a real model's shape with random weights, decoded in batches and
//! prefilled, without router, wire or HTTP.
//!
//! `cargo bench -p millstream-benches --bench engine [-- CONFIG [DTYPE]]`, where CONFIG is a
//! config.json; without it, that of Qwen3-0.6B in bf16. Prints tokens per second, the best and the
//! median of many steps, and how much of the step was sampling. A decode step reads every weight
//! once, so beside it stands the rate at which weights were read.

use std::time::{Duration, Instant};

use millstream_backends::candle::{self, CandleModel, LoadFormat, LoadOptions, WeightDtype};
use millstream_backends::{Batch, BatchRow, Model, ModelSource, Progress, Sequence};

const CONFIG: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/configs/qwen3-0.6b.json");
/// Tokens that a sequence has when its decoding is timed.
const PROMPT: usize = 128;
/// Decode steps that are timed.
const STEPS: usize = 48;
/// Sequences that decode at once.
const BATCHES: [usize; 4] = [1, 8, 16, 32];
/// Tokens of a prefill, each timed a few times.
const PREFILLS: [usize; 2] = [128, 512];

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let config = arguments.next().unwrap_or_else(|| CONFIG.to_owned());
    let dtype: WeightDtype = match arguments.next() {
        Some(dtype) => dtype.parse().expect("float32, bfloat16 or float16"),
        None => WeightDtype::Bf16,
    };
    let directory = tempfile::tempdir().expect("a temporary directory");
    std::fs::copy(&config, directory.path().join("config.json")).expect("a configuration");
    let source = ModelSource::Directory(directory.path().to_owned());
    let options = LoadOptions {
        load_format: LoadFormat::Dummy,
        dtype: Some(dtype),
        kv_cache_memory: Some(2 << 30),
        max_model_len: Some(4096),
        ..LoadOptions::default()
    };
    let begin = Instant::now();
    let mut model = candle::load(&source, &options, &Progress::default()).expect("it loads");
    let bytes_per_weight = if dtype == WeightDtype::F32 { 4 } else { 2 };
    let bytes = model.info().num_parameters * bytes_per_weight;
    println!("{config}: {:.2} GB of weights, made in {:.1?}", bytes as f64 / 1e9, begin.elapsed());
    println!(
        "{:24} {:>9} {:>9} {:>10} {:>10} {:>9}",
        "", "best", "median", "ms/step", "sampling", "GB/s"
    );
    for batch in BATCHES {
        let times = decode(&mut model, batch);
        report(&format!("decode, batch {batch}"), batch, &times, Some(bytes));
    }
    for tokens in PREFILLS {
        let times: Vec<_> =
            (0..5).map(|_| step(&mut model, &[sequence(tokens, 0)], tokens)).collect();
        report(&format!("prefill, {tokens} tokens"), tokens, &times, None);
    }
}

/// Whole time of a step, and the part of it that was sampling.
type Timed = (Duration, Duration);

/// Steps of one token for each of so many sequences, after their prompts.
fn decode(model: &mut CandleModel, batch: usize) -> Vec<Timed> {
    let mut sequences: Vec<_> = (0..batch).map(|index| sequence(PROMPT, index)).collect();
    for sequence in &sequences {
        step(model, std::slice::from_ref(sequence), PROMPT);
    }
    let decoded = (0..STEPS).map(|_| {
        sequences.iter_mut().for_each(|sequence| sequence.tokens.push(7));
        step(model, &sequences, 1)
    });
    decoded.collect()
}

/// A sequence with blocks of its own for all that it will hold.
fn sequence(tokens: usize, index: usize) -> Sequence {
    let blocks = (PROMPT.max(tokens) + STEPS).div_ceil(16) as u32;
    let first = index as u32 * blocks;
    Sequence {
        prompt_len: tokens,
        tokens: (0..tokens as u32).map(|i| (i * 31 + index as u32 * 17) % 1000).collect(),
        block_tables: vec![(first..first + blocks).collect()],
        ..Sequence::default()
    }
}

/// Computes the last `len` tokens of each sequence, and samples.
fn step(model: &mut CandleModel, sequences: &[Sequence], len: usize) -> Timed {
    let row = |(slot, sequence)| {
        let sequence: &Sequence = sequence;
        let start = sequence.tokens.len() - len;
        BatchRow { slot: slot as u32, sequence, start, len, sample: true }
    };
    let batch = Batch::new(sequences.iter().enumerate().map(row).collect());
    let begin = Instant::now();
    let sampled = model.forward(&batch);
    let took = begin.elapsed();
    assert!(sampled.iter().all(Result::is_ok), "every row is sampled");
    (took, model.sample_time())
}

fn report(what: &str, tokens: usize, times: &[Timed], bytes: Option<u64>) {
    let mut sorted: Vec<Duration> = times.iter().map(|(took, _)| *took).collect();
    sorted.sort();
    let (best, median) = (sorted[0], sorted[sorted.len() / 2]);
    let sampling: Duration = times.iter().map(|(_, sampling)| *sampling).sum();
    let rate = |took: Duration| tokens as f64 / took.as_secs_f64();
    let read = bytes
        .map_or(String::new(), |bytes| format!("{:.1}", bytes as f64 / best.as_secs_f64() / 1e9));
    println!(
        "{what:24} {:9.1} {:9.1} {:10.2} {:10.2} {read:>9}",
        rate(best),
        rate(median),
        median.as_secs_f64() * 1e3,
        sampling.as_secs_f64() * 1e3 / times.len() as f64,
    );
}
