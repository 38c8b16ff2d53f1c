//! Products with bf16 weights, in the best instructions that the processor has for them.
//!
//! Weights come in pairs: two neighbours in k of each of sixteen columns ([`Pairs`]). A row of x
//! meets them two elements at a time, and each column keeps one sum, from the first k to the last:
//!
//! | units | x | a pair adds to the sum |
//! |---|---|---|
//! | [`Units::Widened`]: f32 multiply-add | as it is | `x1 * w1`, then `x0 * w0`, each rounded |
//! | [`Units::Dots`]: AVX-512 BF16 | rounded to bf16 | the same; subnormals are zero |
//! | [`Units::Tiles`]: AMX | rounded to bf16 | see [`super::amx`] |
//! | [`Units::OddDots`]: Arm's BFDOT | rounded to bf16 | see [`super::neon_bf16`] |
//!
//! So x is rounded where the instructions ask for it, and nowhere else. A process uses one kind
//! of units for every number of rows.

use half::bf16;

#[cfg(target_arch = "x86_64")]
use super::amx::Amx;
#[cfg(target_arch = "aarch64")]
use super::neon_bf16::NeonBf16;
#[cfg(target_arch = "x86_64")]
use super::x86_bf16::Avx512Bf16;
use super::{LANES, Level, Simd};
use crate::parallel;
use crate::scratch::{Aligned, Plain};
use crate::view::Rows;

/// Elements 2k and 2k + 1 of sixteen columns.
pub(crate) type Pairs = [[bf16; 2]; LANES];

/// Columns of a panel of weights: two vectors.
pub(crate) const COLUMNS: usize = 2 * LANES;

/// The pairs of a panel are a multiple of this: what a tile of AMX takes.
pub(crate) const TILE_PAIRS: usize = 16;

/// Elements 2k and 2k + 1 of the columns of a panel: two lines of the cache.
#[derive(Clone, Copy)]
#[repr(C, align(128))]
pub(crate) struct Line(pub(crate) [Pairs; 2]);

/// The sums of a row and the columns of a panel.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
#[repr(C, align(128))]
pub(crate) struct Sums(pub(crate) [f32; COLUMNS]);

/// Rows of x as the processor's units take them, two elements at a time.
pub(crate) enum Activations {
    /// Not rounded.
    Exact(Aligned<[f32; 2]>),
    /// To the nearest, ties to even; subnormals are zero, or taken for it.
    #[cfg_attr(
        not(any(target_arch = "x86_64", target_arch = "aarch64")),
        allow(dead_code) // Made by units that multiply bf16 alone.
    )]
    Rounded(Aligned<[bf16; 2]>),
}

/// Sums of products of pairs. A value of an implementing type is the proof that the processor has
/// its instructions.
pub(crate) trait PairDot: Copy {
    /// Sixteen f32 sums.
    type V: Copy;
    /// Two elements of a row of x.
    type X: Copy;
    /// [`Pairs`] in registers.
    type W: Copy;
    /// Whether there are registers for 24 vectors of sums and their operands.
    const WIDE: bool;

    fn zero(self) -> Self::V;
    /// The pairs of `x`, which were made for these units.
    fn activations(self, x: &Activations) -> &[Self::X];
    fn load(self, w: &Pairs) -> Self::W;
    /// `sum + x[1] * w[1] + x[0] * w[0]`, in the order and with the roundings of these units.
    fn dot(self, x: Self::X, w: Self::W, sum: Self::V) -> Self::V;
    fn store(self, v: Self::V, to: &mut [f32; LANES]);
    /// Begins to bring what lies at `address`, which may be anything, into the caches.
    fn prefetch(self, address: *const u8);
    /// The same, but into the second-level cache only.
    fn prefetch_far(self, address: *const u8);
}

impl<S: Simd> PairDot for S {
    type V = S::V;
    type X = [f32; 2];
    type W = [S::V; 2];
    const WIDE: bool = S::WIDE;

    #[inline(always)]
    fn zero(self) -> S::V {
        self.splat(0.0)
    }

    #[inline(always)]
    fn activations(self, x: &Activations) -> &[[f32; 2]] {
        match x {
            Activations::Exact(x) => x,
            Activations::Rounded(_) => unreachable!("a process has one kind of units"),
        }
    }

    #[inline(always)]
    fn load(self, w: &Pairs) -> [S::V; 2] {
        self.load_pairs(w)
    }

    #[inline(always)]
    fn dot(self, x: [f32; 2], w: [S::V; 2], sum: S::V) -> S::V {
        self.fma(self.splat(x[0]), w[0], self.fma(self.splat(x[1]), w[1], sum))
    }

    #[inline(always)]
    fn store(self, v: S::V, to: &mut [f32; LANES]) {
        Simd::store(self, v, to);
    }

    #[inline(always)]
    fn prefetch(self, address: *const u8) {
        Simd::prefetch(self, address);
    }

    #[inline(always)]
    fn prefetch_far(self, address: *const u8) {
        Simd::prefetch_far(self, address);
    }
}

/// A computation on [`Pairs`] that is compiled once for each kind of vector units. `run` and all
/// it calls must be `#[inline(always)]`.
pub(crate) trait PairTask {
    /// Computes it.
    fn run<D: PairDot>(self, d: D);
}

/// What computes products with bf16 weights.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Units {
    Widened(Level),
    #[cfg(target_arch = "aarch64")]
    OddDots(NeonBf16),
    #[cfg(target_arch = "x86_64")]
    Dots(Avx512Bf16),
    #[cfg(target_arch = "x86_64")]
    Tiles(Amx),
}

impl Units {
    /// The best that there are: the same in every call, but where a test has chosen others.
    pub(crate) fn current() -> Self {
        #[cfg(test)]
        if let Some(units) = super::FORCED.get() {
            return units;
        }
        Self::best()
    }

    fn best() -> Self {
        #[cfg(target_arch = "aarch64")]
        if let Some(dots) = NeonBf16::detect() {
            return Self::OddDots(dots);
        }
        #[cfg(target_arch = "x86_64")]
        {
            if let Some(amx) = Amx::detect() {
                return Self::Tiles(amx);
            }
            if let Some(dots) = Avx512Bf16::detect().filter(|_| Avx512Bf16::is_fast()) {
                return Self::Dots(dots);
            }
        }
        Self::Widened(Level::current())
    }

    /// Every kind that this processor has.
    #[cfg(test)]
    pub(super) fn all() -> Vec<Self> {
        let mut all: Vec<Self> = super::every_level().into_iter().map(Self::Widened).collect();
        #[cfg(target_arch = "aarch64")]
        all.extend(NeonBf16::detect().map(Self::OddDots));
        #[cfg(target_arch = "x86_64")]
        {
            all.extend(Avx512Bf16::detect().map(Self::Dots));
            all.extend(Amx::detect().map(Self::Tiles));
        }
        all
    }

    /// Whether they round x.
    #[cfg(test)]
    pub(crate) fn round(self) -> bool {
        !matches!(self, Self::Widened(_))
    }

    /// The rows of x as these units take them, `stride` pairs each, filled up with zeros.
    pub(crate) fn take(self, x: Rows<'_>, stride: usize) -> Activations {
        match self {
            Self::Widened(_) => {
                Activations::Exact(filled(x, (stride, x.len / 2), [0.0; 2], |row, to| {
                    to.as_flattened_mut()[..row.len()].copy_from_slice(row);
                }))
            }
            #[cfg(target_arch = "aarch64")]
            Self::OddDots(dots) => dots.take(x, stride),
            #[cfg(target_arch = "x86_64")]
            Self::Dots(dots) => dots.take(x, stride),
            #[cfg(target_arch = "x86_64")]
            Self::Tiles(amx) => amx.dots().take(x, stride),
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl Avx512Bf16 {
    fn take(self, x: Rows<'_>, stride: usize) -> Activations {
        let size = (stride, x.len / 2);
        Activations::Rounded(filled(x, size, [bf16::ZERO; 2], |row, to| self.round(row, to)))
    }
}

#[cfg(target_arch = "aarch64")]
impl NeonBf16 {
    fn take(self, x: Rows<'_>, stride: usize) -> Activations {
        let size = (stride, x.len / 2);
        Activations::Rounded(filled(x, size, [bf16::ZERO; 2], |row, to| self.round(row, to)))
    }
}

/// Rows of `stride` elements, of which `fill` writes the beginning, at least the first `written`;
/// what it does not write is zero.
fn filled<E: Plain>(
    x: Rows<'_>,
    (stride, written): (usize, usize),
    zero: E,
    fill: impl Fn(&[f32], &mut [E]) + Send + Sync,
) -> Aligned<E> {
    let mut rows = Aligned::new(x.count * stride);
    // Some 32 bytes a nanosecond.
    let nanoseconds = size_of_val(&*rows) / 32;
    parallel::for_rows(&mut rows, stride, nanoseconds, |first, rows| {
        for (t, to) in rows.chunks_exact_mut(stride).enumerate() {
            to[written..].fill(zero);
            fill(x.row(first + t), to);
        }
    });
    rows
}
