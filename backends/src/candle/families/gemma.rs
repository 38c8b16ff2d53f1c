//! Gemma 2: Llama with norms of `1 + weight` on both sides of its halves, a scaled embedding, a
//! GELU gate, and soft caps; every other layer sees a window. Gemma 3: norms of queries and keys
//! instead of the cap on the scores; five of six layers see a window, with their own rotation.

use super::super::spec::{LayerNorms, Mixer, ModelSpec, NormNames, QkNorm};
use super::rope::local_rope;
use super::windows::{pattern, slide};
use super::{HfConfig, Result};

pub(super) const GEMMA2_DEFAULTS: &str = r#"{
    "num_key_value_heads": 4, "head_dim": 256, "query_pre_attn_scalar": 256,
    "sliding_window": 4096, "tie_word_embeddings": true, "eos_token_id": 1,
    "hidden_activation": "gelu_pytorch_tanh", "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0
}"#;
pub(super) const GEMMA3_DEFAULTS: &str = r#"{
    "vocab_size": 262208, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
    "query_pre_attn_scalar": 256, "max_position_embeddings": 131072, "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0, "sliding_window": 4096, "sliding_window_pattern": 6,
    "tie_word_embeddings": true, "eos_token_id": 1,
    "hidden_activation": "gelu_pytorch_tanh"
}"#;

pub(super) fn gemma2(config: &HfConfig) -> Result<ModelSpec> {
    let mut spec = gemma(config)?;
    slide(config, &mut spec, |layer| layer % 2 == 0)?;
    config.only(
        "sliding_window_size",
        &[config.get("sliding_window").cloned().unwrap_or_default()],
    )?;
    let cap = config.optional_f64("attn_logit_softcapping")?.map(|cap| cap as f32);
    for layer in &mut spec.layers {
        let Mixer::Attention(attention) = &mut layer.mixer;
        attention.softcap = cap;
    }
    Ok(spec)
}

pub(super) fn gemma3(config: &HfConfig) -> Result<ModelSpec> {
    let mut spec = gemma(config)?;
    let every = pattern(config)?;
    slide(config, &mut spec, |layer| (layer + 1) % every != 0)?;
    // Transformers reads the cap of the scores and does not apply it; no released model has one.
    config.only("attn_logit_softcapping", &[])?;
    let local_theta = config.f64("rope_local_base_freq")?;
    for layer in &mut spec.layers {
        let Mixer::Attention(attention) = &mut layer.mixer;
        attention.qk_norm = Some(QkNorm::PerHead(spec.final_norm));
        if attention.window.is_some() {
            attention.rope = Some(local_rope(config, attention.head_dim, local_theta)?);
        }
    }
    Ok(spec)
}

/// What the generations share.
fn gemma(config: &HfConfig) -> Result<ModelSpec> {
    let mut spec = super::llama::llama(config)?;
    spec.head.softcap = config.optional_f64("final_logit_softcapping")?.map(|cap| cap as f32);
    spec.embed.scale = Some((spec.hidden as f32).sqrt());
    spec.embed.round_scale = true;
    spec.layout.norms = NormNames::Gemma;
    spec.final_norm.plus_one = true;
    let norm = Some(spec.final_norm);
    let scale = config.f64("query_pre_attn_scalar")?.powf(-0.5) as f32;
    for layer in &mut spec.layers {
        let Mixer::Attention(attention) = &mut layer.mixer;
        attention.scale = scale;
        layer.norms = LayerNorms { pre_mix: norm, post_mix: norm, pre_ffn: norm, post_ffn: norm };
    }
    Ok(spec)
}
