//! What is promised of paged attention, for every dtype, window, cap and sink.

mod segments;

use candle_core::{DType, Device};

use super::*;
use crate::kv_cache;
use crate::simd::pairs::Units;
use crate::simd::{at_every_level, with_all_units};
use crate::testing::{
    DTYPES, assert_close, assert_error, bits, random, random_tensor, strided, values,
};

/// One sequence: its queries, keys and values for every position, f32.
struct Text {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    len: usize,
}

impl Text {
    fn new(seed: u64, len: usize, [heads, kv_heads, head_size]: [usize; 3]) -> Self {
        let tensor = |seed, heads| random_tensor(seed, &[len, heads, head_size], DType::F32);
        let q = (tensor(seed, heads) * 3.0).unwrap();
        Self { q, k: tensor(seed + 100, kv_heads), v: tensor(seed + 200, kv_heads), len }
    }

    /// The same with nothing but `with` in keys and values at `position`.
    fn broken(&self, position: usize, with: f32) -> Self {
        let broken = |x: &Tensor| {
            let (mut data, len) = (values(x), x.elem_count() / self.len);
            data[position * len..][..len].fill(with);
            Tensor::from_vec(data, x.dims(), &Device::Cpu).unwrap()
        };
        Self { q: self.q.clone(), k: broken(&self.k), v: broken(&self.v), len: self.len }
    }
}

/// A cache and the blocks in it that nobody has yet.
struct Cache {
    k: Tensor,
    v: Tensor,
    block_size: usize,
    free: Vec<u32>,
}

impl Cache {
    /// All of it NaN, so that reading what was not written shows; blocks are handed out in
    /// an order that `seed` chooses.
    fn new(seed: u64, [blocks, kv_heads, block_size, head_size]: [usize; 4], d: DType) -> Self {
        let shape = kv_cache::zeros([blocks, kv_heads, block_size, head_size], d).unwrap();
        let nan = || Tensor::full(f32::NAN, shape.dims(), &Device::Cpu).unwrap();
        let (k, v) = (nan().to_dtype(d).unwrap(), nan().to_dtype(d).unwrap());
        let keys = random(seed, blocks);
        let mut free: Vec<u32> = (0..blocks as u32).collect();
        free.sort_by(|&a, &b| keys[a as usize].total_cmp(&keys[b as usize]));
        Self { k, v, block_size, free }
    }

    fn take(&mut self, tokens: usize) -> Vec<u32> {
        self.free.split_off(self.free.len() - tokens.div_ceil(self.block_size))
    }

    fn write(&self, text: &Text, table: &[u32], range: std::ops::Range<usize>) {
        let slot = |j: usize| {
            table[j / self.block_size] * self.block_size as u32 + (j % self.block_size) as u32
        };
        let slots: Vec<u32> = range.clone().map(slot).collect();
        let part = |x: &Tensor| x.narrow(0, range.start, range.len()).unwrap();
        kv_cache::write(&self.k, &self.v, &part(&text.k), &part(&text.v), &slots).unwrap();
    }
}

const PLAIN: AttentionParams<'_> =
    AttentionParams { scale: 0.3, window: None, softcap: None, sinks: None };

/// No window and no cap; windows around the tile and block sizes; a cap that bites; both; and sinks
/// with and without them.
fn all_params(sinks: &Tensor) -> Vec<AttentionParams<'_>> {
    let mut all = vec![PLAIN, AttentionParams { softcap: Some(1.5), ..PLAIN }];
    for window in [1, 5, 16, 31, 32, 33, 64, 1000] {
        all.push(AttentionParams { window: Some(window), ..PLAIN });
    }
    all.push(AttentionParams { window: Some(20), softcap: Some(0.7), ..PLAIN });
    let with_sinks: Vec<_> = [all[0], all[1], all[3], all[6], all[10]]
        .map(|params| AttentionParams { sinks: Some(sinks), ..params })
        .to_vec();
    all.extend(with_sinks);
    all
}

/// The attention of all queries of `text`, computed in one step.
fn whole(text: &Text, cache: &mut Cache, params: &AttentionParams<'_>) -> Tensor {
    chunked(text, cache, params, &[text.len])
}

/// The same, in steps of `lens` tokens.
fn chunked(text: &Text, cache: &mut Cache, params: &AttentionParams<'_>, lens: &[usize]) -> Tensor {
    let table = cache.take(text.len);
    let (mut start, mut outs) = (0, Vec::new());
    for &len in lens {
        cache.write(text, &table, start..start + len);
        let batch = PagedBatch {
            cu_seqlens: &[0, len as u32],
            context_lens: &[(start + len) as u32],
            block_tables: &[&table],
        };
        let q = text.q.narrow(0, start, len).unwrap();
        outs.push(paged_attention(&q, &cache.k, &cache.v, &batch, params).unwrap());
        start += len;
    }
    assert_eq!(start, text.len, "the steps are the whole text");
    Tensor::cat(&outs, 0).unwrap()
}

/// A sink for each of `heads` heads, of the size that scores have.
fn some_sinks(heads: usize) -> Tensor {
    (random_tensor(99, &[heads], DType::F32) * 3.0).unwrap()
}

fn rounded(x: &Tensor, dtype: DType) -> Vec<f32> {
    values(&x.to_dtype(dtype).unwrap())
}

#[test]
fn attention_is_its_formula_for_every_dtype_window_cap_and_odd_size() {
    at_every_level(|| {
        for geometry in [[1, 1, 1], [3, 1, 7], [4, 2, 16], [4, 4, 33], [6, 2, 80]] {
            let [heads, kv_heads, head_size] = geometry;
            let sinks = some_sinks(heads);
            for len in [1, 7, 33, 70] {
                let text = Text::new(1, len, geometry);
                for dtype in DTYPES {
                    let (k, v) = (rounded(&text.k, dtype), rounded(&text.v, dtype));
                    for params in all_params(&sinks) {
                        let mut cache = Cache::new(2, [10, kv_heads, 16, head_size], dtype);
                        let out = whole(&text, &mut cache, &params);
                        let q = values(&text.q);
                        let expected = reference::attention(&q, &k, &v, geometry, &params);
                        let case = format!("{geometry:?}, {len} tokens, {dtype:?}, {params:?}");
                        assert_close(&values(&out), &expected, 5e-6, &case);
                    }
                }
            }
        }
    });
}

#[test]
fn large_heads_and_long_contexts_are_right_too() {
    let geometry = [8, 2, 257];
    let text = Text::new(1, 257, geometry);
    at_every_level(|| {
        let mut cache = Cache::new(2, [40, 2, 16, 257], DType::F16);
        let out = whole(&text, &mut cache, &PLAIN);
        let (k, v) = (rounded(&text.k, DType::F16), rounded(&text.v, DType::F16));
        let expected = reference::attention(&values(&text.q), &k, &v, geometry, &PLAIN);
        assert_close(&values(&out), &expected, 1e-5, "257 tokens");
    });
}

#[test]
fn pairs_of_bf16_round_queries_and_weights_to_bf16_and_nothing_else() {
    with_all_units(|| {
        for geometry in [[1, 1, 1], [3, 1, 7], [4, 2, 16], [4, 4, 33], [6, 2, 80]] {
            let [heads, kv_heads, head_size] = geometry;
            let sinks = some_sinks(heads);
            for len in [1, 7, 33, 70] {
                let text = Text::new(1, len, geometry);
                let (k, v) = (rounded(&text.k, DType::BF16), rounded(&text.v, DType::BF16));
                let q = rounded(&text.q, if rounds() { DType::BF16 } else { DType::F32 });
                for params in all_params(&sinks) {
                    let mut cache = Cache::new(2, [10, kv_heads, 16, head_size], DType::BF16);
                    let out = whole(&text, &mut cache, &params);
                    let expected = reference::attention(&q, &k, &v, geometry, &params);
                    // A weight of p is off by 2^-9 p at most, and values are below 1.
                    let tolerance = if rounds() { 2f32.powi(-9) + 5e-6 } else { 5e-6 };
                    let case = format!("{geometry:?}, {len} tokens, {params:?}");
                    assert_close(&values(&out), &expected, tolerance, &case);
                }
            }
        }
    });
}

/// Whether queries and weights are rounded to bf16 where the cache is bf16.
fn rounds() -> bool {
    match Units::current() {
        #[cfg(target_arch = "x86_64")]
        Units::Dots(_) => true,
        _ => false,
    }
}

#[test]
fn a_query_has_the_same_bits_however_the_text_is_cut_into_steps() {
    let (text, sinks) = (Text::new(3, 75, [4, 2, 48]), some_sinks(4));
    let cuts: [&[usize]; 6] =
        [&[1; 75], &[74, 1], &[1, 74], &[33, 42], &[16, 16, 16, 16, 11], &[31, 1, 1, 40, 2]];
    with_all_units(|| {
        for dtype in DTYPES {
            for params in all_params(&sinks) {
                let mut cache = Cache::new(4, [100, 2, 16, 48], dtype);
                let expected = bits(&whole(&text, &mut cache, &params));
                for cut in cuts {
                    let out = chunked(&text, &mut cache, &params, cut);
                    assert!(bits(&out) == expected, "{cut:?}, {dtype:?}, {params:?}");
                }
            }
        }
    });
}

#[test]
fn a_query_has_the_same_bits_wherever_its_blocks_lie_and_whatever_their_size() {
    let (text, sinks) = (Text::new(5, 75, [4, 2, 48]), some_sinks(4));
    with_all_units(|| {
        for params in all_params(&sinks) {
            let mut cache = Cache::new(0, [20, 2, 16, 48], DType::BF16);
            let expected = bits(&whole(&text, &mut cache, &params));
            for (seed, block_size) in [(1, 16), (2, 16), (3, 32), (4, 48), (5, 128)] {
                let mut cache = Cache::new(seed, [20, 2, block_size, 48], DType::BF16);
                let out = whole(&text, &mut cache, &params);
                assert!(bits(&out) == expected, "blocks of {block_size}, {params:?}");
            }
        }
    });
}

#[test]
fn a_row_has_the_same_bits_among_any_neighbours() {
    let geometry = [4, 2, 48];
    let texts: Vec<Text> = (0..33).map(|i| Text::new(i, 3 + 2 * i as usize, geometry)).collect();
    let sinks = some_sinks(4);
    // Row i computes its last tokens only; what came before is in the cache.
    let new: Vec<usize> = (0..33).map(|i| [1, 2, 3, 1][i % 4]).collect();
    with_all_units(|| {
        for params in all_params(&sinks) {
            let mut cache = Cache::new(7, [100, 2, 16, 48], DType::BF16);
            let tables: Vec<Vec<u32>> = texts.iter().map(|text| cache.take(text.len)).collect();
            for (text, table) in texts.iter().zip(&tables) {
                cache.write(text, table, 0..text.len);
            }
            let attend = |rows: &[usize]| {
                let (mut cu_seqlens, mut qs) = (vec![0], Vec::new());
                for &i in rows {
                    cu_seqlens.push(cu_seqlens[qs.len()] + new[i] as u32);
                    let text = &texts[i];
                    qs.push(text.q.narrow(0, text.len - new[i], new[i]).unwrap());
                }
                let context_lens: Vec<u32> = rows.iter().map(|&i| texts[i].len as u32).collect();
                let block_tables: Vec<&[u32]> =
                    rows.iter().map(|&i| tables[i].as_slice()).collect();
                let batch = PagedBatch {
                    cu_seqlens: &cu_seqlens,
                    context_lens: &context_lens,
                    block_tables: &block_tables,
                };
                let q = strided(&Tensor::cat(&qs, 0).unwrap());
                bits(&paged_attention(&q, &cache.k, &cache.v, &batch, &params).unwrap())
            };
            let alone: Vec<Vec<u32>> = (0..33).map(|i| attend(&[i])).collect();
            let all: Vec<usize> = (0..33).collect();
            assert!(attend(&all) == alone.concat(), "all, {params:?}");
            let reversed: Vec<usize> = (0..33).rev().collect();
            let expected: Vec<u32> = alone.iter().rev().flatten().copied().collect();
            assert!(attend(&reversed) == expected, "reversed, {params:?}");
        }
    });
}

#[test]
fn what_a_query_does_not_see_cannot_reach_it() {
    let text = Text::new(8, 70, [4, 2, 48]);
    let window = AttentionParams { window: Some(9), ..PLAIN };
    with_all_units(|| {
        for dtype in DTYPES {
            for params in [PLAIN, window] {
                let cache = || Cache::new(9, [20, 2, 16, 48], dtype);
                let expected = whole(&text, &mut cache(), &params);
                // The first and the second of a pair.
                for (broken, with) in [(40, f32::NAN), (41, f32::INFINITY), (41, f32::NAN)] {
                    let out = whole(&text.broken(broken, with), &mut cache(), &params);
                    for t in 0..70 {
                        let end = params.window.map_or(70, |w| broken + w as usize);
                        let case = format!("{dtype:?}, {params:?}, {broken}, position {t}");
                        let row = |x: &Tensor| x.narrow(0, t, 1).unwrap();
                        if (broken..end).contains(&t) {
                            assert!(values(&row(&out)).iter().all(|x| x.is_nan()), "{case}");
                        } else {
                            assert_eq!(bits(&row(&out)), bits(&row(&expected)), "{case}");
                        }
                    }
                }
            }
        }
    });
}

/// The attention of the last `len` queries of `text` once the blocks behind their window are gone,
/// and what comes of it when the first block that they do see is gone too.
fn attend_at_the_end(
    text: &Text,
    cache: &mut Cache,
    params: &AttentionParams<'_>,
    len: usize,
) -> (Tensor, crate::Result<Tensor>) {
    let (first, window) = (text.len - len, params.window.map_or(text.len, |w| w as usize));
    let gone = (first + 1).saturating_sub(window) / cache.block_size;
    let mut table = cache.take(text.len);
    cache.write(text, &table, gone * cache.block_size..text.len);
    table[..gone].fill(u32::MAX);
    let attend = |table: &[u32]| {
        let batch = PagedBatch {
            cu_seqlens: &[0, len as u32],
            context_lens: &[text.len as u32],
            block_tables: &[table],
        };
        let q = text.q.narrow(0, first, len).unwrap();
        paged_attention(&q, &cache.k, &cache.v, &batch, params)
    };
    let out = attend(&table).unwrap();
    table[gone] = u32::MAX;
    (out, attend(&table))
}

#[test]
fn blocks_behind_the_window_may_be_gone_and_are_not_read() {
    let (text, sinks) = (Text::new(12, 75, [4, 2, 48]), some_sinks(4));
    with_all_units(|| {
        for block_size in [16, 32, 48] {
            let new = || Cache::new(13, [12, 2, block_size, 48], DType::BF16);
            for params in all_params(&sinks) {
                let expected = whole(&text, &mut new(), &params);
                for len in [1, 2, 17, 40] {
                    let (out, broken) = attend_at_the_end(&text, &mut new(), &params, len);
                    let expected = bits(&expected.narrow(0, 75 - len, len).unwrap());
                    let case = format!("last {len}, blocks of {block_size}, {params:?}");
                    assert!(bits(&out) == expected, "{case}");
                    assert!(broken.is_err(), "a block that is seen must exist: {case}");
                }
            }
        }
    });
}

#[test]
fn a_sink_takes_all_of_the_weight_or_none() {
    let text = Text::new(14, 40, [3, 1, 20]);
    let attend = |sinks: Option<&Tensor>| {
        let params = AttentionParams { sinks, ..PLAIN };
        whole(&text, &mut Cache::new(15, [20, 1, 16, 20], DType::F32), &params)
    };
    let sinks = [f32::NEG_INFINITY, 200.0, f32::NAN];
    with_all_units(|| {
        let sinks = Tensor::new(&sinks, &Device::Cpu).unwrap();
        let (out, expected) = (attend(Some(&sinks)), attend(None));
        let head = |x: &Tensor, h| values(&x.narrow(1, h, 1).unwrap().contiguous().unwrap());
        assert_close(&head(&out, 0), &head(&expected, 0), 1e-6, "a sink of no weight");
        assert!(head(&out, 1).iter().all(|&x| x == 0.0), "a sink of all the weight");
        assert!(head(&out, 2).iter().all(|x| x.is_nan()), "a sink that is NaN");
    });
}

#[test]
fn rows_without_tokens_are_skipped() {
    let text = Text::new(10, 6, [2, 1, 8]);
    let mut cache = Cache::new(11, [20, 1, 16, 8], DType::F32);
    let expected = whole(&text, &mut cache, &PLAIN);
    let table = cache.take(6);
    cache.write(&text, &table, 0..6);
    let batch = PagedBatch {
        cu_seqlens: &[0, 0, 6, 6],
        context_lens: &[0, 6, 3],
        // A row that asks nothing sees nothing: its blocks may be gone.
        block_tables: &[&[], &table, &[u32::MAX]],
    };
    let out = paged_attention(&text.q, &cache.k, &cache.v, &batch, &PLAIN).unwrap();
    assert_eq!(bits(&out), bits(&expected));
    let none = PagedBatch { cu_seqlens: &[0], context_lens: &[], block_tables: &[] };
    let q = Tensor::zeros((0, 2, 8), DType::F32, &Device::Cpu).unwrap();
    let out = paged_attention(&q, &cache.k, &cache.v, &none, &PLAIN).unwrap();
    assert_eq!(out.dims(), [0, 2, 8]);
}

#[test]
fn wrong_batches_are_named() {
    let q = random_tensor(1, &[3, 4, 8], DType::F32);
    let cache = random_tensor(2, &[5, 2, 1, 256], DType::F32);
    let check = |cu_seqlens: &[u32], context_lens: &[u32], tables: &[&[u32]], message: &str| {
        let batch = PagedBatch { cu_seqlens, context_lens, block_tables: tables };
        assert_error(paged_attention(&q, &cache, &cache, &batch, &PLAIN), message);
    };
    check(&[0, 3], &[4, 4], &[&[0]], "cu_seqlens: expected 3 entries, found 2");
    check(&[0, 3], &[4], &[], "block_tables: expected 1 entries, found 0");
    let rising = "cu_seqlens: expected a rising list from 0 to 3, found";
    check(&[0, 2], &[4], &[&[0]], &format!("{rising} [0, 2]"));
    check(&[1, 3], &[4], &[&[0]], &format!("{rising} [1, 3]"));
    check(&[0, 4, 3], &[4, 4], &[&[0], &[0]], &format!("{rising} [0, 4, 3]"));
    check(&[0, 3], &[2], &[&[0]], "context_lens: expected at least the 3 tokens of row 0, found 2");
    check(
        &[0, 3],
        &[17],
        &[&[0]],
        "block_tables: expected blocks of 16 for 17 tokens in row 0, found 1 blocks",
    );
    check(&[0, 3], &[17], &[&[0, 5]], "block_tables[..][1]: expected an index below 5, found 5");
}

#[test]
fn wrong_tensors_and_parameters_are_named() {
    let tensor = |shape: &[usize]| random_tensor(2, shape, DType::F32);
    let batch = PagedBatch { cu_seqlens: &[0, 3], context_lens: &[4], block_tables: &[&[0]] };
    let (q, cache) = (tensor(&[3, 4, 8]), tensor(&[5, 2, 1, 256]));
    let check =
        |q: &Tensor, k: &Tensor, v: &Tensor, params: &AttentionParams<'_>, message: &str| {
            assert_error(paged_attention(q, k, v, &batch, params), message);
        };
    check(
        &tensor(&[3, 5, 8]),
        &cache,
        &cache,
        &PLAIN,
        "q: expected shape [T, a multiple of 2 kv heads, D], found [3, 5, 8]",
    );
    check(
        &tensor(&[3, 4, 17]),
        &cache,
        &cache,
        &PLAIN,
        "cache_k: expected shape [5, 2, 1, 512], found [5, 2, 1, 256]",
    );
    check(
        &q,
        &cache,
        &tensor(&[5, 2, 2, 256]),
        &PLAIN,
        "cache_v: expected shape [5, 2, 1, 256], found [5, 2, 2, 256]",
    );
    check(
        &q,
        &cache,
        &cache.to_dtype(DType::F16).unwrap(),
        &PLAIN,
        "cache_v: expected dtype that of cache_k, found F16",
    );
    check(
        &q.to_dtype(DType::BF16).unwrap(),
        &cache,
        &cache,
        &PLAIN,
        "q: expected dtype f32, found BF16",
    );
    check(
        &q,
        &cache,
        &cache,
        &AttentionParams { window: Some(0), ..PLAIN },
        "window: expected at least 1, found 0",
    );
    check(
        &q,
        &cache,
        &cache,
        &AttentionParams { softcap: Some(0.0), ..PLAIN },
        "softcap: expected above 0, found 0",
    );
    let sinks = tensor(&[3]);
    check(
        &q,
        &cache,
        &cache,
        &AttentionParams { sinks: Some(&sinks), ..PLAIN },
        "sinks: expected shape [4], found [3]",
    );
    let sinks = tensor(&[4]).to_dtype(DType::BF16).unwrap();
    check(
        &q,
        &cache,
        &cache,
        &AttentionParams { sinks: Some(&sinks), ..PLAIN },
        "sinks: expected dtype f32, found BF16",
    );
}
