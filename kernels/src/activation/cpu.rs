//! Gated activation on the CPU: one pass.

use super::Activation;
use crate::parallel::{self, Disjoint};
use crate::simd::math::{gelu_tanh, silu, swish};
use crate::simd::{Level, Simd, Task};
use crate::view::Rows;

/// `gate_up [T, 2I]`, out `[T, I]`.
pub(crate) fn gated(gate_up: Rows<'_>, act: Activation, out: &mut [f32]) {
    let (level, half) = (Level::current(), gate_up.len / 2);
    // Some 2 elements per nanosecond.
    let nanoseconds = out.len() / 2;
    parallel::for_rows(out, half, nanoseconds, |first, out| {
        let both = gate_up.part(first..first + out.len() / half);
        let (gate, up) =
            (Rows { len: half, ..both }, Rows { data: &both.data[half..], len: half, ..both });
        level.run(Gate { gate, up, act, out: &Disjoint::new(out), start: 0, stride: half });
    });
}

/// Rows of gates, and of what goes through them.
pub(crate) struct Gate<'a> {
    pub(crate) gate: Rows<'a>,
    /// As many, and as long.
    pub(crate) up: Rows<'a>,
    pub(crate) act: Activation,
    /// Has room for the result that nobody else uses.
    pub(crate) out: &'a Disjoint<'a, f32>,
    /// Where in `out` the first row begins, and how far apart rows are.
    pub(crate) start: usize,
    pub(crate) stride: usize,
}

impl Task for Gate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        match self.act {
            Activation::Silu => self.each(|g, u| silu::<S>(g) * u),
            Activation::GeluTanh => self.each(|g, u| gelu_tanh::<S>(g) * u),
            Activation::ClampedSwish { alpha, limit } => self.each(|g, u| {
                let g = at_most(g, limit);
                let u = -at_most(-at_most(u, limit), limit);
                (u + 1.0) * swish::<S>(g, alpha)
            }),
        }
    }
}

impl Gate<'_> {
    /// Writes `f` of each gate and what goes through it.
    #[inline(always)]
    fn each(&self, f: impl Fn(f32, f32) -> f32) {
        for t in 0..self.gate.count {
            let (gate, up, start) =
                (self.gate.row(t), self.up.row(t), self.start + t * self.stride);
            // SAFETY: nobody else uses these rows, and one is in use at a time.
            #[allow(unsafe_code)] // Columns of one matrix, which the compiler cannot see apart.
            let out = unsafe { self.out.part(start..start + gate.len()) };
            out.iter_mut().zip(gate).zip(up).for_each(|((out, g), u)| *out = f(*g, *u));
        }
    }
}

/// The smaller of the two; NaN of NaN, which `f32::min` would swallow.
#[inline(always)]
fn at_most(x: f32, limit: f32) -> f32 {
    if x > limit { limit } else { x }
}
