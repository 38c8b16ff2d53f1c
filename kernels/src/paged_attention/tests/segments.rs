//! Contexts that are longer than a segment, which threads may share out.

use candle_core::{DType, Tensor};

use super::{Cache, PLAIN, Text, rounded, rounds, some_sinks};
use crate::paged_attention::tile::SEGMENT;
use crate::paged_attention::{AttentionParams, PagedBatch, paged_attention, reference};
use crate::simd::with_all_units;
use crate::testing::{DTYPES, assert_close, bits, values};
use crate::threads;

/// A context of several segments.
const LONG: usize = 2 * SEGMENT + 300;

#[test]
fn contexts_of_several_segments_are_their_formula() {
    let (geometry, sinks) = ([2, 1, 20], some_sinks(2));
    let text = Text::new(21, LONG, geometry);
    let part = text.q.narrow(0, LONG - 3, 3).unwrap();
    with_all_units(|| {
        for dtype in DTYPES {
            let (k, v) = (rounded(&text.k, dtype), rounded(&text.v, dtype));
            let rounds = rounds() && dtype == DType::BF16;
            let q = rounded(&part, if rounds { DType::BF16 } else { DType::F32 });
            let windows = [None, Some(1), Some(290), Some(1200), Some(2000)];
            for (window, sinks) in
                windows.into_iter().zip([None, Some(&sinks), None].iter().cycle())
            {
                let params = AttentionParams { window, sinks: *sinks, ..PLAIN };
                let mut cache = Cache::new(22, [200, 1, 16, 20], dtype);
                let out = at_end(&text, &mut cache, &params, 3);
                let expected = reference::attention(&q, &k, &v, geometry, &params);
                let tolerance = if rounds { 2f32.powi(-9) + 5e-6 } else { 5e-6 };
                assert_close(
                    &values(&out),
                    &expected,
                    tolerance,
                    &format!("{dtype:?}, {params:?}"),
                );
            }
        }
    });
}

/// The attention of the last `len` queries of `text`.
fn at_end(text: &Text, cache: &mut Cache, params: &AttentionParams<'_>, len: usize) -> Tensor {
    let table = cache.take(text.len);
    cache.write(text, &table, 0..text.len);
    let batch = PagedBatch {
        cu_seqlens: &[0, len as u32],
        context_lens: &[text.len as u32],
        block_tables: &[&table],
    };
    let q = text.q.narrow(0, text.len - len, len).unwrap();
    paged_attention(&q, &cache.k, &cache.v, &batch, params).unwrap()
}

#[test]
fn a_long_context_has_the_same_bits_alone_cut_among_threads_and_in_a_batch() {
    let (geometry, sinks) = ([2, 1, 40], some_sinks(2));
    let text = Text::new(23, LONG, geometry);
    // So many rows that none is worth more than its share of a thread.
    let rows = 2 * threads::count() + 1;
    with_all_units(|| {
        for dtype in DTYPES {
            let mut cache = Cache::new(24, [200, 1, 16, 40], dtype);
            let table = cache.take(text.len);
            cache.write(&text, &table, 0..text.len);
            for window in [None, Some(1500)] {
                let params = AttentionParams { window, sinks: Some(&sinks), ..PLAIN };
                let attend = |rows: usize, len: usize| {
                    let cu_seqlens: Vec<u32> = (0..=rows).map(|row| (row * len) as u32).collect();
                    let batch = PagedBatch {
                        cu_seqlens: &cu_seqlens,
                        context_lens: &vec![text.len as u32; rows],
                        block_tables: &vec![table.as_slice(); rows],
                    };
                    let q = text.q.narrow(0, text.len - len, len).unwrap();
                    let q = Tensor::cat(&vec![q; rows], 0).unwrap();
                    bits(&paged_attention(&q, &cache.k, &cache.v, &batch, &params).unwrap())
                };
                let expected = attend(1, 130);
                for len in [33, 2, 1] {
                    let expected = &expected[expected.len() - len * 80..];
                    let case = format!("last {len}, {dtype:?}, {params:?}");
                    assert!(attend(1, len) == expected, "alone: {case}");
                    assert!(attend(rows, len) == expected.repeat(rows), "in a batch: {case}");
                }
            }
        }
    });
}
