//! Attention of any tokens, of any type and head size, one token at a time.

use candle_core::DType;

use super::{Attention, value};
use crate::Result;
use crate::cuda::{Array, Gpu, Launch, Module, check, module};

static MODULE: Module = module!("paged_attention_simple");

const THREADS: u32 = 128;

/// Elements of a head that the smaller and the larger kernel take.
const SMALL: usize = 128;
const LARGE: usize = 512;

/// Which row each token of a step belongs to.
#[derive(Clone, Copy, Debug)]
pub struct TokenRows<'a> {
    /// `[R]` u32: whose blocks.
    pub slot: &'a Array,
    /// `[T]` u32: the row of a token; [`super::PAD`] for one that is left as it is.
    pub row_of_token: &'a Array,
    /// `[T]` u32: its position.
    pub positions: &'a Array,
}

/// Attention of every token that has a row.
#[allow(unsafe_code)]
pub fn simple(gpu: &Gpu, attention: &Attention<'_>, rows: &TokenRows<'_>) -> Result<()> {
    let Attention { q, cache, params, out } = *attention;
    let tokens = attention.check()?;
    check::shape(rows.slot, "slot", DType::U32, &[rows.slot.len()])?;
    check::shape(rows.row_of_token, "row_of_token", DType::U32, &[tokens])?;
    check::shape(rows.positions, "positions", DType::U32, &[tokens])?;
    if q.head_size == 0 || q.head_size > LARGE {
        return Err(value("head_size", &format!("1 to {LARGE}"), q.head_size));
    }
    let size = if q.head_size <= SMALL { SMALL } else { LARGE };
    let kernel = format!("paged_attention_simple_{}_{size}", check::suffix(q.values, "q")?);
    let grid = [check::count("tokens", tokens)? as u32, q.heads as u32, 1];
    let args = [
        q.values.into(),
        (q.stride as u64).into(),
        cache.k.into(),
        cache.v.into(),
        cache.tables.into(),
        check::count("max_blocks", cache.max_blocks)?.into(),
        check::count("block_size", cache.block_size)?.into(),
        check::count("kv_heads", cache.kv_heads)?.into(),
        check::count("head_size", q.head_size)?.into(),
        rows.slot.into(),
        rows.row_of_token.into(),
        rows.positions.into(),
        params.scale.into(),
        params.window().into(),
        params.softcap.unwrap_or(0.0).into(),
        params.sinks.into(),
        out.into(),
    ];
    let launch = Launch { grid, block: THREADS, shared: 0 };
    // SAFETY: the arguments are the kernel's, lengths were checked, and what lies on the device is
    // the caller's to answer for.
    unsafe { gpu.launch(&MODULE, &kernel, launch, &args)? };
    Ok(())
}
