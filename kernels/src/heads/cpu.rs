//! Heads on the CPU: neighbours of a text, whose slots share the lines of a group, are written
//! together, from the second-level cache at the latest. Threads share out the tokens; each token has
//! a slot of its own.

use super::{Heads, Places, Scope};
use crate::element::Element;
use crate::kv_cache::{self, Geometry, Part};
use crate::norm::CpuNorm;
use crate::parallel::{self, Disjoint};
use crate::rope;
use crate::simd::{Level, Simd, Task};
use crate::view::Rows;

/// A checked call.
pub(super) struct Work<'a> {
    pub(super) heads: &'a Heads<'a>,
    /// Of queries, of keys.
    pub(super) norms: Option<[HeadNorm<'a>; 2]>,
    pub(super) places: &'a Places<'a>,
    pub(super) caches: Geometry,
}

/// See [`super::HeadNorm`].
pub(super) struct HeadNorm<'a> {
    pub(super) norm: CpuNorm<'a>,
    pub(super) scope: Scope,
}

/// `qkv [T, (H + 2K) * D]`, caches of keys and of values.
pub(super) fn prepare<E: Element>(work: &Work<'_>, qkv: &mut [f32], caches: [&mut [E]; 2]) {
    let level = Level::current();
    let Heads { heads, kv_heads, head_size, .. } = *work.heads;
    // Some 3 elements per nanosecond.
    let nanoseconds = qkv.len() / 3;
    let caches = caches.map(Disjoint::new);
    parallel::for_rows(qkv, (heads + 2 * kv_heads) * head_size, nanoseconds, |first, rows| {
        level.run(Tokens { work, first, rows, caches: &caches });
    });
}

/// The tokens from `first` on.
struct Tokens<'a, E> {
    work: &'a Work<'a>,
    first: usize,
    rows: &'a mut [f32],
    /// Of keys, of values; whole.
    caches: &'a [Disjoint<'a, E>; 2],
}

impl<E: Element> Task for Tokens<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let Heads { heads, kv_heads, head_size, .. } = *self.work.heads;
        let (q_len, kv_len) = (heads * head_size, kv_heads * head_size);
        let stride = q_len + 2 * kv_len;
        let geometry = self.work.caches;
        let mut slots = &self.work.places.slot_mapping[self.first..][..self.rows.len() / stride];
        while !slots.is_empty() {
            let count = kv_cache::neighbours(slots);
            geometry.prefetch(s, slots[0], self.caches);
            let (rows, rest) = std::mem::take(&mut self.rows).split_at_mut(count * stride);
            for (t, row) in (self.first..).zip(rows.chunks_exact_mut(stride)) {
                let (q, kv) = row.split_at_mut(q_len);
                self.work.token(s, t, q, &mut kv[..kv_len]);
            }
            let part = |from| Rows { data: &rows[from..], stride, len: kv_len, count };
            let [cache_k, cache_v] = self.caches;
            // SAFETY: no two tokens have one slot, and each token is one thread's.
            #[allow(unsafe_code)] // Slots that differ are elements that do not overlap.
            unsafe {
                geometry.keep((Part::Keys, slots[0]), part(q_len), cache_k);
                geometry.keep((Part::Values, slots[0]), part(q_len + kv_len), cache_v);
            }
            (self.first, self.rows, slots) = (self.first + count, rest, &slots[count..]);
        }
    }
}

impl HeadNorm<'_> {
    /// Normalises all heads of one token.
    #[inline(always)]
    fn run<S: Simd>(&self, s: S, x: &mut [f32], head_size: usize) {
        match self.scope {
            Scope::Whole => self.norm.in_place(s, x),
            Scope::PerHead => {
                // Not `for_each`: its closure would be compiled for the oldest processor.
                for head in x.chunks_exact_mut(head_size) {
                    self.norm.in_place(s, head);
                }
            }
            Scope::EachHead => {
                let weights = self.norm.weight.chunks_exact(head_size);
                for (head, weight) in x.chunks_exact_mut(head_size).zip(weights) {
                    CpuNorm { weight, ..self.norm }.in_place(s, head);
                }
            }
        }
    }
}

impl Work<'_> {
    /// Prepares the queries and the keys of token t.
    #[inline(always)]
    fn token<S: Simd>(&self, s: S, t: usize, q: &mut [f32], k: &mut [f32]) {
        if let Some([q_norm, k_norm]) = &self.norms {
            q_norm.run(s, q, self.heads.head_size);
            k_norm.run(s, k, self.heads.head_size);
        }
        self.turn::<S>(t, q);
        self.turn::<S>(t, k);
        if let Some(factors) = self.heads.query_scale {
            q.iter_mut().for_each(|q| *q *= factors[t]);
        }
    }

    /// Turns the heads of token t, if there is a rotation.
    #[inline(always)]
    fn turn<S: Simd>(&self, t: usize, x: &mut [f32]) {
        let Some((table, style)) = self.heads.rope else { return };
        let position = self.places.positions[t];
        for head in x.chunks_exact_mut(self.heads.head_size) {
            rope::cpu::turn_in_place::<S>(head, table, style, position);
        }
    }
}
