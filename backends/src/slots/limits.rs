//! What a step may ask of a sequence: the rules that an added sequence and a row must keep.

use millstream_proto::{
    AddSequence, CONTINUE, CacheGroup, MAX_BIASES, MAX_STOP_TOKENS, WorkerInfo,
};

use super::{Entry, WireRow};
use crate::model::RowFailure;
use crate::sampling::SamplingParams;

/// The limits of one model.
#[derive(Debug)]
pub(super) struct Limits {
    max_model_len: usize,
    pub(super) max_batch_tokens: usize,
    vocab_size: u32,
    block_size: usize,
    pub(super) groups: Vec<GroupLimits>,
}

/// Those of one cache group.
#[derive(Debug)]
pub(super) struct GroupLimits {
    pub(super) num_blocks: u32,
    /// Positions that a query sees, its own included; `None` for all.
    pub(super) window: Option<usize>,
}

impl GroupLimits {
    /// The first position that a query at `position` sees.
    fn first_visible(&self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }
}

impl Limits {
    /// Those of the model.
    pub(super) fn new(info: &WorkerInfo) -> Self {
        Limits {
            max_model_len: info.max_model_len as usize,
            max_batch_tokens: info.max_batch_tokens as usize,
            vocab_size: info.vocab_size,
            block_size: info.block_size as usize,
            groups: info.cache_groups.iter().map(group_limits).collect(),
        }
    }

    /// The sampling parameters of a sequence that may be added.
    pub(super) fn check_add(&self, add: &AddSequence) -> Result<SamplingParams, RowFailure> {
        let refuse = |rule: String| Err(RowFailure::protocol(rule));
        let num_tokens = add.tokens.len();
        if num_tokens == 0 || add.prompt_len == 0 || add.prompt_len as usize > num_tokens {
            return refuse(format!("prompt_len is {} of {num_tokens} tokens", add.prompt_len));
        }
        if num_tokens > self.max_model_len {
            let max = self.max_model_len;
            return refuse(format!("{num_tokens} tokens exceed max_model_len ({max})"));
        }
        if let Some(token) = add.tokens.iter().find(|token| **token >= self.vocab_size) {
            let vocab_size = self.vocab_size;
            return refuse(format!("token {token} is beyond the vocabulary ({vocab_size})"));
        }
        let num_biases = add.sampling.as_ref().map_or(0, |sampling| sampling.bias.len());
        if num_biases > MAX_BIASES {
            return refuse(format!("{num_biases} biases are more than {MAX_BIASES}"));
        }
        let num_stops = add.stop_token_ids.len();
        if num_stops > MAX_STOP_TOKENS {
            return refuse(format!("{num_stops} stop tokens are more than {MAX_STOP_TOKENS}"));
        }
        // Ignoring any of these would change the text, or withhold what was asked for.
        if !add.adapter.is_empty() {
            return refuse("adapters are not supported by this worker".to_owned());
        }
        if add.prompt_logprobs_from == Some(0) {
            return refuse("nothing predicts the first token of a prompt".to_owned());
        }
        add.sampling.as_ref().map_or_else(|| Ok(SamplingParams::default()), SamplingParams::parse)
    }

    /// Where a row starts, or the rule that it breaks.
    pub(super) fn check_row(
        &self,
        entry: &Entry,
        row: WireRow,
        step: u64,
        budget: usize,
    ) -> Result<usize, String> {
        let sequence = &entry.sequence;
        let (len, num_tokens) = (row.len as usize, sequence.tokens.len() + sequence.num_promised);
        if entry.last_step == step {
            return Err("two rows in one step".to_owned());
        }
        // The first row of a sequence says by its start how much of the prompt was found in the
        // cache; from then on the worker knows.
        let start = match row.start {
            CONTINUE => sequence.num_computed,
            start if entry.started && start as usize != sequence.num_computed => {
                return Err(format!("row starts at {start}, not at {}", sequence.num_computed));
            }
            start => start as usize,
        };
        let end = start + len;
        if len == 0 {
            return Err("row_len is 0".to_owned());
        }
        if end > num_tokens {
            return Err(format!("row {start}+{len} is beyond the {num_tokens} tokens known"));
        }
        if row.sample > 0 && end != num_tokens {
            return Err(format!("row {start}+{len} samples before the last token ({num_tokens})"));
        }
        if end > self.max_model_len {
            return Err(format!(
                "row {start}+{len} exceeds max_model_len ({})",
                self.max_model_len
            ));
        }
        if len > budget {
            return Err(format!("row {start}+{len} exceeds max_batch_tokens by {}", len - budget));
        }
        self.check_blocks(entry, start, end)?;
        Ok(start)
    }

    /// Checks that the blocks of a row cover what it reads and writes in every group.
    fn check_blocks(&self, entry: &Entry, start: usize, end: usize) -> Result<(), String> {
        let row = || format!("row {start}+{}", end - start);
        let needed = end.div_ceil(self.block_size);
        for (index, group) in self.groups.iter().enumerate() {
            let held = entry.sequence.block_tables[index].len();
            if held < needed {
                return Err(format!("{} needs {needed} blocks, the table has {held}", row()));
            }
            let (first, present) = (group.first_visible(start), entry.first_blocks[index]);
            if first / self.block_size < present {
                return Err(format!(
                    "{} reads from position {first} on, group {index} has no block before {}",
                    row(),
                    present * self.block_size
                ));
            }
        }
        Ok(())
    }
}

fn group_limits(group: &CacheGroup) -> GroupLimits {
    let window = (group.window > 0).then_some(group.window as usize);
    GroupLimits { num_blocks: group.num_blocks, window }
}
