//! Equal beginnings: which blocks are offered to others, and what an admitted sequence finds.
//!
//! A place of the tables is offered in all groups at once, so every group has its own index under
//! the same keys. What is found must serve the first row after it: in a group without a window all
//! blocks before it, in one with a window those that its first query sees. So a hit is as long as
//! the shortest run of the groups without a window, and from there goes back to where every window
//! finds its tail.

use millstream_proto::NO_BLOCK;

#[cfg(test)]
use super::planted::PlantedBug;
use super::{Scheduler, Trusted};
use crate::engine::blocks::BlockId;
use crate::engine::groups::{BlockTable, CacheGroup};

impl Scheduler {
    /// Offers to the index the leading blocks of a sequence that are known, and computed by a step
    /// already sent. Those that end beyond what is confirmed are so on the word of a row in flight,
    /// and are noted as such.
    #[inline]
    pub(super) fn index_blocks(&mut self, index: u32, trusted: &mut Vec<Trusted>) {
        if !self.limits.prefix_caching {
            return;
        }
        let block_size = self.limits.block_size as usize;
        let sequence = self.sequences.get_mut(index);
        let known = sequence.tokens.len().min(sequence.num_computed);
        #[cfg(test)]
        let known = match self.planted {
            Some(PlantedBug::UncomputedBlockIndexed) => sequence.tokens.len().min(sequence.room),
            _ => known,
        };
        let (id, num_confirmed) = (sequence.id, sequence.num_confirmed());
        while sequence.num_indexed < known / block_size {
            let place = sequence.num_indexed;
            let key = sequence.key(place, block_size);
            let tokens = sequence.block_tokens(place, block_size);
            for (number, group) in self.groups.iter_mut().enumerate() {
                let Some(block) = sequence.tables[number].get(place) else { continue };
                group.blocks.index(block, key, tokens);
                if (place + 1) * block_size > num_confirmed {
                    trusted.push(Trusted { id, group: number, place, block, key });
                }
            }
            sequence.num_indexed += 1;
        }
    }

    /// The tables of the longest beginning of a sequence that is computed, equally long in all
    /// groups. The last token is always computed, even when its block is there: without it there
    /// are no logits.
    pub(super) fn match_prefix(&mut self, index: u32) -> Vec<BlockTable> {
        let mut found = vec![Vec::new(); self.groups.len()];
        let num_hits =
            if self.limits.prefix_caching { self.find_prefix(index, &mut found) } else { 0 };
        let tables = found.into_iter().enumerate().map(|(number, mut places)| {
            places.truncate(num_hits);
            BlockTable::new(places, self.first_of_tail(number, num_hits))
        });
        tables.collect()
    }

    /// How many leading blocks every group can serve; `found` gets them, per group, and anything at
    /// the places that a window does not need.
    fn find_prefix(&mut self, index: u32, found: &mut [Vec<BlockId>]) -> usize {
        let max_cached = self.sequences.get(index).max_cached();
        let mut num_hits = max_cached / self.limits.block_size as usize;
        for (number, places) in found.iter_mut().enumerate() {
            if !self.groups[number].has_window() {
                places
                    .extend((0..num_hits).map_while(|place| self.find_block(index, number, place)));
                num_hits = places.len();
            }
        }
        if !self.groups.iter().any(|group| group.has_window()) {
            return num_hits;
        }
        for places in &mut *found {
            places.resize(num_hits, BlockId(NO_BLOCK));
        }
        let shrunk = self.shrink_to_windows(index, num_hits, found);
        #[cfg(test)]
        {
            self.shrunk_hits += u64::from(shrunk < num_hits && shrunk > 0);
        }
        shrunk
    }

    /// The longest hit of at most `num_hits` blocks whose tail is there in every group with a
    /// window.
    ///
    /// Each group is searched from the hit's end to the left, until its window is covered. Where a
    /// block is missing, the hit can only end there, and every group goes on from where it has got
    /// to until its window, which begins earlier now, is covered again. So no place is looked at
    /// twice.
    fn shrink_to_windows(
        &mut self,
        index: u32,
        mut num_hits: usize,
        found: &mut [Vec<BlockId>],
    ) -> usize {
        // Per group, the place from which on it has all blocks up to the hit's end.
        let has_all = |group: &CacheGroup| if group.has_window() { num_hits } else { 0 };
        let mut covered: Vec<usize> = self.groups.iter().map(has_all).collect();
        let mut number = 0;
        while number < covered.len() {
            if covered[number] <= self.first_of_tail(number, num_hits) {
                number += 1;
                continue;
            }
            let place = covered[number] - 1;
            if let Some(block) = self.find_block(index, number, place) {
                (found[number][place], covered[number]) = (block, place);
            } else {
                num_hits = place;
                covered.iter_mut().for_each(|from| *from = (*from).min(num_hits));
                number = 0;
            }
        }
        num_hits
    }

    /// Place of the first block that the row after a hit needs in a group.
    fn first_of_tail(&self, number: usize, num_hits: usize) -> usize {
        let group = &self.groups[number];
        let first = group.first_needed(num_hits * self.limits.block_size as usize);
        #[cfg(test)]
        if self.planted == Some(PlantedBug::HoleInWindow) && group.has_window() {
            return (first + 1).min(num_hits);
        }
        first
    }

    /// The block that holds a place of a sequence, all of whose tokens are known.
    fn find_block(&mut self, index: u32, number: usize, place: usize) -> Option<BlockId> {
        let block_size = self.limits.block_size as usize;
        let sequence = self.sequences.get_mut(index);
        let key = sequence.key(place, block_size);
        self.groups[number].blocks.find(key, sequence.block_tokens(place, block_size))
    }

    /// Whatever holds a part of a sequence is found by nobody any more, also what the sequence gave
    /// back when its windows had passed it.
    pub(super) fn forget_blocks(&mut self, index: u32) {
        let block_size = self.limits.block_size as usize;
        let sequence = self.sequences.get_mut(index);
        for place in 0..sequence.num_indexed {
            let key = sequence.key(place, block_size);
            let tokens = sequence.block_tokens(place, block_size);
            for group in &mut self.groups {
                if let Some(block) = group.blocks.find(key, tokens) {
                    group.blocks.unindex(block);
                }
            }
        }
        for (group, table) in self.groups.iter_mut().zip(&sequence.tables) {
            for &block in table.held() {
                group.blocks.unindex(block);
            }
        }
    }
}
