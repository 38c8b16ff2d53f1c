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
//! It runs one cache group of full attention. Tables, new blocks and the index are per sequence
//! and block here; a second group gives each of them a group number.
//!
//! This module does not know epochs, workers or their connections; [`core`](super::core) does.

mod integrity;
mod outputs;
mod planning;
#[cfg(test)]
pub(crate) mod planted;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::Duration;

use super::blocks::{BlockId, BlockKey, BlockManager};
use super::sequence::{Sequence, Sequences};
use super::{Event, FinishReason, NewSequence, SequenceId};

/// What the worker and the configuration allow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Positions that one step computes at most.
    pub max_batch_tokens: u32,
    /// Sequences that run at once.
    pub max_slots: u32,
    /// Tokens per KV block.
    pub block_size: u32,
    /// KV blocks of the worker.
    pub num_blocks: u32,
    /// Longest sequence, prompt and output together.
    pub max_model_len: u32,
    /// Whether sequences share the blocks of equal prefixes.
    pub prefix_caching: bool,
}

/// Where the engine stands, and what it has done since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Sequences that run now.
    pub running: usize,
    /// Sequences that wait now.
    pub waiting: usize,
    /// Blocks held now.
    pub used_blocks: usize,
    /// Blocks of the worker.
    pub num_blocks: usize,
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
    /// What the row read proved not to be computed: its output counts for nothing.
    is_void: bool,
}

/// A block that entered the index on the word of a row in flight.
struct Trusted {
    /// Whose row computes the block's last position.
    id: SequenceId,
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
    blocks: BlockManager,
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
    next_arrival: u64,
    /// The counters; the gauges are filled in when asked for.
    stats: Stats,
    /// Evictions of block managers that went with their workers.
    past_evictions: u64,
    #[cfg(test)]
    pub(crate) planted: Option<planted::PlantedBug>,
}

impl Scheduler {
    /// An empty scheduler. Until real limits are known, the default ones let nothing run.
    pub fn new(limits: Limits) -> Self {
        let mut scheduler = Self {
            limits,
            blocks: BlockManager::new(0, 1),
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
            next_arrival: 0,
            stats: Stats::default(),
            past_evictions: 0,
            #[cfg(test)]
            planted: None,
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
        self.start_epoch(self.limits);
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
        Stats {
            running: self.running.len(),
            waiting: self.waiting.len(),
            used_blocks: self.blocks.num_blocks() - self.blocks.num_free(),
            num_blocks: self.blocks.num_blocks(),
            evictions: self.past_evictions + self.blocks.num_evictions(),
            ..self.stats
        }
    }

    /// Everything that lives as long as a worker's epoch begins anew.
    fn start_epoch(&mut self, limits: Limits) {
        self.past_evictions += self.blocks.num_evictions();
        self.limits = limits;
        self.blocks = BlockManager::new(limits.num_blocks, limits.block_size);
        // A running sequence must find room for its next token in every step.
        let num_slots = limits.max_slots.min(limits.max_batch_tokens);
        self.free_slots = (0..num_slots).rev().collect();
        self.releases.clear();
        self.in_flight.clear();
        self.last_step = 0;
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
        let Some((slot, table)) = self.sequences.get_mut(index).stop_running() else { return };
        self.blocks.free(&table);
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
