//! The two products of a tile, in blocks of a few queries by a few vectors: scores, and the mixing of
//! values. A block leaves out what none of its queries sees, by whole vectors and steps.
#![allow(clippy::needless_range_loop)] // The indices of a block go over several arrays at once.

use std::ops::Range;

use super::softmax::{STATE_EXTRA, State};
use super::steps::{Steps, add};
use super::tile::{TILE, Tile};
use super::unit::{Attention, Scratch};
use crate::simd::{LANES, Simd};

impl<P: Steps> Attention<'_, P> {
    /// The products of the queries `active` and the keys of `tile`; meanwhile, the keys of the groups
    /// `ahead` are brought nearer.
    #[inline(always)]
    pub(super) fn scores(
        self,
        scratch: &mut Scratch<P::X>,
        tile: &Tile,
        mut ahead: &[usize],
        active: Range<usize>,
    ) {
        let (mut m, ahead) = (active.start, &mut ahead);
        if P::S::WIDE {
            m = self.scores_of::<6, 4>(scratch, tile, ahead, m..active.end);
            m = self.scores_of::<2, 4>(scratch, tile, ahead, m..active.end);
        } else {
            m = self.scores_of::<6, 1>(scratch, tile, ahead, m..active.end);
            m = self.scores_of::<2, 2>(scratch, tile, ahead, m..active.end);
        }
        self.scores_of::<1, 4>(scratch, tile, ahead, m..active.end);
    }

    /// [`Self::scores`] of `M` queries and `N` vectors at a time; gives the first query left over.
    #[inline(always)]
    fn scores_of<const M: usize, const N: usize>(
        self,
        scratch: &mut Scratch<P::X>,
        tile: &Tile,
        ahead: &mut &[usize],
        active: Range<usize>,
    ) -> usize {
        let mut m = active.start;
        while m + M <= active.end {
            // A vector at a time.
            let (seen, _) = self.seen_by(tile, m..m + M);
            let (mut v, end) = (seen.start / LANES, seen.end.div_ceil(LANES));
            while v + N <= end {
                self.scores_at::<M, N>(scratch, tile, std::mem::take(ahead), (m, v));
                v += N;
            }
            if N > 2 && v + 2 <= end {
                self.scores_at::<M, 2>(scratch, tile, std::mem::take(ahead), (m, v));
                v += 2;
            }
            while v < end {
                self.scores_at::<M, 1>(scratch, tile, std::mem::take(ahead), (m, v));
                v += 1;
            }
            m += M;
        }
        m
    }

    /// What some of the queries `m` see of a tile, and what all of them see: both ends of what one
    /// sees rise with its position.
    #[inline(always)]
    fn seen_by(self, tile: &Tile, m: Range<usize>) -> (Range<usize>, Range<usize>) {
        let group = self.layer.group();
        let first = self.seen(tile, m.start / group);
        let last = self.seen(tile, (m.end - 1) / group);
        (first.start..last.end, last.start..first.end)
    }

    #[inline(always)]
    fn scores_at<const M: usize, const N: usize>(
        self,
        scratch: &mut Scratch<P::X>,
        tile: &Tile,
        ahead: &[usize],
        (m, v): (usize, usize),
    ) {
        let (s, steps) = (self.p.simd(), self.layer.geometry.steps);
        let (mut x, mut keys) = ([[].as_slice(); M], [[].as_slice(); N]);
        for j in 0..M {
            x[j] = &scratch.queries[(m + j) * steps..][..steps];
        }
        for i in 0..N {
            keys[i] = &self.layer.k[tile.at[v + i]..][..steps];
        }
        let mut sums = [[s.splat(0.0); N]; M];
        for k in 0..steps {
            for at in ahead {
                self.prefetch(self.layer.k, at + k);
            }
            let mut w = [self.p.load(&keys[0][k]); N];
            for i in 1..N {
                w[i] = self.p.load(&keys[i][k]);
            }
            add(self.p, (x, k), w, &mut sums);
        }
        for j in 0..M {
            for i in 0..N {
                s.store(sums[j][i], &mut scratch.scores[m + j][v + i].0);
            }
        }
    }

    /// Adds the weighted values of a tile to the sums of the queries `active`; meanwhile, the values
    /// of the groups `ahead` are brought nearer.
    #[inline(always)]
    pub(super) fn mix(
        self,
        scratch: &Scratch<P::X>,
        states: &mut State,
        (tile, mut ahead): (&Tile, &[usize]),
        active: Range<usize>,
    ) {
        let (mut m, ahead) = (active.start, &mut ahead);
        if P::S::WIDE {
            m = self.mix_of::<6, 4>(scratch, states, (tile, ahead), m..active.end);
            m = self.mix_of::<2, 8>(scratch, states, (tile, ahead), m..active.end);
        } else {
            m = self.mix_of::<6, 1>(scratch, states, (tile, ahead), m..active.end);
            m = self.mix_of::<2, 2>(scratch, states, (tile, ahead), m..active.end);
        }
        self.mix_of::<1, 4>(scratch, states, (tile, ahead), m..active.end);
    }

    /// [`Self::mix`] of `M` queries and `N` vectors at a time; gives the first query left over.
    ///
    /// What all queries of a block see is multiplied for all of them. What comes before and after
    /// it each adds for itself, so that what one does not see never meets its weight of 0, which
    /// would keep out what is finite but no infinity and no NaN.
    #[inline(always)]
    fn mix_of<const M: usize, const N: usize>(
        self,
        scratch: &Scratch<P::X>,
        states: &mut State,
        (tile, ahead): (&Tile, &mut &[usize]),
        active: Range<usize>,
    ) -> usize {
        let (mut m, chunks) = (active.start, self.chunks());
        while m + M <= active.end {
            let (some, all) = self.seen_by(tile, m..m + M);
            let mut steps = all.start.div_ceil(P::LEN)..all.end / P::LEN;
            if steps.is_empty() {
                steps = some.start / P::LEN..some.start / P::LEN;
            }
            let (start, end) = (steps.start * P::LEN, steps.end * P::LEN);
            let seen = |m: usize| self.seen(tile, m / self.layer.group());
            for m in m..m + M {
                self.mix_alone(scratch, states, tile, (m, seen(m).start..start));
            }
            let mut c = 0;
            while c + N <= chunks {
                let ahead = std::mem::take(ahead);
                self.mix_at::<M, N>(scratch, states, (tile, steps.clone(), ahead), (m, c));
                c += N;
            }
            while c < chunks {
                let ahead = std::mem::take(ahead);
                self.mix_at::<M, 1>(scratch, states, (tile, steps.clone(), ahead), (m, c));
                c += 1;
            }
            for m in m..m + M {
                let seen = seen(m);
                self.mix_alone(scratch, states, tile, (m, end.max(seen.start)..seen.end));
            }
            m += M;
        }
        m
    }

    #[inline(always)]
    fn mix_at<const M: usize, const N: usize>(
        self,
        scratch: &Scratch<P::X>,
        states: &mut State,
        (tile, steps, ahead): (&Tile, Range<usize>, &[usize]),
        (m, c): (usize, usize),
    ) {
        let (s, chunks, group) = (self.p.simd(), self.chunks(), LANES / P::LEN);
        let mut sums = [[s.splat(0.0); N]; M];
        for j in 0..M {
            for i in 0..N {
                sums[j][i] = s.load(&states[(m + j) * (chunks + STATE_EXTRA) + c + i].0);
            }
        }
        // Vectors of each group ahead for each step.
        let share = self.layer.geometry.steps.div_ceil(steps.len().max(1));
        // Group by group, in which row follows row.
        let mut start = steps.start;
        while start < steps.end {
            let end = steps.end.min((start / group + 1) * group);
            let mut x = [[].as_slice(); M];
            for j in 0..M {
                x[j] = &scratch.weights[(m + j) * (TILE / P::LEN)..][start..end];
            }
            let rows = &self.layer.v[tile.at[start / group] + start % group * chunks + c..];
            for k in 0..end - start {
                for at in ahead {
                    let first = at + (start + k - steps.start) * share;
                    for at in first..first + share {
                        self.prefetch(self.layer.v, at);
                    }
                }
                let row = &rows[k * chunks..][..N];
                let mut w = [self.p.load(&row[0]); N];
                for i in 1..N {
                    w[i] = self.p.load(&row[i]);
                }
                add(self.p, (x, k), w, &mut sums);
            }
            start = end;
        }
        for j in 0..M {
            for i in 0..N {
                s.store(sums[j][i], &mut states[(m + j) * (chunks + STATE_EXTRA) + c + i].0);
            }
        }
    }

    /// Adds the weighted values of the positions `seen` to the sums of query `m`, and nothing of
    /// other positions of their steps.
    #[inline(always)]
    fn mix_alone(
        self,
        scratch: &Scratch<P::X>,
        states: &mut State,
        tile: &Tile,
        (m, seen): (usize, Range<usize>),
    ) {
        if seen.is_empty() {
            return;
        }
        let (s, chunks, group) = (self.p.simd(), self.chunks(), LANES / P::LEN);
        let weights = &scratch.weights[m * (TILE / P::LEN)..][..TILE / P::LEN];
        let sums = &mut states[m * (chunks + STATE_EXTRA)..][..chunks];
        for k in seen.start / P::LEN..seen.end.div_ceil(P::LEN) {
            let first = k * P::LEN;
            let part = seen.start.max(first) - first..seen.end.min(first + P::LEN) - first;
            let values = &self.layer.v[tile.at[k / group] + k % group * chunks..][..chunks];
            for (values, sum) in values.iter().zip(&mut *sums) {
                let values = self.p.load_seen(values, part.clone());
                s.store(self.p.dot(weights[k], values, s.load(&sum.0)), &mut sum.0);
            }
        }
    }
}
