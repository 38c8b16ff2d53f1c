//! Grouped linear on the GPU: each row times the matrix of its expert.

use candle_core::DType;

use super::Grouping;
use crate::cuda::{Array, Gpu, Launch, Module, check, module};
use crate::{KernelError, Result};

static MODULE: Module = module!("moe_linear");

/// Threads of a block of `moe_linear`, and its columns.
const THREADS: u32 = 128;
const TILE_N: u32 = 128;
/// Elements of K that it reads at once.
const STEP: usize = 64;
/// Columns of a block of `moe_linear_plain`, and its threads.
const PLAIN_COLUMNS: u32 = 8;
const PLAIN_THREADS: u32 = 256;
/// As many blocks as a grid can have in its second dimension.
const MAX_TILES: usize = 65_535;

/// A projection for each expert.
#[derive(Clone, Debug)]
pub struct Experts {
    /// `[E, N, K]` f32|f16|bf16.
    pub elements: Array,
    /// `[E, N]` f32.
    pub bias: Option<Array>,
    /// `N`: the length of a row of the result.
    pub out_features: usize,
    /// `K`: the length of a row of the input.
    pub in_features: usize,
}

/// What stands in the rows of x.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// x is `[T, K]`: row r of the result is made of that of its token.
    Tokens,
    /// x is `[T * top_k, K]`, ordered as the result.
    Grouped,
}

/// Writes `x[row(r)] @ w[e(r)]^T + bias[e(r)]` to row r of `out` `[T * top_k, N]`, for the rows
/// that `grouping` has; the others stay as they are. x and out are of w's type.
#[allow(unsafe_code)]
pub fn linear(
    gpu: &Gpu,
    (x, rows): (&Array, Rows),
    w: &Experts,
    grouping: &Grouping,
    out: &Array,
) -> Result<()> {
    let (n, k, shape) = (w.out_features, w.in_features, grouping.shape);
    check_arrays(x, rows, w, grouping, out)?;
    let (name, launch) = kernel(x, w, grouping, out)?;
    let args = [
        x.into(),
        (&w.elements).into(),
        w.bias.as_ref().into(),
        out.into(),
        (rows == Rows::Tokens).then_some(&grouping.token_of_row).into(),
        (&grouping.tiles).into(),
        (&grouping.num_tiles).into(),
        check::count("w", n)?.into(),
        check::count("w", k)?.into(),
    ];
    if shape.choices() == 0 {
        return Ok(());
    }
    // SAFETY: the arguments are the kernel's; lengths and alignment were checked, and the tiles
    // have rows and experts of the shape alone.
    unsafe { gpu.launch(&MODULE, &name, launch, &args)? };
    Ok(())
}

/// The kernel for such matrices, and how it is launched.
fn kernel(x: &Array, w: &Experts, grouping: &Grouping, out: &Array) -> Result<(String, Launch)> {
    let (suffix, shape) = (check::suffix(&w.elements, "w")?, grouping.shape);
    let n = check::count("w", w.out_features)?.cast_unsigned();
    let tiles = shape.max_tiles();
    if tiles > MAX_TILES {
        let (argument, rule) = ("grouping", format!("at most {MAX_TILES} tiles"));
        return Err(KernelError::Value { argument, rule, found: tiles.to_string() });
    }
    let aligned = [x, &w.elements, out].iter().all(|array| array.is_aligned());
    if w.elements.dtype() == DType::F32 || !aligned || !w.in_features.is_multiple_of(8) {
        let grid = [n.div_ceil(PLAIN_COLUMNS), tiles as u32, 1];
        let launch = Launch { grid, block: PLAIN_THREADS, shared: 0 };
        return Ok((format!("moe_linear_plain_{suffix}"), launch));
    }
    let rows = shape.tile_rows();
    // What is under way beside what is computed: for few rows more, as there reading is what
    // counts.
    let stages = if rows == 16 { 4 } else { 3 };
    let launch = Launch {
        grid: [n.div_ceil(TILE_N), tiles as u32, 1],
        block: THREADS,
        shared: (stages * (rows + TILE_N as usize) * STEP * w.elements.dtype().size_in_bytes())
            as u32,
    };
    Ok((format!("moe_linear_{suffix}_{rows}"), launch))
}

fn check_arrays(
    x: &Array,
    rows: Rows,
    w: &Experts,
    grouping: &Grouping,
    out: &Array,
) -> Result<()> {
    let (n, k, shape) = (w.out_features, w.in_features, grouping.shape);
    let dtype = w.elements.dtype();
    check::suffix(&w.elements, "w")?;
    if n == 0 || k == 0 {
        let (argument, rule) = ("w", "rows and columns".to_owned());
        return Err(KernelError::Value { argument, rule, found: format!("[{n}, {k}]") });
    }
    check::shape(&w.elements, "w", dtype, &[shape.num_experts, n, k])?;
    if let Some(bias) = &w.bias {
        check::shape(bias, "bias", DType::F32, &[shape.num_experts, n])?;
    }
    let num_rows = match rows {
        Rows::Tokens => shape.tokens,
        Rows::Grouped => shape.choices(),
    };
    check::shape(x, "x", dtype, &[num_rows, k])?;
    check::shape(out, "out", dtype, &[shape.choices(), n])
}
