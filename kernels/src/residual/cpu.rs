//! Residual on the CPU: a row goes through all of it while it is in the first-level cache.

use crate::norm::CpuNorm;
use crate::parallel::{self, Disjoint};
use crate::scratch;
use crate::simd::{Level, Simd, Task};

/// What is done to each row.
pub(super) struct Work<'a> {
    pub(super) hidden: usize,
    /// `[T, hidden]`.
    pub(super) y: Option<&'a [f32]>,
    pub(super) post: Option<CpuNorm<'a>>,
    pub(super) scale: Option<f32>,
    pub(super) pre: Option<CpuNorm<'a>>,
}

/// `x [T, hidden]`, and `out` of the same shape.
pub(super) fn residual(work: &Work<'_>, x: &mut [f32], out: Option<&mut [f32]>) {
    let level = Level::current();
    // Some 4 elements per nanosecond.
    let nanoseconds = x.len() / 4;
    let out = out.map(Disjoint::new);
    let out = out.as_ref();
    parallel::for_rows(x, work.hidden, nanoseconds, |first, x| {
        level.run(Rows { work, first, x, out });
    });
}

/// The rows from `first` on.
struct Rows<'a> {
    work: &'a Work<'a>,
    first: usize,
    x: &'a mut [f32],
    /// All rows.
    out: Option<&'a Disjoint<'a, f32>>,
}

impl Task for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let hidden = self.work.hidden;
        for (t, x) in self.x.chunks_exact_mut(hidden).enumerate() {
            let at = (self.first + t) * hidden;
            if let Some(y) = self.work.y {
                self.work.join(s, x, &y[at..][..hidden]);
            }
            if let (Some(pre), Some(out)) = (self.work.pre, self.out) {
                // SAFETY: row t belongs to the one who was given row t of x.
                #[allow(unsafe_code)] // Two outputs are cut alike.
                let out = unsafe { out.part(at..at + hidden) };
                pre.row(s, x, out);
            }
        }
    }
}

impl Work<'_> {
    /// `x += scale * post(y)`.
    #[inline(always)]
    fn join<S: Simd>(&self, s: S, x: &mut [f32], y: &[f32]) {
        match self.post {
            None => self.add(x, y),
            Some(post) => scratch::with_f32s(y.len(), |normed| {
                post.row(s, y, normed);
                self.add(x, normed);
            }),
        }
    }

    #[inline(always)]
    fn add(&self, x: &mut [f32], y: &[f32]) {
        match self.scale {
            None => x.iter_mut().zip(y).for_each(|(x, y)| *x += y),
            Some(scale) => x.iter_mut().zip(y).for_each(|(x, y)| *x += y * scale),
        }
    }
}
