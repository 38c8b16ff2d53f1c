//! The one decoder: embedding, layers, norm, head, as the spec composes them.
//!
//! It holds weights and no state: what a sequence has seen is in the cache, which it is given.

use super::cache::KvCache;
use super::device_error;
use super::layers::{Attention, LayerWeights, Mlp, Pass, RmsNorm};
use super::spec::{Ffn, LayerSpec, Mixer, ModelSpec, Rope};
use super::weights::{Weights, names};
use crate::LoadError;
use candle_core::Tensor;
use millstream_kernels::linear::{LinearWeight, linear};
use millstream_kernels::rope::RopeTable;
use millstream_kernels::{KernelError, add::add, embedding::embedding};
use std::sync::Arc;

type Result<T, E = KernelError> = std::result::Result<T, E>;

/// A model's weights, ready to compute.
pub(crate) struct Decoder {
    embed: Tensor,
    embed_scale: Option<f32>,
    layers: Vec<Layer>,
    final_norm: RmsNorm,
    head: LinearWeight,
}

struct Layer {
    pre_mix: RmsNorm,
    mixer: Attention,
    pre_ffn: RmsNorm,
    ffn: Mlp,
}

impl Decoder {
    /// Takes every tensor of the spec from `weights`. Positions go up to `max_model_len`.
    pub(crate) fn load(
        spec: &ModelSpec,
        weights: &mut Weights,
        max_model_len: usize,
    ) -> Result<Self, LoadError> {
        let (vocab, hidden) = (spec.vocab, spec.hidden);
        let embed = weights.matrix(&[(names::EMBED.into(), vocab)], hidden)?;
        let mut ropes = RopeTables { tables: Vec::new(), max_model_len };
        let mut layers = Vec::with_capacity(spec.layers.len());
        for (index, layer) in spec.layers.iter().enumerate() {
            let mut from = LayerWeights { weights: &mut *weights, index, hidden };
            layers.push(Layer::load(&mut from, layer, &mut ropes)?);
        }
        let final_norm = weights.vector(&[(names::FINAL_NORM.into(), hidden)])?;
        let head = match spec.head.tied {
            true => embed.clone(),
            false => weights.matrix(&[(names::HEAD.into(), vocab)], hidden)?,
        };
        Ok(Self {
            embed,
            embed_scale: spec.embed.scale,
            layers,
            final_norm: RmsNorm::new(final_norm, spec.final_norm),
            head: LinearWeight::pack(&head).map_err(device_error)?,
        })
    }

    /// Runs the tokens of a pass, writes their keys and values to the cache, and returns the
    /// residual stream after the last layer, `[T, hidden]`.
    pub(crate) fn forward(&self, ids: &[u32], pass: &Pass<'_>, cache: &KvCache) -> Result<Tensor> {
        let mut x = embedding(&self.embed, ids)?; // [T,hidden]
        if let Some(scale) = self.embed_scale {
            x = x.affine(f64::from(scale), 0.0)?; // [T,hidden]
        }
        for (layer, cache) in self.layers.iter().zip(&cache.layers) {
            let mixed = layer.mixer.forward(&layer.pre_mix.forward(&x)?, pass, cache)?;
            x = add(&x, &mixed)?; // [T,hidden]
            let inner = layer.ffn.forward(&layer.pre_ffn.forward(&x)?)?;
            x = add(&x, &inner)?; // [T,hidden]
        }
        Ok(x)
    }

    /// Logits of the tokens at `rows` of the residual stream: `[rows, vocab]`.
    pub(crate) fn logits(&self, x: &Tensor, rows: &[u32]) -> Result<Tensor> {
        let rows = Tensor::new(rows, x.device())?;
        let x = x.index_select(&rows, 0)?; // [rows,hidden]
        linear(&self.final_norm.forward(&x)?, &self.head, None)
    }
}

impl Layer {
    fn load(
        from: &mut LayerWeights<'_>,
        spec: &LayerSpec,
        ropes: &mut RopeTables,
    ) -> Result<Self, LoadError> {
        let hidden = from.hidden;
        let Mixer::Attention(attention) = &spec.mixer;
        let Ffn::Dense(mlp) = &spec.ffn;
        let rope = attention.rope.as_ref().map(|rope| ropes.get(rope));
        Ok(Self {
            pre_mix: from.norm("input_layernorm", hidden, spec.norms.pre_mix)?,
            mixer: Attention::load(from, attention, rope)?,
            pre_ffn: from.norm("post_attention_layernorm", hidden, spec.norms.pre_ffn)?,
            ffn: Mlp::load(from, mlp)?,
        })
    }
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
        let table = Arc::new(RopeTable::new(&rope.inv_freq(), 1.0, self.max_model_len));
        self.tables.push((rope.clone(), table.clone()));
        table
    }
}
