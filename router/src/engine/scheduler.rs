//! Who runs when: pays the debts of sequences in steps, and reads what the steps bring back.
//!
//! A pure state machine: [`schedule`](Scheduler::schedule) yields the next step,
//! [`update`](Scheduler::update) takes its output, in order; no socket, no lock, no clock.
//!
//! What it holds true, checked by [`check_integrity`](Scheduler::check_integrity):
//! - every sequence that was added and has not ended either runs (it has a slot) or waits, and
//!   both queues are in the order of arrival;
//! - a block that stands in two tables is full, and was found through the index;
//! - the oldest running sequence is never preempted, so something always advances;
//! - outputs are read against the plan that asked for them, never against the present.
//!
//! A worker has one or several cache groups, each with or without a window. A sequence has blocks
//! in all of them, and runs while all have room: `room` says when blocks are taken and given back,
//! `prefixes` which of them others find.
//!
//! This module does not know epochs, workers or their connections; [`core`](super::core) does.

mod integrity;
mod outputs;
mod planning;
#[cfg(test)]
pub(crate) mod planted;
mod prefixes;
mod room;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::Duration;

use super::blocks::{BlockId, BlockKey};
use super::groups::CacheGroup;
pub use super::limits::{GroupLimits, Limits};
use super::sequence::{Sequence, Sequences};
use super::{Event, FinishReason, NewSequence, SequenceId};

/// Where the engine stands, and what it has done since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stats {
    /// Sequences that run now.
    pub running: usize,
    /// Sequences that wait now.
    pub waiting: usize,
    /// Blocks held now, in all cache groups.
    pub used_blocks: usize,
    /// Blocks of the worker, in all cache groups.
    pub num_blocks: usize,
    /// Share of its blocks that is held in the group where that share is largest, from 0 to 1:
    /// sequences wait when any one group has no room.
    pub cache_usage: f64,
    /// Steps sent.
    pub steps: u64,
    /// Prompt positions computed, again after a preemption.
    pub prompt_tokens: u64,
    /// Prompt tokens found in the prefix cache at first admissions.
    pub cached_tokens: u64,
    /// Prompt tokens looked up in the prefix cache at first admissions.
    pub queried_tokens: u64,
    /// Tokens received and passed on.
    pub generated_tokens: u64,
    /// Sequences that lost their blocks to an older one.
    pub preemptions: u64,
    /// Blocks that lost a cached prefix to make room.
    pub evictions: u64,
    /// Blocks that running sequences gave back because a window had passed them.
    pub window_frees: u64,
    /// Rows computed for sequences that had ended meanwhile.
    pub overruns: u64,
    /// Workers lost, planned moves included.
    pub worker_losses: u64,
    /// Sequences that were ended because workers kept dying under them.
    pub fenced: u64,
    /// Outputs that belonged to no step in flight.
    pub ignored_outputs: u64,
}

/// A row as it was sent.
struct PlannedRow {
    index: u32,
    id: SequenceId,
    run: u32,
    start: usize,
    len: usize,
    samples: bool,
    /// The first token of the prompt that it reports, where it reports any.
    first_scored: usize,
    /// What the row read proved not to be computed: its output counts for nothing.
    is_void: bool,
}

/// A block that entered the index on the word of a row in flight.
struct Trusted {
    /// Whose row computes the block's last position.
    id: SequenceId,
    /// Index of the cache group.
    group: usize,
    /// Index of the block in the tables it stands in.
    place: usize,
    block: BlockId,
    key: BlockKey,
}

/// A step in flight.
struct Plan {
    step: u64,
    sent_at: Duration,
    rows: Vec<PlannedRow>,
    /// What leaves the index again if a row was not computed, whoever holds the blocks by then.
    trusted: Vec<Trusted>,
}

/// See the module.
pub struct Scheduler {
    limits: Limits,
    groups: Vec<CacheGroup>,
    sequences: Sequences,
    /// In the order of arrival; none has a slot.
    waiting: VecDeque<u32>,
    /// In the order of arrival; each has a slot.
    running: Vec<u32>,
    free_slots: Vec<u32>,
    /// Slots that the worker still believes in; the next step releases them.
    releases: Vec<u32>,
    in_flight: VecDeque<Plan>,
    /// Rows of a plan that was read, kept for their memory.
    spare_rows: Vec<PlannedRow>,
    /// Events of sequences that ended while a step was planned.
    pending: Vec<Event>,
    last_step: u64,
    /// When the output before the oldest step in flight was read.
    last_output_at: Duration,
    /// How long the last step took whose output was read.
    step_time: Duration,
    next_arrival: u64,
    /// The counters; the gauges are filled in when asked for.
    stats: Stats,
    /// Evictions of block managers that went with their workers.
    past_evictions: u64,
    #[cfg(test)]
    pub(crate) planted: Option<planted::PlantedBug>,
    /// Hits that the windows made shorter, and that are hits nevertheless.
    #[cfg(test)]
    pub(crate) shrunk_hits: u64,
}

impl Scheduler {
    /// An empty scheduler. Until real limits are known, the default ones let nothing run.
    pub fn new(limits: Limits) -> Self {
        let mut scheduler = Self {
            limits: Limits::default(),
            groups: Vec::new(),
            sequences: Sequences::default(),
            waiting: VecDeque::new(),
            running: Vec::new(),
            free_slots: Vec::new(),
            releases: Vec::new(),
            in_flight: VecDeque::new(),
            spare_rows: Vec::new(),
            pending: Vec::new(),
            last_step: 0,
            last_output_at: Duration::ZERO,
            step_time: Duration::ZERO,
            next_arrival: 0,
            stats: Stats::default(),
            past_evictions: 0,
            #[cfg(test)]
            planted: None,
            #[cfg(test)]
            shrunk_hits: 0,
        };
        scheduler.start_epoch(limits);
        scheduler
    }

    /// Queues a sequence. The id must be new. One that can never run ends with an error, which
    /// [`take_pending`](Self::take_pending) returns.
    pub fn add(&mut self, id: SequenceId, request: NewSequence, now: Duration) {
        let sequence = Sequence::new(id, self.next_arrival, request, now);
        self.next_arrival += 1;
        let index = self.sequences.insert(sequence);
        self.waiting.push_back(index);
        if self.limits != Limits::default() {
            self.fit(index);
        }
    }

    /// Ends a sequence without an event. Returns whether it was there.
    pub fn abort(&mut self, id: SequenceId) -> bool {
        let Some(index) = self.sequences.index_of(id) else { return false };
        self.end(index);
        self.forget_ended();
        true
    }

    /// The worker is gone, and all it held with it: everything running waits again, and what was
    /// in flight when it died comes under suspicion. Returns the ends of those found guilty.
    pub fn lose_worker(&mut self, is_planned: bool, now: Duration) -> Vec<Event> {
        self.stats.worker_losses += 1;
        let mut events = std::mem::take(&mut self.pending);
        let mut waiting: Vec<u32> = self.sequences.iter().map(|(index, _)| index).collect();
        waiting.sort_unstable_by_key(|&index| self.sequences.get(index).arrival);
        for &index in &waiting {
            let sequence = self.sequences.get_mut(index);
            sequence.stop_running();
            let was_in_flight = std::mem::take(&mut sequence.num_in_flight) > 0;
            if was_in_flight && !is_planned && sequence.suspicion.witness_death() {
                self.stats.fenced += 1;
                let reason = "the workers that ran this request kept failing".to_owned();
                events.push(sequence.event(Vec::new(), Some(FinishReason::Error(reason))));
                self.sequences.remove(index);
            }
        }
        waiting.retain(|&index| self.sequences.is_live(index));
        self.waiting = waiting.into();
        self.running.clear();
        self.start_epoch(self.limits.clone());
        self.last_output_at = now;
        events
    }

    /// A worker is there, with nothing but its weights: all blocks and slots are free. Sequences
    /// that do not fit its limits end, see [`take_pending`](Self::take_pending).
    ///
    /// Nothing may be running or in flight: the worker before was lost, or there was none.
    pub fn use_worker(&mut self, limits: Limits, now: Duration) {
        assert!(self.running.is_empty() && self.in_flight.is_empty(), "the last worker was lost");
        self.start_epoch(limits);
        self.last_output_at = now;
        for index in self.waiting.clone() {
            self.fit(index);
        }
    }

    /// Ends the sequences that `choose` gives a reason for. All of them must be waiting.
    pub(super) fn end_waiting(
        &mut self,
        mut choose: impl FnMut(&Sequence) -> Option<FinishReason>,
    ) -> Vec<Event> {
        let mut events = Vec::new();
        for index in self.waiting.clone() {
            if let Some(reason) = choose(self.sequences.get(index)) {
                events.push(self.end(index).event(Vec::new(), Some(reason)));
            }
        }
        self.forget_ended();
        events
    }

    /// Events of sequences that ended without an output being read.
    pub fn take_pending(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.pending)
    }

    /// Sequences that run or wait.
    pub fn num_unfinished(&self) -> usize {
        self.sequences.len()
    }

    /// The step whose output comes next, and since when the worker can have been at it.
    pub fn oldest_step(&self) -> Option<(u64, Duration)> {
        self.in_flight.front().map(|plan| (plan.step, plan.sent_at.max(self.last_output_at)))
    }

    /// Gauges and counters as of now.
    pub fn stats(&self) -> Stats {
        let (mut used_blocks, mut num_blocks, mut cache_usage) = (0, 0, 0_f64);
        for CacheGroup { blocks, .. } in &self.groups {
            let used = blocks.num_blocks() - blocks.num_free();
            used_blocks += used;
            num_blocks += blocks.num_blocks();
            cache_usage = cache_usage.max(used as f64 / blocks.num_blocks().max(1) as f64);
        }
        Stats {
            running: self.running.len(),
            waiting: self.waiting.len(),
            used_blocks,
            num_blocks,
            cache_usage,
            evictions: self.past_evictions + self.num_evictions(),
            ..self.stats
        }
    }

    /// Of the present worker's blocks.
    fn num_evictions(&self) -> u64 {
        self.groups.iter().map(|group| group.blocks.num_evictions()).sum()
    }

    /// Everything that lives as long as a worker's epoch begins anew.
    fn start_epoch(&mut self, limits: Limits) {
        self.past_evictions += self.num_evictions();
        let (block_size, max_chunk) = (limits.block_size, limits.max_prefill_tokens);
        let group = |group: &GroupLimits| CacheGroup::new(*group, block_size, max_chunk);
        self.groups = limits.groups.iter().map(group).collect();
        // A running sequence must find room for its next token in every step.
        let num_slots = limits.max_slots.min(limits.max_batch_tokens);
        self.free_slots = (0..num_slots).rev().collect();
        self.releases.clear();
        self.in_flight.clear();
        self.last_step = 0;
        self.step_time = Duration::ZERO;
        self.limits = limits;
    }

    /// Applies the worker's limits to a waiting sequence, which ends if it exceeds them.
    fn fit(&mut self, index: u32) {
        let max_model_len = self.limits.max_model_len as usize;
        let sequence = self.sequences.get_mut(index);
        let wanted = sequence.prompt_len() + sequence.request.max_tokens as usize;
        sequence.max_len = wanted.min(max_model_len);
        let (len, prompt_len) = (sequence.tokens.len(), sequence.prompt_len());
        let reason = if prompt_len == 0 {
            FinishReason::Error("the prompt has no tokens".to_owned())
        } else if len < sequence.max_len {
            return;
        } else if len > prompt_len || prompt_len == wanted {
            FinishReason::Length
        } else {
            FinishReason::Error(format!(
                "the prompt ({prompt_len} tokens) leaves no room in the model's context \
                 ({max_model_len} tokens)"
            ))
        };
        self.end_with_event(index, reason);
        self.forget_ended();
    }

    /// Ends a sequence outside of an output; the event comes with the next ones.
    fn end_with_event(&mut self, index: u32, reason: FinishReason) {
        let event = self.end(index).event(Vec::new(), Some(reason));
        self.pending.push(event);
    }

    /// Takes a sequence out of everything but the queues, which [`forget_ended`](Self::forget_ended)
    /// cleans once for all.
    fn end(&mut self, index: u32) -> Sequence {
        self.stop_running(index);
        self.sequences.remove(index)
    }

    /// Gives back the slot and the blocks of a sequence, at once: steps in flight run before
    /// anything that is sent later.
    fn stop_running(&mut self, index: u32) {
        let sequence = self.sequences.get_mut(index);
        let first_unconfirmed = sequence.num_confirmed() / self.limits.block_size as usize;
        let Some((slot, tables)) = sequence.stop_running() else { return };
        for (group, table) in self.groups.iter_mut().zip(&tables) {
            // If a row in flight breaks whose blocks this sequence has hit, nobody remembers that
            // it did. So what its own rows in flight compute is not found any more.
            for (_, block) in table.enumerate().filter(|(at, _)| *at >= first_unconfirmed) {
                group.blocks.unindex(block);
            }
            group.blocks.free(table.held());
        }
        self.free_slots.push(slot);
        #[cfg(test)]
        if self.planted == Some(planted::PlantedBug::ReleaseLost) && self.releases.is_empty() {
            return;
        }
        self.releases.push(slot);
    }

    fn forget_ended(&mut self) {
        self.running.retain(|&index| self.sequences.is_live(index));
        self.waiting.retain(|&index| self.sequences.is_live(index));
    }

    /// Puts a sequence that no longer runs back in line, by arrival.
    fn wait_again(&mut self, index: u32) {
        let arrival = self.sequences.get(index).arrival;
        let place =
            self.waiting.partition_point(|&other| self.sequences.get(other).arrival < arrival);
        self.waiting.insert(place, index);
    }
}
