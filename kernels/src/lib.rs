//! The operations that a decoder is made of, as functions on candle tensors.
//!
//! One folder per operation: `mod.rs` holds the mathematics, the contract and one checked dispatch,
//! `reference.rs` a plain version that is right at first sight (tests only), `cpu.rs` the fast one.
//! With the feature `cuda`, `cuda.rs` is the checked launch of the operation on a GPU, over arrays in
//! the device's memory, and the kernel itself is the `.cu` beside it; what they are made of is in
//! `cuda`.
//!
//! What holds for all of them on the processor (on a GPU activations have the dtype of the weights
//! between operations, and the residual stream is f32):
//! - activations are f32; weights and caches are f32, f16 or bf16 and stay in their dtype, but for
//!   matrices that [`linear`] is asked to keep in 8 or 4 bits (what it and [`paged_attention`] do to
//!   activations before they multiply them is their own affair);
//! - a row of the result depends on that row of the input alone, to the last bit: not on how many
//!   rows there are, not on its neighbours, not on the number of threads. So sums run in one fixed
//!   order for every batch size, and tiles are cut by absolute position;
//! - where rows are said to be strided, only the first dimension may be (a slice of a fused
//!   projection is taken as it is); any other layout is an error, never a silent misreading;
//! - a wrong shape, dtype, layout, device or index is a [`KernelError`] that names the argument.
//!
//! Which instructions run is decided once per process, so results may differ in the last bits
//! between a processor with fused multiply-add and one without, and by the rounding of activations
//! to bf16 between one that multiplies bf16 and one that does not, never between two runs on the
//! same one. Products with quantised weights are the same on all that fuse.
//!
//! Letters in shapes: `T` tokens, `H` heads, `K` kv heads, `D` head size, `N` blocks, `B` block
//! size. This crate knows arrays; it does not know models, sequences or steps.

pub mod activation;
pub mod add;
#[cfg(feature = "cuda")]
pub mod cuda;
mod dot;
mod element;
pub mod embedding;
mod error;
pub mod heads;
pub mod kv_cache;
pub mod layer_norm;
pub mod linear;
pub mod logits;
pub mod moe;
pub mod norm;
pub mod paged_attention;
mod parallel;
pub mod peak;
pub mod residual;
pub mod rms_norm;
pub mod rope;
pub mod rows;
#[cfg(feature = "cuda")]
pub mod sampling;
mod scratch;
mod simd;
#[cfg(feature = "cuda")]
pub mod step;
#[cfg(test)]
mod testing;
pub mod threads;
mod view;

pub use error::KernelError;
pub use simd::instruction_set;
pub use view::empty;

/// What every operation of this crate returns.
pub type Result<T> = std::result::Result<T, KernelError>;
