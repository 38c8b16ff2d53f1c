//! The router: HTTP in, steps out. Nothing here knows tensors or devices.

pub mod engine;
pub mod text;
