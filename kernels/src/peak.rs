//! What one thread of this machine can do at most, for benchmarks to compare operations with.

use std::hint::black_box;

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use crate::scratch::Aligned;
use crate::simd::bytes::{ByteDot, ByteTask, ByteUnits, Quads};
use crate::simd::groups::Quad;
use crate::simd::memory::prefer_huge_pages;
use crate::simd::pairs::Units;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use crate::simd::pairs::{Activations, PairDot, PairTask};
use crate::simd::{LANES, Level, Simd, Task};
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use half::bf16;

/// Memory for [`read`]: `len` numbers behind huge pages, as weights and caches are.
pub fn memory(len: usize) -> Vec<f32> {
    let mut memory = Vec::with_capacity(len);
    prefer_huge_pages(memory.spare_capacity_mut());
    memory.resize(len, 1.0);
    memory
}

/// Reads `memory` once and does nothing else: the sum of it.
pub fn read(memory: &[f32]) -> f32 {
    struct Read<'a>(&'a [f32]);
    impl Task for Read<'_> {
        type Output = f32;
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> f32 {
            let mut sums = [s.splat(0.0); 8];
            for lines in self.0.as_chunks::<LANES>().0.chunks_exact(sums.len()) {
                for (sum, line) in sums.iter_mut().zip(lines) {
                    *sum = s.fma(s.load(line), s.splat(1.0), *sum);
                }
            }
            let mut all = 0.0;
            for sum in sums {
                all += s.sum(sum);
            }
            all
        }
    }
    Level::current().run(Read(memory))
}

/// Multiplies f32 in registers, in the widest instructions; gives the number of multiplications
/// and additions.
pub fn multiply_f32(rounds: usize) -> usize {
    struct Multiply(usize);
    impl Task for Multiply {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            let x = s.splat(black_box(0.0));
            let mut sums = [x; SUMS];
            for _ in 0..self.0 {
                for sum in &mut sums {
                    *sum = s.fma(x, x, *sum);
                }
            }
            for sum in sums {
                black_box(s.sum(sum));
            }
        }
    }
    Level::current().run(Multiply(rounds));
    rounds * SUMS * 2 * LANES
}

/// Multiplies bf16 in registers, in the instructions that products with bf16 weights use; gives
/// the number of multiplications and additions.
pub fn multiply_bf16(rounds: usize) -> usize {
    match Units::current() {
        Units::Widened(_) => multiply_f32(rounds),
        #[cfg(target_arch = "aarch64")]
        Units::OddDots(dots) => {
            let mut x = Aligned::new(1);
            x[0] = black_box([bf16::ZERO; 2]);
            let x = Activations::Rounded(x);
            dots.run(MultiplyPairs { x, rounds });
            rounds * SUMS * 4 * LANES
        }
        #[cfg(target_arch = "x86_64")]
        Units::Dots(dots) => {
            let mut x = Aligned::new(1);
            x[0] = black_box([bf16::ZERO; 2]);
            let x = Activations::Rounded(x);
            dots.run(MultiplyPairs { x, rounds });
            rounds * SUMS * 4 * LANES
        }
        #[cfg(target_arch = "x86_64")]
        Units::Tiles(amx) => amx.spin(rounds),
    }
}

/// Multiplies bytes in registers, in the instructions that products with 8-bit weights use; gives the
/// number of multiplications and additions.
pub fn multiply_i8(rounds: usize) -> usize {
    struct Multiply(usize);
    impl ByteTask for Multiply {
        #[inline(always)]
        fn run<D: ByteDot>(self, d: D) {
            let (x, w) = (D::X::new(black_box([0; 4])), d.load(black_box(&Quads::default())));
            let mut sums = [d.splat(black_box(0)); SUMS];
            for _ in 0..self.0 {
                for sum in &mut sums {
                    *sum = d.dot(x, w, *sum);
                }
            }
            for sum in sums {
                Simd::store(d.simd(), d.to_f32(sum), black_box(&mut [0.0; LANES]));
            }
        }
    }
    ByteUnits::current().run(Multiply(rounds));
    rounds * SUMS * 8 * LANES
}

/// Independent sums: enough for two multipliers of six cycles each. In NEON, where a sum is four
/// registers, as many as stay in registers.
const SUMS: usize = if cfg!(target_arch = "aarch64") { 6 } else { 12 };

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
struct MultiplyPairs {
    x: Activations,
    rounds: usize,
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
impl PairTask for MultiplyPairs {
    #[inline(always)]
    fn run<D: PairDot>(self, d: D) {
        let w = d.load(black_box(&[[bf16::ZERO; 2]; LANES]));
        let Some(&x) = d.activations(&self.x).first() else { return };
        let mut sums = [d.zero(); SUMS];
        for _ in 0..self.rounds {
            for sum in &mut sums {
                *sum = d.dot(x, w, *sum);
            }
        }
        for sum in sums {
            d.store(sum, black_box(&mut [0.0; LANES]));
        }
    }
}
