//! Causal attention of ragged rows over a paged cache.
//!
//! Query i of a row with n queries sits at position `p = context_len - n + i`. For its head h,
//! which reads kv head `h / (H / K)`:
//!
//! ```text
//! s[j]   = softcap(scale * dot(q, k[j]))     for the visible j: p - window < j <= p
//! out    = sum_j softmax(s)[j] * v[j]        softcap(s) = cap * tanh(s / cap), if there is a cap
//! ```
//!
//! A layer with sinks (gpt-oss) has one more logit per query head in the softmax, `sinks[h]` as it
//! stands, neither scaled nor capped; it takes its share of the weight and adds no value.
//!
//! k and v are read from the cache as stored, also those of this step: they are written first
//! ([`crate::kv_cache::write`]).
//! The context is cut into tiles and segments by absolute position, and what a query must not see
//! does not reach it, so a query's result has the same bits alone, in a chunk, in a batch, on any
//! number of threads, and under any placement of blocks.
//!
//! Where the caches are bf16 and the processor multiplies pairs of bf16 as fast as f32
//! (AMD's AVX-512 BF16), q and `exp(s[j] - max)` are rounded to bf16, to nearest even, before they
//! are multiplied: an error of at most 2^-9 of each; subnormals are zero. The sum of the weights
//! takes them as they are. Everywhere else nothing is rounded: sums are in f32.
//!
//! q `[T, H, D]` f32, strided in T or not; caches as in [`crate::kv_cache`], contiguous;
//! out `[T, H, D]` f32.

mod blocks;
mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(target_arch = "x86_64")]
mod dots;
#[cfg(test)]
mod reference;
mod softmax;
mod steps;
#[cfg(test)]
mod tests;
mod tile;
mod unit;

use candle_core::Tensor;

use crate::kv_cache::Geometry;
use crate::view::{self, Locked};
use crate::{KernelError, Result};

/// Which tokens of the batch belong to which row, and where the rows' contexts lie.
#[derive(Clone, Copy, Debug)]
pub struct PagedBatch<'a> {
    /// `[S+1]`: row s has the tokens `cu_seqlens[s]..cu_seqlens[s+1]` of the batch.
    pub cu_seqlens: &'a [u32],
    /// `[S]`: tokens of row s in the cache, those of this step counted in.
    pub context_lens: &'a [u32],
    /// `[S]`: position j of row s lies in block `block_tables[s][j / B]`, at offset `j % B`.
    /// An entry whose positions no query of the row sees is not looked at, and may be any number:
    /// blocks behind the window are given back and come to belong to others.
    pub block_tables: &'a [&'a [u32]],
}

/// What a layer says about its attention.
#[derive(Clone, Copy, Debug)]
pub struct AttentionParams<'a> {
    /// What the scores are multiplied with, usually `1 / sqrt(D)`.
    pub scale: f32,
    /// How many positions a query sees, its own counted in; all if there is none. Not 0.
    pub window: Option<u32>,
    /// The bound c of `c * tanh(score / c)`; above 0.
    pub softcap: Option<f32>,
    /// `[H]` f32: a logit per query head that takes part in the softmax and adds no value.
    pub sinks: Option<&'a Tensor>,
}

impl AttentionParams<'_> {
    /// The first position that a query at `position` sees.
    #[inline(always)]
    fn first_seen(&self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window as usize))
    }
}

/// Attention of `q` `[T, H, D]` over the caches; gives `[T, H, D]` f32.
pub fn paged_attention(
    q: &Tensor,
    cache_k: &Tensor,
    cache_v: &Tensor,
    batch: &PagedBatch<'_>,
    params: &AttentionParams<'_>,
) -> Result<Tensor> {
    let out = view::empty(&view::dims(q, "q", ["T", "H", "D"])?)?;
    paged_attention_into(q, [cache_k, cache_v], batch, params, &out)?;
    Ok(out)
}

/// [`paged_attention`], written to `out` `[T, H, D]` f32, contiguous.
pub fn paged_attention_into(
    q: &Tensor,
    [cache_k, cache_v]: [&Tensor; 2],
    batch: &PagedBatch<'_>,
    params: &AttentionParams<'_>,
    out: &Tensor,
) -> Result<()> {
    let [tokens, heads, head_size] = view::dims(q, "q", ["T", "H", "D"])?;
    view::shape(out, "out", &[tokens, heads, head_size])?;
    let cache = Geometry::of([cache_k, cache_v], head_size)?;
    let kv_heads = cache.kv_heads;
    if kv_heads == 0 || heads % kv_heads != 0 {
        let expected = format!("T, a multiple of {kv_heads} kv heads, D");
        return Err(KernelError::Shape { argument: "q", expected, found: q.dims().to_vec() });
    }
    if cache_v.dtype() != cache_k.dtype() {
        let (argument, expected, found) = ("cache_v", "that of cache_k", cache_v.dtype());
        return Err(KernelError::DType { argument, expected, found });
    }
    check_params(params, heads)?;
    check_batch(batch, tokens)?;
    check_tables(batch, params, cache.blocks, cache.block_size())?;
    let (q, k, v) =
        (Locked::new(q, "q")?, Locked::new(cache_k, "cache_k")?, Locked::new(cache_v, "cache_v")?);
    let (queries, caches) = (q.rows()?, (k.floats()?, v.floats()?));
    let sinks = params.sinks.map(|sinks| Locked::new(sinks, "sinks")).transpose()?;
    let logits = sinks.as_ref().map(Locked::f32s).transpose()?;
    let read = [Some(&q), Some(&k), Some(&v), sinks.as_ref()];
    view::write(out, "out", &read, |out| {
        cpu::paged_attention(queries, caches, cache, (batch, params, logits), out);
    })
}

fn check_batch(batch: &PagedBatch<'_>, tokens: usize) -> Result<()> {
    let rows = batch.context_lens.len();
    view::len("cu_seqlens", rows + 1, batch.cu_seqlens.len())?;
    view::len("block_tables", rows, batch.block_tables.len())?;
    let ends = (batch.cu_seqlens[0], batch.cu_seqlens[rows] as usize);
    if ends != (0, tokens) || !batch.cu_seqlens.is_sorted() {
        return Err(KernelError::Value {
            argument: "cu_seqlens",
            rule: format!("a rising list from 0 to {tokens}"),
            found: format!("{:?}", batch.cu_seqlens),
        });
    }
    for (row, &context_len) in batch.context_lens.iter().enumerate() {
        let len = batch.cu_seqlens[row + 1] - batch.cu_seqlens[row];
        if context_len < len {
            return Err(KernelError::Value {
                argument: "context_lens",
                rule: format!("at least the {len} tokens of row {row}"),
                found: context_len.to_string(),
            });
        }
    }
    Ok(())
}

/// Checks that each row has blocks for its context, and that those which it reads exist.
fn check_tables(
    batch: &PagedBatch<'_>,
    params: &AttentionParams<'_>,
    blocks: usize,
    block_size: usize,
) -> Result<()> {
    for (row, &table) in batch.block_tables.iter().enumerate() {
        let len = (batch.cu_seqlens[row + 1] - batch.cu_seqlens[row]) as usize;
        let context_len = batch.context_lens[row] as usize;
        if table.len() * block_size < context_len {
            return Err(KernelError::Value {
                argument: "block_tables",
                rule: format!("blocks of {block_size} for {context_len} tokens in row {row}"),
                found: format!("{} blocks", table.len()),
            });
        }
        if len == 0 {
            continue;
        }
        // Blocks of no tokens were refused above: this row has a context.
        let first = params.first_seen(context_len - len) / block_size;
        let seen = &table[first..context_len.div_ceil(block_size)];
        if let Some(i) = seen.iter().position(|&block| block as usize >= blocks) {
            let (argument, at, found) = ("block_tables[..]", first + i, seen[i] as usize);
            return Err(KernelError::Index { argument, at, limit: blocks, found });
        }
    }
    Ok(())
}

fn check_params(params: &AttentionParams<'_>, heads: usize) -> Result<()> {
    if let Some(sinks) = params.sinks {
        view::shape(sinks, "sinks", &[heads])?;
    }
    if params.window == Some(0) {
        let (argument, rule) = ("window", "at least 1".to_owned());
        return Err(KernelError::Value { argument, rule, found: "0".to_owned() });
    }
    match params.softcap {
        Some(cap) if cap.is_nan() || cap <= 0.0 => Err(KernelError::Value {
            argument: "softcap",
            rule: "above 0".to_owned(),
            found: cap.to_string(),
        }),
        _ => Ok(()),
    }
}
