//! How the system maps memory that is read from end to end, over and over, and how threads fill it.
#![allow(unsafe_code)] // A call of the system, and memory that is not cleared before it is filled.

use crate::parallel;

/// Asks for huge pages behind `memory`, to be called before it is first written: with small ones,
/// products that are bound by reading w take 5 to 10 % longer.
pub(crate) fn prefer_huge_pages<T>(memory: &mut [T]) {
    #[cfg(target_os = "linux")]
    {
        const PAGE: usize = 4096;
        let bytes = memory.as_mut_ptr_range();
        let start = (bytes.start as usize).next_multiple_of(PAGE);
        let len = (bytes.end as usize).saturating_sub(start);
        // SAFETY: the pages begin in memory that is borrowed for writing, and advice changes none
        // of its bytes. A system that knows no huge pages refuses, which is as well.
        unsafe { libc::madvise(start as *mut libc::c_void, len, libc::MADV_HUGEPAGE) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = memory;
}

/// The elements of `runs` iterators of `len` elements each, one after the other, in huge pages.
/// Threads share out the runs; `nanoseconds` is an estimate of the whole.
pub(crate) fn collect_runs<T: Send, I: Iterator<Item = T>>(
    runs: usize,
    len: usize,
    nanoseconds: usize,
    run: impl Fn(usize) -> I + Sync + Send,
) -> Vec<T> {
    let mut all = Vec::with_capacity(runs * len);
    let memory = &mut all.spare_capacity_mut()[..runs * len];
    prefer_huge_pages(memory);
    let parts = memory.chunks_mut(len.max(1)).enumerate().collect();
    parallel::for_each(parts, nanoseconds, |(i, part)| {
        let mut written = 0;
        for (to, element) in part.iter_mut().zip(run(i)) {
            to.write(element);
            written += 1;
        }
        assert_eq!(written, part.len(), "elements of run {i}");
    });
    // SAFETY: the parts are all of the first `runs * len` elements, and each element of each part
    // has been written, by the assertion.
    unsafe { all.set_len(runs * len) };
    all
}
