//! The layers that a decoder is made of: each loads itself from its spec, and computes.
//!
//! A layer's result for a row depends on that row alone: that is so because it is so for every
//! kernel, and nothing here looks across rows.
//!
//! Activations are f32. Shapes: `T` tokens in the batch, `H` heads, `K` KV heads, `D` head size.

use super::asked::Asked;
use super::cache::LayerCache;
use super::clock::{Clock, Part};
use super::decoder::PositionTables;
use super::spec::{self, NormKind, QkNorm};
use super::weights::Weights;
use super::weights::keep::{Host, Keep};
use super::weights::layer::LayerWeights;
use super::weights::names::NormRole;
use super::workspace::Workspace;
use crate::LoadError;
use candle_core::Tensor;
use millstream_kernels::heads::{self, HeadNorm, Heads, Places, heads};
use millstream_kernels::linear::{gated_linear_into, linear_into};
use millstream_kernels::paged_attention::{AttentionParams, PagedBatch, paged_attention_into};
use millstream_kernels::rows::keep_rows;
use millstream_kernels::{KernelError, activation, norm};
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
    /// Told of each part that ends.
    pub(crate) clock: &'a Clock,
}

impl Pass<'_> {
    /// As attention takes the tokens in a cache group.
    fn batch(&self, group: usize) -> PagedBatch<'_> {
        PagedBatch {
            cu_seqlens: self.cu_seqlens,
            context_lens: self.context_lens,
            block_tables: &self.groups[group].block_tables,
        }
    }
}

/// Where a cache group's tokens are.
pub(crate) struct GroupPass<'a> {
    /// `[S]` of blocks.
    pub(crate) block_tables: Vec<&'a [u32]>,
    /// `[T]` cells.
    pub(crate) slot_mapping: Vec<u32>,
}

/// What one layer reads.
pub(crate) struct LayerPass<'a> {
    pub(crate) pass: &'a Pass<'a>,
    pub(crate) cache: &'a LayerCache,
    /// The tokens `[R]` whose result is asked for, if not that of all.
    pub(crate) asked: Option<Asked<'a>>,
}

/// A norm over the last dimension.
pub(crate) struct Norm<K: Keep> {
    pub(crate) weight: K::Vector,
    pub(crate) spec: spec::Norm,
}

impl<K: Keep> Norm<K> {
    /// A norm of the residual stream, if the layer has it.
    pub(crate) fn load(
        from: &mut LayerWeights<'_, K>,
        role: NormRole,
        spec: Option<spec::Norm>,
    ) -> Result<Option<Self>, LoadError> {
        let Some(spec) = spec else { return Ok(None) };
        let stored = from.norm(role)?;
        Self::new(from.weights, stored, spec).map(Some)
    }

    /// With a weight as stored, kept beside `weights`.
    pub(crate) fn new(
        weights: &mut Weights<K>,
        mut stored: Vec<f32>,
        spec: spec::Norm,
    ) -> Result<Self, LoadError> {
        if spec.plus_one {
            stored.iter_mut().for_each(|weight| *weight += 1.0);
        }
        let shape = [stored.len()];
        Ok(Self { weight: weights.keep.vector(stored, &shape)?, spec })
    }
}

impl Norm<Host> {
    /// As the kernels take it.
    pub(crate) fn op(&self) -> norm::Norm<'_> {
        let kind = match self.spec.kind {
            NormKind::Rms => norm::NormKind::Rms,
            NormKind::Layer => norm::NormKind::Layer,
        };
        norm::Norm { kind, eps: self.spec.eps, weight: &self.weight }
    }
}

/// `x W^T + bias`.
pub(crate) struct Linear<K: Keep> {
    pub(crate) weight: K::Matrix,
    pub(crate) bias: Option<K::Vector>,
}

impl<K: Keep> Linear<K> {
    /// Projections of the same input, fused into one: each by its name and its rows.
    pub(crate) fn load(
        from: &mut LayerWeights<'_, K>,
        parts: &[(&str, usize)],
        columns: usize,
        bias: bool,
    ) -> Result<Self, LoadError> {
        let (weight, bias) = from.projections(parts, columns, bias)?;
        Ok(Self { weight, bias })
    }
}

impl Linear<Host> {
    /// Of `x` `[T, columns]`, into `out` `[T, rows]`.
    pub(crate) fn forward(&self, x: &Tensor, out: &Tensor) -> Result<()> {
        linear_into(x, &self.weight, self.bias.as_ref(), out)
    }

    pub(crate) fn out_features(&self) -> usize {
        self.weight.out_features()
    }
}

/// Causal attention over the paged cache.
pub(crate) struct Attention<K: Keep> {
    pub(crate) spec: spec::Attention,
    pub(crate) qkv: Linear<K>,
    pub(crate) output: Linear<K>,
    /// Of q, of k.
    pub(crate) qk_norm: Option<[QkWeight<K>; 2]>,
    /// Present exactly if the spec has a rope.
    pub(crate) rope: Option<Arc<K::Rope>>,
    /// Of queries.
    pub(crate) query_scale: Option<Arc<K::Factors>>,
    /// `[H]`.
    pub(crate) sinks: Option<K::Vector>,
}

impl<K: Keep> Attention<K> {
    pub(crate) fn load(
        from: &mut LayerWeights<'_, K>,
        spec: &spec::Attention,
        tables: &mut PositionTables<K>,
    ) -> Result<Self, LoadError> {
        let (q, kv, hidden) = (spec.q_width(), spec.kv_width(), from.hidden);
        let split = [("self_attn.q_proj", q), ("self_attn.k_proj", kv), ("self_attn.v_proj", kv)];
        let fused = [("self_attn.qkv_proj", q + 2 * kv)];
        let parts: &[_] = if from.names.layout.fused_qkv { &fused } else { &split };
        let qkv = Linear::load(from, parts, hidden, spec.bias.qkv)?;
        let output = Linear::load(from, &[("self_attn.o_proj", hidden)], q, spec.bias.output)?;
        let head_norms = |scope| {
            let mut load = |name, heads| QkWeight::load(from, name, [heads, spec.head_dim], scope);
            let q = load("self_attn.q_norm.weight", spec.heads)?;
            Ok::<_, LoadError>([q, load("self_attn.k_norm.weight", spec.kv_heads)?])
        };
        let qk_norm = spec.qk_norm.map(head_norms).transpose()?;
        let sinks = match spec.sinks {
            true => Some(from.vector("self_attn.sinks", spec.heads)?),
            false => None,
        };
        let keep = &mut from.weights.keep;
        let rope = spec.rope.as_ref().map(|rope| tables.rope(rope, keep)).transpose()?;
        let query_scale = spec.query_scale.map(|scale| tables.factors(scale, keep)).transpose()?;
        Ok(Self { spec: spec.clone(), qkv, output, qk_norm, rope, query_scale, sinks })
    }
}

impl Attention<Host> {
    /// `x` is `[T, hidden]`; the result is that of the tokens that are asked for, `[R, hidden]`, and
    /// the workspace's.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        LayerPass { pass, cache, asked }: &LayerPass<'_>,
        space: &mut Workspace,
    ) -> Result<Tensor> {
        let group = &pass.groups[cache.group];
        let (tokens, spec) = (pass.positions.len(), &self.spec);
        let all = spec.heads + 2 * spec.kv_heads;
        let qkv = space.qkv.matrix(tokens, all * spec.head_dim)?; // [T,(H+2K)*D]
        self.qkv.forward(x, &qkv)?;
        pass.clock.lap(Part::Qkv);
        // Every row's keys and values are in the cache before any row attends: a row may read
        // blocks that another row of the same step fills.
        self.prepare(&qkv, pass.positions, &group.slot_mapping, cache)?;
        pass.clock.lap(Part::Rotation);
        let (tokens, batch) = match asked {
            None => (tokens, pass.batch(cache.group)),
            Some(asked) => {
                keep_rows(&qkv, asked.rows)?;
                (asked.rows.len(), asked.batch())
            }
        };
        let params = AttentionParams {
            scale: spec.scale,
            window: spec.window,
            softcap: spec.softcap,
            sinks: self.sinks.as_ref(),
        };
        let q = space.qkv.first_heads([tokens, all, spec.head_dim], spec.heads)?; // [T,H,D]
        let mixed = space.mixed.heads([tokens, spec.heads, spec.head_dim])?; // [T,H,D]
        paged_attention_into(&q, [&cache.k, &cache.v], &batch, &params, &mixed)?;
        pass.clock.lap(Part::Attention);
        let mixed = space.mixed.matrix(tokens, spec.q_width())?; // [T,H*D]
        let given = space.given.matrix(tokens, self.output.out_features())?; // [T,hidden]
        self.output.forward(&mixed, &given)?;
        pass.clock.lap(Part::Output);
        Ok(given)
    }

    /// Normalises and rotates queries and keys, and writes keys and values to the cache.
    fn prepare(
        &self,
        qkv: &Tensor,
        positions: &[u32],
        slot_mapping: &[u32],
        cache: &LayerCache,
    ) -> Result<()> {
        let factors: Option<Vec<f32>> = self
            .query_scale
            .as_deref()
            .map(|scale| positions.iter().map(|&position| scale.at(position)).collect());
        let rope = self.rope.as_deref().zip(self.spec.rope.as_ref());
        let call = Heads {
            heads: self.spec.heads,
            kv_heads: self.spec.kv_heads,
            head_size: self.spec.head_dim,
            norms: self.qk_norm.as_ref().map(|[q, k]| [q.op(), k.op()]),
            rope: rope.map(|(table, spec)| (table, spec.style)),
            query_scale: factors.as_deref(),
        };
        heads(qkv, &call, &Places { positions, slot_mapping }, [&cache.k, &cache.v])
    }
}

/// The norm of queries, or of keys.
pub(crate) struct QkWeight<K: Keep> {
    pub(crate) norm: Norm<K>,
    pub(crate) scope: heads::Scope,
}

impl<K: Keep> QkWeight<K> {
    fn load(
        from: &mut LayerWeights<'_, K>,
        name: &str,
        [heads, head_dim]: [usize; 2],
        scope: QkNorm,
    ) -> Result<Self, LoadError> {
        let (stored, norm, scope) = match scope {
            QkNorm::PerHead(norm) => (from.values(name, head_dim)?, norm, heads::Scope::PerHead),
            QkNorm::Whole(norm) => {
                (from.values(name, heads * head_dim)?, norm, heads::Scope::Whole)
            }
            QkNorm::EachHead(norm) => {
                let name = from.name(name);
                (from.weights.floats(&name, &[heads, head_dim])?, norm, heads::Scope::EachHead)
            }
        };
        Ok(Self { norm: Norm::new(from.weights, stored, norm)?, scope })
    }
}

impl QkWeight<Host> {
    fn op(&self) -> HeadNorm<'_> {
        HeadNorm { norm: self.norm.op(), scope: self.scope }
    }
}

/// `down(act(gate(x)) * up(x))`.
pub(crate) struct Mlp<K: Keep> {
    pub(crate) gate_up: Linear<K>,
    pub(crate) down: Linear<K>,
    pub(crate) act: activation::Activation,
}

impl<K: Keep> Mlp<K> {
    /// The block whose projections are called `{name}.gate_proj` and so on.
    pub(crate) fn load(
        from: &mut LayerWeights<'_, K>,
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
}

impl Mlp<Host> {
    /// `x` and the result are `[T, hidden]`; the result is the workspace's.
    pub(crate) fn forward(&self, x: &Tensor, space: &mut Workspace) -> Result<Tensor> {
        let (tokens, both) = (x.dim(0)?, self.gate_up.out_features());
        let inner = space.inner.matrix(tokens, both / 2)?; // [T,inter]
        let Linear { weight, bias } = &self.gate_up;
        gated_linear_into(x, weight, bias.as_ref(), self.act, &inner)?;
        let given = space.given.matrix(tokens, self.down.out_features())?; // [T,hidden]
        self.down.forward(&inner, &given)?;
        Ok(given)
    }
}
