//! Attention of rows with any number of queries each, on tensor cores: the work that the host cuts
//! into query tiles.

use candle_core::DType;

use super::{Attention, takes, value};
use crate::Result;
use crate::cuda::{Array, Gpu, Launch, Module, check, module};

#[cfg(test)]
mod tests;

static MODULE: Module = module!("paged_attention_prefill");

/// The queries of a query tile, neighbours in a row (`Shape::QUERIES` of the kernel's file).
pub const TILE_QUERIES: usize = 128;

/// Positions that lie together in the cache whatever the block size (`TILE` there).
const TILE: usize = 16;

/// The rows of a step that have several queries each.
#[derive(Clone, Copy, Debug)]
pub struct ChunkRows<'a> {
    /// `[R]` u32: whose blocks.
    pub slot: &'a Array,
    /// `[R]` u32: the position of the first query.
    pub start: &'a Array,
    /// `[R]` u32: how many queries there are, at neighbouring positions; 0 is padding.
    pub len: &'a Array,
    /// `[R]` u32: which token of the step is the first query.
    pub first: &'a Array,
}

/// Attention of the query tiles of `rows`, of the types and head sizes that [`takes`] says.
///
/// `tiles` `[tiles, 2]` u32 has a tile's row and the first of its [`TILE_QUERIES`] queries within
/// the row; a row of [`super::PAD`], or a query behind the row's last, is padding. Blocks start in
/// the order of the tiles, so those that see most should come first.
///
/// Tokens that belong to no tile are left as they are. A query's result has the same bits alone, in
/// any chunk of its row, and beside any other rows.
#[allow(unsafe_code)]
pub fn prefill(
    gpu: &Gpu,
    attention: &Attention<'_>,
    rows: &ChunkRows<'_>,
    tiles: &Array,
) -> Result<()> {
    let Attention { q, cache, params, out } = *attention;
    let num_tiles = check(attention, rows, tiles)?;
    let group = q.heads / cache.kv_heads;
    let suffix = check::suffix(q.values, "q")?;
    let kernel = format!("paged_attention_prefill_{suffix}_{}", q.head_size);
    let args = [
        q.values.into(),
        cache.k.into(),
        cache.v.into(),
        out.into(),
        cache.tables.into(),
        tiles.into(),
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
    let grid = [group as u32, cache.kv_heads as u32, num_tiles as u32];
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
    let shared = (TILE_QUERIES + 4 * step) * (head_size + 8) * size_of::<u16>();
    (if head_size == 256 { 256 } else { 128 }, shared as u32)
}

/// What [`TILE`]s are multiplied with to find their block: `ceil(2^31 / (block_size / TILE))`.
fn reciprocal(block_size: usize) -> u32 {
    (1_u32 << 31).div_ceil((block_size / TILE) as u32)
}

/// Checks what lies on the host; gives the number of query tiles.
fn check(attention: &Attention<'_>, rows: &ChunkRows<'_>, tiles: &Array) -> Result<usize> {
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
    let num_tiles = tiles.len() / 2;
    check::shape(tiles, "tiles", DType::U32, &[num_tiles, 2])?;
    // What a grid has in the directions of kv heads and tiles.
    for (count, argument) in [(num_tiles, "tiles"), (cache.kv_heads, "kv_heads")] {
        if count > 65535 {
            return Err(value(argument, "at most 65535", count));
        }
    }
    Ok(num_tiles)
}
