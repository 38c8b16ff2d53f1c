//! The load tester behind `millstream bench`: a closed loop of streams over HTTP.
//!
//! [`run`] keeps a number of streams busy against any server with OpenAI's API and measures what a
//! client sees. Time is taken when bytes arrive; per token it looks for line ends and for one key,
//! and parses no JSON, so that on a shared machine it takes little from the server it measures.
//!
//! [`Turns`] holds conversations of two turns, and measures what reuse of the first one's keys and
//! values is worth.
//!
//! This crate knows a URL. It knows nothing of what is behind it.

mod client;
mod load;
mod prefix;
mod prompts;
mod report;
mod sse;

pub use load::{Endpoint, Load, run};
pub use prefix::{SecondTurn, Turns};
pub use report::{Distribution, Report};
