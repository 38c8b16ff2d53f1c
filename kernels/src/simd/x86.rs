//! Vectors in AVX-512 and in AVX2 with FMA and F16C.
//!
//! An [`Avx512`] or [`Avx2`] is made by its `detect` alone, which asks the processor: that is what
//! makes the intrinsics below safe to call.
#![allow(unsafe_code)] // Intrinsics, and calls of functions compiled for more than the baseline.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::pairs::Pairs;
use super::{LANES, Simd, Task};

/// The proof that the processor has AVX-512 F, with AVX2, FMA and F16C.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx512(());

impl Avx512 {
    pub(super) fn detect() -> Option<Self> {
        let found = is_x86_feature_detected!("avx512f") && Avx2::detect().is_some();
        found.then_some(Self(()))
    }

    pub(super) fn run<T: Task>(self, task: T) -> T::Output {
        #[target_feature(enable = "avx512f,avx2,fma,f16c")]
        fn compiled<T: Task>(task: T, s: Avx512) -> T::Output {
            task.run(s)
        }
        // SAFETY: `self` comes from `detect`, which found every feature that is enabled here.
        unsafe { compiled(task, self) }
    }
}

impl Simd for Avx512 {
    type V = __m512;
    const WIDE: bool = true;
    const FUSED: bool = true;

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        // SAFETY: `self` comes from `detect`, which found AVX-512 F.
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> __m512 {
        // SAFETY: `self` comes from `detect`; the array has 64 bytes, alignment is not asked for.
        unsafe { _mm512_loadu_ps(x.as_ptr()) }
    }

    #[inline(always)]
    fn load_f16(self, x: &[f16; LANES]) -> __m512 {
        // SAFETY: `self` comes from `detect`; the array has 32 bytes, alignment is not asked for.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(x.as_ptr().cast())) }
    }

    #[inline(always)]
    fn load_bf16(self, x: &[bf16; LANES]) -> __m512 {
        // SAFETY: `self` comes from `detect`; the array has 32 bytes, alignment is not asked for.
        unsafe {
            let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(x.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
        }
    }

    #[inline(always)]
    fn load_pairs(self, x: &Pairs) -> [__m512; 2] {
        // SAFETY: `self` comes from `detect`; the array has 64 bytes, alignment is not asked for.
        unsafe {
            let bits = _mm512_loadu_si512(x.as_ptr().cast());
            let first = _mm512_slli_epi32::<16>(bits);
            let second = _mm512_and_si512(bits, _mm512_set1_epi32(0xffff_0000_u32 as i32));
            [_mm512_castsi512_ps(first), _mm512_castsi512_ps(second)]
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

    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: `self` comes from `detect`, which found AVX-512 F.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` comes from `detect`, which found AVX-512 F.
        unsafe { _mm512_min_ps(a, b) }
    }

    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` comes from `detect`, which found AVX-512 F.
        unsafe { _mm512_max_ps(a, b) }
    }

    #[inline(always)]
    fn largest(self, v: __m512) -> f32 {
        // SAFETY: `self` comes from `detect`, which found AVX-512 F.
        unsafe { _mm512_reduce_max_ps(v) }
    }

    #[inline(always)]
    fn scale(self, a: __m512, n: __m512) -> __m512 {
        // SAFETY: `self` comes from `detect`, which found AVX-512 F.
        unsafe { _mm512_scalef_ps(a, n) }
    }

    #[inline(always)]
    fn sum16(self, v: [__m512; LANES]) -> [f32; LANES] {
        let q = [
            self.fold_groups([v[0], v[1], v[2], v[3]]),
            self.fold_groups([v[4], v[5], v[6], v[7]]),
            self.fold_groups([v[8], v[9], v[10], v[11]]),
            self.fold_groups([v[12], v[13], v[14], v[15]]),
        ];
        let mut sums = [0.0; LANES];
        // SAFETY: `self` comes from `detect`, which found AVX-512 F.
        let sum = unsafe {
            // `i ^ 8`: groups 0 and 2, 1 and 3 of each.
            let low = _mm512_shuffle_f32x4::<0b01_00_01_00>(q[0], q[1]);
            let a = _mm512_add_ps(low, _mm512_shuffle_f32x4::<0b11_10_11_10>(q[0], q[1]));
            let low = _mm512_shuffle_f32x4::<0b01_00_01_00>(q[2], q[3]);
            let b = _mm512_add_ps(low, _mm512_shuffle_f32x4::<0b11_10_11_10>(q[2], q[3]));
            // `i ^ 4`: the two groups that are left of each.
            let even = _mm512_shuffle_f32x4::<0b10_00_10_00>(a, b);
            _mm512_add_ps(even, _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b))
        };
        self.store(sum, &mut sums);
        sums
    }
}

impl Avx512 {
    /// The first two steps of [`Simd::sum`], `i ^ 2` and `i ^ 1`, for four vectors at once: each
    /// group of four lanes becomes one sum per vector.
    #[inline(always)]
    fn fold_groups(self, [a, b, c, d]: [__m512; 4]) -> __m512 {
        // SAFETY: `self` comes from `detect`, which found AVX-512 F.
        unsafe {
            let ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
            let cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
            let (ab, cd) = (_mm512_castps_pd(ab), _mm512_castps_pd(cd));
            let (even, odd) = (_mm512_unpacklo_pd(ab, cd), _mm512_unpackhi_pd(ab, cd));
            _mm512_add_ps(_mm512_castpd_ps(even), _mm512_castpd_ps(odd))
        }
    }
}

/// The proof that the processor has AVX2, FMA and F16C. A vector is two registers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx2(());

impl Avx2 {
    pub(super) fn detect() -> Option<Self> {
        let found = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        found.then_some(Self(()))
    }

    pub(super) fn run<T: Task>(self, task: T) -> T::Output {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn compiled<T: Task>(task: T, s: Avx2) -> T::Output {
            task.run(s)
        }
        // SAFETY: `self` comes from `detect`, which found every feature that is enabled here.
        unsafe { compiled(task, self) }
    }
}

impl Simd for Avx2 {
    type V = [__m256; 2];
    const WIDE: bool = false;
    const FUSED: bool = true;

    #[inline(always)]
    fn splat(self, x: f32) -> [__m256; 2] {
        // SAFETY: `self` comes from `detect`, which found AVX2.
        unsafe { [_mm256_set1_ps(x); 2] }
    }

    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> [__m256; 2] {
        let (low, high) = x.split_at(8);
        // SAFETY: `self` comes from `detect`; both halves have 32 bytes, unaligned is fine.
        unsafe { [_mm256_loadu_ps(low.as_ptr()), _mm256_loadu_ps(high.as_ptr())] }
    }

    #[inline(always)]
    fn load_f16(self, x: &[f16; LANES]) -> [__m256; 2] {
        let (low, high) = x.split_at(8);
        // SAFETY: `self` comes from `detect`; both halves have 16 bytes, unaligned is fine.
        unsafe {
            let low = _mm256_cvtph_ps(_mm_loadu_si128(low.as_ptr().cast()));
            [low, _mm256_cvtph_ps(_mm_loadu_si128(high.as_ptr().cast()))]
        }
    }

    #[inline(always)]
    fn load_bf16(self, x: &[bf16; LANES]) -> [__m256; 2] {
        let (low, high) = x.split_at(8);
        // SAFETY: `self` comes from `detect`; both halves have 16 bytes, unaligned is fine.
        unsafe {
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(low.as_ptr().cast()));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(high.as_ptr().cast()));
            let (low, high) = (_mm256_slli_epi32::<16>(low), _mm256_slli_epi32::<16>(high));
            [_mm256_castsi256_ps(low), _mm256_castsi256_ps(high)]
        }
    }

    #[inline(always)]
    fn load_pairs(self, x: &Pairs) -> [[__m256; 2]; 2] {
        let (low, high) = x.split_at(8);
        // SAFETY: `self` comes from `detect`; both halves have 32 bytes, unaligned is fine.
        unsafe {
            let mask = _mm256_set1_epi32(0xffff_0000_u32 as i32);
            let low = _mm256_loadu_si256(low.as_ptr().cast());
            let high = _mm256_loadu_si256(high.as_ptr().cast());
            let first = [_mm256_slli_epi32::<16>(low), _mm256_slli_epi32::<16>(high)];
            let second = [_mm256_and_si256(low, mask), _mm256_and_si256(high, mask)];
            [
                [_mm256_castsi256_ps(first[0]), _mm256_castsi256_ps(first[1])],
                [_mm256_castsi256_ps(second[0]), _mm256_castsi256_ps(second[1])],
            ]
        }
    }

    #[inline(always)]
    fn store(self, v: [__m256; 2], to: &mut [f32; LANES]) {
        let (low, high) = to.split_at_mut(8);
        // SAFETY: `self` comes from `detect`; both halves have 32 bytes, unaligned is fine.
        unsafe {
            _mm256_storeu_ps(low.as_mut_ptr(), v[0]);
            _mm256_storeu_ps(high.as_mut_ptr(), v[1]);
        }
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

    #[inline(always)]
    fn fma(self, a: [__m256; 2], b: [__m256; 2], c: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: `self` comes from `detect`, which found FMA.
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }

    #[inline(always)]
    fn min(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: `self` comes from `detect`, which found AVX2.
        unsafe { [_mm256_min_ps(a[0], b[0]), _mm256_min_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn max(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: `self` comes from `detect`, which found AVX2.
        unsafe { [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn scale(self, a: [__m256; 2], n: [__m256; 2]) -> [__m256; 2] {
        let mut scaled = a;
        for i in 0..2 {
            // SAFETY: `self` comes from `detect`, which found AVX2.
            unsafe {
                // In two halves, as n can be one beyond the largest exponent.
                let (n, bias) = (_mm256_cvtps_epi32(n[i]), _mm256_set1_epi32(127));
                let half = _mm256_srai_epi32::<1>(n);
                for n in [half, _mm256_sub_epi32(n, half)] {
                    let power = _mm256_slli_epi32::<23>(_mm256_add_epi32(n, bias));
                    scaled[i] = _mm256_mul_ps(scaled[i], _mm256_castsi256_ps(power));
                }
            }
        }
        scaled
    }

    #[inline(always)]
    fn sum16(self, v: [[__m256; 2]; LANES]) -> [f32; LANES] {
        let mut sums = [0.0; LANES];
        let low = self.fold_halves(
            self.fold_groups([v[0], v[1], v[2], v[3]]),
            self.fold_groups([v[4], v[5], v[6], v[7]]),
        );
        let high = self.fold_halves(
            self.fold_groups([v[8], v[9], v[10], v[11]]),
            self.fold_groups([v[12], v[13], v[14], v[15]]),
        );
        self.store([low, high], &mut sums);
        sums
    }
}

impl Avx2 {
    /// The first three steps of [`Simd::sum`], `i ^ 2`, `i ^ 1` and `i ^ 8`, for four vectors at
    /// once: the two registers of a vector are added last.
    #[inline(always)]
    fn fold_groups(self, [a, b, c, d]: [[__m256; 2]; 4]) -> __m256 {
        let low = self.fold_registers([a[0], b[0], c[0], d[0]]);
        let high = self.fold_registers([a[1], b[1], c[1], d[1]]);
        // SAFETY: `self` comes from `detect`, which found AVX2.
        unsafe { _mm256_add_ps(low, high) }
    }

    /// Each group of four lanes becomes one sum per register.
    #[inline(always)]
    fn fold_registers(self, [a, b, c, d]: [__m256; 4]) -> __m256 {
        // SAFETY: `self` comes from `detect`, which found AVX2.
        unsafe {
            let ab = _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
            let cd = _mm256_add_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
            let (ab, cd) = (_mm256_castps_pd(ab), _mm256_castps_pd(cd));
            let (even, odd) = (_mm256_unpacklo_pd(ab, cd), _mm256_unpackhi_pd(ab, cd));
            _mm256_add_ps(_mm256_castpd_ps(even), _mm256_castpd_ps(odd))
        }
    }

    /// The last step, `i ^ 4`: the two halves of each register.
    #[inline(always)]
    fn fold_halves(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: `self` comes from `detect`, which found AVX2.
        unsafe {
            let low = _mm256_permute2f128_ps::<0x20>(a, b);
            _mm256_add_ps(low, _mm256_permute2f128_ps::<0x31>(a, b))
        }
    }
}
