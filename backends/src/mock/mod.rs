//! A deterministic, instant model that notices every mistake with a block.
//!
//! It has a real paged cache, but of fingerprints: the cell of a token is a hash of the token, its
//! position, and everything before it as it was read through the block table. So it depends on its
//! whole prefix, as the keys and values of a deep layer do. The token sampled at a position is a
//! hash of (seed, choice, position) and of all the cells of its context, read anew. Whoever reads a
//! wrong, uncomputed or overwritten block, now or when a cell was written, gets another text than
//! [`reference_text`], which uses no blocks.
//!
//! A row sees the cells that earlier steps left. A cell that another row writes in this very step
//! reads as poison: there is no order between the rows of a step, so a prefix hit on a block that
//! is still being computed is wrong even where it would happen to work.
//!
//! The mock obeys seed, choice, position and blocks. Of the sampling parameters it obeys only the
//! wish for log-probabilities, which it makes up.

mod worker;

use std::time::Duration;

use millstream_proto::{CacheGroup, WorkerInfo};

use crate::batch::{Batch, BatchRow};
use crate::model::{Model, RowFailure, SampledLogprobs, SampledToken};

pub use worker::MockWorker;

/// The mock's end-of-text token.
pub const EOS: u32 = 0;

/// Fingerprint of no tokens at all.
const EMPTY: u64 = 0x6d69_6c6c_7374_7265;
/// What a cell reads as before it is written in this epoch.
const UNCOMPUTED: u64 = 0;
/// What a cell reads as while another row of the same step writes it.
const CONTESTED: u64 = 1;

/// What the mock pretends to be.
#[derive(Clone, Debug)]
pub struct MockConfig {
    /// Tokens are below this, at least 2; [`EOS`] is one of them.
    pub vocab_size: u32,
    /// Tokens per block.
    pub block_size: u32,
    /// Blocks of its only cache group.
    pub num_blocks: u32,
    /// Sequences at once.
    pub max_slots: u32,
    /// Tokens of a sequence at most.
    pub max_model_len: u32,
    /// Tokens of a step at most.
    pub max_batch_tokens: u32,
    /// About one token in this many is [`EOS`]; `None` for never.
    pub eos_every: Option<u32>,
    /// How long a step takes.
    pub step_delay: Duration,
    /// Skips the cache: a token depends on (seed, choice, position, last token) only. For
    /// benchmarks of the router, where reading every cell of every context would be the load.
    pub trusting: bool,
}

impl Default for MockConfig {
    fn default() -> Self {
        MockConfig {
            vocab_size: 32_000,
            block_size: 16,
            num_blocks: 4_096,
            max_slots: 256,
            max_model_len: 4_096,
            max_batch_tokens: 8_192,
            eos_every: None,
            step_delay: Duration::ZERO,
            trusting: false,
        }
    }
}

/// The mock, with its cache.
#[derive(Debug)]
pub struct MockModel {
    config: MockConfig,
    info: WorkerInfo,
    /// `[num_blocks * block_size]` fingerprints.
    cells: Vec<u64>,
    /// `[num_blocks * block_size]` the forward pass that last wrote each cell.
    written_in: Vec<u64>,
    num_forwards: u64,
}

impl MockModel {
    /// A mock whose cache is uncomputed.
    pub fn new(config: MockConfig) -> Self {
        assert!(config.vocab_size >= 2, "the mock needs a token beside its end-of-text");
        let num_cells = match config.trusting {
            true => 0,
            false => config.num_blocks as usize * config.block_size as usize,
        };
        MockModel {
            info: info(&config),
            cells: vec![UNCOMPUTED; num_cells],
            written_in: vec![0; num_cells],
            num_forwards: 0,
            config,
        }
    }

    /// Which cells of the cache a row's tokens live in, from the first of its sequence on.
    fn cells_of<'a>(&self, row: &BatchRow<'a>) -> impl Iterator<Item = usize> + use<'a> {
        let block_size = self.config.block_size as usize;
        let blocks = row.sequence.block_tables[0].iter();
        blocks
            .flat_map(move |block| {
                let first = *block as usize * block_size;
                first..first + block_size
            })
            .take(row.end())
    }

    /// The fingerprint of a row's context up to its end, and the new cells of its own range.
    fn read_and_compute(&self, row: &BatchRow<'_>) -> (u64, Vec<u64>) {
        let mut fold = EMPTY;
        let mut computed = Vec::with_capacity(row.len);
        for (position, cell) in self.cells_of(row).enumerate() {
            let value = if position >= row.start {
                let value = cell_of(row.sequence.tokens[position], position, fold);
                computed.push(value);
                value
            } else if self.written_in[cell] == self.num_forwards {
                CONTESTED
            } else {
                self.cells[cell]
            };
            fold = mix(fold, value);
        }
        (fold, computed)
    }

    fn forward_through_the_cache(&mut self, batch: &Batch<'_>) -> Vec<u64> {
        self.num_forwards += 1;
        for row in &batch.rows {
            for cell in self.cells_of(row).skip(row.start) {
                self.written_in[cell] = self.num_forwards;
            }
        }
        let results: Vec<_> = batch.rows.iter().map(|row| self.read_and_compute(row)).collect();
        for (row, (_, computed)) in batch.rows.iter().zip(&results) {
            for (cell, value) in self.cells_of(row).skip(row.start).zip(computed) {
                self.cells[cell] = *value;
            }
        }
        results.into_iter().map(|(fold, _)| fold).collect()
    }
}

impl Model for MockModel {
    fn info(&self) -> &WorkerInfo {
        &self.info
    }

    // A real model leaves its cache as it is. The mock clears it, so that a block remembered from
    // an earlier epoch is noticed even where its old contents would be right.
    fn reset(&mut self) {
        self.cells.fill(UNCOMPUTED);
    }

    fn forward(&mut self, batch: &Batch<'_>) -> Vec<Result<Option<SampledToken>, RowFailure>> {
        if !self.config.step_delay.is_zero() {
            std::thread::sleep(self.config.step_delay);
        }
        let states = match self.config.trusting {
            true => batch
                .rows
                .iter()
                .map(|row| last_token(row.sequence.tokens[row.end() - 1]))
                .collect(),
            false => self.forward_through_the_cache(batch),
        };
        let sample = |(row, state): (&BatchRow<'_>, u64)| {
            let sequence = row.sequence;
            let token =
                next_token(&self.config, (sequence.seed, sequence.choice), row.end(), state);
            let logprobs =
                sequence.sampling.logprobs.map(|num_top| self.invent_logprobs(token, num_top));
            Ok(row.sample.then_some(SampledToken { token, logprobs }))
        };
        batch.rows.iter().zip(states).map(sample).collect()
    }
}

impl MockModel {
    /// Log-probabilities in the right shape: the sampled token has half of what is left, the next
    /// id half of what then is left, and so on.
    fn invent_logprobs(&self, token: u32, num_top: usize) -> SampledLogprobs {
        let num_top = num_top.min(self.config.vocab_size as usize);
        let half = 0.5_f32.ln();
        let top = (0..num_top as u32)
            .map(|rank| ((token + rank) % self.config.vocab_size, half * (rank + 1) as f32))
            .collect();
        SampledLogprobs { logprob: half, top }
    }
}

/// The first `n` output tokens of a sequence that nothing disturbs, computed without blocks.
///
/// It does not stop at [`EOS`]: where a text ends is for the caller to say.
pub fn reference_text(
    config: &MockConfig,
    prompt: &[u32],
    seed: u64,
    choice: u32,
    n: usize,
) -> Vec<u32> {
    let mut fold = EMPTY;
    let mut read = |position: usize, token: u32| {
        fold = mix(fold, cell_of(token, position, fold));
        if config.trusting { last_token(token) } else { fold }
    };
    let mut state = EMPTY;
    for (position, token) in prompt.iter().enumerate() {
        state = read(position, *token);
    }
    let mut text = Vec::with_capacity(n);
    for position in prompt.len()..prompt.len() + n {
        let token = next_token(config, (seed, choice), position, state);
        state = read(position, token);
        text.push(token);
    }
    text
}

/// The fingerprint of a token, given that of everything before it.
fn cell_of(token: u32, position: usize, before: u64) -> u64 {
    mix(before, u64::from(token) << 32 | position as u64)
}

/// What a trusting mock knows of a context.
fn last_token(token: u32) -> u64 {
    mix(EMPTY, u64::from(token))
}

/// The token at `position`, of a text identified by `text` = (seed, choice).
fn next_token(config: &MockConfig, text: (u64, u32), position: usize, state: u64) -> u32 {
    let drawn = mix(mix(mix(state, text.0), u64::from(text.1)), position as u64);
    // Two independent halves: one decides whether the text ends, the other what comes else.
    let (end, other) = (drawn >> 32, drawn & 0xffff_ffff);
    match config.eos_every {
        Some(every) if end % u64::from(every.max(1)) == 0 => EOS,
        _ => 1 + (other % u64::from(config.vocab_size - 1)) as u32,
    }
}

/// Combines two values so that either, and their order, changes the result: the finaliser of
/// SplitMix64 (Steele, Lea and Flood, 2014) over their combination.
fn mix(a: u64, b: u64) -> u64 {
    let mut z = a.rotate_left(23).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ b;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn info(config: &MockConfig) -> WorkerInfo {
    let MockConfig { vocab_size, eos_every, trusting, .. } = config;
    WorkerInfo {
        fingerprint: format!("mock vocab={vocab_size} eos={eos_every:?} trusting={trusting}"),
        build: env!("CARGO_PKG_VERSION").to_owned(),
        max_model_len: config.max_model_len,
        vocab_size: config.vocab_size,
        block_size: config.block_size,
        max_slots: config.max_slots,
        max_batch_tokens: config.max_batch_tokens,
        timed_batch_tokens: config.max_batch_tokens,
        cache_groups: vec![CacheGroup {
            num_layers: 1,
            bytes_per_token: 8,
            window: 0,
            num_blocks: config.num_blocks,
        }],
        eos_token_ids: vec![EOS],
        has_unblocked_state: false,
        rank: 0,
        world: 1,
        dtype: "mock".to_owned(),
        num_parameters: 0,
    }
}

#[cfg(test)]
mod tests;
