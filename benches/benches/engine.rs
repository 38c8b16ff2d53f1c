//! What the engine alone reaches: a real model's shape with random weights, decoded in batches and
//! prefilled, without router, wire or HTTP.
//!
//! `cargo bench -p millstream-benches --bench engine [-- MODEL [FORMAT]]`, where MODEL is a
//! config.json, or a directory with a checkpoint, and FORMAT a dtype, int8 or int4; without them,
//! Qwen3-0.6B in bf16. Prints tokens per second, the best and the median of many steps; a decode
//! step reads every weight once, so beside it stands the rate at which weights were read. Then, of
//! the same steps, where their time went.

#[path = "common/engine.rs"]
mod engine;

use std::path::Path;
use std::time::{Duration, Instant};

use millstream_backends::Model;
use millstream_backends::candle::{CandleModel, LoadOptions, Part, Quantization, WeightDtype};

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

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let config = arguments.next().unwrap_or_else(|| CONFIG.to_owned());
    let (dtype, quantize) = match arguments.next().as_deref() {
        None => (WeightDtype::Bf16, None),
        Some("int8") => (WeightDtype::Bf16, Some(Quantization::Int8)),
        Some("int4") => (WeightDtype::Bf16, Some(Quantization::Int4)),
        Some(dtype) => (dtype.parse().map_err(anyhow::Error::msg)?, None),
    };
    let options = LoadOptions {
        dtype: Some(dtype),
        quantize,
        kv_cache_memory: Some(2 << 30),
        ..LoadOptions::default()
    };
    let begin = Instant::now();
    let mut model = engine::load(Path::new(&config), &options)?;
    let bits = match (quantize, dtype) {
        // But for the head, which has those of 8 bits.
        (Some(quantization), _) => quantization.bits(),
        (None, WeightDtype::F32) => 32.0,
        (None, _) => 16.0,
    };
    let bytes = (model.info().num_parameters as f64 * bits / 8.0) as u64;
    println!("{config}: {:.2} GB of weights, made in {:.1?}", bytes as f64 / 1e9, begin.elapsed());
    let mut runs = Vec::new();
    for batch in BATCHES {
        let mut sequences = engine::sequences(batch, PROMPT, STEPS);
        engine::prefill(&mut model, &sequences);
        let name = format!("decode, batch {batch}");
        runs.push(run(&mut model, (name, batch, Some(bytes)), |model| {
            engine::decode(model, &mut sequences, STEPS)
        }));
    }
    for tokens in PREFILLS {
        let sequences = engine::sequences(1, tokens, 0);
        let name = format!("prefill, {tokens} tokens");
        runs.push(run(&mut model, (name, tokens, None), |model| {
            (0..5).map(|_| engine::prefill(model, &sequences)).collect()
        }));
    }
    rates(&runs);
    breakdown(&runs);
    Ok(())
}

/// Equal steps, timed.
struct Run {
    name: String,
    /// Of a step.
    tokens: usize,
    /// Bytes of weights that a step must read, where that is what bounds it.
    bytes: Option<u64>,
    /// Of the steps, shortest first.
    times: Vec<Duration>,
    /// Of all steps together.
    parts: [(Part, Duration); Part::ALL.len()],
}

fn run(
    model: &mut CandleModel,
    (name, tokens, bytes): (String, usize, Option<u64>),
    steps: impl FnOnce(&mut CandleModel) -> Vec<Duration>,
) -> Run {
    model.start_clock();
    let mut times = steps(model);
    times.sort();
    Run { name, tokens, bytes, times, parts: model.parts() }
}

fn rates(runs: &[Run]) {
    println!("\n{:24} {:>9} {:>9} {:>10} {:>9}", "tokens/s", "best", "median", "ms/step", "GB/s");
    for Run { name, tokens, bytes, times, .. } in runs {
        let (best, median) = (times[0], times[times.len() / 2]);
        let rate = |took: Duration| *tokens as f64 / took.as_secs_f64();
        let read = bytes.map_or(String::new(), |bytes| {
            format!("{:.1}", bytes as f64 / best.as_secs_f64() / 1e9)
        });
        println!(
            "{name:24} {:9.1} {:9.1} {:10.2} {read:>9}",
            rate(best),
            rate(median),
            median.as_secs_f64() * 1e3,
        );
    }
}

/// Milliseconds of each part in a step, and its share of the step; the mean of all steps.
fn breakdown(runs: &[Run]) {
    print!("\n{:24}", "ms/step, mean");
    Part::ALL.iter().for_each(|part| print!(" {:>14}", format!("{part:?}").to_lowercase()));
    println!();
    for Run { name, times, parts, .. } in runs {
        let all: Duration = times.iter().sum();
        print!("{name:24}");
        for (_, time) in parts {
            let ms = time.as_secs_f64() * 1e3 / times.len() as f64;
            let percent = 100.0 * time.as_secs_f64() / all.as_secs_f64();
            print!(" {:>14}", format!("{ms:.2} ({percent:.0} %)"));
        }
        println!();
    }
}
