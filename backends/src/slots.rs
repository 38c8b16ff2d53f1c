//! The worker's memory of the sequences it runs: who sits in which slot, what of it is computed,
//! and which blocks hold it.
//!
//! A step is applied in the protocol's order: release, add, new blocks, rows. Nothing in it is
//! believed: what contradicts this memory becomes a failure of the row that it concerns, and the
//! sequence of a failed row stays failed. Its later rows repeat the failure and compute nothing,
//! so that whichever output the router reads first says why.
//!
//! The next steps may be applied before the rows of a step are finished. A row that samples promises
//! a token, and later rows are planned with it as if it were there. What a row reports is what it
//! would report if each step were finished before the next is applied: nothing, if an earlier row
//! proves to have ended its sequence, and that row's failure, if it failed.
//!
//! Invariants:
//! - a planned row lies within its sequence's tokens and those promised, and in every group its
//!   blocks cover what it reads and writes: all positions up to its end, or those from its first
//!   window on;
//! - a planned row starts at `num_computed`, so nothing is computed twice and nothing skipped;
//! - a slot has at most one row in a step;
//! - a sequence is kept while a row of it is in flight, also after its release.
//!
//! This module knows tokens, slots and block ids. It does not know the model or the device.

mod limits;

use millstream_proto::{AddSequence, Grammar, NO_BLOCK, Step, WorkerInfo};
use tracing::warn;

use self::limits::Limits;
use crate::batch::{Batch, BatchRow};
use crate::grammar::{Constrained, Grammars};
use crate::model::{RowFailure, RowResult, SampledToken};
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
    /// Tokens that rows in flight will sample; they follow those known.
    pub num_promised: usize,
    /// Tokens whose keys and values are in the cache once the rows in flight are computed.
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

impl Sequence {
    /// The text goes on with `token`.
    fn push(&mut self, token: u32) {
        self.tokens.push(token);
        self.counts.push(&self.sampling.penalties, token);
        // The sampler bans stop tokens where the text may not end.
        self.ended = self.stop_token_ids.contains(&token);
        if let Some(grammar) = self.grammar.as_ref().filter(|_| !self.ended) {
            grammar.advance(token);
        }
    }
}

/// What becomes of one row of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RowPlan {
    /// It is computed.
    Run(PlannedRow),
    /// Its sequence has ended: nothing to compute, nothing to return.
    Ended,
    /// It, or an earlier row of its sequence, is broken.
    Failed(RowFailure),
}

/// A row to compute: `len` tokens from `start` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlannedRow {
    /// The slot of its sequence, which is occupied when the row is planned.
    pub slot: u32,
    /// The sequence's [`serial`](Sequence::serial).
    pub serial: u64,
    /// The step that it belongs to, counted by the worker.
    pub step: u64,
    /// First position to compute.
    pub start: usize,
    /// Positions to compute, at least 1.
    pub len: usize,
    /// Whether to sample the token after the last one.
    pub sample: bool,
}

/// All slots of an epoch.
#[derive(Debug)]
pub struct Slots {
    limits: Limits,
    grammars: Option<Grammars>,
    entries: Vec<Option<Entry>>,
    /// What was released with rows in flight.
    released: Vec<Entry>,
    num_steps: u64,
    /// Sequences added, ever.
    num_added: u64,
}

#[derive(Debug, Default)]
struct Entry {
    sequence: Sequence,
    /// Per cache group, the places up to the last one without a block.
    first_blocks: Vec<usize>,
    /// A row has been planned. Before that, the prefix that was found in the cache is unknown.
    started: bool,
    /// The step in which it failed, and why.
    failure: Option<(u64, RowFailure)>,
    /// The step in which it last had a row.
    last_step: u64,
    /// Rows that are planned and not finished.
    num_in_flight: usize,
}

impl Entry {
    /// The failure of the earliest step counts; it stays.
    fn fail(&mut self, step: u64, failure: RowFailure) {
        if self.failure.as_ref().is_none_or(|(failed_in, _)| step < *failed_in) {
            self.failure = Some((step, failure));
        }
    }

    /// A row from `start` on is computed in this step.
    fn begin(&mut self, row: WireRow, start: usize, step: u64) -> PlannedRow {
        let (len, sample) = (row.len as usize, row.sample > 0);
        self.started = true;
        self.last_step = step;
        self.num_in_flight += 1;
        self.sequence.num_computed = start + len;
        self.sequence.num_promised += usize::from(sample);
        PlannedRow { slot: row.slot, serial: self.sequence.serial, step, start, len, sample }
    }

    /// See [`Slots::finish`].
    fn finish(&mut self, row: PlannedRow, result: RowResult) -> RowResult {
        let sequence = &mut self.sequence;
        self.num_in_flight -= 1;
        sequence.num_promised -= usize::from(row.sample);
        if let Some((_, failure)) = self.failure.as_ref().filter(|(step, _)| *step < row.step) {
            return Err(failure.clone());
        }
        if sequence.ended {
            return Ok(None);
        }
        match &result {
            Err(failure) => self.fail(row.step, failure.clone()),
            Ok(None) => assert!(!row.sample, "a row that samples comes to a token"),
            Ok(Some(SampledToken { token, .. })) => {
                assert!(row.sample, "only asked rows sample");
                sequence.push(*token);
            }
        }
        result
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
        let limits = Limits::new(info);
        let entries = (0..info.max_slots).map(|_| None).collect();
        Slots { limits, grammars, entries, released: Vec::new(), num_steps: 0, num_added: 0 }
    }

    /// Empties all slots; rows in flight are not to be finished any more.
    pub fn clear(&mut self) {
        self.entries.fill_with(|| None);
        self.released.clear();
    }

    /// Whether no slot has a sequence.
    pub fn is_empty(&self) -> bool {
        self.entries.iter().all(Option::is_none)
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
            RowPlan::Run(PlannedRow { slot, start, len, sample, .. }) => {
                let sequence = self.get(slot).expect("a planned row's slot is occupied");
                Some(BatchRow { slot, sequence, start, len, sample })
            }
            RowPlan::Ended | RowPlan::Failed(_) => None,
        });
        Batch::new(rows.collect())
    }

    /// Takes back what a planned row came to, and returns what it reports. Rows are finished in the
    /// order in which they were planned.
    pub fn finish(&mut self, row: PlannedRow, result: RowResult) -> RowResult {
        let PlannedRow { slot, serial, .. } = row;
        let occupant = self.entries[slot as usize].as_mut();
        let entry = occupant
            .filter(|entry| entry.sequence.serial == serial)
            .or_else(|| self.released.iter_mut().find(|entry| entry.sequence.serial == serial))
            .expect("a sequence is kept while a row of it is in flight");
        let reported = entry.finish(row, result);
        self.released.retain(|entry| entry.num_in_flight > 0);
        reported
    }

    fn release(&mut self, slot: u32) {
        match self.entries.get_mut(slot as usize).and_then(Option::take) {
            Some(entry) if entry.num_in_flight > 0 => self.released.push(entry),
            Some(_) => {}
            None => warn!(slot, "release of an empty slot"),
        }
    }

    /// Adds a sequence; its grammar is among those that the step `brought`.
    fn add(&mut self, add: AddSequence, brought: &[Grammar]) {
        let Some(entry) = self.entries.get_mut(add.slot as usize) else {
            return warn!(slot = add.slot, "add to a slot beyond max_slots");
        };
        if let Some(occupant) = entry {
            let rule = format!("slot {} was added to while occupied", add.slot);
            return occupant.fail(self.num_steps, RowFailure::protocol(rule));
        }
        let checked = self.limits.check_add(&add).and_then(|sampling| {
            let grammar = constrain(self.grammars.as_ref(), &add, brought)?;
            Ok((sampling, grammar))
        });
        let failure = checked.as_ref().err().map(|failure| (self.num_steps, failure.clone()));
        let ((sampling, grammar), prompt_len) =
            (checked.unwrap_or_default(), add.prompt_len as usize);
        self.num_added += 1;
        let sequence = Sequence {
            serial: self.num_added,
            prompt_len,
            counts: TokenCounts::of(&sampling.penalties, prompt_len, &add.tokens),
            tokens: add.tokens,
            num_promised: 0,
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
            let rule = format!("no cache group {group}");
            return entry.fail(self.num_steps, RowFailure::protocol(rule));
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
            entry.fail(self.num_steps, RowFailure::protocol(rule));
        }
    }

    /// What becomes of a row. `budget` is what the step may still carry, in tokens.
    fn plan(&mut self, row: WireRow, budget: &mut usize) -> RowPlan {
        let entry = self.entries.get_mut(row.slot as usize).and_then(Option::as_mut);
        let Some(entry) = entry else {
            let rule = format!("slot {} holds no sequence", row.slot);
            return RowPlan::Failed(RowFailure::protocol(rule));
        };
        if let Some((_, failure)) = &entry.failure {
            return RowPlan::Failed(failure.clone());
        }
        if entry.sequence.ended {
            return RowPlan::Ended;
        }
        match self.limits.check_row(entry, row, self.num_steps, *budget) {
            Err(rule) => {
                let failure = RowFailure::protocol(format!("slot {}: {rule}", row.slot));
                entry.fail(self.num_steps, failure.clone());
                RowPlan::Failed(failure)
            }
            Ok(start) => {
                *budget -= row.len as usize;
                RowPlan::Run(entry.begin(row, start, self.num_steps))
            }
        }
    }

    /// Fails every row of a step that cannot be read, and the sequences they name.
    fn fail_all(&mut self, row_slots: &[u32], rule: &str) -> Vec<RowPlan> {
        let failure = RowFailure::protocol(rule);
        for slot in row_slots {
            if let Some(Some(entry)) = self.entries.get_mut(*slot as usize) {
                entry.fail(self.num_steps, failure.clone());
            }
        }
        vec![RowPlan::Failed(failure); row_slots.len()]
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

#[cfg(test)]
mod tests;
