//! What a model computes, as data: one nested spec of layers that the one decoder runs.
//!
//! A family (`families/`) is a function from `config.json` to a `ModelSpec`; nothing after it asks
//! which family a model is of. A different number is a different spec. A different computation is
//! a new variant of `Mixer` or `Ffn`, and a new layer in the decoder.
//!
//! Layers are an expanded list, so a model whose layers differ is no special case. What is in the
//! spec is computed; there is no field that the decoder ignores.
//!
//! This file knows numbers. It does not know configuration keys, tensors or checkpoint names.

use millstream_kernels::activation::Activation;
use millstream_kernels::rope::RopeStyle;

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
}

/// The embedding; a scale and per-layer embeddings belong here.
#[derive(Clone, Debug, PartialEq)]
pub struct Embed {
    /// Factor on every embedded row.
    pub scale: Option<f32>,
}

/// The head; a soft cap and a multiplier of the logits belong here.
#[derive(Clone, Debug, PartialEq)]
pub struct Head {
    /// The head is the embedding table.
    pub tied: bool,
}

/// One layer: `x += mixer(pre_mix(x))`, then `x += ffn(pre_ffn(x))`.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerSpec {
    /// What moves information between positions.
    pub mixer: Mixer,
    /// What moves information within a position.
    pub ffn: Ffn,
    /// Where the layer normalises.
    pub norms: LayerNorms,
}

/// The norms around a layer's two halves.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerNorms {
    /// Of the mixer's input.
    pub pre_mix: Norm,
    /// Of the feed-forward's input.
    pub pre_ffn: Norm,
}

/// RMS norm: `x * weight / sqrt(mean(x^2) + eps)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    /// Added to the mean square.
    pub eps: f32,
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
    /// Norm of q and k, before the rotation.
    pub qk_norm: Option<QkNorm>,
    /// Positions that a query sees, itself included; `None` for all before it.
    pub window: Option<u32>,
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
}

/// Rotary positions: pairs of the first `dims` values of a head turn by `position * inv_freq`.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Values per head that rotate; even, at most the head size.
    pub dims: usize,
    /// Base of the frequencies.
    pub theta: f64,
    /// Which values make a pair.
    pub style: RopeStyle,
    /// How the frequencies are stretched to longer texts.
    pub scaling: RopeScaling,
}

/// How the frequencies of a `Rope` are stretched.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// As trained.
    None,
    /// All of them divided by `factor`.
    Linear {
        /// Stretch.
        factor: f64,
    },
    /// Wavelengths that fit `original_max_positions` `high` times stay; those that fit it less
    /// than `low` times are divided by `factor`; between the two it is interpolated.
    Llama3 {
        /// Stretch of the slow frequencies.
        factor: f64,
        /// Turns within the original context below which a frequency is slow.
        low: f64,
        /// Turns within the original context above which a frequency is fast.
        high: f64,
        /// Context of the model before it was stretched, in tokens.
        original_max_positions: f64,
    },
}

/// What moves information within a position.
#[derive(Clone, Debug, PartialEq)]
pub enum Ffn {
    /// One gated block for every token.
    Dense(Mlp),
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

/// A model with more layers than this is a broken configuration, not a model.
const MAX_LAYERS: usize = 4096;

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

    /// Checks what every later computation takes for granted; the error names the broken rule.
    pub fn check(&self) -> Result<(), String> {
        at_least_one("vocab_size", self.vocab)?;
        at_least_one("hidden_size", self.hidden)?;
        at_least_one("max_position_embeddings", self.max_positions)?;
        at_least_one("num_hidden_layers", self.layers.len())?;
        if self.layers.len() > MAX_LAYERS {
            return Err(format!("{} layers, at most {MAX_LAYERS} make sense", self.layers.len()));
        }
        for layer in &self.layers {
            let Mixer::Attention(attention) = &layer.mixer;
            attention.check()?;
            let Ffn::Dense(mlp) = &layer.ffn;
            at_least_one("intermediate_size", mlp.inter)?;
        }
        Ok(())
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

    fn check(&self) -> Result<(), String> {
        let Self { heads, kv_heads, head_dim, .. } = *self;
        at_least_one("num_attention_heads", heads)?;
        at_least_one("num_key_value_heads", kv_heads)?;
        at_least_one("head_dim", head_dim)?;
        if heads % kv_heads != 0 {
            return Err(format!("{heads} heads are not a multiple of {kv_heads} KV heads"));
        }
        match &self.rope {
            Some(rope) => rope.check(head_dim),
            None => Ok(()),
        }
    }
}

impl Rope {
    /// Radians per position of each pair, `dims / 2` of them, fastest first.
    pub fn inv_freq(&self) -> Vec<f64> {
        let base = |i: usize| self.theta.powf(-2.0 * i as f64 / self.dims as f64);
        (0..self.dims / 2).map(|i| self.scaling.apply(base(i))).collect()
    }

    fn check(&self, head_dim: usize) -> Result<(), String> {
        let Self { dims, theta, .. } = *self;
        if dims == 0 || dims % 2 != 0 || dims > head_dim {
            return Err(format!("rope rotates {dims} of {head_dim} values of a head"));
        }
        let positive = |name: &str, value: f64| match value.is_finite() && value > 0.0 {
            true => Ok(()),
            false => Err(format!("rope's {name} must be positive, not {value}")),
        };
        positive("theta", theta)?;
        match self.scaling {
            RopeScaling::None => Ok(()),
            RopeScaling::Linear { factor } => positive("factor", factor),
            RopeScaling::Llama3 { factor, low, high, original_max_positions } => {
                positive("factor", factor)?;
                positive("low_freq_factor", low)?;
                positive("high_freq_factor less low_freq_factor", high - low)?;
                positive("original_max_position_embeddings", original_max_positions)
            }
        }
    }
}

impl RopeScaling {
    /// The stretched frequency, in radians per position.
    fn apply(self, inv_freq: f64) -> f64 {
        match self {
            Self::None => inv_freq,
            Self::Linear { factor } => inv_freq / factor,
            Self::Llama3 { factor, low, high, original_max_positions } => {
                let turns = original_max_positions * inv_freq / std::f64::consts::TAU;
                // 0 for slow frequencies, 1 for fast ones.
                let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                inv_freq * (kept + (1.0 - kept) / factor)
            }
        }
    }
}

fn at_least_one(name: &str, value: usize) -> Result<(), String> {
    match value {
        0 => Err(format!("`{name}` is 0")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rope(scaling: RopeScaling) -> Rope {
        Rope { dims: 8, theta: 10_000.0, style: RopeStyle::Half, scaling }
    }

    #[test]
    fn linear_scaling_divides_every_frequency() {
        let plain = rope(RopeScaling::None).inv_freq();
        assert_eq!(plain.len(), 4);
        assert!((plain[1] - 0.1).abs() < 1e-12, "{plain:?}");
        let scaled = rope(RopeScaling::Linear { factor: 4.0 }).inv_freq();
        for (p, s) in plain.iter().zip(&scaled) {
            assert!((p / 4.0 - s).abs() < 1e-15);
        }
    }

    /// The formula of the reference, by wavelengths, against ours, by turns.
    #[test]
    fn llama3_scaling_keeps_fast_frequencies_divides_slow_ones_and_blends_between() {
        let (factor, low, high, original) = (8.0, 1.0, 4.0, 32.0);
        let scaling = RopeScaling::Llama3 { factor, low, high, original_max_positions: original };
        let plain = Rope { dims: 64, ..rope(RopeScaling::None) }.inv_freq();
        let scaled = Rope { dims: 64, ..rope(scaling) }.inv_freq();
        let mut bands = [0; 3];
        for (&p, &s) in plain.iter().zip(&scaled) {
            let wavelength = std::f64::consts::TAU / p;
            let (band, want) = if wavelength < original / high {
                (0, p)
            } else if wavelength > original / low {
                (1, p / factor)
            } else {
                let smooth = (original / wavelength - low) / (high - low);
                (2, (1.0 - smooth) * p / factor + smooth * p)
            };
            bands[band] += 1;
            assert!((s / want - 1.0).abs() < 1e-12, "{p}: {s} against {want}");
        }
        assert!(bands.iter().all(|&n| n > 0), "{bands:?}");
    }
}
