//! What the tests of all operations share: random arguments, and comparisons.

use candle_core::{DType, Device, Tensor};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// The dtypes of weights and caches.
pub(crate) const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

/// Numbers between -1 and 1, the same for the same `seed`.
pub(crate) fn random(seed: u64, len: usize) -> Vec<f32> {
    let mut rng = StdRng::seed_from_u64(seed);
    (0..len).map(|_| rng.random_range(-1.0..1.0)).collect()
}

/// [`random`] numbers as a tensor.
pub(crate) fn random_tensor(seed: u64, shape: &[usize], dtype: DType) -> Tensor {
    let data = random(seed, shape.iter().product());
    Tensor::from_vec(data, shape, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

/// The elements of `x` in row-major order, widened.
pub(crate) fn values(x: &Tensor) -> Vec<f32> {
    x.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// The bits of [`values`].
pub(crate) fn bits(x: &Tensor) -> Vec<u32> {
    values(x).into_iter().map(f32::to_bits).collect()
}

/// `x` with its rows `[T, ..]` at a distance from each other, as slices of a fused projection are.
pub(crate) fn strided(x: &Tensor) -> Tensor {
    let wide = Tensor::cat(&[x, x, x], 1).unwrap();
    let strided = wide.narrow(1, x.dims()[1], x.dims()[1]).unwrap();
    assert!(x.dims()[0] < 2 || !strided.is_contiguous());
    strided
}

/// Asserts that each element is within `tolerance` of what is expected, relative to 1 or to the
/// expected element, whichever is larger.
#[track_caller]
pub(crate) fn assert_close(found: &[f32], expected: &[f32], tolerance: f32, case: &str) {
    assert_eq!(found.len(), expected.len(), "{case}: number of elements");
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let error = (found - expected).abs() / expected.abs().max(1.0);
        assert!(error <= tolerance, "{case}: element {i} is {found}, expected {expected}");
    }
}

/// Asserts that `result` is the error that reads `message`.
#[track_caller]
pub(crate) fn assert_error<T: std::fmt::Debug>(result: crate::Result<T>, message: &str) {
    assert_eq!(result.unwrap_err().to_string(), message);
}
