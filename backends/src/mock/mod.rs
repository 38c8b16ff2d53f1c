//! A deterministic, instant model that notices every mistake with a block.
//!
//! It has a real paged cache, but of fingerprints, in as many cache groups as it is told, with and
//! without windows. The token sampled at a position is a hash of (seed, choice, position) and of
//! all cells that the last token sees, and a cell is a hash of what its own token saw. So whoever
//! reads a wrong, uncomputed or overwritten block within the window, now or when a cell was
//! written, gets another text than [`reference_text`], which uses no blocks. Behind the window
//! nothing is read.
//!
//! A row sees the cells that earlier steps left. A cell that another row writes in this very step
//! reads as poison: there is no order between the rows of a step, so a prefix hit on a block that
//! is still being computed is wrong even where it would happen to work.
//!
//! The mock obeys seed, choice, position and blocks. Of the sampling parameters it obeys only the
//! wish for log-probabilities, which it makes up.

mod context;
mod deferred;
mod worker;

use std::time::Duration;

use millstream_proto::{CacheGroup, WorkerInfo};

use crate::batch::{Batch, BatchRow};
use crate::model::{Model, RowFailure, SampledLogprobs, SampledToken};

use context::{Context, last_token, mix};
pub use deferred::Deferred;
pub use worker::MockWorker;

/// The mock's end-of-text token.
pub const EOS: u32 = 0;

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
    /// The cache groups, at least one.
    pub cache_groups: Vec<MockGroup>,
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

/// One cache group of the mock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MockGroup {
    /// Its blocks.
    pub num_blocks: u32,
    /// Positions that a token sees, its own included, at least 1; `None` for all.
    pub window: Option<u32>,
}

impl MockGroup {
    /// A group that sees everything.
    pub const fn full(num_blocks: u32) -> Self {
        MockGroup { num_blocks, window: None }
    }
}

impl Default for MockConfig {
    fn default() -> Self {
        MockConfig {
            vocab_size: 32_000,
            block_size: 16,
            cache_groups: vec![MockGroup::full(4_096)],
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
    /// Per cache group.
    caches: Vec<Cache>,
    num_forwards: u64,
    prompt_logprobs: Vec<(u32, SampledLogprobs)>,
}

#[derive(Debug)]
struct Cache {
    /// `[num_blocks * block_size]` fingerprints.
    cells: Vec<u64>,
    /// `[num_blocks * block_size]` the forward pass that last wrote each cell.
    written_in: Vec<u64>,
}

impl MockModel {
    /// A mock whose cache is uncomputed.
    pub fn new(config: MockConfig) -> Self {
        assert!(config.vocab_size >= 2, "the mock needs a token beside its end-of-text");
        let cache = |group: &MockGroup| {
            let num_cells = match config.trusting {
                true => 0,
                false => group.num_blocks as usize * config.block_size as usize,
            };
            Cache { cells: vec![UNCOMPUTED; num_cells], written_in: vec![0; num_cells] }
        };
        MockModel {
            info: info(&config),
            caches: config.cache_groups.iter().map(cache).collect(),
            num_forwards: 0,
            prompt_logprobs: Vec::new(),
            config,
        }
    }

    /// The fingerprint of what a row's last token sees, and the new cells of the row's range: group
    /// after group for the first position, then for the next.
    fn read_and_compute(&self, row: &BatchRow<'_>) -> (u64, Vec<u64>) {
        let read = |group: usize, position: usize| {
            let (cache, cell) = (&self.caches[group], self.cell(row, group, position));
            match cache.written_in[cell] == self.num_forwards {
                true => CONTESTED,
                false => cache.cells[cell],
            }
        };
        let mut context = Context::new(windows(&self.config), row.start, read);
        let tokens = &row.sequence.tokens[row.start..row.end()];
        let mut computed = Vec::with_capacity(row.len * self.caches.len());
        for &token in tokens {
            context.compute(token);
            computed.extend(context.cells());
        }
        (context.state(), computed)
    }

    /// Where a position of a row's sequence lives in a group's cache.
    fn cell(&self, row: &BatchRow<'_>, group: usize, position: usize) -> usize {
        let block_size = self.config.block_size as usize;
        let block = row.sequence.block_tables[group][position / block_size];
        block as usize * block_size + position % block_size
    }

    fn forward_through_the_cache(&mut self, batch: &Batch<'_>) -> Vec<u64> {
        self.num_forwards += 1;
        let num_groups = self.caches.len();
        let cells_of = |row: &BatchRow<'_>| {
            let positions = row.start..row.end();
            positions.flat_map(|position| (0..num_groups).map(move |group| (group, position)))
        };
        for row in &batch.rows {
            for (group, position) in cells_of(row) {
                let cell = self.cell(row, group, position);
                self.caches[group].written_in[cell] = self.num_forwards;
            }
        }
        let results: Vec<_> = batch.rows.iter().map(|row| self.read_and_compute(row)).collect();
        for (row, (_, computed)) in batch.rows.iter().zip(&results) {
            for ((group, position), value) in cells_of(row).zip(computed) {
                let cell = self.cell(row, group, position);
                self.caches[group].cells[cell] = *value;
            }
        }
        results.into_iter().map(|(state, _)| state).collect()
    }
}

impl Model for MockModel {
    fn info(&self) -> &WorkerInfo {
        &self.info
    }

    // A real model leaves its cache as it is. The mock clears it, so that a block remembered from
    // an earlier epoch is noticed even where its old contents would be right.
    fn reset(&mut self) {
        for cache in &mut self.caches {
            cache.cells.fill(UNCOMPUTED);
        }
    }

    fn forward(&mut self, batch: &Batch<'_>) -> Vec<Result<Option<SampledToken>, RowFailure>> {
        if !self.config.step_delay.is_zero() {
            std::thread::sleep(self.config.step_delay);
        }
        let reported = (0..).zip(&batch.rows).flat_map(|(index, row)| {
            let num_top = row.sequence.sampling.logprobs.unwrap_or(0);
            let tokens = row.reported().map(|position| row.sequence.tokens[position]);
            tokens.map(move |token| (index, token, num_top))
        });
        let invented = |(index, token, num_top)| (index, self.invent_logprobs(token, num_top));
        self.prompt_logprobs = reported.map(invented).collect();
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

    fn take_prompt_logprobs(&mut self) -> Vec<(u32, SampledLogprobs)> {
        std::mem::take(&mut self.prompt_logprobs)
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
    let mut context = Context::new(windows(config), 0, |_, _| unreachable!("nothing is before 0"));
    let mut read = |token: u32| {
        if config.trusting {
            return last_token(token);
        }
        context.compute(token);
        context.state()
    };
    let mut state = 0;
    for &token in prompt {
        state = read(token);
    }
    let mut text = Vec::with_capacity(n);
    for position in prompt.len()..prompt.len() + n {
        let token = next_token(config, (seed, choice), position, state);
        state = read(token);
        text.push(token);
    }
    text
}

fn windows(config: &MockConfig) -> impl Iterator<Item = Option<u32>> {
    config.cache_groups.iter().map(|group| group.window)
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

fn info(config: &MockConfig) -> WorkerInfo {
    let MockConfig { vocab_size, eos_every, trusting, .. } = config;
    let windows: Vec<_> = windows(config).collect();
    let group = |group: &MockGroup| CacheGroup {
        num_layers: 1,
        bytes_per_token: 8,
        window: group.window.unwrap_or(0),
        num_blocks: group.num_blocks,
    };
    WorkerInfo {
        fingerprint: format!(
            "mock vocab={vocab_size} eos={eos_every:?} trusting={trusting} windows={windows:?}"
        ),
        build: env!("CARGO_PKG_VERSION").to_owned(),
        max_model_len: config.max_model_len,
        vocab_size: config.vocab_size,
        block_size: config.block_size,
        max_slots: config.max_slots,
        max_batch_tokens: config.max_batch_tokens,
        timed_prefill_tokens: config.max_batch_tokens,
        cache_groups: config.cache_groups.iter().map(group).collect(),
        eos_token_ids: vec![EOS],
        has_unblocked_state: false,
        rank: 0,
        world: 1,
        dtype: "mock".to_owned(),
        num_parameters: 0,
        no_grammars: "the mock samples what it likes".into(),
    }
}

#[cfg(test)]
mod tests;
