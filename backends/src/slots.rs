//! The worker's memory of the sequences it runs: who sits in which slot, what of it is computed,
//! and which blocks hold it.
//!
//! A step is applied in the protocol's order: release, add, new blocks, rows. Nothing in it is
//! believed: what contradicts this memory becomes a failure of the row that it concerns, and the
//! sequence of a failed row stays failed. Its later rows repeat the failure and compute nothing,
//! so that whichever output the router reads first says why.
//!
//! Invariants:
//! - a planned row lies within its sequence's tokens, and in every group its blocks cover what it
//!   reads and writes: all positions up to its end, or those from its first window on;
//! - a planned row starts at `num_computed`, so nothing is computed twice and nothing skipped;
//! - a slot has at most one row in a step.
//!
//! This module knows tokens, slots and block ids. It does not know the model or the device.

use millstream_proto::{AddSequence, CONTINUE, CacheGroup, Grammar, NO_BLOCK, Step, WorkerInfo};
use tracing::warn;

use crate::batch::{Batch, BatchRow};
use crate::grammar::{Constrained, Grammars};
use crate::model::RowFailure;
use crate::sampling::{SamplingParams, TokenCounts};

/// A sequence as the worker knows it.
#[derive(Clone, Debug, Default)]
pub struct Sequence {
    /// Tells it from those that had its slot before, or have it later.
    pub serial: u64,
    /// The first `prompt_len` tokens are the prompt; the rest were sampled.
    pub prompt_len: usize,
    /// Every token known, prompt and output.
    pub tokens: Vec<u32>,
    /// Tokens whose keys and values are in the cache.
    pub num_computed: usize,
    /// Per cache group, the blocks that hold them, in order; tables only grow. A place that the
    /// group's window has passed holds a block that may be another's by now, or [`NO_BLOCK`].
    pub block_tables: Vec<Vec<u32>>,
    /// How its tokens are drawn.
    pub sampling: SamplingParams,
    /// What its penalties count: [`TokenCounts::of`] its tokens, kept up to date.
    pub counts: TokenCounts,
    /// Randomness is a function of (seed, choice, absolute position).
    pub seed: u64,
    /// Which of the request's choices this is.
    pub choice: u32,
    /// Sampling one of these ends the sequence.
    pub stop_token_ids: Vec<u32>,
    /// The log-probabilities of the prompt's tokens are reported from this position on, which is at
    /// least 1.
    pub prompt_logprobs_from: Option<usize>,
    /// What its output must satisfy.
    pub grammar: Option<Constrained>,
    /// A stop token was sampled: nothing more is computed.
    pub ended: bool,
}

/// What becomes of one row of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RowPlan {
    /// It is computed: `len` tokens from `start` on.
    Run {
        /// The slot, which is occupied.
        slot: u32,
        /// First position to compute.
        start: usize,
        /// Positions to compute, at least 1.
        len: usize,
        /// Whether to sample the token after the last one.
        sample: bool,
    },
    /// Its sequence has ended: nothing to compute, nothing to return.
    Ended,
    /// It, or an earlier row of its sequence, is broken.
    Failed(RowFailure),
}

/// All slots of an epoch.
#[derive(Debug)]
pub struct Slots {
    limits: Limits,
    grammars: Option<Grammars>,
    entries: Vec<Option<Entry>>,
    num_steps: u64,
    /// Sequences added, ever.
    num_added: u64,
}

#[derive(Debug)]
struct Limits {
    max_model_len: usize,
    max_batch_tokens: usize,
    vocab_size: u32,
    block_size: usize,
    groups: Vec<GroupLimits>,
}

#[derive(Debug)]
struct GroupLimits {
    num_blocks: u32,
    /// Positions that a query sees, its own included; `None` for all.
    window: Option<usize>,
}

impl GroupLimits {
    /// The first position that a query at `position` sees.
    fn first_visible(&self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }
}

#[derive(Debug, Default)]
struct Entry {
    sequence: Sequence,
    /// Per cache group, the places up to the last one without a block.
    first_blocks: Vec<usize>,
    /// A row has been planned. Before that, the prefix that was found in the cache is unknown.
    started: bool,
    failure: Option<RowFailure>,
    /// The step in which it last had a row.
    last_step: u64,
}

impl Entry {
    /// The first failure counts; it stays.
    fn fail(&mut self, failure: RowFailure) {
        self.failure.get_or_insert(failure);
    }
}

/// One row as the wire gives it.
#[derive(Clone, Copy)]
struct WireRow {
    slot: u32,
    start: u32,
    len: u32,
    sample: u32,
}

impl Slots {
    /// As many empty slots as the worker offers. Sequences are constrained by `grammars`, or not at
    /// all.
    pub fn new(info: &WorkerInfo, grammars: Option<Grammars>) -> Self {
        let limits = Limits {
            max_model_len: info.max_model_len as usize,
            max_batch_tokens: info.max_batch_tokens as usize,
            vocab_size: info.vocab_size,
            block_size: info.block_size as usize,
            groups: info.cache_groups.iter().map(group_limits).collect(),
        };
        let entries = (0..info.max_slots).map(|_| None).collect();
        Slots { limits, grammars, entries, num_steps: 0, num_added: 0 }
    }

    /// Empties all slots.
    pub fn clear(&mut self) {
        self.entries.fill_with(|| None);
    }

    /// The sequence in a slot, if there is one.
    pub fn get(&self, slot: u32) -> Option<&Sequence> {
        self.entries.get(slot as usize)?.as_ref().map(|entry| &entry.sequence)
    }

    /// Applies a step up to its forward pass: what becomes of each row, in the step's order.
    pub fn apply(&mut self, step: Step) -> Vec<RowPlan> {
        self.num_steps += 1;
        for slot in &step.release {
            self.release(*slot);
        }
        for add in step.add {
            self.add(add, &step.grammars);
        }
        let num_rows = step.row_slot.len();
        let columns = [step.row_start.len(), step.row_len.len(), step.row_sample.len()];
        if columns.iter().any(|len| *len != num_rows) {
            return self.fail_all(&step.row_slot, "the row columns are not equally long");
        }
        let num_new = step.new_block.len();
        if [step.new_block_slot.len(), step.new_block_group.len()] != [num_new; 2] {
            return self.fail_all(&step.row_slot, "the new block columns are not equally long");
        }
        for index in 0..num_new {
            let (slot, group) = (step.new_block_slot[index], step.new_block_group[index]);
            self.append_block(slot, group as usize, step.new_block[index]);
        }
        let mut budget = self.limits.max_batch_tokens;
        let rows = (0..num_rows).map(|index| WireRow {
            slot: step.row_slot[index],
            start: step.row_start[index],
            len: step.row_len[index],
            sample: step.row_sample[index],
        });
        rows.map(|row| self.plan(row, &mut budget)).collect()
    }

    /// The batch of those rows that run, in the plan's order.
    pub fn batch(&self, plans: &[RowPlan]) -> Batch<'_> {
        let rows = plans.iter().filter_map(|plan| match *plan {
            RowPlan::Run { slot, start, len, sample } => {
                let sequence = self.get(slot).expect("a planned row's slot is occupied");
                Some(BatchRow { slot, sequence, start, len, sample })
            }
            RowPlan::Ended | RowPlan::Failed(_) => None,
        });
        Batch::new(rows.collect())
    }

    /// Takes back what a planned row, which ended before position `end`, came to.
    pub fn finish(&mut self, slot: u32, end: usize, result: Result<Option<u32>, &RowFailure>) {
        let entry = self.entries[slot as usize].as_mut().expect("a planned row's slot is occupied");
        let sequence = &mut entry.sequence;
        match result {
            Err(failure) => entry.fail(failure.clone()),
            Ok(None) => sequence.num_computed = end,
            Ok(Some(token)) => {
                sequence.num_computed = end;
                sequence.tokens.push(token);
                sequence.counts.push(&sequence.sampling.penalties, token);
                // The sampler bans stop tokens where the text may not end.
                sequence.ended = sequence.stop_token_ids.contains(&token);
                if let Some(grammar) = sequence.grammar.as_ref().filter(|_| !sequence.ended) {
                    grammar.advance(token);
                }
            }
        }
    }

    fn release(&mut self, slot: u32) {
        let entry = self.entries.get_mut(slot as usize).and_then(Option::take);
        if entry.is_none() {
            warn!(slot, "release of an empty slot");
        }
    }

    /// Adds a sequence; its grammar is among those that the step `brought`.
    fn add(&mut self, add: AddSequence, brought: &[Grammar]) {
        let Some(entry) = self.entries.get_mut(add.slot as usize) else {
            return warn!(slot = add.slot, "add to a slot beyond max_slots");
        };
        if let Some(occupant) = entry {
            let rule = format!("slot {} was added to while occupied", add.slot);
            return occupant.fail(RowFailure::protocol(rule));
        }
        let checked = self.limits.check_add(&add).and_then(|sampling| {
            let grammar = constrain(self.grammars.as_ref(), &add, brought)?;
            Ok((sampling, grammar))
        });
        let failure = checked.as_ref().err().cloned();
        let ((sampling, grammar), prompt_len) =
            (checked.unwrap_or_default(), add.prompt_len as usize);
        self.num_added += 1;
        let sequence = Sequence {
            serial: self.num_added,
            prompt_len,
            counts: TokenCounts::of(&sampling.penalties, prompt_len, &add.tokens),
            tokens: add.tokens,
            num_computed: 0,
            block_tables: vec![Vec::new(); self.limits.groups.len()],
            sampling,
            seed: add.seed,
            choice: add.choice,
            stop_token_ids: add.stop_token_ids,
            prompt_logprobs_from: add.prompt_logprobs_from.map(|from| from as usize),
            grammar,
            ended: false,
        };
        let first_blocks = vec![0; self.limits.groups.len()];
        *entry = Some(Entry { sequence, first_blocks, failure, ..Entry::default() });
    }

    fn append_block(&mut self, slot: u32, group: usize, block: u32) {
        let Some(entry) = self.entries.get_mut(slot as usize).and_then(Option::as_mut) else {
            return warn!(slot, block, "new block for an empty slot");
        };
        let Some(limits) = self.limits.groups.get(group) else {
            return entry.fail(RowFailure::protocol(format!("no cache group {group}")));
        };
        let table = &mut entry.sequence.block_tables[group];
        if block < limits.num_blocks {
            table.push(block);
        } else if block == NO_BLOCK && limits.window.is_some() {
            table.push(block);
            entry.first_blocks[group] = table.len();
        } else {
            let rule = match block {
                NO_BLOCK => format!("a place without a block in group {group}, which sees all"),
                _ => format!("block {block} is beyond the {} of group {group}", limits.num_blocks),
            };
            entry.fail(RowFailure::protocol(rule));
        }
    }

    /// What becomes of a row. `budget` is what the step may still carry, in tokens.
    fn plan(&mut self, row: WireRow, budget: &mut usize) -> RowPlan {
        let entry = self.entries.get_mut(row.slot as usize).and_then(Option::as_mut);
        let Some(entry) = entry else {
            let rule = format!("slot {} holds no sequence", row.slot);
            return RowPlan::Failed(RowFailure::protocol(rule));
        };
        if let Some(failure) = &entry.failure {
            return RowPlan::Failed(failure.clone());
        }
        if entry.sequence.ended {
            return RowPlan::Ended;
        }
        match self.limits.check_row(entry, row, self.num_steps, *budget) {
            Err(rule) => {
                let failure = RowFailure::protocol(format!("slot {}: {rule}", row.slot));
                entry.fail(failure.clone());
                RowPlan::Failed(failure)
            }
            Ok(start) => {
                let len = row.len as usize;
                entry.sequence.num_computed = start;
                entry.started = true;
                entry.last_step = self.num_steps;
                *budget -= len;
                RowPlan::Run { slot: row.slot, start, len, sample: row.sample > 0 }
            }
        }
    }

    /// Fails every row of a step that cannot be read, and the sequences they name.
    fn fail_all(&mut self, row_slots: &[u32], rule: &str) -> Vec<RowPlan> {
        let failure = RowFailure::protocol(rule);
        for slot in row_slots {
            if let Some(Some(entry)) = self.entries.get_mut(*slot as usize) {
                entry.fail(failure.clone());
            }
        }
        vec![RowPlan::Failed(failure); row_slots.len()]
    }
}

impl Limits {
    /// The sampling parameters of a sequence that may be added.
    fn check_add(&self, add: &AddSequence) -> Result<SamplingParams, RowFailure> {
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
    fn check_row(
        &self,
        entry: &Entry,
        row: WireRow,
        step: u64,
        budget: usize,
    ) -> Result<usize, String> {
        let sequence = &entry.sequence;
        let (len, num_tokens) = (row.len as usize, sequence.tokens.len());
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

/// What constrains an added sequence, if anything does.
fn constrain(
    grammars: Option<&Grammars>,
    add: &AddSequence,
    brought: &[Grammar],
) -> Result<Option<Constrained>, RowFailure> {
    if add.grammar_digest.is_empty() {
        return Ok(None);
    }
    let Some(grammars) = grammars else {
        return Err(RowFailure::grammar("this model has no tokenizer to constrain its texts with"));
    };
    let Some(grammar) = brought.iter().find(|grammar| grammar.digest == add.grammar_digest) else {
        return Err(RowFailure::protocol("a grammar was named and not sent"));
    };
    let output = add.tokens[add.prompt_len as usize..].to_vec();
    Ok(Some(grammars.begin(grammar.clone(), output)))
}

fn group_limits(group: &CacheGroup) -> GroupLimits {
    let window = (group.window > 0).then_some(group.window as usize);
    GroupLimits { num_blocks: group.num_blocks, window }
}
