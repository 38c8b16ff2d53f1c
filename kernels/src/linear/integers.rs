//! Products with a quantised matrix: panels of 32 columns, each read once from memory and met by all
//! rows of x.
//!
//! x is quantised as it comes, 32 elements for each scale ([`XBlock`]). A tile of the result is a
//! few rows by the columns of one panel; a block adds to each of its sums, by rising k,
//!
//! ```text
//! sum = fma(sum_k q_x[k] * q_w[k], scale_w * scale_x, sum)     the inner sum is exact
//! sum = fma(min_w, scale_x * sum_k q_x[k], sum)                where w has minima
//! ```
//!
//! and in no other order, whatever the tile and the units. Threads share out the panels, never the
//! sum.
#![allow(clippy::needless_range_loop)] // The indices of a tile go over several arrays at once.

use std::ops::Range;

use super::cpu::Part;
use super::quantized::{Int4, Int8, PanelBlock, Panels, Quantized};
use crate::simd::bytes::{Activations, BLOCK, ByteDot, ByteTask, ByteUnits, QUADS, XBlock};
use crate::simd::pairs::COLUMNS;
use crate::simd::{LANES, Simd};
use crate::view::Rows;

/// How many bytes of w are on their way from memory.
const PREFETCHED: usize = 4096;

/// A line of the cache.
const LINE: usize = 64;

/// x as the units take it.
pub(super) struct Inputs {
    x: Activations,
    /// Blocks of a row.
    stride: usize,
    units: ByteUnits,
}

impl Inputs {
    /// Prepares all rows of x.
    pub(super) fn new(x: Rows<'_>) -> Self {
        let (units, stride) = (ByteUnits::current(), x.len.div_ceil(BLOCK));
        Self { x: units.take(x, stride), stride, units }
    }
}

/// Some rows of x, and w.
#[derive(Clone, Copy)]
pub(super) struct Operands<'a> {
    pub(super) x: &'a Inputs,
    /// The first one, and how many.
    pub(super) rows: (usize, usize),
    pub(super) w: &'a Quantized,
}

impl Operands<'_> {
    /// An estimate of the time that one thread takes for one panel. Few rows are bound by reading
    /// it, at some 32 bytes a nanosecond while it stays in a cache.
    pub(super) fn nanoseconds(self) -> usize {
        let bytes = match self.w.panels {
            Panels::Int8(_) => size_of::<Int8>(),
            Panels::Int4(_) => size_of::<Int4>(),
        };
        let products = self.rows.1 * BLOCK * COLUMNS;
        self.w.blocks * (bytes / 32).max(products / self.x.units.products_per_ns())
    }
}

/// The rows by some panels of w: `part` begins with a panel.
pub(super) struct Product<'a> {
    pub(super) operands: Operands<'a>,
    pub(super) part: Part<'a>,
}

impl Product<'_> {
    /// Computes `out`.
    pub(super) fn run(self) {
        self.operands.x.units.run(self);
    }
}

impl ByteTask for Product<'_> {
    #[inline(always)]
    fn run<D: ByteDot>(self, d: D) {
        match &self.operands.w.panels {
            Panels::Int8(panels) => self.multiply(d, panels),
            Panels::Int4(panels) => self.multiply(d, panels),
        }
    }
}

/// A panel of w, and what is brought nearer while a tile goes through it.
struct Panel<'a, B> {
    blocks: &'a [B],
    /// Its first column in the part.
    first: usize,
    /// Of each block, the lines that follow it at a distance of [`PREFETCHED`].
    near: Range<usize>,
    /// Of each block, lines of the same one of the next panel.
    far: Range<usize>,
}

impl<'a, B> Panel<'a, B> {
    /// One tile takes a panel as it comes from memory. Of several, each has a share of the next panel
    /// brought into the second-level cache, while there is arithmetic for all of them.
    #[inline(always)]
    fn new(blocks: &'a [B], first: usize, (tile, tiles): (usize, usize)) -> Self {
        let lines = size_of::<B>() / LINE;
        match tiles {
            1 => Self { blocks, first, near: 0..lines, far: 0..0 },
            _ => {
                let far = lines * tile / tiles..lines * (tile + 1) / tiles;
                Self { blocks, first, near: 0..0, far }
            }
        }
    }

    #[inline(always)]
    fn prefetch<S: Simd>(&self, s: S, block: &B) {
        let address = std::ptr::from_ref(block).cast::<u8>();
        for line in self.near.clone() {
            s.prefetch(address.wrapping_add(PREFETCHED + line * LINE));
        }
        for line in self.far.clone() {
            s.prefetch_far(address.wrapping_add(size_of_val(self.blocks) + line * LINE));
        }
    }
}

impl Product<'_> {
    #[inline(always)]
    fn multiply<D: ByteDot, B: PanelBlock>(mut self, d: D, panels: &[B]) {
        let (rows, len) = (self.operands.rows.1, self.operands.w.blocks);
        let Range { start, end } = self.part.columns;
        let most = if D::S::WIDE { B::MAX_ROWS } else { 4 };
        let tiles = rows.div_ceil(most);
        for first in (0..end - start).step_by(COLUMNS) {
            let blocks = &panels[(start + first) / COLUMNS * len..][..len];
            // Tiles as equal as can be.
            let mut t = 0;
            for tile in 0..tiles {
                let rows = t..rows * (tile + 1) / tiles;
                t = rows.end;
                let panel = Panel::new(blocks, first, (tile, tiles));
                if D::S::WIDE || rows.len() <= 2 {
                    self.rows::<D, B, 2>(d, rows, &panel, 0);
                } else {
                    self.rows::<D, B, 1>(d, rows.clone(), &panel, 0);
                    self.rows::<D, B, 1>(d, rows, &panel, 1);
                }
            }
        }
    }

    /// Rows `range`, at most [`PanelBlock::MAX_ROWS`] of them, or 4 on narrow units, by `V` vectors
    /// of columns, from vector `v` of the panel on.
    #[inline(always)]
    fn rows<D: ByteDot, B: PanelBlock, const V: usize>(
        &mut self,
        d: D,
        range: Range<usize>,
        panel: &Panel<'_, B>,
        v: usize,
    ) {
        let at = (range.start, v);
        match range.len() {
            1 => self.tile::<D, B, 1, V>(d, panel, at),
            2 => self.tile::<D, B, 2, V>(d, panel, at),
            3 => self.tile::<D, B, 3, V>(d, panel, at),
            4 => self.tile::<D, B, 4, V>(d, panel, at),
            _ if !D::S::WIDE || B::MAX_ROWS == 4 => unreachable!("four rows are the most"),
            5 => self.tile::<D, B, 5, V>(d, panel, at),
            6 => self.tile::<D, B, 6, V>(d, panel, at),
            more => unreachable!("{more} rows in a tile"),
        }
    }

    #[inline(always)]
    fn tile<D: ByteDot, B: PanelBlock, const M: usize, const V: usize>(
        &mut self,
        d: D,
        panel: &Panel<'_, B>,
        (t, v): (usize, usize),
    ) {
        let Operands { x: inputs, rows: (start, _), .. } = self.operands;
        let (s, all) = (d.simd(), d.activations(&inputs.x));
        let mut x: [&[XBlock<D::X>]; M] = [&[]; M];
        for m in 0..M {
            x[m] = &all[(start + t + m) * inputs.stride..][..panel.blocks.len()];
        }
        let mut sums = [[s.splat(0.0); V]; M];
        for (b, w) in panel.blocks.iter().enumerate() {
            panel.prefetch(s, w);
            let mut dots = [[d.splat(0); V]; M];
            for m in 0..M {
                dots[m] = [d.splat(B::start::<D>(&x[m][b])); V];
            }
            for i in 0..QUADS / 2 {
                let mut quads = [w.quads(d, i, v); V];
                for j in 1..V {
                    quads[j] = w.quads(d, i, v + j);
                }
                for half in 0..2 {
                    for m in 0..M {
                        for j in 0..V {
                            let x = x[m][b].quads[2 * i + half];
                            dots[m][j] = d.dot(x, quads[j][half], dots[m][j]);
                        }
                    }
                }
            }
            for j in 0..V {
                let scale = s.load_f16(&w.scales()[v + j]);
                for m in 0..M {
                    let scale = s.fma(scale, s.splat(x[m][b].scale), s.splat(0.0));
                    sums[m][j] = s.fma(d.to_f32(dots[m][j]), scale, sums[m][j]);
                }
                if let Some(mins) = w.mins() {
                    let min = s.load_f16(&mins[v + j]);
                    for m in 0..M {
                        sums[m][j] = s.fma(min, s.splat(x[m][b].scaled_sum), sums[m][j]);
                    }
                }
            }
        }
        for m in 0..M {
            for j in 0..V {
                let mut lanes = [0.0; LANES];
                s.store(sums[m][j], &mut lanes);
                self.part.write((t + m, panel.first + (v + j) * LANES), &lanes);
            }
        }
    }
}
