//! Products with a quantised matrix: panels of 32 columns, each read once from memory and met by all
//! rows of x.
//!
//! x is quantised as it comes, by groups as large as those of w ([`XGroup`]). A tile of the result is
//! a few rows by the columns of one panel; a group adds to each of its sums, by rising k,
//!
//! ```text
//! sum = fma(sum_k q_x[k] * q_w[k], scale_w * scale_x, sum)     the inner sum is exact
//! sum = fma(min_w, scale_x * sum_k q_x[k], sum)                where w has minima
//! ```
//!
//! and in no other order, whatever the tile and the units. Threads share out the panels, never the
//! sum.
#![allow(clippy::needless_range_loop)] // The indices of a tile go over several arrays at once.

use std::cell::OnceCell;
use std::ops::Range;

use super::blocks::Quantization;
use super::cpu::Part;
use super::quantized::{Format, Int4, Int8, Line, Quantized, split};
use crate::simd::bytes::{ByteDot, ByteTask, ByteUnits};
use crate::simd::groups::{Activations, BLOCK, MAX_GROUP, STEPS, XGroup};
use crate::simd::pairs::COLUMNS;
use crate::simd::{LANES, Simd};
use crate::view::Rows;

/// How many bytes of w are on their way from memory.
const PREFETCHED: usize = 4096;

/// Rows of a tile, on wide units and on narrow ones.
const MAX_ROWS: (usize, usize) = (8, 4);

/// x as the units take it: by groups of one block, of two, .., when a product first reads them.
pub(super) struct Inputs<'a> {
    x: Rows<'a>,
    units: ByteUnits,
    by_blocks: [OnceCell<Activations>; MAX_GROUP],
}

impl<'a> Inputs<'a> {
    pub(super) fn new(x: Rows<'a>) -> Self {
        Self { x, units: ByteUnits::current(), by_blocks: Default::default() }
    }

    /// By groups of so many blocks.
    fn take(&self, blocks: usize) -> &Activations {
        self.by_blocks[blocks - 1].get_or_init(|| self.units.take(self.x, blocks))
    }
}

/// Some rows of x, and w.
#[derive(Clone, Copy)]
pub(super) struct Operands<'a> {
    x: &'a Activations,
    units: ByteUnits,
    /// The first one, and how many.
    rows: (usize, usize),
    w: &'a Quantized,
}

impl<'a> Operands<'a> {
    pub(super) fn new(x: &'a Inputs<'_>, rows: (usize, usize), w: &'a Quantized) -> Self {
        Self { x: x.take(w.shape.blocks), units: x.units, rows, w }
    }

    /// An estimate of the time that one thread takes for one panel. Few rows are bound by reading
    /// it, at some 32 bytes a nanosecond while it stays in a cache.
    pub(super) fn nanoseconds(self) -> usize {
        let line = size_of::<Line>();
        let bytes = match self.w.kind {
            Quantization::Int8 => self.w.shape.group_lines::<Int8, 4>() * line,
            Quantization::Int4 => self.w.shape.group_lines::<Int4, 2>() * line,
        };
        let products = self.rows.1 * self.w.shape.blocks * BLOCK * COLUMNS;
        self.w.shape.groups * (bytes / 32).max(products / self.units.products_per_ns())
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
        self.operands.units.run(self);
    }
}

impl ByteTask for Product<'_> {
    #[inline(always)]
    fn run<D: ByteDot>(self, d: D) {
        match self.operands.w.kind {
            Quantization::Int8 => self.multiply::<D, Int8, 4>(d),
            Quantization::Int4 => self.multiply::<D, Int4, 2>(d),
        }
    }
}

/// What a tile multiplies: rows of x from the first one on, and a panel.
#[derive(Clone, Copy)]
struct Tile<'a, X> {
    steps: &'a [[X; 2]],
    groups: &'a [XGroup],
    panel: &'a [Line],
    /// Which half of the lines of the next panel is brought into the second-level cache meanwhile.
    next: Option<usize>,
}

impl Product<'_> {
    #[inline(always)]
    fn multiply<D: ByteDot, F: Format<L>, const L: usize>(mut self, d: D) {
        let Operands { x, rows: (start, rows), w, .. } = self.operands;
        let (x, groups) = (d.activations(x), w.shape.groups);
        let steps = groups * w.shape.blocks * STEPS;
        let len = groups * w.shape.group_lines::<F, L>();
        let columns = self.part.columns.clone();
        let tiles = match D::S::WIDE {
            true if rows <= MAX_ROWS.0 => rows.div_ceil(F::MAX_ALONE),
            true => rows.div_ceil(MAX_ROWS.0),
            false => rows.div_ceil(MAX_ROWS.1),
        };
        for first in (0..columns.len()).step_by(COLUMNS) {
            let panel = &w.panels::<F, L>(columns.start + first)[..len];
            // Tiles as equal as can be.
            let mut t = 0;
            for tile in 0..tiles {
                let rows = t..rows * (tile + 1) / tiles;
                t = rows.end;
                let tile = Tile {
                    steps: &x.steps[(start + rows.start) * steps..],
                    groups: &x.groups[(start + rows.start) * groups..],
                    panel,
                    // While there is arithmetic for several tiles.
                    next: (tiles > 1 && tile < 2).then_some(tile),
                };
                if D::S::WIDE || rows.len() <= 2 {
                    self.rows::<D, F, L, 2>(d, rows, &tile, (first, 0));
                } else {
                    self.rows::<D, F, L, 1>(d, rows.clone(), &tile, (first, 0));
                    self.rows::<D, F, L, 1>(d, rows, &tile, (first, 1));
                }
            }
        }
    }

    /// Rows `range`, at most [`MAX_ROWS`] of them, by `V` vectors of columns, from vector `v` of the
    /// panel on, whose first column is `first` of the part.
    #[inline(always)]
    fn rows<D: ByteDot, F: Format<L>, const L: usize, const V: usize>(
        &mut self,
        d: D,
        range: Range<usize>,
        tile: &Tile<'_, D::X>,
        (first, v): (usize, usize),
    ) {
        let at = (range.start, first, v);
        match range.len() {
            1 => self.tile::<D, F, L, 1, V>(d, tile, at),
            2 => self.tile::<D, F, L, 2, V>(d, tile, at),
            3 => self.tile::<D, F, L, 3, V>(d, tile, at),
            4 => self.tile::<D, F, L, 4, V>(d, tile, at),
            _ if !D::S::WIDE => unreachable!("narrow units take four rows"),
            5 => self.tile::<D, F, L, 5, V>(d, tile, at),
            6 => self.tile::<D, F, L, 6, V>(d, tile, at),
            7 => self.tile::<D, F, L, 7, V>(d, tile, at),
            8 => self.tile::<D, F, L, 8, V>(d, tile, at),
            more => unreachable!("{more} rows in a tile"),
        }
    }

    #[inline(always)]
    fn tile<D: ByteDot, F: Format<L>, const L: usize, const M: usize, const V: usize>(
        &mut self,
        d: D,
        tile: &Tile<'_, D::X>,
        (t, first, v): (usize, usize, usize),
    ) {
        let (s, shape) = (d.simd(), self.operands.w.shape);
        let stride = shape.groups * shape.blocks * STEPS;
        // Without a next panel, lines that are near already.
        let far = tile.next.map_or(0, |half| size_of_val(tile.panel) + half * size_of::<Line>());
        let mut sums = [[s.splat(0.0); V]; M];
        // A large result is not in a cache, and the stores at the end would wait for its lines.
        for m in 0..M {
            for j in 0..V {
                s.prefetch(self.part.address(t + m, first + (v + j) * LANES));
            }
        }
        let (mut rest, mut groups) = ([[].as_slice(); M], [[].as_slice(); M]);
        for m in 0..M {
            rest[m] = &tile.steps[m * stride..][..stride];
            groups[m] = &tile.groups[m * shape.groups..][..shape.groups];
        }
        for (g, group) in tile.panel.chunks_exact(shape.group_lines::<F, L>()).enumerate() {
            let (steps, shared) = split::<F, L>(group);
            let (mut x, mut dots) = ([[].as_slice(); M], [[d.splat(0); V]; M]);
            for m in 0..M {
                (x[m], rest[m]) = rest[m].split_at(steps.len());
                dots[m] = [d.splat(F::start::<D>(&groups[m][g])); V];
            }
            // Their number is not known to the compiler, so this stays a loop: of several steps at
            // once, it would hold more lines of w than there are registers.
            for (k, w) in steps.iter().enumerate() {
                w.iter().for_each(|line| s.prefetch(line.after(PREFETCHED)));
                w.iter().step_by(2).for_each(|line| s.prefetch_far(line.after(far)));
                let mut quads = [F::quads(d, w, v); V];
                for j in 1..V {
                    quads[j] = F::quads(d, w, v + j);
                }
                for half in 0..2 {
                    for m in 0..M {
                        for j in 0..V {
                            dots[m][j] = d.dot(x[m][k][half], quads[j][half], dots[m][j]);
                        }
                    }
                }
            }
            shared.iter().for_each(|line| s.prefetch(line.after(PREFETCHED)));
            shared.iter().for_each(|line| s.prefetch_far(line.after(far)));
            for j in 0..V {
                let scale = s.load_f16(&shared[0].numbers()[v + j]);
                for m in 0..M {
                    let scale = s.fma(scale, s.splat(groups[m][g].scale), s.splat(0.0));
                    sums[m][j] = s.fma(d.to_f32(dots[m][j]), scale, sums[m][j]);
                }
                if F::SHARED == 2 {
                    let min = s.load_f16(&shared[1].numbers()[v + j]);
                    for m in 0..M {
                        sums[m][j] = s.fma(min, s.splat(groups[m][g].scaled_sum), sums[m][j]);
                    }
                }
            }
        }
        for m in 0..M {
            for j in 0..V {
                let mut lanes = [0.0; LANES];
                s.store(sums[m][j], &mut lanes);
                self.part.write((t + m, first + (v + j) * LANES), &lanes);
            }
        }
    }
}
