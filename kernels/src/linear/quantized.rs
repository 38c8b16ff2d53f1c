//! A quantised matrix in panels: the order in which products read it.
//!
//! ```text
//! panel p     columns 32p .. 32p + 32 of the result, which are rows of w
//!   block b   elements 32b .. 32b + 32 of each: integers, then scales, then minima
//!     line    four of the elements of each, as unsigned bytes; in 4 bits, two times four of them
//! ```
//!
//! A panel is one run of memory that a product reads from its beginning to its end: 1088 bytes for a
//! block in 8 bits, 640 in 4 bits. What is missing of the last panel and of the last block is zero.

use std::fmt;
use std::sync::OnceLock;

use half::f16;

use super::blocks::{Block, Quantization, QuantizeRow};
use crate::simd::bytes::{BLOCK, ByteDot, OFFSET, QUADS, Quads, XBlock};
use crate::simd::memory::{Lasting, collect_runs};
use crate::simd::pairs::COLUMNS;
use crate::simd::{LANES, Level};
use crate::{KernelError, Result};

/// A number for each column of a panel.
type Columns = [[f16; LANES]; 2];

/// A block of each column of a panel.
pub(super) trait PanelBlock: Copy + Send + Sync {
    /// What may be in a [`Block`].
    const RULE: &'static str;
    /// Rows of a tile, on wide units: 4 or 6.
    const MAX_ROWS: usize;

    /// Whether `block` is within [`Self::RULE`].
    fn accepts(block: &Block) -> bool;
    /// Of the blocks of all columns.
    fn pack(columns: [&Block; COLUMNS]) -> Self;
    /// The block of a column.
    fn column(&self, column: usize) -> Block;

    /// From where the sum of a block's products begins, so that it becomes that of q.
    fn start<D: ByteDot>(x: &XBlock<D::X>) -> i32;
    /// Of the sixteen columns `v`, quads 2i and 2i + 1.
    fn quads<D: ByteDot>(&self, d: D, i: usize, v: usize) -> [D::W; 2];
    fn scales(&self) -> &Columns;
    fn mins(&self) -> Option<&Columns>;
}

/// In 8 bits: integers + 128.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Int8 {
    quads: [[Quads; 2]; QUADS],
    scales: Columns,
}

impl PanelBlock for Int8 {
    const RULE: &'static str = "blocks whose minimum is 0";
    /// The compiler does not keep the sums of more in registers.
    const MAX_ROWS: usize = 4;

    fn accepts(block: &Block) -> bool {
        block.min == 0.0
    }

    fn pack(columns: [&Block; COLUMNS]) -> Self {
        let mut quads = [[[[0; 4]; LANES]; 2]; QUADS];
        for (c, block) in columns.into_iter().enumerate() {
            for (line, q) in quads.iter_mut().zip(block.q.as_chunks().0) {
                line.as_flattened_mut()[c] = q.map(|q: i8| (i32::from(q) + OFFSET) as u8);
            }
        }
        Self { quads, scales: per_column(columns, |block| block.scale) }
    }

    fn column(&self, column: usize) -> Block {
        let mut block = Block { scale: number(&self.scales, column), ..Block::ZERO };
        for (line, q) in self.quads.iter().zip(block.q.as_chunks_mut().0) {
            *q = line.as_flattened()[column].map(|q| (i32::from(q) - OFFSET) as i8);
        }
        block
    }

    #[inline(always)]
    fn start<D: ByteDot>(x: &XBlock<D::X>) -> i32 {
        if D::OFFSET == 0 { 0 } else { x.start }
    }

    #[inline(always)]
    fn quads<D: ByteDot>(&self, d: D, i: usize, v: usize) -> [D::W; 2] {
        [d.load(&self.quads[2 * i][v]), d.load(&self.quads[2 * i + 1][v])]
    }

    #[inline(always)]
    fn scales(&self) -> &Columns {
        &self.scales
    }

    #[inline(always)]
    fn mins(&self) -> Option<&Columns> {
        None
    }
}

/// In 4 bits: the low halves of line i are quad 2i, the high ones quad 2i + 1.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Int4 {
    quads: [[Quads; 2]; QUADS / 2],
    scales: Columns,
    mins: Columns,
}

impl PanelBlock for Int4 {
    const RULE: &'static str = "integers from 0 to 15";
    /// The more rows, the fewer times a line is taken apart.
    const MAX_ROWS: usize = 6;

    fn accepts(block: &Block) -> bool {
        block.q.iter().fold(0, |all, q| all | q) & !15 == 0
    }

    fn pack(columns: [&Block; COLUMNS]) -> Self {
        let mut quads = [[[[0; 4]; LANES]; 2]; QUADS / 2];
        for (c, block) in columns.into_iter().enumerate() {
            for (line, q) in quads.iter_mut().zip(block.q.as_chunks::<8>().0) {
                let halves = |k| (q[k] | q[k + 4] << 4) as u8;
                line.as_flattened_mut()[c] = [halves(0), halves(1), halves(2), halves(3)];
            }
        }
        let scales = per_column(columns, |block| block.scale);
        Self { quads, scales, mins: per_column(columns, |block| block.min) }
    }

    fn column(&self, column: usize) -> Block {
        let (scale, min) = (number(&self.scales, column), number(&self.mins, column));
        let mut block = Block { scale, min, ..Block::ZERO };
        for (line, q) in self.quads.iter().zip(block.q.as_chunks_mut::<8>().0) {
            for (k, both) in line.as_flattened()[column].into_iter().enumerate() {
                (q[k], q[k + 4]) = ((both & 15) as i8, (both >> 4) as i8);
            }
        }
        block
    }

    #[inline(always)]
    fn start<D: ByteDot>(_: &XBlock<D::X>) -> i32 {
        0
    }

    #[inline(always)]
    fn quads<D: ByteDot>(&self, d: D, i: usize, v: usize) -> [D::W; 2] {
        d.load_halves(&self.quads[i][v])
    }

    #[inline(always)]
    fn scales(&self) -> &Columns {
        &self.scales
    }

    #[inline(always)]
    fn mins(&self) -> Option<&Columns> {
        Some(&self.mins)
    }
}

fn per_column(columns: [&Block; COLUMNS], number: impl Fn(&Block) -> f32) -> Columns {
    let mut all = [[f16::ZERO; LANES]; 2];
    for (to, block) in all.as_flattened_mut().iter_mut().zip(columns) {
        *to = f16::from_f32(number(block));
    }
    all
}

fn number(all: &Columns, column: usize) -> f32 {
    all.as_flattened()[column].to_f32()
}

/// `w [N, K]` in panels.
pub(crate) struct Quantized {
    pub(super) panels: Panels,
    /// Of a panel: K / 32, rounded up.
    pub(super) blocks: usize,
}

/// `[panels][blocks]`.
pub(super) enum Panels {
    Int8(Lasting<Int8>),
    Int4(Lasting<Int4>),
}

impl fmt::Debug for Quantized {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.panels {
            Panels::Int8(_) => Quantization::Int8,
            Panels::Int4(_) => Quantization::Int4,
        };
        f.debug_struct("Quantized").field("kind", &kind).finish_non_exhaustive()
    }
}

impl Quantized {
    /// Quantises w, `[N, K]`, of which `read` writes row n.
    pub(super) fn from_rows(
        [out_features, in_features]: [usize; 2],
        quantization: Quantization,
        read: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Result<Self> {
        let level = Level::current();
        Self::from_blocks([out_features, in_features], quantization, |n, to| {
            let mut row = vec![0.0; in_features];
            read(n, &mut row);
            level.run(QuantizeRow { row: &row, to, quantization });
        })
    }

    /// Packs w, `[N, K]`, of which `read` writes the blocks of row n.
    pub(super) fn from_blocks(
        shape: [usize; 2],
        quantization: Quantization,
        read: impl Fn(usize, &mut [Block]) + Sync,
    ) -> Result<Self> {
        let panels = match quantization {
            Quantization::Int8 => Panels::Int8(pack(shape, read)?),
            Quantization::Int4 => Panels::Int4(pack(shape, read)?),
        };
        Ok(Self { panels, blocks: shape[1].div_ceil(BLOCK) })
    }

    /// Writes row `n` of w to `to`, as long as it is.
    pub(crate) fn row(&self, n: usize, to: &mut [f32]) {
        match &self.panels {
            Panels::Int8(panels) => self.row_of(panels, n, to),
            Panels::Int4(panels) => self.row_of(panels, n, to),
        }
    }

    fn row_of<B: PanelBlock>(&self, panels: &[B], n: usize, to: &mut [f32]) {
        let panel = &panels[n / COLUMNS * self.blocks..][..self.blocks];
        for (block, to) in panel.iter().zip(to.chunks_mut(BLOCK)) {
            let block = block.column(n % COLUMNS);
            for (k, to) in to.iter_mut().enumerate() {
                *to = block.element(k);
            }
        }
    }
}

/// The panels of w, which threads share out. Of w, only the rows of the panels that are being made
/// are in memory.
fn pack<B: PanelBlock>(
    [out_features, in_features]: [usize; 2],
    read: impl Fn(usize, &mut [Block]) + Sync,
) -> Result<Lasting<B>> {
    let blocks = in_features.div_ceil(BLOCK);
    let broken = OnceLock::new();
    // Some 2 elements a nanosecond, where they are quantised first.
    let nanoseconds = out_features * in_features / 2;
    let panels = collect_runs(out_features.div_ceil(COLUMNS), blocks, nanoseconds, |panel| {
        let mut rows = vec![Block::ZERO; COLUMNS * blocks];
        for (n, row) in (panel * COLUMNS..out_features).zip(rows.chunks_exact_mut(blocks.max(1))) {
            read(n, row);
            if let Some(b) = row.iter().position(|block| !B::accepts(block)) {
                broken.get_or_init(|| KernelError::Value {
                    argument: "blocks",
                    rule: B::RULE.to_owned(),
                    found: format!("row {n}, block {b}: {:?}", row[b]),
                });
            }
        }
        (0..blocks).map(move |b| B::pack(std::array::from_fn(|c| &rows[c * blocks + b])))
    });
    match broken.into_inner() {
        None => Ok(panels),
        Some(error) => Err(error),
    }
}
