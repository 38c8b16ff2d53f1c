//! The three types that weights are computed in, and how stored bytes become one of them.

use candle_core::{DType, WithDType};
use half::vec::HalfBitsVecExt;
use half::{bf16, f16};

/// A type that weights are computed in.
pub(crate) trait Element: WithDType + Send + Sync {
    /// All bits zero, from memory that the system hands out as zeros where it can.
    fn zeros(len: usize) -> Vec<Self>;
    fn from_f32(value: f32) -> Self;
    /// Elements of this type as stored: little-endian, perhaps unaligned.
    fn copy(bytes: &[u8], out: &mut [Self]);
}

impl Element for f32 {
    fn zeros(len: usize) -> Vec<Self> {
        vec![0.0; len]
    }

    fn from_f32(value: f32) -> Self {
        value
    }

    fn copy(bytes: &[u8], out: &mut [Self]) {
        each(bytes, f32::from_le_bytes, out);
    }
}

// `vec![bf16::ZERO; n]` writes every element; only a vector of plain integers comes zeroed from
// the system, untouched. For a cache of many gigabytes that is the difference between nothing
// and all of it.
impl Element for f16 {
    fn zeros(len: usize) -> Vec<Self> {
        vec![0u16; len].reinterpret_into()
    }

    fn from_f32(value: f32) -> Self {
        f16::from_f32(value)
    }

    fn copy(bytes: &[u8], out: &mut [Self]) {
        each(bytes, f16::from_le_bytes, out);
    }
}

impl Element for bf16 {
    fn zeros(len: usize) -> Vec<Self> {
        vec![0u16; len].reinterpret_into()
    }

    fn from_f32(value: f32) -> Self {
        bf16::from_f32(value)
    }

    fn copy(bytes: &[u8], out: &mut [Self]) {
        each(bytes, bf16::from_le_bytes, out);
    }
}

/// Converts stored elements (little-endian, perhaps unaligned) of type `stored` into `out`.
pub(crate) fn convert<T: Element>(bytes: &[u8], stored: DType, out: &mut [T]) {
    match stored {
        same if same == T::DTYPE => T::copy(bytes, out),
        DType::F32 => each(bytes, |b| T::from_f32(f32::from_le_bytes(b)), out),
        DType::F16 => each(bytes, |b| T::from_f32(f16::from_le_bytes(b).to_f32()), out),
        DType::BF16 => each(bytes, |b| T::from_f32(bf16::from_le_bytes(b).to_f32()), out),
        other => unreachable!("weights are stored as f32, f16 or bf16, not {other:?}"),
    }
}

fn each<T, const N: usize>(bytes: &[u8], read: impl Fn([u8; N]) -> T, out: &mut [T]) {
    let (elements, rest) = bytes.as_chunks::<N>();
    assert!(rest.is_empty() && elements.len() == out.len(), "one element per output");
    for (out, element) in out.iter_mut().zip(elements) {
        *out = read(*element);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_of_the_computed_type_are_copied_bit_by_bit() {
        let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let mut halves = vec![f16::ZERO; 1 << 16];
        convert(&bytes, DType::F16, &mut halves);
        let mut brains = vec![bf16::ZERO; 1 << 16];
        convert(&bytes, DType::BF16, &mut brains);
        for bits in 0..=u16::MAX {
            let (half, brain) = (f16::from_bits(bits), bf16::from_bits(bits));
            assert_eq!(halves[bits as usize].to_bits(), half.to_bits());
            assert_eq!(brains[bits as usize].to_bits(), brain.to_bits());
        }
    }

    #[test]
    fn a_conversion_rounds_to_the_nearest() {
        let bytes: Vec<u8> = [1.0f32, -0.3, 1e-3].iter().flat_map(|v| v.to_le_bytes()).collect();
        let mut out = vec![bf16::ZERO; 3];
        convert(&bytes, DType::F32, &mut out);
        assert_eq!(out, [1.0, -0.3, 1e-3].map(bf16::from_f32));
    }

    #[test]
    fn zeros_are_zeros() {
        assert_eq!(bf16::zeros(3), [bf16::ZERO; 3]);
        assert_eq!(f16::zeros(3), [f16::ZERO; 3]);
    }
}
