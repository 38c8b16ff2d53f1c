//! Heads: what happens to queries, keys and values between their projection and attention, in one
//! pass over each token:
//!
//! ```text
//! q = query_scale * rope(norm(q))        norm and rope where there are any
//! k = rope(norm(k))
//! cache_k[slot] = k, cache_v[slot] = v   rounded to the cache's dtype: nearest, ties to even
//! ```
//!
//! qkv `[T, (H + 2K) * D]` f32, contiguous, a row being q, k and v; q and k are changed where they
//! stand. caches as in [`crate::kv_cache`], contiguous. The bits are those of
//! [`crate::rms_norm`], [`crate::rope`] and [`crate::kv_cache`], one after the other.

mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(test)]
mod tests;

use candle_core::{DType, Tensor};
use half::{bf16, f16};

use crate::element::Element;
use crate::kv_cache::Geometry;
use crate::norm::{LockedNorm, Norm};
use crate::rope::{RopeStyle, RopeTable};
use crate::scratch;
use crate::view;
use crate::{KernelError, Result};

/// What is done to the heads of a layer.
#[derive(Clone, Copy, Debug)]
pub struct Heads<'a> {
    /// `H`.
    pub heads: usize,
    /// `K`.
    pub kv_heads: usize,
    /// `D`.
    pub head_size: usize,
    /// Of queries, of keys.
    pub norms: Option<[HeadNorm<'a>; 2]>,
    /// The rotation.
    pub rope: Option<(&'a RopeTable, RopeStyle)>,
    /// `[T]`: factors on each token's queries, or none at all.
    pub query_scale: Option<&'a [f32]>,
}

/// The norm of queries, or of keys.
#[derive(Clone, Copy, Debug)]
pub struct HeadNorm<'a> {
    /// Its weight is `[D]`, one for all heads; `[heads * D]`, one for each head, or over all heads.
    pub norm: Norm<'a>,
    /// What is divided by.
    pub scope: Scope,
}

/// Over what a norm is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Each head by itself, with one weight for all.
    PerHead,
    /// Each head by itself, with a weight of its own.
    EachHead,
    /// All heads together.
    Whole,
}

/// Where the tokens are.
#[derive(Clone, Copy, Debug)]
pub struct Places<'a> {
    /// `[T]`: what the rotation turns by.
    pub positions: &'a [u32],
    /// `[T]`: token t goes to slot `slot_mapping[t] = block * B + offset`; no two to one slot.
    pub slot_mapping: &'a [u32],
}

/// Prepares `qkv` in place, and writes keys and values into the caches.
///
/// All arguments are checked before the first byte is written.
pub fn heads(
    qkv: &Tensor,
    heads: &Heads<'_>,
    places: &Places<'_>,
    [cache_k, cache_v]: [&Tensor; 2],
) -> Result<()> {
    let Heads { heads: num_heads, kv_heads, head_size, .. } = *heads;
    let [tokens, _] = view::dims(qkv, "qkv", ["T", "(H + 2K) * D"])?;
    view::shape(qkv, "qkv", &[tokens, (num_heads + 2 * kv_heads) * head_size])?;
    let caches = Geometry::of([cache_k, cache_v], head_size)?;
    view::shape(cache_k, "cache_k", &Geometry { kv_heads, ..caches }.shape())?;
    check_places(heads, places, tokens, caches.blocks * caches.block_size())?;
    view::distinct((qkv, "qkv"), (cache_k, "cache_k"))?;
    view::distinct((qkv, "qkv"), (cache_v, "cache_v"))?;
    view::distinct((cache_v, "cache_v"), (cache_k, "cache_k"))?;
    let locked = match heads.norms {
        Some([q, k]) => Some([q.lock(num_heads, head_size)?, k.lock(kv_heads, head_size)?]),
        None => None,
    };
    let norms = match &locked {
        Some([q, k]) => Some([q.get()?, k.get()?]),
        None => None,
    };
    let work = cpu::Work { heads, norms, places, caches };
    match cache_k.dtype() {
        DType::F32 => write::<f32>(qkv, &work, cache_k, cache_v),
        DType::F16 => write::<f16>(qkv, &work, cache_k, cache_v),
        DType::BF16 => write::<bf16>(qkv, &work, cache_k, cache_v),
        found => {
            let (argument, expected) = ("cache_k", "f32, f16 or bf16");
            Err(KernelError::DType { argument, expected, found })
        }
    }
}

fn write<E: Element>(
    qkv: &Tensor,
    work: &cpu::Work<'_>,
    cache_k: &Tensor,
    cache_v: &Tensor,
) -> Result<()> {
    let (mut inner, mut innermost) = (Ok(()), Ok(()));
    view::write(qkv, "qkv", &[], |qkv| {
        inner = view::write::<E>(cache_k, "cache_k", &[], |cache_k| {
            innermost = view::write::<E>(cache_v, "cache_v", &[], |cache_v| {
                cpu::prepare(work, qkv, [cache_k, cache_v]);
            });
        });
    })?;
    inner.and(innermost)
}

impl<'a> HeadNorm<'a> {
    fn lock(&self, heads: usize, head_size: usize) -> Result<LockedHeadNorm<'a>> {
        let len = if self.scope == Scope::PerHead { head_size } else { heads * head_size };
        Ok(LockedHeadNorm { norm: self.norm.lock(len)?, scope: self.scope })
    }
}

struct LockedHeadNorm<'a> {
    norm: LockedNorm<'a>,
    scope: Scope,
}

impl LockedHeadNorm<'_> {
    fn get(&self) -> Result<cpu::HeadNorm<'_>> {
        Ok(cpu::HeadNorm { norm: self.norm.get()?, scope: self.scope })
    }
}

fn check_places(heads: &Heads<'_>, places: &Places<'_>, tokens: usize, slots: usize) -> Result<()> {
    if let Some((table, _)) = heads.rope {
        view::len("positions", tokens, places.positions.len())?;
        view::indices("positions", places.positions, table.max_pos())?;
        if table.dims() > heads.head_size {
            let (argument, rule) = ("head_size", format!("at least {}", table.dims()));
            return Err(KernelError::Value { argument, rule, found: heads.head_size.to_string() });
        }
    }
    if let Some(factors) = heads.query_scale {
        view::len("query_scale", tokens, factors.len())?;
    }
    view::len("slot_mapping", tokens, places.slot_mapping.len())?;
    view::indices("slot_mapping", places.slot_mapping, slots)?;
    match scratch::first_repeated(places.slot_mapping) {
        None => Ok(()),
        Some(slot) => Err(KernelError::Value {
            argument: "slot_mapping",
            rule: "no slot twice".to_owned(),
            found: format!("{slot} again"),
        }),
    }
}
