//! The numbers that weights and caches are made of.

use candle_core::{CpuStorage, DType};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::simd::{LANES, Simd};

/// f32, f16 or bf16.
pub(crate) trait Element: Copy + Send + Sync {
    /// What candle calls it.
    const DTYPE: DType;
    /// Zero.
    const ZERO: Self;
    /// Elements of a step of attention: see [`crate::kv_cache`].
    const STEP: usize;

    /// The elements of a storage of this type.
    fn slice_mut(storage: &mut CpuStorage) -> Option<&mut [Self]>;

    /// Sixteen of them, widened: exact.
    fn load<S: Simd>(s: S, x: &[Self; LANES]) -> S::V;

    /// Widens `from` into `to`, of the same length: exact.
    fn widen(from: &[Self], to: &mut [f32]);

    /// Rounds `from` into `to`, of the same length: to the nearest, ties to even.
    fn narrow(from: &[f32], to: &mut [Self]);
}

impl Element for f32 {
    const DTYPE: DType = DType::F32;
    const ZERO: f32 = 0.0;
    const STEP: usize = 1;

    fn slice_mut(storage: &mut CpuStorage) -> Option<&mut [f32]> {
        match storage {
            CpuStorage::F32(elements) => Some(elements),
            _ => None,
        }
    }

    #[inline(always)]
    fn load<S: Simd>(s: S, x: &[f32; LANES]) -> S::V {
        s.load(x)
    }

    fn widen(from: &[f32], to: &mut [f32]) {
        to.copy_from_slice(from);
    }

    #[inline(always)]
    fn narrow(from: &[f32], to: &mut [f32]) {
        to.copy_from_slice(from);
    }
}

impl Element for f16 {
    const DTYPE: DType = DType::F16;
    const ZERO: f16 = f16::ZERO;
    const STEP: usize = 1;

    fn slice_mut(storage: &mut CpuStorage) -> Option<&mut [f16]> {
        match storage {
            CpuStorage::F16(elements) => Some(elements),
            _ => None,
        }
    }

    #[inline(always)]
    fn load<S: Simd>(s: S, x: &[f16; LANES]) -> S::V {
        s.load_f16(x)
    }

    fn widen(from: &[f16], to: &mut [f32]) {
        from.convert_to_f32_slice(to);
    }

    #[inline(always)]
    fn narrow(from: &[f32], to: &mut [f16]) {
        to.convert_from_f32_slice(from);
    }
}

impl Element for bf16 {
    const DTYPE: DType = DType::BF16;
    const ZERO: bf16 = bf16::ZERO;
    const STEP: usize = 2;

    fn slice_mut(storage: &mut CpuStorage) -> Option<&mut [bf16]> {
        match storage {
            CpuStorage::BF16(elements) => Some(elements),
            _ => None,
        }
    }

    #[inline(always)]
    fn load<S: Simd>(s: S, x: &[bf16; LANES]) -> S::V {
        s.load_bf16(x)
    }

    fn widen(from: &[bf16], to: &mut [f32]) {
        from.convert_to_f32_slice(to);
    }

    #[inline(always)]
    fn narrow(from: &[f32], to: &mut [bf16]) {
        for (from, to) in from.iter().zip(to) {
            *to = round(*from);
        }
    }
}

/// [`bf16::from_f32`] without branches, so that a loop over it becomes vector code.
#[inline(always)]
fn round(x: f32) -> bf16 {
    let bits = x.to_bits();
    let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    // What would round to infinity may be NaN, whose first bits are kept, and one is set.
    bf16::from_bits(if x.is_nan() { bits >> 16 | 0x40 } else { nearest } as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_is_rounded_as_half_rounds_it() {
        for high in 0..=u16::MAX {
            for low in [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let x = f32::from_bits(u32::from(high) << 16 | low);
                assert_eq!(round(x).to_bits(), bf16::from_f32(x).to_bits(), "{x:e}");
            }
        }
    }
}
