//! What the device has been told of the slots: which sequence is in each, how much of its block
//! tables is there, and whether its tokens are counted.

use crate::{Batch, Sequence};

/// The slots as the device knows them.
#[derive(Debug)]
pub(crate) struct Told {
    slots: Vec<Known>,
    groups: usize,
    /// Places of a slot's table.
    max_blocks: usize,
}

#[derive(Clone, Debug, Default)]
struct Known {
    /// Of the sequence that is there.
    serial: Option<u64>,
    /// Per cache group, blocks of its table that are there.
    blocks: Vec<usize>,
}

/// What the device does not know yet and needs for a batch.
#[derive(Debug, Default)]
pub(crate) struct News<'a> {
    /// Places in the block tables of all groups, and the blocks that come there.
    pub(crate) blocks: Vec<[u32; 2]>,
    /// Slots whose sequences are new and have penalties: their tokens are to be counted.
    pub(crate) texts: Vec<(u32, &'a Sequence)>,
}

impl Told {
    /// Nothing is known of any slot.
    pub(crate) fn new(max_slots: usize, max_blocks: usize, groups: usize) -> Self {
        Told { slots: vec![Known::default(); max_slots], groups, max_blocks }
    }

    /// Forgets all slots.
    pub(crate) fn clear(&mut self) {
        self.slots.fill_with(Known::default);
    }

    /// What is new in a batch. It is known from now on.
    pub(crate) fn news<'a>(&mut self, batch: &Batch<'a>) -> News<'a> {
        let (mut news, max_slots) = (News::default(), self.slots.len());
        for row in &batch.rows {
            let sequence = row.sequence;
            let known = &mut self.slots[row.slot as usize];
            if known.serial != Some(sequence.serial) {
                *known = Known { serial: Some(sequence.serial), blocks: vec![0; self.groups] };
                if !sequence.sampling.penalties.is_off() {
                    news.texts.push((row.slot, sequence));
                }
            }
            for (group, table) in sequence.block_tables.iter().enumerate() {
                let begin = (group * max_slots + row.slot as usize) * self.max_blocks;
                let here = known.blocks[group];
                let blocks = table.iter().enumerate().take(self.max_blocks).skip(here);
                news.blocks.extend(blocks.map(|(place, block)| [(begin + place) as u32, *block]));
                known.blocks[group] = table.len();
            }
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BatchRow, SamplingParams};

    fn sequence(serial: u64, tables: [&[u32]; 2]) -> Sequence {
        let block_tables = tables.map(<[u32]>::to_vec).to_vec();
        Sequence { serial, tokens: vec![1, 2], block_tables, ..Sequence::default() }
    }

    fn news(told: &mut Told, slot: u32, sequence: &Sequence) -> (Vec<[u32; 2]>, usize) {
        let row = BatchRow { slot, sequence, start: 0, len: 1, sample: false };
        let news = told.news(&Batch::new(vec![row]));
        (news.blocks, news.texts.len())
    }

    #[test]
    fn a_table_is_told_once_and_again_for_another_sequence() {
        let mut told = Told::new(3, 4, 2);
        let first = sequence(7, [&[5, 6], &[8]]);
        assert_eq!(news(&mut told, 1, &first).0, [[4, 5], [5, 6], [16, 8]]);
        assert!(news(&mut told, 1, &first).0.is_empty());
        let grown = sequence(7, [&[5, 6], &[8, 9]]);
        assert_eq!(news(&mut told, 1, &grown).0, [[17, 9]]);
        let other = sequence(8, [&[5], &[]]);
        assert_eq!(news(&mut told, 1, &other).0, [[4, 5]]);
        told.clear();
        assert_eq!(news(&mut told, 1, &other).0, [[4, 5]]);
    }

    #[test]
    fn tokens_are_counted_where_penalties_ask_for_it() {
        let mut told = Told::new(1, 4, 2);
        let mut sequence = sequence(1, [&[], &[]]);
        assert_eq!(news(&mut told, 0, &sequence).1, 0);
        sequence.serial = 2;
        sequence.sampling = SamplingParams::default();
        sequence.sampling.penalties.frequency = 0.5;
        assert_eq!([news(&mut told, 0, &sequence).1, news(&mut told, 0, &sequence).1], [1, 0]);
    }
}
