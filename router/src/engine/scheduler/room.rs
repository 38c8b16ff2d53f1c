//! Blocks for what a step computes: taken before it, given back behind the windows.
//!
//! Every row has blocks for all its positions in every group when its step is sent. At its
//! admission a sequence gets those of all it knows where a group has no window, and those of a
//! large chunk where it has one; from then on its tables grow ahead of its rows. Only the first
//! position of a row is worth preempting others for: a chunk ends where the free blocks end.
//!
//! One sequence alone always advances, because the limits were refused otherwise: once nothing of
//! it is in flight, it needs the blocks of one window that ends with its next position, and each
//! group has at least these. As the oldest preempts whoever else holds blocks, something always
//! advances.

use super::planning::Draft;
#[cfg(test)]
use super::planted::PlantedBug;
use super::{FinishReason, Scheduler};

impl Scheduler {
    /// Gives back the blocks that no running sequence reads any more.
    ///
    /// The worker runs steps in order, so what those in flight read is read before anything that is
    /// sent from now on can write there. What rows of this step and of later ones read begins with
    /// the window of the first position that may still be computed. That is not `num_computed`: a
    /// row in flight may come back not run, and what it was to compute is owed again. It is the
    /// first position that is not confirmed. And as this comes before anything is planned, a step
    /// that gives such a block to somebody else has no row that reads it.
    pub(super) fn free_behind_windows(&mut self) {
        if !self.groups.iter().any(|group| group.has_window()) {
            return;
        }
        for &index in &self.running {
            let sequence = self.sequences.get_mut(index);
            let first_owed = sequence.num_confirmed();
            #[cfg(test)]
            let first_owed = match self.planted {
                Some(PlantedBug::FreedOnPlanned) => sequence.num_computed,
                Some(PlantedBug::FreedTooEarly) => first_owed + self.limits.block_size as usize,
                _ => first_owed,
            };
            for (group, table) in self.groups.iter_mut().zip(&mut sequence.tables) {
                self.stats.window_frees += group.free_behind(table, first_owed) as u64;
            }
        }
    }

    /// Makes room for the next position of a running sequence, if need be by preempting the
    /// youngest. False if that was the sequence itself, or if it has to wait for what it has in
    /// flight: that brings back a block from behind the window.
    #[inline]
    pub(super) fn grow(&mut self, draft: &mut Draft, index: u32) -> bool {
        let sequence = self.sequences.get(index);
        sequence.num_computed < sequence.room || self.add_room(draft, index)
    }

    /// What [`grow`](Self::grow) does for one sequence in many.
    fn add_room(&mut self, draft: &mut Draft, index: u32) -> bool {
        loop {
            let sequence = self.sequences.get(index);
            let (mut short_of, mut will_pass) = (None, true);
            for (group, table) in self.groups.iter().zip(&sequence.tables) {
                let needs_block = table.len() * self.limits.block_size as usize <= sequence.room;
                if needs_block && group.blocks.num_free() == 0 {
                    short_of = Some(group.blocks.num_blocks());
                    will_pass &= group.first_needed(sequence.num_computed) > table.num_empty();
                }
            }
            let Some(num_blocks) = short_of else {
                let end = sequence.num_computed + 1;
                self.reserve(draft, index, end, 0);
                return true;
            };
            if will_pass {
                return false;
            }
            let youngest = *self.running.last().expect("the sequence that grows is running");
            if self.running.len() == 1 {
                self.end_with_event(index, too_long(sequence.tokens.len(), num_blocks));
                self.forget_ended();
                return false;
            }
            self.preempt(youngest);
            if youngest == index {
                return false;
            }
        }
    }

    /// How many of the next `len` positions of a sequence have room, once it got the blocks that
    /// can be spared: one for each other running sequence stays free.
    pub(super) fn reach(&mut self, draft: &mut Draft, index: u32, len: usize) -> usize {
        let sequence = self.sequences.get(index);
        let (start, end) = (sequence.num_computed, sequence.num_computed + len);
        if end > sequence.room {
            self.reserve(draft, index, end, self.running.len() - 1);
        }
        len.min(self.sequences.get(index).room - start)
    }

    /// Extends the tables of a sequence up to the position `end`, or as far as each group has more
    /// than `num_spared` free blocks.
    fn reserve(&mut self, draft: &mut Draft, index: u32, end: usize, num_spared: usize) {
        let block_size = self.limits.block_size as usize;
        let sequence = self.sequences.get_mut(index);
        let slot = sequence.slot.expect("blocks are of a running sequence");
        let mut len = end.div_ceil(block_size);
        for (number, group) in self.groups.iter_mut().enumerate() {
            let table = &mut sequence.tables[number];
            while table.len() < len && group.blocks.num_free() > num_spared {
                let block = group.blocks.allocate().expect("more than none are free");
                table.push(block);
                draft.push_block(slot, number, block);
            }
            len = len.min(table.len());
        }
        sequence.room = sequence.room.max(len * block_size);
    }

    /// Takes the youngest running sequence off the worker, to begin again later.
    fn preempt(&mut self, youngest: u32) {
        self.stats.preemptions += 1;
        self.running.pop();
        self.stop_running(youngest);
        self.wait_again(youngest);
    }
}

/// The end of a sequence for which a cache group of so many blocks is too small.
pub(super) fn too_long(num_tokens: usize, num_blocks: usize) -> FinishReason {
    FinishReason::Error(format!(
        "a sequence of {num_tokens} tokens does not fit the worker's {num_blocks} cache blocks"
    ))
}
