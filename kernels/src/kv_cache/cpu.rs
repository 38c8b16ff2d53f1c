//! The write into the paged cache on the CPU: one narrowing copy per kv head, of all the tokens of a
//! group at once where they come together, because the slots of a group share their lines.
#![allow(unsafe_code)] // Slots that differ are elements that do not overlap.

use std::ops::Range;

use super::{GROUP, Geometry, Part};
use crate::dot::padded;
use crate::element::Element;
use crate::parallel::Disjoint;
use crate::simd::{LANES, Simd};
use crate::view::Rows;

/// Sixteen neighbours of each of up to `T` tokens: rounded apart from where they go, because only then
/// is it done in vectors.
type Narrow<E, const T: usize> = [[E; LANES]; T];

/// `x [T, K, head_size]`, one slot per token, below `N * B`.
pub(super) fn write<E: Element>(
    (cache, part): (&mut [E], Part),
    geometry: Geometry,
    x: Rows<'_>,
    slot_mapping: &[u32],
) {
    let cache = Disjoint::new(cache);
    let mut t = 0;
    while t < slot_mapping.len() {
        let slots = &slot_mapping[t..];
        let end = t + super::neighbours(slots);
        // SAFETY: there is one thread.
        unsafe { geometry.keep((part, slots[0]), x.part(t..end), &cache) };
        t = end;
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

    /// Writes the tokens `x` `[T, K, head_size]`, keys or values, to the slots of one group from
    /// `slot` on, which are below `N * B` of `cache`.
    ///
    /// # Safety
    ///
    /// At no time do two threads write to one slot.
    #[inline(always)]
    pub(crate) unsafe fn keep<E: Element>(
        &self,
        to: (Part, u32),
        x: Rows<'_>,
        cache: &Disjoint<'_, E>,
    ) {
        // SAFETY: the caller says the same.
        unsafe {
            match x.count {
                1 => self.keep_up_to::<E, 1>(to, x, cache),
                _ => self.keep_up_to::<E, GROUP>(to, x, cache),
            }
        }
    }

    /// [`Self::keep`] of at most `T` tokens.
    ///
    /// # Safety
    ///
    /// As there.
    #[inline(always)]
    unsafe fn keep_up_to<E: Element, const T: usize>(
        &self,
        (part, slot): (Part, u32),
        x: Rows<'_>,
        cache: &Disjoint<'_, E>,
    ) {
        let (block, group, o) = self.place(slot);
        let size = self.stored_size();
        for head in 0..self.kv_heads {
            let start = self.group(block, head, group) * GROUP * size;
            for c in 0..size / LANES {
                let mut narrow: Narrow<E, T> = [[E::ZERO; LANES]; T];
                for (t, to) in narrow.iter_mut().enumerate().take(x.count) {
                    let head = &x.row(t)[head * self.head_size..][..self.head_size];
                    *to = narrowed(head, c * LANES);
                }
                let tokens = o..o + x.count;
                // SAFETY: these elements belong to these slots, and the caller says that no other
                // thread writes to them.
                unsafe {
                    match part {
                        Part::Keys => keep_keys(&narrow, tokens, start + c * LANES * GROUP, cache),
                        Part::Values => {
                            let at = |o| start + (o / E::STEP * size + c * LANES) * E::STEP;
                            keep_values(&narrow, tokens, at, cache);
                        }
                    }
                }
            }
        }
    }
}

/// The sixteen elements of a head from `first` on, or as many as there are and zeros.
#[inline(always)]
fn narrowed<E: Element>(head: &[f32], first: usize) -> [E; LANES] {
    let mut narrow = [E::ZERO; LANES];
    match head[first..].first_chunk::<LANES>() {
        Some(x) => E::narrow(x, &mut narrow),
        None => E::narrow(&padded(&head[first..]), &mut narrow),
    }
    narrow
}

/// Writes sixteen elements of keys, `narrow` with a row for each of `tokens`, to the lines from `at`
/// on, in which sixteen positions follow each other.
///
/// # Safety
///
/// No other thread writes to the slots `tokens`.
#[inline(always)]
unsafe fn keep_keys<E: Element, const T: usize>(
    narrow: &Narrow<E, T>,
    tokens: Range<usize>,
    at: usize,
    cache: &Disjoint<'_, E>,
) {
    let step = E::STEP;
    for (o, row) in tokens.zip(narrow) {
        for (k, pair) in row.chunks_exact(step).enumerate() {
            let at = at + (k * GROUP + o) * step;
            // SAFETY: these elements belong to slot o.
            unsafe { cache.part(at..at + step) }.copy_from_slice(pair);
        }
    }
}

/// Writes sixteen elements of values, `narrow` with a row for each of `tokens`, to the lines that
/// begin where `at` says, in which the positions of a step take turns.
///
/// # Safety
///
/// No other thread writes to the slots `tokens`.
#[inline(always)]
unsafe fn keep_values<E: Element, const T: usize>(
    narrow: &Narrow<E, T>,
    tokens: Range<usize>,
    at: impl Fn(usize) -> usize,
    cache: &Disjoint<'_, E>,
) {
    let step = E::STEP;
    let mut o = tokens.start;
    while o < tokens.end {
        let (at, rows) = (at(o), &narrow[o - tokens.start..]);
        if o.is_multiple_of(step) && o + step <= tokens.end {
            // SAFETY: the slots of a step have all of these elements.
            let to = unsafe { cache.part(at..at + LANES * step) };
            for (i, to) in to.chunks_exact_mut(step).enumerate() {
                for j in 0..step {
                    to[j] = rows[j][i];
                }
            }
            o += step;
            continue;
        }
        for (i, element) in rows[0].into_iter().enumerate() {
            let at = at + i * step + o % step;
            // SAFETY: this element belongs to slot o.
            unsafe { cache.part(at..at + 1)[0] = element };
        }
        o += 1;
    }
}
