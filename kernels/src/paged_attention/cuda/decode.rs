//! Attention of rows with one query each, on tensor cores: the work that a [`Plan`] lists.

use candle_core::DType;

use super::{Attention, Plan, value};
use crate::cuda::{Array, Gpu, Launch, Module, check, module};
use crate::{KernelError, Result};

static DECODE: Module = module!("paged_attention_decode");
static COMBINE: Module = module!("paged_attention_combine");

const DECODE_THREADS: u32 = 128;
const COMBINE_THREADS: u32 = 256;

/// The head sizes that there are kernels for.
const HEAD_SIZES: [usize; 5] = [64, 80, 96, 128, 256];

/// Whether [`decode`] takes heads of that type and size; [`super::simple()`] takes the others.
pub fn takes(dtype: DType, head_size: usize) -> bool {
    matches!(dtype, DType::BF16 | DType::F16) && HEAD_SIZES.contains(&head_size)
}

/// What [`decode`] keeps between its two kernels, for a plan of `max_items`.
pub fn workspace_bytes(max_items: usize, heads: usize, head_size: usize) -> usize {
    max_items * heads * (head_size + 2) * size_of::<f32>()
}

/// Attention of the rows that `plan` was made for; `workspace` is u8, [`workspace_bytes`] long.
///
/// Tokens that are not the query of a row, and rows of padding, are left as they are. A row's
/// result does not depend on the others as long as the plan has room for all splits.
pub fn decode(gpu: &Gpu, attention: &Attention<'_>, plan: &Plan, workspace: &Array) -> Result<()> {
    let Attention { q, cache, params, out } = *attention;
    attention.check()?;
    let (dtype, head_size) = (q.values.dtype(), q.head_size);
    if !takes(dtype, head_size) {
        let (argument, rule) = ("head_size", format!("one of {HEAD_SIZES:?}, bf16 or f16"));
        let found = format!("{head_size}, {}", dtype.as_str());
        return Err(KernelError::Value { argument, rule, found });
    }
    for (array, argument) in
        [(q.values, "q"), (cache.k, "cache_k"), (cache.v, "cache_v"), (out, "out")]
    {
        check::aligned(array, argument)?;
    }
    if !q.stride.is_multiple_of(8) {
        return Err(value("q.stride", "a multiple of 8", q.stride));
    }
    if plan.window != params.window {
        let rule = format!("that of the plan, {:?}", plan.window);
        return Err(value("window", &rule, format!("{:?}", params.window)));
    }
    let bytes = workspace_bytes(plan.max_items, q.heads, head_size);
    check::shape(workspace, "workspace", DType::U8, &[bytes])?;
    check::aligned(workspace, "workspace")?;
    // Sums first, as they are read 16 bytes at a time.
    let sums = plan.max_items * q.heads * head_size * size_of::<f32>();
    let partial = Partials { sums: workspace.slice(0..sums), rest: workspace.slice(sums..bytes) };
    splits(gpu, attention, plan, &partial)?;
    combine(gpu, attention, plan, &partial)
}

/// What splits leave of rows that have several.
struct Partials {
    /// `[max_items, H, D]` f32.
    sums: Array,
    /// `[max_items, H, 2]` f32: maximum of the scores and sum of the weights.
    rest: Array,
}

/// Shared memory of a block (`Shared` of the kernel's file), in bytes.
fn shared_bytes(head_size: usize) -> u32 {
    let stages = if head_size <= 128 { 4 } else { 3 };
    let (ring, merged, partials) = (4 * stages * 16 * head_size * 2, 4 * 4 * head_size * 4, 512);
    (ring + merged + partials) as u32
}

#[allow(unsafe_code)]
fn splits(gpu: &Gpu, attention: &Attention<'_>, plan: &Plan, partials: &Partials) -> Result<()> {
    let Attention { q, cache, params, out } = *attention;
    let passes = (q.heads / cache.kv_heads).div_ceil(16);
    check::count("items", plan.max_items * cache.kv_heads * passes)?;
    let kernel = kernel("decode", q.values)? + &format!("_{}", q.head_size);
    let shared = shared_bytes(q.head_size);
    // As many blocks as run at once; each takes its share of what there is to do.
    let at_once = gpu.occupancy(&DECODE, &kernel, DECODE_THREADS, shared)?.max(1);
    let grid = [gpu.multiprocessors() * at_once, 1, 1];
    let args = [
        q.values.into(),
        (q.stride as u64).into(),
        cache.k.into(),
        cache.v.into(),
        cache.tables.into(),
        check::count("max_blocks", cache.max_blocks)?.into(),
        check::count("block_size", cache.block_size)?.into(),
        check::count("heads", q.heads)?.into(),
        check::count("kv_heads", cache.kv_heads)?.into(),
        (&plan.num_items).into(),
        (&plan.items).into(),
        params.scale.into(),
        params.softcap.unwrap_or(0.0).into(),
        params.sinks.into(),
        out.into(),
        (&partials.sums).into(),
        (&partials.rest).into(),
    ];
    let launch = Launch { grid, block: DECODE_THREADS, shared };
    // SAFETY: the arguments are the kernel's; lengths and alignments were checked, partial sums
    // have numbers below max_items, and what lies on the device is the caller's to answer for.
    unsafe { gpu.launch(&DECODE, &kernel, launch, &args)? };
    Ok(())
}

#[allow(unsafe_code)]
fn combine(gpu: &Gpu, attention: &Attention<'_>, plan: &Plan, partials: &Partials) -> Result<()> {
    let Attention { q, params, out, .. } = *attention;
    let args = [
        (&partials.sums).into(),
        (&partials.rest).into(),
        (&plan.row_partials).into(),
        (&plan.first_item).into(),
        (&plan.items).into(),
        check::count("head_size", q.head_size)?.into(),
        params.sinks.into(),
        out.into(),
    ];
    let grid = [q.heads as u32, plan.rows as u32, 1];
    let launch = Launch { grid, block: COMBINE_THREADS, shared: 0 };
    // SAFETY: as for the splits.
    unsafe { gpu.launch(&COMBINE, &kernel("combine", q.values)?, launch, &args)? };
    Ok(())
}

/// The kernel of that name for the type of `q`.
fn kernel(name: &str, q: &Array) -> Result<String> {
    Ok(format!("paged_attention_{name}_{}", check::suffix(q, "q")?))
}
