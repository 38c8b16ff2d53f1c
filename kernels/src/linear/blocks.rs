//! Numbers in 8 and in 4 bits: neighbours along K, a group, share what makes integers of them.
//!
//! A group of a file is the 32 numbers of a [`Block`]; one of what is quantised here is several
//! blocks, which take less memory and less arithmetic.
//!
//! The scale and the minimum are rounded to f16 first, and the integers chosen for what they have
//! become: so rounding them costs next to nothing.

use crate::simd::groups::{BLOCK, MAX_GROUP, largest};
use crate::simd::math::ROUND;
use crate::simd::{LANES, Simd, Task};

/// How the numbers of a matrix are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Quantization {
    /// Integers from -127 to 127, and a scale of 16 bits for each group.
    Int8,
    /// Integers from 0 to 15, and a scale and a minimum of 16 bits for each group.
    Int4,
}

impl Quantization {
    /// How many neighbours along K share a scale where numbers are quantised here. Where blocks are
    /// taken as they are, these are 32.
    pub const GROUP: usize = 64;

    /// The bits of a number that is quantised here, with its part of what its group shares.
    pub fn bits(self) -> f64 {
        let (own, shared) = match self {
            Self::Int8 => (8.0, 16.0),
            Self::Int4 => (4.0, 32.0),
        };
        own + shared / Self::GROUP as f64
    }
}

/// 32 neighbours along K in a row of a matrix: element k is `scale * q[k] + min`.
///
/// In a row's last block, elements beyond K have no meaning.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Block {
    /// From -128 to 127 in 8 bits, from 0 to 15 in 4 bits.
    pub q: [i8; BLOCK],
    /// Kept as f16.
    pub scale: f32,
    /// Kept as f16; 0 in 8 bits.
    pub min: f32,
}

impl Block {
    pub(super) const ZERO: Self = Self { q: [0; BLOCK], scale: 0.0, min: 0.0 };

    /// Element `k`. The product is exact, so it does not matter whether the sum is fused with it.
    #[inline(always)]
    pub(super) fn element(&self, k: usize) -> f32 {
        self.scale * f32::from(self.q[k]) + self.min
    }
}

/// Quantises a row, up to 32 elements for each block. What is not finite makes all of its group not
/// finite.
pub(super) struct QuantizeRow<'a> {
    pub(super) row: &'a [f32],
    pub(super) to: &'a mut [Block],
    pub(super) kind: Quantization,
}

impl Task for QuantizeRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        const BLOCKS: usize = Quantization::GROUP / BLOCK;
        const { assert!(BLOCKS <= MAX_GROUP) };
        for (row, to) in self.row.chunks(BLOCKS * BLOCK).zip(self.to.chunks_mut(BLOCKS)) {
            // The last element again and again changes neither the largest nor the smallest.
            let mut x = [[row[row.len() - 1]; BLOCK]; BLOCKS];
            x.as_flattened_mut()[..row.len()].copy_from_slice(row);
            match self.kind {
                Quantization::Int8 => int8(s, &x, to),
                Quantization::Int4 => int4(s, &x, to),
            }
        }
    }
}

/// The largest f16.
const MAX: f32 = 65504.0;

/// `x` as f16 holds it, which does not overflow: a conversion there and back, without an instruction
/// that not all levels have.
#[inline(always)]
fn round(x: f32) -> f32 {
    const SMALLEST_NORMAL: f32 = 1.0 / 16384.0;
    if x.abs() < SMALLEST_NORMAL {
        // Steps of 2^-24, as f32 has between 0.5 and 1.
        return (x + 0.75) - 0.75;
    }
    // 13 of 24 bits fewer (Veltkamp).
    let large = x * 8193.0;
    large - (large - x)
}

/// 1 / x, or 0 for 0.
#[inline(always)]
fn inverse(x: f32) -> f32 {
    if x == 0.0 { 0.0 } else { 1.0 / x }
}

/// `x * inverse - min * inverse` from `low` to `high`, rounded to integers to which [`ROUND`]
/// has been added.
#[inline(always)]
fn steps<S: Simd>(
    s: S,
    x: &[f32; LANES],
    (inverse, min): (f32, f32),
    (low, high): (f32, f32),
) -> S::V {
    let steps = s.fma(s.load(x), s.splat(inverse), s.splat(-min * inverse));
    let steps = s.min(s.max(steps, s.splat(low)), s.splat(high));
    s.fma(steps, s.splat(1.0), s.splat(ROUND))
}

/// The blocks of `x` with this scale and minimum, both of them f16.
#[inline(always)]
fn blocks<S: Simd>(
    s: S,
    x: &[[f32; BLOCK]],
    (scale, min): (f32, f32),
    limits: (f32, f32),
    to: &mut [Block],
) {
    let inverse = inverse(scale);
    for (x, to) in x.iter().zip(to) {
        let mut integers = [0.0; BLOCK];
        for (x, to) in x.as_chunks().0.iter().zip(integers.as_chunks_mut().0) {
            s.store(steps(s, x, (inverse, min), limits), to);
        }
        *to = Block { q: [0; BLOCK], scale, min };
        for (q, integer) in to.q.iter_mut().zip(integers) {
            *q = integer.to_bits().wrapping_sub(ROUND.to_bits()) as i8;
        }
    }
}

#[inline(always)]
fn int8<S: Simd>(s: S, x: &[[f32; BLOCK]], to: &mut [Block]) {
    let scale = largest(x) / 127.0;
    match scale <= MAX {
        true => blocks(s, x, (round(scale), 0.0), (-127.0, 127.0), to),
        false => to.fill(Block { scale: f32::NAN, ..Block::ZERO }),
    }
}

const HALF_BYTE: (f32, f32) = (0.0, 15.0);

/// The best of a few: from the smallest element on, with steps for 14, 15 and 16 of them up to the
/// largest, each then fitted to the integers that it gave, twice. Of normally distributed numbers in
/// groups of 64, the error is 8.3 % of their deviation; 9.0 % without this search, 8.2 % with twenty
/// beginnings.
#[inline(always)]
fn int4<S: Simd>(s: S, x: &[[f32; BLOCK]], to: &mut [Block]) {
    let (low, high) = range(x.as_flattened());
    if !(low.abs() <= MAX && high.abs() <= MAX && (high - low) / 14.0 <= MAX) {
        return to.fill(Block { scale: f32::NAN, ..Block::ZERO });
    }
    let (mut best, mut least) = ((0.0, 0.0), f32::INFINITY);
    for steps in [14.0, 15.0, 16.0] {
        let (mut scale, mut min) = ((high - low) / steps, low);
        for _ in 0..3 {
            (scale, min) = (round(scale), round(min));
            let fit = Fit::new(s, x.as_flattened(), scale, min);
            if fit.squared_error < least {
                (best, least) = ((scale, min), fit.squared_error);
            }
            (scale, min) = fit.next();
        }
    }
    blocks(s, x, best, HALF_BYTE, to);
}

/// The smallest and the largest element. As integers, bits are in the order of the numbers once
/// those of negative ones are turned round; NaN is at one of the ends.
#[inline(always)]
fn range(x: &[f32]) -> (f32, f32) {
    let turn = |bits: i32| bits ^ ((bits >> 31) as u32 >> 1) as i32;
    let (mut low, mut high) = (i32::MAX, i32::MIN);
    for x in x {
        let key = turn(x.to_bits() as i32);
        (low, high) = (low.min(key), high.max(key));
    }
    (f32::from_bits(turn(low) as u32), f32::from_bits(turn(high) as u32))
}

/// How well a scale and a minimum do, and what follows from the integers that they give.
struct Fit {
    len: f32,
    squared_error: f32,
    sum_x: f32,
    sum_q: f32,
    sum_qq: f32,
    sum_qx: f32,
}

impl Fit {
    #[inline(always)]
    fn new<S: Simd>(s: S, x: &[f32], scale: f32, min: f32) -> Self {
        let (inverse, one, zero) = (inverse(scale), s.splat(1.0), s.splat(0.0));
        let mut sums = [zero; LANES];
        for x in x.as_chunks().0 {
            let q = steps(s, x, (inverse, min), HALF_BYTE);
            let (q, x) = (s.fma(q, one, s.splat(-ROUND)), s.load(x));
            let error = s.fma(q, s.splat(scale), s.fma(x, s.splat(-1.0), s.splat(min)));
            sums[0] = s.fma(error, error, sums[0]);
            sums[1] = s.fma(x, one, sums[1]);
            sums[2] = s.fma(q, one, sums[2]);
            sums[3] = s.fma(q, q, sums[3]);
            sums[4] = s.fma(q, x, sums[4]);
        }
        let [squared_error, sum_x, sum_q, sum_qq, sum_qx, ..] = s.sum16(sums);
        Self { len: x.len() as f32, squared_error, sum_x, sum_q, sum_qq, sum_qx }
    }

    /// The scale and the minimum with which the same integers give the least squared error.
    #[inline(always)]
    fn next(&self) -> (f32, f32) {
        let len = self.len;
        // Exact, and 0 where all integers are equal.
        let spread = len * self.sum_qq - self.sum_q * self.sum_q;
        let scale = (len * self.sum_qx - self.sum_q * self.sum_x) * inverse(spread);
        (scale, (self.sum_x - scale * self.sum_q) / len)
    }
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;

    #[test]
    fn numbers_are_rounded_to_what_f16_holds() {
        for bits in (0..65504f32.to_bits()).step_by(4999) {
            for x in [f32::from_bits(bits), -f32::from_bits(bits)] {
                let (found, nearest) = (round(x), f16::from_f32(x).to_f32());
                assert_eq!(f16::from_f32(found).to_f32(), found, "{x} became {found}");
                // Ties may go either way.
                let (error, least) = ((x - found).abs(), (x - nearest).abs());
                assert!(error <= least, "{x} became {found}, {nearest} is nearer");
            }
        }
    }
}
