//! Tiles and segments: how a context is cut, by absolute position, and where a tile lies in the
//! caches.

use std::ops::Range;

use super::cpu::{Layer, Queries};
use super::steps::VECTORS;
use crate::kv_cache::GROUP;
use crate::simd::LANES;

/// Positions of a tile, a vector of scores for each group: few enough for the first-level cache, and
/// for a good part of them one rescaling of the sums is enough.
pub(super) const TILE: usize = VECTORS * LANES;
const _: () = assert!(GROUP == LANES);

/// Positions of a segment: what threads share out of one row is not less.
pub(super) const SEGMENT: usize = 16 * TILE;

/// The positions of a tile that any query of a unit sees, and where they lie in the caches.
pub(super) struct Tile {
    pub(super) start: usize,
    /// Counted from `start`.
    pub(super) seen: Range<usize>,
    /// The first vector of each group, in either cache; 0 where nothing is seen.
    pub(super) at: [usize; VECTORS],
}

impl Default for Tile {
    /// In which nothing is seen.
    fn default() -> Self {
        Self { start: 0, seen: 0..0, at: [0; VECTORS] }
    }
}

impl Tile {
    #[inline(always)]
    pub(super) fn new<W>(layer: &Layer<'_, W>, queries: &Queries<'_>, start: usize) -> Self {
        let cache = layer.geometry.cache;
        let all = layer.seen_by_any(queries);
        let seen = all.start.max(start) - start..all.end.min(start + TILE) - start;
        let mut tile = Self { start, seen, at: [0; VECTORS] };
        for v in tile.vectors() {
            let group = start / GROUP + v;
            let block = queries.table[group / cache.groups] as usize;
            let before = cache.group(block, queries.kv_head, group % cache.groups);
            tile.at[v] = before * layer.geometry.steps;
        }
        tile
    }

    /// The vectors of scores, or groups, of which any query sees something.
    #[inline(always)]
    pub(super) fn vectors(&self) -> Range<usize> {
        self.seen.start / LANES..self.seen.end.div_ceil(LANES)
    }
}
