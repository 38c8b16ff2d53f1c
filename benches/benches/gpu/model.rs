//! Whole models with random weights, as the worker runs them: two steps in flight, and steps that
//! only decode recorded.

use std::time::{Duration, Instant};

use anyhow::Context;
use millstream_backends::candle::cuda::{self, CudaModel};
use millstream_backends::candle::{LoadFormat, LoadOptions};
use millstream_backends::{Batch, BatchRow, Computed, ModelSource, Pipeline, Progress, Sequence};
use serde_json::Value;

use crate::measure::{Peaks, Work};

type Model = (&'static str, &'static str);

const MODELS: [Model; 2] = [
    ("Llama-3.1-8B", include_str!("../../../tests/fixtures/configs/llama-3.1-8b-instruct.json")),
    ("Qwen3-0.6B", include_str!("../../../tests/fixtures/configs/qwen3-0.6b.json")),
];
const SMALL: Model =
    ("a small Qwen3", include_str!("../../../tests/fixtures/parity/qwen3/config.json"));

/// Sequences that decode at once.
const BATCHES: [usize; 4] = [1, 8, 64, 256];

/// Sizes of a measurement.
struct Sizes {
    batches: &'static [usize],
    /// Tokens of a sequence when its decoding is timed.
    context: usize,
    /// Tokens of the prefill that is timed, and of a step at most.
    prefill: usize,
    /// Decode steps that are timed.
    steps: usize,
}

pub(crate) fn run(peaks: &Peaks, small: bool) -> anyhow::Result<()> {
    if small {
        let sizes = Sizes { batches: &[1, 2], context: 20, prefill: 64, steps: 3 };
        return measure(peaks, SMALL, &sizes);
    }
    let sizes = Sizes { batches: &BATCHES, context: 1024, prefill: 8192, steps: 64 };
    MODELS.into_iter().try_for_each(|model| measure(peaks, model, &sizes))
}

fn measure(peaks: &Peaks, (name, config): Model, sizes: &Sizes) -> anyhow::Result<()> {
    let products = Products::of(config).with_context(|| name.to_owned())?;
    let directory = tempfile::tempdir()?;
    std::fs::write(directory.path().join("config.json"), config)?;
    let source = ModelSource::Directory(directory.path().to_owned());
    let most = sizes.batches.iter().copied().max().unwrap_or(1);
    let options = LoadOptions {
        load_format: LoadFormat::Dummy,
        dtype: Some("bf16".parse().map_err(anyhow::Error::msg)?),
        max_slots: most as u32,
        max_batch_tokens: sizes.prefill as u32,
        max_model_len: Some((sizes.prefill + 16) as u32),
        device_memory_fraction: 0.9,
        ..LoadOptions::default()
    };
    let row = |what: &str, shape: &str, us: f64, work: Work| {
        peaks.row("model", (&format!("{name}, {what}"), shape), us, work);
    };
    let begin = Instant::now();
    let mut model = cuda::load(0, &source, &options, &Progress::default())?;
    row("load with random weights", "bf16", us(begin.elapsed()), Work::default());

    let prompt = sequences(1, sizes.prefill, 0);
    prefill(&mut model, &prompt, sizes.prefill);
    let mut times = [(); 5].map(|()| prefill(&mut model, &prompt, sizes.prefill).forward_time);
    times.sort();
    let work = Work { flops: products.flops(sizes.prefill), bytes: 0.0 };
    row("prefill", &format!("{} tokens", sizes.prefill), us(times[2]), work);

    let steps = WARM_UP + sizes.steps;
    let blocks = model.info().cache_groups.iter().map(|group| group.num_blocks).min().unwrap_or(0);
    let room = blocks as usize / (sizes.context + steps).div_ceil(BLOCK);
    let mut computed = 0;
    let mut all = sequences(most.min(room), sizes.context, steps);
    for &batch in sizes.batches {
        if batch > all.len() {
            eprintln!("left out, because the cache has room for {room}: {name}, batch {batch}");
            continue;
        }
        // Those of smaller batches have their prompts in the cache already.
        prefill(&mut model, &all[computed..batch], sizes.prefill);
        computed = batch;
        let rows = &mut all[..batch];
        rows.iter_mut().for_each(|sequence| sequence.tokens.truncate(sizes.context));
        let decoded = decode(&mut model, rows, sizes.steps);
        let shape = format!("batch {batch} at {}", sizes.context);
        let work = Work { bytes: products.bytes(batch, sizes.context), flops: 0.0 };
        row("decode, wall time of a step", &shape, decoded.wall, work);
        row("decode, device time of a step", &shape, decoded.device, work);
        let per_token = decoded.wall / batch as f64;
        row("decode, wall time of a token", &shape, per_token, Work::default());
        let gap = (decoded.wall - decoded.device).max(0.0);
        row("decode, gap between two steps", &shape, gap, Work::default());
    }
    Ok(())
}

/// What the matrices of a model cost.
struct Products {
    /// Elements of all matrices of all layers.
    layers: f64,
    head: f64,
    /// `H * D` of all layers.
    queries: f64,
    /// `2 * K * D` of all layers.
    cached: f64,
}

impl Products {
    fn of(config: &str) -> anyhow::Result<Self> {
        let config: Value = serde_json::from_str(config)?;
        let number = |key: &str| config[key].as_f64().with_context(|| format!("{key} is missing"));
        let (hidden, heads) = (number("hidden_size")?, number("num_attention_heads")?);
        let head_size = number("head_dim").unwrap_or(hidden / heads);
        let (queries, keys) = (heads * head_size, number("num_key_value_heads")? * head_size);
        let attention = hidden * (2.0 * queries + 2.0 * keys);
        let layers = number("num_hidden_layers")?;
        Ok(Products {
            layers: layers * (attention + 3.0 * hidden * number("intermediate_size")?),
            head: hidden * number("vocab_size")?,
            queries: layers * queries,
            cached: layers * 2.0 * keys,
        })
    }

    /// Operations of a prompt, whose last token alone goes through the head.
    fn flops(&self, tokens: usize) -> f64 {
        let tokens = tokens as f64;
        2.0 * (self.layers * tokens + self.head + self.queries * tokens * (tokens + 1.0))
    }

    /// Bytes that a decode step reads: every matrix once, and the cache of every sequence.
    fn bytes(&self, batch: usize, context: usize) -> f64 {
        2.0 * (self.layers + self.head + self.cached * (batch * context) as f64)
    }
}

const BLOCK: usize = 16;

/// Sequences with prompts of so many tokens each, and room in the cache for `steps` more.
fn sequences(num_sequences: usize, prompt: usize, steps: usize) -> Vec<Sequence> {
    let blocks = (prompt + steps).div_ceil(BLOCK) as u32;
    let sequence = |index: u32| Sequence {
        serial: (u64::from(index) << 32) + prompt as u64,
        prompt_len: prompt,
        tokens: (0..prompt as u32).map(|i| (i * 31 + index * 17) % 79).collect(),
        block_tables: vec![(index * blocks..(index + 1) * blocks).collect()],
        ..Sequence::default()
    };
    (0..num_sequences as u32).map(sequence).collect()
}

/// Computes the prompts in steps of up to `most` tokens; gives what the last step came to.
fn prefill(model: &mut CudaModel, sequences: &[Sequence], most: usize) -> Computed {
    let mut last = Computed::default();
    let together = sequences.first().map_or(1, |first| (most / first.prompt_len).max(1));
    for part in sequences.chunks(together) {
        let row = |sequence: &'_ Sequence| (sequence.serial >> 32) as u32;
        let rows = part.iter().map(|sequence| BatchRow {
            slot: row(sequence),
            sequence,
            start: 0,
            len: sequence.prompt_len,
            sample: true,
        });
        let batch = Batch::new(rows.collect());
        model.begin(&batch);
        model.sample(&batch);
        last = model.finish();
    }
    last
}

/// Steps before the clock runs: the first ones record.
const WARM_UP: usize = 4;

/// Microseconds of a step.
struct Decoded {
    wall: f64,
    /// Forward pass and sampling on the device.
    device: f64,
}

/// Steps of one more token for each sequence, two in flight. Which tokens they are is known
/// beforehand, which changes nothing of the time that they take.
fn decode(model: &mut CudaModel, sequences: &mut [Sequence], steps: usize) -> Decoded {
    let (mut device, mut begin) = (Duration::ZERO, Instant::now());
    let mut add = |computed: &Computed| device += computed.forward_time + computed.sample_time;
    for step in 0..WARM_UP + steps {
        if step == WARM_UP {
            begin = Instant::now();
        }
        sequences.iter_mut().for_each(|sequence| sequence.tokens.push(7));
        let row = |(slot, sequence): (usize, _)| {
            let sequence: &Sequence = sequence;
            let start = sequence.tokens.len() - 1;
            BatchRow { slot: slot as u32, sequence, start, len: 1, sample: true }
        };
        let batch = Batch::new(sequences.iter().enumerate().map(row).collect());
        model.begin(&batch);
        model.sample(&batch);
        if step < WARM_UP {
            model.finish();
        } else if step > WARM_UP {
            add(&model.finish());
        }
    }
    add(&model.finish());
    let per_step = |all: Duration| us(all) / steps as f64;
    Decoded { wall: per_step(begin.elapsed()), device: per_step(device) }
}

fn us(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
