//! Steps in, outputs out: the worker without its sockets.
//!
//! Synchronous, one step at a time, in the order given. The engine thread drives it; so does the
//! scheduler's simulation.

mod memory;

use std::time::Instant;

use millstream_proto::{Logprobs, RowError, Step, StepOutput, StepTimings, WorkerInfo};

use self::memory::FreeMemory;
use crate::model::{Model, RowFailure, SampledLogprobs, SampledToken};
use crate::slots::{RowPlan, Slots};

/// A model and the sequences that it runs.
#[derive(Debug)]
pub struct Executor<M> {
    model: M,
    slots: Slots,
    epoch: u64,
    free_memory: FreeMemory,
}

impl<M: Model> Executor<M> {
    /// An executor without sequences, in epoch 0, which no stream has.
    pub fn new(model: M) -> Self {
        let slots = Slots::new(model.info(), model.grammars().cloned());
        Executor { model, slots, epoch: 0, free_memory: FreeMemory::default() }
    }

    /// What the model serves.
    pub fn info(&self) -> &WorkerInfo {
        self.model.info()
    }

    /// The epoch begun last.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Begins an epoch: forgets every sequence, keeps the weights.
    pub fn reset(&mut self, epoch: u64) {
        self.epoch = epoch;
        self.slots.clear();
        self.model.reset();
    }

    /// Runs one step. Whether its epoch is the present one is for the caller to check.
    pub fn execute(&mut self, step: Step) -> StepOutput {
        let begun = Instant::now();
        let mut output = StepOutput { epoch: step.epoch, step: step.step, ..Default::default() };
        let plans = self.slots.apply(step);
        let batch = self.slots.batch(&plans);
        let forward_begun = Instant::now();
        // A step may only release sequences: then there is nothing for the model to do.
        let mut results = match batch.rows.is_empty() {
            true => Vec::new(),
            false => self.model.forward(&batch),
        };
        assert_eq!(results.len(), batch.rows.len(), "a model returns one result per row");
        let forward = forward_begun.elapsed();
        let scored = self.model.take_prompt_logprobs();
        if !scored.is_empty() {
            output.prompt_logprobs = Some(pack_by_row(&plans, &scored));
        }
        let mut results = results.drain(..);
        for (row, plan) in plans.into_iter().enumerate() {
            let result = match plan {
                RowPlan::Ended => Ok(None),
                RowPlan::Failed(failure) => Err(failure),
                RowPlan::Run { slot, start, len, sample } => {
                    let result = results.next().expect("every planned row was computed");
                    let token = result.as_ref().map(|sampled| sampled.as_ref().map(|s| s.token));
                    assert!(
                        token.is_err() || token == Ok(None) || sample,
                        "only asked rows sample"
                    );
                    self.slots.finish(slot, start + len, token);
                    result
                }
            };
            report(&mut output, row as u32, result);
        }
        let sample =
            if output.tokens.is_empty() { Default::default() } else { self.model.sample_time() };
        output.timings = Some(StepTimings {
            forward_us: forward.saturating_sub(sample).as_micros() as u32,
            sample_us: sample.as_micros() as u32,
            total_us: begun.elapsed().as_micros() as u32,
        });
        output.free_memory_bytes = self.free_memory.bytes();
        output
    }
}

/// Appends one row's result to the output.
fn report(output: &mut StepOutput, row: u32, result: Result<Option<SampledToken>, RowFailure>) {
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
        .filter_map(|(row, plan)| matches!(plan, RowPlan::Run { .. }).then_some(row))
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
