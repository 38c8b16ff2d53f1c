//! Heads on the GPU: queries are left in place, in the type of the weights; keys and values go to
//! the blocks of a paged cache. All that is between is computed in f32, and rounded once.

#[cfg(test)]
mod tests;

use candle_core::DType;

use super::Scope;
use crate::cuda::{Arg, Array, Gpu, Launch, Module, check, module};
use crate::norm::NormKind;
use crate::rope::RopeStyle;
use crate::rope::cuda::RopeTable;
use crate::{KernelError, Result};

static MODULE: Module = module!("heads");

/// Lanes of a warp.
const WARP: usize = 32;
/// Warps of a block: few, so that a single token has several multiprocessors; with a sum over all
/// heads, which is one block's, as many as the kernel allows.
const WARPS: usize = 4;
const WARPS_OF_WHOLE: usize = 8;

/// What is done to the heads of a layer.
#[derive(Clone, Copy, Debug)]
pub struct Heads<'a> {
    /// `H`.
    pub heads: usize,
    /// `K`.
    pub kv_heads: usize,
    /// `D`.
    pub head_size: usize,
    /// `[(H + 2K) * D]` f32: the projection's bias, which is added first.
    pub bias: Option<&'a Array>,
    /// Of queries and keys.
    pub norms: Option<Norms<'a>>,
    /// The rotation.
    pub rope: Option<(&'a RopeTable, RopeStyle)>,
    /// `[max_pos]` f32: the factor on the queries of each position.
    pub query_scale: Option<&'a Array>,
}

/// The norms of queries and of keys.
#[derive(Clone, Copy, Debug)]
pub struct Norms<'a> {
    /// What they divide by.
    pub kind: NormKind,
    /// Over what they are taken.
    pub scope: Scope,
    /// Added to the mean square, or to the variance.
    pub eps: f32,
    /// f32, of queries, of keys: `[D]` both; with a weight for each head, or over all heads,
    /// `[H * D]` and `[K * D]`.
    pub weights: [&'a Array; 2],
}

/// Where the tokens are.
#[derive(Clone, Copy, Debug)]
pub struct Places<'a> {
    /// `[T]` u32. One that is not in a table is taken for the last that is.
    pub positions: &'a Array,
    /// `[T]` u32: token t goes to slot `slot_mapping[t] = block * B + offset`; no two to one slot.
    /// One that the cache does not have is not written.
    pub slot_mapping: &'a Array,
}

/// The cache of a layer.
#[derive(Clone, Copy, Debug)]
pub struct Cache<'a> {
    /// `[N, K, B, D]` of the type of qkv.
    pub k: &'a Array,
    /// As `k`.
    pub v: &'a Array,
    /// `B`.
    pub block_size: usize,
}

/// Prepares `qkv` `[T, (H + 2K) * D]` f32|f16|bf16: queries in place, while keys and values are
/// written into the cache and stay in `qkv` as they were.
#[allow(unsafe_code)]
pub fn heads(
    gpu: &Gpu,
    qkv: &Array,
    heads: &Heads<'_>,
    places: &Places<'_>,
    cache: &Cache<'_>,
) -> Result<()> {
    let checked = Checked::new(qkv, heads, places, cache)?;
    let Heads { heads: num_heads, kv_heads, head_size, bias, norms, rope, query_scale } = *heads;
    let first_head = if heads.changes_queries() { 0 } else { num_heads };
    let lanes = heads.lanes(qkv.dtype());
    let num_units = num_heads + 2 * kv_heads - first_head;
    // How many heads a warp takes at once.
    let num_warps = num_units.div_ceil(WARP / lanes.unwrap_or(WARP));
    let (blocks, warps) = match norms {
        Some(Norms { scope: Scope::Whole, .. }) => (1, WARPS_OF_WHOLE),
        _ => (num_warps.div_ceil(WARPS), WARPS),
    };
    let launch = Launch {
        grid: [checked.tokens as u32, blocks as u32, 1],
        block: (warps.min(num_warps) * WARP) as u32,
        shared: 0,
    };
    let table = rope.map(|(table, _)| table);
    let scope = norms.map_or(0, |norms| match norms.scope {
        Scope::PerHead => 1,
        Scope::EachHead => 2,
        Scope::Whole => 3,
    });
    let args: [Arg; 24] = [
        qkv.into(),
        bias.into(),
        norms.map(|norms| norms.weights[0]).into(),
        norms.map(|norms| norms.weights[1]).into(),
        table.map(|table| &table.cos).into(),
        table.map(|table| &table.sin).into(),
        query_scale.into(),
        places.positions.into(),
        places.slot_mapping.into(),
        cache.k.into(),
        cache.v.into(),
        (checked.slots as u32).into(),
        (checked.max_pos as u32).into(),
        (num_heads as i32).into(),
        (kv_heads as i32).into(),
        (head_size as i32).into(),
        (cache.block_size as i32).into(),
        (heads.dims() as i32).into(),
        i32::from(rope.is_some_and(|(_, style)| style == RopeStyle::Interleaved)).into(),
        scope.into(),
        i32::from(norms.is_some_and(|norms| norms.kind == NormKind::Layer)).into(),
        norms.map_or(0.0, |norms| norms.eps).into(),
        (first_head as i32).into(),
        (lanes.unwrap_or(WARP) as i32).into(),
    ];
    let name = if lanes.is_some() { "heads" } else { "heads_any" };
    // SAFETY: the arguments are the kernel's, the lengths were checked; the kernel neither reads
    // at a position that a table does not have nor writes to a slot that the cache does not have.
    unsafe { gpu.launch(&MODULE, &format!("{name}_{}", checked.suffix), launch, &args)? };
    Ok(())
}

impl Heads<'_> {
    fn changes_queries(&self) -> bool {
        self.bias.is_some()
            || self.norms.is_some()
            || self.rope.is_some()
            || self.query_scale.is_some()
    }

    /// How many elements of a head are turned.
    fn dims(&self) -> usize {
        self.rope.map_or(0, |(table, _)| table.dims)
    }

    /// How many lanes share a head, each with two vectors, rounded up to a power of 2; none where
    /// a head is not made of vectors, or of more than a warp holds.
    fn lanes(&self, dtype: DType) -> Option<usize> {
        let (vector, dims) = (16 / dtype.size_in_bytes(), self.dims());
        let has_vectors = self.head_size.is_multiple_of(vector) && dims.is_multiple_of(2 * vector);
        let owners = self.head_size.div_ceil(2 * vector);
        (has_vectors && owners <= WARP).then(|| owners.next_power_of_two())
    }
}

/// What the checks of a call found.
struct Checked {
    tokens: usize,
    slots: usize,
    /// One past the largest position that is in all tables.
    max_pos: usize,
    suffix: &'static str,
}

impl Checked {
    fn new(qkv: &Array, heads: &Heads<'_>, places: &Places<'_>, cache: &Cache<'_>) -> Result<Self> {
        let Heads { heads: num_heads, kv_heads, head_size, .. } = *heads;
        let (dtype, suffix) = (qkv.dtype(), check::suffix(qkv, "qkv")?);
        let (tokens, width) = (places.positions.len(), (num_heads + 2 * kv_heads) * head_size);
        for (argument, number) in [("heads", num_heads), ("kv_heads", kv_heads)] {
            positive(argument, number)?;
        }
        positive("head_size", head_size)?;
        positive("block_size", cache.block_size)?;
        check::count("qkv", width)?;
        check::count("positions", tokens)?;
        check::shape(qkv, "qkv", dtype, &[tokens, width])?;
        check::shape(places.positions, "positions", DType::U32, &[tokens])?;
        check::shape(places.slot_mapping, "slot_mapping", DType::U32, &[tokens])?;
        let block = kv_heads * cache.block_size * head_size;
        let blocks = cache.k.len() / block;
        let shape = [blocks, kv_heads, cache.block_size, head_size];
        check::shape(cache.k, "cache_k", dtype, &shape)?;
        check::shape(cache.v, "cache_v", dtype, &shape)?;
        let slots = blocks * cache.block_size;
        check::count("cache_k", slots)?;
        let mut arrays = vec![(qkv, "qkv"), (cache.k, "cache_k"), (cache.v, "cache_v")];
        let mut float = |array, argument, shape: &[usize]| {
            arrays.push((array, argument));
            check::shape(array, argument, DType::F32, shape)
        };
        if let Some(bias) = heads.bias {
            float(bias, "bias", &[width])?;
        }
        if let Some(Norms { scope, weights: [q, k], .. }) = heads.norms {
            let of = |heads| if scope == Scope::PerHead { head_size } else { heads * head_size };
            float(q, "q_weight", &[of(num_heads)])?;
            float(k, "k_weight", &[of(kv_heads)])?;
        }
        let mut max_pos = heads.query_scale.map(Array::len);
        if let Some((table, _)) = heads.rope {
            float(&table.cos, "cos", &[table.max_pos, table.dims / 2])?;
            float(&table.sin, "sin", &[table.max_pos, table.dims / 2])?;
            if table.dims > head_size {
                let (argument, rule) = ("head_size", format!("at least {}", table.dims));
                let found = head_size.to_string();
                return Err(KernelError::Value { argument, rule, found });
            }
            max_pos = Some(max_pos.unwrap_or(table.max_pos).min(table.max_pos));
        }
        if let Some(factors) = heads.query_scale {
            check::shape(factors, "query_scale", DType::F32, &[factors.len()])?;
        }
        if heads.lanes(dtype).is_some() {
            arrays.iter().try_for_each(|(array, argument)| check::aligned(array, argument))?;
        }
        let max_pos = max_pos.unwrap_or(1);
        positive("max_pos", max_pos)?;
        check::count("max_pos", max_pos)?;
        Ok(Self { tokens, slots, max_pos, suffix })
    }
}

fn positive(argument: &'static str, number: usize) -> Result<()> {
    match number {
        0 => {
            let (rule, found) = ("above 0".to_owned(), "0".to_owned());
            Err(KernelError::Value { argument, rule, found })
        }
        _ => Ok(()),
    }
}
