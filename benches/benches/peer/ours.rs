//! This engine and this server, measured in the way in which the peer measures itself.

use std::path::Path;
use std::time::Duration;

use anyhow::ensure;
use millstream_backends::Model;
use millstream_backends::candle::{CandleModel, LoadOptions, Quantization, WeightDtype};

use crate::gguf::Shape;
use crate::table::{Sample, What};
use crate::{ANSWER, BATCHES, LONG, PREFILL, PROMPT, engine};

/// How weights are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Bf16,
    Int8,
    Int4,
}

impl Format {
    /// The engine's options.
    fn options(self) -> LoadOptions {
        let quantize = match self {
            Format::Bf16 => None,
            Format::Int8 => Some(Quantization::Int8),
            Format::Int4 => Some(Quantization::Int4),
        };
        LoadOptions { dtype: Some(WeightDtype::Bf16), quantize, ..LoadOptions::default() }
    }

    /// The server's flags.
    pub(crate) fn flags(self) -> &'static [&'static str] {
        match self {
            Format::Bf16 => &["--dtype=bf16"],
            Format::Int8 => &["--dtype=bf16", "--quantize=int8"],
            Format::Int4 => &["--dtype=bf16", "--quantize=int4"],
        }
    }
}

/// Decoding in batches, and a prefill, without a server. A decode's rate is that of all its steps
/// together, with the drawing of tokens.
pub(crate) fn engine(config: &Path, shape: &Shape, format: Format) -> anyhow::Result<Vec<Sample>> {
    let largest = BATCHES.iter().max().copied().unwrap_or(1);
    let mut model = load(config, shape, format, [largest, PROMPT + ANSWER])?;
    let mut samples = Vec::new();
    for batch in BATCHES {
        samples.push(decode(&mut model, [batch, PROMPT, ANSWER]));
    }
    let sequences = engine::sequences(1, PREFILL, 0);
    engine::prefill(&mut model, &sequences);
    for _ in 0..3 {
        let took = engine::prefill(&mut model, &sequences);
        samples.push((What::Prefill { tokens: PREFILL }, rate(PREFILL, took)));
    }
    Ok(samples)
}

/// Decoding of long contexts.
pub(crate) fn long(config: &Path, shape: &Shape, format: Format) -> anyhow::Result<Vec<Sample>> {
    let (streams, prompt, steps) = LONG;
    let mut model = load(config, shape, format, [streams, prompt + steps])?;
    Ok(vec![decode(&mut model, [streams, prompt, steps])])
}

fn decode(model: &mut CandleModel, [batch, prompt, steps]: [usize; 3]) -> Sample {
    let mut sequences = engine::sequences(batch, prompt, steps);
    engine::prefill(model, &sequences);
    let took = engine::decode(model, &mut sequences, steps).iter().sum();
    (What::Decode { batch, context: prompt }, rate(batch * steps, took))
}

fn rate(tokens: usize, took: Duration) -> f64 {
    tokens as f64 / took.as_secs_f64()
}

/// A model with a cache for so many sequences of so many tokens.
fn load(
    config: &Path,
    shape: &Shape,
    format: Format,
    [sequences, tokens]: [usize; 2],
) -> anyhow::Result<CandleModel> {
    let tokens = tokens.max(PREFILL).next_multiple_of(16);
    let bytes = sequences * tokens * shape.kv_bytes();
    let options = LoadOptions {
        kv_cache_memory: Some(bytes as u64),
        max_model_len: Some(tokens as u32),
        ..format.options()
    };
    let model = engine::load(config, &options)?;
    let counted = (shape.layer_weights() + shape.head_weights()) as f64;
    // Norms are the rest; an untied table is read a row at a time.
    let stored = model.info().num_parameters as f64;
    ensure!(stored >= counted, "the model has {stored} parameters, its shape {counted}");
    Ok(model)
}
