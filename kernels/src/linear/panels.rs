//! Products with a packed bf16 matrix: panels of 32 columns, each read once from memory and met by
//! all rows of x.
//!
//! A tile of the result is a few rows by the columns of one panel, or of two where there are few
//! rows; its sums stay in registers from the first k to the last. So the sum of a row and a column
//! runs in one order ([`crate::simd::pairs`]), whatever the tile. Threads share out the panels,
//! never the sum.
#![allow(clippy::needless_range_loop)] // The indices of a tile go over several arrays at once.

use std::ops::Range;

use super::cpu::Part;
use super::packed::Packed;
#[cfg(target_arch = "x86_64")]
use crate::simd::amx::{Amx, MAX_ROWS};
#[cfg(target_arch = "x86_64")]
use crate::simd::pairs::Sums;
use crate::simd::pairs::{Activations, COLUMNS, Line, PairDot, PairTask, Pairs, TILE_PAIRS, Units};
use crate::simd::{LANES, Simd, Task};
use crate::view::Rows;

/// Pairs of k that tiles of AMX go through at once: so much of a panel, and of the rows that it
/// meets, fits the first-level cache.
#[cfg(target_arch = "x86_64")]
const TILED_PAIRS: usize = 128;

/// How many lines of w are on their way from memory while tiles of AMX go through a panel once.
#[cfg(target_arch = "x86_64")]
const AHEAD: usize = 64;

/// How many lines of w are on their way from memory while vectors go through a panel.
const PREFETCHED: usize = 32;

/// x as the units take it: rows of `stride` pairs, with zeros at their end.
pub(super) struct Inputs {
    pairs: Activations,
    stride: usize,
    units: Units,
}

impl Inputs {
    /// Prepares all rows of x.
    pub(super) fn new(x: Rows<'_>) -> Self {
        let units = Units::current();
        // An odd number of cache lines: the same k of several rows then falls into different sets
        // of a cache.
        let stride = (x.len.div_ceil(2 * TILE_PAIRS) | 1) * TILE_PAIRS;
        Self { pairs: units.take(x, stride), stride, units }
    }
}

/// Some rows of x, and w.
#[derive(Clone, Copy)]
pub(super) struct Operands<'a> {
    pub(super) x: &'a Inputs,
    /// The first one, and how many.
    pub(super) rows: (usize, usize),
    pub(super) w: &'a Packed,
}

impl Operands<'_> {
    /// An estimate of the time that one thread takes for one panel. Few rows are bound by reading
    /// it, at some 32 bytes a nanosecond while it stays in a cache.
    pub(super) fn nanoseconds(self) -> usize {
        let products_per_ns = match self.x.units {
            Units::Widened(_) => 48,
            #[cfg(target_arch = "aarch64")]
            Units::OddDots(_) => 96,
            #[cfg(target_arch = "x86_64")]
            Units::Dots(_) => 192,
            #[cfg(target_arch = "x86_64")]
            Units::Tiles(_) => 768,
        };
        let read = self.w.pairs * size_of::<Line>() / 32;
        read.max(self.rows.1 * self.w.pairs * 2 * COLUMNS / products_per_ns)
    }
}

/// The rows by some panels of w: `part` begins with a panel.
pub(super) struct Block<'a> {
    pub(super) operands: Operands<'a>,
    pub(super) part: Part<'a>,
}

impl Block<'_> {
    /// Computes `out`.
    pub(super) fn run(self) {
        match self.operands.x.units {
            Units::Widened(level) => level.run(Widened(self)),
            #[cfg(target_arch = "aarch64")]
            Units::OddDots(dots) => dots.run(self),
            #[cfg(target_arch = "x86_64")]
            Units::Dots(dots) => dots.run(self),
            #[cfg(target_arch = "x86_64")]
            Units::Tiles(amx) => self.tiles(amx),
        }
    }

    fn num_panels(&self) -> usize {
        self.part.columns.len().div_ceil(COLUMNS)
    }

    #[cfg(target_arch = "x86_64")]
    fn tiles(mut self, amx: Amx) {
        let Operands { x: Inputs { pairs, stride, .. }, rows: (start, rows), w } = self.operands;
        let Activations::Rounded(x) = pairs else {
            unreachable!("a process has one kind of units");
        };
        let mut sums = vec![Sums([0.0; COLUMNS]); rows];
        for p in 0..self.num_panels() {
            sums.fill(Sums([0.0; COLUMNS]));
            // Of one group, the lines that follow; of several, the same lines of the next panel.
            let groups = rows.div_ceil(MAX_ROWS);
            let ahead = if groups == 1 { AHEAD } else { w.pairs };
            let panels = w.from(self.part.columns.start / COLUMNS + p);
            for k in (0..w.pairs).step_by(TILED_PAIRS) {
                let len = TILED_PAIRS.min(w.pairs - k);
                let share = len.div_ceil(groups);
                for (group, sums) in sums.chunks_mut(MAX_ROWS).enumerate() {
                    let x = &x[(start + group * MAX_ROWS) * stride + k..];
                    let next = panels.get(k + ahead + group * share..).unwrap_or_default();
                    let next = &next[..next.len().min(share)];
                    amx.multiply((x, *stride), &panels[k..k + len], next, sums);
                }
            }
            for (t, sums) in sums.iter().enumerate() {
                for (v, sums) in sums.0.as_chunks::<LANES>().0.iter().enumerate() {
                    self.part.write((t, p * COLUMNS + v * LANES), sums);
                }
            }
        }
    }
}

/// [`Block`] in the instructions of a [`crate::simd::Level`].
struct Widened<'a>(Block<'a>);

impl Task for Widened<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        PairTask::run(self.0, s);
    }
}

impl PairTask for Block<'_> {
    #[inline(always)]
    fn run<D: PairDot>(mut self, d: D) {
        let (rows, panels) = (self.operands.rows.1, self.num_panels());
        let most = if D::WIDE { 12 } else { 6 };
        let mut p = 0;
        // Few rows have few sums: two panels at once keep the multipliers busy.
        while D::WIDE && rows <= 4 && p + 2 <= panels {
            match rows {
                1 => self.tile::<D, 1, 2, 2>(d, 0, (p, 0), None),
                2 => self.tile::<D, 2, 2, 2>(d, 0, (p, 0), None),
                3 => self.tile::<D, 3, 2, 2>(d, 0, (p, 0), None),
                _ => self.tile::<D, 4, 2, 2>(d, 0, (p, 0), None),
            }
            p += 2;
        }
        for p in p..panels {
            // Tiles as equal as can be.
            let (tiles, mut t) = (rows.div_ceil(most), 0);
            for tile in 0..tiles {
                let end = rows * (tile + 1) / tiles;
                // While there is arithmetic for several tiles, the next panel is on its way.
                let next = (tiles > 1 && tile < 2).then_some(tile);
                if D::WIDE || end - t <= 2 {
                    self.rows::<D, 2>(d, t..end, (p, 0), next);
                } else {
                    self.rows::<D, 1>(d, t..end, (p, 0), next);
                    self.rows::<D, 1>(d, t..end, (p, 1), None);
                }
                t = end;
            }
        }
    }
}

impl Block<'_> {
    /// Rows `range`, at most 12 of them, or 6 on narrow units, by `V` vectors of columns. `next`
    /// says which half of each line of the next panel is brought nearer meanwhile.
    #[inline(always)]
    fn rows<D: PairDot, const V: usize>(
        &mut self,
        d: D,
        range: Range<usize>,
        at: (usize, usize),
        next: Option<usize>,
    ) {
        let t = range.start;
        match range.len() {
            1 => self.tile::<D, 1, 1, V>(d, t, at, next),
            2 => self.tile::<D, 2, 1, V>(d, t, at, next),
            3 => self.tile::<D, 3, 1, V>(d, t, at, next),
            4 => self.tile::<D, 4, 1, V>(d, t, at, next),
            5 => self.tile::<D, 5, 1, V>(d, t, at, next),
            6 => self.tile::<D, 6, 1, V>(d, t, at, next),
            _ if !D::WIDE => unreachable!("narrow units take six rows"),
            7 => self.tile::<D, 7, 1, V>(d, t, at, next),
            8 => self.tile::<D, 8, 1, V>(d, t, at, next),
            9 => self.tile::<D, 9, 1, V>(d, t, at, next),
            10 => self.tile::<D, 10, 1, V>(d, t, at, next),
            11 => self.tile::<D, 11, 1, V>(d, t, at, next),
            12 => self.tile::<D, 12, 1, V>(d, t, at, next),
            more => unreachable!("{more} rows in a tile"),
        }
    }

    /// `M` rows from `t` on, by `V` vectors of each of `P` panels, from vector `v` of panel `p` on.
    #[inline(always)]
    fn tile<D: PairDot, const M: usize, const P: usize, const V: usize>(
        &mut self,
        d: D,
        t: usize,
        (p, v): (usize, usize),
        next: Option<usize>,
    ) {
        let Operands { x: inputs, rows: (start, _), w } = self.operands;
        let (all, pairs) = (d.activations(&inputs.pairs), w.pairs);
        // So the sums need not be in memory before the loop.
        assert!(pairs > 0, "a packed matrix has elements");
        let (mut x, mut panels) = ([[].as_slice(); M], [[].as_slice(); P]);
        for m in 0..M {
            x[m] = &all[(start + t + m) * inputs.stride..][..pairs];
        }
        for i in 0..P {
            panels[i] = &w.panel(self.part.columns.start / COLUMNS + p + i)[..pairs];
        }
        // Without a next one, lines that are near already.
        let far = match next {
            Some(half) => panels[P - 1].as_ptr_range().end.cast::<Pairs>().wrapping_add(half),
            None => panels[0].as_ptr().cast(),
        };
        // A large result is not in a cache, and the stores at the end would wait for its lines.
        for m in 0..M {
            for i in 0..P {
                for j in 0..V {
                    d.prefetch(self.part.address(t + m, (p + i) * COLUMNS + (v + j) * LANES));
                }
            }
        }
        let mut sums = [[[d.zero(); V]; P]; M];
        for k in 0..pairs {
            d.prefetch_far(far.wrapping_add(2 * k).cast());
            let mut w = [[d.load(&panels[0][k].0[v]); V]; P];
            for i in 0..P {
                let ahead = panels[i].as_ptr().wrapping_add(k + PREFETCHED);
                for j in 0..V {
                    w[i][j] = d.load(&panels[i][k].0[v + j]);
                    d.prefetch(ahead.cast::<Pairs>().wrapping_add(v + j).cast());
                }
            }
            for m in 0..M {
                for i in 0..P {
                    for j in 0..V {
                        sums[m][i][j] = d.dot(x[m][k], w[i][j], sums[m][i][j]);
                    }
                }
            }
        }
        for m in 0..M {
            for i in 0..P {
                for j in 0..V {
                    let mut lanes = [0.0; LANES];
                    d.store(sums[m][i][j], &mut lanes);
                    self.part.write((t + m, (p + i) * COLUMNS + (v + j) * LANES), &lanes);
                }
            }
        }
    }
}
