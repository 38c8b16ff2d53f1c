//! The mixture of experts of a layer of Qwen3-30B-A3B.

use std::collections::HashSet;

use candle_core::DType;
use millstream_kernels::activation::Activation;
use millstream_kernels::activation::cuda::{Gated, gated};
use millstream_kernels::cuda::Array;
use millstream_kernels::moe::cuda::{
    Experts, Grouping, Router, Rows, Shape, combine, linear, route,
};
use millstream_kernels::moe::{Order, Routing, Score};

use crate::measure::{Bench, Result, Work};

pub(crate) fn run(bench: &Bench) -> Result {
    let (num_experts, top_k) = (bench.size(128, 8), bench.size(8, 2));
    let [hidden, inter] = [bench.size(2048, 64), bench.size(768, 32)];
    let weights = |n: usize, k: usize| -> Result<Experts> {
        let elements = bench.random(num_experts * n * k)?;
        Ok(Experts { elements, bias: None, out_features: n, in_features: k })
    };
    let layer =
        Layer { gate_up: weights(2 * inter, hidden)?, down: weights(hidden, inter)?, inter };
    for &tokens in bench.sizes(&[1, 64, 4096]) {
        layer.measure(bench, Shape { tokens, top_k, num_experts }, hidden)?;
    }
    Ok(())
}

struct Layer {
    gate_up: Experts,
    down: Experts,
    inter: usize,
}

/// What is between the parts of a layer.
struct Between {
    logits: Array,
    experts: Array,
    weights: Array,
    x: Array,
    gate_up: Array,
    gated: Array,
    down: Array,
    out: Array,
}

impl Layer {
    fn measure(&self, bench: &Bench, shape: Shape, hidden: usize) -> Result {
        let gpu = &bench.gpu;
        let Shape { tokens, top_k, num_experts } = shape;
        let (choices, inter) = (shape.choices(), self.inter);
        let mut state = 7_u32;
        let logits = (0..tokens * num_experts).map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32
        });
        let between = Between {
            logits: gpu.upload(&logits.collect::<Vec<_>>())?,
            experts: gpu.zeros(DType::U32, choices)?,
            weights: gpu.zeros(DType::F32, choices)?,
            x: bench.random(tokens * hidden)?,
            gate_up: bench.random(choices * 2 * inter)?,
            gated: bench.random(choices * inter)?,
            down: bench.random(choices * hidden)?,
            out: bench.random(tokens * hidden)?,
        };
        let grouping = Grouping::new(&gpu.zeros(DType::U32, shape.words())?, shape)?;
        self.route(bench, shape, &grouping, &between)?;
        let chosen: HashSet<u32> = gpu.download(&between.experts)?.into_iter().collect();

        let title = format!("T={tokens} {top_k} of E={num_experts} hidden={hidden} I={inter} bf16");
        let matrices = |matrices: usize, rows: usize| Work {
            bytes: 2.0 * (chosen.len() * matrices * inter * hidden + rows) as f64,
            flops: 2.0 * (choices * matrices * inter * hidden) as f64,
        };
        let route = || self.route(bench, shape, &grouping, &between);
        let gate_up = || {
            let (w, out) = (&self.gate_up, &between.gate_up);
            linear(gpu, (&between.x, Rows::Tokens), w, &grouping, out)
        };
        let down = || {
            let (w, out) = (&self.down, &between.down);
            linear(gpu, (&between.gated, Rows::Grouped), w, &grouping, out)
        };
        let activation =
            Gated { gate_up: &between.gate_up, half: inter, bias: None, act: Activation::Silu };
        // The weights of a layer are several times as large as any cache, where all are read.
        bench.kernel(("moe, route and group", &title), Work::default(), 1, |_| route())?;
        let rows = tokens * hidden + choices * 2 * inter;
        bench.kernel(("moe, gate and up", &title), matrices(2, rows), 1, |_| gate_up())?;
        let rows = choices * (inter + hidden);
        bench.kernel(("moe, down", &title), matrices(1, rows), 1, |_| down())?;
        bench.kernel(("moe, layer", &title), matrices(3, 2 * tokens * hidden), 1, |_| {
            route()?;
            gate_up()?;
            gated(gpu, &activation, &between.gated)?;
            down()?;
            combine(gpu, (&between.down, &grouping), &between.weights, None, &between.out)
        })
    }

    fn route(&self, bench: &Bench, shape: Shape, grouping: &Grouping, between: &Between) -> Result {
        let routing = Routing {
            top_k: shape.top_k,
            score: Score::Softmax,
            order: Order::ScoreThenTopK,
            renormalize: true,
            scale: 1.0,
            groups: None,
        };
        let router = Router { routing: &routing, logits_bias: None, select_bias: None };
        let Between { logits, experts, weights, .. } = between;
        route(&bench.gpu, shape, logits, &router, [experts, weights])?;
        grouping.fill(&bench.gpu, experts, None)
    }
}
