//! What a worker runs: a real model, or the mock.
//!
//! A [`Model`] computes a batch while the caller waits; a device that runs by itself is a
//! [`Pipeline`](crate::Pipeline).

use std::time::Duration;

use millstream_proto::WorkerInfo;
use millstream_proto::row_error::Kind;

use crate::batch::Batch;
use crate::grammar::Grammars;

/// A model on its device, with its paged cache.
///
/// Batches come in the order of the steps, and every read of the cache goes through the batch's
/// block tables. A row's result depends on its own sequence only.
pub trait Model: Send {
    /// What this model serves, and the limits it was built for.
    fn info(&self) -> &WorkerInfo;

    /// Forgets all but the weights: a new epoch begins. The cache's memory need not be cleared,
    /// because no block is read before it is written.
    fn reset(&mut self);

    /// Computes the batch. One result per row, in order: `None` for a row that does not sample.
    fn forward(&mut self, batch: &Batch<'_>) -> Vec<RowResult>;

    /// Of the last `forward`: the log-probabilities that rows report of their prompts (see
    /// [`BatchRow::reported`](crate::BatchRow::reported)), each with the row's index, in the order
    /// of rows and positions. A row that failed has any number of them.
    fn take_prompt_logprobs(&mut self) -> Vec<(u32, SampledLogprobs)> {
        Vec::new()
    }

    /// What constrains its sequences; `None` if it cannot be constrained.
    fn grammars(&self) -> Option<&Grammars> {
        None
    }

    /// How much of the last `forward` was sampling, for the metrics.
    fn sample_time(&self) -> Duration {
        Duration::ZERO
    }

    /// Does one piece of what there is time for while no sequence is under way. Returns whether
    /// there was anything to do.
    fn idle(&mut self) -> bool {
        false
    }
}

/// What a row comes to: a token, if it samples.
pub type RowResult = Result<Option<SampledToken>, RowFailure>;

/// A token drawn from a row's logits.
#[derive(Clone, Debug, PartialEq)]
pub struct SampledToken {
    /// Its id, below the vocabulary's size.
    pub token: u32,
    /// Present if the sequence asked for it.
    pub logprobs: Option<SampledLogprobs>,
}

/// Natural logarithms of the model's own probabilities, before bias, temperature and truncation.
#[derive(Clone, Debug, PartialEq)]
pub struct SampledLogprobs {
    /// Of the sampled token, or of a prompt's.
    pub logprob: f32,
    /// The most likely tokens with theirs, most likely first, smallest id first among equals.
    pub top: Vec<(u32, f32)>,
}

/// Why a row has no result. Its sequence cannot go on; the others can.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct RowFailure {
    /// What kind of failure, for the router.
    pub kind: Kind,
    /// The failure in words, for the client or the log.
    pub message: String,
}

impl RowFailure {
    /// The logits are not numbers that can be sampled from.
    pub fn numeric(message: impl Into<String>) -> Self {
        RowFailure { kind: Kind::Numeric, message: message.into() }
    }

    /// The grammar cannot be used, or nothing satisfies it.
    pub fn grammar(message: impl Into<String>) -> Self {
        RowFailure { kind: Kind::Grammar, message: message.into() }
    }

    /// The step contradicts what the worker knows.
    pub fn protocol(message: impl Into<String>) -> Self {
        RowFailure { kind: Kind::Protocol, message: message.into() }
    }
}
