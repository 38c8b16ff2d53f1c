//! Gated activation: `out[t,i] = act(gate_up[t,i]) * gate_up[t, I+i]`.
//!
//! `silu(x) = x / (1 + exp(-x))`;
//! `gelu_tanh(x) = x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3)))`.
//!
//! The clamped unit of gpt-oss bounds the gate from above and the other half on both sides:
//! `out = (clamp(up, -limit, limit) + 1) * g / (1 + exp(-alpha * g))` with `g = min(gate, limit)`.
//!
//! gate_up `[T, 2I]` f32 (gate first), rows may be strided; out `[T, I]` f32.

pub(crate) mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(test)]
mod reference;

use candle_core::Tensor;

use crate::view::{self, Locked};
use crate::{KernelError, Result};

/// The function that the gate goes through.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// `x * sigmoid(x)`, also called swish.
    Silu,
    /// The Gaussian error linear unit in its tanh approximation.
    GeluTanh,
    /// `x * sigmoid(alpha * x)` of what is at most `limit`; the other half is clamped to `limit` on
    /// both sides, and one more than that is multiplied with.
    ClampedSwish {
        /// The steepness of the sigmoid; gpt-oss has 1.702.
        alpha: f32,
        /// The bound; above 0, gpt-oss has 7.
        limit: f32,
    },
}

impl Activation {
    pub(crate) fn check(self) -> Result<()> {
        match self {
            Self::ClampedSwish { limit, .. } if limit.is_nan() || limit <= 0.0 => {
                let (argument, rule) = ("limit", "above 0".to_owned());
                Err(KernelError::Value { argument, rule, found: limit.to_string() })
            }
            _ => Ok(()),
        }
    }
}

/// `act(gate) * up`, or what `act` puts in its place, of `gate_up` `[T, 2I]` f32, gate first; gives
/// `[T, I]` f32.
pub fn gated(gate_up: &Tensor, act: Activation) -> Result<Tensor> {
    let [tokens, both] = view::dims(gate_up, "gate_up", ["T", "2I"])?;
    if both % 2 != 0 {
        let (expected, found) = ("T, 2I".to_owned(), gate_up.dims().to_vec());
        return Err(KernelError::Shape { argument: "gate_up", expected, found });
    }
    act.check()?;
    let gate_up = Locked::new(gate_up, "gate_up")?;
    let mut out = vec![0.0; tokens * both / 2];
    cpu::gated(gate_up.rows()?, act, &mut out);
    view::tensor(out, &[tokens, both / 2])
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::simd::at_every_level;
    use crate::testing::{assert_close, assert_error, bits, random_tensor, strided, values};

    pub(super) const ALL: [Activation; 3] = [
        Activation::Silu,
        Activation::GeluTanh,
        Activation::ClampedSwish { alpha: 1.702, limit: 7.0 },
    ];

    #[test]
    fn gated_is_its_formula_in_odd_sizes() {
        at_every_level(|| {
            for act in ALL {
                for tokens in [1, 7, 33] {
                    for half in [1, 7, 16, 33, 257] {
                        let x = random_tensor(1, &[tokens, 2 * half], DType::F32);
                        let x = (x * 12.0).unwrap();
                        let out = gated(&x, act).unwrap();
                        assert_eq!(out.dims(), [tokens, half]);
                        let expected = reference::gated(&values(&x), half, act);
                        let case = format!("{act:?}, {tokens} x {half}");
                        assert_close(&values(&out), &expected, 2e-6, &case);
                    }
                }
            }
        });
    }

    #[test]
    fn far_from_zero_the_gate_is_open_or_shut_and_nan_stays() {
        let x = [1e4f32, -1e4, 1e30, -1e30, f32::NAN];
        let gate_up = Tensor::new([x, [1.0; 5]].concat(), &Device::Cpu).unwrap();
        let gate_up = gate_up.reshape((1, 10)).unwrap();
        at_every_level(|| {
            for act in ALL {
                let out = values(&gated(&gate_up, act).unwrap());
                let (open, tolerance) = match act {
                    Activation::ClampedSwish { .. } => ([14.0, 0.0, 14.0, 0.0], 1e-5),
                    _ => ([1e4, 0.0, 1e30, 0.0], 0.0),
                };
                assert_close(&out[..4], &open, tolerance, &format!("{act:?}"));
                assert!(out[4].is_nan(), "{act:?}");
            }
        });
    }

    #[test]
    fn a_clamped_gate_is_that_of_gpt_oss() {
        // From `GptOssExperts._apply_gate` of Transformers: gates, then ups.
        let gate_up = [0.5f32, -2.0, 9.0, -30.0, 6.9, 0.3, -9.0, 8.0, f32::NAN, -1.0];
        let gate_up = Tensor::new(&gate_up, &Device::Cpu).unwrap().reshape((1, 10)).unwrap();
        at_every_level(|| {
            let out = values(&gated(&gate_up, ALL[2]).unwrap());
            assert_close(&out[..3], &[0.455_504_95, 0.386_048_26, 55.999_626], 2e-6, "clamped");
            assert!(out[3].is_nan(), "a NaN is not clamped away");
            assert_eq!(out[4], 0.0, "one more than -1");
        });
    }

    #[test]
    fn a_row_has_the_same_bits_in_every_batch_and_layout() {
        let x = random_tensor(1, &[1000, 94], DType::F32);
        at_every_level(|| {
            for act in ALL {
                let all = gated(&x, act).unwrap();
                assert_eq!(bits(&gated(&strided(&x), act).unwrap()), bits(&all));
                for (start, len) in [(0, 1), (999, 1), (17, 2), (100, 33)] {
                    let part = gated(&x.narrow(0, start, len).unwrap(), act).unwrap();
                    assert_eq!(bits(&part), bits(&all.narrow(0, start, len).unwrap()));
                }
            }
        });
    }

    #[test]
    fn wrong_arguments_are_named() {
        let x = random_tensor(1, &[2, 7], DType::F32);
        for limit in [0.0, f32::NAN] {
            assert_error(
                gated(&x.narrow(1, 0, 6).unwrap(), Activation::ClampedSwish { alpha: 1.0, limit }),
                &format!("limit: expected above 0, found {limit}"),
            );
        }
        assert_error(gated(&x, Activation::Silu), "gate_up: expected shape [T, 2I], found [2, 7]");
        assert_error(
            gated(&x.flatten_all().unwrap(), Activation::Silu),
            "gate_up: expected shape [T, 2I], found [14]",
        );
        assert_error(
            gated(&x.narrow(1, 0, 6).unwrap().to_dtype(DType::F16).unwrap(), Activation::Silu),
            "gate_up: expected dtype f32, found F16",
        );
    }
}
