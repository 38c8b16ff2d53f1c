//! What is promised of products on the GPU: the formula, and bits that do not depend on T.

use super::*;
use crate::cuda::testing::{download, gpu, upload};
use crate::linear::reference;
use crate::testing::{DTYPES, assert_close, assert_error, random_tensor, values};

/// All that depends on the number of tokens: both rooms, their ends, both ways.
const TOKENS: [usize; 8] = [1, 2, 7, 8, 9, 16, 17, 33];

/// The most that a sum over `in_features` random products may be off, relative to 1 or to itself,
/// once it is rounded to `dtype`.
fn tolerance(dtype: DType, in_features: usize) -> f32 {
    let rounding = match dtype {
        DType::F16 => 1.0 / 2000.0,
        DType::BF16 => 1.0 / 250.0,
        _ => 0.0,
    };
    rounding + 1e-5f32.max(3e-8 * in_features as f32)
}

/// The product of random numbers with the formula, for each number of tokens.
fn check(gpu: &Gpu, linear: &Linear, [n, k]: [usize; 2], dtype: DType) {
    let [x, w] =
        [(1, 33), (2, n)].map(|(seed, rows)| values(&random_tensor(seed, &[rows, k], dtype)));
    let expected = reference::linear(&x, &w, &[], k);
    let weight = Weight { elements: upload(gpu, &w, dtype), out_features: n, in_features: k };
    for tokens in TOKENS {
        let x = upload(gpu, &x[..tokens * k], dtype);
        for out_dtype in [dtype, DType::F32] {
            // One more than there is, which must stay what it is.
            let out = upload(gpu, &vec![7.0; tokens * n + 1], out_dtype);
            linear.linear(&x, &weight, &out.slice(0..tokens * n)).unwrap();
            let mut found = download(gpu, &out);
            assert_eq!(found.pop(), Some(7.0), "what lies behind");
            let case = format!("{tokens} x {n} x {k}, {dtype:?} to {out_dtype:?}");
            let tolerance = tolerance(out_dtype, k);
            assert_close(&found, &expected[..tokens * n], tolerance, &case);
        }
    }
}

#[test]
fn linear_is_its_formula_in_every_dtype_and_odd_size() {
    let Some(gpu) = gpu() else { return };
    let linear = Linear::new(&gpu).unwrap();
    for dtype in DTYPES {
        for shape in [[1, 1], [7, 7], [17, 33], [33, 64], [16, 8], [300, 136], [45, 1000]] {
            check(&gpu, &linear, shape, dtype);
        }
    }
}

#[test]
fn long_rows_are_summed_in_parts() {
    let Some(gpu) = gpu() else { return };
    let linear = Linear::new(&gpu).unwrap();
    for dtype in [DType::F16, DType::BF16] {
        for shape in [[70, 2048], [17, 4096], [33, 4104], [20, 8200]] {
            check(&gpu, &linear, shape, dtype);
        }
    }
    // Whoever was last has left them to the next product.
    assert!(gpu.download::<u32>(&linear.counters).unwrap().iter().all(|&count| count == 0));
}

#[test]
fn a_row_has_the_same_bits_with_any_neighbours() {
    let Some(gpu) = gpu() else { return };
    let linear = Linear::new(&gpu).unwrap();
    for dtype in DTYPES {
        for [n, k] in [[17, 33], [40, 520], [33, 4104]] {
            let [x, w] = [(1, MAX_SKINNY), (2, n)]
                .map(|(seed, rows)| values(&random_tensor(seed, &[rows, k], dtype)));
            let elements = upload(&gpu, &w, dtype);
            let weight = Weight { elements, out_features: n, in_features: k };
            let product = |first: usize, tokens: usize| {
                let x = upload(&gpu, &x[first * k..][..tokens * k], dtype);
                let out = gpu.zeros(DType::F32, tokens * n).unwrap();
                linear.linear(&x, &weight, &out).unwrap();
                download(&gpu, &out).into_iter().map(f32::to_bits).collect::<Vec<_>>()
            };
            let all = product(0, MAX_SKINNY);
            for tokens in 1..=MAX_SKINNY {
                for first in [0, MAX_SKINNY - tokens] {
                    let expected = &all[first * n..][..tokens * n];
                    let case = format!("{tokens} from {first} of {n} x {k}, {dtype:?}");
                    assert_eq!(product(first, tokens), expected, "{case}");
                }
            }
        }
    }
}

#[test]
fn a_broken_token_breaks_no_other() {
    let Some(gpu) = gpu() else { return };
    let linear = Linear::new(&gpu).unwrap();
    for (n, k) in [(20, 4104), (5, 7)] {
        let mut x = values(&random_tensor(1, &[9, k], DType::BF16));
        x[3 * k + 2] = f32::NAN;
        let elements = upload(&gpu, &values(&random_tensor(2, &[n, k], DType::BF16)), DType::BF16);
        let weight = Weight { elements, out_features: n, in_features: k };
        let out = gpu.zeros(DType::F32, 9 * n).unwrap();
        linear.linear(&upload(&gpu, &x, DType::BF16), &weight, &out).unwrap();
        for (t, row) in download(&gpu, &out).chunks(n).enumerate() {
            assert!(row.iter().all(|x| x.is_nan() == (t == 3)), "token {t} of {n} x {k}");
        }
    }
}

#[test]
fn what_is_not_aligned_is_multiplied_all_the_same() {
    let Some(gpu) = gpu() else { return };
    let linear = Linear::new(&gpu).unwrap();
    let (tokens, n, k) = (5, 9, 64);
    let [x, w] = [(1, tokens), (2, n)]
        .map(|(seed, rows)| values(&random_tensor(seed, &[rows, k], DType::F16)));
    let expected = reference::linear(&x, &w, &[], k);
    let shifted = |values: &[f32]| {
        upload(&gpu, &[&[9.0], values].concat(), DType::F16).slice(1..values.len() + 1)
    };
    let weight = Weight { elements: shifted(&w), out_features: n, in_features: k };
    let out = gpu.zeros(DType::F32, tokens * n).unwrap();
    linear.linear(&shifted(&x), &weight, &out).unwrap();
    assert_close(&download(&gpu, &out), &expected, 1e-5, "shifted by 2 bytes");
}

#[test]
fn products_can_be_recorded() {
    let Some(gpu) = gpu() else { return };
    let linear = Linear::new(&gpu).unwrap();
    let (n, k, dtype) = (24, 4104, DType::BF16);
    let [x, w] =
        [(1, 20), (2, n)].map(|(seed, rows)| values(&random_tensor(seed, &[rows, k], dtype)));
    let expected = reference::linear(&x, &w, &[], k);
    let (x, elements) = (upload(&gpu, &x, dtype), upload(&gpu, &w, dtype));
    let weight = Weight { elements, out_features: n, in_features: k };
    let out = gpu.zeros(DType::F32, 20 * n).unwrap();
    let products = || {
        linear.linear(&x, &weight, &out)?;
        linear.linear(&x.slice(0..3 * k), &weight, &out.slice(0..3 * n))
    };
    products().unwrap();
    let graph = gpu.record(products).unwrap();
    for _ in 0..2 {
        gpu.clear(&out).unwrap();
        graph.launch().unwrap();
        assert_close(&download(&gpu, &out), &expected, 2e-4, "recorded");
    }
}

#[test]
fn a_cut_follows_from_the_shape_and_gives_each_warp_steps() {
    let cut = |n, k| Cut::new(n, k);
    let expected = Cut { tiles: 384, slices: 1, steps: 64, warps_per_tile: 16 };
    assert_eq!(cut(6144, 4096), expected);
    let expected = Cut { tiles: 256, slices: 4, steps: 56, warps_per_tile: 16 };
    assert_eq!(cut(4096, 14336), expected);
    let expected = Cut { tiles: 192, slices: 1, steps: 16, warps_per_tile: 8 };
    assert_eq!(cut(3072, 1024), expected);
    for k in 1..20_000 {
        let cut = cut(1, k);
        let all = k.div_ceil(STEP);
        for slice in 0..cut.slices {
            let steps = (slice + 1) * all / cut.slices - slice * all / cut.slices;
            assert!((cut.warps_per_tile..=cut.steps).contains(&steps), "{steps} steps of {k}");
        }
        assert!(cut.steps <= MAX_STEPS && SKINNY_WARPS.is_multiple_of(cut.warps_per_tile));
    }
}

#[test]
fn wrong_arguments_are_named() {
    let Some(gpu) = gpu() else { return };
    let linear = Linear::new(&gpu).unwrap();
    let array = |dtype, len| gpu.zeros(dtype, len).unwrap();
    let weight =
        |elements, out_features, in_features| Weight { elements, out_features, in_features };
    let w = weight(array(DType::F16, 12), 3, 4);
    let product = |x: &Array, w: &Weight, out: &Array| linear.linear(x, w, out);
    let [x, out] = [8, 6].map(|len| array(DType::F16, len));
    product(&x, &w, &out).unwrap();
    product(&x.slice(0..0), &w, &out.slice(0..0)).unwrap();
    let short = weight(array(DType::F16, 11), 3, 4);
    assert_error(product(&x, &short, &out), "w: expected shape [3, 4], found [11]");
    let empty = weight(array(DType::F16, 0), 0, 4);
    assert_error(product(&x, &empty, &out), "w: expected rows and columns, found [0, 4]");
    let integers = weight(array(DType::U32, 12), 3, 4);
    assert_error(product(&x, &integers, &out), "w: expected dtype f32, f16 or bf16, found U32");
    assert_error(product(&array(DType::F16, 9), &w, &out), "x: expected shape [2, 4], found [9]");
    assert_error(product(&array(DType::F32, 8), &w, &out), "x: expected dtype f16, found F32");
    assert_error(product(&x, &w, &array(DType::F16, 7)), "out: expected shape [2, 3], found [7]");
    assert_error(product(&x, &w, &array(DType::BF16, 6)), "out: expected dtype f16, found BF16");
}
