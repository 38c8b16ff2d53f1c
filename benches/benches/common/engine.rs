//! The engine alone, for the benches that measure it: a model in this process, its sequences, and
//! the steps that it computes.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use millstream_backends::candle::{self, CandleModel, LoadFormat, LoadOptions};
use millstream_backends::{Batch, BatchRow, Model, ModelSource, Progress, Sequence};

/// Tokens of a long prompt that are computed at once.
const CHUNK: usize = 512;

/// The model of a directory; or, of the shape that a config.json describes, one with random weights.
pub(crate) fn load(model: &Path, options: &LoadOptions) -> anyhow::Result<CandleModel> {
    let progress = Progress::default();
    if model.is_dir() {
        let source = ModelSource::Directory(model.to_owned());
        return Ok(candle::load(&source, options, &progress)?);
    }
    let directory = tempfile::tempdir()?;
    std::fs::copy(model, directory.path().join("config.json"))
        .with_context(|| format!("cannot copy {}", model.display()))?;
    let source = ModelSource::Directory(directory.path().to_owned());
    let options = LoadOptions { load_format: LoadFormat::Dummy, ..options.clone() };
    Ok(candle::load(&source, &options, &progress)?)
}

/// Sequences with prompts of so many tokens each, and room in the cache for `steps` more.
pub(crate) fn sequences(num_sequences: usize, prompt: usize, steps: usize) -> Vec<Sequence> {
    let blocks = (prompt + steps).div_ceil(16) as u32;
    let sequence = |index: u32| Sequence {
        prompt_len: prompt,
        tokens: (0..prompt as u32).map(|i| (i * 31 + index * 17) % 1000).collect(),
        block_tables: vec![(index * blocks..(index + 1) * blocks).collect()],
        ..Sequence::default()
    };
    (0..num_sequences as u32).map(sequence).collect()
}

/// Computes the prompts, one after the other, in chunks; gives the time of all.
pub(crate) fn prefill(model: &mut CandleModel, sequences: &[Sequence]) -> Duration {
    let mut took = Duration::ZERO;
    for sequence in sequences {
        for start in (0..sequence.tokens.len()).step_by(CHUNK) {
            let len = CHUNK.min(sequence.tokens.len() - start);
            let end = start + len == sequence.tokens.len();
            took += step(model, vec![BatchRow { slot: 0, sequence, start, len, sample: end }]);
        }
    }
    took
}

/// Steps of one more token for each sequence, whose prompts are computed; gives the time of each.
pub(crate) fn decode(
    model: &mut CandleModel,
    sequences: &mut [Sequence],
    steps: usize,
) -> Vec<Duration> {
    let decoded = (0..steps).map(|_| {
        sequences.iter_mut().for_each(|sequence| sequence.tokens.push(7));
        let row = |(slot, sequence): (usize, _)| {
            let sequence: &Sequence = sequence;
            let start = sequence.tokens.len() - 1;
            BatchRow { slot: slot as u32, sequence, start, len: 1, sample: true }
        };
        let rows = sequences.iter().enumerate().map(row).collect();
        step(model, rows)
    });
    decoded.collect()
}

fn step(model: &mut CandleModel, rows: Vec<BatchRow<'_>>) -> Duration {
    let batch = Batch::new(rows);
    let begin = Instant::now();
    let sampled = model.forward(&batch);
    let took = begin.elapsed();
    assert!(sampled.iter().all(Result::is_ok), "every row is sampled");
    took
}
