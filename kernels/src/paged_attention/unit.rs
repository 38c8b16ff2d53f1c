//! A unit of attention: some queries of one row, tile by tile of what they see.
//!
//! A tile is [`TILE`] positions, cut from position 0 on: first come the scores, then each query's
//! softmax, then the mixing of the values. What tiles give is summed up within a *segment* of [`SEGMENT`] positions, cut from position 0 on as well,
//! relative to the largest score in it so far (an online softmax); segments are added up in rising
//! order. So a query's sums run in one order, whoever computes a segment. Where a query sees
//! nothing of a tile or a segment, that is left out.
//!
//! Memory is read ahead, because the processor's own prefetcher stops where a block ends: while the
//! scores of a tile are computed the keys of the next one are prefetched, and while values are mixed
//! its values.
#![allow(unsafe_code)] // Units own different parts of a result, which the compiler cannot see.

use std::ops::Range;

use super::cpu::{Geometry, Layer, Queries, Unit};
use super::softmax::{STATE_EXTRA, State};
use super::steps::{Exact, ExactPairs, Steps, VECTORS, Vector};
use super::tile::{SEGMENT, TILE, Tile};
use crate::element::Element;
use crate::parallel::Disjoint;
use crate::simd::pairs::Pairs;
use crate::simd::{LANES, Simd, Task};

/// What a thread does.
pub(super) enum Work<'a> {
    /// Units, one after the other.
    Attend {
        units: &'a [Unit],
        /// What the thread is likely to do then.
        next: Option<&'a Unit>,
        /// Where the states of units of one segment go.
        states: &'a Disjoint<'a, Vector>,
    },
    /// Adds up the states of the segments of a unit, which are the first of the second.
    Merge(Unit, &'a State),
}

/// Some work on a layer.
pub(super) struct Job<'a, W> {
    pub(super) layer: Layer<'a, W>,
    /// `[T, H, D]`
    pub(super) out: &'a Disjoint<'a, f32>,
    pub(super) work: Work<'a>,
}

impl<E: Element> Task for Job<'_, [E; LANES]> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        self.compute(Exact::<S, E>::new(s));
    }
}

impl Task for Job<'_, Pairs> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        self.compute(ExactPairs(s));
    }
}

impl<W: Copy> Job<'_, W> {
    #[inline(always)]
    pub(super) fn compute<P: Steps<W = W>>(self, p: P) {
        let mut scratch = P::scratch().take();
        let mut whole = std::mem::take(&mut scratch.whole);
        let layer = &self.layer;
        match self.work {
            Work::Attend { units, next, states } => {
                for (i, unit) in units.iter().enumerate() {
                    let next = units.get(i + 1).or(next).map(|unit| first_tile(layer, unit));
                    let next = next.unwrap_or_default();
                    let attention = Attention { p, layer, queries: layer.queries(unit) };
                    attention.prepare(&mut scratch);
                    let mut part = std::mem::take(&mut scratch.segment);
                    match unit.segment {
                        None => {
                            let states =
                                attention.unit(&mut scratch, [&mut whole, &mut part], next);
                            attention.write(states, self.out);
                        }
                        Some((segment, first)) => {
                            attention.segment(&mut scratch, &mut part, segment, next);
                            // SAFETY: every unit of one segment has states of its own.
                            let to = unsafe { states.part(first..first + part.len()) };
                            to.copy_from_slice(&part);
                        }
                    }
                    scratch.segment = part;
                }
            }
            Work::Merge(unit, states) => {
                let attention = Attention { p, layer, queries: layer.queries(&unit) };
                attention.start(&mut whole);
                attention.merge_all(&mut whole, states);
                attention.write(&whole, self.out);
            }
        }
        scratch.whole = whole;
        P::scratch().set(scratch);
    }
}

/// The first tile that `unit` goes through.
#[inline(always)]
fn first_tile<W>(layer: &Layer<'_, W>, unit: &Unit) -> Tile {
    let queries = layer.queries(unit);
    let seen = layer.seen_by_any(&queries);
    let start = unit.segment.map_or(seen.start, |(segment, _)| seen.start.max(segment * SEGMENT));
    Tile::new(layer, &queries, start / TILE * TILE)
}

/// What one thread needs, kept from unit to unit.
pub(super) struct Scratch<X> {
    /// `[M, steps of a key]`
    pub(super) queries: Vec<X>,
    /// `[M]`: of a tile.
    pub(super) scores: Vec<[Vector; VECTORS]>,
    /// `[M, steps of a tile]`
    pub(super) weights: Vec<X>,
    /// `[M]` states: of the segments so far, and of the one that is gone through.
    whole: Vec<Vector>,
    segment: Vec<Vector>,
}

impl<X> Default for Scratch<X> {
    fn default() -> Self {
        let (queries, scores, weights) = (Vec::new(), Vec::new(), Vec::new());
        let (whole, segment) = (Vec::new(), Vec::new());
        Self { queries, scores, weights, whole, segment }
    }
}

/// The attention of some queries.
#[derive(Clone, Copy)]
pub(super) struct Attention<'a, P: Steps> {
    pub(super) p: P,
    pub(super) layer: &'a Layer<'a, P::W>,
    pub(super) queries: Queries<'a>,
}

impl<P: Steps> Attention<'_, P> {
    /// Goes through all segments of a unit and gives what they add up to; `next` is what comes after
    /// them, to be read ahead.
    #[inline(always)]
    fn unit<'s>(
        self,
        scratch: &mut Scratch<P::X>,
        [whole, part]: [&'s mut Vec<Vector>; 2],
        next: Tile,
    ) -> &'s State {
        let segments = self.layer.segments(&self.queries);
        // Added to nothing, a segment stays as it is.
        if segments.len() == 1 && self.layer.sinks.is_none() {
            self.segment(scratch, part, segments.start, next);
            return part;
        }
        self.start(whole);
        let mut next = Some(next);
        for segment in segments.clone() {
            let after = if segment + 1 < segments.end {
                Tile::new(self.layer, &self.queries, (segment + 1) * SEGMENT)
            } else {
                next.take().unwrap_or_default()
            };
            self.segment(scratch, part, segment, after);
            self.merge(whole, part, segment);
        }
        whole
    }

    /// Writes the result.
    #[inline(always)]
    fn write(self, states: &State, out: &Disjoint<'_, f32>) {
        let Queries { token, tokens, kv_head, .. } = self.queries;
        let (kv_heads, group) = (self.layer.geometry.cache.kv_heads, self.layer.group());
        let len = group * self.layer.geometry.head_size;
        for t in 0..tokens {
            let first = ((token + t) * kv_heads + kv_head) * len;
            // SAFETY: a token and a kv head belong to one unit alone, which one thread writes.
            let heads = unsafe { out.part(first..first + len) };
            self.finish(states, t * group, heads);
        }
    }

    /// Makes room, and takes the queries as steps.
    #[inline(always)]
    fn prepare(self, scratch: &mut Scratch<P::X>) {
        let Geometry { head_size, steps, .. } = self.layer.geometry;
        let (count, group) = (self.count(), self.layer.group());
        scratch.queries.resize(count * steps, P::X::default());
        scratch.scores.resize(count, [Vector::ZERO; VECTORS]);
        scratch.weights.resize(count * (TILE / P::LEN), P::X::default());
        if steps == 0 {
            return;
        }
        for (m, to) in scratch.queries.chunks_exact_mut(steps).take(count).enumerate() {
            let row = self.layer.q.row(self.queries.token + m / group);
            let query = &row[(self.queries.kv_head * group + m % group) * head_size..][..head_size];
            for (c, to) in to.chunks_exact_mut(LANES / P::LEN).enumerate() {
                let rest = query.get(c * LANES..).unwrap_or_default();
                let mut lanes = [0.0; LANES];
                let len = rest.len().min(LANES);
                lanes[..len].copy_from_slice(&rest[..len]);
                self.p.take(&lanes, to);
            }
        }
    }

    /// How many queries there are.
    #[inline(always)]
    pub(super) fn count(self) -> usize {
        self.queries.tokens * self.layer.group()
    }

    /// Vectors of a row.
    #[inline(always)]
    pub(super) fn chunks(self) -> usize {
        self.layer.geometry.head_size.div_ceil(LANES)
    }

    /// Sums up what the queries see of a segment; `after` is what comes next, to be read ahead.
    #[inline(always)]
    fn segment(
        self,
        scratch: &mut Scratch<P::X>,
        states: &mut Vec<Vector>,
        segment: usize,
        after: Tile,
    ) {
        let chunks = self.chunks();
        states.resize(self.layer.num_states(&self.queries), Vector::ZERO);
        for state in states.chunks_exact_mut(chunks + STATE_EXTRA) {
            state.fill(Vector::ZERO);
            state[chunks + 1].0[0] = f32::NEG_INFINITY;
        }
        let all = self.layer.seen_by_any(&self.queries);
        let (first, end) = (all.start.max(segment * SEGMENT), all.end.min((segment + 1) * SEGMENT));
        let mut tile = Tile::new(self.layer, &self.queries, first / TILE * TILE);
        let mut after = Some(after);
        loop {
            let is_last = tile.start + TILE >= end;
            let next = if is_last {
                after.take().unwrap_or_default()
            } else {
                Tile::new(self.layer, &self.queries, tile.start + TILE)
            };
            self.tile(scratch, states, &tile, &next);
            if is_last {
                return;
            }
            tile = next;
        }
    }

    /// Goes through a tile; `next` is the one to be read ahead.
    #[inline(always)]
    fn tile(self, scratch: &mut Scratch<P::X>, states: &mut State, tile: &Tile, next: &Tile) {
        let group = self.layer.group();
        let tokens = self.layer.active(&self.queries, tile.start, TILE);
        let active = tokens.start * group..tokens.end * group;
        let ahead = &next.at[next.vectors()];
        self.scores(scratch, tile, ahead, active.clone());
        for m in active.clone() {
            self.soften(scratch, states, m, self.seen(tile, m / group));
        }
        self.mix(scratch, states, (tile, ahead), active);
    }

    /// What the queries of token `t` see of a tile.
    #[inline(always)]
    pub(super) fn seen(self, tile: &Tile, t: usize) -> Range<usize> {
        self.layer.seen(&self.queries, t, tile.start, TILE)
    }

    /// Begins to bring vector `at` of a cache nearer. The second-level cache has twice as many lines
    /// on their way as the first.
    #[inline(always)]
    pub(super) fn prefetch(self, cache: &[P::W], at: usize) {
        self.p.simd().prefetch_far(cache.as_ptr().wrapping_add(at).cast());
    }
}
