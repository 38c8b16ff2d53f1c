//! A quantised matrix in panels: the order in which products read it.
//!
//! ```text
//! panel p     columns 32p .. 32p + 32 of the result, which are rows of w
//!   group g   some blocks of 32 elements of each: integers, then scales, then minima
//!     step    eight of the elements of each: in 8 bits four lines, in 4 bits two
//! ```
//!
//! A line is one of the cache. A panel is one run of them that a product reads from its beginning to
//! its end. What is missing of the last panel and of the last group is zero.

use std::fmt;
use std::sync::OnceLock;

use half::f16;

use super::blocks::{Block, Quantization, QuantizeRow};
use crate::simd::bytes::{ByteDot, OFFSET, Quads};
use crate::simd::groups::{BLOCK, STEPS, XGroup};
use crate::simd::memory::{Lasting, collect_runs};
use crate::simd::pairs::COLUMNS;
use crate::simd::{LANES, Level};
use crate::{KernelError, Result};

/// A quad of each of sixteen columns, or a number of each of 32.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Line(Quads);

impl Line {
    const ZERO: Self = Self([[0; 4]; LANES]);

    #[inline(always)]
    pub(super) fn numbers(&self) -> &[[f16; LANES]; 2] {
        // SAFETY: both have 64 bytes, of which every pattern is a value, and a line is aligned.
        #[allow(unsafe_code)] // The same bytes as another type.
        unsafe {
            &*std::ptr::from_ref(&self.0).cast()
        }
    }

    /// What lies so many bytes after it, which may be anything.
    #[inline(always)]
    pub(super) fn after(&self, bytes: usize) -> *const u8 {
        std::ptr::from_ref(self).cast::<u8>().wrapping_add(bytes)
    }

    fn number(&self, column: usize) -> f32 {
        self.numbers().as_flattened()[column].to_f32()
    }

    fn set_number(&mut self, column: usize, number: f32) {
        let bytes = self.0.as_flattened_mut();
        let bytes = &mut bytes[column * size_of::<f16>()..][..size_of::<f16>()];
        bytes.copy_from_slice(&f16::from_f32(number).to_ne_bytes());
    }
}

/// How a step of all columns of a panel is kept, in `L` lines.
pub(super) trait Format<const L: usize> {
    /// What may be in a [`Block`].
    const RULE: &'static str;
    /// Lines of numbers at the end of a group: scales, and minima if there are two.
    const SHARED: usize;
    /// Rows of a tile that is the only one of a panel, on wide units: two bring the next panel nearer,
    /// but take each line apart twice.
    const MAX_ALONE: usize;

    /// Whether `block` is within [`Self::RULE`].
    fn accepts(block: &Block) -> bool;
    /// Writes the integers of a column.
    fn pack(q: &[i8; BLOCK], column: usize, steps: &mut [[Line; L]]);
    /// Reads them.
    fn column(steps: &[[Line; L]], column: usize) -> [i8; BLOCK];

    /// From where the sum of a group's products begins, so that it becomes that of q.
    fn start<D: ByteDot>(x: &XGroup) -> i32;
    /// The two quads of the sixteen columns `v`.
    fn quads<D: ByteDot>(d: D, step: &[Line; L], v: usize) -> [D::W; 2];
}

/// In 8 bits: integers + 128. A line is a quad of sixteen columns.
pub(super) struct Int8;

impl Format<4> for Int8 {
    const RULE: &'static str = "blocks whose minimum is 0";
    const SHARED: usize = 1;
    const MAX_ALONE: usize = 4;

    fn accepts(block: &Block) -> bool {
        block.min == 0.0
    }

    fn pack(q: &[i8; BLOCK], column: usize, steps: &mut [[Line; 4]]) {
        let (v, lane) = (column / LANES, column % LANES);
        for (step, q) in steps.iter_mut().zip(q.as_chunks().0.as_chunks::<2>().0) {
            step[v].0[lane] = q[0].map(|q: i8| (i32::from(q) + OFFSET) as u8);
            step[2 + v].0[lane] = q[1].map(|q| (i32::from(q) + OFFSET) as u8);
        }
    }

    fn column(steps: &[[Line; 4]], column: usize) -> [i8; BLOCK] {
        let (v, lane, mut q) = (column / LANES, column % LANES, [0; BLOCK]);
        for (step, q) in steps.iter().zip(q.as_chunks_mut().0.as_chunks_mut::<2>().0) {
            q[0] = step[v].0[lane].map(|q| (i32::from(q) - OFFSET) as i8);
            q[1] = step[2 + v].0[lane].map(|q| (i32::from(q) - OFFSET) as i8);
        }
        q
    }

    #[inline(always)]
    fn start<D: ByteDot>(x: &XGroup) -> i32 {
        if D::OFFSET == 0 { 0 } else { x.start }
    }

    #[inline(always)]
    fn quads<D: ByteDot>(d: D, step: &[Line; 4], v: usize) -> [D::W; 2] {
        [d.load(&step[v].0), d.load(&step[2 + v].0)]
    }
}

/// In 4 bits. A line is two quads of sixteen columns: the low halves, and the high ones.
pub(super) struct Int4;

impl Format<2> for Int4 {
    const RULE: &'static str = "integers from 0 to 15";
    const SHARED: usize = 2;
    const MAX_ALONE: usize = 8;

    fn accepts(block: &Block) -> bool {
        block.q.iter().fold(0, |all, q| all | q) & !15 == 0
    }

    fn pack(q: &[i8; BLOCK], column: usize, steps: &mut [[Line; 2]]) {
        for (step, q) in steps.iter_mut().zip(q.as_chunks::<8>().0) {
            let halves = |k| (q[k] | q[k + 4] << 4) as u8;
            step[column / LANES].0[column % LANES] = [halves(0), halves(1), halves(2), halves(3)];
        }
    }

    fn column(steps: &[[Line; 2]], column: usize) -> [i8; BLOCK] {
        let mut q = [0; BLOCK];
        for (step, q) in steps.iter().zip(q.as_chunks_mut::<8>().0) {
            for (k, both) in step[column / LANES].0[column % LANES].into_iter().enumerate() {
                (q[k], q[k + 4]) = ((both & 15) as i8, (both >> 4) as i8);
            }
        }
        q
    }

    #[inline(always)]
    fn start<D: ByteDot>(_: &XGroup) -> i32 {
        0
    }

    #[inline(always)]
    fn quads<D: ByteDot>(d: D, step: &[Line; 2], v: usize) -> [D::W; 2] {
        d.load_halves(&step[v].0)
    }
}

/// `w [N, K]` in panels.
pub(crate) struct Quantized {
    lines: Lasting<Line>,
    pub(super) kind: Quantization,
    pub(super) shape: Shape,
}

/// That of a panel.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub(super) groups: usize,
    /// Of a group.
    pub(super) blocks: usize,
}

impl Shape {
    fn new(in_features: usize, blocks: usize) -> Self {
        Self { groups: in_features.div_ceil(blocks * BLOCK), blocks }
    }

    /// Lines of a group.
    pub(super) fn group_lines<F: Format<L>, const L: usize>(self) -> usize {
        self.blocks * STEPS * L + F::SHARED
    }
}

/// The steps of a group, and what their elements have in common.
#[inline(always)]
pub(super) fn split<F: Format<L>, const L: usize>(group: &[Line]) -> (&[[Line; L]], &[Line]) {
    let (steps, shared) = group.split_at(group.len() - F::SHARED);
    (steps.as_chunks().0, shared)
}

impl fmt::Debug for Quantized {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Quantized").field("kind", &self.kind).finish_non_exhaustive()
    }
}

impl Quantized {
    /// Quantises w, `[N, K]`, of which `read` writes row n, by groups of [`Quantization::GROUP`].
    pub(super) fn from_rows(
        [out_features, in_features]: [usize; 2],
        kind: Quantization,
        read: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Result<Self> {
        let level = Level::current();
        Self::new([out_features, in_features], kind, Quantization::GROUP / BLOCK, |n, to| {
            let mut row = vec![0.0; in_features];
            read(n, &mut row);
            level.run(QuantizeRow { row: &row, to, kind });
        })
    }

    /// Packs w, `[N, K]`, of which `read` writes the blocks of row n, each of them a group.
    pub(super) fn from_blocks(
        shape: [usize; 2],
        kind: Quantization,
        read: impl Fn(usize, &mut [Block]) + Sync,
    ) -> Result<Self> {
        Self::new(shape, kind, 1, read)
    }

    fn new(
        [out_features, in_features]: [usize; 2],
        kind: Quantization,
        blocks: usize,
        read: impl Fn(usize, &mut [Block]) + Sync,
    ) -> Result<Self> {
        let shape = Shape::new(in_features, blocks);
        let size = [out_features, in_features];
        let lines = match kind {
            Quantization::Int8 => pack::<Int8, 4>(size, shape, read)?,
            Quantization::Int4 => pack::<Int4, 2>(size, shape, read)?,
        };
        Ok(Self { lines, kind, shape })
    }

    /// The panels from the one on that has column `n`.
    #[inline(always)]
    pub(super) fn panels<F: Format<L>, const L: usize>(&self, n: usize) -> &[Line] {
        let len = self.shape.groups * self.shape.group_lines::<F, L>();
        &self.lines[n / COLUMNS * len..]
    }

    /// Writes row `n` of w to `to`, as long as it is.
    pub(crate) fn row(&self, n: usize, to: &mut [f32]) {
        match self.kind {
            Quantization::Int8 => self.row_in::<Int8, 4>(n, to),
            Quantization::Int4 => self.row_in::<Int4, 2>(n, to),
        }
    }

    fn row_in<F: Format<L>, const L: usize>(&self, n: usize, to: &mut [f32]) {
        let column = n % COLUMNS;
        let groups = self.panels::<F, L>(n).chunks_exact(self.shape.group_lines::<F, L>());
        for (group, to) in groups.zip(to.chunks_mut(self.shape.blocks * BLOCK)) {
            let (steps, shared) = split::<F, L>(group);
            let [scale, min] =
                [0, 1].map(|i| shared.get(i).map_or(0.0, |line| line.number(column)));
            for (steps, to) in steps.chunks_exact(STEPS).zip(to.chunks_mut(BLOCK)) {
                let block = Block { q: F::column(steps, column), scale, min };
                for (k, to) in to.iter_mut().enumerate() {
                    *to = block.element(k);
                }
            }
        }
    }
}

/// The panels of w, which threads share out. Of w, only the rows of the panels that are being made
/// are in memory.
fn pack<F: Format<L>, const L: usize>(
    [out_features, in_features]: [usize; 2],
    shape: Shape,
    read: impl Fn(usize, &mut [Block]) + Sync,
) -> Result<Lasting<Line>> {
    let blocks = in_features.div_ceil(BLOCK);
    let (stride, group_lines) = (shape.groups * shape.blocks, shape.group_lines::<F, L>());
    let broken = OnceLock::new();
    // Some 2 elements a nanosecond, where they are quantised first.
    let nanoseconds = out_features * in_features / 2;
    let panel_lines = shape.groups * group_lines;
    let panels = collect_runs(out_features.div_ceil(COLUMNS), panel_lines, nanoseconds, |panel| {
        let mut rows = vec![Block::ZERO; COLUMNS * stride];
        for (n, row) in (panel * COLUMNS..out_features).zip(rows.chunks_exact_mut(stride.max(1))) {
            let row = &mut row[..blocks];
            read(n, row);
            if let Some(b) = row.iter().position(|block| !F::accepts(block)) {
                broken.get_or_init(|| KernelError::Value {
                    argument: "blocks",
                    rule: F::RULE.to_owned(),
                    found: format!("row {n}, block {b}: {:?}", row[b]),
                });
            }
        }
        let mut lines = vec![Line::ZERO; panel_lines];
        for (g, group) in lines.chunks_exact_mut(group_lines).enumerate() {
            let of_column = |c| &rows[c * stride + g * shape.blocks..][..shape.blocks];
            (0..COLUMNS).for_each(|c| pack_column::<F, L>(of_column(c), c, group));
        }
        lines.into_iter()
    });
    match broken.into_inner() {
        None => Ok(panels),
        Some(error) => Err(error),
    }
}

/// Writes a group of one column.
fn pack_column<F: Format<L>, const L: usize>(blocks: &[Block], column: usize, group: &mut [Line]) {
    let (steps, shared) = group.split_at_mut(group.len() - F::SHARED);
    for (block, steps) in blocks.iter().zip(steps.as_chunks_mut().0.chunks_exact_mut(STEPS)) {
        F::pack(&block.q, column, steps);
    }
    for (line, number) in shared.iter_mut().zip([blocks[0].scale, blocks[0].min]) {
        line.set_number(column, number);
    }
}
