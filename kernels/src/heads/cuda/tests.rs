use candle_core::{Device, Tensor};

use super::super::{HeadNorm, tests::normed};
use super::*;
use crate::cuda::testing::{close, download, gpu, upload};
use crate::norm::Norm;
use crate::rope::{self, rope};
use crate::testing::{DTYPES, assert_error, random, random_tensor, values};

const BLOCKS: usize = 3;
const BLOCK_SIZE: usize = 16;
const MAX_POS: usize = 50;

/// Sizes and choices of a case.
#[derive(Clone, Copy, Debug)]
struct Case {
    heads: usize,
    kv_heads: usize,
    head_size: usize,
    dtype: DType,
    bias: bool,
    norm: Option<(Scope, NormKind)>,
    rope: Option<(usize, RopeStyle)>,
    query_scale: bool,
}

const PLAIN: Case = Case {
    heads: 6,
    kv_heads: 2,
    head_size: 64,
    dtype: DType::BF16,
    bias: false,
    norm: None,
    rope: None,
    query_scale: false,
};

/// Where the tokens of a case are: the second is padding, the third stands behind the tables.
const POSITIONS: [u32; 4] = [7, 0, 4_000_000_000, 49];
const SLOTS: [u32; 4] = [33, u32::MAX, 5, 47];

/// `[MAX_POS]`.
fn factors() -> Vec<f32> {
    (0..MAX_POS).map(|position| 1.0 + position as f32 / 8.0).collect()
}

/// What the operations of their own give for `qkv` `[T, H + 2K, D]`.
fn expected(case: &Case, qkv: &Tensor, weights: &[Tensor; 2]) -> [Tensor; 3] {
    let part = |from, len| qkv.narrow(1, from, len).unwrap();
    let (mut q, mut k) = (part(0, case.heads), part(case.heads, case.kv_heads));
    if let Some((scope, kind)) = case.norm {
        let of = |weight| HeadNorm { norm: Norm { kind, eps: 1e-6, weight }, scope };
        (q, k) = (normed(&q, &of(&weights[0])), normed(&k, &of(&weights[1])));
    }
    let positions = POSITIONS.map(|position| position.min(MAX_POS as u32 - 1));
    if let Some((dims, style)) = case.rope {
        q = rope(&q, &table(dims), style, &positions).unwrap();
        k = rope(&k, &table(dims), style, &positions).unwrap();
    }
    if case.query_scale {
        let factors = positions.map(|position| factors()[position as usize]);
        let factors = Tensor::new(&factors, &Device::Cpu).unwrap().reshape((4, 1, 1)).unwrap();
        q = q.broadcast_mul(&factors).unwrap();
    }
    [q, k, part(case.heads + case.kv_heads, case.kv_heads)]
}

fn table(dims: usize) -> rope::RopeTable {
    let inv_freq: Vec<f64> = (0..dims / 2).map(|i| 0.7f64.powi(i as i32)).collect();
    rope::RopeTable::new(&inv_freq, 1.0, MAX_POS)
}

/// A cache `[N, K, B, D]` of `before` in which `x` `[T, K, D]` is written.
fn written(case: &Case, before: &[f32], x: &Tensor) -> Vec<f32> {
    let (mut cache, x, size) = (before.to_vec(), values(x), case.head_size);
    for (t, slot) in SLOTS.into_iter().enumerate().filter(|(_, slot)| *slot != u32::MAX) {
        let (block, offset) = (slot as usize / BLOCK_SIZE, slot as usize % BLOCK_SIZE);
        for head in 0..case.kv_heads {
            let from = (t * case.kv_heads + head) * size;
            let to = ((block * case.kv_heads + head) * BLOCK_SIZE + offset) * size;
            cache[to..to + size].copy_from_slice(&x[from..from + size]);
        }
    }
    cache
}

fn check(gpu: &Gpu, case: Case) {
    let Case { heads: num_heads, kv_heads, head_size, dtype, .. } = case;
    let all = num_heads + 2 * kv_heads;
    let x = (random_tensor(1, &[4, all, head_size], dtype) + 0.5).unwrap();
    let bias = random_tensor(2, &[all, head_size], DType::F32);
    let per_head = matches!(case.norm, Some((Scope::PerHead, _)));
    let weights = [num_heads, kv_heads].map(|heads| {
        let len = if per_head { head_size } else { heads * head_size };
        random_tensor(3, &[len], DType::F32)
    });
    let before = random(4, BLOCKS * kv_heads * BLOCK_SIZE * head_size);

    let [qkv, cache_k, cache_v] =
        [&values(&x), &before, &before].map(|values| upload(gpu, values, dtype));
    let before = download(gpu, &cache_k);
    let [of_bias, q_weight, k_weight] =
        [&bias, &weights[0], &weights[1]].map(|x| gpu.upload(&values(x)).unwrap());
    let factors = gpu.upload(&factors()).unwrap();
    let table = case.rope.map(|(dims, _)| RopeTable::new(gpu, &table(dims)).unwrap());
    let call = Heads {
        heads: num_heads,
        kv_heads,
        head_size,
        bias: case.bias.then_some(&of_bias),
        norms: case.norm.map(|(scope, kind)| Norms {
            scope,
            kind,
            eps: 1e-6,
            weights: [&q_weight, &k_weight],
        }),
        rope: table.as_ref().zip(case.rope.map(|(_, style)| style)),
        query_scale: case.query_scale.then_some(&factors),
    };
    let [positions, slot_mapping] = [&POSITIONS, &SLOTS].map(|list| gpu.upload(list).unwrap());
    let places = Places { positions: &positions, slot_mapping: &slot_mapping };
    let cache = Cache { k: &cache_k, v: &cache_v, block_size: BLOCK_SIZE };
    heads(gpu, &qkv, &call, &places, &cache).unwrap();

    let x = x.to_dtype(DType::F32).unwrap();
    let sums = if case.bias { x.broadcast_add(&bias).unwrap() } else { x.clone() };
    let [q, k, v] = expected(&case, &sums, &weights);
    let rest = x.narrow(1, num_heads, 2 * kv_heads).unwrap();
    let qkv_after = Tensor::cat(&[q, rest], 1).unwrap();
    close(&download(gpu, &qkv), &values(&qkv_after), dtype, &format!("qkv, {case:?}"));
    for (cache, x) in [(&cache_k, &k), (&cache_v, &v)] {
        let expected = written(&case, &before, x);
        close(&download(gpu, cache), &expected, dtype, &format!("cache, {case:?}"));
    }
}

#[test]
fn one_pass_gives_what_one_operation_after_the_other_gives() {
    let Some(gpu) = gpu() else { return };
    for dtype in DTYPES {
        for (head_size, dims) in [(4, 4), (33, 8), (64, 64), (72, 16), (128, 64)] {
            for style in [RopeStyle::Half, RopeStyle::Interleaved] {
                let case = Case { dtype, head_size, rope: Some((dims, style)), ..PLAIN };
                check(&gpu, Case { bias: true, query_scale: true, ..case });
                for kind in [NormKind::Rms, NormKind::Layer] {
                    for scope in [Scope::PerHead, Scope::EachHead, Scope::Whole] {
                        check(&gpu, Case { norm: Some((scope, kind)), ..case });
                    }
                }
            }
        }
    }
}

#[test]
fn heads_of_every_size_and_number_go_to_their_place() {
    let Some(gpu) = gpu() else { return };
    let rms = NormKind::Rms;
    for dtype in DTYPES {
        for head_size in [1_usize, 16, 40, 80, 96, 120, 256, 512, 520] {
            let dims = if head_size.is_multiple_of(2) { head_size } else { 0 };
            let rope = Some((dims, RopeStyle::Half));
            for (heads, kv_heads) in [(1, 1), (5, 1), (20, 3)] {
                let case = Case { heads, kv_heads, head_size, dtype, ..PLAIN };
                check(&gpu, case);
                check(&gpu, Case { bias: true, ..case });
                check(&gpu, Case { query_scale: true, ..case });
                check(&gpu, Case { norm: Some((Scope::PerHead, rms)), rope, ..case });
                check(&gpu, Case { norm: Some((Scope::Whole, rms)), bias: true, rope, ..case });
            }
        }
    }
}

#[test]
fn wrong_arguments_are_named() {
    let Some(gpu) = gpu() else { return };
    let [qkv, k, v, of_v] = [32, 64, 64, 32].map(|len| gpu.zeros(DType::BF16, len).unwrap());
    let [positions, slot_mapping] = [2, 1].map(|len| gpu.zeros(DType::U32, len).unwrap());
    let table = RopeTable::new(&gpu, &table(6)).unwrap();
    let call = Heads {
        heads: 2,
        kv_heads: 1,
        head_size: 4,
        bias: None,
        norms: None,
        rope: Some((&table, RopeStyle::Half)),
        query_scale: None,
    };
    let run = |call: &Heads<'_>, slot_mapping: &Array, v: &Array| {
        let places = Places { positions: &positions, slot_mapping };
        heads(&gpu, &qkv, call, &places, &Cache { k: &k, v, block_size: 16 })
    };
    assert_error(run(&call, &positions, &v), "head_size: expected at least 6, found 4");
    let call = Heads { rope: None, ..call };
    run(&call, &positions, &v).unwrap();
    assert_error(run(&call, &slot_mapping, &v), "slot_mapping: expected shape [2], found [1]");
    assert_error(
        run(&call, &positions, &of_v),
        "cache_v: expected shape [1, 1, 16, 4], found [32]",
    );
    assert_error(run(&call, &positions, &table.cos), "cache_v: expected dtype bf16, found F32");
    let three = Heads { heads: 3, ..call };
    assert_error(run(&three, &positions, &v), "qkv: expected shape [2, 20], found [32]");
    let biased = Heads { bias: Some(&table.cos), ..call };
    assert_error(run(&biased, &positions, &v), "bias: expected shape [16], found [150]");
    let weights = [&table.cos; 2];
    let (scope, kind) = (Scope::Whole, NormKind::Rms);
    let norms = Some(Norms { scope, kind, eps: 0.0, weights });
    let normed = Heads { norms, ..call };
    assert_error(run(&normed, &positions, &v), "q_weight: expected shape [8], found [150]");
}
