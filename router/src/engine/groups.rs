//! Cache groups: layers that share a pool of blocks, and what a sequence holds of each.
//!
//! A group sees everything, or a window: a query at position `p` reads the positions
//! `p - window + 1 ..= p`. A sequence has a table in each group. Without a window it holds a block
//! at every place; with one, its leading places are empty: blocks that the window has passed are
//! freed, and those behind the window of a prefix hit were never held.
//!
//! Invariant: the empty places of a table are its first ones.
//!
//! This module knows positions, tables and blocks. It does not know tokens in flight or steps; who
//! frees behind a window says which position is the first that may still be computed.

use millstream_proto::NO_BLOCK;

use super::blocks::{BlockId, BlockManager};
use super::limits::GroupLimits;

/// One cache group of the worker.
pub(super) struct CacheGroup {
    pub(super) blocks: BlockManager,
    /// Positions that a query sees, its own included; `None` for all.
    window: Option<usize>,
    block_size: usize,
    /// Blocks that a sequence gets at its admission, at most.
    max_admitted: usize,
}

/// The blocks that a sequence holds in one cache group.
#[derive(Default)]
pub(super) struct BlockTable {
    /// In the order of positions; empty places hold [`NO_BLOCK`].
    places: Vec<BlockId>,
    num_empty: usize,
}

impl CacheGroup {
    /// A group all of whose blocks are free. `max_chunk` is the longest row of a step.
    pub(super) fn new(limits: GroupLimits, block_size: u32, max_chunk: u32) -> Self {
        let GroupLimits { num_blocks, window } = limits;
        let window = window.map(|window| window as usize);
        let block_size = block_size as usize;
        // Without a window a sequence gets the blocks of all it knows, so that its prompt never
        // waits for blocks. With one it gets those of a chunk of the largest size: what it needs
        // later comes back to it from behind the window.
        let max_admitted = window.map_or(usize::MAX, |window| {
            ((window + max_chunk as usize).div_ceil(block_size) + 1).min(num_blocks as usize)
        });
        let blocks = BlockManager::new(num_blocks, block_size as u32);
        Self { blocks, window, block_size, max_admitted }
    }

    pub(super) fn has_window(&self) -> bool {
        self.window.is_some()
    }

    /// Place of the first block that a query at `position` reads.
    pub(super) fn first_needed(&self, position: usize) -> usize {
        let window = self.window.unwrap_or(usize::MAX);
        (position + 1).saturating_sub(window) / self.block_size
    }

    /// How long the table of a sequence is made at its admission, in places: `total` blocks hold
    /// what it knows, the first `num_hits` of them are computed.
    pub(super) fn admitted_len(&self, num_hits: usize, total: usize) -> usize {
        let first = self.first_needed(num_hits * self.block_size);
        total.min(first.saturating_add(self.max_admitted).max(num_hits + 1))
    }

    /// Frees the blocks that no query at `position` or later reads. They stay in the index, as all
    /// freed blocks do. Returns how many there were.
    pub(super) fn free_behind(&mut self, table: &mut BlockTable, position: usize) -> usize {
        let first = self.first_needed(position).min(table.len());
        let passed = table.num_empty..first.max(table.num_empty);
        self.blocks.free(&table.places[passed.clone()]);
        table.places[passed.clone()].fill(BlockId(NO_BLOCK));
        table.num_empty = passed.end;
        passed.len()
    }
}

impl BlockTable {
    /// A table whose first `num_empty` places hold nothing.
    pub(super) fn new(mut places: Vec<BlockId>, num_empty: usize) -> Self {
        places[..num_empty].fill(BlockId(NO_BLOCK));
        Self { places, num_empty }
    }

    /// Places, empty ones included.
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// All places, for the wire.
    pub(super) fn places(&self) -> &[BlockId] {
        &self.places
    }

    /// The blocks, without the empty places.
    pub(super) fn held(&self) -> &[BlockId] {
        &self.places[self.num_empty..]
    }

    /// The blocks with their places.
    pub(super) fn enumerate(&self) -> impl Iterator<Item = (usize, BlockId)> {
        self.places.iter().copied().enumerate().skip(self.num_empty)
    }

    /// How many of the leading places are empty.
    pub(super) fn num_empty(&self) -> usize {
        self.num_empty
    }

    /// The block at a place, if there is one.
    pub(super) fn get(&self, place: usize) -> Option<BlockId> {
        if place < self.num_empty { None } else { self.places.get(place).copied() }
    }

    pub(super) fn push(&mut self, block: BlockId) {
        self.places.push(block);
    }

    pub(super) fn reserve(&mut self, num_more: usize) {
        self.places.reserve(num_more);
    }
}
