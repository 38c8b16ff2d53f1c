//! RMS norm on the CPU, row by row ([`norm::rms`]).

use crate::simd::{Level, Simd, Task};
use crate::view::Rows;
use crate::{norm, parallel};

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
                norm::rms(s, row, (self.weight, self.eps), out);
            }
        }
    }
}
