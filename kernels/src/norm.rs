//! One row through a norm: what [`crate::rms_norm`], [`crate::layer_norm`] and the operations that
//! normalise on their way ([`crate::residual`], [`crate::heads`]) have in common.

use candle_core::Tensor;

use crate::dot::{dots, sum};
use crate::simd::{Level, Simd, Task};
use crate::view::{self, Locked};
use crate::{KernelError, Result};

/// A norm with a weight and no bias.
#[derive(Clone, Copy, Debug)]
pub struct Norm<'a> {
    /// What it divides by.
    pub kind: NormKind,
    /// Added to the mean square, or to the variance.
    pub eps: f32,
    /// `[hidden]` f32, contiguous.
    pub weight: &'a Tensor,
}

/// What a norm divides by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum NormKind {
    /// See [`crate::rms_norm`].
    Rms,
    /// See [`crate::layer_norm`].
    Layer,
}

/// [`Norm`] with a weight that is borrowed for as long as it is read.
pub(crate) struct LockedNorm<'a> {
    kind: NormKind,
    eps: f32,
    weight: Locked<'a>,
}

/// [`Norm`] on the CPU.
#[derive(Clone, Copy)]
pub(crate) struct CpuNorm<'a> {
    pub(crate) kind: NormKind,
    pub(crate) eps: f32,
    pub(crate) weight: &'a [f32],
}

impl<'a> Norm<'a> {
    /// Checks that this is the norm of rows of `len` elements, not 0.
    pub(crate) fn lock(&self, len: usize) -> Result<LockedNorm<'a>> {
        view::shape(self.weight, "weight", &[len])?;
        if len == 0 {
            let expected = "hidden > 0".to_owned();
            return Err(KernelError::Shape { argument: "weight", expected, found: vec![0] });
        }
        let weight = Locked::new(self.weight, "weight")?;
        Ok(LockedNorm { kind: self.kind, eps: self.eps, weight })
    }
}

impl LockedNorm<'_> {
    pub(crate) fn get(&self) -> Result<CpuNorm<'_>> {
        Ok(CpuNorm { kind: self.kind, eps: self.eps, weight: self.weight.f32s()? })
    }
}

impl CpuNorm<'_> {
    /// Normalises `x` into `out`, both as long as the weight.
    #[inline(always)]
    pub(crate) fn row<S: Simd>(&self, s: S, x: &[f32], out: &mut [f32]) {
        match self.kind {
            NormKind::Rms => rms(s, x, (self.weight, self.eps), out),
            NormKind::Layer => layer(s, x, (self.weight, self.eps), out),
        }
    }

    /// Normalises `x`, as long as the weight.
    #[inline(always)]
    pub(crate) fn in_place<S: Simd>(&self, s: S, x: &mut [f32]) {
        match self.kind {
            NormKind::Rms => {
                let scale = rms_scale(s, x, self.eps);
                for (x, weight) in x.iter_mut().zip(self.weight) {
                    *x = *x * scale * weight;
                }
            }
            NormKind::Layer => {
                let mean = sum(s, x) / x.len() as f32;
                x.iter_mut().for_each(|x| *x -= mean);
                scale_distances(s, x, (self.weight, self.eps));
            }
        }
    }
}

/// The norm of some rows of `x` `[T, hidden]` f32: row i of `out` `[R, hidden]` f32 is that of row
/// `rows[i]`. Both contiguous.
pub fn norm_rows(x: &Tensor, rows: &[u32], norm: &Norm<'_>, out: &Tensor) -> Result<()> {
    struct Rows<'a> {
        x: &'a [f32],
        rows: &'a [u32],
        norm: CpuNorm<'a>,
        out: &'a mut [f32],
    }
    impl Task for Rows<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            let hidden = self.norm.weight.len();
            for (&row, out) in self.rows.iter().zip(self.out.chunks_exact_mut(hidden)) {
                self.norm.row(s, &self.x[row as usize * hidden..][..hidden], out);
            }
        }
    }
    let [tokens, hidden] = view::dims(x, "x", ["T", "hidden"])?;
    view::indices("rows", rows, tokens)?;
    view::shape(out, "out", &[rows.len(), hidden])?;
    let norm = norm.lock(hidden)?;
    let (x, norm) = (Locked::new(x, "x")?, norm.get()?);
    let elements = x.f32s()?;
    view::write(out, "out", &[Some(&x)], |out| {
        Level::current().run(Rows { x: elements, rows, norm, out });
    })
}

/// RMS norm of one row. It is read for its sum of squares and, from the cache, once more.
#[inline(always)]
pub(crate) fn rms<S: Simd>(s: S, x: &[f32], (weight, eps): (&[f32], f32), out: &mut [f32]) {
    let scale = rms_scale(s, x, eps);
    for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
        *out = x * scale * weight;
    }
}

#[inline(always)]
fn rms_scale<S: Simd>(s: S, x: &[f32], eps: f32) -> f32 {
    let [[squares]] = dots(s, [x], [x]);
    1.0 / (squares / x.len() as f32 + eps).sqrt()
}

/// Layer norm of one row, without a bias. It is read for its sum and, from the cache, for its
/// distances from the mean, which are then squared and scaled where they will stay.
#[inline(always)]
pub(crate) fn layer<S: Simd>(s: S, x: &[f32], (weight, eps): (&[f32], f32), out: &mut [f32]) {
    let mean = sum(s, x) / x.len() as f32;
    for (out, x) in out.iter_mut().zip(x) {
        *out = x - mean;
    }
    scale_distances(s, out, (weight, eps));
}

#[inline(always)]
fn scale_distances<S: Simd>(s: S, x: &mut [f32], (weight, eps): (&[f32], f32)) {
    let [[squares]] = dots(s, [&*x], [&*x]);
    let scale = 1.0 / (squares / x.len() as f32 + eps).sqrt();
    for (x, weight) in x.iter_mut().zip(weight) {
        *x = *x * scale * weight;
    }
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;
    use crate::layer_norm::layer_norm;
    use crate::rms_norm::rms_norm;
    use crate::testing::{assert_error, bits, random_tensor};

    #[test]
    fn chosen_rows_are_normalised_as_all_are() {
        let x = random_tensor(1, &[9, 33], DType::F32);
        let weight = random_tensor(2, &[33], DType::F32);
        let rows = [8, 0, 3, 3];
        for kind in [NormKind::Rms, NormKind::Layer] {
            let all = match kind {
                NormKind::Rms => rms_norm(&x, &weight, 1e-5),
                NormKind::Layer => layer_norm(&x, &weight, None, 1e-5),
            };
            let index = Tensor::new(&rows, x.device()).unwrap();
            let expected = all.unwrap().index_select(&index, 0).unwrap();
            let out = expected.zeros_like().unwrap();
            let norm = Norm { kind, eps: 1e-5, weight: &weight };
            norm_rows(&x, &rows, &norm, &out).unwrap();
            assert_eq!(bits(&out), bits(&expected));
            let out = out.narrow(0, 0, 1).unwrap();
            assert_error(
                norm_rows(&x, &[9], &norm, &out),
                "rows[0]: expected an index below 9, found 9",
            );
        }
    }
}
