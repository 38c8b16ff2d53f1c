//! One forward pass, flat and ragged: the rows' tokens lie one after the other.
//!
//! `T` tokens in `S` rows. Row `i` covers `ids[cu_seqlens[i]..cu_seqlens[i + 1]]`. Its tokens'
//! keys and values go where [`Batch::slot_mapping`] says, and are read back, together with those
//! of earlier steps, through [`Batch::block_tables`].

use std::ops::Range;

use crate::slots::Sequence;

/// What one forward pass computes.
#[derive(Debug)]
pub struct Batch<'a> {
    /// `[T]` token ids, or [`UNKNOWN`](Self::UNKNOWN).
    pub ids: Vec<u32>,
    /// `[T]` absolute positions.
    pub positions: Vec<u32>,
    /// `[S + 1]` where each row begins in `ids`; the last is `T`.
    pub cu_seqlens: Vec<u32>,
    /// `[S]` tokens of each sequence that are in the cache once this step's are.
    pub context_lens: Vec<u32>,
    /// `[S]` the rows.
    pub rows: Vec<BatchRow<'a>>,
}

/// One sequence's share of a batch: `len` tokens from position `start` on.
#[derive(Clone, Copy, Debug)]
pub struct BatchRow<'a> {
    /// The slot that the sequence occupies.
    pub slot: u32,
    /// The sequence, with the tokens and blocks that the row needs.
    pub sequence: &'a Sequence,
    /// First position to compute.
    pub start: usize,
    /// Positions to compute, at least 1.
    pub len: usize,
    /// Whether to sample the token after the last one.
    pub sample: bool,
}

impl BatchRow<'_> {
    /// The position after the row's last, which is the position of a token sampled from it.
    pub fn end(&self) -> usize {
        self.start + self.len
    }

    /// The positions of the prompt's tokens whose log-probabilities this row reports; each is
    /// predicted by the position before it.
    pub fn reported(&self) -> Range<usize> {
        let Some(from) = self.sequence.prompt_logprobs_from else { return 0..0 };
        let end = (self.end() + 1).min(self.sequence.prompt_len);
        from.max(self.start + 1).min(end)..end
    }
}

impl<'a> Batch<'a> {
    /// The id of a token that is not known yet: a batch in flight samples it. It is the last one of
    /// its row, and the device has it (see [`Pipeline`](crate::Pipeline)).
    pub const UNKNOWN: u32 = u32::MAX;

    /// Lays the rows out flat. Each row's range must be within its sequence's tokens, and those that
    /// are promised.
    pub fn new(rows: Vec<BatchRow<'a>>) -> Self {
        let num_tokens = rows.iter().map(|row| row.len).sum();
        let mut batch = Batch {
            ids: Vec::with_capacity(num_tokens),
            positions: Vec::with_capacity(num_tokens),
            cu_seqlens: vec![0],
            context_lens: rows.iter().map(|row| row.end() as u32).collect(),
            rows,
        };
        for row in &batch.rows {
            let tokens = &row.sequence.tokens;
            let known = row.end().min(tokens.len());
            batch.ids.extend_from_slice(&tokens[row.start.min(known)..known]);
            batch.ids.resize(batch.positions.len() + row.len, Self::UNKNOWN);
            batch.positions.extend(row.start as u32..row.end() as u32);
            batch.cu_seqlens.push(batch.ids.len() as u32);
        }
        batch
    }

    /// The rows' block tables in a cache group, `[S]` of a block for each place up to the row's end
    /// or beyond. In a group with a window the places that it has passed hold any number, also
    /// [`NO_BLOCK`](millstream_proto::NO_BLOCK): whoever reads the tables must not look there.
    pub fn block_tables(&self, group: usize) -> Vec<&[u32]> {
        self.rows.iter().map(|row| row.sequence.block_tables[group].as_slice()).collect()
    }

    /// Where each token's keys and values go in a cache group: `[T]` of
    /// `block * block_size + offset`.
    pub fn slot_mapping(&self, group: usize, block_size: usize) -> Vec<u32> {
        let cells = self.rows.iter().flat_map(|row| {
            let block_table = &row.sequence.block_tables[group];
            (row.start..row.end()).map(move |position| {
                block_table[position / block_size] * block_size as u32
                    + (position % block_size) as u32
            })
        });
        cells.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_report_each_token_of_the_prompt_once() {
        let sequence = |prompt_logprobs_from| Sequence {
            prompt_len: 5,
            tokens: vec![0; 7],
            prompt_logprobs_from,
            ..Sequence::default()
        };
        let reported = |from, start, len| {
            let sequence = &sequence(from);
            BatchRow { slot: 0, sequence, start, len, sample: false }.reported()
        };
        assert_eq!([reported(Some(1), 0, 2), reported(Some(1), 2, 1)], [1..3, 3..4]);
        assert_eq!([reported(Some(1), 3, 2), reported(Some(1), 3, 4)], [4..5, 4..5]);
        assert_eq!(reported(Some(3), 0, 7), 3..5);
        let none = [reported(Some(4), 0, 2), reported(Some(1), 5, 2), reported(None, 0, 7)];
        assert!(none.iter().all(Range::is_empty), "{none:?}");
    }

    #[test]
    fn rows_of_different_lengths_lie_one_after_the_other() {
        let first = Sequence {
            tokens: vec![10, 11, 12, 13, 14],
            block_tables: vec![vec![7, 3]],
            ..Sequence::default()
        };
        let second =
            Sequence { tokens: vec![20], block_tables: vec![vec![5]], ..Sequence::default() };
        let batch = Batch::new(vec![
            BatchRow { slot: 0, sequence: &first, start: 2, len: 3, sample: true },
            BatchRow { slot: 1, sequence: &second, start: 0, len: 1, sample: false },
        ]);
        assert_eq!(batch.ids, [12, 13, 14, 20]);
        assert_eq!(batch.positions, [2, 3, 4, 0]);
        assert_eq!(batch.cu_seqlens, [0, 3, 4]);
        assert_eq!(batch.context_lens, [5, 1]);
        assert_eq!(batch.block_tables(0), [&[7, 3][..], &[5]]);
        assert_eq!(batch.slot_mapping(0, 4), [30, 31, 12, 20]);
    }

    #[test]
    fn a_token_that_is_promised_is_unknown() {
        let sequence = Sequence { tokens: vec![10, 11], ..Sequence::default() };
        let ids = |start, len| {
            let row = BatchRow { slot: 0, sequence: &sequence, start, len, sample: true };
            Batch::new(vec![row; 2]).ids
        };
        assert_eq!(ids(2, 1), [Batch::UNKNOWN; 2]);
        assert_eq!(ids(1, 2), [11, Batch::UNKNOWN, 11, Batch::UNKNOWN]);
    }
}
