//! Memory that a thread uses over and over, so that what is computed step after step allocates
//! nothing once it is warm.
#![allow(unsafe_code)] // One kind of memory for elements of several types.

use std::cell::{Cell, RefCell};
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use half::bf16;

/// Pieces of memory that a thread keeps: as many as one operation holds at once.
const MAX_KEPT: usize = 8;

thread_local! {
    static LINES: RefCell<Vec<Vec<Line>>> = const { RefCell::new(Vec::new()) };
    static F32S: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
    /// All zero between two calls.
    static BITS: Cell<Vec<u64>> = const { Cell::new(Vec::new()) };
}

/// A line of the cache.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// A type of which every pattern of bits is a value.
///
/// # Safety
///
/// That is so, and it asks for no more alignment than a line of the cache has.
pub(crate) unsafe trait Plain: Copy + Send + Sync {}

// SAFETY: a number of 32 bits.
unsafe impl Plain for f32 {}
// SAFETY: two numbers of 32 bits.
unsafe impl Plain for [f32; 2] {}
// SAFETY: two numbers of 16 bits.
unsafe impl Plain for [bf16; 2] {}

/// Elements that begin with a line of the cache: what reads them line by line would read two lines
/// each time. Their memory goes back to the thread that drops them.
pub(crate) struct Aligned<E> {
    memory: Vec<Line>,
    len: usize,
    elements: PhantomData<E>,
}

impl<E: Plain> Aligned<E> {
    /// `len` elements that hold anything.
    pub(crate) fn new(len: usize) -> Self {
        const { assert!(align_of::<E>() <= align_of::<Line>() && size_of::<E>() > 0) };
        let lines = (len * size_of::<E>()).div_ceil(size_of::<Line>());
        let kept = LINES.with_borrow_mut(|kept| {
            let fitting = kept.iter().position(|memory| memory.len() >= lines);
            fitting.map(|index| kept.swap_remove(index)).or_else(|| kept.pop())
        });
        let mut memory = kept.unwrap_or_default();
        if memory.len() < lines {
            memory.resize(lines, Line([0; 64]));
        }
        Self { memory, len, elements: PhantomData }
    }
}

impl<E> Deref for Aligned<E> {
    type Target = [E];

    fn deref(&self) -> &[E] {
        // SAFETY: `new` checked the alignment and made room for `len` elements, all of it
        // initialised, and every pattern of bits is an element.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr().cast(), self.len) }
    }
}

impl<E> DerefMut for Aligned<E> {
    fn deref_mut(&mut self) -> &mut [E] {
        // SAFETY: as above, and this is the only borrow.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_mut_ptr().cast(), self.len) }
    }
}

impl<E> Drop for Aligned<E> {
    fn drop(&mut self) {
        let memory = std::mem::take(&mut self.memory);
        // While a thread ends there is nowhere to keep it.
        let _ = LINES.try_with(|kept| {
            let kept = &mut *kept.borrow_mut();
            if kept.len() < MAX_KEPT {
                kept.push(memory);
            }
        });
    }
}

/// Calls `f` with `len` elements that hold anything. Within `f` another call gets memory of its
/// own.
pub(crate) fn with_f32s<R>(len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    let mut memory = F32S.take();
    if memory.len() < len {
        memory.resize(len, 0.0);
    }
    let result = f(&mut memory[..len]);
    F32S.set(memory);
    result
}

/// The first of `numbers` that stood before it, too.
pub(crate) fn first_repeated(numbers: &[u32]) -> Option<u32> {
    let largest = numbers.iter().copied().max()? as usize;
    let mut bits = BITS.take();
    if bits.len() <= largest / 64 {
        bits.resize(largest / 64 + 1, 0);
    }
    let mut insert = |number: &u32| {
        let (word, bit) = (&mut bits[*number as usize / 64], 1 << (number % 64));
        let was_there = *word & bit != 0;
        *word |= bit;
        was_there
    };
    let repeated = numbers.iter().find(|number| insert(number)).copied();
    numbers.iter().for_each(|number| bits[*number as usize / 64] = 0);
    BITS.set(bits);
    repeated
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeated_number_is_found_and_leaves_nothing_behind() {
        for (numbers, repeated) in [
            (&[][..], None),
            (&[0], None),
            (&[700, 3, 64, 63], None),
            (&[5, 700, 3, 700], Some(700)),
        ] {
            for _ in 0..2 {
                assert_eq!(first_repeated(numbers), repeated, "{numbers:?}");
            }
        }
    }

    #[test]
    fn elements_begin_with_a_line_and_their_memory_comes_again() {
        let address = |x: &Aligned<[f32; 2]>| x.as_ptr() as usize;
        let mut first = Aligned::new(100);
        first.fill([1.0, 2.0]);
        let (at, second) = (address(&first), Aligned::new(7));
        assert_eq!((at % 64, address(&second) % 64, first.len()), (0, 0, 100));
        assert_ne!(at, address(&second));
        drop(first);
        assert_eq!(address(&Aligned::new(90)), at);
        assert_eq!(Aligned::<[bf16; 2]>::new(0).len(), 0);
    }

    #[test]
    fn memory_within_memory_is_another() {
        with_f32s(3, |outer| {
            outer.fill(1.0);
            with_f32s(5, |inner| inner.fill(2.0));
            assert_eq!(outer, [1.0; 3]);
        });
    }
}
