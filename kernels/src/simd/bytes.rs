//! Products of bytes with exact sums, in the best instructions that the processor has for them.
//!
//! Weights come in quads: four neighbours in k of each of sixteen columns, as unsigned bytes
//! ([`Quads`]). x is quantised on the way: as many neighbours in k share a scale as do in w, a group
//! ([`XGroup`]), and a row meets the weights four elements at a time. The sums of a group are integers
//! without any rounding, so every kind of units gives the same bits; what becomes of them in f32 goes
//! through the same [`Simd`] operations everywhere.
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

use super::math::nearest;
use super::portable::Portable;
#[cfg(target_arch = "x86_64")]
use super::x86::Avx2;
#[cfg(target_arch = "x86_64")]
use super::x86_bytes::{Avx512Bw, Avx512Vnni, AvxVnni};
use super::{LANES, Level, Simd, Task};
#[cfg(target_arch = "aarch64")]
use super::{neon::Neon, neon_bytes::NeonSdot};
use crate::parallel::{self, Disjoint};
use crate::scratch::{Aligned, Plain};
use crate::view::Rows;

/// Elements along k of a block: a group is one or more.
pub(crate) const BLOCK: usize = 32;

/// The largest group, in blocks.
pub(crate) const MAX_GROUP: usize = 2;

/// Steps of a block, of two quads each.
pub(crate) const STEPS: usize = BLOCK / 8;

/// What unsigned bytes exceed the signed integers by that they stand for.
pub(crate) const OFFSET: i32 = 128;

/// Elements 4k to 4k + 3 of sixteen columns.
pub(crate) type Quads = [[u8; 4]; LANES];

/// Four elements of a row of x, between -127 and 127, as units take them.
pub(crate) trait Quad: Copy + Send + Sync {
    /// Four zeros.
    const ZERO: Self;

    fn new(x: [i8; 4]) -> Self;
}

/// As bytes, the first one lowest.
impl Quad for i32 {
    const ZERO: i32 = 0;

    #[inline(always)]
    fn new([a, b, c, d]: [i8; 4]) -> i32 {
        i32::from_le_bytes([a as u8, b as u8, c as u8, d as u8])
    }
}

/// As 16 bits each: elements 0 and 2, then 1 and 3.
impl Quad for [i32; 2] {
    const ZERO: [i32; 2] = [0; 2];

    #[inline(always)]
    fn new([a, b, c, d]: [i8; 4]) -> [i32; 2] {
        let pair = |low: i8, high: i8| i32::from(low) & 0xffff | i32::from(high) << 16;
        [pair(a, c), pair(b, d)]
    }
}

/// What the elements of a group of x have in common: element k is `scale * q[k]`, but for rounding.
#[derive(Clone, Copy)]
pub(crate) struct XGroup {
    /// `-OFFSET` times the sum of q: what products with weights exceed those with their bytes by.
    pub(crate) start: i32,
    /// The largest of the elements / 127. NaN if one is not finite: so is every product then.
    pub(crate) scale: f32,
    /// `scale` times the sum of q.
    pub(crate) scaled_sum: f32,
}

// SAFETY: numbers of 32 bits, of which every pattern is a value.
#[allow(unsafe_code)] // A promise about its bits.
unsafe impl Plain for XGroup {}
// SAFETY: as above.
#[allow(unsafe_code)] // A promise about its bits.
unsafe impl Plain for [i32; 2] {}
// SAFETY: as above.
#[allow(unsafe_code)] // A promise about its bits.
unsafe impl Plain for [[i32; 2]; 2] {}

/// Rows of x, one after the other, all of them as many groups long.
pub(crate) struct XRows<X> {
    /// The integers q, step by step.
    pub(crate) steps: Aligned<[X; 2]>,
    pub(crate) groups: Aligned<XGroup>,
}

/// Quantises a group: element i is `scale * q[i]`, to half of the scale.
#[inline(always)]
fn quantize<X: Quad, const B: usize>(
    x: &[[f32; BLOCK]; B],
    to: &mut [[[X; 2]; STEPS]; B],
) -> XGroup {
    let (scale, inverse) = scale(x);
    if scale.is_nan() {
        to.fill([[X::ZERO; 2]; STEPS]);
        return XGroup { start: 0, scale, scaled_sum: scale };
    }
    let mut sums = [0; BLOCK];
    for (x, to) in x.iter().zip(to) {
        let q = integers(x, inverse);
        let mut bytes = [0; BLOCK];
        for ((byte, q), sum) in bytes.iter_mut().zip(q).zip(&mut sums) {
            *byte = q as i8;
            *sum += q;
        }
        for (quad, bytes) in to.as_flattened_mut().iter_mut().zip(bytes.as_chunks().0) {
            *quad = X::new(*bytes);
        }
    }
    let sum = sums.iter().sum::<i32>();
    XGroup { start: -OFFSET * sum, scale, scaled_sum: scale * sum as f32 }
}

/// The scale of a group, and what its elements are multiplied by: with it, the largest is 127. NaN
/// if one is not finite, and 0 for both if all are too small.
#[inline(always)]
pub(crate) fn scale(x: &[[f32; BLOCK]]) -> (f32, f32) {
    let largest = largest(x);
    let scale = largest / 127.0;
    if !scale.is_finite() {
        (f32::NAN, 0.0)
    } else if scale < f32::MIN_POSITIVE {
        (0.0, 0.0)
    } else {
        (scale, 127.0 / largest)
    }
}

/// Integers from -127 to 127, with what [`scale`] gave of the whole group.
#[inline(always)]
pub(crate) fn integers(x: &[f32; BLOCK], inverse: f32) -> [i32; BLOCK] {
    let mut q = [0; BLOCK];
    for (q, x) in q.iter_mut().zip(x) {
        *q = nearest(x * inverse);
    }
    q
}

/// The largest absolute value. NaN, if there is one, is larger than infinity: bits are compared.
#[inline(always)]
pub(crate) fn largest(x: &[[f32; BLOCK]]) -> f32 {
    let mut bits = [0; BLOCK];
    for x in x {
        for (bits, x) in bits.iter_mut().zip(x) {
            *bits = (x.to_bits() & 0x7fff_ffff).max(*bits);
        }
    }
    f32::from_bits(bits.into_iter().fold(0, u32::max))
}

/// Rows of x as the processor's units take them.
pub(crate) enum Activations {
    Bytes(XRows<i32>),
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))] // Made by x86's units alone.
    Words(XRows<[i32; 2]>),
}

/// The rows by groups of so many blocks, the last one filled up with zeros.
fn take<X: Quad>(x: Rows<'_>, blocks: usize) -> XRows<X>
where
    [X; 2]: Plain,
{
    struct Row<'a, X> {
        x: &'a [f32],
        blocks: usize,
        steps: &'a mut [[X; 2]],
        groups: &'a mut [XGroup],
    }
    impl<X: Quad> Task for Row<'_, X> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, _: S) {
            match self.blocks {
                1 => self.groups_of::<1>(),
                2 => self.groups_of::<2>(),
                blocks => unreachable!("groups have one block or two, not {blocks}"),
            }
        }
    }
    impl<X: Quad> Row<'_, X> {
        /// By groups of `B` blocks. As that is known when this is compiled, loops over a group are
        /// vectors and nothing else.
        #[inline(always)]
        fn groups_of<const B: usize>(self) {
            let x = self.x.as_chunks().0.as_chunks::<B>().0;
            let to = self.steps.as_chunks_mut().0.as_chunks_mut::<B>().0;
            for ((x, to), group) in x.iter().zip(&mut *to).zip(&mut *self.groups) {
                *group = quantize(x, to);
            }
            let tail = &self.x[self.x.len() / (B * BLOCK) * B * BLOCK..];
            if !tail.is_empty() {
                let mut last = [[0.0; BLOCK]; B];
                last.as_flattened_mut()[..tail.len()].copy_from_slice(tail);
                self.groups[x.len()] = quantize(&last, &mut to[x.len()]);
            }
        }
    }
    let (level, stride) = (Level::current(), x.len.div_ceil(blocks * BLOCK));
    let steps_stride = stride * blocks * STEPS;
    let mut steps = Aligned::new(x.count * steps_stride);
    let mut groups = Aligned::new(x.count * stride);
    let nanoseconds = 8 * blocks * groups.len(); // Of each block some 8.
    let all = Disjoint::new(&mut groups);
    parallel::for_rows(&mut steps, steps_stride, nanoseconds, |first, rows| {
        for (t, steps) in (first..).zip(rows.chunks_exact_mut(steps_stride)) {
            // SAFETY: each row of steps is given out once, and with it its groups.
            #[allow(unsafe_code)] // Rows of another length, which the compiler cannot see apart.
            let groups = unsafe { all.part(t * stride..(t + 1) * stride) };
            level.run(Row { x: x.row(t), blocks, steps, groups });
        }
    });
    XRows { steps, groups }
}

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
    use super::*;

    /// The integers of a block that is a group, and their scale.
    fn quantized(x: &[f32; BLOCK]) -> ([i32; BLOCK], f32) {
        let mut steps = [[[0; 2]; STEPS]];
        let group = quantize(std::array::from_ref(x), &mut steps);
        let bytes =
            steps.as_flattened().as_flattened().iter().flat_map(|quad: &i32| quad.to_le_bytes());
        let q: Vec<i32> = bytes.map(|byte| i32::from(byte as i8)).collect();
        assert_eq!(group.start, -OFFSET * q.iter().sum::<i32>());
        (q.try_into().unwrap(), group.scale)
    }

    #[test]
    fn x_is_rounded_to_the_nearest_of_255_steps_and_ties_to_even() {
        let mut x = [0.0; BLOCK];
        x[..8].copy_from_slice(&[127.0, 0.5, 1.5, -0.5, -2.5, 3.49, 3.51, -126.6]);
        let (q, scale) = quantized(&x);
        assert_eq!(scale, 1.0);
        assert_eq!(q[..9], [127, 0, 2, 0, -2, 3, 4, -127, 0]);
        let small = 2f32.powi(-120);
        let (q, scale) = quantized(&x.map(|x| x * -small));
        assert_eq!(scale, small);
        assert_eq!(q[..9], [-127, 0, -2, 0, 2, -3, -4, 127, 0]);
    }

    #[test]
    fn what_is_too_small_is_zero_and_what_is_not_finite_has_no_scale() {
        assert_eq!(quantized(&[0.0; BLOCK]), ([0; BLOCK], 0.0));
        assert_eq!(quantized(&[1e-40; BLOCK]), ([0; BLOCK], 0.0));
        assert_eq!(quantized(&[f32::MAX; BLOCK]).0, [127; BLOCK]);
        for not_finite in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -f32::NAN] {
            let mut x = [1.0; BLOCK];
            x[17] = not_finite;
            let (q, scale) = quantized(&x);
            assert!(q == [0; BLOCK] && scale.is_nan(), "{not_finite}");
        }
    }

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
