//! A GPU for tests, where there is one, and arrays of any type for them.

use candle_core::DType;
use half::{bf16, f16};

use super::{Array, Gpu};
use crate::testing::assert_close;

/// The first GPU; where there is none, says once that the tests which need one are skipped.
pub(crate) fn gpu() -> Option<Gpu> {
    match Gpu::open(0) {
        Ok(gpu) => Some(gpu),
        Err(error) => {
            static SAID: std::sync::Once = std::sync::Once::new();
            SAID.call_once(|| println!("skipped: {error}"));
            None
        }
    }
}

/// `values`, rounded to `dtype`.
pub(crate) fn upload(gpu: &Gpu, values: &[f32], dtype: DType) -> Array {
    let values = values.iter();
    match dtype {
        DType::F16 => gpu.upload(&values.map(|&x| f16::from_f32(x)).collect::<Vec<_>>()),
        DType::BF16 => gpu.upload(&values.map(|&x| bf16::from_f32(x)).collect::<Vec<_>>()),
        _ => gpu.upload(values.as_slice()),
    }
    .unwrap()
}

/// The floats of `array`, widened.
pub(crate) fn download(gpu: &Gpu, array: &Array) -> Vec<f32> {
    match array.dtype() {
        DType::F16 => gpu.download(array).unwrap().into_iter().map(f16::to_f32).collect(),
        DType::BF16 => gpu.download(array).unwrap().into_iter().map(bf16::to_f32).collect(),
        _ => gpu.download(array).unwrap(),
    }
}

/// Asserts that each element is what is expected, but for the order of sums and for one rounding to
/// `dtype`.
#[track_caller]
pub(crate) fn close(found: &[f32], expected: &[f32], dtype: DType, case: &str) {
    let tolerance = match dtype {
        DType::F16 => 1.0 / 2000.0,
        DType::BF16 => 1.0 / 250.0,
        _ => 4e-6,
    };
    assert_close(found, expected, tolerance, case);
}
