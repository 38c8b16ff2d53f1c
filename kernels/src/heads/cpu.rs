//! Heads on the CPU: a token's row goes through all of it while it is in the first-level cache.
//! Threads share out the tokens; each token has a slot of its own.

use super::{Heads, Places, Scope};
use crate::element::Element;
use crate::kv_cache::{self, Geometry, Part};
use crate::norm::CpuNorm;
use crate::parallel::{self, Disjoint};
use crate::rope;
use crate::simd::{Level, Simd, Task};

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
    fn run<S: Simd>(self, s: S) {
        let Heads { heads, kv_heads, head_size, query_scale, .. } = *self.work.heads;
        let (q_len, kv_len) = (heads * head_size, kv_heads * head_size);
        for (t, row) in (self.first..).zip(self.rows.chunks_exact_mut(q_len + 2 * kv_len)) {
            let (slots, geometry) = (self.work.places.slot_mapping, self.work.caches);
            // The next token of a text goes to much the same lines.
            if t == self.first || !kv_cache::share_group(slots[t - 1], slots[t]) {
                geometry.prefetch(s, slots[t], self.caches);
            }
            let (q, kv) = row.split_at_mut(q_len);
            let (k, v) = kv.split_at_mut(kv_len);
            if let Some([q_norm, k_norm]) = &self.work.norms {
                q_norm.run(s, q, head_size);
                k_norm.run(s, k, head_size);
            }
            self.work.turn::<S>(t, q);
            self.work.turn::<S>(t, k);
            if let Some(factors) = query_scale {
                q.iter_mut().for_each(|q| *q *= factors[t]);
            }
            let [cache_k, cache_v] = self.caches;
            // SAFETY: no two tokens have one slot, and each token is one thread's.
            #[allow(unsafe_code)] // Slots that differ are elements that do not overlap.
            unsafe {
                geometry.keep((Part::Keys, slots[t]), k, cache_k);
                geometry.keep((Part::Values, slots[t]), v, cache_v);
            }
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
