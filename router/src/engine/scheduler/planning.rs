//! The next step: decodes first, then prompts, within a budget of tokens of their own.
//!
//! So decodes take nothing from prompts: however many there are, first tokens keep coming. While
//! others wait for prompt compute, a prompt that would not end in this step takes at most half of
//! that budget; what nobody else can use goes to the oldest. Every running sequence first gets room
//! for one position, the oldest first; only then are rows made longer and others admitted, so nobody
//! is preempted who stands in the step.

use std::time::Duration;

use millstream_proto::{AddSequence, CONTINUE, Grammar, MAX_STEPS_IN_FLIGHT, Step};

#[cfg(test)]
use super::planted::PlantedBug;
use super::room::too_long;
use super::{CacheGroup, Plan, PlannedRow, Scheduler};
use crate::engine::blocks::BlockId;
use crate::engine::groups::BlockTable;
use crate::engine::sequence::Sequence;

/// Bytes of added sequences per step, far below the message limit: after a failover hundreds of
/// long sequences come back at once.
const MAX_ADD_BYTES: usize = 16 << 20;

/// Where steps take longer, the next one is planned when the last one is done. The worker then waits
/// for the way to the router and back, well under a hundredth of the time; and a request that comes
/// meanwhile is in the next step, not in the one after it.
const LONG_STEP: Duration = Duration::from_millis(100);

/// A step in the making.
#[derive(Default)]
pub(super) struct Draft {
    step: Step,
    now: Duration,
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
    /// The next step, or `None` when there is nothing to run or enough is in flight: two steps, or one
    /// where steps take long.
    ///
    /// The caller fills in epoch and deadline.
    pub fn schedule(&mut self, now: Duration) -> Option<Step> {
        let most = if self.step_time > LONG_STEP { 1 } else { MAX_STEPS_IN_FLIGHT };
        if self.in_flight.len() >= most {
            return None;
        }
        self.free_behind_windows();
        let mut draft = self.begin_draft(now);
        self.plan_running(&mut draft);
        self.plan_prompts(&mut draft);
        if draft.rows.is_empty() && self.releases.is_empty() {
            self.spare_rows = draft.rows;
            return None;
        }
        // Only now, so that nothing in this step can hit what this step computes.
        let mut trusted = Vec::new();
        for row in &draft.rows {
            self.index_blocks(row.index, &mut trusted);
        }
        self.last_step += 1;
        self.stats.steps += 1;
        let Draft { mut step, rows, .. } = draft;
        step.step = self.last_step;
        step.release = std::mem::take(&mut self.releases);
        self.in_flight.push_back(Plan { step: self.last_step, sent_at: now, rows, trusted });
        Some(step)
    }

    fn begin_draft(&mut self, now: Duration) -> Draft {
        let mut rows = std::mem::take(&mut self.spare_rows);
        rows.clear();
        let mut step = Step::default();
        for column in
            [&mut step.row_slot, &mut step.row_start, &mut step.row_len, &mut step.row_sample]
        {
            column.reserve_exact(self.running.len());
        }
        let budget = self.limits.max_batch_tokens as usize;
        Draft { step, now, rows, budget, ..Draft::default() }
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
                if self.grow(draft, index) {
                    draft.prompts.push(Prompt { index, len: 0 });
                }
            } else if sequence.debt() == 1
                && sequence.may_sample()
                && draft.budget > 0
                && self.grow(draft, index)
            {
                draft.push_row(index, self.sequences.get_mut(index), 1);
            }
        }
    }

    fn plan_prompts(&mut self, draft: &mut Draft) {
        let mut prompts = std::mem::take(&mut draft.prompts);
        let is_contended = prompts.len() + self.waiting.len() > 1;
        let budget = draft.budget.min(self.limits.max_prefill_tokens as usize);
        let share = if is_contended { budget.div_ceil(2) } else { budget };
        let mut left = budget;
        for prompt in &mut prompts {
            self.give(draft, prompt, share, &mut left);
        }
        self.admit(draft, &mut prompts, share, &mut left);
        for Prompt { index, len } in prompts {
            let wanted = self.sequences.get(index).debt().min(len + left);
            let reached = self.reach(draft, index, wanted);
            left -= reached - len;
            if reached == 0 {
                continue;
            }
            let sequence = self.sequences.get_mut(index);
            let prompt_left = sequence.prompt_len().saturating_sub(sequence.num_computed);
            self.stats.prompt_tokens += reached.min(prompt_left) as u64;
            draft.push_row(index, sequence, reached);
        }
    }

    /// Gives a prompt what ends it, or its share.
    fn give(&mut self, draft: &mut Draft, prompt: &mut Prompt, share: usize, left: &mut usize) {
        let debt = self.sequences.get(prompt.index).debt();
        let wanted = if debt <= *left { debt } else { share.min(*left) };
        prompt.len = self.reach(draft, prompt.index, wanted);
        *left -= prompt.len;
    }

    /// Admits waiting sequences while there is budget and room.
    fn admit(
        &mut self,
        draft: &mut Draft,
        prompts: &mut Vec<Prompt>,
        share: usize,
        left: &mut usize,
    ) {
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
                    let mut prompt = Prompt { index, len: 0 };
                    self.give(draft, &mut prompt, share, left);
                    #[cfg(test)]
                    self.plant_hit_within_step(index, prompt.len);
                    prompts.push(prompt);
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
        let num_tokens = sequence.tokens.len();
        let total = num_tokens.div_ceil(self.limits.block_size as usize);
        let lacks_blocks =
            |group: &&CacheGroup| group.admitted_len(0, total) > group.blocks.num_blocks();
        if let Some(group) = self.groups.iter().find(lacks_blocks) {
            let reason = too_long(num_tokens, group.blocks.num_blocks());
            self.end_with_event(index, reason);
            return Admission::Ended;
        }
        let tables = self.match_prefix(index);
        // One block per running sequence stays free, or the next tokens would preempt this one.
        let num_spared = self.running.len();
        let has_room = self.groups.iter().zip(&tables).all(|(group, hits)| {
            let free_hits =
                hits.held().iter().filter(|&&block| group.blocks.is_free(block)).count();
            let num_new = group.admitted_len(hits.len(), total) - hits.len();
            free_hits + num_new + num_spared <= group.blocks.num_free()
        });
        if !has_room {
            return Admission::Blocked;
        }
        self.start_running(draft, index, tables, total);
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

    /// Gives a sequence a slot and blocks: `tables` hold its prefix hits, `total` places hold what
    /// it knows.
    fn start_running(
        &mut self,
        draft: &mut Draft,
        index: u32,
        mut tables: Vec<BlockTable>,
        total: usize,
    ) {
        let block_size = self.limits.block_size as usize;
        let slot = self.free_slots.pop().expect("admission found a free slot");
        let num_hits = tables.iter().map(BlockTable::len).min().unwrap_or(0);
        let mut room = usize::MAX;
        for (number, (group, table)) in self.groups.iter_mut().zip(&mut tables).enumerate() {
            for &hit in table.held() {
                group.blocks.hold(hit);
            }
            let len = group.admitted_len(num_hits, total);
            table.reserve(len - num_hits + 1);
            while table.len() < len {
                table.push(group.blocks.allocate().expect("admission counted the free blocks"));
            }
            for &block in table.places() {
                draft.push_block(slot, number, block);
            }
            room = room.min(len * block_size);
        }
        let cached = num_hits * block_size;
        let sequence = self.sequences.get_mut(index);
        sequence.slot = Some(slot);
        sequence.num_computed = cached;
        sequence.num_indexed = num_hits;
        sequence.tables = tables;
        sequence.room = room;
        sequence.scored_from = sequence.num_scored;
        if sequence.cached_tokens.is_none() {
            let queried = sequence.prompt_len();
            sequence.cached_tokens = Some(cached.min(queried) as u32);
            sequence.waited = draft.now.saturating_sub(sequence.added_at);
            if self.limits.prefix_caching {
                self.stats.cached_tokens += cached.min(queried) as u64;
                self.stats.queried_tokens += queried as u64;
            }
        }
        let added = sequence.to_add(slot);
        draft.add_bytes += bytes_of(&added);
        if let Some(grammar) = sequence.grammar() {
            draft.bring_grammar(grammar);
        }
        draft.step.add.push(added);
    }

    /// Offers the blocks of an admitted sequence while others are yet to be admitted.
    #[cfg(test)]
    fn plant_hit_within_step(&mut self, index: u32, len: usize) {
        if self.planted == Some(PlantedBug::HitWithinStep) {
            self.sequences.get_mut(index).num_computed += len;
            self.index_blocks(index, &mut Vec::new());
            self.sequences.get_mut(index).num_computed -= len;
        }
    }
}

impl Draft {
    /// Sends a grammar along, once a step: what the worker still knows of it is its own matter.
    fn bring_grammar(&mut self, grammar: &Grammar) {
        if !self.step.grammars.iter().any(|other| other.digest == grammar.digest) {
            self.add_bytes += grammar.source.len();
            self.step.grammars.push(grammar.clone());
        }
    }

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
        let first_scored = sequence.scored_from.max(start + 1);
        let is_void = false;
        self.rows.push(PlannedRow { index, id, run, start, len, samples, first_scored, is_void });
        sequence.num_computed += len;
        sequence.num_unconfirmed += len;
        sequence.num_promised += usize::from(samples);
        sequence.num_in_flight += 1;
        self.budget -= len;
    }

    pub(super) fn push_block(&mut self, slot: u32, group: usize, block: BlockId) {
        self.step.new_block_slot.push(slot);
        self.step.new_block_group.push(group as u32);
        self.step.new_block.push(block.0);
    }
}

/// What an added sequence takes on the wire, at most, give or take a few bytes.
fn bytes_of(add: &AddSequence) -> usize {
    let num_biases = add.sampling.as_ref().map_or(0, |sampling| sampling.bias.len());
    5 * (add.tokens.len() + add.stop_token_ids.len()) + 9 * num_biases
}
