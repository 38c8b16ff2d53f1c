//! What a model computes, as data: one nested spec of layers that the one decoder runs.
//!
//! A family (`families/`) is a function from `config.json` to a `ModelSpec`; nothing after it asks
//! which family a model is of. A different number is a different spec. A different computation is
//! a new variant of `Mixer` or `Ffn`, and a new layer in the decoder.
//!
//! Layers are an expanded list, so a model whose layers differ is no special case. What is in the
//! spec is computed; there is no field that the decoder ignores.
//!
//! This file knows numbers. It does not know configuration keys, tensors or checkpoint names; it
//! only carries, in [`Layout`], which of the usual namings a checkpoint follows.

mod check;
mod layout;
mod moe;
mod rope;

pub use layout::{ExpertNames, Layout, NormNames};
pub use moe::Moe;
pub use rope::{PositionScale, Rope, RopeScaling};

use millstream_kernels::activation::Activation;

/// A decoder-only language model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSpec {
    /// Rows of the embedding table, and of the head.
    pub vocab: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Longest sequence that the model was made for, in tokens.
    pub max_positions: usize,
    /// From token ids to the residual stream.
    pub embed: Embed,
    /// The layers, first to last.
    pub layers: Vec<LayerSpec>,
    /// After the last layer, before the head.
    pub final_norm: Norm,
    /// From the residual stream to logits.
    pub head: Head,
    /// Tokens that end a text, as `config.json` has them.
    pub eos: Vec<u32>,
    /// How a checkpoint names and cuts the tensors of all this.
    pub layout: Layout,
}

/// The embedding: rows of a table, times a factor.
#[derive(Clone, Debug, PartialEq)]
pub struct Embed {
    /// Factor on every embedded row.
    pub scale: Option<f32>,
    /// The factor is first rounded to the dtype of the weights, as it was in training.
    pub round_scale: bool,
}

/// The head: `logits = softcap(scale * W x)`, where `softcap(z) = c * tanh(z / c)`.
#[derive(Clone, Debug, PartialEq)]
pub struct Head {
    /// `W` is the embedding table.
    pub tied: bool,
    /// Factor on the logits.
    pub scale: Option<f32>,
    /// Bound `c` that the logits bend towards.
    pub softcap: Option<f32>,
}

/// One layer, wired one after the other: `x += post_mix(mixer(pre_mix(x)))`, then
/// `x += post_ffn(ffn(pre_ffn(x)))`; see [`Wiring`] for the other way.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerSpec {
    /// What moves information between positions.
    pub mixer: Mixer,
    /// What moves information within a position.
    pub ffn: Ffn,
    /// Where the layer normalises.
    pub norms: LayerNorms,
    /// How the two halves are connected.
    pub wiring: Wiring,
    /// Factor on what each half adds to the residual stream.
    pub residual_scale: Option<f32>,
}

/// How the two halves of a layer are connected.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Wiring {
    /// The feed-forward reads what the mixer has added to.
    Sequential,
    /// Both read the same: `h = pre_mix(x)`, `x += mixer(h) + ffn(h)`.
    Parallel,
}

/// The norms around a layer's two halves; what is `None` is left out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LayerNorms {
    /// Of the mixer's input.
    pub pre_mix: Option<Norm>,
    /// Of the mixer's output, before it is added.
    pub post_mix: Option<Norm>,
    /// Of the feed-forward's input.
    pub pre_ffn: Option<Norm>,
    /// Of the feed-forward's output, before it is added.
    pub post_ffn: Option<Norm>,
}

/// A norm with a weight and no bias.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    /// What it divides by.
    pub kind: NormKind,
    /// Added to the mean square, or to the variance.
    pub eps: f32,
    /// The checkpoint stores the weight less one.
    pub plus_one: bool,
}

/// What a norm divides by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum NormKind {
    /// RMS norm: `x * weight / sqrt(mean(x^2) + eps)`.
    Rms,
    /// Layer norm: `(x - mean(x)) * weight / sqrt(var(x) + eps)`.
    Layer,
}

/// What moves information between positions.
#[derive(Clone, Debug, PartialEq)]
pub enum Mixer {
    /// Softmax attention over a paged cache.
    Attention(Attention),
}

/// Causal attention with grouped KV heads.
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    /// Query heads `H`.
    pub heads: usize,
    /// KV heads `K`; divides `heads`.
    pub kv_heads: usize,
    /// Head size `D`; `H * D` need not be the hidden size.
    pub head_dim: usize,
    /// Which projections add a bias.
    pub bias: AttentionBias,
    /// Factor on the scores, before the softmax.
    pub scale: f32,
    /// Rotation of q and k; `None` for layers without positions.
    pub rope: Option<Rope>,
    /// Factor on q that grows with its position, after the rotation.
    pub query_scale: Option<PositionScale>,
    /// Norm of q and k, before the rotation.
    pub qk_norm: Option<QkNorm>,
    /// Positions that a query sees, itself included; `None` for all before it.
    pub window: Option<u32>,
    /// Bound `c` that the scaled scores bend towards: `c * tanh(score / c)`.
    pub softcap: Option<f32>,
    /// Each head has a logit of its own in the softmax, which takes weight and adds no value.
    pub sinks: bool,
}

/// Which projections of an attention layer add a bias.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionBias {
    /// q, k and v.
    pub qkv: bool,
    /// The output projection.
    pub output: bool,
}

/// Norm of queries and keys.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum QkNorm {
    /// Over each head of `D` values, with one weight of `[D]` for all heads.
    PerHead(Norm),
    /// Over each head, with a weight of its own for each: `[H, D]` for q and `[K, D]` for k.
    EachHead(Norm),
    /// Over all heads together, with a weight of `[H * D]` for q and `[K * D]` for k.
    Whole(Norm),
}

/// What moves information within a position.
#[derive(Clone, Debug, PartialEq)]
pub enum Ffn {
    /// One gated block for every token.
    Dense(Mlp),
    /// A few of many blocks for each token.
    Moe(Moe),
}

/// `down(act(gate(x)) * up(x))`.
#[derive(Clone, Debug, PartialEq)]
pub struct Mlp {
    /// Width between.
    pub inter: usize,
    /// Of the gate.
    pub act: Activation,
    /// All three projections add a bias.
    pub bias: bool,
}

/// Layers whose caches have the same shape and lifetime: they share one pool of blocks.
#[derive(Clone, Debug, PartialEq)]
pub struct CacheGroup {
    /// Indices into `ModelSpec::layers`.
    pub layers: Vec<usize>,
    /// KV heads `K`.
    pub kv_heads: usize,
    /// Head size `D`.
    pub head_dim: usize,
    /// Positions that stay visible; `None` for all.
    pub window: Option<u32>,
}

impl ModelSpec {
    /// Groups the layers by the cache that they need, in order of first appearance.
    pub fn cache_groups(&self) -> Vec<CacheGroup> {
        let mut groups: Vec<CacheGroup> = Vec::new();
        for (index, layer) in self.layers.iter().enumerate() {
            let Mixer::Attention(attention) = &layer.mixer;
            let (kv_heads, head_dim) = (attention.kv_heads, attention.head_dim);
            let window = attention.window;
            let same = |g: &&mut CacheGroup| {
                (g.kv_heads, g.head_dim, g.window) == (kv_heads, head_dim, window)
            };
            match groups.iter_mut().find(same) {
                Some(group) => group.layers.push(index),
                None => groups.push(CacheGroup { layers: vec![index], kv_heads, head_dim, window }),
            }
        }
        groups
    }

    /// Settles what depends on the longest sequence that is served. What is left computes every
    /// position alike, whatever the length of its sequence: so a prefix in the cache stays true.
    pub fn settle(&mut self, max_model_len: usize) {
        for layer in &mut self.layers {
            let Mixer::Attention(attention) = &mut layer.mixer;
            if let Some(rope) = &mut attention.rope {
                rope.scaling.settle(max_model_len);
            }
            // A window that nothing can outgrow is none.
            attention.window = attention.window.filter(|&window| (window as usize) < max_model_len);
        }
    }
}

impl Norm {
    /// An RMS norm whose weight is stored as it is.
    pub fn rms(eps: f64) -> Self {
        Self { kind: NormKind::Rms, eps: eps as f32, plus_one: false }
    }
}

impl Attention {
    /// Width of q: all heads side by side.
    pub fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of k, and of v.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}
