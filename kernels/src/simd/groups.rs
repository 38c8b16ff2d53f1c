//! Rows in 8 bits, as products of bytes take them: as many neighbours along k share a scale as do in
//! the matrix, a group of one block or more.

use super::bytes::OFFSET;
use super::math::nearest;
use super::{Level, Simd, Task};
use crate::parallel::{self, Disjoint};
use crate::scratch::{Aligned, Plain};
use crate::view::Rows;

/// Elements along k of a block: a group is one or more.
pub(crate) const BLOCK: usize = 32;

/// The largest group, in blocks.
pub(crate) const MAX_GROUP: usize = 2;

/// Steps of a block, of two quads each.
pub(crate) const STEPS: usize = BLOCK / 8;

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
pub(super) fn take<X: Quad>(x: Rows<'_>, blocks: usize) -> XRows<X>
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

    #[test]
    fn two_blocks_of_a_group_share_a_scale_and_what_is_missing_is_zero() {
        let mut data = [0.0; 2 * 100];
        // Of row 1: the largest of its first group is in the second block, the rest is a group.
        (data[100], data[100 + 40], data[100 + 99]) = (2.0, -127.0, 3.0);
        let rows = Rows { data: &data, stride: 100, len: 100, count: 2 };
        let XRows { steps, groups } = take::<i32>(rows, 2);
        let scales: Vec<f32> = groups.iter().map(|group| group.scale).collect();
        assert_eq!(scales, [0.0, 0.0, 1.0, 3.0 / 127.0]);
        assert_eq!((groups[2].start, groups[2].scaled_sum), (-OFFSET * -125, -125.0));
        assert_eq!((groups[3].start, groups[3].scaled_sum), (-OFFSET * 127, 3.0));
        let bytes: Vec<_> =
            steps.as_flattened().iter().flat_map(|quad| quad.to_le_bytes()).collect();
        assert_eq!(bytes.len(), 2 * 128);
        let set = bytes.iter().enumerate().filter(|(_, byte)| **byte != 0);
        let set: Vec<_> = set.map(|(i, byte)| (i - 128, *byte as i8)).collect();
        assert_eq!(set, [(0, 2), (40, -127), (99, 127)]);
    }
}
