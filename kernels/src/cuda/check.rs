//! What is checked of arrays before a kernel gets their addresses.

use candle_core::DType;

use super::Array;
use crate::{KernelError, Result};

/// Checks that `array` is as long as `shape` says, and of type `dtype`.
pub(crate) fn shape(
    array: &Array,
    argument: &'static str,
    dtype: DType,
    shape: &[usize],
) -> Result<()> {
    if array.dtype() != dtype {
        let (expected, found) = (dtype.as_str(), array.dtype());
        return Err(KernelError::DType { argument, expected, found });
    }
    if array.len() != shape.iter().product::<usize>() {
        let expected = shape.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
        return Err(KernelError::Shape { argument, expected, found: vec![array.len()] });
    }
    Ok(())
}

/// Checks that `array` begins where 16 bytes can be read at once.
pub(crate) fn aligned(array: &Array, argument: &'static str) -> Result<()> {
    if array.is_aligned() {
        return Ok(());
    }
    let (rule, found) = ("memory that begins at a multiple of 16 bytes", array.address());
    Err(KernelError::Value { argument, rule: rule.to_owned(), found: format!("{found:#x}") })
}

/// The end of the names of kernels for elements of `array`'s type.
pub(crate) fn suffix(array: &Array, argument: &'static str) -> Result<&'static str> {
    match array.dtype() {
        DType::F32 => Ok("f32"),
        DType::F16 => Ok("f16"),
        DType::BF16 => Ok("bf16"),
        found => Err(KernelError::DType { argument, expected: "f32, f16 or bf16", found }),
    }
}

/// A count as kernels take it.
pub(crate) fn count(argument: &'static str, count: usize) -> Result<i32> {
    i32::try_from(count).map_err(|_| {
        let rule = format!("at most {}", i32::MAX);
        KernelError::Value { argument, rule, found: count.to_string() }
    })
}
