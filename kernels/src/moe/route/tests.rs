//! What is promised of routes: the formula, the routers of Transformers, ties and NaN.

use candle_core::DType;

use super::*;
use crate::simd::at_every_level;
use crate::testing::{assert_close, assert_error, random_tensor, strided, values};

const PLAIN: Routing = Routing {
    top_k: 3,
    score: Score::Softmax,
    order: Order::ScoreThenTopK,
    renormalize: false,
    scale: 1.0,
    groups: None,
};

/// Every score in every order, renormalised or not, from groups or not.
fn all_routings(top_k: usize, groups: Groups) -> Vec<Routing> {
    let mut all = Vec::new();
    for score in [Score::Softmax, Score::Sigmoid] {
        for order in [Order::ScoreThenTopK, Order::TopKThenScore] {
            for (renormalize, scale) in [(false, 1.0), (true, 1.0), (true, 2.5)] {
                for groups in [None, Some(groups)] {
                    all.push(Routing { top_k, score, order, renormalize, scale, groups });
                }
            }
        }
    }
    all
}

#[test]
fn route_is_its_formula_for_every_routing_and_odd_size() {
    at_every_level(|| {
        for (experts, top_k, groups) in [
            (4, 1, Groups { num: 2, keep: 1 }),
            (7, 7, Groups { num: 1, keep: 1 }),
            (33, 5, Groups { num: 3, keep: 1 }),
            (128, 8, Groups { num: 8, keep: 4 }),
        ] {
            for tokens in [0, 1, 7, 33, 130] {
                let logits = random_tensor(1, &[tokens, experts], DType::F32);
                let logits = (logits * 4.0).unwrap();
                let bias = random_tensor(2, &[experts], DType::F32);
                for (routing, bias) in all_routings(top_k, groups)
                    .into_iter()
                    .flat_map(|routing| [(routing, None), (routing, Some(&bias))])
                {
                    check(&logits, bias, &routing);
                }
            }
        }
    });
}

/// Routes of `logits` against the reference, and against themselves with strided rows.
fn check(logits: &Tensor, bias: Option<&Tensor>, routing: &Routing) {
    let routes = route(logits, bias, routing).unwrap();
    let experts = logits.dims()[1];
    let bias_values = bias.map_or(vec![0.0; experts], values);
    let (mut ids, mut weights) = (Vec::new(), Vec::new());
    for row in values(logits).chunks_exact(experts) {
        let (row_ids, row_weights) = reference::route(row, &bias_values, routing);
        ids.extend(row_ids);
        weights.extend(row_weights);
    }
    assert_eq!(routes.experts, ids, "{routing:?}");
    assert_close(&routes.weights, &weights, 2e-6, &format!("{routing:?}"));
    if !ids.is_empty() {
        assert_eq!(route(&strided(logits), bias, routing).unwrap(), routes, "{routing:?}");
    }
}

#[test]
fn routes_are_those_of_transformers() {
    // Both tokens' experts, and their weights, of the named routers with an identity for weight.
    let logits = [
        [0.3f32, -1.2, 2.1, 0.7, -0.4, 1.6, 0.2, -2.5],
        [1.1, 0.9, -0.6, 1.4, 0.5, -1.8, -0.1, 1.0],
    ];
    let bias = [0.0f32, 0.6, -0.3, 0.1, 0.2, -0.5, 0.05, 0.9];
    let (logits, bias) =
        (Tensor::new(&logits, &Device::Cpu).unwrap(), Tensor::new(&bias, &Device::Cpu).unwrap());
    let groups = |num, keep| Some(Groups { num, keep });
    let gpt_oss = Routing { order: Order::TopKThenScore, ..PLAIN };
    let glm = Routing { score: Score::Sigmoid, scale: 2.5, groups: groups(1, 1), ..PLAIN };
    let deepseek = Routing { renormalize: true, groups: groups(4, 2), ..glm };
    let renormalized = Routing { renormalize: true, ..PLAIN };
    let mistral = Routing { scale: 2.5, groups: groups(4, 2), ..renormalized };
    type Token = [(u32, f32); 3];
    let cases: [(&str, Routing, Option<&Tensor>, [Token; 2]); 6] = [
        (
            "mixtral",
            renormalized,
            None,
            [
                [(2, 0.5396282), (5, 0.3273011), (3, 0.1330707)],
                [(3, 0.4147419), (0, 0.3072484), (7, 0.2780098)],
            ],
        ),
        (
            "qwen3_moe",
            PLAIN,
            None,
            [
                [(2, 0.4353476), (5, 0.2640517), (3, 0.1073554)],
                [(3, 0.2615428), (0, 0.1937557), (7, 0.1753174)],
            ],
        ),
        (
            "gpt_oss",
            gpt_oss,
            None,
            [
                [(2, 0.5396282), (5, 0.3273011), (3, 0.1330707)],
                [(3, 0.4147419), (0, 0.3072484), (7, 0.2780098)],
            ],
        ),
        (
            "deepseek_v3",
            deepseek,
            Some(&bias),
            [
                [(1, 0.6751168), (6, 1.6036365), (7, 0.2212467)],
                [(0, 0.8555752), (1, 0.8107465), (7, 0.8336783)],
            ],
        ),
        (
            "glm4_moe",
            glm,
            Some(&bias),
            [
                [(1, 0.578688), (3, 1.6704693), (7, 0.1896454)],
                [(1, 1.7773737), (3, 2.0054598), (7, 1.8276465)],
            ],
        ),
        (
            "mistral4",
            mistral,
            None,
            [
                [(2, 1.3490705), (3, 0.3326768), (5, 0.8182527)],
                [(0, 0.788_994_55), (1, 0.6459742), (3, 1.0650313)],
            ],
        ),
    ];
    for (name, routing, bias, expected) in cases {
        let routes = route(&logits, bias, &routing).unwrap();
        for (t, mut expected) in expected.into_iter().enumerate() {
            let part = t * 3..t * 3 + 3;
            let ids = routes.experts[part.clone()].iter().copied();
            let mut found: Vec<_> = ids.zip(routes.weights[part].iter().copied()).collect();
            // Some of the routers leave the order open.
            found.sort_by_key(|&(id, _)| id);
            expected.sort_by_key(|&(id, _)| id);
            let (ids, weights): (Vec<u32>, Vec<f32>) = found.into_iter().unzip();
            let (expected_ids, expected): (Vec<u32>, Vec<f32>) = expected.into_iter().unzip();
            assert_eq!(ids, expected_ids, "{name}, token {t}");
            assert_close(&weights, &expected, 1e-6, name);
        }
    }
}

#[test]
fn of_equal_experts_the_smallest_is_chosen() {
    let logits = Tensor::new(&[[1f32, 3.0, 3.0, 1.0, 3.0, 3.0, 1.0, 1.0]], &Device::Cpu).unwrap();
    let chosen = |routing| route(&logits, None, &routing).unwrap().experts;
    assert_eq!(chosen(PLAIN), [1, 2, 4]);
    assert_eq!(chosen(Routing { top_k: 6, ..PLAIN }), [1, 2, 4, 5, 0, 3]);
    // The third group is worth most, and the first two the same.
    let groups = Some(Groups { num: 4, keep: 2 });
    assert_eq!(chosen(Routing { top_k: 4, groups, ..PLAIN }), [1, 4, 5, 0]);
}

#[test]
fn a_bias_chooses_and_does_not_weigh() {
    let logits = Tensor::new(&[[1f32, 2.0, 3.0]], &Device::Cpu).unwrap();
    let bias = Tensor::new(&[9f32, 0.0, 0.0], &Device::Cpu).unwrap();
    let routing = Routing { top_k: 1, score: Score::Sigmoid, ..PLAIN };
    let routes = route(&logits, Some(&bias), &routing).unwrap();
    assert_eq!(routes.experts, [0]);
    assert_close(&routes.weights, &[0.731_058_6], 1e-6, "sigmoid(1)");
}

#[test]
fn a_token_with_nan_has_weights_that_are_nan_and_the_others_do_not() {
    let nan = f32::NAN;
    let logits = [
        [1f32, 2.0, nan, 3.0, 0.0, 0.5, 1.5, 2.5],
        [1.0, 2.0, 0.2, 3.0, 0.0, 0.5, 1.5, 2.5],
        [nan; 8],
        [f32::INFINITY, 1.0, -nan, f32::NEG_INFINITY, 1.0, 0.0, 2.0, 3.0],
    ];
    let logits = Tensor::new(&logits, &Device::Cpu).unwrap();
    at_every_level(|| {
        for routing in all_routings(3, Groups { num: 4, keep: 2 }) {
            let routes = route(&logits, None, &routing).unwrap();
            for (t, weights) in routes.weights.chunks(3).enumerate() {
                let has_nan = weights.iter().any(|weight| weight.is_nan());
                assert_eq!(has_nan, t != 1, "token {t}: {weights:?}, {routing:?}");
            }
            assert!(routes.experts.iter().all(|&expert| expert < 8), "{routing:?}");
        }
    });
}

#[test]
fn weights_stay_finite_where_all_scores_vanish() {
    let logits = Tensor::new(&[[-200f32, -300.0, -250.0, -220.0]], &Device::Cpu).unwrap();
    let sigmoid = Routing { score: Score::Sigmoid, renormalize: true, ..PLAIN };
    let routes = route(&logits, None, &sigmoid).unwrap();
    assert_eq!(routes.weights, [0.0, 0.0, 0.0]);
}

#[test]
fn wrong_arguments_are_named() {
    let logits = random_tensor(1, &[2, 8], DType::F32);
    let check = |routing: Routing, message: &str| {
        assert_error(route(&logits, None, &routing), message);
    };
    check(Routing { top_k: 0, ..PLAIN }, "top_k: expected 1 to the 8 experts, found 0");
    check(Routing { top_k: 9, ..PLAIN }, "top_k: expected 1 to the 8 experts, found 9");
    for num in [0, 3, 8] {
        check(
            Routing { groups: Some(Groups { num, keep: 1 }), ..PLAIN },
            &format!("groups.num: expected equal parts, of 2 or more, of 8 experts, found {num}"),
        );
    }
    for keep in [0, 1, 5] {
        check(
            Routing { groups: Some(Groups { num: 4, keep }), ..PLAIN },
            &format!(
                "groups.keep: expected up to 4 groups of 2 with top_k (3) experts, found {keep}"
            ),
        );
    }
    let bias = random_tensor(1, &[7], DType::F32);
    assert_error(route(&logits, Some(&bias), &PLAIN), "select_bias: expected shape [8], found [7]");
    assert_error(
        route(&logits.to_dtype(DType::F16).unwrap(), None, &PLAIN),
        "logits: expected dtype f32, found F16",
    );
    assert_error(route(&bias, None, &PLAIN), "logits: expected shape [T, E], found [7]");
}
