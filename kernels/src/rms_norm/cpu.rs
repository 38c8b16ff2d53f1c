//! RMS norm on the CPU: a row is read for its sum of squares and, from the cache, once more.

use crate::dot::dots;
use crate::parallel;
use crate::simd::{Level, Simd, Task};
use crate::view::Rows;

/// `x [.., hidden]`, `weight [hidden]`; gives x's elements in row-major order.
pub(super) fn rms_norm(x: Rows<'_>, weight: &[f32], eps: f32) -> Vec<f32> {
    let level = Level::current();
    let mut out = vec![0.0; x.count * x.len];
    // Some 4 elements per nanosecond.
    let nanoseconds = out.len() / 4;
    parallel::for_rows(&mut out, x.len, nanoseconds, |first, out| {
        level.run(Norm { x, first, weight, eps, out });
    });
    out
}

/// The rows of x from `first` on, normalised into `out`.
struct Norm<'a> {
    x: Rows<'a>,
    first: usize,
    weight: &'a [f32],
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
                let [[squares]] = dots(s, [row], [row]);
                let scale = 1.0 / (squares / hidden as f32 + self.eps).sqrt();
                for ((out, x), weight) in out.iter_mut().zip(row).zip(self.weight) {
                    *out = x * scale * weight;
                }
            }
        }
    }
}
