//! Layer norm: `out[..,i] = (x[..,i] - mean) / sqrt(var + eps) * weight[i] + bias[i]`, sums in f32,
//! with the mean of the row and its variance `var = mean_i((x[..,i] - mean)^2)`.
//!
//! x `[.., hidden]` f32, strided in its first dimension or not; weight `[hidden]` f32; bias
//! `[hidden]` f32, or none (Cohere); out as x, contiguous.

mod cpu;
#[cfg(test)]
mod reference;

use candle_core::{Device, Tensor};

use crate::view::{self, Locked};
use crate::{KernelError, Result};

/// Normalises each row of `x` `[.., hidden]`, scales it by `weight` `[hidden]` and adds `bias`
/// `[hidden]`, if there is one; gives x's shape.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, eps: f32) -> Result<Tensor> {
    let hidden = view::norm_size(x, weight)?;
    if let Some(bias) = bias {
        view::shape(bias, "bias", &[hidden])?;
    }
    match x.device() {
        Device::Cpu => {
            let shape = x.dims();
            let (x, weight) = (Locked::new(x, "x")?, Locked::new(weight, "weight")?);
            let bias = bias.map(|bias| Locked::new(bias, "bias")).transpose()?;
            let bias = bias.as_ref().map(Locked::f32s).transpose()?;
            view::tensor(cpu::layer_norm(x.rows()?, weight.f32s()?, bias, eps), shape)
        }
        device => Err(KernelError::device("x", device)),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;
    use crate::simd::at_every_level;
    use crate::testing::{assert_close, assert_error, bits, random_tensor, strided, values};

    #[test]
    fn layer_norm_is_its_formula_in_odd_sizes() {
        at_every_level(|| {
            for tokens in [1, 2, 7, 33] {
                for hidden in [1, 7, 16, 33, 257, 4097] {
                    let x = random_tensor(1, &[tokens, hidden], DType::F32);
                    let weight = random_tensor(2, &[hidden], DType::F32);
                    let bias = random_tensor(3, &[hidden], DType::F32);
                    for bias in [None, Some(&bias)] {
                        let out = layer_norm(&x, &weight, bias, 1e-5).unwrap();
                        assert_eq!(out.dims(), x.dims());
                        let bias = bias.map_or(vec![0.0; hidden], values);
                        let expected =
                            reference::layer_norm(&values(&x), &values(&weight), &bias, 1e-5);
                        let case = format!("{tokens} x {hidden}");
                        assert_close(&values(&out), &expected, 3e-6, &case);
                    }
                }
            }
        });
    }

    #[test]
    fn a_mean_far_from_zero_does_not_drown_the_variance() {
        let x = (random_tensor(1, &[3, 257], DType::F32) + 1000.0).unwrap();
        let weight = Tensor::ones(257, DType::F32, &Device::Cpu).unwrap();
        at_every_level(|| {
            let out = layer_norm(&x, &weight, None, 1e-5).unwrap();
            let expected = reference::layer_norm(&values(&x), &values(&weight), &[0.0; 257], 1e-5);
            // The mean is good to a unit in the last place of 1000, 6e-5.
            assert_close(&values(&out), &expected, 3e-4, "around 1000");
        });
    }

    #[test]
    fn a_row_has_the_same_bits_in_every_batch_and_layout() {
        let weight = random_tensor(2, &[40], DType::F32);
        let x = random_tensor(1, &[1000, 3, 40], DType::F32);
        at_every_level(|| {
            let norm = |x: &Tensor| layer_norm(x, &weight, Some(&weight), 1e-5).unwrap();
            let all = norm(&x);
            assert_eq!(bits(&norm(&strided(&x))), bits(&all));
            for (start, len) in [(0, 1), (999, 1), (17, 2), (100, 33)] {
                let part = norm(&x.narrow(0, start, len).unwrap());
                assert_eq!(bits(&part), bits(&all.narrow(0, start, len).unwrap()));
            }
        });
    }

    #[test]
    fn a_row_of_one_value_becomes_zero_and_nan_stays_in_its_row() {
        let x = Tensor::new(&[[4f32, 4.0], [f32::NAN, 1.0], [3.0, 5.0]], &Device::Cpu).unwrap();
        let weight = Tensor::new(&[1f32, 2.0], &Device::Cpu).unwrap();
        let out = values(&layer_norm(&x, &weight, None, 0.0001).unwrap());
        assert_eq!(out[..2], [0.0, 0.0]);
        assert!(out[2].is_nan() && out[3].is_nan());
        assert_close(&out[4..], &[-1.0, 2.0], 1e-4, "the row after");
    }

    #[test]
    fn wrong_arguments_are_named() {
        let x = random_tensor(1, &[2, 6], DType::F32);
        let vector = |len: usize| random_tensor(2, &[len], DType::F32);
        let norm = |weight: &Tensor, bias: Option<&Tensor>| layer_norm(&x, weight, bias, 1e-5);
        assert_error(norm(&vector(5), None), "x: expected shape [.., 5], found [2, 6]");
        assert_error(norm(&x, None), "weight: expected shape [hidden], found [2, 6]");
        assert_error(norm(&vector(6), Some(&vector(5))), "bias: expected shape [6], found [5]");
        assert_error(
            norm(&vector(6).to_dtype(DType::BF16).unwrap(), None),
            "weight: expected dtype f32, found BF16",
        );
        assert_error(
            norm(&vector(6), Some(&vector(6).to_dtype(DType::F16).unwrap())),
            "bias: expected dtype f32, found F16",
        );
        let nothing = Tensor::zeros(0, DType::F32, &Device::Cpu).unwrap();
        assert_error(
            layer_norm(&nothing, &nothing, None, 1e-5),
            "weight: expected shape [hidden > 0], found [0]",
        );
    }
}
