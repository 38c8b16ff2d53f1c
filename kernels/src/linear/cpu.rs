//! Linear on the CPU: blocks of rows of w that fit a core's cache, each met by all rows of x.
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

/// `x [T, K]`, `w [out_features, K]`, `bias [out_features]`; gives `[T, out_features]`.
pub(super) fn linear(
    x: Rows<'_>,
    w: Floats<'_>,
    bias: Option<&[f32]>,
    out_features: usize,
) -> Vec<f32> {
    let mut out = vec![0.0; x.count * out_features];
    match w {
        Floats::F32(w) => run(x, w, bias, out_features, &mut out),
        Floats::F16(w) => run(x, w, bias, out_features, &mut out),
        Floats::Bf16(w) => run(x, w, bias, out_features, &mut out),
    }
    out
}

fn run<E: Element>(
    x: Rows<'_>,
    w: &[E],
    bias: Option<&[f32]>,
    out_features: usize,
    out: &mut [f32],
) {
    if out.is_empty() {
        return;
    }
    let level = Level::current();
    // One row of x is bound by reading w, at some 32 bytes per nanosecond while it stays in a
    // cache; many rows are bound by arithmetic, at some 48 products per nanosecond.
    let nanoseconds = (size_of_val(w) / 32).max(w.len() * x.count / 48);
    let features = block_features(size_of::<E>() * x.len, out_features, nanoseconds);
    let blocks = split_columns(out, out_features, features);
    parallel::for_each(blocks, nanoseconds, |(first, out)| {
        level.run(Block { x, w, bias, first, out });
    });
}

/// How many rows of w, of `row_bytes` each, make a block: a multiple of what one tile takes.
fn block_features(row_bytes: usize, out_features: usize, nanoseconds: usize) -> usize {
    let fitting = BLOCK_BYTES / row_bytes.max(1);
    let shared = if parallel::is_worth_it(nanoseconds) {
        out_features.div_ceil(4 * rayon::current_num_threads())
    } else {
        out_features
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
struct Block<'a, E> {
    x: Rows<'a>,
    w: &'a [E],
    bias: Option<&'a [f32]>,
    first: usize,
    /// `[T][features]`.
    out: Vec<&'a mut [f32]>,
}

impl<E: Element> Task for Block<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let mut t = 0;
        // Tiles of sixteen vectors need more registers than a narrow level has: its vectors take
        // two or four each.
        if S::WIDE {
            t = self.tokens::<S, 4, 4>(s, t);
            t = self.tokens::<S, 3, 4>(s, t);
            t = self.tokens::<S, 2, 8>(s, t);
            self.tokens::<S, 1, 8>(s, t);
        } else {
            t = self.tokens::<S, 2, 3>(s, t);
            self.tokens::<S, 1, 4>(s, t);
        }
    }
}

impl<E: Element> Block<'_, E> {
    /// As many groups of M rows of x, from row `t` on, as there are; gives the row after them.
    #[inline(always)]
    fn tokens<S: Simd, const M: usize, const N: usize>(&mut self, s: S, mut t: usize) -> usize {
        let features = self.out[0].len();
        while t + M <= self.x.count {
            let mut n = 0;
            while n + N <= features {
                self.tile::<S, M, N>(s, t, n);
                n += N;
            }
            while n < features {
                self.tile::<S, M, 1>(s, t, n);
                n += 1;
            }
            t += M;
        }
        t
    }

    /// The products of rows `t..t+M` of x and rows `first+n..first+n+N` of w.
    #[inline(always)]
    fn tile<S: Simd, const M: usize, const N: usize>(&mut self, s: S, t: usize, n: usize) {
        let (len, first) = (self.x.len, self.first + n);
        let (mut x, mut w) = ([[].as_slice(); M], [[].as_slice(); N]);
        for m in 0..M {
            x[m] = self.x.row(t + m);
        }
        for i in 0..N {
            w[i] = &self.w[(first + i) * len..][..len];
        }
        let products = dots(s, x, w);
        for m in 0..M {
            for i in 0..N {
                let bias = self.bias.map_or(0.0, |bias| bias[first + i]);
                self.out[t + m][n + i] = products[m][i] + bias;
            }
        }
    }
}
