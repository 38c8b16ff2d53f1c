//! The softmax of each query, over tiles and then over segments: what is summed up is relative to
//! the largest score so far.

use std::ops::Range;

use super::steps::{Steps, VECTORS, Vector};
use super::tile::{SEGMENT, TILE};
use super::unit::{Attention, Scratch};
use crate::simd::math::{exp, exp_lanes, tanh};
use crate::simd::{LANES, Simd};

/// What a query has summed up: vectors of weighted values, then a vector whose sum is the sum of
/// the weights, then one whose first lane is the largest score, to which all is relative.
pub(super) type State = [Vector];

/// Vectors of a [`State`] beside the values.
pub(super) const STATE_EXTRA: usize = 2;

impl<P: Steps> Attention<'_, P> {
    /// Nothing summed up yet. A sink is a first score, with weight 1 relative to itself and no
    /// value.
    #[inline(always)]
    pub(super) fn start(self, states: &mut Vec<Vector>) {
        let (chunks, group) = (self.chunks(), self.layer.group());
        states.clear();
        states.resize(self.layer.num_states(&self.queries), Vector::ZERO);
        for (m, state) in states.chunks_exact_mut(chunks + STATE_EXTRA).enumerate() {
            let head = self.queries.kv_head * group + m % group;
            match self.layer.sinks {
                None => state[chunks + 1].0[0] = f32::NEG_INFINITY,
                Some(sinks) => (state[chunks].0[0], state[chunks + 1].0[0]) = (1.0, sinks[head]),
            }
        }
    }

    /// From the scores of query m to weights, 0 for what it does not see; what was summed up so
    /// far is brought down to the new maximum.
    #[inline(always)]
    pub(super) fn soften(
        self,
        scratch: &mut Scratch<P::X>,
        states: &mut State,
        m: usize,
        seen: Range<usize>,
    ) {
        let chunks = self.chunks();
        let s = self.p.simd();
        let scores = &mut scratch.scores[m];
        self.scale(scores, &seen);
        let state = &mut states[m * (chunks + STATE_EXTRA)..][..chunks + STATE_EXTRA];
        let old = state[chunks + 1].0[0];
        let mut lanes = s.splat(old);
        for scores in &*scores {
            // NaN is never larger.
            lanes = s.max(s.load(&scores.0), lanes);
        }
        let max = s.largest(lanes);
        // Where the maximum stays the factor is 1, and multiplying changes nothing.
        if max > old {
            let factor = s.splat(exp::<P::S>(old - max));
            for sums in &mut state[..=chunks] {
                s.store(s.fma(s.load(&sums.0), factor, s.splat(0.0)), &mut sums.0);
            }
            state[chunks + 1].0[0] = max;
        }
        let weights = &mut scratch.weights[m * (TILE / P::LEN)..][..TILE / P::LEN];
        let mut total = s.load(&state[chunks].0);
        for (scores, to) in scores.iter().zip(weights.chunks_exact_mut(LANES / P::LEN)) {
            let relative = s.fma(s.splat(-1.0), s.splat(max), s.load(&scores.0));
            let weights = exp_lanes(s, relative);
            total = s.fma(weights, s.splat(1.0), total);
            let mut lanes = [0.0; LANES];
            s.store(weights, &mut lanes);
            self.p.take(&lanes, to);
        }
        s.store(total, &mut state[chunks].0);
    }

    /// From products to scores; of what is not seen there is no score above any other.
    #[inline(always)]
    fn scale(self, scores: &mut [Vector; VECTORS], seen: &Range<usize>) {
        let (s, params) = (self.p.simd(), self.layer.params);
        for (v, scores) in scores.iter_mut().enumerate() {
            match params.softcap {
                None => {
                    let scaled = s.fma(s.load(&scores.0), s.splat(params.scale), s.splat(0.0));
                    s.store(scaled, &mut scores.0);
                }
                Some(cap) => {
                    let scale = params.scale / cap;
                    scores.0.iter_mut().for_each(|x| *x = cap * tanh::<P::S>(*x * scale));
                }
            }
            if *seen != (0..TILE) {
                let lane = |i: usize| i.clamp(v * LANES, (v + 1) * LANES) - v * LANES;
                scores.0[..lane(seen.start)].fill(f32::NEG_INFINITY);
                scores.0[lane(seen.end)..].fill(f32::NEG_INFINITY);
            }
        }
    }

    /// Adds the states of a segment to those of the segments before it.
    #[inline(always)]
    pub(super) fn merge(self, whole: &mut State, part: &State, segment: usize) {
        let len = self.chunks() + STATE_EXTRA;
        let group = self.layer.group();
        let tokens = self.layer.active(&self.queries, segment * SEGMENT, SEGMENT);
        for m in tokens.start * group..tokens.end * group {
            add(self.p.simd(), &mut whole[m * len..][..len], &part[m * len..][..len]);
        }
    }

    /// Adds the states of all segments, the first of `states`, to those of the sinks.
    #[inline(always)]
    pub(super) fn merge_all(self, whole: &mut State, states: &State) {
        let parts = states.chunks_exact(self.layer.num_states(&self.queries));
        for (segment, part) in self.layer.segments(&self.queries).zip(parts) {
            self.merge(whole, part, segment);
        }
    }

    /// The result of the queries from `m` on, `[D]` each: divides by the sums of the weights.
    #[inline(always)]
    pub(super) fn finish(self, states: &State, m: usize, heads: &mut [f32]) {
        let (s, chunks) = (self.p.simd(), self.chunks());
        let states = states.chunks_exact(chunks + STATE_EXTRA).skip(m);
        let heads = heads.chunks_exact_mut(self.layer.geometry.head_size);
        for (out, state) in heads.zip(states) {
            let factor = s.splat(1.0 / s.sum(s.load(&state[chunks].0)));
            for (out, mixed) in out.chunks_mut(LANES).zip(state) {
                // Adding 0 leaves one zero: a sum of nothing but zeros may be of either sign.
                let mixed = s.fma(s.load(&mixed.0), factor, s.splat(0.0));
                if let Some(out) = out.first_chunk_mut() {
                    s.store(mixed, out);
                } else {
                    let mut lanes = [0.0; LANES];
                    s.store(mixed, &mut lanes);
                    out.copy_from_slice(&lanes[..out.len()]);
                }
            }
        }
    }
}

/// Adds the state `part` of a query to `whole`, both brought down to the larger maximum.
#[inline(always)]
fn add<S: Simd>(s: S, whole: &mut State, part: &State) {
    let last = whole.len() - 1;
    let (old, new) = (whole[last].0[0], part[last].0[0]);
    let max = if new > old { new } else { old };
    let factors = [old, new].map(|x| s.splat(exp::<S>(x - max)));
    for (whole, part) in whole[..last].iter_mut().zip(part) {
        let part = s.fma(s.load(&part.0), factors[1], s.splat(0.0));
        s.store(s.fma(s.load(&whole.0), factors[0], part), &mut whole.0);
    }
    whole[last].0[0] = max;
}
