//! The layers that a decoder is made of: each loads itself from its spec, and computes.
//!
//! A layer's result for a row depends on that row alone: that is so because it is so for every
//! kernel, and nothing here looks across rows.
//!
//! Activations are f32. Shapes: `T` tokens in the batch, `H` heads, `K` KV heads, `D` head size.

use super::cache::LayerCache;
use super::device_error;
use super::spec;
use super::weights::{Part, Weights, names};
use crate::LoadError;
use candle_core::Tensor;
use millstream_kernels::linear::{LinearWeight, linear};
use millstream_kernels::paged_attention::{AttentionParams, PagedBatch, paged_attention};
use millstream_kernels::rms_norm::rms_norm;
use millstream_kernels::rope::{RopeTable, rope};
use millstream_kernels::{KernelError, activation, kv_cache};
use std::sync::Arc;

type Result<T, E = KernelError> = std::result::Result<T, E>;

/// Where a layer's tensors are: the weights, and the layer's index in the checkpoint's names.
pub(crate) struct LayerWeights<'w> {
    pub(crate) weights: &'w mut Weights,
    pub(crate) index: usize,
    pub(crate) hidden: usize,
}

impl LayerWeights<'_> {
    fn names(&self, parts: &[(&str, usize)], kind: &str) -> Vec<Part> {
        let name = |part: &str| names::layer(self.index, part, kind);
        parts.iter().map(|(part, rows)| (name(part), *rows)).collect()
    }

    pub(crate) fn norm(
        &mut self,
        part: &str,
        width: usize,
        spec: spec::Norm,
    ) -> Result<RmsNorm, LoadError> {
        let weight = self.weights.vector(&self.names(&[(part, width)], "weight"))?;
        Ok(RmsNorm { weight, eps: spec.eps })
    }

    /// Projections of the same input, fused into one.
    fn linear(
        &mut self,
        parts: &[(&str, usize)],
        columns: usize,
        bias: bool,
    ) -> Result<Linear, LoadError> {
        let weight = self.weights.matrix(&self.names(parts, "weight"), columns)?;
        let bias = match bias {
            true => Some(self.weights.vector(&self.names(parts, "bias"))?),
            false => None,
        };
        Ok(Linear { weight: LinearWeight::pack(&weight).map_err(device_error)?, bias })
    }
}

/// What every layer of a forward pass reads: where the tokens are.
pub(crate) struct Pass<'a> {
    /// `[T]`.
    pub(crate) positions: &'a [u32],
    /// `[S + 1]`.
    pub(crate) cu_seqlens: &'a [u32],
    /// `[S]`.
    pub(crate) context_lens: &'a [u32],
    /// Per cache group.
    pub(crate) groups: Vec<GroupPass<'a>>,
}

/// Where a cache group's tokens are.
pub(crate) struct GroupPass<'a> {
    /// `[S]` of blocks.
    pub(crate) block_tables: Vec<&'a [u32]>,
    /// `[T]` cells.
    pub(crate) slot_mapping: Vec<u32>,
}

/// `x * weight / sqrt(mean(x^2) + eps)` over the last dimension.
pub(crate) struct RmsNorm {
    weight: Tensor,
    eps: f32,
}

impl RmsNorm {
    pub(crate) fn new(weight: Tensor, spec: spec::Norm) -> Self {
        Self { weight, eps: spec.eps }
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        rms_norm(x, &self.weight, self.eps)
    }
}

/// `x W^T + bias`.
struct Linear {
    weight: LinearWeight,
    bias: Option<Tensor>,
}

impl Linear {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        linear(x, &self.weight, self.bias.as_ref())
    }
}

/// Causal attention over the paged cache.
pub(crate) struct Attention {
    spec: spec::Attention,
    qkv: Linear,
    output: Linear,
    /// Of q, of k.
    qk_norm: Option<(RmsNorm, RmsNorm)>,
    /// Present exactly if the spec has a rope.
    rope: Option<Arc<RopeTable>>,
}

impl Attention {
    pub(crate) fn load(
        from: &mut LayerWeights<'_>,
        spec: &spec::Attention,
        rope: Option<Arc<RopeTable>>,
    ) -> Result<Self, LoadError> {
        let (q, kv, hidden) = (spec.q_width(), spec.kv_width(), from.hidden);
        let parts = [("self_attn.q_proj", q), ("self_attn.k_proj", kv), ("self_attn.v_proj", kv)];
        let qkv = from.linear(&parts, hidden, spec.bias.qkv)?;
        let output = from.linear(&[("self_attn.o_proj", hidden)], q, spec.bias.output)?;
        let qk_norm = match spec.qk_norm {
            None => None,
            Some(spec::QkNorm::PerHead(norm)) => {
                let q_norm = from.norm("self_attn.q_norm", spec.head_dim, norm)?;
                Some((q_norm, from.norm("self_attn.k_norm", spec.head_dim, norm)?))
            }
        };
        Ok(Self { spec: spec.clone(), qkv, output, qk_norm, rope })
    }

    /// `x` and the result are `[T, hidden]`.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        pass: &Pass<'_>,
        cache: &LayerCache,
    ) -> Result<Tensor> {
        let group = &pass.groups[cache.group];
        let (heads, kv_heads) = (self.spec.heads, self.spec.kv_heads);
        let qkv = self.qkv.forward(x)?.reshape(((), heads + 2 * kv_heads, self.spec.head_dim))?;
        let mut q = qkv.narrow(1, 0, heads)?; // [T,H,D]
        let mut k = qkv.narrow(1, heads, kv_heads)?; // [T,K,D]
        let v = qkv.narrow(1, heads + kv_heads, kv_heads)?; // [T,K,D]
        if let Some((q_norm, k_norm)) = &self.qk_norm {
            q = q_norm.forward(&q)?; // [T,H,D]
            k = k_norm.forward(&k)?; // [T,K,D]
        }
        if let (Some(table), Some(spec)) = (&self.rope, &self.spec.rope) {
            q = rope(&q, table, spec.style, pass.positions)?; // [T,H,D]
            k = rope(&k, table, spec.style, pass.positions)?; // [T,K,D]
        }
        // Every row's keys and values are in the cache before any row attends: a row may read
        // blocks that another row of the same step fills.
        kv_cache::write(&cache.k, &cache.v, &k, &v, &group.slot_mapping)?;
        let batch = PagedBatch {
            cu_seqlens: pass.cu_seqlens,
            context_lens: pass.context_lens,
            block_tables: &group.block_tables,
        };
        let (scale, window) = (self.spec.scale, self.spec.window);
        let params = AttentionParams { scale, window, softcap: None, sinks: None };
        let mixed = paged_attention(&q, &cache.k, &cache.v, &batch, &params)?; // [T,H,D]
        self.output.forward(&mixed.flatten_from(1)?) // [T,hidden]
    }
}

/// `down(act(gate(x)) * up(x))`.
pub(crate) struct Mlp {
    gate_up: Linear,
    down: Linear,
    act: activation::Activation,
}

impl Mlp {
    pub(crate) fn load(from: &mut LayerWeights<'_>, spec: &spec::Mlp) -> Result<Self, LoadError> {
        let (inter, hidden) = (spec.inter, from.hidden);
        let gate_up = [("mlp.gate_proj", inter), ("mlp.up_proj", inter)];
        Ok(Self {
            gate_up: from.linear(&gate_up, hidden, spec.bias)?,
            down: from.linear(&[("mlp.down_proj", hidden)], inter, spec.bias)?,
            act: spec.act,
        })
    }

    /// `x` and the result are `[T, hidden]`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let gate_up = self.gate_up.forward(x)?; // [T,2*inter]
        let inner = activation::gated(&gate_up, self.act)?; // [T,inter]
        self.down.forward(&inner) // [T,hidden]
    }
}
