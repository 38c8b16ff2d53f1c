use candle_core::DType;
use half::f16;

use super::*;
use crate::embedding::{Table, embedding};
use crate::simd::bytes::with_all_byte_units;
use crate::simd::groups;
use crate::testing::{
    DTYPES, assert_close, assert_error, bits, random, random_tensor, strided, values,
};

const BOTH: [Quantization; 2] = [Quantization::Int8, Quantization::Int4];

/// `w` as it is kept.
fn kept(w: &LinearWeight) -> Vec<f32> {
    let all: Vec<u32> = (0..w.out_features as u32).collect();
    values(&embedding(Table::Packed(w), &all).unwrap())
}

/// `x`, rows of `len`, as products take it, by groups of so many.
fn taken(x: &[f32], len: usize, group: usize) -> Vec<f32> {
    let parts = x.chunks(len).flat_map(|row| row.chunks(group));
    let taken = |x: &[f32]| {
        let mut padded = vec![[0.0; groups::BLOCK]; group / groups::BLOCK];
        padded.as_flattened_mut()[..x.len()].copy_from_slice(x);
        let (scale, inverse) = groups::scale(&padded);
        let q: Vec<_> = padded.iter().map(|x| groups::integers(x, inverse)).collect();
        q.as_flattened()[..x.len()].iter().map(|&q| scale * q as f32).collect::<Vec<_>>()
    };
    parts.flat_map(taken).collect()
}

/// The root of the mean square of `a - b`, as a part of that of `b`.
fn deviation(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let squares = |x: f32| f64::from(x).powi(2);
    let error: f64 = a.iter().zip(b).map(|(a, b)| squares(a - b)).sum();
    (error / b.iter().map(|&b| squares(b)).sum::<f64>()).sqrt()
}

/// Linear of random arguments with these dimensions.
fn check([tokens, out_features, in_features]: [usize; 3], to: Quantization) {
    let x = random_tensor(1, &[tokens, in_features], DType::F32);
    let w = random_tensor(2, &[out_features, in_features], DType::F32);
    let bias = random_tensor(3, &[out_features], DType::F32);
    let quantized = LinearWeight::quantize(&w, to).unwrap();
    for bias in [None, Some(&bias)] {
        let out = linear(&strided(&x), &quantized, bias).unwrap();
        assert_eq!(out.dims(), [tokens, out_features]);
        let bias = bias.map_or(Vec::new(), values);
        let taken = taken(&values(&x), in_features, Quantization::GROUP);
        let expected = reference::linear(&taken, &kept(&quantized), &bias, in_features);
        // Integers are exact: what is left is the rounding of some sums in f32 for each block.
        let case = format!("{tokens} x {out_features} x {in_features}, {to:?}");
        assert_close(&values(&out), &expected, 1e-5, &case);
    }
}

#[test]
fn a_quantised_product_is_its_formula_in_every_odd_size() {
    with_all_byte_units(|_| {
        for to in BOTH {
            for tokens in [1, 2, 3, 4, 5, 6, 7, 33] {
                for out_features in [1, 17, 33, 257] {
                    for in_features in [1, 7, 32, 33, 64, 96, 257] {
                        check([tokens, out_features, in_features], to);
                    }
                }
            }
        }
    });
}

#[test]
fn a_quantised_product_is_its_formula_on_several_threads() {
    with_all_byte_units(|_| {
        for to in BOTH {
            check([5, 1025, 1030], to);
            check([70, 515, 301], to);
            check([2, 67, 4097], to);
            check([13, 4097, 64], to);
        }
    });
}

#[test]
fn what_quantisation_costs_is_known() {
    let (n, k) = (64, 1000);
    // Sums of twelve are normally distributed, as weights are.
    let uniform = random(4, 12 * n * k);
    let w: Vec<f32> = uniform.chunks(12).map(|x| x.iter().sum::<f32>() * 0.01).collect();
    let w = Tensor::from_vec(w, (n, k), &Device::Cpu).unwrap();
    let x = random_tensor(5, &[16, k], DType::F32);
    let exact = linear(&x, &LinearWeight::pack(&w).unwrap(), None).unwrap();
    for (to, of_weights, of_products) in
        [(Quantization::Int8, 0.0059, 0.0074), (Quantization::Int4, 0.0830, 0.0820)]
    {
        let quantized = LinearWeight::quantize(&w, to).unwrap();
        let error = deviation(&kept(&quantized), &values(&w));
        assert!(error < of_weights, "{to:?}: weights are off by {error}");
        let out = linear(&x, &quantized, None).unwrap();
        let error = deviation(&values(&out), &values(&exact));
        assert!(error < of_products, "{to:?}: products are off by {error}");
    }
}

#[test]
fn weights_are_off_by_half_a_step_at_most_in_8_bits() {
    for magnitude in [1e-5, 1.0, 1e4] {
        let w = random_tensor(6, &[40, 77], DType::F32).affine(magnitude, 0.0).unwrap();
        let quantized = LinearWeight::quantize(&w, Quantization::Int8).unwrap();
        for (w, kept) in values(&w).chunks(77).zip(kept(&quantized).chunks(77)) {
            let len = Quantization::GROUP;
            for (w, kept) in w.chunks(len).zip(kept.chunks(len)) {
                let largest = w.iter().fold(0f32, |largest, x| largest.max(x.abs()));
                // f16 is too coarse for scales below 6e-5, the more so the smaller they are.
                let step = (largest / 127.0).max(6e-8) * 1.001;
                for (w, kept) in w.iter().zip(kept) {
                    let error = (w - kept).abs();
                    assert!(error <= 0.5 * step + 3e-8 * 127.0, "{w} became {kept}");
                }
            }
        }
    }
}

#[test]
fn weights_at_the_limits_are_kept_as_they_are() {
    let k = 80;
    let rows: Vec<Vec<f32>> = vec![
        vec![0.0; k],
        vec![0.5; k],
        (0..k).map(|i| (i % 16) as f32 * 0.25 - 3.0).collect(),
        (0..k).map(|i| if i % 32 == 3 { -8.0 } else { -0.5 }).collect(),
    ];
    let w = Tensor::from_vec(rows.concat(), (4, k), &Device::Cpu).unwrap();
    for dtype in DTYPES {
        let quantized = LinearWeight::quantize(&w.to_dtype(dtype).unwrap(), Quantization::Int4);
        assert_close(&kept(&quantized.unwrap()), &rows.concat(), 1e-6, "in 4 bits");
    }
    let integers: Vec<f32> = (0..4 * k).map(|i| (i % 32 * 8) as f32 - 127.0 + 3.0).collect();
    let integers: Vec<f32> = integers
        .chunks(k)
        .flat_map(|row| row.chunks(32))
        .flat_map(|block| {
            let mut block = block.to_vec();
            block[0] = 127.0;
            block
        })
        .collect();
    let w = Tensor::from_slice(&integers, (4, k), &Device::Cpu).unwrap();
    let quantized = LinearWeight::quantize(&w, Quantization::Int8).unwrap();
    assert_eq!(kept(&quantized), integers);
}

/// Blocks as files have them, different in every row and place.
fn block(n: usize, b: usize, to: Quantization) -> Block {
    let integer = |k: usize| (n * 31 + b * 7 + k * 13) % 256;
    let scale = f16::from_f32(0.01 + (n % 5) as f32 * 0.003).to_f32();
    match to {
        Quantization::Int8 => {
            Block { q: std::array::from_fn(|k| integer(k) as u8 as i8), scale, min: 0.0 }
        }
        Quantization::Int4 => {
            Block { q: std::array::from_fn(|k| (integer(k) % 16) as i8), scale, min: -8.0 * scale }
        }
    }
}

#[test]
fn blocks_that_are_quantised_already_are_kept_to_the_last_bit() {
    let (n, k) = (67, 100);
    for to in BOTH {
        let w = LinearWeight::from_blocks([n, k], to, |n, blocks| {
            assert_eq!(blocks.len(), 4);
            for (b, to_block) in blocks.iter_mut().enumerate() {
                *to_block = block(n, b, to);
            }
        });
        let w = w.unwrap();
        assert_eq!((w.out_features(), w.in_features()), (n, k));
        let element = |i: usize| {
            let (n, k) = (i / k, i % k);
            let block = block(n, k / 32, to);
            block.scale * f32::from(block.q[k % 32]) + block.min
        };
        let expected: Vec<f32> = (0..n * k).map(element).collect();
        assert_eq!(kept(&w), expected, "{to:?}");
        let x = random_tensor(7, &[3, k], DType::F32);
        let expected = reference::linear(&taken(&values(&x), k, 32), &expected, &[], k);
        with_all_byte_units(|units| {
            let out = linear(&x, &w, None).unwrap();
            assert_close(&values(&out), &expected, 1e-5, &format!("{to:?}, {units:?}"));
        });
    }
}

#[test]
fn all_units_that_fuse_give_the_same_bits() {
    for to in BOTH {
        for [tokens, n, k] in [[1, 100, 1000], [9, 257, 333]] {
            let x = random_tensor(8, &[tokens, k], DType::F32);
            let w = random_tensor(9, &[n, k], DType::BF16);
            let w = LinearWeight::quantize(&w, to).unwrap();
            let outputs = std::cell::RefCell::new(Vec::new());
            with_all_byte_units(|units| {
                if units.fuse() {
                    outputs.borrow_mut().push(bits(&linear(&x, &w, None).unwrap()));
                }
            });
            for out in outputs.take().windows(2) {
                assert_eq!(out[0], out[1], "{to:?}, {tokens} x {n} x {k}");
            }
        }
    }
}

#[test]
fn a_row_of_a_quantised_product_has_the_same_bits_in_every_batch() {
    with_all_byte_units(|units| {
        for to in BOTH {
            for (n, k) in [(33, 257), (1030, 520)] {
                let x = random_tensor(4, &[33, k], DType::F32);
                let w = random_tensor(5, &[n, k], DType::F32);
                let w = LinearWeight::quantize(&w, to).unwrap();
                let all = linear(&x, &w, None).unwrap();
                for tokens in 1..=33 {
                    let start = 33 - tokens;
                    let part = linear(&x.narrow(0, start, tokens).unwrap(), &w, None).unwrap();
                    let expected = all.narrow(0, start, tokens).unwrap();
                    assert_eq!(bits(&part), bits(&expected), "{tokens} tokens, {to:?}, {units:?}");
                }
            }
        }
    });
}

#[test]
fn a_column_of_a_quantised_product_does_not_know_the_others() {
    let x = random_tensor(6, &[5, 100], DType::F32);
    let w = random_tensor(7, &[61, 100], DType::BF16);
    with_all_byte_units(|_| {
        for to in BOTH {
            let all = linear(&x, &LinearWeight::quantize(&w, to).unwrap(), None).unwrap();
            for n in 0..61 {
                let alone = LinearWeight::quantize(&w.narrow(0, n, 1).unwrap(), to).unwrap();
                let alone = linear(&x, &alone, None).unwrap();
                assert_eq!(bits(&alone), bits(&all.narrow(1, n, 1).unwrap()), "column {n}");
            }
        }
    });
}

#[test]
fn what_is_not_finite_makes_its_row_nan_and_no_other() {
    with_all_byte_units(|_| {
        for to in BOTH {
            for not_finite in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut x = vec![1.0; 3 * 35];
                x[35 + 33] = not_finite;
                let x = Tensor::from_vec(x, (3, 35), &Device::Cpu).unwrap();
                let w = Tensor::ones((40, 35), DType::F32, &Device::Cpu).unwrap();
                let w = LinearWeight::quantize(&w, to).unwrap();
                let out = linear(&x, &w, None).unwrap();
                for (t, row) in values(&out).chunks(40).enumerate() {
                    let right = |x: &f32| if t == 1 { x.is_nan() } else { (x - 35.0).abs() < 0.01 };
                    assert!(row.iter().all(right), "{not_finite} in {to:?}: row {t} is {row:?}");
                }
            }
        }
    });
}

#[test]
fn weights_that_are_not_finite_make_their_column_nan_and_no_other() {
    for to in BOTH {
        for not_finite in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX] {
            let mut w = vec![1.0; 40 * 35];
            w[7 * 35 + 34] = not_finite;
            let w = Tensor::from_vec(w, (40, 35), &Device::Cpu).unwrap();
            let w = LinearWeight::quantize(&w, to).unwrap();
            let x = Tensor::ones((2, 35), DType::F32, &Device::Cpu).unwrap();
            for row in values(&linear(&x, &w, None).unwrap()).chunks(40) {
                for (n, x) in row.iter().enumerate() {
                    assert_eq!(x.is_nan(), n == 7, "{not_finite} in {to:?}: column {n} is {x}");
                }
            }
        }
    }
}

#[test]
fn groups_may_mix_kinds_of_weights() {
    let (n, k, sizes) = (100, 70, [3, 0, 9, 1, 2]);
    let random = |g: u64| random_tensor(10 + g, &[n, k], DType::BF16);
    let weights = [
        LinearWeight::quantize(&random(0), Quantization::Int8).unwrap(),
        LinearWeight::pack(&random(1)).unwrap(),
        LinearWeight::quantize(&random(2), Quantization::Int4).unwrap(),
        LinearWeight::pack(&random(3)).unwrap(),
        LinearWeight::pack(&random(4).to_dtype(DType::F32).unwrap()).unwrap(),
    ];
    let bias = random_tensor(9, &[sizes.len(), n], DType::F32);
    let x = random_tensor(8, &[15, k], DType::F32);
    with_all_byte_units(|_| {
        let (mut start, mut ends, mut alone) = (0, Vec::new(), Vec::new());
        for (g, w) in weights.iter().enumerate() {
            let rows = x.narrow(0, start, sizes[g]).unwrap();
            alone.push(linear(&rows, w, Some(&bias.get(g).unwrap())).unwrap());
            start += sizes[g];
            ends.push(start as u32);
        }
        let out = grouped_linear(&strided(&x), &ends, &weights, Some(&bias)).unwrap();
        assert_eq!(bits(&out), bits(&Tensor::cat(&alone, 0).unwrap()));
    });
}

#[test]
fn empty_matrices_are_quantised_too() {
    for to in BOTH {
        let w = |shape| LinearWeight::quantize(&random_tensor(1, shape, DType::F32), to).unwrap();
        let x = |shape| random_tensor(2, shape, DType::F32);
        assert_eq!(linear(&x(&[2, 10]), &w(&[0, 10]), None).unwrap().dims(), [2, 0]);
        assert_eq!(linear(&x(&[0, 10]), &w(&[6, 10]), None).unwrap().dims(), [0, 6]);
        let bias = x(&[6]);
        let out = linear(&x(&[2, 0]), &w(&[6, 0]), Some(&bias)).unwrap();
        assert_eq!(values(&out), [values(&bias), values(&bias)].concat());
        let none = embedding(Table::Packed(&w(&[6, 0])), &[1, 2]).unwrap();
        assert_eq!(none.dims(), [2, 0]);
    }
}

#[test]
fn wrong_arguments_of_quantised_products_are_named() {
    let x = |shape: &[usize]| random_tensor(2, shape, DType::F32);
    for to in BOTH {
        let w = LinearWeight::quantize(&x(&[6, 10]), to).unwrap();
        assert_error(linear(&x(&[2, 11]), &w, None), "x: expected shape [2, 10], found [2, 11]");
        assert_error(
            linear(&x(&[10, 2]).t().unwrap(), &w, None),
            "x: expected rows that are contiguous, found shape [2, 10] with strides [1, 2]",
        );
        assert_error(
            embedding(Table::Packed(&w), &[3, 6]),
            "ids[1]: expected an index below 6, found 6",
        );
        assert_error(LinearWeight::quantize(&x(&[6]), to), "w: expected shape [N, K], found [6]");
        assert_error(
            LinearWeight::quantize(&x(&[2, 10]).to_dtype(DType::U32).unwrap(), to),
            "w: expected dtype f32, f16 or bf16, found U32",
        );
    }
}

#[test]
fn blocks_that_cannot_be_kept_are_named() {
    let with = |wrong: Block, to| {
        LinearWeight::from_blocks([3, 70], to, |n, blocks| {
            blocks.fill(Block { q: [1; 32], scale: 0.5, min: 0.0 });
            if n == 1 {
                blocks[2] = wrong;
            }
        })
    };
    let message =
        |rule, wrong: &Block| format!("blocks: expected {rule}, found row 1, block 2: {wrong:?}");
    let wrong = Block { q: [1; 32], scale: 0.5, min: -1.0 };
    assert_error(with(wrong, Quantization::Int8), &message("blocks whose minimum is 0", &wrong));
    for q in [-1, 16] {
        let wrong = Block { q: std::array::from_fn(|k| if k == 30 { q } else { 1 }), ..wrong };
        assert_error(with(wrong, Quantization::Int4), &message("integers from 0 to 15", &wrong));
    }
}
