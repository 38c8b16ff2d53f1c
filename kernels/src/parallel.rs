//! When work is worth more than one thread, and which part of it each one does.
//!
//! Threads only ever share out whole results; what a result is the sum of stays with one thread.
#![allow(unsafe_code)] // Pieces own different parts of one slice, which the compiler cannot see.

use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::ops::Range;

use crate::threads;

/// Handing out a job and waiting for its end takes one or two microseconds while the helpers are
/// awake; below a few times that, one thread is done sooner.
const WORTH_SHARING_NS: usize = 6_000;

/// Whether work that takes one thread `nanoseconds` should be shared out.
pub(crate) fn is_worth_it(nanoseconds: usize) -> bool {
    nanoseconds >= WORTH_SHARING_NS && threads::count() > 1
}

/// Calls `f` with each number below `pieces`, on all threads if `nanoseconds`, an estimate of the
/// whole, is worth it.
pub(crate) fn for_pieces(pieces: usize, nanoseconds: usize, f: impl Fn(usize) + Sync) {
    if pieces > 1 && is_worth_it(nanoseconds) {
        threads::run(pieces, f);
    } else {
        (0..pieces).for_each(f);
    }
}

/// Calls `f` with each item; see [`for_pieces`].
pub(crate) fn for_each<I: Send>(items: Vec<I>, nanoseconds: usize, f: impl Fn(I) + Sync) {
    let mut items = ManuallyDrop::new(items);
    let all = Disjoint::new(items.as_mut_slice());
    for_pieces(all.len(), nanoseconds, |i| {
        // SAFETY: each number comes once, so each item is moved out once; `items` drops none.
        f(unsafe { std::ptr::read(&all.part(i..i + 1)[0]) });
    });
    // SAFETY: no items are always initialised. What a panic above left over is leaked.
    unsafe { items.set_len(0) };
    drop(ManuallyDrop::into_inner(items));
}

/// Calls `f` with the number of the first row and the rows themselves, for pieces of `out` of
/// whole rows of `len` elements that together are all of it; see [`for_pieces`].
pub(crate) fn for_rows<T: Send>(
    out: &mut [T],
    len: usize,
    nanoseconds: usize,
    f: impl Fn(usize, &mut [T]) + Sync,
) {
    if len == 0 || out.is_empty() {
        return;
    }
    let rows = out.len() / len;
    let share = rows.div_ceil(num_pieces(nanoseconds)).max(1);
    let all = Disjoint::new(out);
    for_pieces(rows.div_ceil(share), nanoseconds, |i| {
        let first = i * share;
        // SAFETY: pieces have different rows.
        f(first, unsafe { all.part(first * len..(first + share).min(rows) * len) });
    });
}

/// A few pieces for each thread even out what the threads are otherwise busy with.
fn num_pieces(nanoseconds: usize) -> usize {
    if !is_worth_it(nanoseconds) {
        return 1;
    }
    threads::count() * if nanoseconds > 16 * WORTH_SHARING_NS { 4 } else { 1 }
}

/// A slice of which several threads write parts that do not overlap.
pub(crate) struct Disjoint<'a, T> {
    start: *mut T,
    len: usize,
    borrowed: PhantomData<&'a mut [T]>,
}

// SAFETY: it gives out parts of a `&mut [T]`, and who calls `part` says that they are different
// ones, so it is as if each thread had been given a part of its own.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    pub(crate) fn new(all: &'a mut [T]) -> Self {
        Self { start: all.as_mut_ptr(), len: all.len(), borrowed: PhantomData }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Where element `at` is, which may be none.
    #[inline(always)]
    pub(crate) fn address(&self, at: usize) -> *const T {
        self.start.wrapping_add(at)
    }

    /// The elements `range`, which must be among these.
    ///
    /// # Safety
    ///
    /// No two parts that are in use at the same time overlap.
    #[allow(clippy::mut_from_ref)] // That is what it is for.
    #[inline(always)]
    pub(crate) unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        // SAFETY: within the slice, as was just checked; the caller says that no other part of
        // it overlaps, and the slice is borrowed for as long as `self` is.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[test]
    fn rows_are_shared_out_whole_and_once() {
        for (rows, len) in [(1, 7), (2, 3), (1000, 5), (0, 4), (7, 0)] {
            for nanoseconds in [0, 20_000, 1_000_000] {
                let mut out = vec![0u32; rows * len];
                for_rows(&mut out, len, nanoseconds, |first, out| {
                    for (t, row) in out.chunks_exact_mut(len).enumerate() {
                        row.iter_mut().for_each(|x| *x += (first + t) as u32 + 1);
                    }
                });
                let expected = (0..rows).flat_map(|row| vec![row as u32 + 1; len]);
                assert_eq!(out, expected.collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn every_item_is_handed_over_once() {
        for nanoseconds in [0, 1_000_000] {
            let items: Vec<Box<usize>> = (0..100).map(Box::new).collect();
            let seen = Mutex::new(Vec::new());
            for_each(items, nanoseconds, |item| seen.lock().unwrap().push(*item));
            let mut seen = seen.into_inner().unwrap();
            seen.sort();
            assert_eq!(seen, (0..100).collect::<Vec<_>>());
        }
    }
}
