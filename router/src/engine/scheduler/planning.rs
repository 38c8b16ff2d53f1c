//! The next step: decodes first, then prompts, within one budget of tokens.
//!
//! While others wait for prompt compute, one prompt takes at most half of what the decodes leave;
//! what nobody else can use goes to the oldest. The blocks of everything a sequence knows are
//! handed out at its admission, so only decodes can run out of blocks.

use std::time::Duration;

use millstream_proto::{AddSequence, CONTINUE, MAX_STEPS_IN_FLIGHT, Step};

#[cfg(test)]
use super::planted::PlantedBug;
use super::{Plan, PlannedRow, Scheduler, Trusted};
use crate::engine::FinishReason;
use crate::engine::blocks::BlockId;
use crate::engine::sequence::Sequence;

/// Bytes of added sequences per step, far below the message limit: after a failover hundreds of
/// long sequences come back at once.
const MAX_ADD_BYTES: usize = 16 << 20;

/// The only cache group, so far.
const GROUP: u32 = 0;

/// A step in the making.
#[derive(Default)]
struct Draft {
    step: Step,
    rows: Vec<PlannedRow>,
    /// Positions that the step may still compute.
    budget: usize,
    add_bytes: usize,
    prompts: Vec<Prompt>,
}

/// A prompt's share of the step.
struct Prompt {
    index: u32,
    len: usize,
}

/// What became of a waiting sequence.
enum Admission {
    Admitted,
    /// It waits for something that does not hold up those behind it.
    PassedBy,
    /// It goes first once there is room, so nobody behind it may take the room.
    Blocked,
    Ended,
}

impl Scheduler {
    /// The next step, or `None` when there is nothing to run or two steps are in flight.
    ///
    /// The caller fills in epoch and deadline.
    pub fn schedule(&mut self, now: Duration) -> Option<Step> {
        if self.in_flight.len() >= MAX_STEPS_IN_FLIGHT {
            return None;
        }
        let mut draft = self.begin_draft();
        self.plan_running(&mut draft);
        self.plan_prompts(&mut draft);
        if draft.rows.is_empty() && self.releases.is_empty() {
            self.spare_rows = draft.rows;
            return None;
        }
        // Only now, so that nothing in this step can hit what this step computes.
        let mut trusted = Vec::new();
        for row in &draft.rows {
            self.index_blocks(row.index, row.start, &mut trusted);
        }
        self.last_step += 1;
        self.stats.steps += 1;
        let Draft { mut step, rows, .. } = draft;
        step.step = self.last_step;
        step.release = std::mem::take(&mut self.releases);
        self.in_flight.push_back(Plan { step: self.last_step, sent_at: now, rows, trusted });
        Some(step)
    }

    /// Offers to the index the leading blocks of a sequence that are known, and computed by a step
    /// already sent. Those that end beyond the position `num_settled` are so on the word of a row
    /// in flight, and are noted as such.
    pub(super) fn index_blocks(
        &mut self,
        index: u32,
        num_settled: usize,
        trusted: &mut Vec<Trusted>,
    ) {
        if !self.limits.prefix_caching {
            return;
        }
        let block_size = self.limits.block_size as usize;
        let sequence = self.sequences.get_mut(index);
        let known = sequence.tokens.len().min(sequence.num_computed);
        #[cfg(test)]
        let known = match self.planted {
            Some(PlantedBug::UncomputedBlockIndexed) => {
                sequence.tokens.len().min(sequence.table.len() * block_size)
            }
            _ => known,
        };
        while sequence.num_indexed < known / block_size {
            let place = sequence.num_indexed;
            let (id, block) = (sequence.id, sequence.table[place]);
            let key = sequence.key(place, block_size);
            self.blocks.index(block, key, sequence.block_tokens(place, block_size));
            sequence.num_indexed += 1;
            if sequence.num_indexed * block_size > num_settled {
                trusted.push(Trusted { id, place, block, key });
            }
        }
    }

    fn begin_draft(&mut self) -> Draft {
        let mut rows = std::mem::take(&mut self.spare_rows);
        rows.clear();
        let mut step = Step::default();
        for column in
            [&mut step.row_slot, &mut step.row_start, &mut step.row_len, &mut step.row_sample]
        {
            column.reserve_exact(self.running.len());
        }
        let budget = self.limits.max_batch_tokens as usize;
        Draft { step, rows, budget, ..Draft::default() }
    }

    /// Gives every running sequence its next token, the oldest first, and collects those that are
    /// owed more.
    fn plan_running(&mut self, draft: &mut Draft) {
        let mut place = 0;
        // The end moves: whoever finds no block preempts from there.
        while place < self.running.len() {
            let index = self.running[place];
            place += 1;
            let sequence = self.sequences.get(index);
            if sequence.has_unpaid_prompt() {
                draft.prompts.push(Prompt { index, len: 0 });
            } else if sequence.debt() == 1
                && sequence.may_sample()
                && draft.budget > 0
                && self.grow(draft, index)
            {
                draft.push_row(index, self.sequences.get_mut(index), 1);
            }
        }
    }

    /// Makes room for the next position of a running sequence, if need be by preempting the
    /// youngest. False if that was the sequence itself.
    fn grow(&mut self, draft: &mut Draft, index: u32) -> bool {
        let block_size = self.limits.block_size as usize;
        loop {
            let sequence = self.sequences.get_mut(index);
            if sequence.num_computed < sequence.table.len() * block_size {
                return true;
            }
            if let Some(block) = self.blocks.allocate() {
                sequence.table.push(block);
                draft.push_block(sequence, block);
                continue;
            }
            let youngest = *self.running.last().expect("the sequence that grows is running");
            if self.running.len() == 1 {
                let (len, blocks) = (sequence.tokens.len(), self.limits.num_blocks);
                self.end_with_event(index, too_long(len, blocks));
                self.forget_ended();
                return false;
            }
            self.preempt(youngest);
            if youngest == index {
                return false;
            }
        }
    }

    /// Takes the youngest running sequence off the worker, to begin again later.
    fn preempt(&mut self, youngest: u32) {
        self.stats.preemptions += 1;
        self.running.pop();
        self.stop_running(youngest);
        self.wait_again(youngest);
    }

    fn plan_prompts(&mut self, draft: &mut Draft) {
        let is_contended = draft.prompts.len() + self.waiting.len() > 1;
        let share = if is_contended { draft.budget.div_ceil(2) } else { draft.budget };
        let mut left = draft.budget;
        for prompt in &mut draft.prompts {
            prompt.len = self.sequences.get(prompt.index).debt().min(share).min(left);
            left -= prompt.len;
        }
        self.admit(draft, share, &mut left);
        let prompts = std::mem::take(&mut draft.prompts);
        for Prompt { index, len } in prompts {
            let sequence = self.sequences.get_mut(index);
            let more = (sequence.debt() - len).min(left);
            left -= more;
            if len + more == 0 {
                continue;
            }
            let prompt_left = sequence.prompt_len().saturating_sub(sequence.num_computed);
            self.stats.prompt_tokens += (len + more).min(prompt_left) as u64;
            draft.push_row(index, sequence, len + more);
        }
    }

    /// Admits waiting sequences while there is budget and room.
    fn admit(&mut self, draft: &mut Draft, share: usize, left: &mut usize) {
        let mut place = 0;
        while *left > 0
            && place < self.waiting.len()
            && !self.free_slots.is_empty()
            && draft.add_bytes < MAX_ADD_BYTES
        {
            let index = self.waiting[place];
            match self.try_admit(draft, index) {
                Admission::Admitted => {
                    self.waiting.remove(place);
                    let arrival = self.sequences.get(index).arrival;
                    let place_running = self
                        .running
                        .partition_point(|&other| self.sequences.get(other).arrival < arrival);
                    self.running.insert(place_running, index);
                    let len = self.sequences.get(index).debt().min(share).min(*left);
                    *left -= len;
                    draft.prompts.push(Prompt { index, len });
                    #[cfg(test)]
                    self.plant_hit_within_step(index, len);
                }
                Admission::PassedBy => place += 1,
                Admission::Blocked => return,
                Admission::Ended => {
                    self.waiting.remove(place);
                }
            }
        }
    }

    fn try_admit(&mut self, draft: &mut Draft, index: u32) -> Admission {
        let sequence = self.sequences.get(index);
        if sequence.suspicion.runs_alone() && self.has_lone_suspect_beside(index) {
            return Admission::PassedBy;
        }
        if sequence.num_in_flight > 0 {
            // What is in flight still brings tokens, and they belong to what is added again.
            return Admission::Blocked;
        }
        let num_blocks = sequence.tokens.len().div_ceil(self.limits.block_size as usize);
        if num_blocks > self.limits.num_blocks as usize {
            let reason = too_long(sequence.tokens.len(), self.limits.num_blocks);
            self.end_with_event(index, reason);
            return Admission::Ended;
        }
        let hits = self.match_prefix(index);
        let free_hits = hits.iter().filter(|&&block| self.blocks.is_free(block)).count();
        // One block per running sequence stays free, or the next tokens would preempt this one.
        let needed = free_hits + num_blocks - hits.len();
        if needed + self.running.len() > self.blocks.num_free() {
            return Admission::Blocked;
        }
        self.start_running(draft, index, hits, num_blocks);
        Admission::Admitted
    }

    /// Whether another suspect that must be alone runs, or has a row in flight.
    fn has_lone_suspect_beside(&self, index: u32) -> bool {
        self.running.iter().chain(&self.waiting).filter(|&&other| other != index).any(|&other| {
            let sequence = self.sequences.get(other);
            let is_there = sequence.slot.is_some() || sequence.num_in_flight > 0;
            is_there && sequence.suspicion.runs_alone()
        })
    }

    /// The longest run of blocks that hold the beginning of a sequence. The last token is always
    /// computed, even when its block is there: without it there are no logits.
    fn match_prefix(&mut self, index: u32) -> Vec<BlockId> {
        let mut hits = Vec::new();
        if !self.limits.prefix_caching {
            return hits;
        }
        let block_size = self.limits.block_size as usize;
        let sequence = self.sequences.get_mut(index);
        for block in 0..(sequence.tokens.len() - 1) / block_size {
            let key = sequence.key(block, block_size);
            let tokens = sequence.block_tokens(block, block_size);
            let Some(hit) = self.blocks.find(key, tokens) else { break };
            hits.push(hit);
        }
        hits
    }

    fn start_running(&mut self, draft: &mut Draft, index: u32, hits: Vec<BlockId>, blocks: usize) {
        let cached = hits.len() * self.limits.block_size as usize;
        let slot = self.free_slots.pop().expect("admission found a free slot");
        for &hit in &hits {
            self.blocks.hold(hit);
        }
        let sequence = self.sequences.get_mut(index);
        sequence.slot = Some(slot);
        sequence.num_computed = cached;
        sequence.num_indexed = hits.len();
        sequence.table = hits;
        sequence.table.reserve(blocks - sequence.table.len() + 1);
        while sequence.table.len() < blocks {
            let block = self.blocks.allocate().expect("admission counted the free blocks");
            sequence.table.push(block);
        }
        if sequence.cached_tokens.is_none() {
            let queried = sequence.prompt_len();
            sequence.cached_tokens = Some(cached.min(queried) as u32);
            if self.limits.prefix_caching {
                self.stats.cached_tokens += cached.min(queried) as u64;
                self.stats.queried_tokens += queried as u64;
            }
        }
        let added = sequence.to_add(slot);
        draft.add_bytes += bytes_of(&added);
        draft.step.add.push(added);
        for &block in &sequence.table {
            draft.push_block(sequence, block);
        }
    }

    /// Offers the blocks of an admitted sequence while others are yet to be admitted.
    #[cfg(test)]
    fn plant_hit_within_step(&mut self, index: u32, len: usize) {
        if self.planted == Some(PlantedBug::HitWithinStep) {
            self.sequences.get_mut(index).num_computed += len;
            self.index_blocks(index, 0, &mut Vec::new());
            self.sequences.get_mut(index).num_computed -= len;
        }
    }
}

impl Draft {
    /// Adds a row of `len` positions from where the sequence will be by then.
    fn push_row(&mut self, index: u32, sequence: &mut Sequence, len: usize) {
        let start = sequence.num_computed;
        let samples = len == sequence.debt();
        let is_known = sequence.num_promised == 0;
        self.step.row_slot.push(sequence.slot.expect("a row is of a running sequence"));
        self.step.row_start.push(if is_known { start as u32 } else { CONTINUE });
        self.step.row_len.push(len as u32);
        self.step.row_sample.push(u32::from(samples));
        let (id, run) = (sequence.id, sequence.run);
        self.rows.push(PlannedRow { index, id, run, start, len, samples, is_void: false });
        sequence.num_computed += len;
        sequence.num_promised += usize::from(samples);
        sequence.num_in_flight += 1;
        self.budget -= len;
    }

    fn push_block(&mut self, sequence: &Sequence, block: BlockId) {
        self.step.new_block_slot.push(sequence.slot.expect("blocks are of a running sequence"));
        self.step.new_block_group.push(GROUP);
        self.step.new_block.push(block.0);
    }
}

fn too_long(num_tokens: usize, num_blocks: u32) -> FinishReason {
    FinishReason::Error(format!(
        "a sequence of {num_tokens} tokens does not fit the worker's {num_blocks} cache blocks"
    ))
}

/// What an added sequence takes on the wire, at most, give or take a few bytes.
fn bytes_of(add: &AddSequence) -> usize {
    let num_biases = add.sampling.as_ref().map_or(0, |sampling| sampling.bias.len());
    5 * (add.tokens.len() + add.stop_token_ids.len()) + 9 * num_biases
}
