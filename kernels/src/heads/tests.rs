use candle_core::{DType, Device, Tensor};

use super::*;
use crate::kv_cache;
use crate::layer_norm::layer_norm;
use crate::norm::NormKind;
use crate::rms_norm::rms_norm;
use crate::rope::rope;
use crate::simd::at_every_level;
use crate::testing::{DTYPES, assert_error, bits, random_tensor};

const BLOCKS: usize = 9;
const BLOCK_SIZE: usize = 32;

fn table(dims: usize) -> RopeTable {
    let inv_freq: Vec<f64> = (0..dims / 2).map(|i| 0.7f64.powi(i as i32)).collect();
    RopeTable::new(&inv_freq, 1.0, 100)
}

/// The norm of `x` `[T, heads, D]` by the operations of their own.
pub(super) fn normed(x: &Tensor, norm: &HeadNorm<'_>) -> Tensor {
    let one = |x: &Tensor, weight: &Tensor| match norm.norm.kind {
        NormKind::Rms => rms_norm(x, weight, norm.norm.eps).unwrap(),
        NormKind::Layer => layer_norm(x, weight, None, norm.norm.eps).unwrap(),
    };
    let (_, heads, head_size) = x.dims3().unwrap();
    match norm.scope {
        Scope::PerHead => one(x, norm.norm.weight),
        Scope::Whole => {
            let flat = x.flatten_from(1).unwrap();
            one(&flat, norm.norm.weight).reshape(x.shape()).unwrap()
        }
        Scope::EachHead => {
            let ones = Tensor::ones(head_size, DType::F32, &Device::Cpu).unwrap();
            let weights = norm.norm.weight.reshape((heads, head_size)).unwrap();
            one(x, &ones).broadcast_mul(&weights).unwrap()
        }
    }
}

/// One pass against one operation after the other.
fn check(call: &Heads<'_>, tokens: usize, dtype: DType) {
    let Heads { heads: num_heads, kv_heads, head_size, .. } = *call;
    let width = (num_heads + 2 * kv_heads) * head_size;
    let qkv = random_tensor(1, &[tokens, width], DType::F32);
    let shape = kv_cache::zeros([BLOCKS, kv_heads, BLOCK_SIZE, head_size], dtype).unwrap();
    let caches = [2, 3].map(|seed| random_tensor(seed, shape.dims(), dtype));
    let slots = (BLOCKS * BLOCK_SIZE) as u32;
    // Runs of seven, and each far from the one before.
    let slot_mapping: Vec<u32> =
        (0..tokens as u32).map(|t| (t / 7 * 47 + t % 7 + 3) % slots).collect();
    let positions: Vec<u32> = (0..tokens as u32).map(|t| t * 13 % 100).collect();
    let places = Places { positions: &positions, slot_mapping: &slot_mapping };

    let apart = qkv.reshape((tokens, num_heads + 2 * kv_heads, head_size)).unwrap();
    let part = |from, len| apart.narrow(1, from, len).unwrap();
    let (mut q, mut k) = (part(0, num_heads), part(num_heads, kv_heads));
    let v = part(num_heads + kv_heads, kv_heads);
    if let Some([q_norm, k_norm]) = &call.norms {
        (q, k) = (normed(&q, q_norm), normed(&k, k_norm));
    }
    if let Some((table, style)) = call.rope {
        q = rope(&q, table, style, &positions).unwrap();
        k = rope(&k, table, style, &positions).unwrap();
    }
    if let Some(factors) = call.query_scale {
        let factors = Tensor::from_slice(factors, (tokens, 1, 1), &Device::Cpu).unwrap();
        q = q.broadcast_mul(&factors).unwrap();
    }
    let expected = caches.each_ref().map(|cache| cache.copy().unwrap());
    kv_cache::write(&expected[0], &expected[1], &k, &v, &slot_mapping).unwrap();

    heads(&qkv, call, &places, caches.each_ref()).unwrap();
    let found = qkv.narrow(1, 0, num_heads * head_size).unwrap();
    assert_eq!(bits(&found), bits(&q), "queries");
    for (cache, expected) in caches.iter().zip(&expected) {
        assert_eq!(bits(cache), bits(expected), "{dtype:?}");
    }
}

#[test]
fn one_pass_gives_the_bits_of_one_operation_after_the_other() {
    let (num_heads, kv_heads) = (6, 2);
    at_every_level(|| {
        for (head_size, dims) in [(4, 4), (33, 8), (64, 64)] {
            let (table, plain) = (table(dims), random_tensor(7, &[head_size], DType::F32));
            let q_each = random_tensor(8, &[num_heads * head_size], DType::F32);
            let k_each = random_tensor(9, &[kv_heads * head_size], DType::F32);
            for (tokens, dtype) in [1, 7, 33].into_iter().zip(DTYPES) {
                let factors: Vec<f32> = (0..tokens).map(|t| 1.0 + t as f32).collect();
                let base = Heads {
                    heads: num_heads,
                    kv_heads,
                    head_size,
                    norms: None,
                    rope: None,
                    query_scale: None,
                };
                check(&base, tokens, dtype);
                check(&Heads { query_scale: Some(&factors), ..base }, tokens, dtype);
                for style in [RopeStyle::Half, RopeStyle::Interleaved] {
                    for kind in [NormKind::Rms, NormKind::Layer] {
                        for (scope, [q, k]) in [
                            (Scope::PerHead, [&plain, &plain]),
                            (Scope::EachHead, [&q_each, &k_each]),
                            (Scope::Whole, [&q_each, &k_each]),
                        ] {
                            let norm =
                                |weight| HeadNorm { norm: Norm { kind, eps: 1e-6, weight }, scope };
                            let norms = Some([norm(q), norm(k)]);
                            let rope = Some((&table, style));
                            check(&Heads { norms, rope, ..base }, tokens, dtype);
                        }
                    }
                }
            }
        }
    });
}

#[test]
fn wrong_arguments_are_named_and_nothing_is_written() {
    let table = table(4);
    let qkv = random_tensor(1, &[2, 16], DType::F32);
    let [k, v] = [2, 3].map(|seed| random_tensor(seed, &[3, 1, 1, 256], DType::BF16));
    let before = (bits(&qkv), bits(&k), bits(&v));
    let call = Heads {
        heads: 2,
        kv_heads: 1,
        head_size: 4,
        norms: None,
        rope: Some((&table, RopeStyle::Half)),
        query_scale: None,
    };
    let run = |call: &Heads<'_>, positions: &[u32], slot_mapping: &[u32], v: &Tensor| {
        heads(&qkv, call, &Places { positions, slot_mapping }, [&k, v])
    };
    assert_error(
        run(&call, &[0, 100], &[0, 1], &v),
        "positions[1]: expected an index below 100, found 100",
    );
    assert_error(
        run(&call, &[0, 1], &[48, 1], &v),
        "slot_mapping[0]: expected an index below 48, found 48",
    );
    assert_error(
        run(&call, &[0, 1], &[5, 5], &v),
        "slot_mapping: expected no slot twice, found 5 again",
    );
    assert_error(run(&call, &[0], &[5, 6], &v), "positions: expected 2 entries, found 1");
    let three = Heads { heads: 3, ..call };
    assert_error(run(&three, &[0, 1], &[5, 6], &v), "qkv: expected shape [2, 20], found [2, 16]");
    let f32s = v.to_dtype(DType::F32).unwrap();
    assert_error(run(&call, &[0, 1], &[5, 6], &f32s), "cache_v: expected dtype bf16, found F32");
    assert_error(
        run(&call, &[0, 1], &[5, 6], &k),
        "cache_v: expected memory that no other argument shares, found that of cache_k",
    );
    assert_eq!((bits(&qkv), bits(&k), bits(&v)), before);
}
