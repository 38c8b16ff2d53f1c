//! One decode step or one prefill chunk of the demo model, for an instruction counter.
//!
//! `benches/instructions` runs this under callgrind, which counts only within the two functions
//! that are never inlined; nothing is timed. Counts do not depend on what else the machine does,
//! so two versions can be compared on a busy one.

#[path = "common/engine.rs"]
mod engine;

use std::hint::black_box;
use std::path::Path;

use anyhow::bail;
use millstream_backends::Sequence;
use millstream_backends::candle::{CandleModel, LoadOptions};
use millstream_kernels::threads;

/// The demo model's files.
const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../src/demo/model");
/// Tokens of the chunk.
const CHUNK: usize = 64;
/// Sequences of the decode step, and what each has before it. Short, because a counter emulates
/// each multiplication.
const BATCH: usize = 8;
const CONTEXT: usize = 16;

fn main() -> anyhow::Result<()> {
    let part = std::env::args().nth(1).unwrap_or_default();
    // A counter is switched by each thread for itself, so there is this one only.
    threads::start(1, false)?;
    let options = LoadOptions { kv_cache_memory: Some(16 << 20), ..LoadOptions::default() };
    let mut model = engine::load(Path::new(MODEL), &options)?;
    match part.as_str() {
        "decode_step" => {
            let mut sequences = engine::sequences(BATCH, CONTEXT, 2);
            engine::prefill(&mut model, &sequences);
            engine::decode(&mut model, &mut sequences, 1);
            decode_step(&mut model, &mut sequences);
        }
        "prefill_chunk" => {
            let sequences = engine::sequences(1, CHUNK, 0);
            engine::prefill(&mut model, &sequences);
            prefill_chunk(&mut model, &sequences);
        }
        _ => bail!("the part (`{part}`) must be decode_step or prefill_chunk"),
    }
    Ok(())
}

#[inline(never)]
fn prefill_chunk(model: &mut CandleModel, sequences: &[Sequence]) {
    black_box(engine::prefill(model, sequences));
}

#[inline(never)]
fn decode_step(model: &mut CandleModel, sequences: &mut [Sequence]) {
    black_box(engine::decode(model, sequences, 1));
}
