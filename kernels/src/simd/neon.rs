//! Vectors in NEON, which every 64-bit Arm processor that this crate is compiled for has: four
//! registers each.
#![allow(unsafe_code)] // Intrinsics, and assembly where these are not stable.

use std::arch::aarch64::*;
use std::arch::{asm, is_aarch64_feature_detected};

use half::{bf16, f16};

use super::pairs::Pairs;
use super::{LANES, Simd, Task};

/// The proof that the processor has NEON.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Neon(());

impl Neon {
    pub(super) fn detect() -> Option<Self> {
        is_aarch64_feature_detected!("neon").then_some(Self(()))
    }

    pub(super) fn run<T: Task>(self, task: T) -> T::Output {
        #[target_feature(enable = "neon")]
        fn compiled<T: Task>(task: T, s: Neon) -> T::Output {
            task.run(s)
        }
        // SAFETY: `self` comes from `detect`, which found the feature that is enabled here.
        unsafe { compiled(task, self) }
    }
}

impl Simd for Neon {
    type V = [float32x4_t; 4];
    const WIDE: bool = false;
    const FUSED: bool = true;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        // SAFETY: `self` comes from `detect`, which found NEON.
        unsafe { [vdupq_n_f32(x); 4] }
    }

    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Self::V {
        let x = x.as_ptr();
        // SAFETY: `self` comes from `detect`; the array has four times four elements.
        [0, 4, 8, 12].map(|i| unsafe { vld1q_f32(x.add(i)) })
    }

    #[inline(always)]
    fn load_f16(self, x: &[f16; LANES]) -> Self::V {
        let x = x.as_ptr().cast::<u16>();
        // SAFETY: `self` comes from `detect`; the array has two times eight elements.
        unsafe {
            let ([a, b], [c, d]) = (widen(vld1q_u16(x)), widen(vld1q_u16(x.add(8))));
            [a, b, c, d]
        }
    }

    #[inline(always)]
    fn load_bf16(self, x: &[bf16; LANES]) -> Self::V {
        let x = x.as_ptr().cast::<u16>();
        // SAFETY: `self` comes from `detect`; the array has four times four elements.
        [0, 4, 8, 12].map(|i| unsafe {
            vreinterpretq_f32_u32(vshlq_n_u32::<16>(vmovl_u16(vld1_u16(x.add(i)))))
        })
    }

    #[inline(always)]
    fn load_pairs(self, x: &Pairs) -> [Self::V; 2] {
        let x = x.as_ptr().cast::<u32>();
        // SAFETY: `self` comes from `detect`; the array has four times four pairs of 32 bits.
        let bits = [0, 4, 8, 12].map(|i| unsafe { vld1q_u32(x.add(i)) });
        // SAFETY: `self` comes from `detect`, which found NEON.
        unsafe {
            let mask = vdupq_n_u32(0xffff_0000);
            [
                bits.map(|x| vreinterpretq_f32_u32(vshlq_n_u32::<16>(x))),
                bits.map(|x| vreinterpretq_f32_u32(vandq_u32(x, mask))),
            ]
        }
    }

    #[inline(always)]
    fn store(self, v: Self::V, to: &mut [f32; LANES]) {
        let (quarters, _) = to.as_chunks_mut::<4>();
        for (v, to) in v.into_iter().zip(quarters) {
            // SAFETY: `self` comes from `detect`; the array has four elements.
            unsafe { vst1q_f32(to.as_mut_ptr(), v) }
        }
    }

    #[inline(always)]
    fn prefetch(self, address: *const u8) {
        // SAFETY: every processor of this architecture has the instruction; it ignores addresses
        // where nothing can be read, and changes nothing that the program can see.
        unsafe {
            asm!(
                "prfm pldl1keep, [{address}]",
                address = in(reg) address.addr(),
                options(nomem, nostack, preserves_flags),
            );
        }
    }

    #[inline(always)]
    fn prefetch_far(self, address: *const u8) {
        // SAFETY: as above.
        unsafe {
            asm!(
                "prfm pldl2keep, [{address}]",
                address = in(reg) address.addr(),
                options(nomem, nostack, preserves_flags),
            );
        }
    }

    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // SAFETY: `self` comes from `detect`, which found NEON.
        std::array::from_fn(|i| unsafe { vfmaq_f32(c[i], a[i], b[i]) })
    }

    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: `self` comes from `detect`, which found NEON.
        std::array::from_fn(|i| unsafe { vbslq_f32(vcltq_f32(a[i], b[i]), a[i], b[i]) })
    }

    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: `self` comes from `detect`, which found NEON.
        std::array::from_fn(|i| unsafe { vbslq_f32(vcgtq_f32(a[i], b[i]), a[i], b[i]) })
    }

    #[inline(always)]
    fn scale(self, a: Self::V, n: Self::V) -> Self::V {
        // SAFETY: `self` comes from `detect`, which found NEON.
        std::array::from_fn(|i| unsafe {
            // In two halves, as n can be one beyond the largest exponent.
            let (n, bias) = (vcvtq_s32_f32(n[i]), vdupq_n_s32(127));
            let half = vshrq_n_s32::<1>(n);
            let low = vshlq_n_s32::<23>(vaddq_s32(half, bias));
            let high = vshlq_n_s32::<23>(vaddq_s32(vsubq_s32(n, half), bias));
            let scaled = vmulq_f32(a[i], vreinterpretq_f32_s32(low));
            vmulq_f32(scaled, vreinterpretq_f32_s32(high))
        })
    }

    #[inline(always)]
    fn sum16(self, v: [Self::V; LANES]) -> [f32; LANES] {
        let mut sums = [0.0; LANES];
        let four = |i: usize| self.fold([v[i], v[i + 1], v[i + 2], v[i + 3]]);
        self.store([four(0), four(4), four(8), four(12)], &mut sums);
        sums
    }

    #[inline(always)]
    fn sum(self, v: Self::V) -> f32 {
        let groups = self.fold_registers(v);
        // SAFETY: `self` comes from `detect`, which found NEON.
        unsafe {
            // `i ^ 8`, then `i ^ 4`.
            vpadds_f32(vadd_f32(vget_low_f32(groups), vget_high_f32(groups)))
        }
    }
}

impl Neon {
    /// The lanes of each vector added up in the order of [`Simd::sum`].
    #[inline(always)]
    fn fold(self, v: [[float32x4_t; 4]; 4]) -> float32x4_t {
        let group = |i: usize| self.fold_registers(v.map(|v| v[i]));
        // SAFETY: `self` comes from `detect`, which found NEON.
        unsafe {
            // `i ^ 8`, then `i ^ 4`.
            vaddq_f32(vaddq_f32(group(0), group(2)), vaddq_f32(group(1), group(3)))
        }
    }

    /// The first two steps of [`Simd::sum`], `i ^ 2` and `i ^ 1`, for four registers at once: each
    /// becomes one sum.
    #[inline(always)]
    fn fold_registers(self, [a, b, c, d]: [float32x4_t; 4]) -> float32x4_t {
        // SAFETY: `self` comes from `detect`, which found NEON.
        unsafe {
            let ab = vaddq_f32(vzip1q_f32(a, b), vzip2q_f32(a, b));
            let cd = vaddq_f32(vzip1q_f32(c, d), vzip2q_f32(c, d));
            let (ab, cd) = (vreinterpretq_f64_f32(ab), vreinterpretq_f64_f32(cd));
            let (even, odd) = (vzip1q_f64(ab, cd), vzip2q_f64(ab, cd));
            vaddq_f32(vreinterpretq_f32_f64(even), vreinterpretq_f32_f64(odd))
        }
    }
}

/// Eight halves as f32.
///
/// # Safety
/// The processor has NEON.
#[inline(always)]
unsafe fn widen(x: uint16x8_t) -> [float32x4_t; 2] {
    let (low, high): (float32x4_t, float32x4_t);
    // SAFETY: the caller's; registers alone are read and written.
    unsafe {
        asm!(
            "fcvtl {low:v}.4s, {x:v}.4h",
            "fcvtl2 {high:v}.4s, {x:v}.8h",
            x = in(vreg) x,
            low = out(vreg) low,
            high = lateout(vreg) high,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    [low, high]
}
