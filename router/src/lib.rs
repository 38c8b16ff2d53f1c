//! The router: HTTP in, steps out.
//!
//! A request walks one way: `api` parses and validates it, [`text`] renders and encodes it,
//! [`engine`] pays for its tokens in steps on a worker, and [`generate`] is the one place where
//! the three meet. Nothing here knows tensors or devices.
//!
//! [`serve()`] is the way in.

mod api;
pub mod engine;
pub mod generate;
pub mod metrics;
mod serve;
mod starting;
#[cfg(test)]
mod testing;
pub mod text;

pub use api::config::{Deployment, OnReady, RequestLimits, RouterConfig};
pub use api::cors::{InvalidOrigin, Origin};
pub use engine::core::EngineConfig;
pub use engine::run::WorkerLink;
pub use serve::{RouterError, serve};
pub use starting::{Reason, while_starting};
