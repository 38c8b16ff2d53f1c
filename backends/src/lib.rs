//! The worker: steps in, tokens out.
//!
//! The gRPC edge ([`serve`]) hands the steps of one router to one engine thread. There an
//! [`Executor`] keeps the [`slots`] (what runs, and where in the cache it lies), turns each step
//! into one flat ragged [`Batch`], and gives it to a [`Pipeline`]: two batches overlap where a
//! device runs by itself, and a [`Model`] computes each at once. It is a real model, or the
//! [`mock`], which is instant and notices every wrong block.
//!
//! A worker knows tokens, blocks and models. It knows neither HTTP nor text.

pub mod batch;
pub mod candle;
mod engine;
mod error;
pub mod executor;
pub mod gguf;
pub mod grammar;
pub mod mock;
pub mod model;
pub mod pipeline;
pub mod progress;
pub mod sampling;
mod server;
pub mod slots;
pub mod source;

pub use batch::{Batch, BatchRow};
pub use error::{LoadError, WorkerError};
pub use executor::Executor;
pub use millstream_kernels::{instruction_set, threads};
pub use model::{Model, RowFailure, RowResult, SampledLogprobs, SampledToken};
pub use pipeline::{Computed, Immediate, Pipeline};
pub use progress::Progress;
pub use sampling::{Sampler, SamplingParams};
pub use server::serve;
pub use slots::Sequence;
pub use source::ModelSource;
