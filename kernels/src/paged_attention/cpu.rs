//! Paged attention on the CPU: what is cut into units, and what threads share out.
//!
//! A [`Unit`] is a few queries of one row that read one kv head: the heads of a group, at
//! neighbouring positions, so that what is read from the cache serves all of them. Where units are
//! fewer or longer than threads can share, the segments of a unit are computed apart and then
//! added up, in the order in which one thread would have: that changes no bit.

use std::cell::Cell;
use std::ops::Range;

use half::{bf16, f16};

#[cfg(target_arch = "x86_64")]
use super::dots;
use super::softmax::STATE_EXTRA;
use super::steps::Vector;
use super::tile::SEGMENT;
use super::unit::{Job, Work};
use super::{AttentionParams, PagedBatch};
use crate::element::Element;
use crate::kv_cache;
use crate::parallel::{self, Disjoint};
use crate::simd::pairs::{Pairs, Units};
use crate::simd::{LANES, Level};
use crate::threads;
use crate::view::{Floats, Rows};

/// Queries of a unit, as far as tokens can be grouped: what is read of the caches serves so many,
/// while what they sum up still fits the second-level cache.
const MAX_QUERIES: usize = 64;

/// Tokens of a unit: where a group is one head, more would leave too little to other threads.
const MAX_TOKENS: usize = 32;

/// Pieces of work for each thread, where there are enough units: they even out what threads are
/// otherwise busy with.
const PIECES_PER_THREAD: usize = 8;

/// The dimensions of the queries and the cache.
#[derive(Clone, Copy)]
pub(super) struct Geometry {
    pub(super) heads: usize,
    pub(super) head_size: usize,
    pub(super) cache: kv_cache::Geometry,
    /// Steps of a key: the vectors of a group, of keys or of values.
    pub(super) steps: usize,
}

/// What all units read. A `W` is a vector of steps.
#[derive(Clone, Copy)]
pub(super) struct Layer<'a, W> {
    pub(super) q: Rows<'a>,
    pub(super) k: &'a [W],
    pub(super) v: &'a [W],
    pub(super) geometry: Geometry,
    pub(super) batch: &'a PagedBatch<'a>,
    pub(super) params: &'a AttentionParams<'a>,
    /// `[H]`
    pub(super) sinks: Option<&'a [f32]>,
}

/// What is computed at once: the queries at neighbouring positions of one row, of the heads that
/// read one kv head.
#[derive(Clone, Copy)]
pub(super) struct Unit {
    pub(super) row: usize,
    /// The first token, in the batch.
    pub(super) token: usize,
    pub(super) tokens: usize,
    pub(super) kv_head: usize,
    /// The only segment that is gone through, and where its states go, if not all are.
    pub(super) segment: Option<(usize, usize)>,
}

/// The queries of a unit, `M = tokens * group` of them, token by token, and their row.
#[derive(Clone, Copy)]
pub(super) struct Queries<'a> {
    pub(super) table: &'a [u32],
    pub(super) kv_head: usize,
    /// The first token, in the batch.
    pub(super) token: usize,
    /// The position of the first token, in the row.
    pub(super) position: usize,
    pub(super) tokens: usize,
}

/// `q [T, H, D]`, both caches, a checked batch; writes `out [T, H, D]`.
pub(super) fn paged_attention(
    q: Rows<'_>,
    (cache_k, cache_v): (Floats<'_>, Floats<'_>),
    cache: kv_cache::Geometry,
    (batch, params, sinks): (&PagedBatch<'_>, &AttentionParams<'_>, Option<&[f32]>),
    out: &mut [f32],
) {
    if out.is_empty() {
        return;
    }
    let (heads, head_size) = (q.len / cache.head_size, cache.head_size);
    let geometry = |step| Geometry { heads, head_size, cache, steps: cache.stored_size() / step };
    match (cache_k, cache_v) {
        (Floats::F32(k), Floats::F32(v)) => {
            let (k, v, geometry) = (k.as_chunks().0, v.as_chunks().0, geometry(f32::STEP));
            let layer = Layer { q, k, v, geometry, batch, params, sinks };
            run::<[f32; LANES]>(layer, out, |job, (level, _)| level.run(job));
        }
        (Floats::F16(k), Floats::F16(v)) => {
            let (k, v, geometry) = (k.as_chunks().0, v.as_chunks().0, geometry(f16::STEP));
            let layer = Layer { q, k, v, geometry, batch, params, sinks };
            run::<[f16; LANES]>(layer, out, |job, (level, _)| level.run(job));
        }
        (Floats::Bf16(k), Floats::Bf16(v)) => {
            let [k, v] = [k, v].map(|cache| cache.as_chunks().0.as_chunks().0);
            let layer = Layer { q, k, v, geometry: geometry(bf16::STEP), batch, params, sinks };
            run::<Pairs>(layer, out, |job, (level, units)| match units {
                #[cfg(target_arch = "x86_64")]
                Units::Dots(dots) => dots::run(dots, job),
                _ => level.run(job),
            });
        }
        _ => unreachable!("both caches have one dtype"),
    }
}

impl<'a, W> Layer<'a, W> {
    /// Query heads that read one kv head.
    #[inline(always)]
    pub(super) fn group(&self) -> usize {
        self.geometry.heads / self.geometry.cache.kv_heads
    }

    /// The queries of `unit`.
    #[inline(always)]
    pub(super) fn queries(&self, unit: &Unit) -> Queries<'a> {
        let Unit { row, token, tokens, kv_head, .. } = *unit;
        let end = self.batch.cu_seqlens[row + 1] as usize;
        let position = self.batch.context_lens[row] as usize - (end - token);
        Queries { table: self.batch.block_tables[row], kv_head, token, position, tokens }
    }

    /// Which positions any of `queries` sees.
    #[inline(always)]
    pub(super) fn seen_by_any(&self, queries: &Queries<'_>) -> Range<usize> {
        self.params.first_seen(queries.position)..queries.position + queries.tokens
    }

    /// Which of the `len` positions from `start` on token `t` sees, counted from `start`.
    #[inline(always)]
    pub(super) fn seen(
        &self,
        queries: &Queries<'_>,
        t: usize,
        start: usize,
        len: usize,
    ) -> Range<usize> {
        let position = queries.position + t;
        let first = self.params.first_seen(position).max(start);
        first - start..(position + 1).clamp(first, (start + len).max(first)) - start
    }

    /// The tokens that see any of the `len` positions from `start` on: neighbours, as both ends of
    /// what a token sees rise with its position.
    #[inline(always)]
    pub(super) fn active(&self, queries: &Queries<'_>, start: usize, len: usize) -> Range<usize> {
        let first = start.saturating_sub(queries.position).min(queries.tokens);
        let mut end = queries.tokens;
        let first_seen = |t| self.params.first_seen(queries.position + t);
        while end > first && first_seen(end - 1) >= start + len {
            end -= 1;
        }
        first..end
    }

    /// The segments in which any of `queries` sees something.
    #[inline(always)]
    pub(super) fn segments(&self, queries: &Queries<'_>) -> Range<usize> {
        let seen = self.seen_by_any(queries);
        seen.start / SEGMENT..seen.end.div_ceil(SEGMENT)
    }

    /// Vectors of the states of `queries`.
    #[inline(always)]
    pub(super) fn num_states(&self, queries: &Queries<'_>) -> usize {
        let state = self.geometry.head_size.div_ceil(LANES) + STATE_EXTRA;
        queries.tokens * self.group() * state
    }

    /// All units of the batch.
    fn units(&self) -> impl Iterator<Item = Unit> {
        let max_tokens = (MAX_QUERIES / self.group()).clamp(1, MAX_TOKENS);
        let (batch, kv_heads) = (self.batch, self.geometry.cache.kv_heads);
        (0..batch.context_lens.len()).flat_map(move |row| {
            let (start, end) = (batch.cu_seqlens[row] as usize, batch.cu_seqlens[row + 1] as usize);
            (start..end).step_by(max_tokens).flat_map(move |token| {
                let tokens = max_tokens.min(end - token);
                (0..kv_heads).map(move |kv_head| Unit {
                    row,
                    token,
                    tokens,
                    kv_head,
                    segment: None,
                })
            })
        })
    }

    /// Multiplications and additions of a unit, about.
    fn products(&self, unit: &Unit) -> usize {
        let queries = self.queries(unit);
        let mut seen = self.seen_by_any(&queries).len();
        if unit.segment.is_some() {
            seen = seen.min(SEGMENT);
        }
        4 * queries.tokens * self.group() * seen * self.geometry.head_size
    }
}

/// Who computes what. The memory is kept from batch to batch.
#[derive(Default)]
struct Plan {
    units: Vec<Unit>,
    /// Runs of units: each is the work of one thread.
    pieces: Vec<Range<usize>>,
    /// Units that were cut into their segments; where the states of the first one are.
    long: Vec<(Unit, usize)>,
    states: Vec<Vector>,
    /// An estimate of the time that one thread would need.
    nanoseconds: usize,
}

impl Plan {
    fn fill<W>(&mut self, layer: &Layer<'_, W>) {
        self.units.clear();
        self.pieces.clear();
        self.long.clear();
        let threads = threads::count();
        let products: usize = layer.units().map(|unit| layer.products(&unit)).sum();
        // Some 64 of them per nanosecond.
        self.nanoseconds = products / 64;
        let mut states = 0;
        for unit in layer.units() {
            // What would keep one thread busy while the others are done is cut into its segments.
            let segments = layer.segments(&layer.queries(&unit));
            if segments.len() == 1 || layer.products(&unit) <= products / (2 * threads) {
                self.units.push(unit);
                continue;
            }
            self.long.push((unit, states));
            for segment in segments {
                self.units.push(Unit { segment: Some((segment, states)), ..unit });
                states += layer.num_states(&layer.queries(&unit));
            }
        }
        self.states.resize(states.max(self.states.len()), Vector::ZERO);
        let (mut first, mut sum) = (0, 0);
        for (i, unit) in self.units.iter().enumerate() {
            sum += layer.products(unit);
            if sum >= products / (PIECES_PER_THREAD * threads) || i + 1 == self.units.len() {
                self.pieces.push(first..i + 1);
                (first, sum) = (i + 1, 0);
            }
        }
    }
}

/// Cuts a batch into units and computes each by `compute`.
fn run<W: Copy + Sync>(
    layer: Layer<'_, W>,
    out: &mut [f32],
    compute: impl Fn(Job<'_, W>, (Level, Units)) + Sync,
) {
    thread_local! {
        static PLAN: Cell<Plan> = Cell::default();
    }
    let instructions = (Level::current(), Units::current());
    let mut plan = PLAN.take();
    plan.fill(&layer);
    let Plan { units, pieces, long, states, nanoseconds } = &mut plan;
    let out = &Disjoint::new(out);
    let parts = &Disjoint::new(states);
    parallel::for_pieces(pieces.len(), *nanoseconds, |i| {
        let Range { start, end } = pieces[i];
        let work = Work::Attend { units: &units[start..end], next: units.get(end), states: parts };
        compute(Job { layer, out, work }, instructions);
    });
    // Some 8 elements a nanosecond.
    parallel::for_pieces(long.len(), states.len() * LANES / 8, |i| {
        let (unit, first) = long[i];
        compute(Job { layer, out, work: Work::Merge(unit, &states[first..]) }, instructions);
    });
    PLAN.set(plan);
}
