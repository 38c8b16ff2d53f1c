//! The write into the paged cache on the CPU: one narrowing copy per token and kv head.
#![allow(unsafe_code)] // Slots that differ are elements that do not overlap.

use super::{GROUP, Geometry, Part};
use crate::element::Element;
use crate::parallel::Disjoint;
use crate::simd::{LANES, Simd};
use crate::view::Rows;

/// `x [T, K, head_size]`, one slot per token, below `N * B`.
pub(super) fn write<E: Element>(
    (cache, part): (&mut [E], Part),
    geometry: Geometry,
    x: Rows<'_>,
    slot_mapping: &[u32],
) {
    let cache = Disjoint::new(cache);
    for (t, &slot) in slot_mapping.iter().enumerate() {
        // SAFETY: there is one thread.
        unsafe { geometry.keep((part, slot), x.row(t), &cache) };
    }
}

impl Geometry {
    /// The block of a slot, the group in it, and the offset in the group.
    #[inline(always)]
    fn place(&self, slot: u32) -> (usize, usize, usize) {
        let (slot, size) = (slot as usize, self.block_size());
        (slot / size, slot % size / GROUP, slot % GROUP)
    }

    /// Begins to bring a slot of both caches nearer, before it is written: a key has every step in a
    /// line of its own.
    #[inline(always)]
    pub(crate) fn prefetch<S: Simd, E: Element>(
        &self,
        s: S,
        slot: u32,
        [keys, values]: &[Disjoint<'_, E>; 2],
    ) {
        let (block, group, o) = self.place(slot);
        let (step, size, vector) = (E::STEP, self.stored_size(), GROUP * E::STEP);
        for head in 0..self.kv_heads {
            let start = self.group(block, head, group) * GROUP * size;
            for k in 0..size / step {
                s.prefetch_far(keys.address(start + k * vector + o * step).cast());
            }
            for c in 0..size / LANES {
                s.prefetch_far(values.address(start + o / step * size * step + c * vector).cast());
            }
        }
    }

    /// Writes `x` `[K, head_size]`, keys or values of a token, to a slot below `N * B` of `cache`.
    ///
    /// # Safety
    ///
    /// At no time do two threads write to one slot.
    #[inline(always)]
    pub(crate) unsafe fn keep<E: Element>(
        &self,
        (part, slot): (Part, u32),
        x: &[f32],
        cache: &Disjoint<'_, E>,
    ) {
        let (block, group, o) = self.place(slot);
        let (step, size) = (E::STEP, self.stored_size());
        for (head, x) in x.chunks_exact(self.head_size.max(1)).enumerate() {
            let start = self.group(block, head, group) * GROUP * size;
            for (c, x) in x.chunks(LANES).enumerate() {
                let (mut whole, mut rounded) = ([0.0; LANES], [E::ZERO; LANES]);
                whole[..x.len()].copy_from_slice(x);
                E::narrow(&whole, &mut rounded);
                // SAFETY: these elements belong to this slot, and the caller says that no other
                // thread writes to it.
                let to = |at: usize, len: usize| unsafe { cache.part(at..at + len) };
                match part {
                    Part::Keys => {
                        let first = start + c * LANES * GROUP + o * step;
                        for (k, pair) in rounded.chunks_exact(step).enumerate() {
                            to(first + k * GROUP * step, step).copy_from_slice(pair);
                        }
                    }
                    Part::Values => {
                        let first = start + (o / step * size + c * LANES) * step + o % step;
                        for (i, element) in rounded.into_iter().enumerate() {
                            to(first + i * step, 1)[0] = element;
                        }
                    }
                }
            }
        }
    }
}
