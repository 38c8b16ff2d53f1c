//! The operations of `millstream-kernels`, one line each: time, traffic and arithmetic.
//!
//! `cargo bench -p millstream-benches --bench kernels [-- FILTER]`
//!
//! The first lines are the rooflines: how fast this machine reads memory and multiplies, on all
//! cores. An operation that reads each byte once cannot be faster than its bytes at that speed,
//! unless they are still in a cache; GB/s counts the bytes that it must read and write. Linear in
//! f32 is shown beside candle's `matmul` (the `gemm` crate). Times are the best of many, because
//! neighbours on the machine only ever add to them; nothing is asserted.

#[path = "common/roofline.rs"]
mod roofline;

use std::hint::black_box;
use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};
use millstream_kernels::activation::{Activation, gated};
use millstream_kernels::add::add;
use millstream_kernels::embedding::{Table, embedding};
use millstream_kernels::heads::{HeadNorm, Heads, Places, Scope, heads};
use millstream_kernels::kv_cache;
use millstream_kernels::linear::{LinearWeight, Quantization, grouped_linear, linear};
use millstream_kernels::moe::{Grouping, Order, Routing, Score, combine, gather, route};
use millstream_kernels::norm::{Norm, NormKind};
use millstream_kernels::paged_attention::{AttentionParams, PagedBatch, paged_attention_into};
use millstream_kernels::peak;
use millstream_kernels::rms_norm::rms_norm;
use millstream_kernels::rope::{RopeStyle, RopeTable, rope};

type Result<T> = anyhow::Result<T>;

/// How long each line is measured.
const MEASURED: Duration = Duration::from_millis(300);

/// Weights are rotated over so many bytes: layers follow each other in a model, so by the time a
/// matrix comes again it has left the caches.
const ROTATED: usize = 320 << 20;

fn main() -> Result<()> {
    let filter = std::env::args().skip(1).find(|arg| !arg.starts_with("--")).unwrap_or_default();
    println!("{:<52} {:>12} {:>9} {:>9}", "operation", "ns", "GB/s", "GFLOP/s");
    let bench = Bench { filter };
    bench.roofline();
    bench.linears()?;
    bench.attentions()?;
    bench.heads()?;
    bench.experts()?;
    bench.rows()
}

/// Multiplies in registers for so many rounds, and counts.
type Multiply = fn(usize) -> usize;

struct Bench {
    filter: String,
}

impl Bench {
    /// Measures `run`, which is given the number of its call, and prints a line.
    fn line(&self, name: &str, (bytes, flops): (usize, usize), mut run: impl FnMut(usize)) {
        if !name.contains(&self.filter) {
            return;
        }
        let mut calls = 0;
        let mut timed = || {
            let start = Instant::now();
            run(calls);
            calls += 1;
            start.elapsed()
        };
        timed();
        let (mut best, mut total) = (Duration::MAX, Duration::ZERO);
        while total < MEASURED {
            let time = timed();
            (best, total) = (best.min(time), total + time);
        }
        let ns = best.as_nanos().max(1) as f64;
        let (bandwidth, speed) = (bytes as f64 / ns, flops as f64 / ns);
        println!("{name:<52} {ns:>12.0} {bandwidth:>9.2} {speed:>9.2}");
    }

    fn roofline(&self) {
        let (threads, memory) = (roofline::threads(), roofline::memory());
        let name = format!("roofline: memory read on {threads} cores");
        self.line(&name, (roofline::READ_BYTES, 0), |_| roofline::read(&memory));
        let all: [(&str, Multiply); 3] = [
            ("f32", peak::multiply_f32),
            ("bf16", peak::multiply_bf16),
            ("int8", peak::multiply_i8),
        ];
        for (dtype, multiply) in all {
            let name = format!("roofline: {dtype} products on {threads} cores");
            let flops = roofline::multiply(multiply);
            self.line(&name, (0, flops), |_| {
                black_box(roofline::multiply(multiply));
            });
        }
    }

    fn linears(&self) -> Result<()> {
        // Of Qwen3-0.6B: qkv, o, gate and up, down, head.
        let shapes = [[4096, 1024], [1024, 2048], [6144, 1024], [1024, 3072], [151_936, 1024]];
        for shape in shapes {
            self.linear(shape, DType::BF16, &[1, 2, 4, 8, 16, 32, 64, 128, 512])?;
            self.quantized(shape, Quantization::Int8)?;
            self.quantized(shape, Quantization::Int4)?;
        }
        // The demo model's size, which stays in a cache; and other dtypes.
        self.linear([256, 256], DType::BF16, &[1, 4, 32, 512])?;
        self.linear([3072, 1024], DType::F16, &[1, 4, 32, 512])?;
        self.linear([3072, 1024], DType::F32, &[1, 4, 32, 512])
    }

    fn linear(&self, [n, k]: [usize; 2], dtype: DType, tokens: &[usize]) -> Result<()> {
        let name = |tokens| format!("linear T={tokens} N={n} K={k} {dtype:?}");
        if !tokens.iter().any(|&tokens| name(tokens).contains(&self.filter)) {
            return Ok(());
        }
        let w = random(&[n, k])?.to_dtype(dtype)?;
        let weight_bytes = n * k * dtype.size_in_bytes();
        let copies = if n * k > 1 << 17 { ROTATED.div_ceil(weight_bytes) } else { 1 };
        let weights: Vec<Tensor> = (0..copies).map(|_| Ok(w.copy()?)).collect::<Result<_>>()?;
        let packed =
            weights.iter().map(|w| Ok(LinearWeight::pack(w)?)).collect::<Result<Vec<_>>>()?;
        for &tokens in tokens {
            let x = random(&[tokens, k])?;
            let (bytes, flops) = (weight_bytes + 4 * tokens * (n + k), 2 * tokens * n * k);
            self.line(&name(tokens), (bytes, flops), |call| {
                black_box(linear(&x, &packed[call % copies], None)).expect("linear");
            });
            if dtype == DType::F32 {
                let name = format!("  candle matmul, {}", name(tokens));
                self.line(&name, (bytes, flops), |call| {
                    let w = weights[call % copies].t().expect("a matrix");
                    black_box(x.matmul(&w)).expect("matmul");
                });
            }
        }
        Ok(())
    }

    fn quantized(&self, [n, k]: [usize; 2], to: Quantization) -> Result<()> {
        let name = |tokens| format!("linear T={tokens} N={n} K={k} {to:?}");
        let tokens = [1, 4, 8, 32, 128, 512];
        if !tokens.iter().any(|&tokens| name(tokens).contains(&self.filter)) {
            return Ok(());
        }
        let weight_bytes = ((n * k) as f64 * to.bits() / 8.0) as usize;
        let w = random(&[n, k])?;
        let weights = (0..ROTATED.div_ceil(weight_bytes))
            .map(|_| Ok(LinearWeight::quantize(&w, to)?))
            .collect::<Result<Vec<_>>>()?;
        for tokens in tokens {
            let x = random(&[tokens, k])?;
            let (bytes, flops) = (weight_bytes + 4 * tokens * (n + k), 2 * tokens * n * k);
            self.line(&name(tokens), (bytes, flops), |call| {
                black_box(linear(&x, &weights[call % weights.len()], None)).expect("linear");
            });
        }
        Ok(())
    }

    /// A mixture of experts, half the size of those in Qwen3-30B-A3B, with a quarter of them.
    fn experts(&self) -> Result<()> {
        let [experts, hidden, inter] = [32, 1024, 768];
        let matrix = |n, k| Ok(LinearWeight::pack(&random(&[n, k])?.to_dtype(DType::BF16)?)?);
        let all = |n, k| (0..experts).map(|_| matrix(n, k)).collect::<Result<Vec<_>>>();
        let (gate_up, down) = (all(2 * inter, hidden)?, all(hidden, inter)?);
        let routing = Routing {
            top_k: 8,
            score: Score::Softmax,
            order: Order::ScoreThenTopK,
            renormalize: true,
            scale: 1.0,
            groups: None,
        };
        for tokens in [1, 4, 32, 512] {
            let (x, logits) = (random(&[tokens, hidden])?, random(&[tokens, experts])?);
            let run = || -> Result<(Tensor, usize)> {
                let routes = route(&logits, None, &routing)?;
                let grouping = Grouping::new(&routes, experts)?;
                let y = gather(&x, &grouping)?;
                let y = grouped_linear(&y, grouping.ends(), &gate_up, None)?;
                let y = gated(&y, Activation::Silu)?;
                let y = grouped_linear(&y, grouping.ends(), &down, None)?;
                let ends = [0].iter().chain(grouping.ends());
                let read = ends.zip(grouping.ends()).filter(|(start, end)| start < end).count();
                Ok((combine(&y, &grouping, &routes.weights)?, read))
            };
            let (bytes, flops) = (run()?.1 * 6 * inter * hidden, 6 * 8 * tokens * inter * hidden);
            let name = format!("moe T={tokens} 8 of E={experts} hidden={hidden} I={inter} BF16");
            self.line(&name, (bytes, flops), |_| {
                black_box(run()).expect("moe");
            });
        }
        Ok(())
    }

    fn attentions(&self) -> Result<()> {
        for dtype in [DType::BF16, DType::F32] {
            // [rows, new tokens of each, context of each]
            for shape in [[1, 1, 1000], [32, 1, 1000], [1, 512, 512], [1, 512, 4096]] {
                self.attention(shape, [16, 8, 128], dtype)?;
            }
        }
        self.attention([1, 128, 128], [16, 8, 128], DType::BF16)?;
        self.attention([32, 1, 150], [16, 8, 128], DType::BF16)?;
        self.attention([256, 1, 150], [16, 8, 128], DType::BF16)?;
        self.attention([8, 1, 8000], [16, 8, 128], DType::BF16)?;
        self.attention([1, 1, 64_000], [16, 1, 128], DType::BF16)?;
        self.attention([1, 1, 200], [8, 4, 32], DType::BF16)?;
        self.attention([32, 1, 200], [8, 4, 32], DType::BF16)
    }

    fn attention(&self, shape: [usize; 3], heads: [usize; 3], dtype: DType) -> Result<()> {
        let ([rows, new, context], [heads, kv_heads, head_size]) = (shape, heads);
        let name = format!(
            "attention {rows} x {new} at {context}, H={heads} K={kv_heads} D={head_size} {dtype:?}"
        );
        if !name.contains(&self.filter) {
            return Ok(());
        }
        let blocks = context.div_ceil(16);
        let shape = [rows * blocks, kv_heads, 16, head_size];
        let (cache_k, cache_v) = (kv_cache::zeros(shape, dtype)?, kv_cache::zeros(shape, dtype)?);
        let slots: Vec<u32> = (0..(rows * blocks * 16) as u32).collect();
        for slots in slots.chunks(4096) {
            let x = random(&[slots.len(), kv_heads, head_size])?;
            kv_cache::write(&cache_k, &cache_v, &x, &x, slots)?;
        }
        let q = random(&[rows * new, heads, head_size])?;
        let out = millstream_kernels::empty(q.dims())?;
        let cu_seqlens: Vec<u32> = (0..=rows).map(|row| (row * new) as u32).collect();
        let tables: Vec<Vec<u32>> = (0..rows)
            .map(|row| (0..blocks).map(|block| (block * rows + row) as u32).collect())
            .collect();
        let tables: Vec<&[u32]> = tables.iter().map(Vec::as_slice).collect();
        let context_lens = vec![context as u32; rows];
        let batch = PagedBatch {
            cu_seqlens: &cu_seqlens,
            context_lens: &context_lens,
            block_tables: &tables,
        };
        let params = AttentionParams { scale: 0.1, window: None, softcap: None, sinks: None };
        let read = 2 * rows * context * kv_heads * head_size * dtype.size_in_bytes();
        let bytes = read + 8 * rows * new * heads * head_size;
        let seen = new * (context - new) + new * (new + 1) / 2;
        self.line(&name, (bytes, 4 * rows * seen * heads * head_size), |_| {
            let done = paged_attention_into(&q, [&cache_k, &cache_v], &batch, &params, &out);
            done.expect("attention");
        });
        Ok(())
    }

    /// Between projection and attention, of Qwen3-0.6B: decoding, and a prompt. Each call writes to
    /// other blocks, as layers have a cache each.
    fn heads(&self) -> Result<()> {
        let [num_heads, kv_heads, head_size, blocks] = [16, 8, 128, 4096];
        let inv_freq: Vec<f64> = (0..64).map(|i| 1e6f64.powf(-f64::from(i) / 64.0)).collect();
        let table = RopeTable::new(&inv_freq, 1.0, 512);
        let weight = random(&[head_size])?;
        let norm = Norm { kind: NormKind::Rms, eps: 1e-6, weight: &weight };
        let call = Heads {
            heads: num_heads,
            kv_heads,
            head_size,
            norms: Some([HeadNorm { norm, scope: Scope::PerHead }; 2]),
            rope: Some((&table, RopeStyle::Half)),
            query_scale: None,
        };
        // [rows, new tokens of each]
        for [rows, new] in [[1, 1], [8, 1], [32, 1], [1, 512]] {
            let name = format!("heads {rows} x {new} H=16 K=8 D=128 BF16");
            let tokens = rows * new;
            let row = (num_heads + 2 * kv_heads) * head_size;
            let bytes = tokens * (row * 4 + (num_heads + kv_heads) * head_size * 4);
            let bytes = bytes + tokens * 2 * kv_heads * head_size * 2;
            if !name.contains(&self.filter) {
                continue;
            }
            let shape = [blocks, kv_heads, 16, head_size];
            let (cache_k, cache_v) =
                (kv_cache::zeros(shape, DType::BF16)?, kv_cache::zeros(shape, DType::BF16)?);
            let qkv = random(&[tokens, row])?;
            let positions: Vec<u32> = (0..tokens as u32).map(|t| t % 512).collect();
            let far = if new == 1 { 16 } else { 1 };
            let calls: Vec<Vec<u32>> = (0..blocks as u32 * 16 / (far * tokens as u32))
                .map(|call| {
                    (0..tokens as u32).map(move |t| (call * tokens as u32 + t) * far + far / 2)
                })
                .map(Iterator::collect)
                .collect();
            self.line(&name, (bytes, 0), |number| {
                let slot_mapping = &calls[number % calls.len()];
                let places = Places { positions: &positions, slot_mapping };
                heads(&qkv, &call, &places, [&cache_k, &cache_v]).expect("heads");
            });
        }
        Ok(())
    }

    /// What is bound by memory: one read and one write.
    fn rows(&self) -> Result<()> {
        for tokens in [1, 32, 512] {
            let positions: Vec<u32> = (0..tokens as u32).collect();
            let x = random(&[tokens, 1024])?;
            let weight = random(&[1024])?;
            self.line(&format!("rms_norm T={tokens} hidden=1024"), (8 * 1024 * tokens, 0), |_| {
                black_box(rms_norm(&x, &weight, 1e-6)).expect("rms_norm");
            });
            self.line(&format!("add T={tokens} hidden=1024"), (12 * 1024 * tokens, 0), |_| {
                black_box(add(&x, &x)).expect("add");
            });
            let heads = random(&[tokens, 16, 128])?;
            let inv_freq: Vec<f64> = (0..64).map(|i| 1e4f64.powf(-f64::from(i) / 64.0)).collect();
            let table = RopeTable::new(&inv_freq, 1.0, tokens);
            for style in [RopeStyle::Half, RopeStyle::Interleaved] {
                let name = format!("rope T={tokens} H=16 D=128 {style:?}");
                self.line(&name, (16 * 1024 * tokens, 0), |_| {
                    black_box(rope(&heads, &table, style, &positions)).expect("rope");
                });
            }
            let gate_up = random(&[tokens, 2 * 3072])?;
            for act in [Activation::Silu, Activation::GeluTanh] {
                let name = format!("gated T={tokens} I=3072 {act:?}");
                self.line(&name, (12 * tokens * 3072, 0), |_| {
                    black_box(gated(&gate_up, act)).expect("gated");
                });
            }
            let table = random(&[4096, 1024])?.to_dtype(DType::BF16)?;
            let ids: Vec<u32> = (0..tokens as u32).map(|t| t * 7919 % 4096).collect();
            let name = format!("embedding T={tokens} hidden=1024 BF16");
            self.line(&name, (6 * 1024 * tokens, 0), |_| {
                black_box(embedding(Table::Stored(&table), &ids)).expect("embedding");
            });
            let shape = [64, 8, 16, 128];
            let (cache_k, cache_v) =
                (kv_cache::zeros(shape, DType::BF16)?, kv_cache::zeros(shape, DType::BF16)?);
            let k = random(&[tokens, 8, 128])?;
            let name = format!("kv_cache::write T={tokens} K=8 D=128 BF16");
            self.line(&name, (12 * 1024 * tokens, 0), |_| {
                kv_cache::write(&cache_k, &cache_v, &k, &k, &positions).expect("write");
            });
        }
        Ok(())
    }
}

fn random(shape: &[usize]) -> Result<Tensor> {
    Ok(Tensor::rand(-1f32, 1f32, shape, &Device::Cpu)?)
}
