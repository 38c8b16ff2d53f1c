//! Attention of rows with any number of queries each, on tensor cores: the work that the host cuts
//! into query tiles.

use std::cmp::Reverse;

use candle_core::DType;

use super::{Attention, takes, value};
use crate::Result;
use crate::cuda::{Array, Gpu, Launch, Module, check, module};

#[cfg(test)]
mod tests;

static MODULE: Module = module!("paged_attention_prefill");

/// Queries of a query tile, at most (`Shape::QUERIES` of the kernel's file).
pub const QUERIES: usize = 128;

/// Positions that lie together in the cache whatever the block size (`TILE` there).
const TILE: usize = 16;

/// The rows of a step that have several queries each, and how they are cut.
#[derive(Clone, Copy, Debug)]
pub struct PrefillRows<'a> {
    /// `[R]` u32: whose blocks.
    pub slot: &'a Array,
    /// `[R]` u32: the position of the first query.
    pub start: &'a Array,
    /// `[R]` u32: how many queries there are, at neighbouring positions; 0 is padding.
    pub len: &'a Array,
    /// `[R]` u32: which token of the step is the first query.
    pub first: &'a Array,
    /// `[tiles, 2]` u32: [`query_tiles`]; a tile of row [`super::PAD`] is padding.
    pub tiles: &'a Array,
}

/// How many query tiles rows of `tokens` tokens have at most.
pub fn max_query_tiles(tokens: usize, rows: usize) -> usize {
    tokens / QUERIES + rows.min(tokens)
}

/// Cuts rows of (start, len) into query tiles: a tile's row, and its first query within the row.
///
/// Those that see most come first, because what runs last should be short; tiles of a row that see
/// the same number stay neighbours, as they read the same.
pub fn query_tiles(rows: &[(u32, u32)], window: Option<u32>) -> Vec<[u32; 2]> {
    let mut tiles = Vec::new();
    for (row, &(start, len)) in (0..).zip(rows) {
        for first in (0..len).step_by(QUERIES) {
            let end = start + len.min(first + QUERIES as u32);
            let seen = window.map_or(0, |window| (start + first + 1).saturating_sub(window));
            tiles.push((end - seen, [row, first]));
        }
    }
    tiles.sort_by_key(|&(seen, _)| Reverse(seen));
    tiles.into_iter().map(|(_, tile)| tile).collect()
}

/// Attention of the rows that have query tiles, of the types and sizes that [`takes`] says.
///
/// Tokens that belong to no tile are left as they are. A query's result has the same bits alone, in
/// any chunk of its row, and beside any other rows.
#[allow(unsafe_code)]
pub fn prefill(gpu: &Gpu, attention: &Attention<'_>, rows: &PrefillRows<'_>) -> Result<()> {
    let Attention { q, cache, params, out } = *attention;
    let tiles = check(attention, rows)?;
    let group = q.heads / cache.kv_heads;
    let kernel = format!("paged_attention_prefill_{}_{}", check::suffix(q.values, "q")?, q.head_size);
    let args = [
        q.values.into(),
        cache.k.into(),
        cache.v.into(),
        out.into(),
        cache.tables.into(),
        rows.tiles.into(),
        rows.slot.into(),
        rows.start.into(),
        rows.len.into(),
        rows.first.into(),
        params.sinks.into(),
        check::count("q.stride", q.stride)?.into(),
        check::count("max_blocks", cache.max_blocks)?.into(),
        check::count("block_size", cache.block_size)?.into(),
        params.window().into(),
        reciprocal(cache.block_size).into(),
        params.scale.into(),
        params.softcap.unwrap_or(0.0).into(),
    ];
    let grid = [group as u32, tiles as u32, cache.kv_heads as u32];
    let (block, shared) = shape(q.head_size);
    let launch = Launch { grid, block, shared };
    // SAFETY: the arguments are the kernel's, lengths and alignments were checked, and what lies on
    // the device is the caller's to answer for.
    unsafe { gpu.launch(&MODULE, &kernel, launch, &args)? };
    Ok(())
}

/// Threads of a block, and its shared memory in bytes.
fn shape(head_size: usize) -> (u32, u32) {
    let step = if head_size == 64 || head_size == 256 { 32 } else { 64 };
    let shared = (QUERIES + 4 * step) * (head_size + 8) * size_of::<u16>();
    (if head_size == 256 { 256 } else { 128 }, shared as u32)
}

/// What [`TILE`]s are multiplied with to find their block: `ceil(2^31 / (block_size / TILE))`.
fn reciprocal(block_size: usize) -> u32 {
    (1_u32 << 31).div_ceil((block_size / TILE) as u32)
}

/// Checks what lies on the host; gives the number of query tiles.
fn check(attention: &Attention<'_>, rows: &PrefillRows<'_>) -> Result<usize> {
    let Attention { q, cache, params, out } = *attention;
    attention.check()?;
    if !takes(q.values.dtype(), q.head_size) {
        let found = format!("{}, {}", q.head_size, q.values.dtype().as_str());
        return Err(value("head_size", "64, 80, 96, 128 or 256, of bf16 or f16", found));
    }
    for (array, argument) in
        [(q.values, "q"), (cache.k, "cache_k"), (cache.v, "cache_v"), (out, "out")]
    {
        check::aligned(array, argument)?;
    }
    if !q.stride.is_multiple_of(8) {
        return Err(value("q.stride", "a multiple of 8", q.stride));
    }
    // The largest of several scores is also the largest of their multiples.
    if params.scale.is_nan() || params.scale <= 0.0 {
        return Err(value("scale", "above 0", params.scale));
    }
    // With this the product with the reciprocal is right for every tile of a row.
    let in_block = cache.block_size / TILE;
    if cache.max_blocks * in_block * in_block >= 1 << 31 {
        let rule = "max_blocks * (block_size / 16)^2 to be below 2^31";
        return Err(value("block_size", rule, cache.block_size));
    }
    let num = rows.slot.len();
    check::shape(rows.slot, "slot", DType::U32, &[num])?;
    check::shape(rows.start, "start", DType::U32, &[num])?;
    check::shape(rows.len, "len", DType::U32, &[num])?;
    check::shape(rows.first, "first", DType::U32, &[num])?;
    let tiles = rows.tiles.len() / 2;
    check::shape(rows.tiles, "tiles", DType::U32, &[tiles, 2])?;
    // What a grid has in the directions of tiles and kv heads.
    if tiles.max(cache.kv_heads) > 65535 {
        return Err(value("tiles", "and kv heads at most 65535", tiles.max(cache.kv_heads)));
    }
    Ok(tiles)
}
