//! How fast this machine reads memory and multiplies, on all cores: what bounds every operation.

use std::hint::black_box;

use millstream_kernels::peak;

/// So many bytes are read that no cache holds them.
pub(crate) const READ_BYTES: usize = 256 << 20;

/// Rounds of multiplications: a few milliseconds.
const ROUNDS: usize = 1 << 19;

/// Threads that compute.
pub(crate) fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Memory to read from.
pub(crate) fn memory() -> Vec<f32> {
    peak::memory(READ_BYTES / 4)
}

/// Reads all of `memory` once, a part on each core.
pub(crate) fn read(memory: &[f32]) {
    std::thread::scope(|scope| {
        for part in memory.chunks(memory.len().div_ceil(threads())) {
            scope.spawn(move || black_box(peak::read(part)));
        }
    });
}

/// Multiplies on each core, with one of the functions of [`peak`]; gives the number of
/// multiplications and additions.
pub(crate) fn multiply(multiply: fn(usize) -> usize) -> usize {
    std::thread::scope(|scope| {
        let start = |_| scope.spawn(|| black_box(multiply(ROUNDS)));
        let cores: Vec<_> = (0..threads()).map(start).collect();
        cores.into_iter().map(|core| core.join().expect("multiplying does not fail")).sum()
    })
}
