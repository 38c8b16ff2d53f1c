//! The two products of a tile, in blocks of a few queries by a few vectors: scores, and the mixing of
//! values. A block leaves out what none of its queries sees, by whole vectors and steps.
#![allow(clippy::needless_range_loop)] // The indices of a block go over several arrays at once.

use std::ops::Range;

use super::softmax::{STATE_EXTRA, State};
use super::steps::{Steps, VECTORS, multiply};
use super::tile::{TILE, Tile};
use super::unit::{Attention, Scratch};
use crate::simd::{LANES, Simd};

impl<P: Steps> Attention<'_, P> {
    /// The products of the queries `active` and the keys of `tile`.
    #[inline(always)]
    pub(super) fn scores(
        self,
        scratch: &mut Scratch<P::X, P::W>,
        tile: &Tile,
        active: Range<usize>,
    ) {
        let mut m = active.start;
        if P::S::WIDE {
            m = self.scores_of::<6, 4>(scratch, tile, m..active.end);
            m = self.scores_of::<2, 4>(scratch, tile, m..active.end);
        } else {
            m = self.scores_of::<6, 1>(scratch, tile, m..active.end);
            m = self.scores_of::<2, 2>(scratch, tile, m..active.end);
        }
        self.scores_of::<1, 4>(scratch, tile, m..active.end);
    }

    /// [`Self::scores`] of `M` queries and `N` vectors at a time; gives the first query left over.
    #[inline(always)]
    fn scores_of<const M: usize, const N: usize>(
        self,
        scratch: &mut Scratch<P::X, P::W>,
        tile: &Tile,
        active: Range<usize>,
    ) -> usize {
        let mut m = active.start;
        while m + M <= active.end {
            // What the first sees, and what the last sees; a vector at a time.
            let seen = self.seen_by_some(tile, m..m + M);
            let (mut v, end) = (seen.start / LANES, seen.end.div_ceil(LANES));
            while v + N <= end {
                self.scores_at::<M, N>(scratch, m, v);
                v += N;
            }
            while v < end {
                self.scores_at::<M, 1>(scratch, m, v);
                v += 1;
            }
            m += M;
        }
        m
    }

    /// What the queries `m` see of a tile, one or the other.
    #[inline(always)]
    fn seen_by_some(self, tile: &Tile, m: Range<usize>) -> Range<usize> {
        let group = self.layer.group();
        let (first, last) = (m.start / group, (m.end - 1) / group);
        self.seen(tile, first).start..self.seen(tile, last).end
    }

    #[inline(always)]
    fn scores_at<const M: usize, const N: usize>(
        self,
        scratch: &mut Scratch<P::X, P::W>,
        m: usize,
        v: usize,
    ) {
        let s = self.p.simd();
        let steps = scratch.keys.len();
        let mut x = [[].as_slice(); M];
        for j in 0..M {
            x[j] = &scratch.queries[(m + j) * steps..][..steps];
        }
        let mut sums = [[s.splat(0.0); N]; M];
        let keys = scratch.keys.as_flattened().get(v..).unwrap_or_default();
        multiply(self.p, x, (keys, VECTORS), &mut sums);
        for j in 0..M {
            for i in 0..N {
                s.store(sums[j][i], &mut scratch.scores[m + j][v + i].0);
            }
        }
    }

    /// Adds the weighted values of a tile to the sums of the queries `active`.
    #[inline(always)]
    pub(super) fn mix(
        self,
        scratch: &Scratch<P::X, P::W>,
        states: &mut State,
        tile: &Tile,
        active: Range<usize>,
    ) {
        let mut m = active.start;
        if P::S::WIDE {
            m = self.mix_of::<6, 4>(scratch, states, tile, m..active.end);
            m = self.mix_of::<2, 8>(scratch, states, tile, m..active.end);
        } else {
            m = self.mix_of::<6, 1>(scratch, states, tile, m..active.end);
            m = self.mix_of::<2, 2>(scratch, states, tile, m..active.end);
        }
        self.mix_of::<1, 4>(scratch, states, tile, m..active.end);
    }

    /// [`Self::mix`] of `M` queries and `N` vectors at a time; gives the first query left over.
    #[inline(always)]
    fn mix_of<const M: usize, const N: usize>(
        self,
        scratch: &Scratch<P::X, P::W>,
        states: &mut State,
        tile: &Tile,
        active: Range<usize>,
    ) -> usize {
        let (mut m, chunks) = (active.start, self.chunks());
        while m + M <= active.end {
            let seen = self.seen_by_some(tile, m..m + M);
            let steps = seen.start / P::LEN..seen.end.div_ceil(P::LEN);
            let mut c = 0;
            while c + N <= chunks {
                self.mix_at::<M, N>(scratch, states, steps.clone(), (m, c));
                c += N;
            }
            while c < chunks {
                self.mix_at::<M, 1>(scratch, states, steps.clone(), (m, c));
                c += 1;
            }
            m += M;
        }
        m
    }

    #[inline(always)]
    fn mix_at<const M: usize, const N: usize>(
        self,
        scratch: &Scratch<P::X, P::W>,
        states: &mut State,
        steps: Range<usize>,
        (m, c): (usize, usize),
    ) {
        let (s, chunks) = (self.p.simd(), self.chunks());
        let mut x = [[].as_slice(); M];
        let mut sums = [[s.splat(0.0); N]; M];
        for j in 0..M {
            x[j] = &scratch.weights[(m + j) * (TILE / P::LEN)..][steps.clone()];
            for i in 0..N {
                sums[j][i] = s.load(&states[(m + j) * (chunks + STATE_EXTRA) + c + i].0);
            }
        }
        multiply(self.p, x, (&scratch.values[steps.start * chunks + c..], chunks), &mut sums);
        for j in 0..M {
            for i in 0..N {
                s.store(sums[j][i], &mut states[(m + j) * (chunks + STATE_EXTRA) + c + i].0);
            }
        }
    }
}
