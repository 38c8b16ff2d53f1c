//! Linear on the CPU: blocks of rows of w that fit a core's cache, each met by all rows of x.
//! Several products, those of a layer's experts, are cut into blocks together: threads are woken
//! once for all of them.
//!
//! A block of the result is `M x N` dot products that share their loads: small enough for its
//! sums to stay in registers. What a product adds up in which order does not depend on the block
//! ([`crate::dot`]). Threads share out the rows of w, never the sum.
#![allow(clippy::needless_range_loop)] // The indices of a tile go over several arrays at once.

use crate::dot::dots;
use crate::element::Element;
use crate::parallel;
use crate::simd::{Level, Simd, Task};
use crate::view::{Floats, Rows};

/// Bytes of w that are read once from memory and then met by every row of x: half of a small
/// second-level cache.
const BLOCK_BYTES: usize = 256 << 10;

/// `w [N, K]` for all rows of `x [T, K]`, with `bias [N]` added.
pub(super) struct Product<'a> {
    pub(super) x: Rows<'a>,
    pub(super) w: Floats<'a>,
    pub(super) bias: Option<&'a [f32]>,
}

/// Products of one N, `out_features`; gives their `[T, N]`, one after the other.
pub(super) fn linear(products: &[Product<'_>], out_features: usize) -> Vec<f32> {
    let tokens: usize = products.iter().map(|product| product.x.count).sum();
    let mut out = vec![0.0; tokens * out_features];
    if out.is_empty() {
        return out;
    }
    let level = Level::current();
    let nanoseconds = products.iter().map(|product| product.nanoseconds(out_features)).sum();
    let all_features = products.len() * out_features;
    let (mut blocks, mut rest) = (Vec::new(), out.as_mut_slice());
    for &Product { x, w, bias } in products {
        let (part, after) = rest.split_at_mut(x.count * out_features);
        rest = after;
        let features = block_features(w.bytes() / out_features, all_features, nanoseconds);
        let columns = split_columns(part, out_features, features);
        blocks.extend(columns.into_iter().map(|(first, out)| Block { x, w, bias, first, out }));
    }
    parallel::for_each(blocks, nanoseconds, |block| level.run(block));
    out
}

impl Product<'_> {
    /// An estimate of the time that one thread takes. One row of x is bound by reading w, at some
    /// 32 bytes per nanosecond while it stays in a cache; many rows are bound by arithmetic, at
    /// some 48 products per nanosecond.
    fn nanoseconds(&self, out_features: usize) -> usize {
        (self.w.bytes() / 32).max(self.x.count * self.x.len * out_features / 48)
    }
}

/// How many rows of w, of `row_bytes` each, make a block: a multiple of what one tile takes.
/// `all_features` is what there is to share out.
fn block_features(row_bytes: usize, all_features: usize, nanoseconds: usize) -> usize {
    let fitting = BLOCK_BYTES / row_bytes.max(1);
    let shared = if parallel::is_worth_it(nanoseconds) {
        all_features.div_ceil(4 * rayon::current_num_threads())
    } else {
        all_features
    };
    fitting.min(shared).max(1).next_multiple_of(24)
}

/// Cuts the columns of `out`, `[T, out_features]`, into blocks of `features`: the first column of
/// each, and its part of each row.
fn split_columns(
    out: &mut [f32],
    out_features: usize,
    features: usize,
) -> Vec<(usize, Vec<&mut [f32]>)> {
    let tokens = out.len() / out_features;
    let firsts = (0..out_features).step_by(features);
    let mut blocks: Vec<_> = firsts.map(|first| (first, Vec::with_capacity(tokens))).collect();
    for row in out.chunks_exact_mut(out_features) {
        for (block, part) in blocks.iter_mut().zip(row.chunks_mut(features)) {
            block.1.push(part);
        }
    }
    blocks
}

/// All rows of x by the rows of w from `first` on, as many as each of `out` has elements.
struct Block<'a> {
    x: Rows<'a>,
    w: Floats<'a>,
    bias: Option<&'a [f32]>,
    first: usize,
    /// `[T][features]`.
    out: Vec<&'a mut [f32]>,
}

impl Task for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.w {
            Floats::F32(w) => self.multiply(s, w),
            Floats::F16(w) => self.multiply(s, w),
            Floats::Bf16(w) => self.multiply(s, w),
        }
    }
}

impl Block<'_> {
    #[inline(always)]
    fn multiply<S: Simd, E: Element>(mut self, s: S, w: &[E]) {
        let mut t = 0;
        // Tiles of sixteen vectors need more registers than a narrow level has: its vectors take
        // two or four each.
        if S::WIDE {
            t = self.tokens::<S, E, 4, 4>(s, w, t);
            t = self.tokens::<S, E, 3, 4>(s, w, t);
            t = self.tokens::<S, E, 2, 8>(s, w, t);
            self.tokens::<S, E, 1, 8>(s, w, t);
        } else {
            t = self.tokens::<S, E, 2, 3>(s, w, t);
            self.tokens::<S, E, 1, 4>(s, w, t);
        }
    }

    /// As many groups of M rows of x, from row `t` on, as there are; gives the row after them.
    #[inline(always)]
    fn tokens<S: Simd, E: Element, const M: usize, const N: usize>(
        &mut self,
        s: S,
        w: &[E],
        mut t: usize,
    ) -> usize {
        let features = self.out[0].len();
        while t + M <= self.x.count {
            let mut n = 0;
            while n + N <= features {
                self.tile::<S, E, M, N>(s, w, (t, n));
                n += N;
            }
            while n < features {
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
        let (len, first) = (self.x.len, self.first + n);
        let (mut x_rows, mut w_rows) = ([[].as_slice(); M], [[].as_slice(); N]);
        for m in 0..M {
            x_rows[m] = self.x.row(t + m);
        }
        for i in 0..N {
            w_rows[i] = &w[(first + i) * len..][..len];
        }
        let products = dots(s, x_rows, w_rows);
        for m in 0..M {
            for i in 0..N {
                let bias = self.bias.map_or(0.0, |bias| bias[first + i]);
                self.out[t + m][n + i] = products[m][i] + bias;
            }
        }
    }
}
