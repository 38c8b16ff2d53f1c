//! How the system maps memory that is read from end to end, over and over.
#![allow(unsafe_code)] // A call of the system.

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
