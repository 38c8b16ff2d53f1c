//! Mixture of experts on the GPU: as on the CPU ([`super`]), with nothing that the host has to
//! read.
//!
//! ```text
//! logits   = linear(x, router)             [T, E] f32
//! route(logits)                            experts, weights [T, top_k]
//! grouping.fill(experts)                   rows by expert, and the tiles of rows of one expert
//! y        = linear(x, gathered)           [T * top_k, N]: row r is that of token_of_row[r]
//! y        = linear(gated(y), as it is)    [T * top_k, hidden]
//! out      = combine(y, weights)           [T, hidden]
//! ```
//!
//! How many blocks are launched depends on T, `top_k` and `E` alone; how many rows an expert has is
//! read by the kernels. So all of it can be recorded. A token that is padding has no rows, and
//! costs nothing but its route.
//!
//! The bits of a token's result depend on the token alone: its sums run in one order in tiles of
//! any size, and its experts' results are added up in the order of its route.

mod combine;
mod group;
mod linear;
mod route;
#[cfg(test)]
mod tests;

pub use combine::combine;
pub use group::{Grouping, Shape};
pub use linear::{Experts, Rows, linear};
pub use route::{Router, route};
