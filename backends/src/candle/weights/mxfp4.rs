//! MXFP4: 32 numbers of 4 bits share a scale of 8 bits.
//!
//! A number is E2M1 (a sign, two bits of exponent, one of mantissa), two to a byte, the first in
//! the lower half; its scale is E8M0, a power of two biased by 127, where 255 stands for NaN.
//! From the OCP Microscaling Formats specification 1.0. Every product is exact in bf16.

use super::element::Element;

/// Numbers that share a scale.
pub(super) const BLOCK: usize = 32;
/// Bytes that they take.
pub(super) const BLOCK_BYTES: usize = BLOCK / 2;

const VALUES: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// Unpacks `blocks`, of 16 bytes each, with one of `scales` each, into 32 elements each.
pub(super) fn unpack<T: Element>(blocks: &[u8], scales: &[u8], out: &mut [T]) {
    let blocks = blocks.chunks_exact(BLOCK_BYTES).zip(scales);
    out.chunks_exact_mut(BLOCK).zip(blocks).for_each(|(out, block)| unpack_block(block, out));
}

fn unpack_block<T: Element>((block, &scale): (&[u8], &u8), out: &mut [T]) {
    let scale = match scale {
        255 => f32::NAN,
        biased => (f32::from(biased) - 127.0).exp2(),
    };
    for (pair, &byte) in out.as_chunks_mut::<2>().0.iter_mut().zip(block) {
        let [low, high] = [byte & 15, byte >> 4].map(usize::from);
        *pair = [T::from_f32(VALUES[low] * scale), T::from_f32(VALUES[high] * scale)];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_unpacked_low_half_first_and_scaled_by_a_power_of_two() {
        let mut blocks = [0u8; 32];
        blocks[0] = 0x2F;
        blocks[15] = 0x10;
        blocks[16] = 0x79;
        let mut out = [1f32; 64];
        unpack(&blocks, &[127, 130], &mut out);
        assert_eq!(out[..3], [-6.0, 1.0, 0.0]);
        assert_eq!(out[30..34], [0.0, 0.5, -4.0, 48.0]);
        unpack(&blocks, &[0, 255], &mut out);
        assert_eq!(out[1], 2f32.powi(-127));
        assert!(out[32..].iter().all(|value| value.is_nan()));
    }
}
