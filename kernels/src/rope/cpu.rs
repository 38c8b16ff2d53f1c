//! Rotary positions on the CPU: one pass, read x, write out.

use super::{RopeStyle, RopeTable};
use crate::parallel;
use crate::simd::math::fma;
use crate::simd::{Level, Simd, Task};
use crate::view::Rows;

/// `x [T, H, head_size]`, positions below the table's end; gives `[T, H, head_size]`.
pub(super) fn rope(
    x: Rows<'_>,
    table: &RopeTable,
    style: RopeStyle,
    positions: &[u32],
    head_size: usize,
) -> Vec<f32> {
    let level = Level::current();
    let mut out = vec![0.0; x.count * x.len];
    // Some 8 elements per nanosecond.
    let nanoseconds = out.len() / 8;
    parallel::for_rows(&mut out, x.len, nanoseconds, |first, out| {
        let positions = &positions[first..];
        level.run(Turn { x, first, positions, table, style, head_size, out });
    });
    out
}

/// The tokens of x from `first` on, which stand at `positions`, turned into `out`.
struct Turn<'a> {
    x: Rows<'a>,
    first: usize,
    positions: &'a [u32],
    table: &'a RopeTable,
    style: RopeStyle,
    head_size: usize,
    out: &'a mut [f32],
}

impl Task for Turn<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let dims = self.table.dims();
        let tokens = self.out.chunks_exact_mut(self.x.len).zip(self.positions);
        for (t, (out, &position)) in tokens.enumerate() {
            let (cos, sin) = self.table.at(position);
            let heads = self.x.row(self.first + t).chunks_exact(self.head_size);
            for (x, out) in heads.zip(out.chunks_exact_mut(self.head_size)) {
                match self.style {
                    RopeStyle::Half => turn_halves::<S>(&x[..dims], &mut out[..dims], cos, sin),
                    RopeStyle::Interleaved => {
                        turn_neighbours::<S>(&x[..dims], &mut out[..dims], cos, sin);
                    }
                }
                out[dims..].copy_from_slice(&x[dims..]);
            }
        }
    }
}

#[inline(always)]
fn turn_halves<S: Simd>(x: &[f32], out: &mut [f32], cos: &[f32], sin: &[f32]) {
    let half = cos.len();
    let (a, b) = (&x[..half], &x[half..2 * half]);
    let (out_a, out_b) = out[..2 * half].split_at_mut(half);
    let sin = &sin[..half];
    for i in 0..half {
        out_a[i] = fma::<S>(a[i], cos[i], -(b[i] * sin[i]));
        out_b[i] = fma::<S>(b[i], cos[i], a[i] * sin[i]);
    }
}

#[inline(always)]
fn turn_neighbours<S: Simd>(x: &[f32], out: &mut [f32], cos: &[f32], sin: &[f32]) {
    let pairs = x.as_chunks::<2>().0.iter().zip(out.as_chunks_mut::<2>().0);
    for (([a, b], out), (cos, sin)) in pairs.zip(cos.iter().zip(sin)) {
        *out = [fma::<S>(*a, *cos, -(b * sin)), fma::<S>(*b, *cos, a * sin)];
    }
}

/// Turns one head where it stands.
#[inline(always)]
pub(crate) fn turn_in_place<S: Simd>(
    head: &mut [f32],
    table: &RopeTable,
    style: RopeStyle,
    position: u32,
) {
    let (cos, sin) = table.at(position);
    let turn = |a: &mut f32, b: &mut f32, cos: f32, sin: f32| {
        (*a, *b) = (fma::<S>(*a, cos, -(*b * sin)), fma::<S>(*b, cos, *a * sin));
    };
    match style {
        RopeStyle::Half => {
            let half = cos.len();
            let (first, second) = head[..2 * half].split_at_mut(half);
            for i in 0..half {
                turn(&mut first[i], &mut second[i], cos[i], sin[i]);
            }
        }
        RopeStyle::Interleaved => {
            let pairs = head.as_chunks_mut::<2>().0.iter_mut();
            for ([a, b], (cos, sin)) in pairs.zip(cos.iter().zip(sin)) {
                turn(a, b, *cos, *sin);
            }
        }
    }
}
