//! Dot products of a few rows with a few others: the core of linear and of attention's scores. And
//! plain sums, in the same order.
//!
//! A product is the sum of sixteen lanes, lane l summing the elements `l, l + 16, ..` in rising
//! order, the last sixteen filled up with zeros; the lanes are then added up as [`Simd::sum`] does.
//! So its bits depend on the two rows alone, and not on the block it was computed in.

use crate::element::Element;
use crate::simd::{LANES, Simd};

/// `[m][n] = dot(x[m], w[n])`; all rows have one length.
#[inline(always)]
pub(crate) fn dots<S: Simd, E: Element, const M: usize, const N: usize>(
    s: S,
    x: [&[f32]; M],
    w: [&[E]; N],
) -> [[f32; N]; M] {
    let len = x[0].len();
    let (x_chunks, x_tails) = chunks(x, len);
    let (w_chunks, w_tails) = chunks(w, len);
    let mut sums = [[s.splat(0.0); N]; M];
    for i in 0..len / LANES {
        let mut x = [s.splat(0.0); M];
        for m in 0..M {
            x[m] = s.load(&x_chunks[m][i]);
        }
        for n in 0..N {
            let w = E::load(s, &w_chunks[n][i]);
            for m in 0..M {
                sums[m][n] = s.fma(x[m], w, sums[m][n]);
            }
        }
    }
    if !len.is_multiple_of(LANES) {
        for n in 0..N {
            let w = E::load(s, &padded(w_tails[n]));
            for m in 0..M {
                sums[m][n] = s.fma(s.load(&padded(x_tails[m])), w, sums[m][n]);
            }
        }
    }
    add_lanes(s, &sums)
}

/// The sum of `x`, in the order of a product with ones.
#[inline(always)]
pub(crate) fn sum<S: Simd>(s: S, x: &[f32]) -> f32 {
    let (whole, tail) = x.as_chunks::<LANES>();
    let (one, mut sums) = (s.splat(1.0), s.splat(0.0));
    for x in whole {
        sums = s.fma(s.load(x), one, sums);
    }
    s.sum(s.fma(s.load(&padded(tail)), one, sums))
}

/// Each row as whole vectors and the rest. That all have one length is stated by the slicing, so
/// that the loops above need no checks.
#[inline(always)]
#[allow(clippy::type_complexity)] // Two arrays of slices, named in the line above.
fn chunks<E, const R: usize>(rows: [&[E]; R], len: usize) -> ([&[[E; LANES]]; R], [&[E]; R]) {
    let (mut chunks, mut tails) = ([[].as_slice(); R], [[].as_slice(); R]);
    for r in 0..R {
        let (whole, tail) = rows[r][..len].as_chunks::<LANES>();
        (chunks[r], tails[r]) = (&whole[..len / LANES], tail);
    }
    (chunks, tails)
}

/// `tail` and zeros.
#[inline(always)]
pub(crate) fn padded<E: Element>(tail: &[E]) -> [E; LANES] {
    let mut full = [E::ZERO; LANES];
    full[..tail.len()].copy_from_slice(tail);
    full
}

#[inline(always)]
fn add_lanes<S: Simd, const M: usize, const N: usize>(
    s: S,
    sums: &[[S::V; N]; M],
) -> [[f32; N]; M] {
    let mut added = [[0.0; N]; M];
    // Sixteen at once cost about as much as four one by one.
    if M * N <= 4 || M * N > LANES {
        for m in 0..M {
            for n in 0..N {
                added[m][n] = s.sum(sums[m][n]);
            }
        }
        return added;
    }
    let mut all = [s.splat(0.0); LANES];
    for m in 0..M {
        for n in 0..N {
            all[m * N + n] = sums[m][n];
        }
    }
    let all = s.sum16(all);
    for m in 0..M {
        for n in 0..N {
            added[m][n] = all[m * N + n];
        }
    }
    added
}
