//! The engine without its sockets: commands and worker news in, events and steps out.
//!
//! Adds to the scheduler what the life of a worker needs: epochs, the worker's limits, outputs that
//! come too late, and the time to wait for the next worker. The shell around it owns the
//! connection; it hands in every [`Input`] with the time, sends every step that
//! [`next_step`](EngineCore::next_step) yields, and drops the worker on a [`Fault`].
//!
//! Like the scheduler it is a pure state machine, and runs under the simulator.

use std::sync::Arc;
use std::time::Duration;

use millstream_proto::{Step, StepOutput, WorkerInfo};

use super::limits::limits;
#[cfg(test)]
use super::scheduler::planted::PlantedBug;
use super::scheduler::{Limits, Scheduler, Stats};
use super::{Command, Event, FinishReason};

/// What the engine may do, whatever the worker allows.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Positions of prompts that one step computes at most; by default what the worker timed at its
    /// start.
    pub max_prefill_tokens: Option<u32>,
    /// Sequences that run at once, if the worker allows as many.
    pub max_batch_size: u32,
    /// Whether sequences share the blocks of equal prefixes.
    pub prefix_caching: bool,
    /// How long sequences wait for a worker before they end with an error.
    pub resume_timeout: Duration,
    /// How long the output of a step may take.
    pub step_timeout: Duration,
}

/// What happens to the engine.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "an input is handed over once and never stored")]
pub enum Input {
    /// Somebody asks for something.
    Command(Command),
    /// A worker has accepted a stream: a new epoch, in which nothing is known to it.
    Connected {
        /// As the worker numbered it.
        epoch: u64,
        /// What it serves.
        info: Arc<WorkerInfo>,
    },
    /// The worker has answered.
    Output(StepOutput),
    /// The stream has ended.
    Lost {
        /// The worker was told to go: nobody is to blame.
        is_planned: bool,
    },
    /// Time has passed.
    Tick,
}

/// Why the shell must drop the worker. The engine behaves as if it had been lost already.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// This router can never run this worker.
    #[error("this worker cannot be used: {0}")]
    Unsupported(String),
    /// It contradicted the protocol; a fresh one may do better.
    #[error("the worker broke the protocol: {0}")]
    Broken(String),
}

/// See the module.
pub struct EngineCore {
    config: EngineConfig,
    scheduler: Scheduler,
    /// The present worker's epoch.
    epoch: Option<u64>,
    /// Of the last worker that was used: a text goes on only where it is the same.
    fingerprint: Option<String>,
    no_worker_since: Duration,
    /// Sequences that ended since last asked.
    num_left: usize,
    ignored_outputs: u64,
    fault: Option<Fault>,
}

impl EngineCore {
    /// An engine without a worker, which waits for one from time zero on.
    pub fn new(config: EngineConfig) -> Self {
        Self {
            config,
            scheduler: Scheduler::new(Limits::default()),
            epoch: None,
            fingerprint: None,
            no_worker_since: Duration::ZERO,
            num_left: 0,
            ignored_outputs: 0,
            fault: None,
        }
    }

    /// Takes in what happened; returns the news for the clients, in order.
    pub fn handle(&mut self, input: Input, now: Duration) -> Vec<Event> {
        let mut events = match input {
            Input::Command(Command::Add(id, sequence)) => {
                self.scheduler.add(id, *sequence, now);
                Vec::new()
            }
            Input::Command(Command::Abort(id)) => {
                self.num_left += usize::from(self.scheduler.abort(id));
                Vec::new()
            }
            Input::Connected { epoch, info } => self.connect(epoch, &info, now),
            Input::Output(output) => self.read(&output, now),
            Input::Lost { is_planned } => self.lose(is_planned, now),
            Input::Tick => self.give_up_waiting(now),
        };
        events.extend(self.scheduler.take_pending());
        self.num_left += events.iter().filter(|event| event.finish.is_some()).count();
        events
    }

    /// The next step to send, if there is one to send now. Call until there is none.
    pub fn next_step(&mut self, now: Duration) -> Option<Step> {
        let epoch = self.epoch?;
        let mut step = self.scheduler.schedule(now)?;
        step.epoch = epoch;
        step.deadline_ms = u32::try_from(self.config.step_timeout.as_millis()).unwrap_or(u32::MAX);
        Some(step)
    }

    /// Until when the oldest step in flight must have been answered, or the worker hangs.
    pub fn oldest_step_deadline(&self) -> Option<Duration> {
        self.scheduler.oldest_step().map(|(_, since)| since + self.config.step_timeout)
    }

    /// Sequences that ended, by an event or an abort, since this was last asked.
    pub fn take_left(&mut self) -> usize {
        std::mem::take(&mut self.num_left)
    }

    /// Why the worker must be dropped, if it must; told once.
    pub fn take_fault(&mut self) -> Option<Fault> {
        self.fault.take()
    }

    /// Whether a worker is being used.
    pub fn has_worker(&self) -> bool {
        self.epoch.is_some()
    }

    /// Sequences that run or wait.
    pub fn num_unfinished(&self) -> usize {
        self.scheduler.num_unfinished()
    }

    /// Gauges and counters as of now.
    pub fn stats(&self) -> Stats {
        Stats { ignored_outputs: self.ignored_outputs, ..self.scheduler.stats() }
    }

    #[cfg(test)]
    pub(super) fn scheduler(&mut self) -> &mut Scheduler {
        &mut self.scheduler
    }

    fn connect(&mut self, epoch: u64, info: &WorkerInfo, now: Duration) -> Vec<Event> {
        // A stream that was opened beside a living one is the router's own doing.
        let mut events = self.lose(true, now);
        let limits = match limits(&self.config, info) {
            Ok(limits) => limits,
            Err(reason) => {
                self.fault = Some(Fault::Unsupported(reason));
                return events;
            }
        };
        let before = self.fingerprint.replace(info.fingerprint.clone());
        if before.is_some_and(|before| before != info.fingerprint) {
            events.extend(self.scheduler.end_waiting(|sequence| {
                let reason = "the model was replaced while this request was running";
                (sequence.num_output() > 0).then(|| FinishReason::Error(reason.to_owned()))
            }));
        }
        self.epoch = Some(epoch);
        self.scheduler.use_worker(limits, now);
        events
    }

    fn read(&mut self, output: &StepOutput, now: Duration) -> Vec<Event> {
        let expected = self.scheduler.oldest_step().map(|(step, _)| step);
        let is_epoch = self.epoch == Some(output.epoch);
        #[cfg(test)]
        let is_epoch = is_epoch || self.scheduler.planted == Some(PlantedBug::OldEpochBelieved);
        if !is_epoch || expected != Some(output.step) {
            self.ignored_outputs += 1;
            return Vec::new();
        }
        match self.scheduler.update(output, now) {
            Ok(events) => events,
            Err(reason) => {
                self.fault = Some(Fault::Broken(reason));
                self.lose(false, now)
            }
        }
    }

    fn lose(&mut self, is_planned: bool, now: Duration) -> Vec<Event> {
        if self.epoch.take().is_none() {
            return Vec::new();
        }
        self.no_worker_since = now;
        self.scheduler.lose_worker(is_planned, now)
    }

    /// Ends what has waited for a worker too long, each sequence from its own arrival on.
    fn give_up_waiting(&mut self, now: Duration) -> Vec<Event> {
        let since = self.no_worker_since;
        if self.epoch.is_some() || now.saturating_sub(since) < self.config.resume_timeout {
            return Vec::new();
        }
        let timeout = self.config.resume_timeout;
        self.scheduler.end_waiting(|sequence| {
            let waited = now.saturating_sub(since.max(sequence.added_at));
            let seconds = timeout.as_secs_f64();
            (waited >= timeout).then(|| {
                FinishReason::Error(format!("no worker became available within {seconds} s"))
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use millstream_proto::CacheGroup;

    use super::*;
    use crate::engine::{NewSequence, SamplingParams, SequenceId};

    const SECOND: Duration = Duration::from_secs(1);

    fn config() -> EngineConfig {
        EngineConfig {
            max_prefill_tokens: None,
            max_batch_size: 8,
            prefix_caching: true,
            resume_timeout: 30 * SECOND,
            step_timeout: 10 * SECOND,
        }
    }

    fn info() -> WorkerInfo {
        WorkerInfo {
            fingerprint: "a".to_owned(),
            max_model_len: 100,
            block_size: 4,
            max_slots: 16,
            max_batch_tokens: 64,
            timed_prefill_tokens: 32,
            cache_groups: vec![CacheGroup { num_blocks: 50, ..Default::default() }],
            world: 1,
            ..Default::default()
        }
    }

    fn add(id: u64, prompt_len: u32) -> Input {
        let sequence = NewSequence {
            prompt: (0..prompt_len).collect(),
            sampling: SamplingParams::default(),
            max_tokens: 10,
            stop_token_ids: Arc::new([]),
            seed: 0,
            choice: 0,
            cache_salt: None,
            prompt_logprobs: false,
            grammar: None,
        };
        Input::Command(Command::Add(SequenceId(id), Box::new(sequence)))
    }

    fn connected(epoch: u64, info: WorkerInfo) -> Input {
        Input::Connected { epoch, info: Arc::new(info) }
    }

    /// An engine with a worker of epoch 1.
    fn engine() -> EngineCore {
        let mut core = EngineCore::new(config());
        core.handle(connected(1, info()), Duration::ZERO);
        core
    }

    /// An output of one token for each row.
    fn output(step: &Step) -> Input {
        let rows = step.row_slot.len();
        let (epoch, step) = (step.epoch, step.step);
        let (row_count, tokens) = (vec![1; rows], vec![5; rows]);
        Input::Output(StepOutput { epoch, step, row_count, tokens, ..Default::default() })
    }

    fn reason(event: &Event) -> &str {
        match &event.finish {
            Some(FinishReason::Error(reason)) => reason,
            other => panic!("no error but {other:?}"),
        }
    }

    #[test]
    fn steps_carry_epoch_number_and_deadline() {
        let mut core = engine();
        core.handle(add(1, 3), Duration::ZERO);
        let step = core.next_step(Duration::ZERO).unwrap();
        assert_eq!((step.epoch, step.step, step.deadline_ms), (1, 1, 10_000));
    }

    #[test]
    fn without_a_worker_nothing_is_sent() {
        let mut core = EngineCore::new(config());
        assert!(core.handle(add(1, 3), Duration::ZERO).is_empty());
        assert!(core.next_step(Duration::ZERO).is_none());
        core.handle(connected(1, info()), Duration::ZERO);
        assert!(core.next_step(Duration::ZERO).is_some());
        core.handle(Input::Lost { is_planned: false }, Duration::ZERO);
        assert!(core.next_step(Duration::ZERO).is_none());
    }

    #[test]
    fn outputs_of_another_epoch_or_step_are_ignored_and_counted() {
        let mut core = engine();
        core.handle(add(1, 3), Duration::ZERO);
        let step = core.next_step(Duration::ZERO).unwrap();
        for wrong in [Step { epoch: 2, ..step.clone() }, Step { step: 2, ..step.clone() }] {
            assert!(core.handle(output(&wrong), Duration::ZERO).is_empty());
        }
        assert_eq!(core.handle(output(&step), Duration::ZERO).len(), 1);
        assert!(core.handle(output(&step), Duration::ZERO).is_empty());
        assert_eq!(core.stats().ignored_outputs, 3);
        assert_eq!(core.take_fault(), None);
    }

    #[test]
    fn a_worker_that_breaks_the_protocol_is_dropped_and_its_sequences_wait() {
        let mut core = engine();
        core.handle(add(1, 3), Duration::ZERO);
        let mut step = core.next_step(Duration::ZERO).unwrap();
        step.row_slot.push(7);
        assert!(core.handle(output(&step), Duration::ZERO).is_empty());
        assert!(matches!(core.take_fault(), Some(Fault::Broken(_))));
        assert!(!core.has_worker() && core.num_unfinished() == 1);
        core.handle(connected(2, info()), Duration::ZERO);
        assert_eq!(core.next_step(Duration::ZERO).unwrap().epoch, 2);
    }

    #[test]
    fn a_worker_that_cannot_be_used_is_a_fault_in_words() {
        let mut core = EngineCore::new(config());
        core.handle(connected(1, WorkerInfo { world: 2, ..info() }), Duration::ZERO);
        let Some(Fault::Unsupported(reason)) = core.take_fault() else { panic!("no fault") };
        assert!(reason.contains("one of 2 shards"), "{reason}");
        assert!(!core.has_worker());
    }

    #[test]
    fn on_another_model_only_what_has_no_output_goes_on() {
        let mut core = engine();
        core.handle(add(1, 3), Duration::ZERO);
        let step = core.next_step(Duration::ZERO).unwrap();
        core.handle(output(&step), Duration::ZERO);
        core.handle(add(2, 3), Duration::ZERO);
        core.handle(Input::Lost { is_planned: false }, Duration::ZERO);
        let other = WorkerInfo { fingerprint: "b".to_owned(), ..info() };
        let events = core.handle(connected(2, other), Duration::ZERO);
        assert_eq!((events.len(), events[0].id), (1, SequenceId(1)));
        assert!(reason(&events[0]).contains("replaced"));
        assert_eq!(core.next_step(Duration::ZERO).unwrap().row_slot.len(), 1);
    }

    #[test]
    fn each_sequence_waits_for_a_worker_as_long_as_allowed() {
        let mut core = engine();
        core.handle(add(1, 3), Duration::ZERO);
        core.handle(Input::Lost { is_planned: false }, 10 * SECOND);
        core.handle(add(2, 3), 15 * SECOND);
        assert!(core.handle(Input::Tick, 39 * SECOND).is_empty());
        let events = core.handle(Input::Tick, 40 * SECOND);
        assert_eq!((events.len(), events[0].id), (1, SequenceId(1)));
        assert_eq!(reason(&events[0]), "no worker became available within 30 s");
        assert_eq!(core.handle(Input::Tick, 45 * SECOND)[0].id, SequenceId(2));
        assert_eq!((core.num_unfinished(), core.take_left()), (0, 2));
    }

    #[test]
    fn every_sequence_leaves_once_by_an_event_or_an_abort() {
        let mut core = engine();
        let abort = || Input::Command(Command::Abort(SequenceId(1)));
        core.handle(add(1, 3), Duration::ZERO);
        core.handle(add(2, 100), Duration::ZERO);
        assert_eq!(core.take_left(), 1, "the second does not fit");
        core.handle(abort(), Duration::ZERO);
        core.handle(abort(), Duration::ZERO);
        assert_eq!((core.take_left(), core.take_left()), (1, 0));
    }

    #[test]
    fn the_deadline_of_a_step_begins_when_the_one_before_was_answered() {
        let mut core = engine();
        assert_eq!(core.oldest_step_deadline(), None);
        core.handle(add(1, 3), Duration::ZERO);
        let first = core.next_step(SECOND).unwrap();
        core.next_step(2 * SECOND).unwrap();
        assert_eq!(core.oldest_step_deadline(), Some(11 * SECOND));
        core.handle(output(&first), 5 * SECOND);
        assert_eq!(core.oldest_step_deadline(), Some(15 * SECOND));
    }
}
