//! Llama: pre-norm layers of rotary grouped-query attention and a gated SiLU feed-forward.
//!
//! Covers Llama 2 and 3, and whatever else says `"model_type": "llama"`. The other families are
//! stated as differences from this one. Defaults are those of Transformers.

use super::super::spec::{
    Attention, AttentionBias, Embed, Ffn, Head, LayerNorms, LayerSpec, Mixer, Mlp, ModelSpec, Norm,
    Rope, RopeScaling,
};
use super::{HfConfig, Result};
use millstream_kernels::activation::Activation;
use millstream_kernels::rope::RopeStyle;
use serde_json::json;

pub(super) fn llama(config: &HfConfig) -> Result<ModelSpec> {
    let hidden = config.usize("hidden_size")?;
    let heads = config.usize("num_attention_heads")?;
    let head_dim = config.optional_usize("head_dim")?.unwrap_or(hidden / heads.max(1));
    let norm = Norm { eps: config.optional_f64("rms_norm_eps")?.unwrap_or(1e-6) as f32 };
    let bias = config.switch("attention_bias")?;
    config.only("hidden_act", &[json!("silu")])?;
    // Splits the projections in training; the sums are the same.
    config.get("pretraining_tp");

    let attention = Attention {
        heads,
        kv_heads: config.optional_usize("num_key_value_heads")?.unwrap_or(heads),
        head_dim,
        bias: AttentionBias { qkv: bias, output: bias },
        scale: (head_dim as f64).powf(-0.5) as f32,
        rope: Some(rope(config, head_dim)?),
        qk_norm: None,
        window: None,
    };
    let mlp = Mlp {
        inter: config.usize("intermediate_size")?,
        act: Activation::Silu,
        bias: config.switch("mlp_bias")?,
    };
    let layer = LayerSpec {
        mixer: Mixer::Attention(attention),
        ffn: Ffn::Dense(mlp),
        norms: LayerNorms { pre_mix: norm, pre_ffn: norm },
    };
    // More layers than any model has are refused by `ModelSpec::check`, not by the allocator.
    let num_layers = config.usize("num_hidden_layers")?.min(100_000);
    Ok(ModelSpec {
        vocab: config.usize("vocab_size")?,
        hidden,
        max_positions: config.usize("max_position_embeddings")?,
        embed: Embed { scale: None },
        layers: vec![layer; num_layers],
        final_norm: norm,
        head: Head { tied: config.switch("tie_word_embeddings")? },
        eos: config.token_ids("eos_token_id")?,
    })
}

/// The rotation, from `rope_theta` and `rope_scaling`, or from `rope_parameters`, which
/// Transformers 5 writes instead of the two.
fn rope(config: &HfConfig, head_dim: usize) -> Result<Rope> {
    config.only("partial_rotary_factor", &[json!(1.0), json!(1)])?;
    let mut theta = config.optional_f64("rope_theta")?;
    let old = config.object("rope_scaling")?;
    let new = config.object("rope_parameters")?;
    let scaling = match new.or(old) {
        None => RopeScaling::None,
        Some(rope) => {
            theta = rope.optional_f64("rope_theta")?.or(theta);
            let scaling = scaling(&rope)?;
            rope.only("partial_rotary_factor", &[json!(1.0), json!(1)])?;
            rope.refuse_rest(&[])?;
            scaling
        }
    };
    let theta = theta.unwrap_or(10_000.0);
    Ok(Rope { dims: head_dim, theta, style: RopeStyle::Half, scaling })
}

fn scaling(rope: &HfConfig) -> Result<RopeScaling> {
    // Older files say `type`; some say both.
    let key = if rope.get("rope_type").is_some() { "rope_type" } else { "type" };
    rope.only(key, &[json!("default"), json!("linear"), json!("llama3")])?;
    match rope.get(key).and_then(|value| value.as_str()) {
        Some("linear") => Ok(RopeScaling::Linear { factor: rope.f64("factor")? }),
        Some("llama3") => Ok(RopeScaling::Llama3 {
            factor: rope.f64("factor")?,
            low: rope.f64("low_freq_factor")?,
            high: rope.f64("high_freq_factor")?,
            original_max_positions: rope.f64("original_max_position_embeddings")?,
        }),
        _ => Ok(RopeScaling::None),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{llama, spec, with};
    use super::*;

    #[test]
    fn llama_3_2_1b_reads_as_released() {
        let spec = spec(&llama()).unwrap();
        assert_eq!((spec.vocab, spec.hidden, spec.max_positions), (128_256, 2048, 131_072));
        assert_eq!(spec.eos, [128_001, 128_008, 128_009]);
        assert_eq!(spec.layers.len(), 16);
        assert!(spec.head.tied);
        let rope = Rope {
            dims: 64,
            theta: 500_000.0,
            style: RopeStyle::Half,
            scaling: RopeScaling::Llama3 {
                factor: 32.0,
                low: 1.0,
                high: 4.0,
                original_max_positions: 8192.0,
            },
        };
        let norm = Norm { eps: 1e-5 };
        let layer = LayerSpec {
            mixer: Mixer::Attention(Attention {
                heads: 32,
                kv_heads: 8,
                head_dim: 64,
                bias: AttentionBias { qkv: false, output: false },
                scale: 0.125,
                rope: Some(rope),
                qk_norm: None,
                window: None,
            }),
            ffn: Ffn::Dense(Mlp { inter: 8192, act: Activation::Silu, bias: false }),
            norms: LayerNorms { pre_mix: norm, pre_ffn: norm },
        };
        assert!(spec.layers.iter().all(|l| *l == layer), "{:?}", spec.layers[0]);
    }

    #[test]
    fn rope_parameters_mean_the_same_as_the_older_keys() {
        let mut new = llama();
        let object = new.as_object_mut().unwrap();
        let mut rope = object.remove("rope_scaling").unwrap();
        rope["rope_theta"] = object.remove("rope_theta").unwrap();
        object.insert("rope_parameters".into(), rope);
        assert_eq!(spec(&new).unwrap(), spec(&llama()).unwrap());
    }

    #[test]
    fn the_head_size_is_derived_where_it_is_not_stated() {
        let mut config = llama();
        config.as_object_mut().unwrap().remove("head_dim");
        assert_eq!(spec(&config).unwrap(), spec(&llama()).unwrap());
    }

    #[test]
    fn both_biases_are_read() {
        let spec =
            spec(&with(with(llama(), "attention_bias", json!(true)), "mlp_bias", json!(true)));
        let spec = spec.unwrap();
        let Mixer::Attention(attention) = &spec.layers[3].mixer;
        assert_eq!(attention.bias, AttentionBias { qkv: true, output: true });
        let Ffn::Dense(mlp) = &spec.layers[3].ffn;
        assert!(mlp.bias);
    }
}
