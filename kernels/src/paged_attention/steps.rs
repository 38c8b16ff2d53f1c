//! The products that attention is made of: scores from queries and keys, sums from weights and
//! values.
//!
//! Both are small matrix products in which one operand is broadcast and the other comes as vectors
//! of sixteen columns: a *step* is what a column adds to a sum in one instruction, one element in
//! f32 ([`Exact`]), a pair of neighbours in bf16. Keys are transposed into that order and values
//! laid out in it, tile by tile, and then met by all queries of a unit. A sum runs over its steps in
//! rising order, whatever the block of sums that it is computed in.
#![allow(clippy::needless_range_loop)] // The indices of a block go over several arrays at once.

use std::cell::Cell;
use std::marker::PhantomData;
use std::thread::LocalKey;

use super::unit::Scratch;
use crate::dot::padded;
use crate::element::Element;
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
    /// What the caches hold.
    type E: Element;
    /// A step of a query, or of its weights.
    type X: Copy + Default + 'static;
    /// A step of sixteen columns: of sixteen keys, or of sixteen elements of values.
    type W: Copy + 'static;
    /// Elements of a step.
    const LEN: usize;
    /// Elements of a row that are transposed at once: sixteen steps.
    const CHUNK: usize = LANES * Self::LEN;
    /// Sixteen steps of nothing.
    const NOTHING: Self::W;

    fn simd(self) -> Self::S;
    /// What each thread keeps from one unit to the next.
    fn scratch() -> &'static LocalKey<Cell<Scratch<Self::X, Self::W>>>;
    /// Sixteen elements as steps: as many as there are in `to`.
    fn take(self, x: &[f32; LANES], to: &mut [Self::X]);
    /// Chunk `at.0` of sixteen keys as vector `at.1` of each of sixteen steps. A key may be empty, and
    /// the chunk its end, unless they are `whole`: what is missing is zero.
    fn keys(
        self,
        keys: &[&[Self::E]; LANES],
        at: (usize, usize),
        whole: bool,
        to: &mut [[Self::W; VECTORS]; LANES],
    );
    /// The values of the positions of a step, as many as its [`Steps::LEN`], each whole or empty,
    /// filled up with zeros.
    fn values(self, values: [&[Self::E]; 2], to: &mut [Self::W]);
    /// `sum + x * w`, in each column; where a step has two elements, the second is added first.
    fn dot(self, x: Self::X, w: &Self::W, sum: V<Self>) -> V<Self>;
}

/// A vector of the instructions of `P`.
pub(super) type V<P> = <<P as Steps>::S as Simd>::V;

/// Adds `x[m] * w` to `sums[m]`, step by step: `x[m]` has a step for each row of `w`, whose rows are
/// `stride` vectors apart.
#[inline(always)]
pub(super) fn multiply<P: Steps, const M: usize, const N: usize>(
    p: P,
    x: [&[P::X]; M],
    (w, stride): (&[P::W], usize),
    sums: &mut [[V<P>; N]; M],
) {
    let steps = x[0].len();
    let mut rows = x;
    for m in 0..M {
        rows[m] = &x[m][..steps];
    }
    for k in 0..steps {
        let w = &w[k * stride..][..N];
        for m in 0..M {
            for n in 0..N {
                sums[m][n] = p.dot(rows[m][k], &w[n], sums[m][n]);
            }
        }
    }
}

/// Elements of any kind, widened and multiplied as f32.
pub(super) struct Exact<S, E>(S, PhantomData<E>);

impl<S, E> Exact<S, E> {
    #[inline(always)]
    pub(super) fn new(s: S) -> Self {
        Self(s, PhantomData)
    }
}

impl<S: Copy, E> Copy for Exact<S, E> {}

impl<S: Copy, E> Clone for Exact<S, E> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<S: Simd, E: Element> Steps for Exact<S, E> {
    type S = S;
    type E = E;
    type X = f32;
    type W = Vector;
    const LEN: usize = 1;
    const NOTHING: Vector = Vector::ZERO;

    #[inline(always)]
    fn simd(self) -> S {
        self.0
    }

    fn scratch() -> &'static LocalKey<Cell<Scratch<f32, Vector>>> {
        thread_local! {
            static SCRATCH: Cell<Scratch<f32, Vector>> = Cell::default();
        }
        &SCRATCH
    }

    #[inline(always)]
    fn take(self, x: &[f32; LANES], to: &mut [f32]) {
        to.copy_from_slice(x);
    }

    #[inline(always)]
    fn keys(
        self,
        keys: &[&[E]; LANES],
        (c, v): (usize, usize),
        whole: bool,
        to: &mut [[Vector; VECTORS]; LANES],
    ) {
        let s = self.0;
        let mut rows = [s.splat(0.0); LANES];
        if whole {
            // Straight into registers.
            for i in 0..LANES {
                rows[i] = E::load(s, chunk(keys[i], c));
            }
        } else {
            for i in 0..LANES {
                rows[i] = load(s, keys[i], c);
            }
        }
        let columns = s.transpose(rows);
        for i in 0..LANES {
            s.store(columns[i], &mut to[i][v].0);
        }
    }

    #[inline(always)]
    fn values(self, values: [&[E]; 2], to: &mut [Vector]) {
        let (whole, _) = values[0].as_chunks::<LANES>();
        for (to, values) in to.iter_mut().zip(whole) {
            self.0.store(E::load(self.0, values), &mut to.0);
        }
        for c in whole.len()..to.len() {
            self.0.store(load(self.0, values[0], c), &mut to[c].0);
        }
    }

    #[inline(always)]
    fn dot(self, x: f32, w: &Vector, sum: S::V) -> S::V {
        self.0.fma(self.0.splat(x), self.0.load(&w.0), sum)
    }
}

/// The elements `c * N..(c + 1) * N`.
#[inline(always)]
pub(super) fn chunk<E, const N: usize>(row: &[E], c: usize) -> &[E; N] {
    match row[c * N..].first_chunk::<N>() {
        Some(chunk) => chunk,
        None => panic!("a chunk of a row ends within it"),
    }
}

/// Vector `c` of `row`, widened and filled up with zeros.
#[inline(always)]
pub(super) fn load<S: Simd, E: Element>(s: S, row: &[E], c: usize) -> S::V {
    let rest = row.get(c * LANES..).unwrap_or_default();
    match rest.first_chunk::<LANES>() {
        Some(whole) => E::load(s, whole),
        None => E::load(s, &padded(rest)),
    }
}
