//! Vectors as plain arrays: what the compiler makes of them on any processor.

use half::{bf16, f16};

use super::pairs::Pairs;
use super::{LANES, Simd};

/// Needs nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Portable;

impl Simd for Portable {
    type V = [f32; LANES];
    const WIDE: bool = false;
    // Elsewhere a fused multiply-add is a call into the mathematics library.
    const FUSED: bool = cfg!(any(target_arch = "aarch64", target_feature = "fma"));

    #[inline(always)]
    fn splat(self, x: f32) -> [f32; LANES] {
        [x; LANES]
    }

    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> [f32; LANES] {
        *x
    }

    #[inline(always)]
    fn load_f16(self, x: &[f16; LANES]) -> [f32; LANES] {
        x.map(widen)
    }

    #[inline(always)]
    fn load_bf16(self, x: &[bf16; LANES]) -> [f32; LANES] {
        x.map(|x| f32::from_bits(u32::from(x.to_bits()) << 16))
    }

    #[inline(always)]
    fn load_pairs(self, x: &Pairs) -> [[f32; LANES]; 2] {
        [0, 1].map(|i| x.map(|pair| f32::from_bits(u32::from(pair[i].to_bits()) << 16)))
    }

    #[inline(always)]
    fn store(self, v: [f32; LANES], to: &mut [f32; LANES]) {
        *to = v;
    }

    #[inline(always)]
    fn prefetch(self, _: *const u8) {}

    #[inline(always)]
    fn prefetch_far(self, _: *const u8) {}

    #[inline(always)]
    fn fma(self, a: [f32; LANES], b: [f32; LANES], c: [f32; LANES]) -> [f32; LANES] {
        std::array::from_fn(|i| super::math::fma::<Self>(a[i], b[i], c[i]))
    }
}

/// The f32 of a half, without branches, so that sixteen go at once: the exponent is moved to its
/// new place and rebiased; infinities and NaN are rebiased twice; a subnormal is given the smallest
/// exponent, whose implicit one is subtracted again.
#[inline(always)]
fn widen(x: f16) -> f32 {
    const REBIAS: u32 = (127 - 15) << 23;
    let bits = u32::from(x.to_bits());
    let moved = (bits & 0x7fff) << 13;
    let exponent = moved & (0x7c00 << 13);
    let normal = moved + REBIAS;
    let special = normal + REBIAS;
    let smallest = f32::from_bits(REBIAS + (1 << 23));
    let subnormal = (f32::from_bits(normal + (1 << 23)) - smallest).to_bits();
    let magnitude = match exponent {
        0 => subnormal,
        e if e == 0x7c00 << 13 => special,
        _ => normal,
    };
    f32::from_bits(magnitude | (bits & 0x8000) << 16)
}
