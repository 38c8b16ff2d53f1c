//! Everything the scheduler promises, checked the slow way.

use super::{Plan, PlannedRow, Scheduler};
use crate::engine::blocks::BlockId;
use crate::engine::groups::BlockTable;
use crate::engine::sequence::Sequence;

impl Scheduler {
    /// Checks the invariants of queues, slots, debts and blocks. For tests: it reads everything.
    pub fn check_integrity(&self) -> Result<(), String> {
        for (number, group) in self.groups.iter().enumerate() {
            let tables = self.sequences.iter().filter_map(|(_, s)| s.tables.get(number));
            let held = group.blocks.check_integrity(tables.map(BlockTable::held));
            held.map_err(|rule| format!("group {number}: {rule}"))?;
        }
        self.check_queues()?;
        self.check_slots()?;
        for (_, sequence) in self.sequences.iter() {
            let id = sequence.id;
            self.check_debt(sequence).map_err(|rule| format!("{id:?}: {rule}"))?;
            self.check_room(sequence).map_err(|rule| format!("{id:?}: {rule}"))?;
            self.check_content(sequence).map_err(|rule| format!("{id:?}: {rule}"))?;
        }
        (0..self.groups.len()).try_for_each(|number| self.check_sharing(number))
    }

    fn check_queues(&self) -> Result<(), String> {
        let arrivals = |queue: Vec<u32>| -> Vec<u64> {
            queue.iter().map(|&index| self.sequences.get(index).arrival).collect()
        };
        let waiting = arrivals(self.waiting.iter().copied().collect());
        let running = arrivals(self.running.clone());
        if !waiting.is_sorted() || !running.is_sorted() {
            return Err("a queue is not in the order of arrival".to_owned());
        }
        if waiting.len() + running.len() != self.sequences.len() {
            let (w, r, all) = (waiting.len(), running.len(), self.sequences.len());
            return Err(format!("{w} wait and {r} run, of {all} sequences"));
        }
        let is_running = |&index: &u32| self.sequences.get(index).slot.is_some();
        if self.waiting.iter().any(is_running) || !self.running.iter().all(is_running) {
            return Err("a sequence stands in the wrong queue".to_owned());
        }
        Ok(())
    }

    fn check_slots(&self) -> Result<(), String> {
        let held = self.running.iter().filter_map(|&index| self.sequences.get(index).slot);
        let mut slots: Vec<u32> = held.chain(self.free_slots.iter().copied()).collect();
        slots.sort_unstable();
        let num_slots = self.limits.max_slots.min(self.limits.max_batch_tokens);
        if !slots.iter().copied().eq(0..num_slots) {
            return Err(format!("slots held and free are {slots:?}, not 0 to {num_slots}"));
        }
        let unknown = self.releases.iter().find(|slot| !self.free_slots.contains(slot));
        match unknown {
            Some(slot) => Err(format!("slot {slot} is to be released and not free")),
            None => Ok(()),
        }
    }

    fn check_debt(&self, sequence: &Sequence) -> Result<(), String> {
        let in_flight: Vec<&PlannedRow> = self
            .in_flight
            .iter()
            .flat_map(|plan: &Plan| &plan.rows)
            .filter(|row| row.id == sequence.id && !row.is_void)
            .collect();
        if in_flight.len() != sequence.num_in_flight {
            let counted = sequence.num_in_flight;
            return Err(format!("{} rows in flight, {counted} counted", in_flight.len()));
        }
        let promised =
            in_flight.iter().filter(|row| row.run == sequence.run && row.samples).count();
        if promised != sequence.num_promised {
            let counted = sequence.num_promised;
            return Err(format!("{promised} tokens promised, {counted} counted"));
        }
        let (len, computed) = (sequence.tokens.len(), sequence.num_computed);
        if computed > len + promised || len + promised > sequence.max_len.max(len) {
            let max_len = sequence.max_len;
            return Err(format!("{len} tokens + {promised}, {computed} computed, max {max_len}"));
        }
        let this_run = in_flight.iter().filter(|row| row.run == sequence.run);
        let unconfirmed: usize = this_run.map(|row| row.len).sum();
        if unconfirmed != sequence.num_unconfirmed {
            let counted = sequence.num_unconfirmed;
            return Err(format!("{unconfirmed} positions in flight, {counted} counted"));
        }
        if sequence.slot.is_none() && computed + promised + sequence.tables.len() > 0 {
            return Err("it waits and is not empty".to_owned());
        }
        Ok(())
    }

    /// Every group has a block for each position that is computed, or may be, and is not behind the
    /// window of those that are confirmed.
    fn check_room(&self, sequence: &Sequence) -> Result<(), String> {
        let (computed, room) = (sequence.num_computed, sequence.room);
        if computed > room {
            return Err(format!("{computed} positions computed in room for {room}"));
        }
        #[cfg(test)]
        if self.planted.is_some_and(super::planted::PlantedBug::is_of_windows) {
            return Ok(());
        }
        for (number, (group, table)) in self.groups.iter().zip(&sequence.tables).enumerate() {
            let has = table.len() * self.limits.block_size as usize;
            if has < room {
                return Err(format!("group {number} has room for {has} positions, not {room}"));
            }
            let (empty, needed) = (table.num_empty(), group.first_needed(sequence.num_confirmed()));
            if empty > needed {
                return Err(format!(
                    "group {number} needs block {needed} and has none before {empty}"
                ));
            }
        }
        Ok(())
    }

    /// What the index says of a sequence's blocks is what the sequence holds.
    fn check_content(&self, sequence: &Sequence) -> Result<(), String> {
        let block_size = self.limits.block_size as usize;
        let tables = self.groups.iter().zip(&sequence.tables);
        let places = tables.flat_map(|(group, table)| {
            table.enumerate().map(|(place, block)| (&group.blocks, place, block))
        });
        for (blocks, place, block) in places {
            let Some((_, tokens)) = blocks.indexed_content(block) else { continue };
            let end = (place + 1) * block_size;
            if end > sequence.tokens.len() || tokens != &sequence.tokens[end - block_size..end] {
                return Err(format!("block {} is indexed with other tokens", block.0));
            }
            if end > sequence.num_computed {
                return Err(format!("block {} is indexed and not computed", block.0));
            }
        }
        Ok(())
    }

    /// A block in two tables is full, at the same place, after the same tokens and salt.
    fn check_sharing(&self, number: usize) -> Result<(), String> {
        let num_blocks = self.groups[number].blocks.num_blocks();
        let mut holder: Vec<Option<(&Sequence, usize)>> = vec![None; num_blocks];
        let block_size = self.limits.block_size as usize;
        for (_, sequence) in self.sequences.iter() {
            let Some(table) = sequence.tables.get(number) else { continue };
            for (place, BlockId(block)) in table.enumerate() {
                let Some((other, other_place)) = holder[block as usize] else {
                    holder[block as usize] = Some((sequence, place));
                    continue;
                };
                let end = (place + 1) * block_size;
                let is_same = place == other_place
                    && sequence.num_indexed > place
                    && other.num_indexed > place
                    && sequence.tokens.get(..end) == other.tokens.get(..end)
                    && sequence.request.cache_salt == other.request.cache_salt;
                if !is_same {
                    return Err(format!(
                        "block {block} of group {number} is shared by {:?} and {:?}, whose texts \
                         differ",
                        sequence.id, other.id
                    ));
                }
            }
        }
        Ok(())
    }
}
