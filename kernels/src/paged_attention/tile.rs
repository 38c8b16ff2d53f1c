//! Tiles and segments: how a context is cut, by absolute position, and where a tile lies in the
//! caches.

use std::ops::Range;

use super::cpu::{Layer, Queries};
use super::steps::VECTORS;
use crate::simd::LANES;

/// Positions of a tile: few enough for the first-level cache, and for a good part of them one
/// rescaling of the sums is enough.
pub(super) const TILE: usize = VECTORS * LANES;

/// Positions of a segment: what threads share out of one row is not less.
pub(super) const SEGMENT: usize = 16 * TILE;

/// How many positions are on their way from memory while a tile is rearranged: two blocks of the
/// usual size. Fewer leave memory idle; more are pushed out again before their turn.
const AHEAD: usize = 2 * LANES;

/// The positions of a tile that any query of a unit sees, and where they lie in the caches.
pub(super) struct Tile {
    pub(super) start: usize,
    /// Counted from `start`.
    pub(super) seen: Range<usize>,
    /// The first element of each position; 0 where nothing is seen.
    pub(super) at: [usize; TILE],
}

impl Default for Tile {
    /// In which nothing is seen.
    fn default() -> Self {
        Self { start: 0, seen: 0..0, at: [0; TILE] }
    }
}

impl Tile {
    #[inline(always)]
    pub(super) fn new<E>(layer: &Layer<'_, E>, queries: &Queries<'_>, start: usize) -> Self {
        let geometry = layer.geometry;
        let all = layer.seen_by_any(queries);
        let (mut position, end) = (all.start.max(start), all.end.min(start + TILE));
        let seen = position - start..end - start;
        let mut at = [0; TILE];
        while position < end {
            let offset = position % geometry.block_size;
            let block = queries.table[position / geometry.block_size] as usize;
            let head = block * geometry.kv_heads + queries.kv_head;
            let first = (head * geometry.block_size + offset) * geometry.head_size;
            let len = (geometry.block_size - offset).min(end - position);
            for (i, at) in at[position - start..][..len].iter_mut().enumerate() {
                *at = first + i * geometry.head_size;
            }
            position += len;
        }
        Self { start, seen, at }
    }

    /// The `len` elements that `cache` has at position `i`, if it is among `seen`; none elsewhere.
    #[inline(always)]
    pub(super) fn row<'c, E>(
        &self,
        (cache, len): (&'c [E], usize),
        i: usize,
        seen: &Range<usize>,
    ) -> &'c [E] {
        if seen.contains(&i) { &cache[self.at[i]..][..len] } else { &[] }
    }

    /// Where the `len` positions lie that come [`AHEAD`] of position `i` of this tile; `next` is
    /// the tile after it.
    #[inline(always)]
    pub(super) fn ahead<'t>(&'t self, next: &'t Self, i: usize, len: usize) -> &'t [usize] {
        match i + AHEAD {
            i if i < TILE => &self.at[i..][..len],
            i => &next.at[i - TILE..][..len],
        }
    }
}
