//! Paged attention on the CPU, with an online softmax over tiles of the context.
//!
//! A [`Unit`] of work is a few queries of one row that read one kv head: the heads of a group, at
//! up to [`MAX_TOKENS`] neighbouring positions, so that what is read from the cache serves several.
//! Threads share out units.
//!
//! For each tile of [`TILE`] positions, cut from position 0 on: the scores of all queries as a
//! small matrix product, each query's softmax over the positions it sees, and the mixing of the
//! values, position by position. A query's sums run over the positions it sees in rising order,
//! alone or not; a tile in which it sees nothing does not touch it.
#![allow(clippy::needless_range_loop)] // The indices of a tile go over several arrays at once.

use std::ops::Range;

use super::{AttentionParams, PagedBatch};
use crate::dot::{dots, padded};
use crate::element::Element;
use crate::parallel;
use crate::simd::math::{exp, tanh};
use crate::simd::{LANES, Level, Simd, Task};
use crate::view::{Floats, Rows};

/// Positions of a tile: two vectors of scores, for a good part of which one rescaling of the sums
/// is enough.
const TILE: usize = 2 * LANES;

/// Positions whose queries share a unit: more would share more, and leave less to other threads.
const MAX_TOKENS: usize = 16;

/// The dimensions of the queries and the cache.
#[derive(Clone, Copy)]
pub(super) struct Geometry {
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) block_size: usize,
    pub(super) head_size: usize,
}

/// `q [T, H, D]`, cache `[N, K, B, D]` twice, a checked batch, out `[T, H, D]`.
pub(super) fn paged_attention(
    q: Rows<'_>,
    cache: (Floats<'_>, Floats<'_>),
    geometry: Geometry,
    (batch, params, sinks): (&PagedBatch<'_>, &AttentionParams<'_>, Option<&[f32]>),
    out: &mut [f32],
) {
    match cache {
        (Floats::F32(k), Floats::F32(v)) => {
            run(&Layer { q, k, v, geometry, params, sinks }, batch, out);
        }
        (Floats::F16(k), Floats::F16(v)) => {
            run(&Layer { q, k, v, geometry, params, sinks }, batch, out);
        }
        (Floats::Bf16(k), Floats::Bf16(v)) => {
            run(&Layer { q, k, v, geometry, params, sinks }, batch, out);
        }
        _ => unreachable!("both caches have one dtype"),
    }
}

/// What all units read.
struct Layer<'a, E> {
    q: Rows<'a>,
    k: &'a [E],
    v: &'a [E],
    geometry: Geometry,
    params: &'a AttentionParams<'a>,
    /// `[H]`
    sinks: Option<&'a [f32]>,
}

fn run<E: Element>(layer: &Layer<'_, E>, batch: &PagedBatch<'_>, out: &mut [f32]) {
    let level = Level::current();
    let (units, nanoseconds) = split(layer, batch, out);
    parallel::for_each(units, nanoseconds, |unit| level.run(unit));
}

/// The units of a batch, and an estimate of their time.
fn split<'a, E: Element>(
    layer: &'a Layer<'a, E>,
    batch: &PagedBatch<'a>,
    out: &'a mut [f32],
) -> (Vec<Unit<'a, E>>, usize) {
    let Geometry { heads, kv_heads, head_size, .. } = layer.geometry;
    let group_len = heads / kv_heads * head_size;
    let (mut units, mut nanoseconds) = (Vec::new(), 0);
    // `[T][K]` parts of one group of heads each.
    let mut parts = out.chunks_exact_mut(group_len.max(1));
    for (row, &table) in batch.block_tables.iter().enumerate() {
        let (start, end) = (batch.cu_seqlens[row] as usize, batch.cu_seqlens[row + 1] as usize);
        let context_len = batch.context_lens[row] as usize;
        for first in (start..end).step_by(MAX_TOKENS) {
            let tokens = MAX_TOKENS.min(end - first);
            let position = context_len - (end - first);
            let new = |kv_head| {
                let out = Vec::with_capacity(tokens);
                Unit { layer, table, kv_head, token: first, position, out }
            };
            let unit = units.len();
            units.extend((0..kv_heads).map(new));
            for _ in 0..tokens {
                units[unit..].iter_mut().for_each(|unit| unit.out.extend(parts.next()));
            }
            let seen = layer
                .params
                .window
                .map_or(position + tokens, |w| (position + tokens).min(w as usize + tokens));
            // Two products per element of what is seen, some 16 of them per nanosecond.
            nanoseconds += tokens * heads * head_size * seen / 8;
        }
    }
    (units, nanoseconds)
}

/// Queries at neighbouring positions of one row, of the heads that read one kv head.
struct Unit<'a, E> {
    layer: &'a Layer<'a, E>,
    table: &'a [u32],
    kv_head: usize,
    /// The first token, in the batch.
    token: usize,
    /// The position of the first token, in the row.
    position: usize,
    /// `[tokens][group * D]`.
    out: Vec<&'a mut [f32]>,
}

/// The online softmax of a unit's queries, `M = tokens * group` of them, token by token.
struct State<'a> {
    /// `[M]` rows of D.
    queries: Vec<&'a [f32]>,
    /// `[M]`: the largest score so far.
    max: Vec<f32>,
    /// `[M]`: sums of the weights so far, relative to `max`; lane by lane.
    total: Vec<[f32; LANES]>,
    /// `[M, padded D]`: sums of the weighted values so far, relative to `max`.
    mixed: Vec<[f32; LANES]>,
    /// `[M]`: scores of a tile, then weights.
    weights: Vec<[f32; TILE]>,
}

impl<E: Element> Task for Unit<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let head_size = self.layer.geometry.head_size;
        let group = self.layer.geometry.heads / self.layer.geometry.kv_heads;
        let chunks = head_size.div_ceil(LANES);
        let mut state = self.start(group, chunks);
        let end = self.position + self.out.len();
        let begin = self.layer.params.first_seen(self.position);
        let mut tile = begin / TILE * TILE;
        while tile < end {
            // The positions of this tile that any query of the unit sees: no other is read.
            let (first, len) = (begin.max(tile) - tile, TILE.min(end - tile));
            let (mut k, mut v) = ([[].as_slice(); TILE], [[].as_slice(); TILE]);
            for i in first..len {
                let at = self.at(tile + i);
                (k[i], v[i]) = (&self.layer.k[at..][..head_size], &self.layer.v[at..][..head_size]);
            }
            let active = self.active(tile, group);
            self.scores(s, &mut state, active.clone(), (first, &k[first..len]));
            for m in active.clone() {
                let seen = self.seen(tile, m / group);
                self.soften::<S>(&mut state, m, seen, chunks);
            }
            self.mix(s, &mut state, active, (tile, &v), chunks);
            tile += TILE;
        }
        self.finish(s, &state, chunks);
    }
}

impl<'a, E: Element> Unit<'a, E> {
    fn start(&self, group: usize, chunks: usize) -> State<'a> {
        let count = self.out.len() * group;
        let head_size = self.layer.geometry.head_size;
        let mut queries = Vec::with_capacity(count);
        for t in 0..self.out.len() {
            let heads = &self.layer.q.row(self.token + t)[self.kv_head * group * head_size..];
            queries.extend((0..group).map(|h| &heads[h * head_size..][..head_size]));
        }
        // A sink is a first score, with weight 1 relative to itself and no value.
        let sink = |m: usize| self.layer.sinks.map(|sinks| sinks[self.kv_head * group + m % group]);
        let mut first_weight = [0.0; LANES];
        first_weight[0] = 1.0;
        State {
            queries,
            max: (0..count).map(|m| sink(m).unwrap_or(f32::NEG_INFINITY)).collect(),
            total: vec![self.layer.sinks.map_or([0.0; LANES], |_| first_weight); count],
            mixed: vec![[0.0; LANES]; count * chunks],
            weights: vec![[0.0; TILE]; count],
        }
    }

    /// Where position `position` of this row and kv head lies in the caches.
    #[inline(always)]
    fn at(&self, position: usize) -> usize {
        let Geometry { kv_heads, block_size, head_size, .. } = self.layer.geometry;
        let block = self.table[position / block_size] as usize;
        ((block * kv_heads + self.kv_head) * block_size + position % block_size) * head_size
    }

    /// Which positions of `tile` the queries of token t see, counted from the tile's first.
    #[inline(always)]
    fn seen(&self, tile: usize, t: usize) -> Range<usize> {
        let position = self.position + t;
        let first = self.layer.params.first_seen(position).max(tile);
        first - tile..(position + 1).clamp(first, (tile + TILE).max(first)) - tile
    }

    /// The queries that see any of `tile`: neighbours, as both ends of what a query sees rise with
    /// its position.
    #[inline(always)]
    fn active(&self, tile: usize, group: usize) -> Range<usize> {
        let tokens = self.out.len();
        let first = tile.saturating_sub(self.position).min(tokens);
        let mut end = tokens;
        let first_seen = |t| self.layer.params.first_seen(self.position + t);
        while end > first && first_seen(end - 1) >= tile + TILE {
            end -= 1;
        }
        first * group..end * group
    }

    /// The scaled and capped scores of the queries `active` against the keys of a tile from `first`
    /// on, also those that a query does not see.
    #[inline(always)]
    fn scores<S: Simd>(
        &self,
        s: S,
        state: &mut State<'_>,
        active: Range<usize>,
        k: (usize, &[&[E]]),
    ) {
        let mut m = active.start;
        if S::WIDE {
            m = scores_of::<S, E, 4, 4>(s, state, m..active.end, k);
            m = scores_of::<S, E, 2, 8>(s, state, m..active.end, k);
            scores_of::<S, E, 1, 8>(s, state, m..active.end, k);
        } else {
            m = scores_of::<S, E, 2, 3>(s, state, m..active.end, k);
            scores_of::<S, E, 1, 4>(s, state, m..active.end, k);
        }
        let AttentionParams { scale, softcap, .. } = *self.layer.params;
        for scores in &mut state.weights[active] {
            match softcap {
                None => scores.iter_mut().for_each(|x| *x *= scale),
                Some(cap) => {
                    let scale = scale / cap;
                    scores.iter_mut().for_each(|x| *x = cap * tanh::<S>(*x * scale));
                }
            }
        }
    }

    /// From the scores of query m to weights, 0 for what it does not see; what was summed up so
    /// far is brought down to the new maximum.
    #[inline(always)]
    fn soften<S: Simd>(&self, state: &mut State<'_>, m: usize, seen: Range<usize>, chunks: usize) {
        let weights = &mut state.weights[m];
        weights[..seen.start].fill(f32::NEG_INFINITY);
        weights[seen.end..].fill(f32::NEG_INFINITY);
        let mut max = state.max[m];
        for &score in &*weights {
            max = if score > max { score } else { max };
        }
        let total = &mut state.total[m];
        // Where the maximum stays the factor is 1, and multiplying changes nothing.
        if max > state.max[m] {
            let factor = exp::<S>(state.max[m] - max);
            total.iter_mut().for_each(|x| *x *= factor);
            for mixed in &mut state.mixed[m * chunks..][..chunks] {
                mixed.iter_mut().for_each(|x| *x *= factor);
            }
            state.max[m] = max;
        }
        for weight in &mut *weights {
            *weight = exp::<S>(*weight - max);
        }
        for (i, total) in total.iter_mut().enumerate() {
            *total += weights[i] + weights[i + LANES];
        }
    }

    /// Adds the weighted values of a tile to the sums of the queries `active`.
    #[inline(always)]
    fn mix<S: Simd>(
        &self,
        s: S,
        state: &mut State<'_>,
        active: Range<usize>,
        (tile, v): (usize, &[&[E]; TILE]),
        chunks: usize,
    ) {
        let group = self.layer.geometry.heads / self.layer.geometry.kv_heads;
        let mut m = active.start;
        while m < active.end {
            // Queries that see the same positions go together.
            let seen = self.seen(tile, m / group);
            let mut same = m + 1;
            while same < active.end && self.seen(tile, same / group) == seen {
                same += 1;
            }
            let v = &v[seen.clone()];
            if S::WIDE {
                m = mix_of::<S, E, 4, 4>(s, state, m..same, (seen.start, v), chunks);
                mix_of::<S, E, 1, 8>(s, state, m..same, (seen.start, v), chunks);
            } else {
                m = mix_of::<S, E, 2, 2>(s, state, m..same, (seen.start, v), chunks);
                mix_of::<S, E, 1, 4>(s, state, m..same, (seen.start, v), chunks);
            }
            m = same;
        }
    }

    #[inline(always)]
    fn finish<S: Simd>(&mut self, s: S, state: &State<'_>, chunks: usize) {
        let head_size = self.layer.geometry.head_size;
        let heads = self.out.iter_mut().flat_map(|out| out.chunks_exact_mut(head_size));
        for (m, out) in heads.enumerate() {
            let total = s.sum(s.load(&state.total[m]));
            let mixed = state.mixed[m * chunks..][..chunks].as_flattened();
            for (out, mixed) in out.iter_mut().zip(mixed) {
                *out = mixed / total;
            }
        }
    }
}

/// The products of the queries `queries`, M at a time, with the keys `k`, which begin at `first` of
/// a tile; gives the first query that was left over.
#[inline(always)]
fn scores_of<S: Simd, E: Element, const M: usize, const N: usize>(
    s: S,
    state: &mut State<'_>,
    queries: Range<usize>,
    (first, k): (usize, &[&[E]]),
) -> usize {
    let mut m = queries.start;
    while m + M <= queries.end {
        let mut q = [[].as_slice(); M];
        q.copy_from_slice(&state.queries[m..m + M]);
        let (blocks, rest) = k.as_chunks::<N>();
        for (i, k) in blocks.iter().enumerate() {
            let scores = dots(s, q, *k);
            for (j, scores) in scores.iter().enumerate() {
                state.weights[m + j][first + i * N..][..N].copy_from_slice(scores);
            }
        }
        for (i, k) in rest.iter().enumerate() {
            let scores = dots(s, q, [*k]);
            for (j, [score]) in scores.iter().enumerate() {
                state.weights[m + j][first + blocks.len() * N + i] = *score;
            }
        }
        m += M;
    }
    m
}

/// Adds to the sums of the queries `queries`, M at a time, the values `v` with the weights from
/// `first` on; gives the first query that was left over.
#[inline(always)]
fn mix_of<S: Simd, E: Element, const M: usize, const C: usize>(
    s: S,
    state: &mut State<'_>,
    queries: Range<usize>,
    (first, v): (usize, &[&[E]]),
    chunks: usize,
) -> usize {
    let mut m = queries.start;
    while m + M <= queries.end {
        let mut c = 0;
        while c + C <= v[0].len() / LANES {
            mix_chunks::<S, E, M, C>(s, state, m, (first, v), (c, chunks));
            c += C;
        }
        while c < chunks {
            mix_chunks::<S, E, M, 1>(s, state, m, (first, v), (c, chunks));
            c += 1;
        }
        m += M;
    }
    m
}

/// [`mix_of`] for the queries `m..m+M` and the vectors `c..c+C` of each value.
#[inline(always)]
fn mix_chunks<S: Simd, E: Element, const M: usize, const C: usize>(
    s: S,
    state: &mut State<'_>,
    m: usize,
    (first, v): (usize, &[&[E]]),
    (c, chunks): (usize, usize),
) {
    let mut sums = [[s.splat(0.0); C]; M];
    for j in 0..M {
        for i in 0..C {
            sums[j][i] = s.load(&state.mixed[(m + j) * chunks + c + i]);
        }
    }
    for (i, v) in v.iter().enumerate() {
        let mut weights = [s.splat(0.0); M];
        for j in 0..M {
            weights[j] = s.splat(state.weights[m + j][first + i]);
        }
        let mut values = [s.splat(0.0); C];
        if (c + C) * LANES <= v.len() {
            let (v, _) = v[c * LANES..][..C * LANES].as_chunks::<LANES>();
            for i in 0..C {
                values[i] = E::load(s, &v[i]);
            }
        } else {
            values[0] = E::load(s, &padded(&v[c * LANES..]));
        }
        for i in 0..C {
            for j in 0..M {
                sums[j][i] = s.fma(weights[j], values[i], sums[j][i]);
            }
        }
    }
    for j in 0..M {
        for i in 0..C {
            s.store(sums[j][i], &mut state.mixed[(m + j) * chunks + c + i]);
        }
    }
}
