//! Linear: `out[t,n] = sum_k x[t,k] * w[n,k] + bias[n]`, products and sums in f32.
//!
//! x `[T, K]` f32, rows may be strided; w `[N, K]` f32|f16|bf16; bias `[N]` f32;
//! out `[T, N]` f32.
//!
//! The sum over k runs in an order that depends on K alone, so `out[t,n]` has the same bits in
//! every batch.
//!
//! Grouped: the rows of x are in groups, one after the other, and each group has a w of its own.
//! `grouped_linear(x, ends, w, bias)[t,n] = linear(x, w[g], bias[g])[t,n]`, to the last bit, for the
//! rows t of group g: those before `ends[g]` and not before `ends[g-1]`.

mod cpu;
#[cfg(test)]
mod reference;

use candle_core::{Device, Tensor};

use crate::view::{self, Locked};
use crate::{KernelError, Result};

/// A weight matrix as [`linear`] wants it, prepared once when the model is loaded.
///
/// It keeps the elements and the dtype of the matrix, and shares its memory where that is
/// contiguous.
#[derive(Clone, Debug)]
pub struct LinearWeight {
    /// `[N, K]`, contiguous, f32|f16|bf16.
    weight: Tensor,
    out_features: usize,
    in_features: usize,
}

impl LinearWeight {
    /// Prepares `w`, `[N, K]` f32|f16|bf16.
    pub fn pack(w: &Tensor) -> Result<Self> {
        let [out_features, in_features] = view::dims(w, "w", ["N", "K"])?;
        view::float_dtype(w, "w")?;
        Ok(Self { weight: w.contiguous()?, out_features, in_features })
    }

    /// `N`: the length of a row of the result.
    pub fn out_features(&self) -> usize {
        self.out_features
    }

    /// `K`: the length of a row of the input.
    pub fn in_features(&self) -> usize {
        self.in_features
    }
}

/// `x @ w^T + bias`: x `[T, K]` f32, bias `[N]` f32; gives `[T, N]` f32.
pub fn linear(x: &Tensor, w: &LinearWeight, bias: Option<&Tensor>) -> Result<Tensor> {
    let [tokens, _] = view::dims(x, "x", ["T", "K"])?;
    view::shape(x, "x", &[tokens, w.in_features])?;
    if let Some(bias) = bias {
        view::shape(bias, "bias", &[w.out_features])?;
    }
    match x.device() {
        Device::Cpu => {
            let (x, weight) = (Locked::new(x, "x")?, Locked::new(&w.weight, "w")?);
            let bias = bias.map(|bias| Locked::new(bias, "bias")).transpose()?;
            let bias = bias.as_ref().map(Locked::f32s).transpose()?;
            let product = cpu::Product { x: x.rows()?, w: weight.floats()?, bias };
            view::tensor(cpu::linear(&[product], w.out_features), &[tokens, w.out_features])
        }
        device => Err(KernelError::device("x", device)),
    }
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
        view::shape(&w.weight, "w", &[out_features, in_features])?;
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
                    groups.push((g, rows, Locked::new(&w[g].weight, "w")?));
                }
            }
            let mut products = Vec::with_capacity(groups.len());
            for (g, rows, w) in &groups {
                let bias = bias.map(|bias| &bias[g * out_features..][..out_features]);
                let x = x.rows()?.part(rows.clone());
                products.push(cpu::Product { x, w: w.floats()?, bias });
            }
            view::tensor(cpu::linear(&products, out_features), &[tokens, out_features])
        }
        device => Err(KernelError::device("x", device)),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;
    use crate::simd::at_every_level;
    use crate::testing::{
        DTYPES, assert_close, assert_error, bits, random_tensor, strided, values,
    };

    /// Linear of random arguments with these dimensions.
    fn check([tokens, out_features, in_features]: [usize; 3], dtype: DType) {
        let x = random_tensor(1, &[tokens, in_features], DType::F32);
        let w = random_tensor(2, &[out_features, in_features], dtype);
        let bias = random_tensor(3, &[out_features], DType::F32);
        let packed = LinearWeight::pack(&w).unwrap();
        for bias in [None, Some(&bias)] {
            let out = linear(&x, &packed, bias).unwrap();
            assert_eq!(out.dims(), [tokens, out_features]);
            let bias = bias.map_or(Vec::new(), values);
            let expected = reference::linear(&values(&x), &values(&w), &bias, in_features);
            // The weights are widened exactly, so what is left is the rounding of f32 sums.
            let case = format!("{tokens} x {out_features} x {in_features}, {dtype:?}");
            assert_close(&values(&out), &expected, 1e-5, &case);
        }
    }

    #[test]
    fn linear_is_its_formula_in_every_dtype_and_odd_size() {
        at_every_level(|| {
            for dtype in DTYPES {
                for tokens in [1, 2, 3, 7, 33] {
                    for out_features in [1, 7, 33, 257] {
                        for in_features in [1, 7, 16, 33, 257] {
                            check([tokens, out_features, in_features], dtype);
                        }
                    }
                }
            }
        });
    }

    #[test]
    fn linear_is_its_formula_on_several_threads_and_blocks() {
        at_every_level(|| check([5, 1025, 1030], DType::BF16));
        at_every_level(|| check([70, 515, 301], DType::F32));
    }

    #[test]
    fn a_row_has_the_same_bits_in_every_batch() {
        at_every_level(|| {
            for dtype in DTYPES {
                for (out_features, in_features) in [(33, 257), (1030, 520)] {
                    let x = random_tensor(4, &[33, in_features], DType::F32);
                    let w = random_tensor(5, &[out_features, in_features], dtype);
                    let w = LinearWeight::pack(&w).unwrap();
                    let all = linear(&x, &w, None).unwrap();
                    for tokens in 1..=33 {
                        let start = 33 - tokens;
                        let part = linear(&x.narrow(0, start, tokens).unwrap(), &w, None).unwrap();
                        let expected = all.narrow(0, start, tokens).unwrap();
                        assert_eq!(bits(&part), bits(&expected), "{tokens} tokens, {dtype:?}");
                    }
                }
            }
        });
    }

    #[test]
    fn a_column_has_the_same_bits_whatever_the_other_columns_are() {
        let x = random_tensor(6, &[5, 100], DType::F32);
        let w = random_tensor(7, &[61, 100], DType::BF16);
        at_every_level(|| {
            let all = linear(&x, &LinearWeight::pack(&w).unwrap(), None).unwrap();
            for n in 0..61 {
                let alone = LinearWeight::pack(&w.narrow(0, n, 1).unwrap()).unwrap();
                let alone = linear(&x, &alone, None).unwrap();
                assert_eq!(bits(&alone), bits(&all.narrow(1, n, 1).unwrap()), "column {n}");
            }
        });
    }

    /// Groups of these sizes, whose weights and biases are random.
    fn groups(
        sizes: &[u32],
        [n, k]: [usize; 2],
        d: DType,
    ) -> (Vec<u32>, Vec<LinearWeight>, Tensor) {
        let ends = sizes.iter().scan(0, |end, size| {
            *end += size;
            Some(*end)
        });
        let weight = |g| LinearWeight::pack(&random_tensor(10 + g, &[n, k], d)).unwrap();
        let weights = (0..sizes.len() as u64).map(weight).collect();
        (ends.collect(), weights, random_tensor(9, &[sizes.len(), n], DType::F32))
    }

    #[test]
    fn each_group_of_rows_meets_its_own_weight_as_if_it_were_alone() {
        at_every_level(|| {
            for dtype in DTYPES {
                for shape in [[1, 7], [33, 257], [300, 200]] {
                    let sizes = [0, 1, 7, 0, 0, 2, 33, 5, 0];
                    let (ends, weights, bias) = groups(&sizes, shape, dtype);
                    let x = random_tensor(8, &[48, shape[1]], DType::F32);
                    for bias in [None, Some(&bias)] {
                        let out = grouped_linear(&strided(&x), &ends, &weights, bias).unwrap();
                        let mut alone = Vec::new();
                        for (g, &size) in sizes.iter().enumerate() {
                            let first = ends[g] as usize - size as usize;
                            let rows = x.narrow(0, first, size as usize).unwrap();
                            let bias = bias.map(|bias| bias.get(g).unwrap());
                            alone.push(linear(&rows, &weights[g], bias.as_ref()).unwrap());
                        }
                        let alone = Tensor::cat(&alone, 0).unwrap();
                        assert_eq!(bits(&out), bits(&alone), "{shape:?}, {dtype:?}");
                    }
                }
            }
        });
    }

    #[test]
    fn wrong_groups_are_named() {
        let x = random_tensor(1, &[4, 10], DType::F32);
        let (ends, weights, bias) = groups(&[1, 3], [6, 10], DType::F32);
        let check = |x: &Tensor, ends: &[u32], bias: &Tensor, message: &str| {
            assert_error(grouped_linear(x, ends, &weights, Some(bias)), message);
        };
        check(&x, &[4], &bias, "ends: expected 2 entries, found 1");
        check(&x, &[5, 4], &bias, "ends: expected a rising list up to 4, found [5, 4]");
        check(&x, &[1, 3], &bias, "ends: expected a rising list up to 4, found [1, 3]");
        check(&x, &ends, &x, "bias: expected shape [2, 6], found [4, 10]");
        let short = x.narrow(1, 0, 9).unwrap();
        check(&short, &ends, &bias, "w: expected shape [6, 9], found [6, 10]");
        let (_, mixed, _) = groups(&[1], [5, 10], DType::F32);
        let mixed = [weights[0].clone(), mixed[0].clone()];
        assert_error(
            grouped_linear(&x, &ends, &mixed, None),
            "w: expected shape [6, 10], found [5, 10]",
        );
        assert_error(
            grouped_linear(&x, &[], &[], None),
            "ends: expected a rising list up to 4, found []",
        );
        let none = x.narrow(0, 0, 0).unwrap();
        assert_eq!(grouped_linear(&none, &[0, 0], &weights, None).unwrap().dims(), [0, 6]);
    }

    #[test]
    fn rows_may_be_strided_and_weights_transposed() {
        let x = random_tensor(8, &[4, 10], DType::F32);
        let w = random_tensor(9, &[6, 10], DType::F32);
        let transposed = w.t().unwrap().contiguous().unwrap().t().unwrap();
        let expected = linear(&x, &LinearWeight::pack(&w).unwrap(), None).unwrap();
        let out = linear(&strided(&x), &LinearWeight::pack(&transposed).unwrap(), None).unwrap();
        assert_eq!(bits(&out), bits(&expected));
    }

    #[test]
    fn no_tokens_give_no_rows() {
        let w = LinearWeight::pack(&random_tensor(1, &[6, 10], DType::F32)).unwrap();
        let x = Tensor::zeros((0, 10), DType::F32, &Device::Cpu).unwrap();
        assert_eq!(linear(&x, &w, None).unwrap().dims(), [0, 6]);
    }

    #[test]
    fn wrong_arguments_are_named() {
        let w = LinearWeight::pack(&random_tensor(1, &[6, 10], DType::F32)).unwrap();
        let x = |shape: &[usize]| random_tensor(2, shape, DType::F32);
        let bias = |dtype| random_tensor(2, &[6], dtype);
        assert_error(linear(&x(&[10]), &w, None), "x: expected shape [T, K], found [10]");
        assert_error(linear(&x(&[2, 11]), &w, None), "x: expected shape [2, 10], found [2, 11]");
        assert_error(
            linear(&x(&[2, 10]).to_dtype(DType::F16).unwrap(), &w, None),
            "x: expected dtype f32, found F16",
        );
        assert_error(
            linear(&x(&[10, 2]).t().unwrap(), &w, None),
            "x: expected rows that are contiguous, found shape [2, 10] with strides [1, 2]",
        );
        assert_error(
            linear(&x(&[2, 10]), &w, Some(&x(&[7]))),
            "bias: expected shape [6], found [7]",
        );
        assert_error(
            linear(&x(&[2, 10]), &w, Some(&bias(DType::BF16))),
            "bias: expected dtype f32, found BF16",
        );
        assert_error(LinearWeight::pack(&bias(DType::F32)), "w: expected shape [N, K], found [6]");
        assert_error(
            LinearWeight::pack(&x(&[2, 10]).to_dtype(DType::U32).unwrap()),
            "w: expected dtype f32, f16 or bf16, found U32",
        );
    }
}
