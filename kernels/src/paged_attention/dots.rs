//! Attention in AVX-512 BF16: two elements of a bf16 cache in one step.
#![allow(clippy::needless_range_loop)] // The indices of a block go over several arrays at once.
#![allow(unsafe_code)] // Intrinsics, and calls of functions compiled for more than the baseline.

use std::arch::x86_64::*;
use std::cell::Cell;
use std::thread::LocalKey;

use half::bf16;

use super::steps::{Steps, VECTORS, chunk};
use super::unit::{Job, Scratch};
use crate::simd::pairs::{PairDot, Pairs};
use crate::simd::x86::Avx512;
use crate::simd::x86_bf16::Avx512Bf16;
use crate::simd::{LANES, Simd};

/// Elements of a vector.
const ELEMENTS: usize = 2 * LANES;

/// Two elements of each of sixteen columns.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct PairVector(Pairs);

/// Computes `job` in these instructions.
pub(super) fn run(dots: Avx512Bf16, job: Job<'_, bf16>) {
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16,avx2,fma,f16c")]
    fn compiled(job: Job<'_, bf16>, dots: Avx512Bf16) {
        job.compute(dots);
    }
    // SAFETY: `dots` is the proof of every feature that is enabled here.
    unsafe { compiled(job, dots) }
}

impl Steps for Avx512Bf16 {
    type S = Avx512;
    type E = bf16;
    type X = [bf16; 2];
    type W = PairVector;
    const LEN: usize = 2;
    const NOTHING: PairVector = PairVector([[bf16::ZERO; 2]; LANES]);

    #[inline(always)]
    fn simd(self) -> Avx512 {
        self.avx512()
    }

    fn scratch() -> &'static LocalKey<Cell<Scratch<[bf16; 2], PairVector>>> {
        thread_local! {
            static SCRATCH: Cell<Scratch<[bf16; 2], PairVector>> = Cell::default();
        }
        &SCRATCH
    }

    #[inline(always)]
    fn take(self, x: &[f32; LANES], to: &mut [[bf16; 2]]) {
        self.round(x, to);
    }

    #[inline(always)]
    fn keys(
        self,
        keys: &[&[bf16]; LANES],
        (c, v): (usize, usize),
        whole: bool,
        to: &mut [[PairVector; VECTORS]; LANES],
    ) {
        let mut rows = [self.simd().splat(0.0); LANES];
        if whole {
            // Straight into registers.
            for i in 0..LANES {
                rows[i] = as_f32s(elements(chunk(keys[i], c)));
            }
        } else {
            for i in 0..LANES {
                rows[i] = as_f32s(load(keys[i], c));
            }
        }
        let columns = self.simd().transpose(rows);
        for i in 0..LANES {
            // SAFETY: 64 bytes are 64 bytes, of which every pattern is valid.
            to[i][v].0 = unsafe { std::mem::transmute::<__m512, Pairs>(columns[i]) };
        }
    }

    #[inline(always)]
    fn values(self, values: [&[bf16]; 2], to: &mut [PairVector]) {
        let whole = values.map(|values| values.as_chunks::<ELEMENTS>().0);
        let (to_whole, _) = to.as_chunks_mut::<2>();
        for (to, (first, second)) in to_whole.iter_mut().zip(whole[0].iter().zip(whole[1])) {
            *to = self.neighbours(elements(first), elements(second));
        }
        // The end of the rows, and of a row that nobody sees.
        let done = whole[0].len().min(whole[1].len());
        for (c, to) in to.chunks_mut(2).enumerate().skip(done) {
            let pairs = self.neighbours(load(values[0], c), load(values[1], c));
            to.copy_from_slice(&pairs[..to.len()]);
        }
    }

    #[inline(always)]
    fn dot(self, x: [bf16; 2], w: &PairVector, sum: __m512) -> __m512 {
        PairDot::dot(self, x, PairDot::load(self, &w.0), sum)
    }
}

impl Avx512Bf16 {
    /// Elements of the first and of the second, in turn.
    #[inline(always)]
    fn neighbours(self, first: __m512i, second: __m512i) -> [PairVector; 2] {
        /// Which elements, counted through both: from `from` on.
        const fn order(from: u16) -> [u16; ELEMENTS] {
            let mut order = [0; ELEMENTS];
            let mut i = 0;
            while i < ELEMENTS {
                order[i] = from + i as u16 / 2 + if i % 2 == 1 { ELEMENTS as u16 } else { 0 };
                i += 1;
            }
            order
        }
        // SAFETY: `self` is the proof of AVX-512 BW; the rest are 64 bytes each, of which every
        // pattern is valid.
        unsafe {
            let low = std::mem::transmute::<[u16; ELEMENTS], __m512i>(const { order(0) });
            let high = std::mem::transmute::<[u16; ELEMENTS], __m512i>(const { order(16) });
            let low = _mm512_permutex2var_epi16(first, low, second);
            let high = _mm512_permutex2var_epi16(first, high, second);
            [
                PairVector(std::mem::transmute::<__m512i, Pairs>(low)),
                PairVector(std::mem::transmute::<__m512i, Pairs>(high)),
            ]
        }
    }
}

#[inline(always)]
fn as_f32s(v: __m512i) -> __m512 {
    // SAFETY: 64 bytes are 64 bytes, of which every pattern is valid.
    unsafe { std::mem::transmute::<__m512i, __m512>(v) }
}

#[inline(always)]
fn elements(x: &[bf16; ELEMENTS]) -> __m512i {
    // SAFETY: 64 bytes, of which every pattern is valid.
    unsafe { std::mem::transmute::<[bf16; ELEMENTS], __m512i>(*x) }
}

/// Vector `c` of `row`, filled up with zeros.
#[inline(always)]
fn load(row: &[bf16], c: usize) -> __m512i {
    let mut filled = [bf16::ZERO; ELEMENTS];
    let rest = row.get(c * ELEMENTS..).unwrap_or_default();
    let len = rest.len().min(ELEMENTS);
    filled[..len].copy_from_slice(&rest[..len]);
    elements(&filled)
}
