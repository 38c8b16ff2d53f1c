//! Gated activation on the CPU: one pass.

use super::Activation;
use crate::parallel;
use crate::simd::math::{gelu_tanh, silu, swish};
use crate::simd::{Level, Simd, Task};
use crate::view::Rows;

/// `gate_up [T, 2I]`, out `[T, I]`.
pub(super) fn gated(gate_up: Rows<'_>, act: Activation, out: &mut [f32]) {
    let level = Level::current();
    // Some 2 elements per nanosecond.
    let nanoseconds = out.len() / 2;
    parallel::for_rows(out, gate_up.len / 2, nanoseconds, |first, out| {
        level.run(Gate { gate_up, first, act, out });
    });
}

/// The rows of gate_up from `first` on, gated into `out`.
struct Gate<'a> {
    gate_up: Rows<'a>,
    first: usize,
    act: Activation,
    out: &'a mut [f32],
}

impl Task for Gate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let half = self.gate_up.len / 2;
        for (t, out) in self.out.chunks_exact_mut(half).enumerate() {
            let (gate, up) = self.gate_up.row(self.first + t).split_at(half);
            let elements = out.iter_mut().zip(gate).zip(up);
            match self.act {
                Activation::Silu => elements.for_each(|((o, g), u)| *o = silu::<S>(*g) * u),
                Activation::GeluTanh => {
                    elements.for_each(|((o, g), u)| *o = gelu_tanh::<S>(*g) * u);
                }
                Activation::ClampedSwish { alpha, limit } => elements.for_each(|((o, g), u)| {
                    let g = at_most(*g, limit);
                    let u = -at_most(-at_most(*u, limit), limit);
                    *o = (u + 1.0) * swish::<S>(g, alpha);
                }),
            }
        }
    }
}

/// The smaller of the two; NaN of NaN, which `f32::min` would swallow.
#[inline(always)]
fn at_most(x: f32, limit: f32) -> f32 {
    if x > limit { limit } else { x }
}
