//! Products of bytes with exact sums, in the best instructions that the processor has for them.
//!
//! Weights come in quads: four neighbours in k of each of sixteen columns, as unsigned bytes
//! ([`Quads`]). Rows of x are quantised on the way ([`groups`](super::groups)), and meet them four
//! elements at a time. The sums of a group are integers without any rounding, so every kind of units
//! gives the same bits; what becomes of them in f32 goes through the same [`Simd`] operations
//! everywhere.
//!
//! | units | a quad adds to the sum |
//! |---|---|
//! | AVX-512 VNNI, AVX-VNNI | four products of bytes, in one instruction |
//! | AVX-512 BW, AVX2 | two pairs of products of 16 bits |
//! | SDOT | four products of bytes, in one instruction; w loses its offset before |
//! | NEON | two pairs of products of 16 bits; the same |
//! | portable | four products of 32 bits |
//!
//! Instructions that add up pairs of products of bytes in 16 bits (`vpmaddubsw`) are not used: they
//! saturate.

use super::groups::{Activations, Quad, XRows, take};
use super::portable::Portable;
#[cfg(target_arch = "x86_64")]
use super::x86::Avx2;
#[cfg(target_arch = "x86_64")]
use super::x86_bytes::{Avx512Bw, Avx512Vnni, AvxVnni};
use super::{LANES, Simd};
#[cfg(target_arch = "aarch64")]
use super::{neon::Neon, neon_bytes::NeonSdot};
use crate::view::Rows;

/// What unsigned bytes exceed the signed integers by that they stand for.
pub(crate) const OFFSET: i32 = 128;

/// Elements 4k to 4k + 3 of sixteen columns.
pub(crate) type Quads = [[u8; 4]; LANES];

/// Sums of products of bytes. A value of an implementing type is the proof that the processor has
/// its instructions.
pub(crate) trait ByteDot: Copy {
    /// What scales the sums.
    type S: Simd;
    /// Four elements of a row of x.
    type X: Quad;
    /// [`Quads`] in registers.
    type W: Copy;
    /// Sixteen i32 sums.
    type I: Copy;
    /// What loaded bytes exceed the integers by that they stand for: [`OFFSET`], or 0 for units that
    /// multiply signed bytes alone.
    const OFFSET: i32;

    fn simd(self) -> Self::S;
    /// `x`, which was made for these units.
    fn activations(self, x: &Activations) -> &XRows<Self::X>;
    /// Whole bytes, less what [`Self::OFFSET`] is below [`OFFSET`].
    fn load(self, w: &Quads) -> Self::W;
    /// The low four bits of each byte, and the high ones.
    fn load_halves(self, w: &Quads) -> [Self::W; 2];
    fn splat(self, sum: i32) -> Self::I;
    /// `sum + x[0] * w[0] + .. + x[3] * w[3]`.
    fn dot(self, x: Self::X, w: Self::W, sum: Self::I) -> Self::I;
    /// The sums as f32: exact below 2^24.
    fn to_f32(self, sum: Self::I) -> <Self::S as Simd>::V;
}

impl ByteDot for Portable {
    type S = Portable;
    type X = i32;
    type W = Quads;
    type I = [i32; LANES];
    const OFFSET: i32 = OFFSET;

    #[inline(always)]
    fn simd(self) -> Portable {
        self
    }

    #[inline(always)]
    fn activations(self, x: &Activations) -> &XRows<i32> {
        match x {
            Activations::Bytes(x) => x,
            Activations::Words(_) => unreachable!("a process has one kind of units"),
        }
    }

    #[inline(always)]
    fn load(self, w: &Quads) -> Quads {
        *w
    }

    #[inline(always)]
    fn load_halves(self, w: &Quads) -> [Quads; 2] {
        let mut halves = [*w; 2];
        for byte in halves[0].as_flattened_mut() {
            *byte &= 15;
        }
        for byte in halves[1].as_flattened_mut() {
            *byte >>= 4;
        }
        halves
    }

    #[inline(always)]
    fn splat(self, sum: i32) -> [i32; LANES] {
        [sum; LANES]
    }

    #[inline(always)]
    fn dot(self, x: i32, w: Quads, mut sum: [i32; LANES]) -> [i32; LANES] {
        let x = x.to_le_bytes();
        for (sum, w) in sum.iter_mut().zip(w) {
            for (x, w) in x.into_iter().zip(w) {
                *sum += i32::from(x as i8) * i32::from(w);
            }
        }
        sum
    }

    #[inline(always)]
    fn to_f32(self, sum: [i32; LANES]) -> [f32; LANES] {
        let mut lanes = [0.0; LANES];
        for (lane, sum) in lanes.iter_mut().zip(sum) {
            *lane = sum as f32;
        }
        lanes
    }
}

/// A computation on [`Quads`] that is compiled once for each kind of units. `run` and all it calls
/// must be `#[inline(always)]`.
pub(crate) trait ByteTask {
    /// Computes it.
    fn run<D: ByteDot>(self, d: D);
}

/// What computes products of bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum ByteUnits {
    Portable(Portable),
    #[cfg(target_arch = "aarch64")]
    Neon(Neon),
    #[cfg(target_arch = "aarch64")]
    NeonSdot(NeonSdot),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    #[cfg(target_arch = "x86_64")]
    AvxVnni(AvxVnni),
    #[cfg(target_arch = "x86_64")]
    Avx512Bw(Avx512Bw),
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni(Avx512Vnni),
}

impl ByteUnits {
    /// The best that there are: the same in every call, but where a test has chosen others.
    pub(crate) fn current() -> Self {
        #[cfg(test)]
        if let Some(units) = FORCED.get() {
            return units;
        }
        Self::best()
    }

    fn best() -> Self {
        #[cfg(target_arch = "aarch64")]
        {
            if let Some(sdot) = NeonSdot::detect() {
                return Self::NeonSdot(sdot);
            }
            if let Some(neon) = Neon::detect() {
                return Self::Neon(neon);
            }
        }
        #[cfg(target_arch = "x86_64")]
        {
            if let Some(vnni) = Avx512Vnni::detect() {
                return Self::Avx512Vnni(vnni);
            }
            if let Some(vnni) = AvxVnni::detect() {
                return Self::AvxVnni(vnni);
            }
            if let Some(avx512) = Avx512Bw::detect() {
                return Self::Avx512Bw(avx512);
            }
            if let Some(avx2) = Avx2::detect() {
                return Self::Avx2(avx2);
            }
        }
        Self::Portable(Portable)
    }

    /// Every kind that this processor has.
    #[cfg(test)]
    pub(crate) fn all() -> Vec<Self> {
        let all = [
            Some(Self::Portable(Portable)),
            #[cfg(target_arch = "aarch64")]
            Neon::detect().map(Self::Neon),
            #[cfg(target_arch = "aarch64")]
            NeonSdot::detect().map(Self::NeonSdot),
            #[cfg(target_arch = "x86_64")]
            Avx2::detect().map(Self::Avx2),
            #[cfg(target_arch = "x86_64")]
            AvxVnni::detect().map(Self::AvxVnni),
            #[cfg(target_arch = "x86_64")]
            Avx512Bw::detect().map(Self::Avx512Bw),
            #[cfg(target_arch = "x86_64")]
            Avx512Vnni::detect().map(Self::Avx512Vnni),
        ];
        all.into_iter().flatten().collect()
    }

    /// Whether their multiply-add rounds once.
    #[cfg(test)]
    pub(crate) fn fuse(self) -> bool {
        !matches!(self, Self::Portable(_)) || Portable::FUSED
    }

    /// Runs `task` in these instructions.
    pub(crate) fn run<T: ByteTask>(self, task: T) {
        match self {
            Self::Portable(portable) => task.run(portable),
            #[cfg(target_arch = "aarch64")]
            Self::Neon(neon) => neon.run_bytes(task),
            #[cfg(target_arch = "aarch64")]
            Self::NeonSdot(sdot) => sdot.run(task),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(avx2) => avx2.run_bytes(task),
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni(vnni) => vnni.run(task),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bw(avx512) => avx512.run(task),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni(vnni) => vnni.run(task),
        }
    }

    /// The rows of x as these units take them, by groups of so many blocks, at most [`MAX_GROUP`].
    pub(crate) fn take(self, x: Rows<'_>, blocks: usize) -> Activations {
        match self {
            Self::Portable(_) => Activations::Bytes(take(x, blocks)),
            #[cfg(target_arch = "aarch64")]
            Self::Neon(_) | Self::NeonSdot(_) => Activations::Bytes(take(x, blocks)),
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni(_) | Self::Avx512Vnni(_) => Activations::Bytes(take(x, blocks)),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) | Self::Avx512Bw(_) => Activations::Words(take(x, blocks)),
        }
    }

    /// Products that one thread computes in a nanosecond, by a careful estimate.
    pub(crate) fn products_per_ns(self) -> usize {
        match self {
            Self::Portable(_) => 8,
            #[cfg(target_arch = "aarch64")]
            Self::Neon(_) => 32,
            #[cfg(target_arch = "aarch64")]
            Self::NeonSdot(_) => 96,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => 32,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bw(_) => 64,
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni(_) => 96,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni(_) => 160,
        }
    }
}

#[cfg(test)]
thread_local! {
    static FORCED: std::cell::Cell<Option<ByteUnits>> = const { std::cell::Cell::new(None) };
}

/// Runs `test` once for each kind of units for products of bytes that this processor has.
#[cfg(test)]
pub(crate) fn with_all_byte_units(test: impl Fn(ByteUnits)) {
    for units in ByteUnits::all() {
        FORCED.set(Some(units));
        test(units);
        FORCED.set(None);
    }
}

#[cfg(test)]
mod tests {
    use super::super::groups::STEPS;
    use super::*;

    /// Sums over several quads, of what whole bytes stand for and of halves of bytes.
    struct Sums<'a> {
        x: &'a [[i8; 4]],
        w: &'a [Quads],
        to: &'a mut [[f32; LANES]; 3],
    }

    impl ByteTask for Sums<'_> {
        #[inline(always)]
        fn run<D: ByteDot>(self, d: D) {
            let all: i32 = self.x.as_flattened().iter().map(|&x| i32::from(x)).sum();
            let mut sums = [-7 - D::OFFSET * all, -7, -7].map(|start| d.splat(start));
            for (&x, w) in self.x.iter().zip(self.w) {
                let [low, high] = d.load_halves(w);
                for (sum, w) in sums.iter_mut().zip([d.load(w), low, high]) {
                    *sum = d.dot(D::X::new(x), w, *sum);
                }
            }
            for (to, sum) in self.to.iter_mut().zip(sums) {
                d.simd().store(d.to_f32(sum), to);
            }
        }
    }

    #[test]
    fn sums_are_exact_in_all_units_also_at_the_limits() {
        let limits = [0u8, 255, 128, 127, 1, 240, 15];
        let w: Vec<Quads> = (0..2 * STEPS)
            .map(|k| std::array::from_fn(|i| std::array::from_fn(|j| limits[(3 * k + i + j) % 7])))
            .chain([[[255; 4]; LANES]; 2 * STEPS])
            .collect();
        let signs = [127i8, -127, 127, 127, 0, -1, -127];
        for constant in [false, true] {
            let element = |k: usize, j: usize| if constant { 127 } else { signs[(5 * k + j) % 7] };
            let x: Vec<[i8; 4]> =
                (0..w.len()).map(|k| std::array::from_fn(|j| element(k, j))).collect();
            let parts: [fn(i32) -> i32; 3] = [|w| w - OFFSET, |w| w & 15, |w| w >> 4];
            let expected = parts.map(|part| {
                std::array::from_fn(|i| {
                    let products = x.iter().zip(&w).flat_map(|(x, w)| x.iter().zip(w[i]));
                    products.map(|(&x, w)| i32::from(x) * part(w.into())).sum::<i32>() as f32 - 7.0
                })
            });
            for units in ByteUnits::all() {
                let mut found = [[0.0; LANES]; 3];
                units.run(Sums { x: &x, w: &w, to: &mut found });
                assert_eq!(found, expected, "{units:?}");
            }
        }
    }
}
