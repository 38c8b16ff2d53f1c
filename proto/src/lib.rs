//! The conversation between the router and a worker shard, as generated from `worker.proto`.
//!
//! The comments of the protocol file are the documentation of these types. This crate knows
//! nothing of either side; it adds only the names of a few constants and limits that both sides
//! must agree on.

#![allow(missing_docs, clippy::pedantic, unreachable_pub)] // generated code

tonic::include_proto!("millstream.worker.v1");

/// `Step::row_start` of a row that continues where the worker is.
pub const CONTINUE: u32 = u32::MAX;

/// `Step::new_block` of a place in a block table that holds no block: it lies behind the window of
/// its cache group, for every row to come.
pub const NO_BLOCK: u32 = u32::MAX;

/// The largest message either side accepts, in bytes: a failover brings hundreds of sequences back
/// at once.
pub const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// Steps that may be in flight: sent, and not yet answered.
pub const MAX_STEPS_IN_FLIGHT: usize = 2;

/// Biases of one sequence.
pub const MAX_BIASES: usize = 1024;

/// Stop tokens of one sequence: those that a request names, and those that end the model's texts.
pub const MAX_STOP_TOKENS: usize = 256;

/// Name under which the worker reports itself to `grpc.health.v1`.
pub const HEALTH_SERVICE: &str = "millstream.worker.v1.Worker";
