//! Memory of the cache that is there before it is needed.
//!
//! The system gives out the cache's memory when it is first written, and clears it then; where it is
//! a virtual machine's it may have to be got from the host first, so that writing a token's keys and
//! values for the first time takes a good part of what computing them took. Blocks are handed out in
//! rising order until all have been used: those that come next are backed with memory while the
//! engine has no sequence. A part of the cache only, because memory that is never used is better
//! left to others.

use super::cache::KvCache;
use crate::Batch;
use candle_core::Tensor;
use millstream_kernels::{KernelError, kv_cache, threads};
use std::ops::Range;
use std::sync::OnceLock;

/// Of the cache, one part in so many is kept ready.
const PART: usize = 8;

/// And no more than so many bytes.
const MOST: usize = 2 << 30;

/// Bytes that one thread backs before the engine looks for work again: a huge page, which takes
/// 5 ms where the host has to be asked.
const PIECE: usize = 2 << 20;

/// What of the cache is ready.
pub(crate) struct Ahead {
    groups: Vec<Group>,
}

/// The caches that share block numbers.
struct Group {
    caches: Vec<Tensor>,
    lead: Lead,
}

impl Ahead {
    /// Nothing is ready yet.
    pub(crate) fn new(cache: &KvCache) -> Self {
        let bytes = |cache: &Tensor| cache.elem_count() * cache.dtype().size_in_bytes();
        let mut groups: Vec<Vec<Tensor>> = Vec::new();
        for layer in &cache.layers {
            groups.resize_with(groups.len().max(layer.group + 1), Vec::new);
            groups[layer.group].extend([layer.k.clone(), layer.v.clone()]);
        }
        let total: usize = groups.iter().flatten().map(bytes).sum();
        let kept = (total / PART).min(MOST) as f64 / total as f64;
        let group = |caches: Vec<Tensor>| {
            let num_blocks = caches.first().map_or(0, |cache| cache.dims()[0]);
            let block = caches.first().map_or(0, bytes) / num_blocks.max(1);
            let lead = Lead {
                num_blocks,
                num_caches: caches.len(),
                length: (num_blocks as f64 * kept) as usize,
                piece: PIECE.div_ceil(block.max(1)),
                ready: 0,
                num_done: 0,
                used: 0,
            };
            Group { caches, lead }
        };
        Self { groups: groups.into_iter().map(group).collect() }
    }

    /// Takes note of the blocks that a batch writes, which have `block_size` positions.
    pub(crate) fn used(&mut self, batch: &Batch<'_>, block_size: usize) {
        for (index, group) in self.groups.iter_mut().enumerate() {
            let written = batch.rows.iter().flat_map(|row| {
                let places = row.start / block_size..row.end().div_ceil(block_size);
                &row.sequence.block_tables[index][places]
            });
            group.lead.used(written.max().map_or(0, |&block| block as usize + 1));
        }
    }

    /// Backs one more piece. Returns whether one was missing.
    pub(crate) fn prepare(&mut self) -> Result<bool, KernelError> {
        for Group { caches, lead } in &mut self.groups {
            let Some((places, blocks)) = lead.next(threads::count()) else { continue };
            let (caches, failure) = (&caches[places], OnceLock::new());
            threads::run(caches.len(), |i| {
                if let Err(error) = kv_cache::populate(&caches[i], blocks.clone()) {
                    failure.get_or_init(|| error);
                }
            });
            return failure.into_inner().map_or(Ok(true), Err);
        }
        Ok(false)
    }
}

/// How far the blocks of some caches are ready, and how far they should be.
#[derive(Debug)]
struct Lead {
    num_blocks: usize,
    num_caches: usize,
    /// Blocks to keep ready beyond those that were used.
    length: usize,
    /// Blocks that are made ready at once.
    piece: usize,
    /// Blocks before this one are ready in every cache.
    ready: usize,
    /// So many caches are one piece further.
    num_done: usize,
    /// Blocks before this one, or some of them, were used.
    used: usize,
}

impl Lead {
    fn used(&mut self, end: usize) {
        self.used = self.used.max(end);
        // What is used is ready.
        if self.ready < self.used {
            (self.ready, self.num_done) = (self.used, 0);
        }
    }

    /// Which blocks of which caches, at most `num_caches` of them, are to be made ready next.
    fn next(&mut self, num_caches: usize) -> Option<(Range<usize>, Range<usize>)> {
        let wanted = (self.used + self.length).min(self.num_blocks);
        if self.ready >= wanted {
            return None;
        }
        let end = (self.ready + self.piece).min(self.num_blocks);
        let blocks = self.ready..end;
        let caches = self.num_done..(self.num_done + num_caches).min(self.num_caches);
        self.num_done = caches.end;
        if self.num_done == self.num_caches {
            (self.ready, self.num_done) = (end, 0);
        }
        Some((caches, blocks))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lead() -> Lead {
        Lead { num_blocks: 20, num_caches: 3, length: 8, piece: 6, ready: 0, num_done: 0, used: 0 }
    }

    /// All that is left to be made ready, two caches at a time.
    fn pieces(lead: &mut Lead) -> Vec<(Range<usize>, Range<usize>)> {
        std::iter::from_fn(|| lead.next(2)).collect()
    }

    #[test]
    fn blocks_are_made_ready_in_every_cache_until_the_lead_is_there() {
        let mut lead = lead();
        let expected = [(0..2, 0..6), (2..3, 0..6), (0..2, 6..12), (2..3, 6..12)];
        assert_eq!(pieces(&mut lead), expected);
        lead.used(4);
        assert_eq!(pieces(&mut lead), []);
        lead.used(11);
        assert_eq!(
            pieces(&mut lead),
            [(0..2, 12..18), (2..3, 12..18), (0..2, 18..20), (2..3, 18..20)]
        );
        lead.used(20);
        assert_eq!(pieces(&mut lead), []);
    }

    #[test]
    fn blocks_that_are_used_meanwhile_are_passed_over() {
        let mut lead = lead();
        assert_eq!(lead.next(2), Some((0..2, 0..6)));
        lead.used(9);
        assert_eq!(lead.next(2), Some((0..2, 9..15)));
        lead.used(3);
        assert_eq!(lead.next(2), Some((2..3, 9..15)));
    }
}
