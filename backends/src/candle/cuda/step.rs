//! A step as the device reads it: one block of words that the host fills and sends, and what the
//! operations find in it.
//!
//! Where a section begins follows from the step's [`Shape`] alone. So a recording that was made for
//! a shape finds the words of any step of that shape, and steps that only decode are padded up to
//! one of a few shapes.

use super::workspace::max_items;
use crate::candle::spec::CacheGroup;
use crate::{Batch, BatchRow};
use millstream_kernels::KernelError;
use millstream_kernels::cuda::{Array, Gpu};
use millstream_kernels::paged_attention::cuda::{
    ChunkRows, DecodeRows, PAD, Plan, TILE_QUERIES, TokenRows,
};
use millstream_kernels::sampling::ROW_WORDS;
use millstream_kernels::step;
use std::cmp::Reverse;
use std::ops::Range;

/// Sections begin where 16 bytes can be read at once.
const ALIGN: usize = 4;

/// How much of everything a step has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Shape {
    /// `T`.
    pub(crate) tokens: usize,
    /// Rows with one token.
    pub(crate) decoding: usize,
    /// Rows with several.
    pub(crate) chunks: usize,
    /// Tiles of queries of those.
    pub(crate) tiles: usize,
    /// Rows that sample.
    pub(crate) sampled: usize,
}

impl Shape {
    /// A step of so many rows that all decode and sample.
    pub(crate) fn decode(rows: usize) -> Self {
        Shape { tokens: rows, decoding: rows, chunks: 0, tiles: 0, sampled: rows }
    }

    /// The shape of a batch as it is.
    pub(crate) fn of(batch: &Batch<'_>) -> Self {
        let (mut shape, rows) = (Shape::decode(0), &batch.rows);
        shape.tokens = batch.ids.len();
        for row in rows {
            if row.len == 1 {
                shape.decoding += 1;
            } else {
                shape.chunks += 1;
                shape.tiles += row.len.div_ceil(TILE_QUERIES);
            }
        }
        shape.sampled = rows.iter().filter(|row| row.sample).count();
        shape
    }

    /// Whether all rows decode and sample, so that a larger shape can stand for it.
    pub(crate) fn is_decode(self) -> bool {
        self == Shape::decode(self.tokens)
    }
}

/// Where the sections of a shape lie, in words. `groups` cache groups have a slot mapping each.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    shape: Shape,
    ids: Range<usize>,
    positions: Range<usize>,
    row_of_token: Range<usize>,
    slots: Range<usize>,
    slot_mapping: Vec<Range<usize>>,
    /// Slot, context length and token of the rows that decode.
    decoding: [Range<usize>; 3],
    /// Slot, start, length and first token of the others.
    chunks: [Range<usize>; 4],
    tiles: Range<usize>,
    /// The tokens whose logits are computed.
    last: Range<usize>,
    /// How the rows that sample do so.
    sampling: Range<usize>,
    len: usize,
}

impl Layout {
    pub(crate) fn new(shape: Shape, groups: usize) -> Self {
        let mut len = 0;
        let mut take = |count: usize| {
            let begin = len;
            len += count.next_multiple_of(ALIGN);
            begin..begin + count
        };
        let Shape { tokens, decoding, chunks, tiles, sampled } = shape;
        Layout {
            shape,
            ids: take(tokens),
            positions: take(tokens),
            row_of_token: take(tokens),
            slots: take(decoding + chunks),
            slot_mapping: (0..groups).map(|_| take(tokens)).collect(),
            decoding: [(); 3].map(|()| take(decoding)),
            chunks: [(); 4].map(|()| take(chunks)),
            tiles: take(2 * tiles),
            last: take(sampled),
            sampling: take(sampled * ROW_WORDS),
            len,
        }
    }

    /// Words of all sections.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Fills the sections of `words` but for [`Layout::sampling`]: those of a batch whose shape
    /// this is, or that fits into it. What is more is padding, which does nothing.
    pub(crate) fn fill(&self, words: &mut [u32], batch: Option<&Batch<'_>>, block_size: usize) {
        let rows: &[BatchRow<'_>] = batch.map_or(&[], |batch| &batch.rows);
        let tokens = batch.map_or(0, |batch| batch.ids.len());
        fill(&mut words[self.ids.clone()], ids(batch), 0);
        let positions = batch.map_or(&[][..], |batch| &batch.positions);
        fill(&mut words[self.positions.clone()], positions.iter().copied(), 0);
        let row_of = (0..).zip(rows).flat_map(|(index, row)| std::iter::repeat_n(index, row.len));
        fill(&mut words[self.row_of_token.clone()], row_of, PAD);
        fill(&mut words[self.slots.clone()], rows.iter().map(|row| row.slot), 0);
        for (group, section) in self.slot_mapping.iter().enumerate() {
            let mapping = batch.map(|batch| batch.slot_mapping(group, block_size));
            fill(&mut words[section.clone()], mapping.into_iter().flatten(), PAD);
        }
        debug_assert!(tokens <= self.shape.tokens, "the batch fits into the shape");
        let starts = batch.map_or(&[][..], |batch| &batch.cu_seqlens);
        self.fill_rows(words, rows, starts);
        let last = rows.iter().zip(starts.iter().skip(1)).filter(|(row, _)| row.sample);
        fill(&mut words[self.last.clone()], last.map(|(_, end)| end - 1), PAD);
    }

    fn fill_rows(&self, words: &mut [u32], rows: &[BatchRow<'_>], starts: &[u32]) {
        let decoding = || rows.iter().zip(starts).filter(|(row, _)| row.len == 1);
        let [slot, context_len, token] = self.decoding.clone();
        fill(&mut words[slot], decoding().map(|(row, _)| row.slot), 0);
        fill(&mut words[context_len], decoding().map(|(row, _)| row.end() as u32), 0);
        fill(&mut words[token], decoding().map(|(_, start)| *start), 0);
        let chunks = || rows.iter().zip(starts).filter(|(row, _)| row.len > 1);
        let [slot, start, len, first] = self.chunks.clone();
        fill(&mut words[slot], chunks().map(|(row, _)| row.slot), 0);
        fill(&mut words[start], chunks().map(|(row, _)| row.start as u32), 0);
        fill(&mut words[len], chunks().map(|(row, _)| row.len as u32), 0);
        fill(&mut words[first], chunks().map(|(_, start)| *start), 0);
        // Those that see most first, so that what runs last is short.
        let mut tiles: Vec<(usize, [u32; 2])> = (0..)
            .zip(chunks())
            .flat_map(|(index, (row, _))| {
                let queries = (0..row.len).step_by(TILE_QUERIES);
                queries.map(move |query| (row.start + query, [index, query as u32]))
            })
            .collect();
        tiles.sort_by_key(|(position, _)| Reverse(*position));
        fill(&mut words[self.tiles.clone()], tiles.iter().flat_map(|(_, tile)| *tile), PAD);
    }

    /// The section that says how rows sample.
    pub(crate) fn sampling(&self) -> Range<usize> {
        self.sampling.clone()
    }
}

/// The batch's ids as the device takes them: what is not known yet as its slot.
fn ids<'a>(batch: Option<&'a Batch<'_>>) -> impl Iterator<Item = u32> + 'a {
    let rows = batch.into_iter().flat_map(|batch| {
        batch.rows.iter().zip(&batch.cu_seqlens).map(|(row, start)| {
            let start = *start as usize;
            (row.slot, &batch.ids[start..start + row.len])
        })
    });
    rows.flat_map(|(slot, ids)| {
        ids.iter().map(move |id| match *id {
            Batch::UNKNOWN => step::from_slot(slot),
            id => id,
        })
    })
}

/// Writes `values`, and `padding` behind them.
fn fill(section: &mut [u32], values: impl Iterator<Item = u32>, padding: u32) {
    let mut values = values;
    section.fill_with(|| values.next().unwrap_or(padding));
    debug_assert!(values.next().is_none(), "more values than the section has room for");
}

/// A step's words, as the operations take them.
#[derive(Clone, Debug)]
pub(crate) struct Pass {
    /// `T`.
    pub(crate) tokens: usize,
    /// `[T]` u32.
    pub(crate) ids: Array,
    /// `[T]` u32.
    pub(crate) positions: Array,
    row_of_token: Array,
    slots: Array,
    /// Per cache group.
    pub(crate) groups: Vec<GroupPass>,
    /// Slot, context length and token of the rows that decode; none where none does.
    decoding: Option<[Array; 3]>,
    pub(crate) chunks: Option<Chunks>,
    /// `[R]` u32: the tokens whose logits are computed.
    pub(crate) last: Array,
}

/// Where a cache group's tokens are.
#[derive(Clone, Debug)]
pub(crate) struct GroupPass {
    /// `[T]` u32.
    pub(crate) slot_mapping: Array,
    /// `[max_slots, max_blocks]` u32.
    pub(crate) tables: Array,
    pub(crate) max_blocks: usize,
    /// What the rows that decode read; none where none does, or no kernel asks.
    pub(crate) plan: Option<Plan>,
}

/// The rows with several tokens.
#[derive(Clone, Debug)]
pub(crate) struct Chunks {
    rows: [Array; 4],
    /// `[tiles, 2]` u32.
    pub(crate) tiles: Array,
}

impl Chunks {
    pub(crate) fn rows(&self) -> ChunkRows<'_> {
        let [slot, start, len, first] = &self.rows;
        ChunkRows { slot, start, len, first }
    }
}

/// What stays on the device from step to step, for all cache groups.
#[derive(Debug)]
pub(crate) struct Tables {
    /// `[groups, max_slots, max_blocks]` u32.
    pub(crate) all: Array,
    pub(crate) max_slots: usize,
    pub(crate) max_blocks: usize,
    /// Memory of each group's plan, u32; none where no kernel asks for one.
    pub(crate) plans: Option<Vec<Array>>,
    pub(crate) groups: Vec<CacheGroup>,
}

impl Pass {
    /// The pass that finds its words in `packed`, as `layout` says.
    pub(crate) fn new(
        layout: &Layout,
        packed: &Array,
        tables: &Tables,
    ) -> Result<Self, KernelError> {
        let at = |section: &Range<usize>| packed.slice(section.clone());
        let Shape { tokens, decoding, chunks, .. } = layout.shape;
        let group = |(index, section): (usize, &Range<usize>)| {
            let len = tables.max_slots * tables.max_blocks;
            let plan = match &tables.plans {
                Some(plans) if decoding > 0 => {
                    let items = max_items(decoding);
                    let memory = plans[index].slice(0..Plan::len(decoding, items));
                    Some(Plan::new(&memory, decoding, items, tables.groups[index].window)?)
                }
                _ => None,
            };
            Ok::<_, KernelError>(GroupPass {
                slot_mapping: at(section),
                tables: tables.all.slice(index * len..(index + 1) * len),
                max_blocks: tables.max_blocks,
                plan,
            })
        };
        Ok(Pass {
            tokens,
            ids: at(&layout.ids),
            positions: at(&layout.positions),
            row_of_token: at(&layout.row_of_token),
            slots: at(&layout.slots),
            groups: layout.slot_mapping.iter().enumerate().map(group).collect::<Result<_, _>>()?,
            decoding: (decoding > 0).then(|| layout.decoding.each_ref().map(at)),
            chunks: (chunks > 0).then(|| Chunks {
                rows: layout.chunks.each_ref().map(at),
                tiles: at(&layout.tiles),
            }),
            last: at(&layout.last),
        })
    }

    /// Lists what the rows that decode will read, for every group.
    pub(crate) fn plan(&self, gpu: &Gpu) -> Result<(), KernelError> {
        let Some([slot, context_len, token]) = &self.decoding else { return Ok(()) };
        let rows = DecodeRows { slot, context_len, token };
        let mut plans = self.groups.iter().filter_map(|group| group.plan.as_ref());
        plans.try_for_each(|plan| plan.make(gpu, &rows))
    }

    /// Items that the plans of the rows that decode have room for.
    pub(crate) fn max_items(&self) -> Option<usize> {
        self.decoding.as_ref().map(|[slot, ..]| max_items(slot.len()))
    }

    /// All rows, for attention that takes them token by token.
    pub(crate) fn token_rows(&self) -> TokenRows<'_> {
        let (row_of_token, positions) = (&self.row_of_token, &self.positions);
        TokenRows { slot: &self.slots, row_of_token, positions }
    }
}
