//! Products of bytes in AVX-512 VNNI, AVX-VNNI, AVX-512 BW and AVX2.
//!
//! VNNI multiplies unsigned bytes with signed ones and adds four products to 32 bits in one
//! instruction. Before it, the even and the odd bytes of w are widened to 16 bits each, where they
//! already stand, and meet the same elements of x ([`Quad`](super::groups::Quad)) in `vpmaddwd`.
#![allow(unsafe_code)] // Intrinsics, and calls of functions compiled for more than the baseline.

use std::arch::x86_64::*;

use super::bytes::{ByteDot, ByteTask, OFFSET, Quads};
use super::groups::{Activations, XRows};
use super::x86::{Avx2, Avx512};

/// The proof that the processor has AVX-512 VNNI, and what [`Avx512`] proves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx512Vnni(Avx512);

impl Avx512Vnni {
    pub(super) fn detect() -> Option<Self> {
        let avx512 = Avx512::detect()?;
        is_x86_feature_detected!("avx512vnni").then_some(Self(avx512))
    }

    pub(super) fn run<T: ByteTask>(self, task: T) {
        #[target_feature(enable = "avx512f,avx512vnni,avx2,fma,f16c")]
        fn compiled<T: ByteTask>(task: T, d: Avx512Vnni) {
            task.run(d);
        }
        // SAFETY: `self` comes from `detect`, which found every feature that is enabled here.
        unsafe { compiled(task, self) }
    }
}

impl ByteDot for Avx512Vnni {
    type S = Avx512;
    type X = i32;
    type W = __m512i;
    type I = __m512i;
    const OFFSET: i32 = OFFSET;

    #[inline(always)]
    fn simd(self) -> Avx512 {
        self.0
    }

    #[inline(always)]
    fn activations(self, x: &Activations) -> &XRows<i32> {
        bytes(x)
    }

    #[inline(always)]
    fn load(self, w: &Quads) -> __m512i {
        load512(self.0, w)
    }

    #[inline(always)]
    fn load_halves(self, w: &Quads) -> [__m512i; 2] {
        let w = load512(self.0, w);
        // SAFETY: `self` comes from `detect`, which found AVX-512 F.
        unsafe {
            let mask = _mm512_set1_epi32(0x0f0f_0f0f);
            [_mm512_and_si512(w, mask), _mm512_and_si512(_mm512_srli_epi32::<4>(w), mask)]
        }
    }

    #[inline(always)]
    fn splat(self, sum: i32) -> __m512i {
        // SAFETY: `self` comes from `detect`, which found AVX-512 F.
        unsafe { _mm512_set1_epi32(sum) }
    }

    #[inline(always)]
    fn dot(self, x: i32, w: __m512i, sum: __m512i) -> __m512i {
        // SAFETY: `self` comes from `detect`, which found both features.
        unsafe { _mm512_dpbusd_epi32(sum, w, _mm512_set1_epi32(x)) }
    }

    #[inline(always)]
    fn to_f32(self, sum: __m512i) -> __m512 {
        // SAFETY: `self` comes from `detect`, which found AVX-512 F.
        unsafe { _mm512_cvtepi32_ps(sum) }
    }
}

/// The proof that the processor has AVX-512 BW, and what [`Avx512`] proves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx512Bw(Avx512);

impl Avx512Bw {
    pub(super) fn detect() -> Option<Self> {
        let avx512 = Avx512::detect()?;
        is_x86_feature_detected!("avx512bw").then_some(Self(avx512))
    }

    pub(super) fn run<T: ByteTask>(self, task: T) {
        #[target_feature(enable = "avx512f,avx512bw,avx2,fma,f16c")]
        fn compiled<T: ByteTask>(task: T, d: Avx512Bw) {
            task.run(d);
        }
        // SAFETY: `self` comes from `detect`, which found every feature that is enabled here.
        unsafe { compiled(task, self) }
    }
}

impl ByteDot for Avx512Bw {
    type S = Avx512;
    type X = [i32; 2];
    /// The even bytes, and the odd ones.
    type W = [__m512i; 2];
    type I = __m512i;
    const OFFSET: i32 = OFFSET;

    #[inline(always)]
    fn simd(self) -> Avx512 {
        self.0
    }

    #[inline(always)]
    fn activations(self, x: &Activations) -> &XRows<[i32; 2]> {
        words(x)
    }

    #[inline(always)]
    fn load(self, w: &Quads) -> [__m512i; 2] {
        let w = load512(self.0, w);
        // SAFETY: `self` comes from `detect`, which found both features.
        unsafe {
            let mask = _mm512_set1_epi32(0x00ff_00ff);
            [_mm512_and_si512(w, mask), _mm512_srli_epi16::<8>(w)]
        }
    }

    #[inline(always)]
    fn load_halves(self, w: &Quads) -> [[__m512i; 2]; 2] {
        let w = load512(self.0, w);
        // SAFETY: `self` comes from `detect`, which found both features.
        unsafe {
            let mask = _mm512_set1_epi32(0x000f_000f);
            let low = _mm512_and_si512(w, mask);
            let low = [low, _mm512_and_si512(_mm512_srli_epi16::<8>(w), mask)];
            let high = _mm512_and_si512(_mm512_srli_epi16::<4>(w), mask);
            [low, [high, _mm512_srli_epi16::<12>(w)]]
        }
    }

    #[inline(always)]
    fn splat(self, sum: i32) -> __m512i {
        // SAFETY: `self` comes from `detect`, which found AVX-512 F.
        unsafe { _mm512_set1_epi32(sum) }
    }

    #[inline(always)]
    fn dot(self, x: [i32; 2], w: [__m512i; 2], sum: __m512i) -> __m512i {
        // SAFETY: `self` comes from `detect`, which found both features.
        unsafe {
            let even = _mm512_madd_epi16(w[0], _mm512_set1_epi32(x[0]));
            let odd = _mm512_madd_epi16(w[1], _mm512_set1_epi32(x[1]));
            _mm512_add_epi32(_mm512_add_epi32(sum, even), odd)
        }
    }

    #[inline(always)]
    fn to_f32(self, sum: __m512i) -> __m512 {
        // SAFETY: `self` comes from `detect`, which found AVX-512 F.
        unsafe { _mm512_cvtepi32_ps(sum) }
    }
}

/// The proof that the processor has AVX-VNNI, and what [`Avx2`] proves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AvxVnni(Avx2);

impl AvxVnni {
    pub(super) fn detect() -> Option<Self> {
        let avx2 = Avx2::detect()?;
        is_x86_feature_detected!("avxvnni").then_some(Self(avx2))
    }

    pub(super) fn run<T: ByteTask>(self, task: T) {
        #[target_feature(enable = "avxvnni,avx2,fma,f16c")]
        fn compiled<T: ByteTask>(task: T, d: AvxVnni) {
            task.run(d);
        }
        // SAFETY: `self` comes from `detect`, which found every feature that is enabled here.
        unsafe { compiled(task, self) }
    }
}

impl ByteDot for AvxVnni {
    type S = Avx2;
    type X = i32;
    type W = [__m256i; 2];
    type I = [__m256i; 2];
    const OFFSET: i32 = OFFSET;

    #[inline(always)]
    fn simd(self) -> Avx2 {
        self.0
    }

    #[inline(always)]
    fn activations(self, x: &Activations) -> &XRows<i32> {
        bytes(x)
    }

    #[inline(always)]
    fn load(self, w: &Quads) -> [__m256i; 2] {
        load256(self.0, w)
    }

    #[inline(always)]
    fn load_halves(self, w: &Quads) -> [[__m256i; 2]; 2] {
        let w = load256(self.0, w);
        // SAFETY: `self` comes from `detect`, which found AVX2.
        unsafe {
            let mask = _mm256_set1_epi8(15);
            let high = [_mm256_srli_epi16::<4>(w[0]), _mm256_srli_epi16::<4>(w[1])];
            [
                [_mm256_and_si256(w[0], mask), _mm256_and_si256(w[1], mask)],
                [_mm256_and_si256(high[0], mask), _mm256_and_si256(high[1], mask)],
            ]
        }
    }

    #[inline(always)]
    fn splat(self, sum: i32) -> [__m256i; 2] {
        splat256(self.0, sum)
    }

    #[inline(always)]
    fn dot(self, x: i32, w: [__m256i; 2], sum: [__m256i; 2]) -> [__m256i; 2] {
        // SAFETY: `self` comes from `detect`, which found both features.
        unsafe {
            let x = _mm256_set1_epi32(x);
            [_mm256_dpbusd_avx_epi32(sum[0], w[0], x), _mm256_dpbusd_avx_epi32(sum[1], w[1], x)]
        }
    }

    #[inline(always)]
    fn to_f32(self, sum: [__m256i; 2]) -> [__m256; 2] {
        to_f32_256(self.0, sum)
    }
}

impl Avx2 {
    pub(super) fn run_bytes<T: ByteTask>(self, task: T) {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn compiled<T: ByteTask>(task: T, d: Avx2) {
            task.run(d);
        }
        // SAFETY: `self` comes from `detect`, which found every feature that is enabled here.
        unsafe { compiled(task, self) }
    }

    /// The low four bits of each byte, and the high ones: of each, the even bytes and the odd ones.
    #[inline(always)]
    fn halves(self, w: __m256i) -> [[__m256i; 2]; 2] {
        // SAFETY: `self` comes from `detect`, which found AVX2.
        unsafe {
            let mask = _mm256_set1_epi32(0x000f_000f);
            let low = _mm256_and_si256(w, mask);
            let low = [low, _mm256_and_si256(_mm256_srli_epi16::<8>(w), mask)];
            let high = _mm256_and_si256(_mm256_srli_epi16::<4>(w), mask);
            [low, [high, _mm256_srli_epi16::<12>(w)]]
        }
    }
}

impl ByteDot for Avx2 {
    type S = Avx2;
    type X = [i32; 2];
    /// Of each register, the even bytes and the odd ones.
    type W = [[__m256i; 2]; 2];
    type I = [__m256i; 2];
    const OFFSET: i32 = OFFSET;

    #[inline(always)]
    fn simd(self) -> Avx2 {
        self
    }

    #[inline(always)]
    fn activations(self, x: &Activations) -> &XRows<[i32; 2]> {
        words(x)
    }

    #[inline(always)]
    fn load(self, w: &Quads) -> [[__m256i; 2]; 2] {
        let [a, b] = load256(self, w);
        // SAFETY: `self` comes from `detect`, which found AVX2.
        unsafe {
            let mask = _mm256_set1_epi32(0x00ff_00ff);
            [
                [_mm256_and_si256(a, mask), _mm256_srli_epi16::<8>(a)],
                [_mm256_and_si256(b, mask), _mm256_srli_epi16::<8>(b)],
            ]
        }
    }

    #[inline(always)]
    fn load_halves(self, w: &Quads) -> [[[__m256i; 2]; 2]; 2] {
        let [a, b] = load256(self, w);
        let ([low_a, high_a], [low_b, high_b]) = (self.halves(a), self.halves(b));
        [[low_a, low_b], [high_a, high_b]]
    }

    #[inline(always)]
    fn splat(self, sum: i32) -> [__m256i; 2] {
        splat256(self, sum)
    }

    #[inline(always)]
    fn dot(self, x: [i32; 2], w: [[__m256i; 2]; 2], sum: [__m256i; 2]) -> [__m256i; 2] {
        // SAFETY: `self` comes from `detect`, which found AVX2.
        unsafe {
            let x = [_mm256_set1_epi32(x[0]), _mm256_set1_epi32(x[1])];
            let even = _mm256_add_epi32(sum[0], _mm256_madd_epi16(w[0][0], x[0]));
            let a = _mm256_add_epi32(even, _mm256_madd_epi16(w[0][1], x[1]));
            let even = _mm256_add_epi32(sum[1], _mm256_madd_epi16(w[1][0], x[0]));
            [a, _mm256_add_epi32(even, _mm256_madd_epi16(w[1][1], x[1]))]
        }
    }

    #[inline(always)]
    fn to_f32(self, sum: [__m256i; 2]) -> [__m256; 2] {
        to_f32_256(self, sum)
    }
}

#[inline(always)]
fn bytes(x: &Activations) -> &XRows<i32> {
    match x {
        Activations::Bytes(x) => x,
        Activations::Words(_) => unreachable!("a process has one kind of units"),
    }
}

#[inline(always)]
fn words(x: &Activations) -> &XRows<[i32; 2]> {
    match x {
        Activations::Words(x) => x,
        Activations::Bytes(_) => unreachable!("a process has one kind of units"),
    }
}

#[inline(always)]
fn load512(_: Avx512, w: &Quads) -> __m512i {
    // SAFETY: the first argument comes from `detect`; the array has 64 bytes, alignment is not
    // asked for.
    unsafe { _mm512_loadu_si512(w.as_ptr().cast()) }
}

#[inline(always)]
fn load256(_: Avx2, w: &Quads) -> [__m256i; 2] {
    let (low, high) = w.split_at(8);
    // SAFETY: the first argument comes from `detect`; both halves have 32 bytes, unaligned is fine.
    unsafe { [_mm256_loadu_si256(low.as_ptr().cast()), _mm256_loadu_si256(high.as_ptr().cast())] }
}

#[inline(always)]
fn splat256(_: Avx2, sum: i32) -> [__m256i; 2] {
    // SAFETY: the first argument comes from `detect`, which found AVX2.
    unsafe { [_mm256_set1_epi32(sum); 2] }
}

#[inline(always)]
fn to_f32_256(_: Avx2, sum: [__m256i; 2]) -> [__m256; 2] {
    // SAFETY: the first argument comes from `detect`, which found AVX2.
    unsafe { [_mm256_cvtepi32_ps(sum[0]), _mm256_cvtepi32_ps(sum[1])] }
}
