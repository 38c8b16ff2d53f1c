//! The layers that a decoder is made of: each loads itself from its spec, and computes.
//!
//! A layer's result for a row depends on that row alone: that is so because it is so for every
//! kernel, and nothing here looks across rows.
//!
//! Activations are f32. Shapes: `T` tokens in the batch, `H` heads, `K` KV heads, `D` head size.

use super::cache::LayerCache;
use super::device_error;
use super::spec::{self, NormKind, QkNorm};
use super::weights::layer::LayerWeights;
use super::weights::names::NormRole;
use crate::LoadError;
use candle_core::{DType, Device, Tensor};
use millstream_kernels::layer_norm::layer_norm;
use millstream_kernels::linear::{LinearWeight, linear};
use millstream_kernels::paged_attention::{AttentionParams, PagedBatch, paged_attention};
use millstream_kernels::rms_norm::rms_norm;
use millstream_kernels::rope::{RopeTable, rope};
use millstream_kernels::{KernelError, activation, kv_cache};
use std::sync::Arc;

type Result<T, E = KernelError> = std::result::Result<T, E>;

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

/// A norm over the last dimension.
pub(crate) struct Norm {
    weight: Tensor,
    spec: spec::Norm,
}

impl Norm {
    /// A norm of the residual stream, if the layer has it.
    pub(crate) fn load(
        from: &mut LayerWeights<'_>,
        role: NormRole,
        spec: Option<spec::Norm>,
    ) -> Result<Option<Self>, LoadError> {
        spec.map(|spec| Self::new(from.norm(role)?, spec)).transpose()
    }

    /// With a weight as stored.
    pub(crate) fn new(stored: Tensor, spec: spec::Norm) -> Result<Self, LoadError> {
        let weight = match spec.plus_one {
            true => (stored + 1.0).map_err(device_error)?,
            false => stored,
        };
        Ok(Self { weight, spec })
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self.spec.kind {
            NormKind::Rms => rms_norm(x, &self.weight, self.spec.eps),
            NormKind::Layer => layer_norm(x, &self.weight, None, self.spec.eps),
        }
    }
}

/// `x W^T + bias`.
pub(crate) struct Linear {
    weight: LinearWeight,
    bias: Option<Tensor>,
}

impl Linear {
    /// Projections of the same input, fused into one: each by its name and its rows.
    pub(crate) fn load(
        from: &mut LayerWeights<'_>,
        parts: &[(&str, usize)],
        columns: usize,
        bias: bool,
    ) -> Result<Self, LoadError> {
        let (weight, bias) = from.projections(parts, columns, bias)?;
        Ok(Self { weight: LinearWeight::pack(&weight).map_err(device_error)?, bias })
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        linear(x, &self.weight, self.bias.as_ref())
    }
}

/// Causal attention over the paged cache.
pub(crate) struct Attention {
    spec: spec::Attention,
    qkv: Linear,
    output: Linear,
    /// Of q, of k.
    qk_norm: Option<(HeadNorm, HeadNorm)>,
    /// Present exactly if the spec has a rope.
    rope: Option<Arc<RopeTable>>,
    /// `[H]`.
    sinks: Option<Tensor>,
}

impl Attention {
    pub(crate) fn load(
        from: &mut LayerWeights<'_>,
        spec: &spec::Attention,
        rope: Option<Arc<RopeTable>>,
    ) -> Result<Self, LoadError> {
        let (q, kv, hidden) = (spec.q_width(), spec.kv_width(), from.hidden);
        let split = [("self_attn.q_proj", q), ("self_attn.k_proj", kv), ("self_attn.v_proj", kv)];
        let fused = [("self_attn.qkv_proj", q + 2 * kv)];
        let parts: &[_] = if from.names.layout.fused_qkv { &fused } else { &split };
        let qkv = Linear::load(from, parts, hidden, spec.bias.qkv)?;
        let output = Linear::load(from, &[("self_attn.o_proj", hidden)], q, spec.bias.output)?;
        let head_norms = |scope| {
            let q = HeadNorm::load(
                from,
                "self_attn.q_norm.weight",
                [spec.heads, spec.head_dim],
                scope,
            )?;
            let k = HeadNorm::load(
                from,
                "self_attn.k_norm.weight",
                [spec.kv_heads, spec.head_dim],
                scope,
            )?;
            Ok((q, k))
        };
        let qk_norm = spec.qk_norm.map(head_norms).transpose()?;
        let sinks = match spec.sinks {
            true => Some(from.vector("self_attn.sinks", spec.heads)?),
            false => None,
        };
        Ok(Self { spec: spec.clone(), qkv, output, qk_norm, rope, sinks })
    }

    /// `x` and the result are `[T, hidden]`.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        pass: &Pass<'_>,
        cache: &LayerCache,
    ) -> Result<Tensor> {
        let group = &pass.groups[cache.group];
        let (q, k, v) = self.project(x, pass.positions)?; // [T,H,D] [T,K,D] [T,K,D]
        // Every row's keys and values are in the cache before any row attends: a row may read
        // blocks that another row of the same step fills.
        kv_cache::write(&cache.k, &cache.v, &k, &v, &group.slot_mapping)?;
        let batch = PagedBatch {
            cu_seqlens: pass.cu_seqlens,
            context_lens: pass.context_lens,
            block_tables: &group.block_tables,
        };
        let params = AttentionParams {
            scale: self.spec.scale,
            window: self.spec.window,
            softcap: self.spec.softcap,
            sinks: self.sinks.as_ref(),
        };
        let mixed = paged_attention(&q, &cache.k, &cache.v, &batch, &params)?; // [T,H,D]
        self.output.forward(&mixed.flatten_from(1)?) // [T,hidden]
    }

    /// Queries, keys and values of `x` `[T, hidden]`, normalised and rotated.
    fn project(&self, x: &Tensor, positions: &[u32]) -> Result<(Tensor, Tensor, Tensor)> {
        let (heads, kv_heads, head_dim) = (self.spec.heads, self.spec.kv_heads, self.spec.head_dim);
        let qkv = self.qkv.forward(x)?.reshape(((), heads + 2 * kv_heads, head_dim))?;
        let mut q = qkv.narrow(1, 0, heads)?; // [T,H,D]
        let mut k = qkv.narrow(1, heads, kv_heads)?; // [T,K,D]
        let v = qkv.narrow(1, heads + kv_heads, kv_heads)?; // [T,K,D]
        if let Some((q_norm, k_norm)) = &self.qk_norm {
            q = q_norm.forward(&q)?; // [T,H,D]
            k = k_norm.forward(&k)?; // [T,K,D]
        }
        if let (Some(table), Some(spec)) = (&self.rope, &self.spec.rope) {
            q = rope(&q, table, spec.style, positions)?; // [T,H,D]
            k = rope(&k, table, spec.style, positions)?; // [T,K,D]
        }
        if let Some(scale) = self.spec.query_scale {
            let factors: Vec<f32> = positions.iter().map(|&at| scale.at(at)).collect();
            let factors = Tensor::from_vec(factors, (positions.len(), 1, 1), q.device())?;
            q = q.broadcast_mul(&factors)?; // [T,H,D]
        }
        Ok((q, k, v))
    }
}

/// The norm of queries, or of keys.
struct HeadNorm {
    norm: Norm,
    scope: QkNorm,
    /// `[heads, D]`, where each head has a weight of its own.
    weights: Option<Tensor>,
}

impl HeadNorm {
    fn load(
        from: &mut LayerWeights<'_>,
        name: &str,
        [heads, head_dim]: [usize; 2],
        scope: QkNorm,
    ) -> Result<Self, LoadError> {
        let mut weights = None;
        let norm = match scope {
            QkNorm::PerHead(norm) => Norm::new(from.vector(name, head_dim)?, norm)?,
            QkNorm::Whole(norm) => Norm::new(from.vector(name, heads * head_dim)?, norm)?,
            QkNorm::EachHead(norm) => {
                let name = from.name(name);
                weights = Some(from.weights.vectors(&name, [heads, head_dim])?);
                let ones =
                    Tensor::ones(head_dim, DType::F32, &Device::Cpu).map_err(device_error)?;
                Norm::new(ones, norm)?
            }
        };
        Ok(Self { norm, scope, weights })
    }

    /// `x` and the result are `[T, heads, D]`.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match (&self.scope, &self.weights) {
            (QkNorm::Whole(_), _) => {
                Ok(self.norm.forward(&x.flatten_from(1)?)?.reshape(x.shape())?)
            }
            (_, Some(weights)) => Ok(self.norm.forward(x)?.broadcast_mul(weights)?),
            _ => self.norm.forward(x),
        }
    }
}

/// `down(act(gate(x)) * up(x))`.
pub(crate) struct Mlp {
    gate_up: Linear,
    down: Linear,
    act: activation::Activation,
}

impl Mlp {
    /// The block whose projections are called `{name}.gate_proj` and so on.
    pub(crate) fn load(
        from: &mut LayerWeights<'_>,
        name: &str,
        spec: &spec::Mlp,
    ) -> Result<Self, LoadError> {
        let (inter, hidden) = (spec.inter, from.hidden);
        let [gate, up, fused, down] =
            ["gate_proj", "up_proj", "gate_up_proj", "down_proj"].map(|p| format!("{name}.{p}"));
        let split = [(gate.as_str(), inter), (up.as_str(), inter)];
        let fused = [(fused.as_str(), 2 * inter)];
        let gate_up: &[_] = if from.names.layout.fused_gate_up { &fused } else { &split };
        Ok(Self {
            gate_up: Linear::load(from, gate_up, hidden, spec.bias)?,
            down: Linear::load(from, &[(&down, hidden)], inter, spec.bias)?,
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
