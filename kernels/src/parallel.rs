//! When work is worth more than one thread.
//!
//! Threads only ever share out whole results; what a result is the sum of stays with one thread.

use rayon::prelude::*;

/// Waking threads and waiting for them costs some 10 microseconds; below twice that, one thread
/// is done sooner.
const WORTH_FORKING_NS: usize = 25_000;

/// Whether work that takes one thread `nanoseconds` should be shared out.
pub(crate) fn is_worth_it(nanoseconds: usize) -> bool {
    nanoseconds >= WORTH_FORKING_NS && rayon::current_num_threads() > 1
}

/// Calls `f` with each item, on all threads if `nanoseconds`, an estimate of the whole, is
/// worth it.
pub(crate) fn for_each<I: Send>(items: Vec<I>, nanoseconds: usize, f: impl Fn(I) + Sync + Send) {
    if items.len() > 1 && is_worth_it(nanoseconds) {
        items.into_par_iter().for_each(f);
    } else {
        items.into_iter().for_each(f);
    }
}

/// Calls `f` with the number of the first row and the rows themselves, for pieces of `out` of
/// whole rows of `len` elements that together are all of it; see [`for_each`].
pub(crate) fn for_rows(
    out: &mut [f32],
    len: usize,
    nanoseconds: usize,
    f: impl Fn(usize, &mut [f32]) + Sync + Send,
) {
    if len == 0 || out.is_empty() {
        return;
    }
    if !is_worth_it(nanoseconds) {
        return f(0, out);
    }
    // A few pieces per thread even out what the threads are otherwise busy with.
    let rows = (out.len() / len).div_ceil(4 * rayon::current_num_threads());
    out.par_chunks_mut(rows * len).enumerate().for_each(|(i, out)| f(i * rows, out));
}
