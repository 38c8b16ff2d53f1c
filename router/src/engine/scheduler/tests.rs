//! What the scheduler does, step by step.
//!
//! A step is written as one line: `id start+len` per row, `id ...+len` for a row that continues
//! where the worker is, `!id` for a preemption, `-slot` for a release.

mod losses;
mod outputs;
mod planning;
mod prefixes;
mod windows;

use std::sync::Arc;

use millstream_proto::{CONTINUE, Logprobs, RowError, Step, StepOutput, row_error::Kind};

use super::*;
use crate::engine::{SamplingParams, TokenLogprobs};

const NOW: Duration = Duration::ZERO;

fn limits(max_batch_tokens: u32, num_blocks: u32) -> Limits {
    Limits {
        max_batch_tokens,
        max_prefill_tokens: max_batch_tokens,
        max_slots: 8,
        block_size: 4,
        groups: vec![GroupLimits { num_blocks, window: None }],
        max_model_len: 1000.min(num_blocks * 4),
        prefix_caching: true,
    }
}

/// A prompt of `len` tokens that shares nothing with those of other ids.
fn prompt(id: u64, len: usize) -> (u64, NewSequence) {
    (id, request((0..len as u32).map(|token| 1000 * id as u32 + token).collect()))
}

fn request(prompt: Vec<u32>) -> NewSequence {
    NewSequence {
        prompt: prompt.into(),
        sampling: SamplingParams::default(),
        max_tokens: 100,
        stop_token_ids: Arc::new([]),
        seed: 0,
        choice: 0,
        cache_salt: None,
        prompt_logprobs: false,
        grammar: None,
    }
}

struct Harness {
    scheduler: Scheduler,
    /// The token that the next sampled one will be.
    token: u32,
}

impl Harness {
    fn new(limits: Limits, requests: Vec<(u64, NewSequence)>) -> Self {
        let mut scheduler = Scheduler::new(limits);
        for (id, request) in requests {
            scheduler.add(SequenceId(id), request, NOW);
        }
        Harness { scheduler, token: 1 }
    }

    fn running(&self) -> Vec<u64> {
        let running = self.scheduler.running.iter();
        running.map(|&index| self.scheduler.sequences.get(index).id.0).collect()
    }

    fn schedule(&mut self) -> Option<Step> {
        let step = self.scheduler.schedule(NOW);
        self.scheduler.check_integrity().unwrap();
        step
    }

    /// Sends the next step; "" if there is none.
    fn send(&mut self) -> String {
        let before = self.running();
        let Some(step) = self.schedule() else { return String::new() };
        let after = self.running();
        let preempted = before.iter().filter(|id| !after.contains(id)).map(|id| format!("!{id}"));
        let rows = &self.scheduler.in_flight.back().unwrap().rows;
        let rows =
            rows.iter().zip(&step.row_start).zip(&step.row_len).map(|((row, start), len)| {
                match *start {
                    CONTINUE => format!("{} ...+{len}", row.id.0),
                    start => format!("{} {start}+{len}", row.id.0),
                }
            });
        preempted.chain(rows).collect::<Vec<_>>().join(", ")
    }

    /// An output that gives every row what it asks for.
    fn output(&mut self) -> StepOutput {
        let plan = self.scheduler.in_flight.front().unwrap();
        let row_count: Vec<u32> = plan.rows.iter().map(|row| u32::from(row.samples)).collect();
        let num_tokens: u32 = row_count.iter().sum();
        let tokens = (self.token..self.token + num_tokens).collect();
        self.token += num_tokens;
        StepOutput { step: plan.step, row_count, tokens, ..Default::default() }
    }

    fn answer(&mut self) -> Vec<Event> {
        let output = self.output();
        self.answer_with(&output)
    }

    fn answer_with(&mut self, output: &StepOutput) -> Vec<Event> {
        let events = self.scheduler.update(output, NOW).unwrap();
        self.scheduler.check_integrity().unwrap();
        events
    }

    /// Runs one step from end to end.
    fn step(&mut self) -> String {
        let line = self.send();
        if !self.scheduler.in_flight.is_empty() {
            self.answer();
        }
        line
    }
}

#[track_caller]
fn check(limits: Limits, requests: Vec<(u64, NewSequence)>, expected: &str) {
    let mut harness = Harness::new(limits, requests);
    let found: Vec<String> = expected.lines().map(|_| harness.step()).collect();
    assert_eq!(found.join("\n"), expected);
}
