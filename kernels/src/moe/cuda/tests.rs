//! What is promised of experts on the GPU: the routes, rows and results of the CPU, for any shape.

mod routes;
mod rows;

use candle_core::{DType, Device, Tensor};

use super::*;
use crate::activation::{Activation, gated};
use crate::add::add;
use crate::cuda::testing::{download, gpu, upload};
use crate::cuda::{Array, Gpu};
use crate::linear::cuda::{Linear, Weight};
use crate::linear::{LinearWeight, grouped_linear};
use crate::moe::{self, Order, Routing, Score};
use crate::testing::{DTYPES, assert_close, assert_error, random, random_tensor, values};

const PLAIN: Routing = Routing {
    top_k: 3,
    score: Score::Softmax,
    order: Order::ScoreThenTopK,
    renormalize: false,
    scale: 1.0,
    groups: None,
};
/// A token that is padding.
const PAD: u32 = u32::MAX;

fn array(gpu: &Gpu, dtype: DType, len: usize) -> Array {
    gpu.zeros(dtype, len).unwrap()
}

/// The grouping of `experts`, as the device has made it.
fn grouping(gpu: &Gpu, shape: Shape, experts: &[u32], padding: Option<&[u32]>) -> Grouping {
    // What is not written shows.
    let memory = gpu.upload(&vec![0xabcd_u32; shape.words()]).unwrap();
    let grouping = Grouping::new(&memory, shape).unwrap();
    let padding = padding.map(|padding| gpu.upload(padding).unwrap());
    grouping.fill(gpu, &gpu.upload(experts).unwrap(), padding.as_ref()).unwrap();
    grouping
}

/// `top_k` different experts for each token, some more often than others.
fn choices(shape: Shape) -> Vec<u32> {
    let logits = random_tensor(9, &[shape.tokens, shape.num_experts], DType::F32);
    let skew = random_tensor(10, &[1, shape.num_experts], DType::F32);
    let logits = logits.broadcast_add(&skew).unwrap();
    moe::route(&logits, None, &Routing { top_k: shape.top_k, ..PLAIN }).unwrap().experts
}

/// Experts of random numbers, on the host as well.
fn random_experts(
    gpu: &Gpu,
    [num_experts, n, k]: [usize; 3],
    dtype: DType,
    with_bias: bool,
) -> (Experts, Vec<f32>, Vec<f32>) {
    let w = values(&random_tensor(3, &[num_experts, n, k], dtype));
    let bias = random(4, num_experts * n);
    let experts = Experts {
        elements: upload(gpu, &w, dtype),
        bias: with_bias.then(|| gpu.upload(&bias).unwrap()),
        out_features: n,
        in_features: k,
    };
    (experts, w, if with_bias { bias } else { vec![0.0; bias.len()] })
}

/// Each row of `out`, of which those of real tokens must be the formula's and the others 7.
fn check_rows(gpu: &Gpu, shape: Shape, [n, k]: [usize; 2], dtype: DType, rows: Rows) {
    let num_rows = if rows == Rows::Tokens { shape.tokens } else { shape.choices() };
    let x = values(&random_tensor(5, &[num_rows, k], dtype));
    let (w, w_values, bias) =
        random_experts(gpu, [shape.num_experts, n, k], dtype, rows == Rows::Tokens);
    let padding: Vec<u32> = (0..shape.tokens).map(|t| if t % 5 == 4 { PAD } else { 0 }).collect();
    let grouping = grouping(gpu, shape, &choices(shape), Some(&padding));
    let out = upload(gpu, &vec![7.0; shape.choices() * n], dtype);
    linear(gpu, (&upload(gpu, &x, dtype), rows), &w, &grouping, &out).unwrap();

    let [tokens, experts] = [&grouping.token_of_row, &grouping.expert_of_row]
        .map(|array| gpu.download::<u32>(array).unwrap());
    let tolerance = match dtype {
        DType::F16 => 1.0 / 2000.0,
        DType::BF16 => 1.0 / 250.0,
        _ => 1e-5,
    };
    for (r, found) in download(gpu, &out).chunks(n).enumerate() {
        let case = format!("row {r} of {shape:?}, {n} x {k}, {dtype:?}, {rows:?}");
        if experts[r] == PAD {
            assert_eq!(found, vec![7.0; n], "{case}");
            continue;
        }
        let (row, expert) = (if rows == Rows::Tokens { tokens[r] as usize } else { r }, experts[r]);
        let (x, expert) = (&x[row * k..][..k], expert as usize);
        let expected: Vec<f32> = (expert * n..(expert + 1) * n)
            .map(|column| {
                let products = x.iter().zip(&w_values[column * k..][..k]);
                let sum: f64 = products.map(|(&x, &w)| f64::from(x) * f64::from(w)).sum();
                (sum + f64::from(bias[column])) as f32
            })
            .collect();
        assert_close(found, &expected, tolerance, &case);
    }
}

#[test]
fn grouped_products_are_their_formula_in_tiles_of_every_size() {
    let Some(gpu) = gpu() else { return };
    // Tiles of 16, 64 and 128 rows.
    for (tokens, top_k, num_experts) in [(1, 3, 6), (9, 2, 4), (30, 3, 5), (100, 2, 3)] {
        let shape = Shape { tokens, top_k, num_experts };
        for dtype in DTYPES {
            for size in [[7, 33], [40, 24], [130, 200], [264, 64]] {
                check_rows(&gpu, shape, size, dtype, Rows::Tokens);
            }
            check_rows(&gpu, shape, [40, 72], dtype, Rows::Grouped);
        }
    }
}

#[test]
fn a_row_has_the_same_bits_whoever_else_goes_to_its_expert() {
    let Some(gpu) = gpu() else { return };
    let (num_experts, top_k, n, k) = (3, 2, 136, 200);
    let all = Shape { tokens: 120, top_k, num_experts };
    let experts = choices(all);
    for dtype in DTYPES {
        let x = values(&random_tensor(5, &[all.tokens, k], dtype));
        let (w, ..) = random_experts(&gpu, [num_experts, n, k], dtype, true);
        // The results of each choice of the tokens from `first` on.
        let results = |first: usize, tokens: usize| -> Vec<Vec<u32>> {
            let shape = Shape { tokens, ..all };
            let experts = &experts[first * top_k..][..tokens * top_k];
            let grouping = grouping(&gpu, shape, experts, None);
            let x = upload(&gpu, &x[first * k..][..tokens * k], dtype);
            let out = array(&gpu, dtype, shape.choices() * n);
            linear(&gpu, (&x, Rows::Tokens), &w, &grouping, &out).unwrap();
            let rows = gpu.download::<u32>(&grouping.row_of_choice).unwrap();
            let out = download(&gpu, &out);
            let row = |&row: &u32| &out[row as usize * n..][..n];
            rows.iter().map(|r| row(r).iter().map(|x| x.to_bits()).collect()).collect()
        };
        let expected = results(0, all.tokens);
        for (first, tokens) in [(0, 1), (119, 1), (3, 7), (50, 40)] {
            let expected = &expected[first * top_k..][..tokens * top_k];
            assert_eq!(results(first, tokens), expected, "{tokens} from {first}, {dtype:?}");
        }
    }
}

#[test]
fn combine_is_its_formula_and_padding_gets_what_is_shared() {
    let Some(gpu) = gpu() else { return };
    for dtype in DTYPES {
        for (tokens, top_k, num_experts) in [(0, 2, 3), (1, 8, 16), (7, 3, 5), (33, 11, 12)] {
            let shape = Shape { tokens, top_k, num_experts };
            let padding: Vec<u32> = (0..tokens).map(|t| if t % 4 == 2 { PAD } else { 1 }).collect();
            let grouping = grouping(&gpu, shape, &choices(shape), Some(&padding));
            let rows = gpu.download::<u32>(&grouping.row_of_choice).unwrap();
            let mut weights = random(1, shape.choices());
            for (i, weight) in weights.iter_mut().enumerate() {
                // Those of padding may be anything.
                *weight = if padding[i / top_k] == PAD { f32::NAN } else { *weight };
            }
            for hidden in [1, 7, 64, 2056] {
                let [y, shared] = [(2, shape.choices()), (3, tokens)]
                    .map(|(seed, rows)| values(&random_tensor(seed, &[rows, hidden], dtype)));
                for with_shared in [false, true] {
                    let mut expected = vec![0.0; tokens * hidden];
                    for (i, expected) in expected.iter_mut().enumerate() {
                        let (t, h) = (i / hidden, i % hidden);
                        for (row, weight) in rows.iter().zip(&weights).skip(t * top_k).take(top_k) {
                            let y = y.get(*row as usize * hidden + h);
                            *expected += y.map_or(0.0, |y| y * weight);
                        }
                        *expected += if with_shared { shared[i] } else { 0.0 };
                    }
                    let out = array(&gpu, dtype, tokens * hidden);
                    let y = upload(&gpu, &y, dtype);
                    let shared = with_shared.then(|| upload(&gpu, &shared, dtype));
                    let weights = gpu.upload(&weights).unwrap();
                    combine(&gpu, (&y, &grouping), &weights, shared.as_ref(), &out).unwrap();
                    let case = format!("{shape:?}, {hidden}, {dtype:?}, {with_shared}");
                    crate::cuda::testing::close(&download(&gpu, &out), &expected, dtype, &case);
                }
            }
        }
    }
}

const HIDDEN: usize = 40;
const INTER: usize = 24;
const EXPERTS: usize = 6;

/// A layer on both.
struct Layer {
    dtype: DType,
    routing: Routing,
    router: Tensor,
    gate_up: Tensor,
    down: Tensor,
    biases: [Tensor; 2],
}

impl Layer {
    fn new(dtype: DType) -> Self {
        let weight = |seed, shape: &[usize]| random_tensor(seed, shape, dtype);
        let bias = |seed, len| random_tensor(seed, &[EXPERTS, len], DType::F32);
        Self {
            dtype,
            routing: Routing { renormalize: true, scale: 1.5, ..PLAIN },
            router: weight(1, &[EXPERTS, HIDDEN]),
            gate_up: weight(2, &[EXPERTS, 2 * INTER, HIDDEN]),
            down: weight(3, &[EXPERTS, HIDDEN, INTER]),
            biases: [bias(4, 2 * INTER), bias(5, HIDDEN)],
        }
    }

    /// x, shared `[T, hidden]`; the routes are those of the device, so that a near tie between two
    /// experts makes no difference. What the device rounds is rounded.
    fn on_cpu(&self, x: &Tensor, shared: &Tensor, routes: &moe::Routes) -> Vec<f32> {
        let each = |w: &Tensor| -> Vec<LinearWeight> {
            (0..EXPERTS).map(|e| LinearWeight::pack(&w.get(e).unwrap()).unwrap()).collect()
        };
        let rounded = |x: Tensor| x.to_dtype(self.dtype).unwrap().to_dtype(DType::F32).unwrap();
        let grouping = moe::Grouping::new(routes, EXPERTS).unwrap();
        let y = moe::gather(x, &grouping).unwrap();
        let [up_bias, down_bias] = &self.biases;
        let y = grouped_linear(&y, grouping.ends(), &each(&self.gate_up), Some(up_bias)).unwrap();
        let y = rounded(gated(&rounded(y), Activation::Silu).unwrap());
        let y = grouped_linear(&y, grouping.ends(), &each(&self.down), Some(down_bias)).unwrap();
        let y = moe::combine(&rounded(y), &grouping, &routes.weights).unwrap();
        values(&add(&y, shared).unwrap())
    }

    fn on_gpu(&self, gpu: &Gpu, x: &Tensor, shared: &Tensor) -> (Vec<f32>, moe::Routes) {
        let (dtype, top_k) = (self.dtype, self.routing.top_k);
        let shape = Shape { tokens: x.dims()[0], top_k, num_experts: EXPERTS };
        let [x, shared] = [x, shared].map(|x| upload(gpu, &values(x), dtype));
        let weights = |w: &Tensor| upload(gpu, &values(w), dtype);
        let experts = |w: &Tensor, bias: &Tensor| Experts {
            elements: weights(w),
            bias: Some(gpu.upload(&values(bias)).unwrap()),
            out_features: w.dims()[1],
            in_features: w.dims()[2],
        };
        let router =
            Weight { elements: weights(&self.router), out_features: EXPERTS, in_features: HIDDEN };
        let logits = array(gpu, DType::F32, shape.tokens * EXPERTS);
        Linear::new(gpu).unwrap().linear(&x, &router, &logits).unwrap();
        let [chosen, factors] = [DType::U32, DType::F32].map(|d| array(gpu, d, shape.choices()));
        let rules = Router { routing: &self.routing, logits_bias: None, select_bias: None };
        route(gpu, shape, &logits, &rules, [&chosen, &factors]).unwrap();
        let grouping = Grouping::new(&array(gpu, DType::U32, shape.words()), shape).unwrap();
        grouping.fill(gpu, &chosen, None).unwrap();

        let [up_bias, down_bias] = &self.biases;
        let up = array(gpu, dtype, shape.choices() * 2 * INTER);
        let gate_up = experts(&self.gate_up, up_bias);
        linear(gpu, (&x, Rows::Tokens), &gate_up, &grouping, &up).unwrap();
        let up = download(gpu, &up);
        let up = Tensor::from_vec(up, &[shape.choices(), 2 * INTER], &Device::Cpu);
        let inner = weights(&gated(&up.unwrap(), Activation::Silu).unwrap());
        let y = array(gpu, dtype, shape.choices() * HIDDEN);
        let down = experts(&self.down, down_bias);
        linear(gpu, (&inner, Rows::Grouped), &down, &grouping, &y).unwrap();
        let out = array(gpu, dtype, shape.tokens * HIDDEN);
        combine(gpu, (&y, &grouping), &factors, Some(&shared), &out).unwrap();
        let routes = moe::Routes {
            experts: gpu.download(&chosen).unwrap(),
            weights: gpu.download(&factors).unwrap(),
            top_k,
        };
        (download(gpu, &out), routes)
    }
}

#[test]
fn a_layer_is_that_of_the_cpu() {
    let Some(gpu) = gpu() else { return };
    for dtype in DTYPES {
        let layer = Layer::new(dtype);
        // Where a sum in another order is rounded to the other side, the last place of an activation
        // of up to 10 differs, and that three times.
        let tolerance = match dtype {
            DType::F16 => 1.0 / 100.0,
            DType::BF16 => 1.0 / 12.0,
            _ => 1e-5,
        };
        for tokens in [1, 2, 7, 8, 9, 16, 17, 33, 150] {
            let [x, shared] = [6, 7].map(|seed| {
                let x = random_tensor(seed, &[tokens, HIDDEN], dtype);
                x.to_dtype(DType::F32).unwrap()
            });
            let (found, routes) = layer.on_gpu(&gpu, &x, &shared);
            let expected = layer.on_cpu(&x, &shared, &routes);
            assert_close(&found, &expected, tolerance, &format!("{tokens} tokens, {dtype:?}"));
        }
    }
}

#[test]
fn there_is_room_for_the_tiles_of_any_choices() {
    for num_experts in [1, 2, 7, 128, 1024] {
        for top_k in [1, 2, 8] {
            let mut before = 0;
            for tokens in (0..300).chain([1000, 4096, 16_384]) {
                let shape = Shape { tokens, top_k, num_experts };
                // The most tiles: as many experts as can be have one row, and one has the others.
                let chosen = shape.choices().min(num_experts);
                let left = shape.choices() - chosen;
                let rows = shape.tile_rows();
                let most = if chosen == 0 { 0 } else { chosen - 1 + (left + 1).div_ceil(rows) };
                assert!(most <= shape.max_tiles(), "{shape:?}");
                assert!(before <= shape.words(), "{shape:?}");
                before = shape.words();
            }
        }
    }
}

#[test]
fn wrong_arguments_are_named() {
    let Some(gpu) = gpu() else { return };
    let array = |dtype, len| array(&gpu, dtype, len);
    let shape = Shape { tokens: 2, top_k: 2, num_experts: 4 };
    let [ids, weights] = [DType::U32, DType::F32].map(|d| array(d, 4));
    let logits = array(DType::F32, 8);
    let routing = Routing { top_k: 2, ..PLAIN };
    let router = Router { routing: &routing, logits_bias: None, select_bias: None };
    let check = |shape, router: &Router<'_>, message: &str| {
        assert_error(route(&gpu, shape, &logits, router, [&ids, &weights]), message);
    };
    check(Shape { tokens: 3, ..shape }, &router, "logits: expected shape [3, 4], found [8]");
    check(Shape { top_k: 3, ..shape }, &router, "top_k: expected that of the routing, 2, found 3");
    let bias = array(DType::F32, 3);
    let biased = Router { select_bias: Some(&bias), ..router };
    check(shape, &biased, "select_bias: expected shape [4], found [3]");
    let routing = Routing { top_k: 33, ..PLAIN };
    let many = Shape { top_k: 33, num_experts: 64, ..shape };
    check(many, &Router { routing: &routing, ..router }, "top_k: expected at most 32, found 33");

    let memory = array(DType::U32, shape.words());
    let grouping = Grouping::new(&memory, shape).unwrap();
    assert_error(
        Grouping::new(&memory.slice(1..memory.len()), shape),
        &format!(
            "memory: expected at least {0} words, found {1}",
            shape.words(),
            shape.words() - 1
        ),
    );
    assert_error(
        grouping.fill(&gpu, &ids.slice(0..3), None),
        "experts: expected shape [2, 2], found [3]",
    );
    let (w, ..) = random_experts(&gpu, [4, 3, 5], DType::F16, true);
    let [x, out] = [10, 12].map(|len| array(DType::F16, len));
    linear(&gpu, (&x, Rows::Tokens), &w, &grouping, &out).unwrap();
    assert_error(
        linear(&gpu, (&x, Rows::Grouped), &w, &grouping, &out),
        "x: expected shape [4, 5], found [10]",
    );
    let few = Experts { bias: Some(array(DType::F32, 3)), ..w };
    assert_error(
        linear(&gpu, (&x, Rows::Tokens), &few, &grouping, &out),
        "bias: expected shape [4, 3], found [3]",
    );
    assert_error(
        combine(&gpu, (&out, &grouping), &weights, None, &array(DType::F16, 8)),
        "y: expected shape [2, 2, 4], found [12]",
    );
}
