//! Steps in, outputs out: the worker without its sockets.
//!
//! Synchronous. Steps are begun in the order given and finished in the same order, as many ahead
//! as the [`Pipeline`] allows; what a step comes to does not depend on how far ahead it was begun.
//! The engine thread drives it; so does the scheduler's simulation.

mod memory;

use std::collections::VecDeque;
use std::time::Instant;

use millstream_proto::{Logprobs, RowError, Step, StepOutput, StepTimings, WorkerInfo};

use self::memory::FreeMemory;
use crate::batch::BatchRow;
use crate::model::{RowFailure, RowResult, SampledLogprobs, SampledToken};
use crate::pipeline::{Computed, Pipeline};
use crate::slots::{RowPlan, Slots};

/// A model and the sequences that it runs.
#[derive(Debug)]
pub struct Executor<P> {
    pipeline: P,
    slots: Slots,
    epoch: u64,
    /// Earliest first.
    in_flight: VecDeque<StepInFlight>,
    /// Outputs that were not asked for yet, of steps before those in flight.
    finished: VecDeque<StepOutput>,
    free_memory: FreeMemory,
}

/// A step whose batch the pipeline has.
#[derive(Debug)]
struct StepInFlight {
    begun_at: Instant,
    epoch: u64,
    step: u64,
    plans: Vec<RowPlan>,
}

impl StepInFlight {
    /// Whether there is a batch to compute. A step may only release sequences.
    fn has_batch(&self) -> bool {
        self.plans.iter().any(|plan| matches!(plan, RowPlan::Run(_)))
    }
}

impl<P: Pipeline> Executor<P> {
    /// An executor without sequences, in epoch 0, which no stream has.
    pub fn new(pipeline: P) -> Self {
        Executor {
            slots: Slots::new(pipeline.info(), pipeline.grammars().cloned()),
            pipeline,
            epoch: 0,
            in_flight: VecDeque::new(),
            finished: VecDeque::new(),
            free_memory: FreeMemory::default(),
        }
    }

    /// What the model serves.
    pub fn info(&self) -> &WorkerInfo {
        self.pipeline.info()
    }

    /// The epoch begun last.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Begins an epoch: forgets every sequence and what is in flight, keeps the weights.
    pub fn reset(&mut self, epoch: u64) {
        self.epoch = epoch;
        self.in_flight.clear();
        self.finished.clear();
        self.slots.clear();
        self.pipeline.reset();
    }

    /// Steps that may be in flight.
    pub fn depth(&self) -> usize {
        self.pipeline.depth()
    }

    /// Steps that were begun and not finished.
    pub fn in_flight(&self) -> usize {
        self.finished.len() + self.in_flight.len()
    }

    /// Begins one step; fewer than [`depth`](Self::depth) may be in flight. Whether its epoch is the
    /// present one is for the caller to check.
    pub fn begin(&mut self, step: Step) {
        assert!(self.in_flight() < self.depth(), "no more steps are in flight than may be");
        let begun_at = Instant::now();
        let (epoch, number) = (step.epoch, step.step);
        let plans = self.slots.apply(step);
        let batch = self.slots.batch(&plans);
        if !batch.rows.is_empty() {
            self.pipeline.begin(&batch);
            if batch.rows.iter().any(needs_all_before) {
                while let Some(output) = self.finish_earliest() {
                    self.finished.push_back(output);
                }
                self.pipeline.sample(&self.slots.batch(&plans));
            } else {
                self.pipeline.sample(&batch);
            }
        }
        self.in_flight.push_back(StepInFlight { begun_at, epoch, step: number, plans });
    }

    /// Whether [`finish`](Self::finish) does not wait. A step must be in flight.
    pub fn is_done(&self) -> bool {
        let is_done = |step: &StepInFlight| !step.has_batch() || self.pipeline.is_done();
        !self.finished.is_empty() || self.in_flight.front().is_some_and(is_done)
    }

    /// Waits for the earliest step in flight, of which there must be one.
    pub fn finish(&mut self) -> StepOutput {
        let output = self.finished.pop_front().or_else(|| self.finish_earliest());
        output.expect("a step is in flight")
    }

    /// Begins and finishes one step, while no other is in flight.
    pub fn execute(&mut self, step: Step) -> StepOutput {
        assert_eq!(self.in_flight(), 0, "an output is of the step that was begun last");
        self.begin(step);
        self.finish()
    }

    /// Lets the pipeline do a piece of what there is time for while no sequence is under way, whose
    /// next step would have to wait for it. Returns whether there was anything to do.
    pub fn idle(&mut self) -> bool {
        self.slots.is_empty() && self.pipeline.idle()
    }

    /// Waits for the earliest step that the pipeline has; `None` if it has none.
    fn finish_earliest(&mut self) -> Option<StepOutput> {
        let earliest = self.in_flight.pop_front()?;
        let computed = match earliest.has_batch() {
            true => self.pipeline.finish(),
            false => Computed::default(),
        };
        let StepInFlight { begun_at, epoch, step, plans } = earliest;
        let mut output = StepOutput { epoch, step, ..Default::default() };
        if !computed.prompt_logprobs.is_empty() {
            output.prompt_logprobs = Some(pack_by_row(&plans, &computed.prompt_logprobs));
        }
        let mut results = computed.results.into_iter();
        for (row, plan) in (0..).zip(plans) {
            let result = match plan {
                RowPlan::Ended => Ok(None),
                RowPlan::Failed(failure) => Err(failure),
                RowPlan::Run(planned) => {
                    let result = results.next().expect("a pipeline gives one result per row");
                    self.slots.finish(planned, result)
                }
            };
            report(&mut output, row, result);
        }
        assert!(results.next().is_none(), "a pipeline gives one result per row");
        output.timings = Some(StepTimings {
            forward_us: computed.forward_time.as_micros() as u32,
            sample_us: computed.sample_time.as_micros() as u32,
            total_us: begun_at.elapsed().as_micros() as u32,
        });
        output.free_memory_bytes = self.free_memory.bytes();
        Some(output)
    }
}

/// Whether a row's token can be sampled only when every token before it is known: the grammar's
/// matcher reads them on the host.
fn needs_all_before(row: &BatchRow<'_>) -> bool {
    let is_constrained = row.sample && row.sequence.grammar.is_some();
    is_constrained && row.end() > row.sequence.tokens.len()
}

/// Appends one row's result to the output.
fn report(output: &mut StepOutput, row: u32, result: RowResult) {
    let sampled = match result {
        Ok(sampled) => sampled,
        Err(RowFailure { kind, message }) => {
            output.row_error.push(RowError { row, kind: kind.into(), message });
            None
        }
    };
    output.row_count.push(u32::from(sampled.is_some()));
    let Some(SampledToken { token, logprobs }) = sampled else { return };
    if let Some(logprobs) = logprobs {
        pack(output.logprobs.get_or_insert_default(), output.tokens.len() as u32, &logprobs);
    }
    output.tokens.push(token);
}

/// What rows of the batch report of their prompts, under the rows' places in the step.
fn pack_by_row(plans: &[RowPlan], scored: &[(u32, SampledLogprobs)]) -> Logprobs {
    let rows: Vec<u32> = (0..)
        .zip(plans)
        .filter_map(|(row, plan)| matches!(plan, RowPlan::Run(_)).then_some(row))
        .collect();
    let mut packed = Logprobs::default();
    for (index, logprobs) in scored {
        pack(&mut packed, rows[*index as usize], logprobs);
    }
    packed
}

/// Appends the log-probabilities of one position.
fn pack(packed: &mut Logprobs, index: u32, SampledLogprobs { logprob, top }: &SampledLogprobs) {
    packed.index.push(index);
    packed.logprob.push(*logprob);
    packed.top_count.push(top.len() as u32);
    packed.top_token.extend(top.iter().map(|(token, _)| *token));
    packed.top_logprob.extend(top.iter().map(|(_, logprob)| *logprob));
}

#[cfg(test)]
mod tests;
