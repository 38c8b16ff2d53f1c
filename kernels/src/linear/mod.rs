//! Linear: `out[t,n] = sum_k x[t,k] * w[n,k] + bias[n]`, products and sums in f32.
//!
//! x `[T, K]` f32, rows may be strided; w `[N, K]` f32|f16|bf16, or quantised; bias `[N]` f32;
//! out `[T, N]` f32.
//!
//! Where w is bf16 and the processor multiplies bf16 with bf16, x is rounded to bf16, to nearest
//! even: an error of at most 2^-9 of each element.
//!
//! Where w is quantised, in 8 or in 4 bits, `w[n,k] = scale_w * q_w[n,k] + min_w` with integers q_w,
//! and a scale and a minimum for each 32 k of a row ([`Block`]). Then x is quantised too, on every
//! processor: `x[t,k]` becomes `scale_x * q_x[t,k]` with `scale_x` the largest of 32 elements / 127,
//! an error of at most half of `scale_x`. Products of integers are summed exactly:
//! `out[t,n] = sum_blocks scale_w * scale_x * sum_k q_x * q_w + min_w * scale_x * sum_k q_x + bias[n]`.
//! A row of x that is not finite gives NaN.
//!
//! Everywhere else x is taken as it is.
//!
//! The sum over k runs in an order that depends on K alone, so `out[t,n]` has the same bits in
//! every batch.
//!
//! Gated: `gated_linear(x, w)[t,i] = act(linear(x, w)[t,i]) * linear(x, w)[t, N/2 + i]`, to the last
//! bit ([`crate::activation`]).
//!
//! Grouped: the rows of x are in groups, one after the other, and each group has a w of its own.
//! `grouped_linear(x, ends, w, bias)[t,n] = linear(x, w[g], bias[g])[t,n]`, to the last bit, for the
//! rows t of group g: those before `ends[g]` and not before `ends[g-1]`.

mod blocks;
mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod dense;
mod gated;
mod integers;
mod packed;
mod panels;
mod quantized;
#[cfg(test)]
mod quantized_tests;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use half::bf16;

use crate::activation::Activation;
use crate::element::Element;
use crate::view::{self, Floats, Locked, Rows};
use crate::{KernelError, Result};
pub use blocks::{Block, Quantization};
use packed::Packed;
pub(crate) use quantized::Quantized;

/// A weight matrix as [`linear`] wants it, prepared once when the model is loaded.
///
/// bf16 is copied into another order, so that `w` is not needed any more, and so is what is
/// quantised; other dtypes stay as they are and share the memory of `w` where that is contiguous.
#[derive(Clone, Debug)]
pub struct LinearWeight {
    matrix: Matrix,
    out_features: usize,
    in_features: usize,
}

/// `[N, K]`.
#[derive(Clone, Debug)]
pub(crate) enum Matrix {
    /// f32 or f16, contiguous.
    Dense(Tensor),
    /// bf16.
    Packed(Arc<Packed>),
    /// In 8 or in 4 bits.
    Quantized(Arc<Quantized>),
}

impl LinearWeight {
    /// Prepares `w`, `[N, K]` f32|f16|bf16.
    pub fn pack(w: &Tensor) -> Result<Self> {
        let [out_features, in_features] = view::dims(w, "w", ["N", "K"])?;
        view::float_dtype(w, "w")?;
        let w = w.contiguous()?;
        match Locked::new(&w, "w")?.floats()? {
            Floats::Bf16(elements) if !elements.is_empty() => {
                let row = |n: usize| &elements[n * in_features..][..in_features];
                let read = |n: usize, to: &mut [bf16]| to.copy_from_slice(row(n));
                Ok(Self::pack_rows([out_features, in_features], read))
            }
            _ => Ok(Self { matrix: Matrix::Dense(w.clone()), out_features, in_features }),
        }
    }

    /// Prepares w, `[N, K]` bf16 with neither of them 0, of which `read` writes row n: what
    /// [`LinearWeight::pack`] makes of the same rows, without all of them ever being in memory.
    ///
    /// Each row is read once, by any thread, in any order.
    pub fn pack_rows(shape: [usize; 2], read: impl Fn(usize, &mut [bf16]) + Sync) -> Self {
        let [out_features, in_features] = shape;
        assert!(out_features > 0 && in_features > 0, "w has rows and columns, not {shape:?}");
        let matrix = Matrix::Packed(Arc::new(Packed::new(shape, read)));
        Self { matrix, out_features, in_features }
    }

    /// Quantises `w`, `[N, K]` f32|f16|bf16: each number to the nearest that its block can say. A
    /// block with a number that is not finite, or too large for f16 to scale, gives NaN.
    pub fn quantize(w: &Tensor, to: Quantization) -> Result<Self> {
        let shape = view::dims(w, "w", ["N", "K"])?;
        view::float_dtype(w, "w")?;
        let w = w.contiguous()?;
        let w = Locked::new(&w, "w")?;
        match w.floats()? {
            Floats::F32(w) => Self::quantize_elements(shape, to, w),
            Floats::F16(w) => Self::quantize_elements(shape, to, w),
            Floats::Bf16(w) => Self::quantize_elements(shape, to, w),
        }
    }

    fn quantize_elements<E: Element>(shape: [usize; 2], to: Quantization, w: &[E]) -> Result<Self> {
        Self::quantize_rows(shape, to, |n, row| E::widen(&w[n * shape[1]..][..shape[1]], row))
    }

    /// Quantises w, `[N, K]`, of which `read` writes row n: what [`LinearWeight::quantize`] makes of
    /// the same rows, without all of them ever being in memory.
    ///
    /// Each row is read once, by any thread, in any order.
    pub fn quantize_rows(
        shape: [usize; 2],
        to: Quantization,
        read: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Result<Self> {
        Ok(Self::quantized(shape, Quantized::from_rows(shape, to, read)?))
    }

    /// Packs w, `[N, K]`, that is quantised already: `read` writes the K / 32 blocks, rounded up, of
    /// row n.
    ///
    /// Each row is read once, by any thread, in any order.
    pub fn from_blocks(
        shape: [usize; 2],
        quantization: Quantization,
        read: impl Fn(usize, &mut [Block]) + Sync,
    ) -> Result<Self> {
        Ok(Self::quantized(shape, Quantized::from_blocks(shape, quantization, read)?))
    }

    fn quantized([out_features, in_features]: [usize; 2], w: Quantized) -> Self {
        Self { matrix: Matrix::Quantized(Arc::new(w)), out_features, in_features }
    }

    /// `N`: the length of a row of the result.
    pub fn out_features(&self) -> usize {
        self.out_features
    }

    /// `K`: the length of a row of the input.
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    fn check_shape(&self, [out_features, in_features]: [usize; 2]) -> Result<()> {
        if (self.out_features, self.in_features) == (out_features, in_features) {
            return Ok(());
        }
        let expected = format!("{out_features}, {in_features}");
        let found = vec![self.out_features, self.in_features];
        Err(KernelError::Shape { argument: "w", expected, found })
    }

    /// The matrix as [`crate::embedding`] reads it.
    pub(crate) fn matrix(&self) -> &Matrix {
        &self.matrix
    }
}

/// A matrix that stays readable for as long as it is borrowed.
enum Borrowed<'a> {
    Dense(Locked<'a>),
    Packed(&'a Packed),
    Quantized(&'a Quantized),
}

impl<'a> Borrowed<'a> {
    fn new(w: &'a LinearWeight) -> Result<Self> {
        Ok(match &w.matrix {
            Matrix::Dense(w) => Self::Dense(Locked::new(w, "w")?),
            Matrix::Packed(w) => Self::Packed(w),
            Matrix::Quantized(w) => Self::Quantized(w),
        })
    }

    /// The product of `rows` of x with the matrix.
    fn product<'b>(
        &'b self,
        rows: Range<usize>,
        bias: Option<&'b [f32]>,
    ) -> Result<cpu::Product<'b>> {
        let w = match self {
            Self::Dense(w) => cpu::Matrix::Dense(w.floats()?),
            Self::Packed(w) => cpu::Matrix::Packed(w),
            Self::Quantized(w) => cpu::Matrix::Quantized(w),
        };
        Ok(cpu::Product { rows, w, bias })
    }
}

/// `x @ w^T + bias`: x `[T, K]` f32, bias `[N]` f32; gives `[T, N]` f32.
pub fn linear(x: &Tensor, w: &LinearWeight, bias: Option<&Tensor>) -> Result<Tensor> {
    let [tokens, _] = view::dims(x, "x", ["T", "K"])?;
    let out = view::empty(&[tokens, w.out_features])?;
    linear_into(x, w, bias, &out)?;
    Ok(out)
}

/// [`linear`], written to `out` `[T, N]` f32, contiguous.
pub fn linear_into(
    x: &Tensor,
    w: &LinearWeight,
    bias: Option<&Tensor>,
    out: &Tensor,
) -> Result<()> {
    let [tokens, _] = view::dims(x, "x", ["T", "K"])?;
    view::shape(out, "out", &[tokens, w.out_features])?;
    product_into(x, w, bias, out, |x, product, out| cpu::linear(x, product, w.out_features, out))
}

/// `act(gate) * up`, or what `act` puts in its place, of what [`linear`] gives: `gate` is its first
/// half, `[T, N / 2]`, and `up` its second; written to `out` `[T, N / 2]` f32, contiguous.
///
/// The same bits as of [`linear`] and [`crate::activation::gated`].
pub fn gated_linear_into(
    x: &Tensor,
    w: &LinearWeight,
    bias: Option<&Tensor>,
    act: Activation,
    out: &Tensor,
) -> Result<()> {
    let ([tokens, _], half) = (view::dims(x, "x", ["T", "K"])?, w.out_features / 2);
    if !w.out_features.is_multiple_of(2) {
        let (expected, found) = ("2I, K".to_owned(), vec![w.out_features, w.in_features]);
        return Err(KernelError::Shape { argument: "w", expected, found });
    }
    act.check()?;
    view::shape(out, "out", &[tokens, half])?;
    product_into(x, w, bias, out, |x, product, out| gated::gated(x, product, act, half, out))
}

/// Computes `out` of `x` `[T, K]` and the product of all of it with `w`.
fn product_into(
    x: &Tensor,
    w: &LinearWeight,
    bias: Option<&Tensor>,
    out: &Tensor,
    compute: impl FnOnce(Rows<'_>, &cpu::Product<'_>, &mut [f32]),
) -> Result<()> {
    let [tokens, _] = view::dims(x, "x", ["T", "K"])?;
    view::shape(x, "x", &[tokens, w.in_features])?;
    if let Some(bias) = bias {
        view::shape(bias, "bias", &[w.out_features])?;
    }
    let (x, weight) = (Locked::new(x, "x")?, Borrowed::new(w)?);
    let bias = bias.map(|bias| Locked::new(bias, "bias")).transpose()?;
    let bias_elements = bias.as_ref().map(Locked::f32s).transpose()?;
    let (rows, product) = (x.rows()?, weight.product(0..tokens, bias_elements)?);
    let read = [Some(&x), bias.as_ref()];
    view::write(out, "out", &read, |out| compute(rows, &product, out))
}

/// [`linear`] with one weight for each group of rows: x `[T, K]` f32; `ends` `[G]`, the rows of
/// group g end before `ends[g]`; `w` `[G]`, all of one shape; bias `[G, N]` f32; gives `[T, N]` f32.
///
/// The weights of a group without rows are not read.
pub fn grouped_linear(
    x: &Tensor,
    ends: &[u32],
    w: &[LinearWeight],
    bias: Option<&Tensor>,
) -> Result<Tensor> {
    let [tokens, in_features] = view::dims(x, "x", ["T", "K"])?;
    let out_features = w.first().map_or(0, |w| w.out_features);
    for w in w {
        w.check_shape([out_features, in_features])?;
    }
    if let Some(bias) = bias {
        view::shape(bias, "bias", &[w.len(), out_features])?;
    }
    view::len("ends", w.len(), ends.len())?;
    if !ends.is_sorted() || ends.last().map_or(0, |&end| end as usize) != tokens {
        let (argument, rule) = ("ends", format!("a rising list up to {tokens}"));
        return Err(KernelError::Value { argument, rule, found: format!("{ends:?}") });
    }
    match x.device() {
        Device::Cpu => {
            let x = Locked::new(x, "x")?;
            let bias = bias.map(|bias| Locked::new(bias, "bias")).transpose()?;
            let bias = bias.as_ref().map(Locked::f32s).transpose()?;
            let (mut start, mut groups) = (0, Vec::new());
            for (g, &end) in ends.iter().enumerate() {
                let rows = start..end as usize;
                start = rows.end;
                if !rows.is_empty() {
                    groups.push((g, rows, Borrowed::new(&w[g])?));
                }
            }
            let mut products = Vec::with_capacity(groups.len());
            for (g, rows, w) in &groups {
                let bias = bias.map(|bias| &bias[g * out_features..][..out_features]);
                products.push(w.product(rows.clone(), bias)?);
            }
            let mut out = vec![0.0; tokens * out_features];
            cpu::grouped(x.rows()?, &products, out_features, &mut out);
            view::tensor(out, &[tokens, out_features])
        }
        device => Err(KernelError::device("x", device)),
    }
}
