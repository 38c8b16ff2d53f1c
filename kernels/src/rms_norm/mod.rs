//! RMS norm: `out[..,i] = x[..,i] * weight[i] / sqrt(mean_i(x[..,i]^2) + eps)`, sums in f32.
//!
//! x `[.., hidden]` f32, strided in its first dimension or not; weight `[hidden]` f32;
//! out as x, contiguous. With x `[T, H, D]` and weight `[D]` this is the per-head norm of queries
//! and keys.

mod cpu;
#[cfg(test)]
mod reference;

use candle_core::{Device, Tensor};

use crate::view::{self, Locked};
use crate::{KernelError, Result};

/// Normalises each row of `x` `[.., hidden]` and scales it by `weight` `[hidden]`; gives x's shape.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    view::norm_size(x, weight)?;
    match x.device() {
        Device::Cpu => {
            let shape = x.dims();
            let (x, weight) = (Locked::new(x, "x")?, Locked::new(weight, "weight")?);
            view::tensor(cpu::rms_norm(x.rows()?, weight.f32s()?, eps), shape)
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
    fn rms_norm_is_its_formula_in_odd_sizes() {
        at_every_level(|| {
            for tokens in [1, 2, 7, 33] {
                for hidden in [1, 7, 16, 33, 257, 4097] {
                    let x = random_tensor(1, &[tokens, hidden], DType::F32);
                    let weight = random_tensor(2, &[hidden], DType::F32);
                    let out = rms_norm(&x, &weight, 1e-5).unwrap();
                    assert_eq!(out.dims(), x.dims());
                    let expected = reference::rms_norm(&values(&x), &values(&weight), 1e-5);
                    assert_close(&values(&out), &expected, 2e-6, &format!("{tokens} x {hidden}"));
                }
            }
        });
    }

    #[test]
    fn a_row_has_the_same_bits_in_every_batch_and_layout() {
        let weight = random_tensor(2, &[40], DType::F32);
        let x = random_tensor(1, &[1000, 3, 40], DType::F32);
        at_every_level(|| {
            let all = rms_norm(&x, &weight, 1e-5).unwrap();
            assert_eq!(bits(&rms_norm(&strided(&x), &weight, 1e-5).unwrap()), bits(&all));
            for (start, len) in [(0, 1), (999, 1), (17, 2), (100, 33)] {
                let part = rms_norm(&x.narrow(0, start, len).unwrap(), &weight, 1e-5).unwrap();
                assert_eq!(bits(&part), bits(&all.narrow(0, start, len).unwrap()));
            }
        });
    }

    #[test]
    fn a_row_of_zeros_stays_zero_and_nan_stays_in_its_row() {
        let x = Tensor::new(&[[0f32, 0.0], [f32::NAN, 1.0], [3.0, 3.0]], &Device::Cpu).unwrap();
        let weight = Tensor::new(&[1f32, 2.0], &Device::Cpu).unwrap();
        let out = values(&rms_norm(&x, &weight, 0.0001).unwrap());
        assert_eq!(out[..2], [0.0, 0.0]);
        assert!(out[2].is_nan() && out[3].is_nan());
        assert_close(&out[4..], &[1.0, 2.0], 1e-4, "the row after");
    }

    #[test]
    fn wrong_arguments_are_named() {
        let x = random_tensor(1, &[2, 6], DType::F32);
        let weight = |len: usize| random_tensor(2, &[len], DType::F32);
        assert_error(rms_norm(&x, &weight(5), 1e-5), "x: expected shape [.., 5], found [2, 6]");
        assert_error(rms_norm(&x, &x, 1e-5), "weight: expected shape [hidden], found [2, 6]");
        assert_error(
            rms_norm(&x, &weight(6).to_dtype(DType::BF16).unwrap(), 1e-5),
            "weight: expected dtype f32, found BF16",
        );
        assert_error(
            rms_norm(&x.t().unwrap(), &weight(2), 1e-5),
            "x: expected rows that are contiguous, found shape [6, 2] with strides [1, 6]",
        );
        let nothing = Tensor::zeros(0, DType::F32, &Device::Cpu).unwrap();
        assert_error(
            rms_norm(&nothing, &nothing, 1e-5),
            "weight: expected shape [hidden > 0], found [0]",
        );
    }
}
