//! Memory that a thread uses over and over, so that what is computed step after step allocates
//! nothing once it is warm.

use std::cell::Cell;

thread_local! {
    static F32S: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
    /// All zero between two calls.
    static BITS: Cell<Vec<u64>> = const { Cell::new(Vec::new()) };
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
    fn memory_within_memory_is_another() {
        with_f32s(3, |outer| {
            outer.fill(1.0);
            with_f32s(5, |inner| inner.fill(2.0));
            assert_eq!(outer, [1.0; 3]);
        });
    }
}
