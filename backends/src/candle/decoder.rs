//! The one decoder: embedding, layers, norm, head, as the spec composes them.
//!
//! It holds weights and no state: what a sequence has seen is in the cache, which it is given.

use super::cache::{KvCache, LayerCache};
use super::device_error;
use super::layers::{Attention, Mlp, Norm, Pass};
use super::moe::Moe;
use super::spec::{Embed, Ffn, Head, LayerSpec, Mixer, ModelSpec, Rope, Wiring};
use super::weights::Weights;
use super::weights::layer::LayerWeights;
use super::weights::names::NormRole;
use crate::LoadError;
use candle_core::{DType, Tensor};
use half::{bf16, f16};
use millstream_kernels::embedding::{embedding, embedding_packed};
use millstream_kernels::linear::{LinearWeight, linear};
use millstream_kernels::rope::RopeTable;
use millstream_kernels::{KernelError, add::add};
use std::sync::Arc;

type Result<T, E = KernelError> = std::result::Result<T, E>;

/// A model's weights, ready to compute.
pub(crate) struct Decoder {
    /// `[vocab, hidden]`; none where the head is the same matrix.
    embed: Option<Tensor>,
    embed_scale: Option<f32>,
    layers: Vec<Layer>,
    final_norm: Norm,
    head: LinearWeight,
    head_spec: Head,
}

struct Layer {
    pre_mix: Option<Norm>,
    mixer: Attention,
    post_mix: Option<Norm>,
    pre_ffn: Option<Norm>,
    ffn: FeedForward,
    post_ffn: Option<Norm>,
    wiring: Wiring,
    residual_scale: Option<f32>,
}

enum FeedForward {
    Dense(Mlp),
    Moe(Box<Moe>),
}

impl Decoder {
    /// Takes every tensor of the spec from `weights`. Positions go up to `max_model_len`.
    pub(crate) fn load(
        spec: &ModelSpec,
        weights: &mut Weights,
        max_model_len: usize,
    ) -> Result<Self, LoadError> {
        let (vocab, hidden) = (spec.vocab, spec.hidden);
        let names = weights.names(spec.layout, spec.layers.len());
        let pack = |matrix: &Tensor| LinearWeight::pack(matrix).map_err(device_error);
        let embed = weights.matrix(&[(names.embed(), vocab)], hidden)?;
        // The head is packed before anything else is in memory, and serves as the table then.
        let (embed, tied_head) = match spec.head.tied {
            true => (None, Some(pack(&embed)?)),
            false => (Some(embed), None),
        };
        let mut ropes = RopeTables { tables: Vec::new(), max_model_len };
        let mut layers = Vec::with_capacity(spec.layers.len());
        for (index, layer) in spec.layers.iter().enumerate() {
            let mut from = LayerWeights { weights, names: &names, index, hidden };
            layers.push(Layer::load(&mut from, layer, &mut ropes)?);
        }
        let final_norm = weights.vector(&[(names.final_norm(), hidden)])?;
        let head = match tied_head {
            Some(head) => head,
            None => pack(&weights.matrix(&[(names.head(), vocab)], hidden)?)?,
        };
        Ok(Self {
            embed,
            embed_scale: embed_scale(&spec.embed, weights.dtype()),
            layers,
            final_norm: Norm::new(final_norm, spec.final_norm)?,
            head,
            head_spec: spec.head.clone(),
        })
    }

    /// Runs the tokens of a pass, writes their keys and values to the cache, and returns the
    /// residual stream after the last layer, `[T, hidden]`.
    pub(crate) fn forward(&self, ids: &[u32], pass: &Pass<'_>, cache: &KvCache) -> Result<Tensor> {
        let x = match &self.embed {
            Some(table) => embedding(table, ids)?,
            None => embedding_packed(&self.head, ids)?,
        };
        let mut x = scaled(x, self.embed_scale)?; // [T,hidden]
        for (layer, cache) in self.layers.iter().zip(&cache.layers) {
            x = layer.forward(&x, pass, cache)?; // [T,hidden]
        }
        Ok(x)
    }

    /// Logits of the tokens at `rows` of the residual stream: `[rows, vocab]`.
    pub(crate) fn logits(&self, x: &Tensor, rows: &[u32]) -> Result<Tensor> {
        let rows = Tensor::new(rows, x.device())?;
        let x = x.index_select(&rows, 0)?; // [rows,hidden]
        let logits = linear(&self.final_norm.forward(&x)?, &self.head, None)?; // [rows,vocab]
        let logits = scaled(logits, self.head_spec.scale)?;
        match self.head_spec.softcap.map(f64::from) {
            Some(cap) => Ok(logits.affine(1.0 / cap, 0.0)?.tanh()?.affine(cap, 0.0)?),
            None => Ok(logits),
        }
    }
}

impl Layer {
    fn load(
        from: &mut LayerWeights<'_>,
        spec: &LayerSpec,
        ropes: &mut RopeTables,
    ) -> Result<Self, LoadError> {
        let Mixer::Attention(attention) = &spec.mixer;
        let rope = attention.rope.as_ref().map(|rope| ropes.get(rope));
        let norms = &spec.norms;
        Ok(Self {
            pre_mix: Norm::load(from, NormRole::PreMix, norms.pre_mix)?,
            mixer: Attention::load(from, attention, rope)?,
            post_mix: Norm::load(from, NormRole::PostMix, norms.post_mix)?,
            pre_ffn: Norm::load(from, NormRole::PreFfn, norms.pre_ffn)?,
            ffn: FeedForward::load(from, &spec.ffn)?,
            post_ffn: Norm::load(from, NormRole::PostFfn, norms.post_ffn)?,
            wiring: spec.wiring,
            residual_scale: spec.residual_scale,
        })
    }

    /// `x` and the result are `[T, hidden]`.
    fn forward(&self, x: &Tensor, pass: &Pass<'_>, cache: &LayerCache) -> Result<Tensor> {
        let h = normed(&self.pre_mix, x)?; // [T,hidden]
        let mixed = self.mixer.forward(&h, pass, cache)?; // [T,hidden]
        let x = self.added(x, &self.post_mix, &mixed)?; // [T,hidden]
        let h = match self.wiring {
            Wiring::Sequential => normed(&self.pre_ffn, &x)?, // [T,hidden]
            Wiring::Parallel => h,
        };
        let inner = self.ffn.forward(&h)?; // [T,hidden]
        self.added(&x, &self.post_ffn, &inner)
    }

    /// The residual stream `x` with what a half of the layer gave.
    fn added(&self, x: &Tensor, norm: &Option<Norm>, given: &Tensor) -> Result<Tensor> {
        add(x, &scaled(normed(norm, given)?, self.residual_scale)?)
    }
}

impl FeedForward {
    fn load(from: &mut LayerWeights<'_>, spec: &Ffn) -> Result<Self, LoadError> {
        match spec {
            Ffn::Dense(mlp) => Ok(Self::Dense(Mlp::load(from, "mlp", mlp)?)),
            Ffn::Moe(moe) => Ok(Self::Moe(Box::new(Moe::load(from, moe)?))),
        }
    }

    /// `x` and the result are `[T, hidden]`.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Dense(mlp) => mlp.forward(x),
            Self::Moe(moe) => moe.forward(x),
        }
    }
}

fn normed(norm: &Option<Norm>, x: &Tensor) -> Result<Tensor> {
    match norm {
        Some(norm) => norm.forward(x),
        None => Ok(x.clone()),
    }
}

fn scaled(x: Tensor, factor: Option<f32>) -> Result<Tensor> {
    match factor {
        Some(factor) => Ok(x.affine(f64::from(factor), 0.0)?),
        None => Ok(x),
    }
}

/// The factor on the embedding, as it was in training.
fn embed_scale(spec: &Embed, dtype: DType) -> Option<f32> {
    spec.scale.map(|scale| match (spec.round_scale, dtype) {
        (true, DType::BF16) => bf16::from_f32(scale).to_f32(),
        (true, DType::F16) => f16::from_f32(scale).to_f32(),
        _ => scale,
    })
}

/// One table per distinct rotation: layers that turn alike share it.
struct RopeTables {
    tables: Vec<(Rope, Arc<RopeTable>)>,
    max_model_len: usize,
}

impl RopeTables {
    fn get(&mut self, rope: &Rope) -> Arc<RopeTable> {
        if let Some((_, table)) = self.tables.iter().find(|(known, _)| known == rope) {
            return table.clone();
        }
        let table =
            Arc::new(RopeTable::new(&rope.inv_freq(), rope.attention_factor(), self.max_model_len));
        self.tables.push((rope.clone(), table.clone()));
        table
    }
}
