//! Combine on the GPU: the weighted sum of what a token's experts give, and what all tokens share.

use candle_core::DType;

use super::{Grouping, Shape};
use crate::cuda::{Array, Gpu, Launch, Module, check, module};
use crate::{KernelError, Result};

static MODULE: Module = module!("moe_combine");

const THREADS: usize = 256;

/// Writes `out[t] = sum_k weights[t,k] * y[row(t,k)] + shared[t]` to `out` `[T, hidden]`, summed in
/// f32 in the order of k; y `[T * top_k, hidden]` and shared `[T, hidden]` are of out's type,
/// weights `[T, top_k]` f32. A token that is padding gets what is shared, or 0.
#[allow(unsafe_code)]
pub fn combine(
    gpu: &Gpu,
    (y, grouping): (&Array, &Grouping),
    weights: &Array,
    shared: Option<&Array>,
    out: &Array,
) -> Result<()> {
    let Shape { tokens, top_k, .. } = grouping.shape;
    let (dtype, suffix) = (out.dtype(), check::suffix(out, "out")?);
    let hidden = out.len() / tokens.max(1);
    check::shape(out, "out", dtype, &[tokens, hidden])?;
    check::shape(y, "y", dtype, &[tokens, top_k, hidden])?;
    check::shape(weights, "weights", DType::F32, &[tokens, top_k])?;
    shared.map_or(Ok(()), |shared| check::shape(shared, "shared", dtype, &[tokens, hidden]))?;
    let vector = 16 / dtype.size_in_bytes();
    let aligned = [Some(y), shared, Some(out)].into_iter().flatten().all(Array::is_aligned);
    let (name, parts) = match aligned && hidden.is_multiple_of(vector) {
        true => (format!("moe_combine_{suffix}_vectors"), hidden / vector),
        false => (format!("moe_combine_{suffix}"), hidden),
    };
    let blocks = parts.div_ceil(THREADS);
    let launch = Launch {
        grid: [check::count("out", tokens)?.cast_unsigned(), grid_y(blocks)?, 1],
        block: THREADS as u32,
        shared: 0,
    };
    let args = [
        y.into(),
        (&grouping.row_of_choice).into(),
        weights.into(),
        shared.into(),
        out.into(),
        (top_k as i32).into(),
        check::count("out", hidden)?.into(),
    ];
    // SAFETY: the arguments are the kernel's, the lengths were checked, and the grouping has no
    // rows but those of its shape.
    unsafe { gpu.launch(&MODULE, &name, launch, &args)? };
    Ok(())
}

/// Blocks in a grid's second dimension.
fn grid_y(blocks: usize) -> Result<u32> {
    /// As many as it can have.
    const MOST: usize = 65_535;
    if blocks <= MOST {
        return Ok(blocks as u32);
    }
    let (argument, rule) = ("out", format!("rows of at most {MOST} blocks"));
    Err(KernelError::Value { argument, rule, found: blocks.to_string() })
}
