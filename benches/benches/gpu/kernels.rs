//! What a layer is made of beside attention and experts.

use candle_core::DType;
use millstream_kernels::activation::Activation;
use millstream_kernels::activation::cuda::{Gated, gated};
use millstream_kernels::embedding::cuda::{Table, embedding};
use millstream_kernels::heads::Scope;
use millstream_kernels::heads::cuda::{Cache, Heads, Norms, Places, heads};
use millstream_kernels::linear::cuda::Weight;
use millstream_kernels::norm::NormKind;
use millstream_kernels::residual::cuda::{Given, Norm, Normed, residual};
use millstream_kernels::rope::cuda::RopeTable;
use millstream_kernels::rope::{self, RopeStyle};

use crate::measure::{Bench, Result, Work, bytes};

/// Tokens of a step.
const TOKENS: [usize; 3] = [1, 64, 8192];

/// The matrices of a model, as name, N and K.
type Matrices = [(&'static str, usize, usize); 5];

const LLAMA_8B: Matrices = [
    ("qkv", 6144, 4096),
    ("o", 4096, 4096),
    ("gate and up", 28_672, 4096),
    ("down", 4096, 14_336),
    ("head", 128_256, 4096),
];
const QWEN_0_6B: Matrices = [
    ("qkv", 4096, 1024),
    ("o", 1024, 2048),
    ("gate and up", 6144, 1024),
    ("down", 1024, 3072),
    ("head", 151_936, 1024),
];

pub(crate) fn run(bench: &Bench) -> Result {
    let hidden = bench.size(4096, 64);
    for &tokens in bench.sizes(&TOKENS) {
        embeddings(bench, tokens, hidden)?;
        residuals(bench, tokens, hidden)?;
        all_heads(bench, tokens)?;
        activations(bench, tokens)?;
    }
    for (model, matrices) in [("8B", LLAMA_8B), ("0.6B", QWEN_0_6B)] {
        for (matrix, n, k) in matrices {
            let title = format!("{model} {matrix}");
            linear(bench, &title, [bench.size(n, n / 64), bench.size(k, k / 8)])?;
        }
    }
    Ok(())
}

fn embeddings(bench: &Bench, tokens: usize, hidden: usize) -> Result {
    let vocab = bench.size(128_256, 100);
    let rows = bench.random(vocab * hidden)?;
    let table = Table { rows: &rows, hidden };
    let ids: Vec<u32> = (0..tokens).map(|i| (i * 7919 % vocab) as u32).collect();
    let ids = bench.gpu.upload(&ids)?;
    let out = bench.gpu.zeros(DType::F32, tokens * hidden)?;
    let shape = format!("T={tokens} hidden={hidden} bf16");
    let work = bytes(tokens * hidden * (2 + 4));
    bench
        .kernel(("embedding", &shape), work, 1, |_| embedding(&bench.gpu, &table, &ids, None, &out))
}

fn residuals(bench: &Bench, tokens: usize, hidden: usize) -> Result {
    let x = bench.gpu.zeros(DType::F32, tokens * hidden)?;
    let (y, out) = (bench.random(tokens * hidden)?, bench.random(tokens * hidden)?);
    let weight = bench.gpu.upload(&vec![1.0_f32; hidden])?;
    let given = Given { y: &y, bias: None, post: None, scale: None };
    let pre = Some(Norm { kind: NormKind::Rms, eps: 1e-6, weight: &weight });
    let normed = Normed { pre, out: &out };
    let shape = format!("T={tokens} hidden={hidden} bf16");
    // The stream is read and written, y is read, the norm is written.
    let work = bytes(tokens * hidden * (4 + 4 + 2 + 2));
    bench.kernel(("residual", &shape), work, 1, |_| {
        residual(&bench.gpu, &x, [tokens, hidden], Some(&given), Some(&normed))
    })
}

/// Norm, rotation and cache of Qwen3's heads.
fn all_heads(bench: &Bench, tokens: usize) -> Result {
    let [num_heads, kv_heads, head_size, block_size] = [32, 8, 128, 16];
    let qkv = bench.random(tokens * (num_heads + 2 * kv_heads) * head_size)?;
    let ones = bench.gpu.upload(&vec![1.0_f32; head_size])?;
    let inverse = |i: usize| 1e6_f64.powf(-2.0 * i as f64 / head_size as f64);
    let frequencies: Vec<f64> = (0..head_size / 2).map(inverse).collect();
    let table = rope::RopeTable::new(&frequencies, 1.0, tokens);
    let table = RopeTable::new(&bench.gpu, &table)?;
    let norms =
        Norms { kind: NormKind::Rms, scope: Scope::PerHead, eps: 1e-6, weights: [&ones, &ones] };
    let call = Heads {
        heads: num_heads,
        kv_heads,
        head_size,
        bias: None,
        norms: Some(norms),
        rope: Some((&table, RopeStyle::Half)),
        query_scale: None,
    };
    let places = bench.gpu.upload(&(0..tokens as u32).collect::<Vec<_>>())?;
    let len = tokens.next_multiple_of(block_size) * kv_heads * head_size;
    let (k, v) = (bench.random(len)?, bench.random(len)?);
    let places = Places { positions: &places, slot_mapping: &places };
    let cache = Cache { k: &k, v: &v, block_size };
    let shape = format!("T={tokens} H={num_heads} K={kv_heads} D={head_size} bf16");
    // Queries, keys and values are read and written, and a row of the table is read.
    let moved = 2 * 2 * (num_heads + 2 * kv_heads) * head_size + 4 * head_size;
    bench.kernel(("heads", &shape), bytes(tokens * moved), 1, |_| {
        heads(&bench.gpu, &qkv, &call, &places, &cache)
    })
}

fn activations(bench: &Bench, tokens: usize) -> Result {
    let half = bench.size(14_336, 64);
    let (gate_up, out) = (bench.random(tokens * 2 * half)?, bench.random(tokens * half)?);
    let call = Gated { gate_up: &gate_up, half, bias: None, act: Activation::Silu };
    let shape = format!("T={tokens} I={half} bf16");
    bench.kernel(("activation", &shape), bytes(tokens * half * 3 * 2), 1, |_| {
        gated(&bench.gpu, &call, &out)
    })
}

/// A matrix with few tokens, which our kernel multiplies, and with many, which cuBLAS does.
fn linear(bench: &Bench, title: &str, [n, k]: [usize; 2]) -> Result {
    // A head has few rows; the model gives it those that sample.
    let most = if title.ends_with("head") { 256 } else { 8192 };
    let copies = bench.copies(2 * n * k);
    let elements = bench.random(copies * n * k)?;
    let weight = |copy: usize| Weight {
        elements: elements.slice(copy * n * k..(copy + 1) * n * k),
        out_features: n,
        in_features: k,
    };
    let weights: Vec<Weight> = (0..copies).map(weight).collect();
    let all = [1, 8, 16, 64, 256, 2048, 8192];
    let small = [1, 8, 16, 17];
    for &tokens in if bench.small { &small[..] } else { &all[..] } {
        if tokens > most {
            continue;
        }
        let (x, out) = (bench.random(tokens * k)?, bench.random(tokens * n)?);
        let name = if tokens <= 16 { "linear, skinny" } else { "linear, cuBLAS" };
        let shape = format!("{title} T={tokens} N={n} K={k} bf16");
        let work = Work {
            bytes: 2.0 * (n * k + tokens * (n + k)) as f64,
            flops: 2.0 * (tokens * n * k) as f64,
        };
        bench.kernel((name, &shape), work, copies, |call| {
            bench.products.linear(&x, &weights[call % copies], &out)
        })?;
    }
    Ok(())
}
