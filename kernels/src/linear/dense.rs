//! Products with a matrix as it was stored: blocks of rows of w that fit a core's cache, each met
//! by all rows of x.
//!
//! A block of the result is `M x N` dot products that share their loads: small enough for its
//! sums to stay in registers. What a product adds up in which order does not depend on the block
//! ([`crate::dot`]). Threads share out the rows of w, never the sum.
#![allow(clippy::needless_range_loop)] // The indices of a tile go over several arrays at once.

use std::ops::Range;

use super::cpu::Part;
use crate::dot::dots;
use crate::element::Element;
use crate::simd::{Simd, Task};
use crate::view::{Floats, Rows};

/// Parts of a product are a multiple of so many columns, which every tile divides.
pub(super) const COLUMNS: usize = 24;

/// Bytes of w that are read once from memory and then met by every row of x: half of a small
/// second-level cache.
const BLOCK_BYTES: usize = 256 << 10;

/// All of x, and w.
#[derive(Clone, Copy)]
pub(super) struct Operands<'a> {
    pub(super) x: Rows<'a>,
    pub(super) w: Floats<'a>,
}

impl Operands<'_> {
    /// An estimate of the time that one thread takes for [`COLUMNS`] columns of `out_features`. One
    /// row of x is bound by reading w, at some 32 bytes per nanosecond while it stays in a cache;
    /// many rows are bound by arithmetic, at some 48 products per nanosecond.
    pub(super) fn nanoseconds(self, out_features: usize) -> usize {
        let read = self.w.bytes() * COLUMNS / out_features / 32;
        read.max(self.x.count * self.x.len * COLUMNS / 48)
    }
}

/// All rows of x by some rows of w.
pub(super) struct Block<'a> {
    pub(super) operands: Operands<'a>,
    pub(super) part: Part<'a>,
}

impl Task for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.operands.w {
            Floats::F32(w) => self.multiply(s, w),
            Floats::F16(w) => self.multiply(s, w),
            Floats::Bf16(w) => self.multiply(s, w),
        }
    }
}

impl Block<'_> {
    #[inline(always)]
    fn multiply<S: Simd, E: Element>(mut self, s: S, w: &[E]) {
        let features = self.part.columns.len();
        let fitting = BLOCK_BYTES / (self.operands.x.len * size_of::<E>()).max(1);
        let step = fitting.max(1).next_multiple_of(COLUMNS);
        for first in (0..features).step_by(step) {
            let block = first..features.min(first + step);
            // Tiles of sixteen vectors need more registers than a narrow level has: its vectors
            // take two or four each.
            if S::WIDE {
                let t = self.tokens::<S, E, 4, 4>(s, w, block.clone(), 0);
                let t = self.tokens::<S, E, 3, 4>(s, w, block.clone(), t);
                let t = self.tokens::<S, E, 2, 8>(s, w, block.clone(), t);
                self.tokens::<S, E, 1, 8>(s, w, block, t);
            } else {
                let t = self.tokens::<S, E, 2, 3>(s, w, block.clone(), 0);
                self.tokens::<S, E, 1, 4>(s, w, block, t);
            }
        }
    }

    /// As many groups of M rows of x, from row `t` on, as there are, by the columns `block` of the
    /// part; gives the row after them.
    #[inline(always)]
    fn tokens<S: Simd, E: Element, const M: usize, const N: usize>(
        &mut self,
        s: S,
        w: &[E],
        block: Range<usize>,
        mut t: usize,
    ) -> usize {
        while t + M <= self.operands.x.count {
            let mut n = block.start;
            while n + N <= block.end {
                self.tile::<S, E, M, N>(s, w, (t, n));
                n += N;
            }
            while n < block.end {
                self.tile::<S, E, M, 1>(s, w, (t, n));
                n += 1;
            }
            t += M;
        }
        t
    }

    /// The products of rows `t..t+M` of x and rows `first+n..first+n+N` of w.
    #[inline(always)]
    fn tile<S: Simd, E: Element, const M: usize, const N: usize>(
        &mut self,
        s: S,
        w: &[E],
        (t, n): (usize, usize),
    ) {
        let (x, first) = (self.operands.x, self.part.columns.start + n);
        let (mut x_rows, mut w_rows) = ([[].as_slice(); M], [[].as_slice(); N]);
        for m in 0..M {
            x_rows[m] = x.row(t + m);
        }
        for i in 0..N {
            w_rows[i] = &w[(first + i) * x.len..][..x.len];
        }
        let products = dots(s, x_rows, w_rows);
        for m in 0..M {
            for i in 0..N {
                let bias = self.part.bias.map_or(0.0, |bias| bias[first + i]);
                self.part.row(t + m)[n + i] = products[m][i] + bias;
            }
        }
    }
}
