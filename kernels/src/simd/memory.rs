//! How the system maps memory that is read from end to end, over and over, and how threads fill it.
#![allow(unsafe_code)] // A call of the system, and memory that is not cleared before it is filled.

use std::alloc::{self, Layout};
use std::mem::MaybeUninit;
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::parallel;

/// What the systems that have huge pages take for one.
const HUGE_PAGE: usize = 2 << 20;

/// The smallest page of any system.
const PAGE: usize = 4096;

/// Asks for huge pages behind `memory`, to be called before it is first written: with small ones,
/// products that are bound by reading w take 5 to 15 % longer, and filling it up to three times as
/// long.
pub(crate) fn prefer_huge_pages<T>(memory: &mut [T]) {
    #[cfg(target_os = "linux")]
    {
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

/// Has the system back `memory` with pages, by writing to each what is there; one that `memory` only
/// ends in may be left out.
pub(crate) fn populate<T: Copy>(memory: &mut [T]) {
    for page in memory.chunks_mut(PAGE / size_of::<T>()) {
        let first = page.as_mut_ptr();
        // SAFETY: a chunk has an element at least, which is borrowed for writing and initialised.
        // Volatile, because a compiler that saw through it would leave it out.
        unsafe { first.write_volatile(first.read_volatile()) };
    }
}

/// Elements that stay as they were written, in huge pages. A matrix is seldom a whole number of them,
/// so those that are made after each other share the pages at their ends.
pub(crate) struct Lasting<T> {
    elements: NonNull<T>,
    len: usize,
    /// Where they are.
    _chunk: Arc<Chunk>,
}

// SAFETY: they are read only, by whoever has a reference, and dropping them runs no code of theirs.
unsafe impl<T: Copy + Sync> Send for Lasting<T> {}
// SAFETY: as above.
unsafe impl<T: Copy + Sync> Sync for Lasting<T> {}

impl<T> Deref for Lasting<T> {
    type Target = [T];

    #[inline(always)]
    fn deref(&self) -> &[T] {
        // SAFETY: `collect_runs` has written so many elements there; they live as long as the chunk.
        unsafe { std::slice::from_raw_parts(self.elements.as_ptr(), self.len) }
    }
}

/// Memory of several [`Lasting`], given back with the last of them.
struct Chunk {
    memory: NonNull<u8>,
    layout: Layout,
}

// SAFETY: it is an address; what is there belongs to those who were given a part of it.
unsafe impl Send for Chunk {}
// SAFETY: as above.
unsafe impl Sync for Chunk {}

impl Chunk {
    /// Room for several matrices of a layer; what is not written takes no memory.
    const SIZE: usize = 32 * HUGE_PAGE;

    fn new(bytes: usize) -> Self {
        let layout = Layout::from_size_align(bytes.next_multiple_of(HUGE_PAGE), HUGE_PAGE);
        let layout = layout.unwrap_or_else(|_| panic!("{bytes} bytes are more than there can be"));
        // SAFETY: the layout has at least one page.
        let memory = NonNull::new(unsafe { alloc::alloc(layout) });
        let memory = memory.unwrap_or_else(|| alloc::handle_alloc_error(layout));
        // SAFETY: so many bytes were just allocated; they need not be initialised to be borrowed.
        let all = unsafe {
            std::slice::from_raw_parts_mut(memory.cast::<MaybeUninit<u8>>().as_ptr(), layout.size())
        };
        prefer_huge_pages(all);
        Self { memory, layout }
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and nobody has a part of it any more.
        unsafe { alloc::dealloc(self.memory.as_ptr(), self.layout) };
    }
}

/// The chunk of which there is something left, and where that begins.
struct Open {
    chunk: Weak<Chunk>,
    used: usize,
}

static OPEN: Mutex<Open> = Mutex::new(Open { chunk: Weak::new(), used: 0 });

/// Memory for `len` elements that nobody else has, and the chunk in which it is.
fn claim<T>(len: usize) -> (NonNull<T>, Arc<Chunk>) {
    const { assert!(align_of::<T>() <= HUGE_PAGE) };
    let Some(bytes) = len.checked_mul(size_of::<T>()) else {
        panic!("{len} elements are more than there can be");
    };
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    let used = open.used.next_multiple_of(align_of::<T>());
    let left =
        open.chunk.upgrade().filter(|chunk| bytes <= chunk.layout.size().saturating_sub(used));
    let (chunk, start) = left
        .map_or_else(|| (Arc::new(Chunk::new(bytes.max(Chunk::SIZE))), 0), |chunk| (chunk, used));
    // SAFETY: `start + bytes` is at most the size of the chunk. It begins with a page, so `start`
    // alone decides how an element is aligned.
    let elements = unsafe { chunk.memory.add(start) }.cast();
    // What is larger has a chunk of its own, and the open one stays.
    if bytes <= Chunk::SIZE {
        *open = Open { chunk: Arc::downgrade(&chunk), used: start + bytes };
    }
    (elements, chunk)
}

/// The elements of `runs` iterators of `len` elements each, one after the other. Threads share out
/// the runs; `nanoseconds` is an estimate of the whole.
pub(crate) fn collect_runs<T: Copy + Send, I: Iterator<Item = T>>(
    runs: usize,
    len: usize,
    nanoseconds: usize,
    run: impl Fn(usize) -> I + Sync + Send,
) -> Lasting<T> {
    let (elements, chunk) = claim::<T>(runs * len);
    // SAFETY: so many elements are there, which need not be initialised to be borrowed, and nobody
    // else has them.
    let memory = unsafe {
        std::slice::from_raw_parts_mut(elements.cast::<MaybeUninit<T>>().as_ptr(), runs * len)
    };
    let parts = memory.chunks_mut(len.max(1)).enumerate().collect();
    parallel::for_each(parts, nanoseconds, |(i, part)| {
        let mut written = 0;
        for (to, element) in part.iter_mut().zip(run(i)) {
            to.write(element);
            written += 1;
        }
        assert_eq!(written, part.len(), "elements of run {i}");
    });
    // The parts are all of the memory, and each element of each part has been written, by the
    // assertion.
    Lasting { elements, len: runs * len, _chunk: chunk }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn memory_is_backed_where_it_is_asked_for_and_nowhere_else() {
        let mut memory = vec![0_u16; 64 << 20];
        let is_backed = |element: &u16| {
            let (page, mut is_backed) = (&raw const *element as usize / PAGE * PAGE, 0);
            // SAFETY: the page of an element is mapped; the answer has a byte for it.
            let failed = unsafe { libc::mincore(page as *mut libc::c_void, 1, &mut is_backed) };
            assert_eq!(failed, 0);
            is_backed & 1 == 1
        };
        let quarter = memory.len() / 4;
        let backed =
            |memory: &[u16]| [0, 1, 2, 3].map(|i| is_backed(&memory[(2 * i + 1) * quarter / 2]));
        assert_eq!(backed(&memory), [false; 4], "it is not written yet");
        populate(&mut memory[quarter..3 * quarter]);
        assert_eq!(backed(&memory), [false, true, true, false]);
    }

    #[test]
    fn elements_last_as_long_as_they_are_held_and_share_no_memory() {
        let matrix = |runs: usize, len: usize, seed: usize| {
            collect_runs(runs, len, 1_000_000, move |i| {
                (0..len).map(move |j| [seed + i * len + j; 4])
            })
        };
        let mut kept = Vec::new();
        // Some share a chunk, one is larger than a chunk, one has no element.
        for (seed, (runs, len)) in
            [(3, 5), (700, 1000), (1, 1), (2300, 1000), (0, 7), (3, 0), (9, 1000)]
                .into_iter()
                .enumerate()
        {
            drop(matrix(2, 1000, 0));
            kept.push((matrix(runs, len, seed), runs * len, seed));
        }
        kept.remove(1);
        for (matrix, len, seed) in kept {
            assert_eq!(matrix.len(), len);
            assert!(matrix.iter().enumerate().all(|(i, element)| *element == [seed + i; 4]));
        }
    }
}
