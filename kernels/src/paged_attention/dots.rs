//! Attention in AVX-512 BF16: two elements of a bf16 cache in one instruction, the second of which
//! is added first.
#![allow(unsafe_code)] // A call of a function that is compiled for more than the baseline.

use std::arch::x86_64::{__m512, __m512bh};
use std::cell::Cell;
use std::ops::Range;
use std::thread::LocalKey;

use half::bf16;

use super::steps::{Steps, keep};
use super::unit::{Job, Scratch};
use crate::simd::LANES;
use crate::simd::pairs::{PairDot, Pairs};
use crate::simd::x86::Avx512;
use crate::simd::x86_bf16::Avx512Bf16;

/// Computes `job` in these instructions.
pub(super) fn run(dots: Avx512Bf16, job: Job<'_, Pairs>) {
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16,avx2,fma,f16c")]
    fn compiled(job: Job<'_, Pairs>, dots: Avx512Bf16) {
        job.compute(dots);
    }
    // SAFETY: `dots` is the proof of every feature that is enabled here.
    unsafe { compiled(job, dots) }
}

impl Steps for Avx512Bf16 {
    type S = Avx512;
    type W = Pairs;
    type R = __m512bh;
    type X = [bf16; 2];
    const LEN: usize = 2;

    #[inline(always)]
    fn simd(self) -> Avx512 {
        self.avx512()
    }

    fn scratch() -> &'static LocalKey<Cell<Scratch<[bf16; 2]>>> {
        thread_local! {
            static SCRATCH: Cell<Scratch<[bf16; 2]>> = Cell::default();
        }
        &SCRATCH
    }

    #[inline(always)]
    fn take(self, x: &[f32; LANES], to: &mut [[bf16; 2]]) {
        self.round(x, to);
    }

    #[inline(always)]
    fn load(self, w: &Pairs) -> __m512bh {
        PairDot::load(self, w)
    }

    #[inline(always)]
    fn load_seen(self, w: &Pairs, seen: Range<usize>) -> __m512bh {
        PairDot::load(self, &keep(w, seen))
    }

    #[inline(always)]
    fn dot(self, x: [bf16; 2], w: __m512bh, sum: __m512) -> __m512 {
        PairDot::dot(self, x, w, sum)
    }
}
