//! Products of pairs in AVX-512 BF16, and the rounding to bf16 that comes with it.
#![allow(unsafe_code)] // Intrinsics, and calls of functions compiled for more than the baseline.

use std::arch::x86_64::*;
use std::sync::OnceLock;

use half::bf16;

use super::LANES;
use super::pairs::{Activations, PairDot, PairTask, Pairs};
use super::x86::Avx512;

/// The proof that the processor has AVX-512 BF16 and BW, and what [`Avx512`] proves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx512Bf16(Avx512);

impl Avx512Bf16 {
    pub(super) fn detect() -> Option<Self> {
        let found = is_x86_feature_detected!("avx512bf16") && is_x86_feature_detected!("avx512bw");
        Avx512::detect().filter(|_| found).map(Self)
    }

    /// What it proves beside.
    #[inline(always)]
    pub(crate) fn avx512(self) -> Avx512 {
        self.0
    }

    /// Whether a product of pairs takes as long as one multiply-add of f32, as AMD's do: Intel's
    /// take four times as long (Granite Rapids), so that two multiply-adds are faster.
    pub(super) fn is_fast() -> bool {
        // A virtual machine leaves the guest for each of these instructions.
        static FAST: OnceLock<bool> = OnceLock::new();
        *FAST.get_or_init(|| {
            #[allow(unused_unsafe)] // A safe call in newer compilers.
            // SAFETY: a processor with AVX-512 has the instruction, and leaf 0.
            let leaf = unsafe { __cpuid(0) };
            let name = [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes);
            name.as_flattened() == b"AuthenticAMD"
        })
    }

    pub(crate) fn run<T: PairTask>(self, task: T) {
        #[target_feature(enable = "avx512f,avx512bf16,avx2,fma,f16c")]
        fn compiled<T: PairTask>(task: T, d: Avx512Bf16) {
            task.run(d);
        }
        // SAFETY: `self` comes from `detect`, which found every feature that is enabled here.
        unsafe { compiled(task, self) }
    }

    /// Rounds `x` into the beginning of `to`: to the nearest, ties to even; subnormals are zero,
    /// NaN stays NaN.
    pub(crate) fn round(self, x: &[f32], to: &mut [[bf16; 2]]) {
        #[target_feature(enable = "avx512f,avx512bf16")]
        fn compiled(x: &[f32], to: &mut [bf16]) {
            let (whole, tail) = x.as_chunks::<LANES>();
            let (to_whole, to_tail) = to[..x.len()].as_chunks_mut::<LANES>();
            for (x, to) in whole.iter().zip(to_whole) {
                *to = sixteen(x);
            }
            let mut last = [0.0; LANES];
            last[..tail.len()].copy_from_slice(tail);
            to_tail.copy_from_slice(&sixteen(&last)[..tail.len()]);
        }
        #[target_feature(enable = "avx512f,avx512bf16")]
        fn sixteen(x: &[f32; LANES]) -> [bf16; LANES] {
            // SAFETY: the array has 64 bytes, alignment is not asked for; sixteen bf16 are 32
            // bytes of which every pattern is valid.
            unsafe { std::mem::transmute(_mm512_cvtneps_pbh(_mm512_loadu_ps(x.as_ptr()))) }
        }
        // SAFETY: `self` comes from `detect`, which found both features.
        unsafe { compiled(x, to.as_flattened_mut()) }
    }
}

impl PairDot for Avx512Bf16 {
    type V = __m512;
    type X = [bf16; 2];
    type W = __m512bh;
    const WIDE: bool = true;

    #[inline(always)]
    fn zero(self) -> __m512 {
        // SAFETY: `self` comes from `detect`, which found AVX-512 F.
        unsafe { _mm512_setzero_ps() }
    }

    #[inline(always)]
    fn activations(self, x: &Activations) -> &[[bf16; 2]] {
        match x {
            Activations::Rounded(x) => x,
            Activations::Exact(_) => unreachable!("a process has one kind of units"),
        }
    }

    #[inline(always)]
    fn load(self, w: &Pairs) -> __m512bh {
        // SAFETY: an array of 64 bytes, of which every pattern is valid.
        unsafe { std::mem::transmute(*w) }
    }

    #[inline(always)]
    fn dot(self, x: [bf16; 2], w: __m512bh, sum: __m512) -> __m512 {
        let bits = u32::from(x[0].to_bits()) | u32::from(x[1].to_bits()) << 16;
        // SAFETY: `self` comes from `detect`, which found both features; 64 bytes are 64 bytes.
        unsafe {
            let x: __m512bh = std::mem::transmute(_mm512_set1_epi32(bits as i32));
            _mm512_dpbf16_ps(sum, x, w)
        }
    }

    #[inline(always)]
    fn store(self, v: __m512, to: &mut [f32; LANES]) {
        // SAFETY: `self` comes from `detect`; the array has 64 bytes, alignment is not asked for.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), v) }
    }

    #[inline(always)]
    fn prefetch(self, address: *const u8) {
        // SAFETY: every processor of this architecture has the instruction; it ignores addresses
        // where nothing can be read.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }

    #[inline(always)]
    fn prefetch_far(self, address: *const u8) {
        // SAFETY: as above.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) }
    }
}
