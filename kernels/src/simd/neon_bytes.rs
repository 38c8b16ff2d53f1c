//! Products of bytes in Arm's SDOT, and in NEON before it.
//!
//! Both multiply signed bytes with signed ones, so whole bytes of w lose their offset as they are
//! loaded. SDOT adds four products to 32 bits in one instruction. Before it, products of 16 bits
//! are added up in pairs, which fit (`2 * 127 * 128 < 2^15`), and two pairs to 32 bits.
#![allow(unsafe_code)] // Intrinsics, and assembly where these are not stable.

use std::arch::aarch64::*;
use std::arch::{asm, is_aarch64_feature_detected};

use super::bytes::{ByteDot, ByteTask, Quads};
use super::groups::{Activations, XRows};
use super::neon::Neon;

/// The proof that the processor has SDOT, and what [`Neon`] proves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NeonSdot(Neon);

impl NeonSdot {
    pub(super) fn detect() -> Option<Self> {
        let neon = Neon::detect().filter(|_| is_aarch64_feature_detected!("dotprod"));
        neon.map(Self)
    }

    pub(super) fn run<T: ByteTask>(self, task: T) {
        #[target_feature(enable = "neon,dotprod")]
        fn compiled<T: ByteTask>(task: T, d: NeonSdot) {
            task.run(d);
        }
        // SAFETY: `self` comes from `detect`, which found every feature that is enabled here.
        unsafe { compiled(task, self) }
    }
}

impl ByteDot for NeonSdot {
    type S = Neon;
    type X = i32;
    type W = [int8x16_t; 4];
    type I = [int32x4_t; 4];
    const OFFSET: i32 = 0;

    #[inline(always)]
    fn simd(self) -> Neon {
        self.0
    }

    #[inline(always)]
    fn activations(self, x: &Activations) -> &XRows<i32> {
        bytes(x)
    }

    #[inline(always)]
    fn load(self, w: &Quads) -> Self::W {
        self.0.load(w)
    }

    #[inline(always)]
    fn load_halves(self, w: &Quads) -> [Self::W; 2] {
        self.0.load_halves(w)
    }

    #[inline(always)]
    fn splat(self, sum: i32) -> Self::I {
        self.0.splat(sum)
    }

    #[inline(always)]
    fn dot(self, x: i32, [a, b, c, d]: Self::W, sum: Self::I) -> Self::I {
        let x = f32::from_bits(x as u32);
        // SAFETY: `self` comes from `detect`, which found SDOT.
        unsafe {
            let (a, b) = (sdot(x, a, sum[0]), sdot(x, b, sum[1]));
            [a, b, sdot(x, c, sum[2]), sdot(x, d, sum[3])]
        }
    }

    #[inline(always)]
    fn to_f32(self, sum: Self::I) -> [float32x4_t; 4] {
        self.0.to_f32(sum)
    }
}

/// Four quads of w, each times the quad in the bits of `x`, added to the sums.
///
/// # Safety
/// The processor has SDOT.
#[inline(always)]
unsafe fn sdot(x: f32, w: int8x16_t, mut sum: int32x4_t) -> int32x4_t {
    // SAFETY: the caller's; registers alone are read and written.
    unsafe {
        asm!(
            "sdot {sum:v}.4s, {w:v}.16b, {x:v}.4b[0]",
            x = in(vreg) x,
            w = in(vreg) w,
            sum = inout(vreg) sum,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}

impl Neon {
    pub(super) fn run_bytes<T: ByteTask>(self, task: T) {
        #[target_feature(enable = "neon")]
        fn compiled<T: ByteTask>(task: T, d: Neon) {
            task.run(d);
        }
        // SAFETY: `self` comes from `detect`, which found the feature that is enabled here.
        unsafe { compiled(task, self) }
    }

    #[inline(always)]
    fn load_bytes(self, w: &Quads) -> [uint8x16_t; 4] {
        let w = w.as_ptr().cast::<u8>();
        // SAFETY: `self` comes from `detect`; the array has four times sixteen bytes.
        [0, 16, 32, 48].map(|i| unsafe { vld1q_u8(w.add(i)) })
    }
}

impl ByteDot for Neon {
    type S = Neon;
    type X = i32;
    type W = [int8x16_t; 4];
    type I = [int32x4_t; 4];
    const OFFSET: i32 = 0;

    #[inline(always)]
    fn simd(self) -> Neon {
        self
    }

    #[inline(always)]
    fn activations(self, x: &Activations) -> &XRows<i32> {
        bytes(x)
    }

    #[inline(always)]
    fn load(self, w: &Quads) -> Self::W {
        // SAFETY: `self` comes from `detect`, which found NEON.
        self.load_bytes(w).map(|w| unsafe {
            // The highest bit the other way round is 128 less.
            vreinterpretq_s8_u8(veorq_u8(w, vdupq_n_u8(128)))
        })
    }

    #[inline(always)]
    fn load_halves(self, w: &Quads) -> [Self::W; 2] {
        let w = self.load_bytes(w);
        // SAFETY: `self` comes from `detect`, which found NEON.
        unsafe {
            let mask = vdupq_n_u8(15);
            [
                w.map(|w| vreinterpretq_s8_u8(vandq_u8(w, mask))),
                w.map(|w| vreinterpretq_s8_u8(vshrq_n_u8::<4>(w))),
            ]
        }
    }

    #[inline(always)]
    fn splat(self, sum: i32) -> Self::I {
        // SAFETY: `self` comes from `detect`, which found NEON.
        unsafe { [vdupq_n_s32(sum); 4] }
    }

    #[inline(always)]
    fn dot(self, x: i32, w: Self::W, sum: Self::I) -> Self::I {
        // SAFETY: `self` comes from `detect`, which found NEON.
        std::array::from_fn(|i| unsafe {
            let x = vreinterpretq_s8_s32(vdupq_n_s32(x));
            let low = vmull_s8(vget_low_s8(w[i]), vget_low_s8(x));
            let high = vmull_high_s8(w[i], x);
            vpadalq_s16(sum[i], vpaddq_s16(low, high))
        })
    }

    #[inline(always)]
    fn to_f32(self, sum: Self::I) -> [float32x4_t; 4] {
        // SAFETY: `self` comes from `detect`, which found NEON.
        sum.map(|sum| unsafe { vcvtq_f32_s32(sum) })
    }
}

#[inline(always)]
fn bytes(x: &Activations) -> &XRows<i32> {
    match x {
        Activations::Bytes(x) => x,
        Activations::Words(_) => unreachable!("a process has one kind of units"),
    }
}
