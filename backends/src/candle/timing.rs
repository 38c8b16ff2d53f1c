//! How many tokens of prompts a step can compute in about 300 ms: timed at start, on the machine
//! itself.
//!
//! By so much do prompts delay those who decode, and by more only where 64 tokens take longer. It
//! must be well above what the decoding of many takes itself (on two cores 130 ms for 32 sequences
//! of a model of 0.6 B parameters): else prompts come in more slowly than answers go out, first
//! tokens wait for seconds, and the batch that decodes is never full.
//!
//! One prompt of 32 tokens is timed, then of 64, and so on, until it takes long enough to tell or
//! the limit is reached; the answer is what fits in proportion. The whole measurement stays
//! under 150 ms for small models, and at the first length for large ones. The time decides only
//! how long steps are, never what is computed.

use crate::{Batch, BatchRow, Sequence};
use millstream_proto::WorkerInfo;
use std::time::{Duration, Instant};

/// What the prompts of a step should take.
const PROMPTS: Duration = Duration::from_millis(300);
/// Long enough to tell what a token takes.
const TELLING: Duration = Duration::from_millis(25);
/// Never fewer: below this the overhead of a step outweighs what it computes.
const AT_LEAST: u32 = 64;
/// The first prompt: a shorter one reads the weights for too few tokens to tell what one takes.
const FIRST: u32 = 32;

/// Tokens of prompts that fit a step, between 64 (or the model's limit, if that is lower) and that
/// limit. `compute` runs a batch of one row from beginning to end.
pub(super) fn prefill_tokens<E>(
    info: &WorkerInfo,
    mut compute: impl FnMut(&Batch<'_>) -> Result<(), E>,
) -> Result<u32, E> {
    let limit = info.max_batch_tokens;
    let largest = limit.min(info.max_model_len).min(cache_tokens(info));
    let mut tokens = FIRST.min(largest);
    loop {
        let mut took = time(info, tokens, &mut compute)?;
        // What looks too long is timed again: the first step wakes threads and memory, and the
        // machine has other things to do. What is far too long is long.
        if (TELLING..TELLING * 20).contains(&took) {
            took = took.min(time(info, tokens, &mut compute)?);
        }
        if took >= TELLING || tokens == largest {
            return Ok(fit(tokens, took, limit));
        }
        tokens = (tokens * 2).min(largest);
    }
}

/// Tokens that one row can compute in every group: a group with a window may hold less than the
/// longest sequence.
fn cache_tokens(info: &WorkerInfo) -> u32 {
    let blocks = info.cache_groups.iter().map(|group| group.num_blocks).min();
    blocks.unwrap_or(0).saturating_mul(info.block_size)
}

/// The tokens of a step's prompts if `tokens` of them took this long.
fn fit(tokens: u32, took: Duration, limit: u32) -> u32 {
    let per_step = PROMPTS.as_secs_f64() / took.as_secs_f64().max(1e-9);
    // A float-to-integer cast saturates.
    ((f64::from(tokens) * per_step) as u32).clamp(AT_LEAST.min(limit), limit)
}

/// One forward pass over a prompt of this length, through the cache's first blocks. What it
/// leaves there is never read: a block is written before it is used.
fn time<E>(
    info: &WorkerInfo,
    tokens: u32,
    compute: &mut impl FnMut(&Batch<'_>) -> Result<(), E>,
) -> Result<Duration, E> {
    let blocks = tokens.div_ceil(info.block_size);
    let groups = info.cache_groups.len();
    let sequence = Sequence {
        tokens: vec![0; tokens as usize],
        block_tables: vec![(0..blocks).collect(); groups],
        ..Sequence::default()
    };
    let row =
        BatchRow { slot: 0, sequence: &sequence, start: 0, len: tokens as usize, sample: true };
    let batch = Batch::new(vec![row]);
    let begin = Instant::now();
    compute(&batch)?;
    Ok(begin.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_what_fits_a_step_within_its_bounds() {
        let cases = [
            ((128, 150), 8192, 256),
            ((128, 75), 8192, 512),
            ((32, 2000), 8192, 64),
            ((32, 2000), 40, 40),
            ((8192, 30), 8192, 8192),
            ((8192, 0), 8192, 8192),
        ];
        for ((tokens, ms), limit, want) in cases {
            assert_eq!(fit(tokens, Duration::from_millis(ms), limit), want, "{tokens} in {ms} ms");
        }
    }
}
