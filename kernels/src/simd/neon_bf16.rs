//! Products of pairs in Arm's BFDOT, and the rounding to bf16 that comes with it.
//!
//! What `bfdot` adds to a sum (Arm's manual, for processors and processes without extended bf16,
//! which a process has to ask for): the two products of a pair are exact, and are added up; that
//! is added to the sum. Both additions are rounded to odd: towards zero, and then, if anything
//! was lost, the last bit is set. Subnormals are zero, NaN is the default one.
#![allow(unsafe_code)] // Assembly: the intrinsics are not stable.

use std::arch::aarch64::*;
use std::arch::{asm, is_aarch64_feature_detected};

use half::bf16;

use super::neon::Neon;
use super::pairs::{Activations, PairDot, PairTask, Pairs};
use super::{LANES, Simd};

/// The proof that the processor has BFDOT, and what [`Neon`] proves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NeonBf16(Neon);

impl NeonBf16 {
    pub(super) fn detect() -> Option<Self> {
        let neon = Neon::detect().filter(|_| is_aarch64_feature_detected!("bf16"));
        neon.map(Self)
    }

    pub(crate) fn run<T: PairTask>(self, task: T) {
        #[target_feature(enable = "neon,bf16")]
        fn compiled<T: PairTask>(task: T, d: NeonBf16) {
            task.run(d);
        }
        // SAFETY: `self` comes from `detect`, which found every feature that is enabled here.
        unsafe { compiled(task, self) }
    }

    /// Rounds `x` into the beginning of `to`: to the nearest, ties to even; NaN stays NaN.
    pub(crate) fn round(self, x: &[f32], to: &mut [[bf16; 2]]) {
        #[target_feature(enable = "neon,bf16")]
        fn compiled(x: &[f32], to: &mut [bf16]) {
            let (whole, tail) = x.as_chunks::<8>();
            let (to_whole, to_tail) = to[..x.len()].as_chunks_mut::<8>();
            for (x, to) in whole.iter().zip(to_whole) {
                *to = eight(x);
            }
            let mut last = [0.0; 8];
            last[..tail.len()].copy_from_slice(tail);
            to_tail.copy_from_slice(&eight(&last)[..tail.len()]);
        }
        #[target_feature(enable = "neon,bf16")]
        fn eight(x: &[f32; 8]) -> [bf16; 8] {
            let mut rounded: uint16x8_t;
            // SAFETY: the array has two times four elements; registers alone are read and written
            // after that; eight bf16 are 16 bytes of which every pattern is valid.
            unsafe {
                asm!(
                    "bfcvtn {rounded:v}.4h, {low:v}.4s",
                    "bfcvtn2 {rounded:v}.8h, {high:v}.4s",
                    low = in(vreg) vld1q_f32(x.as_ptr()),
                    high = in(vreg) vld1q_f32(x.as_ptr().add(4)),
                    rounded = out(vreg) rounded,
                    options(pure, nomem, nostack, preserves_flags),
                );
                std::mem::transmute(rounded)
            }
        }
        // SAFETY: `self` comes from `detect`, which found both features.
        unsafe { compiled(x, to.as_flattened_mut()) }
    }
}

impl PairDot for NeonBf16 {
    type V = [float32x4_t; 4];
    type X = [bf16; 2];
    type W = [uint16x8_t; 4];
    const WIDE: bool = false;

    #[inline(always)]
    fn zero(self) -> Self::V {
        self.0.splat(0.0)
    }

    #[inline(always)]
    fn activations(self, x: &Activations) -> &[[bf16; 2]] {
        match x {
            Activations::Rounded(x) => x,
            Activations::Exact(_) => unreachable!("a process has one kind of units"),
        }
    }

    #[inline(always)]
    fn load(self, w: &Pairs) -> Self::W {
        let w = w.as_ptr().cast::<u16>();
        // SAFETY: `self` comes from `detect`; the array has four times eight elements.
        [0, 8, 16, 24].map(|i| unsafe { vld1q_u16(w.add(i)) })
    }

    #[inline(always)]
    fn dot(self, x: [bf16; 2], [a, b, c, d]: Self::W, sum: Self::V) -> Self::V {
        let x = f32::from_bits(u32::from(x[0].to_bits()) | u32::from(x[1].to_bits()) << 16);
        // SAFETY: `self` comes from `detect`, which found BFDOT.
        unsafe {
            let (a, b) = (bfdot(x, a, sum[0]), bfdot(x, b, sum[1]));
            [a, b, bfdot(x, c, sum[2]), bfdot(x, d, sum[3])]
        }
    }

    #[inline(always)]
    fn store(self, v: Self::V, to: &mut [f32; LANES]) {
        Simd::store(self.0, v, to);
    }

    #[inline(always)]
    fn prefetch(self, address: *const u8) {
        Simd::prefetch(self.0, address);
    }

    #[inline(always)]
    fn prefetch_far(self, address: *const u8) {
        Simd::prefetch_far(self.0, address);
    }
}

/// Four pairs of w, each times the pair `x`, added to the sums.
///
/// # Safety
/// The processor has BFDOT.
#[inline(always)]
unsafe fn bfdot(x: f32, w: uint16x8_t, mut sum: float32x4_t) -> float32x4_t {
    // SAFETY: the caller's; registers alone are read and written.
    unsafe {
        asm!(
            "bfdot {sum:v}.4s, {w:v}.8h, {x:v}.2h[0]",
            x = in(vreg) x,
            w = in(vreg) w,
            sum = inout(vreg) sum,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Aligned;
    use crate::testing::random;

    /// The sums after one pair for each of `x`, times the same w.
    struct Dots<'a> {
        x: Activations,
        w: &'a [Pairs],
        sums: &'a mut [f32; LANES],
    }

    impl PairTask for Dots<'_> {
        #[inline(always)]
        fn run<D: PairDot>(self, d: D) {
            let mut sum = d.zero();
            for (&x, w) in d.activations(&self.x).iter().zip(self.w) {
                sum = d.dot(x, d.load(w), sum);
            }
            d.store(sum, self.sums);
        }
    }

    /// An exact sum that fits f64, rounded to odd.
    fn to_odd(exact: f64) -> f32 {
        let nearest = exact as f32;
        let beyond = f64::from(nearest).abs() > exact.abs();
        let towards_zero = f32::from_bits(nearest.to_bits() - u32::from(beyond));
        let lost = f64::from(towards_zero) != exact;
        f32::from_bits(towards_zero.to_bits() | u32::from(lost))
    }

    fn rounded(seed: u64, len: usize) -> Vec<bf16> {
        // Nothing so small that an exact sum of two products would not fit f64.
        let far_from_zero = |x: f32| if x.abs() < 1e-3 { 1.0 } else { x };
        random(seed, len).into_iter().map(|x| bf16::from_f32(far_from_zero(x))).collect()
    }

    #[test]
    fn a_pair_is_added_to_its_sum_with_two_roundings_to_odd() {
        let Some(dots) = NeonBf16::detect() else {
            println!("skipped: this processor has no BFDOT");
            return;
        };
        const PAIRS: usize = 50;
        let (x, w) = (rounded(1, 2 * PAIRS), rounded(2, 2 * LANES * PAIRS));
        let (x, w) = (x.as_chunks::<2>().0, w.as_chunks::<2>().0.as_chunks::<LANES>().0);
        let mut aligned = Aligned::new(PAIRS);
        aligned[..PAIRS].copy_from_slice(x);
        let mut sums = [0.0; LANES];
        dots.run(Dots { x: Activations::Rounded(aligned), w, sums: &mut sums });
        let mut expected = [0.0f32; LANES];
        for (x, w) in x.iter().zip(w) {
            for (sum, w) in expected.iter_mut().zip(w) {
                let product = |i: usize| x[i].to_f64() * w[i].to_f64();
                *sum = to_odd(f64::from(*sum) + f64::from(to_odd(product(0) + product(1))));
            }
        }
        assert_eq!(sums, expected);
    }

    #[test]
    fn rounding_is_to_the_nearest_even_whatever_the_length() {
        let Some(dots) = NeonBf16::detect() else {
            println!("skipped: this processor has no BFDOT");
            return;
        };
        let mut x = random(3, 37);
        x.extend([1.0 + 2f32.powi(-8), 1.0 + 3.0 * 2f32.powi(-8), f32::INFINITY, f32::MAX, -0.0]);
        for len in 0..=x.len() {
            let mut to = vec![[bf16::ONE; 2]; len.div_ceil(2) + 1];
            dots.round(&x[..len], &mut to);
            let expected: Vec<bf16> = x[..len].iter().map(|&x| bf16::from_f32(x)).collect();
            assert_eq!(to.as_flattened()[..len], expected);
            assert!(to.as_flattened()[len..].iter().all(|&x| x == bf16::ONE), "{len}");
        }
    }
}
