//! The whole system, as its users meet it: the real executable, its demo model, HTTP.
//!
//! Every test starts servers of its own on free ports. Nothing waits for a fixed time: conditions
//! are asked for until they hold, with a deadline that only a failure meets.

#![allow(clippy::unwrap_used)] // what is not there fails the test, in helpers as well

mod command_line;
mod common;
mod determinism;
mod environment;
mod failures;
mod gguf;
mod hub;
mod sampling;
mod serving;
mod tgi;
