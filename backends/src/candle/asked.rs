//! The tokens of a pass whose residual stream is asked for after the last layer.
//!
//! Of the others that layer computes keys and values, which later tokens read, and nothing else.

use super::layers::Pass;
use millstream_kernels::paged_attention::PagedBatch;

/// Some tokens of a pass, with where attention finds their contexts in one cache group.
pub(crate) struct Asked<'a> {
    /// `[R]` indices of tokens, rising.
    pub(crate) rows: &'a [u32],
    /// Tokens that follow each other in a sequence are a row of attention, as in [`PagedBatch`].
    cu_seqlens: Vec<u32>,
    context_lens: Vec<u32>,
    block_tables: Vec<&'a [u32]>,
}

impl<'a> Asked<'a> {
    /// The tokens `rows` of `pass`, rising; there may be none.
    pub(crate) fn new(rows: &'a [u32], pass: &Pass<'a>, group: usize) -> Self {
        let follows = |a: &u32, b: &u32| a + 1 == *b && !pass.cu_seqlens.contains(b);
        let mut asked =
            Self { rows, cu_seqlens: vec![0], context_lens: Vec::new(), block_tables: Vec::new() };
        let mut end = 0;
        for run in rows.chunk_by(follows) {
            end += run.len();
            let last = run[run.len() - 1];
            let sequence = pass.cu_seqlens.partition_point(|&start| start <= last) - 1;
            asked.cu_seqlens.push(end as u32);
            asked.context_lens.push(pass.positions[last as usize] + 1);
            asked.block_tables.push(pass.groups[group].block_tables[sequence]);
        }
        asked
    }

    /// As attention takes them.
    pub(crate) fn batch(&self) -> PagedBatch<'_> {
        PagedBatch {
            cu_seqlens: &self.cu_seqlens,
            context_lens: &self.context_lens,
            block_tables: &self.block_tables,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::clock::Clock;
    use super::super::layers::GroupPass;
    use super::*;

    #[test]
    fn tokens_that_follow_each_other_in_a_sequence_attend_together() {
        // Sequences of 3, 4 and 1 tokens, from positions 10, 0 and 7 on.
        let groups =
            vec![GroupPass { block_tables: vec![&[5, 6], &[7], &[8]], slot_mapping: vec![] }];
        let pass = Pass {
            positions: &[10, 11, 12, 0, 1, 2, 3, 7],
            cu_seqlens: &[0, 3, 7, 8],
            context_lens: &[13, 4, 8],
            groups,
            clock: &Clock::default(),
        };
        let asked = Asked::new(&[1, 2, 3, 4, 6, 7], &pass, 0);
        let batch = asked.batch();
        assert_eq!(batch.cu_seqlens, [0, 2, 4, 5, 6]);
        assert_eq!(batch.context_lens, [13, 2, 4, 8]);
        assert_eq!(batch.block_tables, [&[5, 6][..], &[7], &[7], &[8]]);
    }
}
