use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::DType;

use super::*;
use crate::activation::gated;
use crate::simd::bytes::with_all_byte_units;
use crate::simd::pairs::Units;
use crate::simd::with_all_units;
use crate::testing::{DTYPES, assert_close, assert_error, bits, random_tensor, strided, values};

/// `x` as products with weights of `dtype` take it.
fn taken(x: &Tensor, dtype: DType) -> Tensor {
    match dtype == DType::BF16 && Units::current().round() {
        true => x.to_dtype(dtype).unwrap().to_dtype(DType::F32).unwrap(),
        false => x.clone(),
    }
}

/// Linear of random arguments with these dimensions.
fn check([tokens, out_features, in_features]: [usize; 3], dtype: DType) {
    let x = random_tensor(1, &[tokens, in_features], DType::F32);
    let w = random_tensor(2, &[out_features, in_features], dtype);
    let bias = random_tensor(3, &[out_features], DType::F32);
    let packed = LinearWeight::pack(&w).unwrap();
    for bias in [None, Some(&bias)] {
        let out = linear(&x, &packed, bias).unwrap();
        assert_eq!(out.dims(), [tokens, out_features]);
        let bias = bias.map_or(Vec::new(), values);
        let expected =
            reference::linear(&values(&taken(&x, dtype)), &values(&w), &bias, in_features);
        // Weights are widened exactly and products of two bf16 are exact, so what is left is the
        // rounding of f32 sums: one over all k for bf16, sixteen otherwise.
        let tolerance = 1e-5f32.max(3e-8 * in_features as f32);
        let case = format!("{tokens} x {out_features} x {in_features}, {dtype:?}");
        assert_close(&values(&out), &expected, tolerance, &case);
    }
}

#[test]
fn linear_is_its_formula_in_every_dtype_and_odd_size() {
    with_all_units(|| {
        for dtype in DTYPES {
            for tokens in [1, 2, 3, 7, 33] {
                for out_features in [1, 7, 33, 257] {
                    for in_features in [1, 7, 16, 33, 257] {
                        check([tokens, out_features, in_features], dtype);
                    }
                }
            }
        }
    });
}

#[test]
fn linear_is_its_formula_on_several_threads_and_blocks() {
    with_all_units(|| check([5, 1025, 1030], DType::BF16));
    with_all_units(|| check([70, 515, 301], DType::BF16));
    with_all_units(|| check([70, 515, 301], DType::F32));
    with_all_units(|| check([2, 67, 4097], DType::BF16));
    with_all_units(|| check([13, 4097, 64], DType::BF16));
}

#[test]
fn what_is_not_finite_reaches_its_row_and_no_other() {
    with_all_units(|| {
        for dtype in DTYPES {
            for not_finite in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut x = vec![1.0; 3 * 35];
                x[35 + 33] = not_finite;
                let x = Tensor::from_vec(x, (3, 35), &Device::Cpu).unwrap();
                let w = Tensor::ones((40, 35), dtype, &Device::Cpu).unwrap();
                let out = linear(&x, &LinearWeight::pack(&w).unwrap(), None).unwrap();
                for (t, row) in values(&out).chunks(40).enumerate() {
                    let want = if t == 1 { not_finite } else { 35.0 };
                    let same = |x: &f32| *x == want || x.is_nan() && want.is_nan();
                    assert!(row.iter().all(same), "{not_finite} in {dtype:?}: row {t} is {row:?}");
                }
            }
        }
    });
}

#[test]
fn activations_are_rounded_to_the_nearest_even_or_not_at_all() {
    // In steps of bf16 above 1, and what they are rounded to.
    let cases = [(0.49, 0.0), (0.5, 0.0), (0.51, 1.0), (1.49, 1.0), (1.5, 2.0), (1.51, 2.0)];
    let value = |steps: f32| 1.0 + steps * 2f32.powi(-7);
    let w = Tensor::ones((1, 1), DType::BF16, &Device::Cpu).unwrap();
    let w = LinearWeight::pack(&w).unwrap();
    with_all_units(|| {
        for (steps, nearest) in cases {
            let x = Tensor::new(&[[value(steps)]], &Device::Cpu).unwrap();
            let want = if Units::current().round() { nearest } else { steps };
            assert_eq!(values(&linear(&x, &w, None).unwrap()), [value(want)], "{steps}");
        }
    });
}

#[test]
fn a_row_has_the_same_bits_in_every_batch() {
    with_all_units(|| {
        for dtype in DTYPES {
            for (out_features, in_features) in [(33, 257), (1030, 520)] {
                let x = random_tensor(4, &[33, in_features], DType::F32);
                let w = random_tensor(5, &[out_features, in_features], dtype);
                let w = LinearWeight::pack(&w).unwrap();
                let all = linear(&x, &w, None).unwrap();
                for tokens in 1..=33 {
                    let start = 33 - tokens;
                    let part = linear(&x.narrow(0, start, tokens).unwrap(), &w, None).unwrap();
                    let expected = all.narrow(0, start, tokens).unwrap();
                    assert_eq!(bits(&part), bits(&expected), "{tokens} tokens, {dtype:?}");
                }
            }
        }
    });
}

#[test]
fn a_column_has_the_same_bits_whatever_the_other_columns_are() {
    let x = random_tensor(6, &[5, 100], DType::F32);
    let w = random_tensor(7, &[61, 100], DType::BF16);
    with_all_units(|| {
        let all = linear(&x, &LinearWeight::pack(&w).unwrap(), None).unwrap();
        for n in 0..61 {
            let alone = LinearWeight::pack(&w.narrow(0, n, 1).unwrap()).unwrap();
            let alone = linear(&x, &alone, None).unwrap();
            assert_eq!(bits(&alone), bits(&all.narrow(1, n, 1).unwrap()), "column {n}");
        }
    });
}

#[test]
fn each_row_of_a_matrix_that_is_packed_is_asked_for_once() {
    for shape in [[1, 1], [33, 7], [70, 33], [320, 64]] {
        let asked: Vec<AtomicUsize> = (0..shape[0]).map(|_| AtomicUsize::new(0)).collect();
        LinearWeight::pack_rows(shape, |n, row| {
            assert_eq!(row.len(), shape[1]);
            asked[n].fetch_add(1, Ordering::Relaxed);
        });
        assert!(asked.iter().all(|times| times.load(Ordering::Relaxed) == 1), "{shape:?}");
    }
}

/// What is to have the bits of a product and of a gated activation of it.
fn check_gated(w: &LinearWeight, tokens: usize) {
    let (n, k) = (w.out_features, w.in_features);
    let x = random_tensor(1, &[tokens, k], DType::F32);
    let bias = random_tensor(3, &[n], DType::F32);
    for (act, bias) in [
        (Activation::Silu, None),
        (Activation::GeluTanh, Some(&bias)),
        (Activation::ClampedSwish { alpha: 1.702, limit: 0.5 }, Some(&bias)),
    ] {
        let out = view::empty(&[tokens, n / 2]).unwrap();
        gated_linear_into(&strided(&x), w, bias, act, &out).unwrap();
        let expected = gated(&linear(&x, w, bias).unwrap(), act).unwrap();
        assert_eq!(bits(&out), bits(&expected), "{act:?}, {tokens} x {n} x {k}");
    }
}

#[test]
fn a_gated_product_has_the_bits_of_a_product_and_of_its_gates() {
    for half in [1, 16, 33, 64, 100, 515] {
        let w = random_tensor(2, &[2 * half, 70], DType::F32);
        with_all_units(|| {
            for dtype in DTYPES {
                let w = LinearWeight::pack(&w.to_dtype(dtype).unwrap()).unwrap();
                for tokens in [0, 1, 23, 24, 70] {
                    check_gated(&w, tokens);
                }
            }
        });
        with_all_byte_units(|_| {
            for to in [Quantization::Int8, Quantization::Int4] {
                let w = LinearWeight::quantize(&w, to).unwrap();
                for tokens in [1, 23, 24, 70] {
                    check_gated(&w, tokens);
                }
            }
        });
    }
}

#[test]
fn wrong_arguments_of_a_gated_product_are_named() {
    let x = random_tensor(1, &[2, 10], DType::F32);
    let w = |n| LinearWeight::pack(&random_tensor(1, &[n, 10], DType::F32)).unwrap();
    let check = |n: usize, limit: f32, out: [usize; 2], message: &str| {
        let (act, out) =
            (Activation::ClampedSwish { alpha: 1.0, limit }, view::empty(&out).unwrap());
        assert_error(gated_linear_into(&x, &w(n), None, act, &out), message);
    };
    check(7, 1.0, [2, 3], "w: expected shape [2I, K], found [7, 10]");
    check(6, 0.0, [2, 3], "limit: expected above 0, found 0");
    check(6, 1.0, [2, 6], "out: expected shape [2, 3], found [2, 6]");
}

/// Groups of these sizes, whose weights and biases are random.
fn groups(sizes: &[u32], [n, k]: [usize; 2], d: DType) -> (Vec<u32>, Vec<LinearWeight>, Tensor) {
    let ends = sizes.iter().scan(0, |end, size| {
        *end += size;
        Some(*end)
    });
    let weight = |g| LinearWeight::pack(&random_tensor(10 + g, &[n, k], d)).unwrap();
    let weights = (0..sizes.len() as u64).map(weight).collect();
    (ends.collect(), weights, random_tensor(9, &[sizes.len(), n], DType::F32))
}

#[test]
fn each_group_of_rows_meets_its_own_weight_as_if_it_were_alone() {
    with_all_units(|| {
        for dtype in DTYPES {
            for shape in [[1, 7], [33, 257], [300, 200]] {
                let sizes = [0, 1, 7, 0, 0, 2, 33, 5, 0];
                let (ends, weights, bias) = groups(&sizes, shape, dtype);
                let x = random_tensor(8, &[48, shape[1]], DType::F32);
                for bias in [None, Some(&bias)] {
                    let out = grouped_linear(&strided(&x), &ends, &weights, bias).unwrap();
                    let mut alone = Vec::new();
                    for (g, &size) in sizes.iter().enumerate() {
                        let first = ends[g] as usize - size as usize;
                        let rows = x.narrow(0, first, size as usize).unwrap();
                        let bias = bias.map(|bias| bias.get(g).unwrap());
                        alone.push(linear(&rows, &weights[g], bias.as_ref()).unwrap());
                    }
                    let alone = Tensor::cat(&alone, 0).unwrap();
                    assert_eq!(bits(&out), bits(&alone), "{shape:?}, {dtype:?}");
                }
            }
        }
    });
}

#[test]
fn wrong_groups_are_named() {
    let x = random_tensor(1, &[4, 10], DType::F32);
    let (ends, weights, bias) = groups(&[1, 3], [6, 10], DType::F32);
    let check = |x: &Tensor, ends: &[u32], bias: &Tensor, message: &str| {
        assert_error(grouped_linear(x, ends, &weights, Some(bias)), message);
    };
    check(&x, &[4], &bias, "ends: expected 2 entries, found 1");
    check(&x, &[5, 4], &bias, "ends: expected a rising list up to 4, found [5, 4]");
    check(&x, &[1, 3], &bias, "ends: expected a rising list up to 4, found [1, 3]");
    check(&x, &ends, &x, "bias: expected shape [2, 6], found [4, 10]");
    let short = x.narrow(1, 0, 9).unwrap();
    check(&short, &ends, &bias, "w: expected shape [6, 9], found [6, 10]");
    let (_, mixed, _) = groups(&[1], [5, 10], DType::F32);
    let mixed = [weights[0].clone(), mixed[0].clone()];
    assert_error(
        grouped_linear(&x, &ends, &mixed, None),
        "w: expected shape [6, 10], found [5, 10]",
    );
    assert_error(
        grouped_linear(&x, &[], &[], None),
        "ends: expected a rising list up to 4, found []",
    );
    let none = x.narrow(0, 0, 0).unwrap();
    assert_eq!(grouped_linear(&none, &[0, 0], &weights, None).unwrap().dims(), [0, 6]);
}

#[test]
fn rows_may_be_strided_and_weights_transposed() {
    let x = random_tensor(8, &[4, 10], DType::F32);
    let w = random_tensor(9, &[6, 10], DType::F32);
    let transposed = w.t().unwrap().contiguous().unwrap().t().unwrap();
    let expected = linear(&x, &LinearWeight::pack(&w).unwrap(), None).unwrap();
    let out = linear(&strided(&x), &LinearWeight::pack(&transposed).unwrap(), None).unwrap();
    assert_eq!(bits(&out), bits(&expected));
}

#[test]
fn no_tokens_give_no_rows() {
    let w = LinearWeight::pack(&random_tensor(1, &[6, 10], DType::F32)).unwrap();
    let x = Tensor::zeros((0, 10), DType::F32, &Device::Cpu).unwrap();
    assert_eq!(linear(&x, &w, None).unwrap().dims(), [0, 6]);
}

#[test]
fn wrong_arguments_are_named() {
    let w = LinearWeight::pack(&random_tensor(1, &[6, 10], DType::F32)).unwrap();
    let x = |shape: &[usize]| random_tensor(2, shape, DType::F32);
    let bias = |dtype| random_tensor(2, &[6], dtype);
    assert_error(linear(&x(&[10]), &w, None), "x: expected shape [T, K], found [10]");
    assert_error(linear(&x(&[2, 11]), &w, None), "x: expected shape [2, 10], found [2, 11]");
    assert_error(
        linear(&x(&[2, 10]).to_dtype(DType::F16).unwrap(), &w, None),
        "x: expected dtype f32, found F16",
    );
    assert_error(
        linear(&x(&[10, 2]).t().unwrap(), &w, None),
        "x: expected rows that are contiguous, found shape [2, 10] with strides [1, 2]",
    );
    assert_error(linear(&x(&[2, 10]), &w, Some(&x(&[7]))), "bias: expected shape [6], found [7]");
    assert_error(
        linear(&x(&[2, 10]), &w, Some(&bias(DType::BF16))),
        "bias: expected dtype f32, found BF16",
    );
    assert_error(LinearWeight::pack(&bias(DType::F32)), "w: expected shape [N, K], found [6]");
    assert_error(
        LinearWeight::pack(&x(&[2, 10]).to_dtype(DType::U32).unwrap()),
        "w: expected dtype f32, f16 or bf16, found U32",
    );
}
