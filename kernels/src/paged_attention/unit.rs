//! A unit of attention: some queries of one row, tile by tile of what they see.
//!
//! A tile is [`TILE`] positions, cut from position 0 on. Its keys are transposed once for all
//! queries; then come the scores, each query's softmax, and the mixing of the values. What tiles
//! give is summed up within a *segment* of [`SEGMENT`] positions, cut from position 0 on as well,
//! relative to the largest score in it so far (an online softmax); segments are added up in rising
//! order. So a query's sums run in one order, whoever computes a segment. Where a query sees
//! nothing of a tile or a segment, that is left out.
//!
//! Memory is read ahead: while a tile is rearranged, the lines of the next one are prefetched,
//! because the processor's own prefetcher stops where a block ends.
#![allow(clippy::needless_range_loop)] // The indices of a tile go over several arrays at once.
#![allow(unsafe_code)] // Units own different parts of a result, which the compiler cannot see.

use std::ops::Range;

use super::cpu::{Layer, Queries, Unit};
use super::softmax::{STATE_EXTRA, State};
use super::steps::{Exact, Steps, VECTORS, Vector, load};
use super::tile::{SEGMENT, TILE, Tile};
use crate::element::Element;
use crate::parallel::Disjoint;
use crate::simd::{LANES, Simd, Task};

/// What a thread does.
pub(super) enum Work<'a> {
    /// Units, one after the other; the states of those of one segment go to the second.
    Attend(&'a [Unit], &'a Disjoint<'a, Vector>),
    /// Adds up the states of the segments of a unit, which are the first of the second.
    Merge(Unit, &'a State),
}

/// Some work on a layer.
pub(super) struct Job<'a, E> {
    pub(super) layer: Layer<'a, E>,
    /// `[T, H, D]`
    pub(super) out: &'a Disjoint<'a, f32>,
    pub(super) work: Work<'a>,
}

impl<E: Element> Task for Job<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        self.compute(Exact::<S, E>::new(s));
    }
}

impl<E: Element> Job<'_, E> {
    #[inline(always)]
    pub(super) fn compute<P: Steps<E = E>>(self, p: P) {
        let mut scratch = P::scratch().take();
        let mut whole = std::mem::take(&mut scratch.whole);
        let layer = &self.layer;
        match self.work {
            Work::Attend(units, states) => {
                for (i, unit) in units.iter().enumerate() {
                    let next = units.get(i + 1).map(|unit| first_tile(layer, unit));
                    let attention = Attention { p, layer, queries: layer.queries(unit) };
                    attention.start(&mut whole);
                    let next = next.unwrap_or_default();
                    attention.unit(&mut scratch, (unit, whole.as_mut_slice()), next);
                    match unit.segment {
                        None => attention.write(&whole, self.out),
                        Some((_, first)) => {
                            let len = scratch.segment.len();
                            // SAFETY: every unit of one segment has states of its own.
                            let to = unsafe { states.part(first..first + len) };
                            to.copy_from_slice(&scratch.segment);
                        }
                    }
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
fn first_tile<E>(layer: &Layer<'_, E>, unit: &Unit) -> Tile {
    let queries = layer.queries(unit);
    let seen = layer.seen_by_any(&queries);
    let start = unit.segment.map_or(seen.start, |(segment, _)| seen.start.max(segment * SEGMENT));
    Tile::new(layer, &queries, start / TILE * TILE)
}

/// What one thread needs, kept from unit to unit.
pub(super) struct Scratch<X, W> {
    /// `[M, steps of a row]`
    pub(super) queries: Vec<X>,
    /// `[steps of a row]`, a step of all keys of a tile each.
    pub(super) keys: Vec<[W; VECTORS]>,
    /// `[steps of a tile, vectors of a row]`
    pub(super) values: Vec<W>,
    /// `[M]`: of a tile.
    pub(super) scores: Vec<[Vector; VECTORS]>,
    /// `[M, steps of a tile]`
    pub(super) weights: Vec<X>,
    /// `[M]` states: of the segments so far, and of the one that is gone through.
    whole: Vec<Vector>,
    segment: Vec<Vector>,
}

impl<X, W> Default for Scratch<X, W> {
    fn default() -> Self {
        let (queries, keys, values) = (Vec::new(), Vec::new(), Vec::new());
        let (scores, weights) = (Vec::new(), Vec::new());
        let (whole, segment) = (Vec::new(), Vec::new());
        Self { queries, keys, values, scores, weights, whole, segment }
    }
}

/// The attention of some queries.
#[derive(Clone, Copy)]
pub(super) struct Attention<'a, P: Steps> {
    pub(super) p: P,
    pub(super) layer: &'a Layer<'a, P::E>,
    pub(super) queries: Queries<'a>,
}

impl<P: Steps> Attention<'_, P> {
    /// Goes through a unit and adds its segments to `whole`; `next` is what comes after it, to be
    /// read ahead. The states of the last segment stay in the scratch.
    #[inline(always)]
    fn unit(
        self,
        scratch: &mut Scratch<P::X, P::W>,
        (unit, whole): (&Unit, &mut State),
        next: Tile,
    ) {
        self.prepare(scratch);
        let mut part = std::mem::take(&mut scratch.segment);
        part.resize(self.layer.num_states(&self.queries), Vector::ZERO);
        let all = self.layer.segments(&self.queries);
        let segments = unit.segment.map_or(all, |(segment, _)| segment..segment + 1);
        let mut next = Some(next);
        for segment in segments.clone() {
            let after = if segment + 1 < segments.end {
                Tile::new(self.layer, &self.queries, (segment + 1) * SEGMENT)
            } else {
                next.take().unwrap_or_default()
            };
            self.segment(scratch, &mut part, segment, after);
            self.merge(whole, &part, segment);
        }
        scratch.segment = part;
    }

    /// Writes the result.
    #[inline(always)]
    fn write(self, states: &State, out: &Disjoint<'_, f32>) {
        let Queries { token, tokens, kv_head, .. } = self.queries;
        let (kv_heads, group) = (self.layer.geometry.kv_heads, self.layer.group());
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
    fn prepare(self, scratch: &mut Scratch<P::X, P::W>) {
        let head_size = self.layer.geometry.head_size;
        let (count, group) = (self.count(), self.layer.group());
        let steps = head_size.div_ceil(P::CHUNK) * LANES;
        scratch.queries.resize(count * steps, P::X::default());
        scratch.keys.resize(steps, [P::NOTHING; VECTORS]);
        scratch.values.resize(TILE / P::LEN * self.chunks(), P::NOTHING);
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
        scratch: &mut Scratch<P::X, P::W>,
        states: &mut State,
        segment: usize,
        after: Tile,
    ) {
        let chunks = self.chunks();
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
    fn tile(self, scratch: &mut Scratch<P::X, P::W>, states: &mut State, tile: &Tile, next: &Tile) {
        let group = self.layer.group();
        let tokens = self.layer.active(&self.queries, tile.start, TILE);
        let active = tokens.start * group..tokens.end * group;
        self.pack_keys(&mut scratch.keys, tile, next);
        self.scores(scratch, tile, active.clone());
        for m in active {
            self.soften(scratch, states, m, self.seen(tile, m / group));
        }
        // A weight of 0 keeps out what is finite; anything else must not even be there.
        let all_see_all = [tokens.start, tokens.end - 1].map(|t| self.seen(tile, t) == tile.seen);
        let apart = all_see_all != [true; 2] && !self.are_finite(tile);
        let mut rest = tokens;
        while !rest.is_empty() {
            let (some, seen) = if apart {
                (rest.start..rest.start + 1, self.seen(tile, rest.start))
            } else {
                (rest.clone(), tile.seen.clone())
            };
            self.pack_values(&mut scratch.values, tile, &seen, next);
            self.mix(scratch, states, tile, some.start * group..some.end * group);
            rest.start = some.end;
        }
    }

    /// What the queries of token `t` see of a tile.
    #[inline(always)]
    pub(super) fn seen(self, tile: &Tile, t: usize) -> Range<usize> {
        self.layer.seen(&self.queries, t, tile.start, TILE)
    }

    /// The keys of `tile` as steps of all of them; reads ahead.
    #[inline(always)]
    fn pack_keys(self, keys: &mut [[P::W; VECTORS]], tile: &Tile, next: &Tile) {
        let (cache, len) = (self.layer.k, self.layer.geometry.head_size);
        for v in 0..VECTORS {
            let (first, end) = (v * LANES, (v + 1) * LANES);
            let mut rows = [[].as_slice(); LANES];
            for i in 0..LANES {
                rows[i] = tile.row((cache, len), first + i, &tile.seen);
            }
            let is_seen = first < tile.seen.end && tile.seen.start < end;
            let all_seen = tile.seen.start <= first && end <= tile.seen.end;
            let ahead = tile.ahead(next, first, LANES);
            for (c, to) in keys.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
                for at in ahead {
                    self.prefetch(cache, at + c * P::CHUNK);
                }
                if is_seen {
                    let whole = all_seen && (c + 1) * P::CHUNK <= len;
                    self.p.keys(&rows, (c, v), whole, to);
                }
            }
        }
    }

    /// The values of the positions `seen` of `tile` as steps; reads ahead.
    #[inline(always)]
    fn pack_values(self, values: &mut [P::W], tile: &Tile, seen: &Range<usize>, next: &Tile) {
        let (cache, len) = (self.layer.v, self.layer.geometry.head_size);
        let chunks = self.chunks();
        let steps = tile.seen.start / P::LEN..tile.seen.end.div_ceil(P::LEN);
        for k in 0..TILE / P::LEN {
            for at in tile.ahead(next, k * P::LEN, P::LEN) {
                for from in (0..len).step_by(P::CHUNK) {
                    self.prefetch(cache, at + from);
                }
            }
            if steps.contains(&k) {
                let mut rows = [[].as_slice(); 2];
                for i in 0..P::LEN {
                    rows[i] = tile.row((cache, len), k * P::LEN + i, seen);
                }
                self.p.values(rows, &mut values[k * chunks..][..chunks]);
            }
        }
    }

    /// Begins to bring element `at` of a cache, and what lies in the same line, nearer. The
    /// second-level cache has twice as many lines on their way as the first.
    #[inline(always)]
    fn prefetch(self, cache: &[P::E], at: usize) {
        self.p.simd().prefetch_far(cache.as_ptr().wrapping_add(at).cast());
    }

    /// Whether all values that any query sees of `tile` are numbers.
    #[inline(always)]
    fn are_finite(self, tile: &Tile) -> bool {
        let s = self.p.simd();
        let (cache, len) = (self.layer.v, self.layer.geometry.head_size);
        let mut sum = s.splat(0.0);
        for i in tile.seen.clone() {
            let row = tile.row((cache, len), i, &tile.seen);
            for c in 0..self.chunks() {
                // 0 times a number is 0; 0 times infinity or NaN is NaN.
                sum = s.fma(load(s, row, c), s.splat(0.0), sum);
            }
        }
        s.sum(sum) == 0.0
    }
}
