//! Paged attention on the GPU: the formula of [`super`], over a cache of another order.
//!
//! A layer's cache is two arrays `[N, K, B, D]`, of the dtype of queries and result: the keys, or
//! values, of a block and a head lie together. Position j of the sequence in slot s lies in block
//! `tables[s, j / B]`, at offset `j % B`.
//!
//! - [`decode()`] is for rows with one query each, in halves, of the head sizes of most models;
//! - [`prefill()`] is for rows with any number of queries each, in the same types and head sizes;
//! - [`simple()`] is for whatever else there is: any head size, f32, decode and chunks alike.
//!
//! Slots, lengths and tables lie on the device and change from step to step, so they cannot be
//! checked here: whoever writes them there answers for it that slots, the tokens and the blocks
//! that a query sees exist. What no query sees is not read: not a table's entry, not a position.

mod decode;
mod plan;
mod prefill;
mod simple;
#[cfg(test)]
mod tests;

pub use decode::{decode, takes, workspace_bytes};
pub use plan::{DecodeRows, Plan};
pub use prefill::{ChunkRows, TILE_QUERIES, prefill};
pub use simple::{TokenRows, simple};

use candle_core::DType;

use crate::cuda::{Array, check};
use crate::{KernelError, Result};

/// What is no row, slot or partial sum.
pub const PAD: u32 = u32::MAX;

/// The attention of a layer to the tokens of a step.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    /// The queries.
    pub q: Queries<'a>,
    /// The layer's keys and values, those of the step among them.
    pub cache: Cache<'a>,
    /// What the layer says.
    pub params: Params<'a>,
    /// `[T, H, D]`: where the result goes.
    pub out: &'a Array,
}

/// The queries of a step, as part of the projections or by themselves.
#[derive(Clone, Copy, Debug)]
pub struct Queries<'a> {
    /// `[T, H, D]`: those of token t begin at element `t * stride`.
    pub values: &'a Array,
    /// Elements from one token to the next.
    pub stride: usize,
    /// `H`.
    pub heads: usize,
    /// `D`.
    pub head_size: usize,
}

/// The cache of a layer.
#[derive(Clone, Copy, Debug)]
pub struct Cache<'a> {
    /// `[N, K, B, D]`.
    pub k: &'a Array,
    /// `[N, K, B, D]`.
    pub v: &'a Array,
    /// `K`.
    pub kv_heads: usize,
    /// `B`, a multiple of 16.
    pub block_size: usize,
    /// `[max_slots, max_blocks]` u32: the blocks of each slot.
    pub tables: &'a Array,
    /// How many blocks a slot may have.
    pub max_blocks: usize,
}

/// What a layer says about its attention, as [`super::AttentionParams`].
#[derive(Clone, Copy, Debug)]
pub struct Params<'a> {
    /// What the scores are multiplied with.
    pub scale: f32,
    /// How many positions a query sees, its own counted in; all if there is none. Not 0.
    pub window: Option<u32>,
    /// The bound of the scores; above 0.
    pub softcap: Option<f32>,
    /// `[H]` f32: a logit per query head that adds no value.
    pub sinks: Option<&'a Array>,
}

impl Attention<'_> {
    /// Checks all that lies on the host; gives the number of tokens.
    fn check(&self) -> Result<usize> {
        let Self { q, cache, params, out } = self;
        let (dtype, token) = (q.values.dtype(), q.heads * q.head_size);
        check::suffix(q.values, "q")?;
        let tokens = out.len().checked_div(token).unwrap_or(0);
        check::shape(out, "out", dtype, &[tokens, q.heads, q.head_size])?;
        let last = tokens.saturating_sub(1) * q.stride + token.min(out.len());
        if q.values.len() < last || (tokens > 1 && q.stride < token) {
            let expected = format!("{tokens}, {}, {}, rows {}", q.heads, q.head_size, q.stride);
            let found = vec![q.values.len()];
            return Err(KernelError::Shape { argument: "q", expected, found });
        }
        if cache.kv_heads == 0 || !q.heads.is_multiple_of(cache.kv_heads) {
            let rule = format!("a multiple of {} kv heads", cache.kv_heads);
            return Err(value("heads", &rule, q.heads));
        }
        if cache.block_size == 0 || !cache.block_size.is_multiple_of(16) {
            return Err(value("block_size", "a multiple of 16", cache.block_size));
        }
        let block = cache.kv_heads * cache.block_size * q.head_size;
        let blocks = cache.k.len().checked_div(block).unwrap_or(0);
        let shape = [blocks, cache.kv_heads, cache.block_size, q.head_size];
        check::shape(cache.k, "cache_k", dtype, &shape)?;
        check::shape(cache.v, "cache_v", dtype, &shape)?;
        let slots = cache.tables.len().checked_div(cache.max_blocks).unwrap_or(0);
        check::shape(cache.tables, "tables", DType::U32, &[slots, cache.max_blocks])?;
        check::count("positions", cache.max_blocks * cache.block_size + 16)?;
        params.check(q.heads)?;
        Ok(tokens)
    }
}

impl Params<'_> {
    fn check(&self, heads: usize) -> Result<()> {
        if let Some(sinks) = self.sinks {
            check::shape(sinks, "sinks", DType::F32, &[heads])?;
        }
        if self.window == Some(0) {
            return Err(value("window", "at least 1", 0));
        }
        match self.softcap {
            Some(cap) if cap.is_nan() || cap <= 0.0 => Err(value("softcap", "above 0", cap)),
            _ => Ok(()),
        }
    }

    /// The window as kernels take it: 0 is none, and one beyond all positions sees all.
    fn window(&self) -> i32 {
        window(self.window)
    }
}

/// See [`Params::window`].
fn window(window: Option<u32>) -> i32 {
    window.map_or(0, |window| i32::try_from(window).unwrap_or(i32::MAX))
}

/// `argument` breaks `rule`.
#[allow(clippy::needless_pass_by_value, reason = "numbers and texts at hand")]
fn value(argument: &'static str, rule: &str, found: impl ToString) -> KernelError {
    KernelError::Value { argument, rule: rule.to_owned(), found: found.to_string() }
}
