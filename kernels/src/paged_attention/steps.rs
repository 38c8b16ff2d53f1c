//! The products that attention is made of: scores from queries and keys, sums from weights and
//! values.
//!
//! Both are small matrix products in which one operand is broadcast and the other comes as vectors
//! of sixteen columns: a *step* is what a column adds to a sum, one element, or a pair of neighbours
//! in bf16. The caches hold vectors of steps ([`crate::kv_cache`]), which are read where they lie. A
//! sum runs over its steps in rising order, whatever the block of sums that it is computed in.
#![allow(clippy::needless_range_loop)] // The indices of a block go over several arrays at once.

use std::cell::Cell;
use std::marker::PhantomData;
use std::ops::Range;
use std::thread::LocalKey;

use half::bf16;

use super::unit::Scratch;
use crate::element::Element;
use crate::simd::pairs::Pairs;
use crate::simd::{LANES, Simd};

/// Vectors of scores in a tile.
pub(super) const VECTORS: usize = 4;

/// Sixteen f32 that fill a line of the cache.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Vector(pub(super) [f32; LANES]);

impl Vector {
    pub(super) const ZERO: Self = Self([0.0; LANES]);
}

/// How a cache's elements are multiplied. A value of an implementing type is the proof that the
/// processor has its instructions.
pub(super) trait Steps: Copy {
    /// What the rest is computed in.
    type S: Simd;
    /// A step of sixteen columns, as the caches hold it: of sixteen keys, or of sixteen elements of
    /// values.
    type W: Copy;
    /// The same in registers.
    type R: Copy;
    /// A step of a query, or of its weights.
    type X: Copy + Default + 'static;
    /// Elements of a step.
    const LEN: usize;

    fn simd(self) -> Self::S;
    /// What each thread keeps from one unit to the next.
    fn scratch() -> &'static LocalKey<Cell<Scratch<Self::X>>>;
    /// Sixteen elements as steps: as many as there are in `to`.
    fn take(self, x: &[f32; LANES], to: &mut [Self::X]);
    fn load(self, w: &Self::W) -> Self::R;
    /// [`Steps::load`] of the elements `seen` of each column, of which there is one; the others are
    /// zero.
    fn load_seen(self, w: &Self::W, seen: Range<usize>) -> Self::R;
    /// `sum + x * w`, in each column.
    fn dot(self, x: Self::X, w: Self::R, sum: V<Self>) -> V<Self>;
}

/// A vector of the instructions of `P`.
pub(super) type V<P> = <<P as Steps>::S as Simd>::V;

/// Adds `x[m][k] * w[n]` to `sums[m][n]`.
#[inline(always)]
pub(super) fn add<P: Steps, const M: usize, const N: usize>(
    p: P,
    (x, k): ([&[P::X]; M], usize),
    w: [P::R; N],
    sums: &mut [[V<P>; N]; M],
) {
    for m in 0..M {
        for n in 0..N {
            sums[m][n] = p.dot(x[m][k], w[n], sums[m][n]);
        }
    }
}

/// Single elements, widened and multiplied as f32.
#[derive(Clone, Copy)]
pub(super) struct Exact<S, E>(S, PhantomData<E>);

impl<S, E> Exact<S, E> {
    #[inline(always)]
    pub(super) fn new(s: S) -> Self {
        Self(s, PhantomData)
    }
}

impl<S: Simd, E: Element> Steps for Exact<S, E> {
    type S = S;
    type W = [E; LANES];
    type R = S::V;
    type X = f32;
    const LEN: usize = 1;

    #[inline(always)]
    fn simd(self) -> S {
        self.0
    }

    fn scratch() -> &'static LocalKey<Cell<Scratch<f32>>> {
        thread_local! {
            static SCRATCH: Cell<Scratch<f32>> = Cell::default();
        }
        &SCRATCH
    }

    #[inline(always)]
    fn take(self, x: &[f32; LANES], to: &mut [f32]) {
        to.copy_from_slice(x);
    }

    #[inline(always)]
    fn load(self, w: &[E; LANES]) -> S::V {
        E::load(self.0, w)
    }

    #[inline(always)]
    fn load_seen(self, w: &[E; LANES], _: Range<usize>) -> S::V {
        E::load(self.0, w)
    }

    #[inline(always)]
    fn dot(self, x: f32, w: S::V, sum: S::V) -> S::V {
        self.0.fma(self.0.splat(x), w, sum)
    }
}

/// Pairs of bf16, widened and multiplied as f32, one after the other.
#[derive(Clone, Copy)]
pub(super) struct ExactPairs<S>(pub(super) S);

impl<S: Simd> Steps for ExactPairs<S> {
    type S = S;
    type W = Pairs;
    type R = [S::V; 2];
    type X = [f32; 2];
    const LEN: usize = 2;

    #[inline(always)]
    fn simd(self) -> S {
        self.0
    }

    fn scratch() -> &'static LocalKey<Cell<Scratch<[f32; 2]>>> {
        thread_local! {
            static SCRATCH: Cell<Scratch<[f32; 2]>> = Cell::default();
        }
        &SCRATCH
    }

    #[inline(always)]
    fn take(self, x: &[f32; LANES], to: &mut [[f32; 2]]) {
        to.as_flattened_mut().copy_from_slice(x);
    }

    #[inline(always)]
    fn load(self, w: &Pairs) -> [S::V; 2] {
        self.0.load_pairs(w)
    }

    #[inline(always)]
    fn load_seen(self, w: &Pairs, seen: Range<usize>) -> [S::V; 2] {
        self.0.load_pairs(&keep(w, seen))
    }

    #[inline(always)]
    fn dot(self, x: [f32; 2], w: [S::V; 2], sum: S::V) -> S::V {
        let s = self.0;
        s.fma(s.splat(x[1]), w[1], s.fma(s.splat(x[0]), w[0], sum))
    }
}

/// The elements `seen` of each pair, and zero for the others.
#[inline(always)]
pub(super) fn keep(w: &Pairs, seen: Range<usize>) -> Pairs {
    let mask = [0, 1].map(|i| if seen.contains(&i) { u16::MAX } else { 0 });
    let mut kept = *w;
    // A loop and no `map`, which the compiler would make a call for each vector.
    for pair in &mut kept {
        for (element, mask) in pair.iter_mut().zip(mask) {
            *element = bf16::from_bits(element.to_bits() & mask);
        }
    }
    kept
}
