//! Llama: pre-norm layers of rotary grouped-query attention and a gated SiLU feed-forward.
//!
//! Covers Llama 2 and 3, and whatever else says `"model_type": "llama"`. The other families are
//! stated as differences from this one. Defaults are those of Transformers.

use super::super::spec::{
    Attention, AttentionBias, Embed, Ffn, Head, LayerNorms, LayerSpec, Layout, Mixer, Mlp,
    ModelSpec, Norm, RopeScaling, Wiring,
};
use super::rope::{FULL, rope};
use super::{HfConfig, Result};
use millstream_kernels::activation::Activation;
use millstream_kernels::rope::RopeStyle;
use serde_json::json;

pub(super) fn llama(config: &HfConfig) -> Result<ModelSpec> {
    llama_with(config, RopeStyle::Half)
}

/// Llama with other pairs that rotate.
pub(super) fn llama_with(config: &HfConfig, style: RopeStyle) -> Result<ModelSpec> {
    let norm = Norm::rms(config.optional_f64("rms_norm_eps")?.unwrap_or(1e-6));
    let act = activation(config)?;
    // Splits the projections in training; the sums are the same.
    config.get("pretraining_tp");
    let mlp =
        Mlp { inter: config.usize("intermediate_size")?, act, bias: config.switch("mlp_bias")? };
    let layer = LayerSpec {
        mixer: Mixer::Attention(attention(config, style)?),
        ffn: Ffn::Dense(mlp),
        norms: LayerNorms { pre_mix: Some(norm), pre_ffn: Some(norm), ..LayerNorms::default() },
        wiring: Wiring::Sequential,
        residual_scale: None,
    };
    // More layers than any model has are refused by `ModelSpec::check`, not by the allocator.
    let num_layers = config.usize("num_hidden_layers")?.min(100_000);
    Ok(ModelSpec {
        vocab: config.usize("vocab_size")?,
        hidden: config.usize("hidden_size")?,
        max_positions: max_positions(config, &layer.mixer)?,
        embed: Embed { scale: None, round_scale: false },
        layers: vec![layer; num_layers],
        final_norm: norm,
        head: Head { tied: config.switch("tie_word_embeddings")?, scale: None, softcap: None },
        eos: config.token_ids("eos_token_id")?,
        layout: Layout::default(),
    })
}

/// The function that the gate goes through; Gemma's files have a name of their own for it.
pub(super) fn activation(config: &HfConfig) -> Result<Activation> {
    let names = [("silu", Activation::Silu), ("gelu_pytorch_tanh", Activation::GeluTanh)];
    let key = if config.has("hidden_activation") { "hidden_activation" } else { "hidden_act" };
    config.only(key, &names.map(|(name, _)| json!(name)))?;
    config.get("hidden_act");
    let stated = config.get(key).and_then(|name| name.as_str());
    let known = names.iter().find(|(name, _)| Some(*name) == stated);
    Ok(known.map_or(Activation::Silu, |(_, act)| *act))
}

fn attention(config: &HfConfig, style: RopeStyle) -> Result<Attention> {
    let heads = config.usize("num_attention_heads")?;
    let derived = config.usize("hidden_size")? / heads.max(1);
    let head_dim = config.optional_usize("head_dim")?.unwrap_or(derived);
    let bias = config.switch("attention_bias")?;
    Ok(Attention {
        heads,
        kv_heads: config.optional_usize("num_key_value_heads")?.unwrap_or(heads),
        head_dim,
        bias: AttentionBias { qkv: bias, output: bias },
        scale: (head_dim as f64).powf(-0.5) as f32,
        rope: Some(rope(config, FULL, head_dim, style)?),
        query_scale: None,
        qk_norm: None,
        window: None,
        softcap: None,
        sinks: false,
    })
}

/// The longest text: what the file says, or what yarn stretches the original context to, for files
/// that leave the first as it was before.
fn max_positions(config: &HfConfig, mixer: &Mixer) -> Result<usize> {
    let stated = config.usize("max_position_embeddings")?;
    let Mixer::Attention(attention) = mixer;
    match attention.rope.as_ref().map(|rope| &rope.scaling) {
        Some(RopeScaling::Yarn { factor, original_max_positions, .. }) => {
            Ok(stated.max((factor * original_max_positions) as usize))
        }
        _ => Ok(stated),
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::spec::Rope;
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
        let norm = Norm::rms(1e-5);
        let layer = LayerSpec {
            mixer: Mixer::Attention(Attention {
                heads: 32,
                kv_heads: 8,
                head_dim: 64,
                bias: AttentionBias { qkv: false, output: false },
                scale: 0.125,
                rope: Some(rope),
                query_scale: None,
                qk_norm: None,
                window: None,
                softcap: None,
                sinks: false,
            }),
            ffn: Ffn::Dense(Mlp { inter: 8192, act: Activation::Silu, bias: false }),
            norms: LayerNorms { pre_mix: Some(norm), pre_ffn: Some(norm), ..LayerNorms::default() },
            wiring: Wiring::Sequential,
            residual_scale: None,
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
        assert!(matches!(&spec.layers[3].ffn, Ffn::Dense(mlp) if mlp.bias));
    }
}
