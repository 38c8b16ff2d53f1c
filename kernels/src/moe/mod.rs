//! Mixture of experts: each token goes through a few of many feed-forward networks.
//!
//! ```text
//! logits   = linear(x, router)                        [T, E]
//! routes   = route(logits, ..)                        the experts of each token, and their weights
//! grouping = Grouping::new(routes, E)                 one row per token and expert, by expert
//! y        = gather(x, grouping)                      [T * top_k, hidden]
//! y        = experts(y)                               grouped_linear, gated, grouped_linear
//! out      = combine(y, grouping, routes.weights)     [T, hidden], in the tokens' own order
//! ```
//!
//! A token's result does not depend, to the last bit, on who else goes to its experts: its route is
//! that of its own logits, [`crate::linear::grouped_linear`] gives each row the bits it would have
//! alone, and its rows are added up in the order of its route. Only experts that somebody goes to
//! are read.
//!
//! `E` experts; `top_k` of them for each token.

#[cfg(feature = "cuda")]
pub mod cuda;
mod grouping;
mod route;

pub use grouping::{Grouping, combine, gather};
pub use route::{Groups, Order, Routes, Routing, Score, route};

#[cfg(test)]
mod tests {
    use candle_core::{DType, Tensor};

    use super::*;
    use crate::activation::{Activation, gated};
    use crate::linear::{LinearWeight, grouped_linear, linear};
    use crate::simd::at_every_level;
    use crate::testing::{DTYPES, assert_close, bits, random_tensor, strided, values};

    const HIDDEN: usize = 40;
    const INTER: usize = 24;
    const EXPERTS: usize = 6;
    const ROUTING: Routing = Routing {
        top_k: 3,
        score: Score::Softmax,
        order: Order::ScoreThenTopK,
        renormalize: true,
        scale: 1.5,
        groups: None,
    };

    /// The router and the experts of a layer.
    struct Layer {
        router: LinearWeight,
        gate_up: Vec<LinearWeight>,
        down: Vec<LinearWeight>,
        biases: [Tensor; 2],
    }

    impl Layer {
        fn new(dtype: DType) -> Self {
            let weight = |seed, shape: &[usize; 2]| {
                LinearWeight::pack(&random_tensor(seed, shape, dtype)).unwrap()
            };
            let ids = 0..EXPERTS as u64;
            let bias = |seed, len| random_tensor(seed, &[EXPERTS, len], DType::F32);
            Self {
                router: weight(1, &[EXPERTS, HIDDEN]),
                gate_up: ids.clone().map(|e| weight(10 + e, &[2 * INTER, HIDDEN])).collect(),
                down: ids.map(|e| weight(20 + e, &[HIDDEN, INTER])).collect(),
                biases: [bias(2, 2 * INTER), bias(3, HIDDEN)],
            }
        }

        fn routes(&self, x: &Tensor) -> Routes {
            route(&linear(x, &self.router, None).unwrap(), None, &ROUTING).unwrap()
        }

        fn forward(&self, x: &Tensor) -> Tensor {
            let routes = self.routes(x);
            let grouping = Grouping::new(&routes, EXPERTS).unwrap();
            let [up_bias, down_bias] = &self.biases;
            let y = gather(x, &grouping).unwrap();
            let y = grouped_linear(&y, grouping.ends(), &self.gate_up, Some(up_bias)).unwrap();
            let y = gated(&y, Activation::Silu).unwrap();
            let y = grouped_linear(&y, grouping.ends(), &self.down, Some(down_bias)).unwrap();
            combine(&y, &grouping, &routes.weights).unwrap()
        }

        /// Token by token and expert by expert.
        fn plain(&self, x: &Tensor) -> Vec<f32> {
            let mut out = Vec::new();
            for t in 0..x.dims()[0] {
                let x = x.narrow(0, t, 1).unwrap();
                let routes = self.routes(&x);
                let mut sum = [0.0; HIDDEN];
                for (&e, weight) in routes.experts.iter().zip(routes.weights) {
                    let e = e as usize;
                    let [up_bias, down_bias] = self.biases.each_ref().map(|b| b.get(e).unwrap());
                    let y = linear(&x, &self.gate_up[e], Some(&up_bias)).unwrap();
                    let y = gated(&y, Activation::Silu).unwrap();
                    let y = linear(&y, &self.down[e], Some(&down_bias)).unwrap();
                    for (sum, y) in sum.iter_mut().zip(values(&y)) {
                        *sum += weight * y;
                    }
                }
                out.extend(sum);
            }
            out
        }
    }

    #[test]
    fn a_layer_is_each_token_through_its_experts() {
        at_every_level(|| {
            for dtype in DTYPES {
                let layer = Layer::new(dtype);
                for tokens in [0, 1, 2, 7, 33, 100] {
                    let x = random_tensor(4, &[tokens, HIDDEN], DType::F32);
                    let out = layer.forward(&x);
                    assert_eq!(out.dims(), [tokens, HIDDEN]);
                    let case = format!("{tokens} tokens, {dtype:?}");
                    assert_close(&values(&out), &layer.plain(&x), 1e-6, &case);
                }
            }
        });
    }

    #[test]
    fn a_token_has_the_same_bits_whoever_else_goes_to_its_experts() {
        let x = random_tensor(5, &[33, HIDDEN], DType::F32);
        at_every_level(|| {
            for dtype in DTYPES {
                let layer = Layer::new(dtype);
                let all = layer.forward(&x);
                assert_eq!(bits(&layer.forward(&strided(&x))), bits(&all), "strided");
                for tokens in 1..=33 {
                    for start in [0, 33 - tokens] {
                        let part = layer.forward(&x.narrow(0, start, tokens).unwrap());
                        let expected = all.narrow(0, start, tokens).unwrap();
                        assert_eq!(
                            bits(&part),
                            bits(&expected),
                            "{tokens} from {start}, {dtype:?}"
                        );
                    }
                }
            }
        });
    }

    #[test]
    fn a_broken_token_breaks_no_other() {
        let x = random_tensor(6, &[9, HIDDEN], DType::F32);
        let layer = Layer::new(DType::BF16);
        let mut data = values(&x);
        data[4 * HIDDEN + 3] = f32::NAN;
        let broken = Tensor::from_vec(data, x.dims(), x.device()).unwrap();
        at_every_level(|| {
            let (out, expected) = (layer.forward(&broken), layer.forward(&x));
            for t in 0..9 {
                let row = |x: &Tensor| x.narrow(0, t, 1).unwrap();
                if t == 4 {
                    assert!(values(&row(&out)).iter().all(|x| x.is_nan()));
                } else {
                    assert_eq!(bits(&row(&out)), bits(&row(&expected)), "token {t}");
                }
            }
        });
    }
}
