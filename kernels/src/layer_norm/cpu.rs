//! Layer norm on the CPU: a row is read for its sum and, from the cache, for its distances from
//! the mean, which are then squared and scaled where they will stay.

use crate::dot::{dots, sum};
use crate::parallel;
use crate::simd::{Level, Simd, Task};
use crate::view::Rows;

/// `x [.., hidden]`, `weight [hidden]`, `bias [hidden]`; gives x's elements in row-major order.
pub(super) fn layer_norm(x: Rows<'_>, weight: &[f32], bias: Option<&[f32]>, eps: f32) -> Vec<f32> {
    let level = Level::current();
    let mut out = vec![0.0; x.count * x.len];
    // Some 3 elements per nanosecond.
    let nanoseconds = out.len() / 3;
    parallel::for_rows(&mut out, x.len, nanoseconds, |first, out| {
        level.run(Norm { x, first, weight, bias, eps, out });
    });
    out
}

/// The rows of x from `first` on, normalised into `out`.
struct Norm<'a> {
    x: Rows<'a>,
    first: usize,
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
    eps: f32,
    out: &'a mut [f32],
}

impl Task for Norm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let hidden = self.weight.len();
        for (t, out) in self.out.chunks_exact_mut(self.x.len).enumerate() {
            let rows = self.x.row(self.first + t).chunks_exact(hidden);
            for (row, out) in rows.zip(out.chunks_exact_mut(hidden)) {
                let mean = sum(s, row) / hidden as f32;
                for (out, x) in out.iter_mut().zip(row) {
                    *out = x - mean;
                }
                let [[squares]] = dots(s, [&*out], [&*out]);
                let scale = 1.0 / (squares / hidden as f32 + self.eps).sqrt();
                for (out, weight) in out.iter_mut().zip(self.weight) {
                    *out = *out * scale * weight;
                }
                for (out, bias) in out.iter_mut().zip(self.bias.into_iter().flatten()) {
                    *out += bias;
                }
            }
        }
    }
}
