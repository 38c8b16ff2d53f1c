//! Routes are those of the CPU.

use candle_core::{Device, Tensor};

use super::*;
use crate::moe::Groups;

/// Experts and weights on both, which must be the same.
fn check_route(gpu: &Gpu, logits: &Tensor, bias: Option<&Tensor>, routing: &Routing) {
    let [tokens, num_experts] = logits.dims().try_into().unwrap();
    let shape = Shape { tokens, top_k: routing.top_k, num_experts };
    let expected = moe::route(logits, bias, routing).unwrap();
    let [experts, weights] = [DType::U32, DType::F32].map(|d| array(gpu, d, shape.choices()));
    // A bias of the router's that is taken off the logits first.
    let offset = random_tensor(7, &[num_experts], DType::F32);
    let offset = (offset * 16.0).unwrap().round().unwrap();
    for logits_bias in [None, Some(&offset)] {
        let logits = match logits_bias {
            Some(bias) => logits.broadcast_sub(bias).unwrap(),
            None => logits.clone(),
        };
        let [logits_bias, select_bias] =
            [logits_bias, bias].map(|bias| bias.map(|bias| gpu.upload(&values(bias)).unwrap()));
        let router = Router {
            routing,
            logits_bias: logits_bias.as_ref(),
            select_bias: select_bias.as_ref(),
        };
        let logits = gpu.upload(&values(&logits)).unwrap();
        route(gpu, shape, &logits, &router, [&experts, &weights]).unwrap();
        let case = format!("{tokens} tokens, {num_experts} experts, {routing:?}");
        let found = gpu.download::<f32>(&weights).unwrap();
        if logits_bias.is_none() {
            assert_eq!(gpu.download::<u32>(&experts).unwrap(), expected.experts, "{case}");
            assert_close(&found, &expected.weights, 1e-6, &case);
        } else {
            // The sum of both is rounded.
            assert_close(&found, &expected.weights, 1e-4, &case);
        }
    }
}

#[test]
fn routes_are_those_of_the_cpu() {
    let Some(gpu) = gpu() else { return };
    for (experts, top_k, groups) in [
        (4, 1, Groups { num: 2, keep: 1 }),
        (7, 7, Groups { num: 1, keep: 1 }),
        (33, 5, Groups { num: 3, keep: 1 }),
        (128, 8, Groups { num: 8, keep: 4 }),
        (1024, 32, Groups { num: 512, keep: 40 }),
    ] {
        let bias = random_tensor(2, &[experts], DType::F32);
        for tokens in [0, 1, 7, 33] {
            let logits = (random_tensor(1, &[tokens, experts], DType::F32) * 4.0).unwrap();
            for score in [Score::Softmax, Score::Sigmoid] {
                for order in [Order::ScoreThenTopK, Order::TopKThenScore] {
                    for (renormalize, scale) in [(false, 1.0), (true, 2.5)] {
                        for groups in [None, Some(groups)] {
                            let routing =
                                Routing { top_k, score, order, renormalize, scale, groups };
                            check_route(&gpu, &logits, None, &routing);
                            check_route(&gpu, &logits, Some(&bias), &routing);
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn ties_infinities_and_nan_are_chosen_as_on_the_cpu() {
    let Some(gpu) = gpu() else { return };
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    let rows = [
        [1.0, 3.0, 3.0, 1.0, 3.0, 3.0, 1.0, 1.0],
        [0.0, -0.0, 0.0, -0.0, -0.0, 0.0, -0.0, 0.0],
        [1.0, 2.0, nan, 3.0, 0.0, 0.5, 1.5, 2.5],
        [nan; 8],
        [inf, 1.0, -nan, -inf, 1.0, 0.0, 2.0, 3.0],
        [-inf, -inf, 1.0, -inf, -inf, -inf, -inf, -inf],
        [-200.0, -300.0, -250.0, -220.0, -210.0, -201.0, -202.0, -203.0],
    ];
    let logits = Tensor::new(&rows, &Device::Cpu).unwrap();
    let shape = Shape { tokens: rows.len(), top_k: 3, num_experts: 8 };
    let [experts, weights] = [DType::U32, DType::F32].map(|d| array(&gpu, d, shape.choices()));
    let on_gpu = gpu.upload(&values(&logits)).unwrap();
    for groups in [None, Some(Groups { num: 4, keep: 2 })] {
        for score in [Score::Softmax, Score::Sigmoid] {
            for order in [Order::ScoreThenTopK, Order::TopKThenScore] {
                let routing = Routing { score, order, groups, renormalize: true, ..PLAIN };
                let router = Router { routing: &routing, logits_bias: None, select_bias: None };
                route(&gpu, shape, &on_gpu, &router, [&experts, &weights]).unwrap();
                let expected = moe::route(&logits, None, &routing).unwrap();
                assert_eq!(gpu.download::<u32>(&experts).unwrap(), expected.experts, "{routing:?}");
                let found = gpu.download::<f32>(&weights).unwrap();
                for (i, (found, expected)) in found.iter().zip(&expected.weights).enumerate() {
                    let same =
                        found.is_nan() && expected.is_nan() || (found - expected).abs() <= 1e-6;
                    assert!(same, "{routing:?}, weight {i}: {found}, expected {expected}");
                }
            }
        }
    }
}
