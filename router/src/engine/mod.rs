//! Tokens to steps: what runs when, in which blocks, on a worker that may die at any moment.
//!
//! A request enters as a [`NewSequence`] and comes back as [`Event`]s. In between the
//! [`Scheduler`](scheduler::Scheduler) pays its debt of tokens in steps, a `BlockManager` per cache
//! group knows which KV blocks hold what, the [`EngineCore`](core::EngineCore) adds epochs and the
//! life of a worker, and [`run`] is the only place that touches a socket or a clock.
//!
//! This module knows token ids, blocks and steps. It does not know text, HTTP or tensors.

mod blocks;
pub mod core;
mod groups;
pub mod handle;
mod limits;
pub mod run;
pub mod scheduler;
mod sequence;
#[cfg(test)]
mod simulation;
mod suspects;

use std::sync::Arc;
use std::time::Duration;

pub use handle::{Command, EngineHandle, EngineInbox, EngineState, SubmitError};
pub use millstream_proto::{Grammar, Sampling as SamplingParams};

/// One sequence, for the life of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId(pub u64);

/// What the engine needs to know to generate one choice of one request.
#[derive(Clone, Debug)]
pub struct NewSequence {
    /// The prompt; at least one token.
    pub prompt: Arc<[u32]>,
    /// How tokens are drawn.
    pub sampling: SamplingParams,
    /// Tokens to generate at most; at least 1, and prompt and output fit the model together.
    pub max_tokens: u32,
    /// A token of this list ends the sequence. It is reported with [`FinishReason::StopToken`].
    pub stop_token_ids: Arc<[u32]>,
    /// Randomness is a function of (seed, choice, absolute position).
    pub seed: u64,
    /// Index of the choice within its request.
    pub choice: u32,
    /// Prefix hits happen only between sequences of equal salt.
    pub cache_salt: Option<Arc<str>>,
    /// Whether the log-probabilities of the prompt's tokens are reported, from the second on, with as
    /// many alternatives as `sampling` asks for.
    pub prompt_logprobs: bool,
    /// What the output must satisfy.
    pub grammar: Option<Arc<Grammar>>,
}

/// Why a sequence ended.
#[derive(Clone, Debug, PartialEq)]
pub enum FinishReason {
    /// This stop token was sampled; it is the last token of the sequence.
    StopToken(u32),
    /// `max_tokens` were generated.
    Length,
    /// The sequence cannot go on; the text says why and is fit for the client.
    Error(String),
}

/// News of one sequence: tokens, perhaps the end. Nothing follows an event with `finish`.
#[derive(Clone, Debug)]
pub struct Event {
    /// Whom it concerns.
    pub id: SequenceId,
    /// Tokens in order, one or several; empty only together with `finish`, `prompt_logprobs` or the
    /// first event.
    pub tokens: Vec<u32>,
    /// One entry per token where the sequence asked for log-probabilities, else empty.
    pub logprobs: Vec<TokenLogprobs>,
    /// Where they were asked for: of the prompt's next tokens; the first of all is the second
    /// token's. All of them come before the first token.
    pub prompt_logprobs: Vec<TokenLogprobs>,
    /// On the first event of the sequence: prompt tokens that came from the prefix cache.
    pub cached_tokens: Option<u32>,
    /// On the first event of the sequence: how long it waited for its first step.
    pub waited: Option<Duration>,
    /// Present on the last event.
    pub finish: Option<FinishReason>,
}

/// Log-probabilities at one position, natural logarithms.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// Of the token that stands there.
    pub logprob: f32,
    /// The most likely tokens, most likely first; as many as were asked for.
    pub top: Vec<(u32, f32)>,
}
