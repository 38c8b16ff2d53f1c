//! What comes back of the batches in flight, and how long they took on the device.

use super::sampler;
use crate::pipeline::Computed;
use crate::{Batch, RowFailure};
use millstream_kernels::cuda::{Array, CudaError, Event, Gpu, Incoming};
use millstream_kernels::sampling::OUTCOME_WORDS;
use std::time::Duration;

/// Where a batch's outcomes arrive; two of them take turns.
#[derive(Debug)]
pub(crate) struct Return {
    outcomes: Incoming,
    pub(crate) begun: Event,
    pub(crate) computed: Event,
    pub(crate) done: Event,
}

/// A batch in flight: what its outcomes mean.
#[derive(Debug, Default)]
pub(crate) struct Flight {
    rows: Vec<FlightRow>,
    /// Rows that have an outcome.
    pub(crate) sampled: usize,
    /// The rows of scored prompt tokens, in the order of their outcomes, behind those that sampled.
    pub(crate) scored: Vec<u32>,
    /// Rows that failed on the host, by their numbers among those that sample.
    pub(crate) failed: Vec<(usize, RowFailure)>,
}

#[derive(Clone, Copy, Debug)]
struct FlightRow {
    samples: bool,
    wants_logprobs: bool,
    is_constrained: bool,
}

impl Flight {
    /// Of a batch whose rows `scored` report of their prompts, once for each token.
    pub(crate) fn of(batch: &Batch<'_>, scored: Vec<u32>) -> Self {
        let row = |row: &crate::BatchRow<'_>| FlightRow {
            samples: row.sample,
            wants_logprobs: row.sequence.sampling.logprobs.is_some(),
            is_constrained: row.sequence.grammar.is_some(),
        };
        let rows: Vec<FlightRow> = batch.rows.iter().map(row).collect();
        let sampled = rows.iter().filter(|row| row.samples).count();
        Flight { rows, sampled, scored, failed: Vec::new() }
    }

    /// Rows of outcomes.
    pub(crate) fn outcomes(&self) -> usize {
        self.sampled + self.scored.len()
    }
}

impl Return {
    /// Room for the outcomes of `rows` rows.
    pub(crate) fn new(gpu: &Gpu, rows: usize) -> Result<Self, CudaError> {
        Ok(Return {
            outcomes: Incoming::new(gpu, rows * OUTCOME_WORDS * size_of::<u32>())?,
            begun: Event::timed(gpu)?,
            computed: Event::timed(gpu)?,
            done: Event::timed(gpu)?,
        })
    }

    /// Has the outcomes copied here, and marks the end of the batch.
    pub(crate) fn receive(&mut self, outcomes: &Array) -> Result<(), CudaError> {
        if !outcomes.is_empty() {
            self.outcomes.receive(outcomes)?;
        }
        self.done.record()
    }

    /// Waits for the batch, and reads what it came to.
    pub(crate) fn read(&self, flight: Flight) -> Result<Computed, CudaError> {
        self.done.wait()?;
        let bytes = self.outcomes.wait()?;
        let words = bytes.as_chunks::<4>().0.iter().map(|word| u32::from_ne_bytes(*word));
        let words: Vec<u32> = words.take(flight.outcomes() * OUTCOME_WORDS).collect();
        let mut outcomes = words.chunks_exact(OUTCOME_WORDS);
        let mut failed = flight.failed.into_iter().peekable();
        let mut number = 0..;
        let mut results = Vec::with_capacity(flight.rows.len());
        for row in flight.rows {
            if !row.samples {
                results.push(Ok(None));
                continue;
            }
            let (number, outcome) = (number.next(), outcomes.next());
            let failure = failed.next_if(|(row, _)| Some(*row) == number);
            results.push(match (failure, outcome) {
                (Some((_, failure)), _) => Err(failure),
                (None, Some(words)) => {
                    sampler::sampled(words, row.wants_logprobs, row.is_constrained).map(Some)
                }
                (None, None) => unreachable!("an outcome for each row that samples"),
            });
        }
        let mut prompt_logprobs = Vec::new();
        for (row, words) in flight.scored.into_iter().zip(outcomes) {
            match sampler::scored(words) {
                Ok(logprobs) => prompt_logprobs.push((row, logprobs)),
                Err(failure) => results[row as usize] = Err(failure),
            }
        }
        Ok(Computed {
            results,
            prompt_logprobs,
            forward_time: ms(self.computed.ms_since(&self.begun)?),
            sample_time: ms(self.done.ms_since(&self.computed)?),
        })
    }
}

fn ms(ms: f32) -> Duration {
    Duration::from_secs_f32(ms.max(0.0) / 1e3)
}
