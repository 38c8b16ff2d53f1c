//! Cohere (Command R): attention and feed-forward read the same layer norm, heads rotate in
//! adjacent pairs, logits have a factor. Cohere 2 (Command R7B, Command A): three of four layers
//! see a window; the fourth knows no positions.

use super::super::spec::{LayerNorms, Mixer, ModelSpec, Norm, NormKind, QkNorm, Wiring};
use super::windows::{pattern, slide};
use super::{HfConfig, Result};
use millstream_kernels::rope::RopeStyle;
use serde_json::json;

pub(super) const DEFAULTS: &str = r#"{
    "tie_word_embeddings": true, "logit_scale": 0.0625, "layer_norm_eps": 1e-5,
    "rope_theta": 500000.0, "eos_token_id": 255001
}"#;
pub(super) const COHERE2_DEFAULTS: &str = r#"{
    "tie_word_embeddings": true, "logit_scale": 0.0625, "layer_norm_eps": 1e-5,
    "sliding_window": 4096, "sliding_window_pattern": 4, "eos_token_id": 255001
}"#;

pub(super) fn cohere(config: &HfConfig) -> Result<ModelSpec> {
    let mut spec = super::llama::llama_with(config, RopeStyle::Interleaved)?;
    spec.head.scale = Some(config.f64("logit_scale")? as f32);
    let norm = Norm { kind: NormKind::Layer, ..Norm::rms(config.f64("layer_norm_eps")?) };
    spec.final_norm = norm;
    let qk_norm = config.switch("use_qk_norm")?.then_some(QkNorm::EachHead(norm));
    for layer in &mut spec.layers {
        let Mixer::Attention(attention) = &mut layer.mixer;
        attention.qk_norm = qk_norm;
        layer.norms = LayerNorms { pre_mix: Some(norm), ..LayerNorms::default() };
        layer.wiring = Wiring::Parallel;
    }
    Ok(spec)
}

pub(super) fn cohere2(config: &HfConfig) -> Result<ModelSpec> {
    // Cohere 2 has no norms of queries and keys, whatever its files say.
    config.only("use_qk_norm", &[json!(false)])?;
    let mut spec = cohere(config)?;
    let every = pattern(config)?;
    slide(config, &mut spec, |layer| (layer + 1) % every != 0)?;
    for layer in &mut spec.layers {
        let Mixer::Attention(attention) = &mut layer.mixer;
        attention.rope = attention.rope.take().filter(|_| attention.window.is_some());
    }
    as_released(config, every)?;
    Ok(spec)
}

/// Keys that the released files carry and nothing reads, at the only values they are known with.
fn as_released(config: &HfConfig, every: usize) -> Result<()> {
    for (key, value) in [
        ("layer_switch", json!(every)),
        ("order_of_interleaved_layers", json!("local_attn_first")),
        ("position_embedding_type", json!("rope_gptj")),
        ("rotary_pct", json!(1.0)),
        ("use_embedding_sharing", json!(true)),
        ("use_gated_activation", json!(true)),
        ("use_parallel_block", json!(true)),
        ("use_parallel_embedding", json!(true)),
    ] {
        config.only(key, &[value])?;
    }
    Ok(())
}
