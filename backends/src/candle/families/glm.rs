//! GLM 4: Llama that rotates half of each head in adjacent pairs, with biases on queries, keys and
//! values, and gate and up in one. The models of 2025 normalise on both sides of its halves.

use super::super::spec::{AttentionBias, Mixer, ModelSpec, NormNames};
use super::{HfConfig, Result};
use millstream_kernels::rope::RopeStyle;

pub(super) const DEFAULTS: &str = r#"{
    "num_key_value_heads": 2, "head_dim": 128, "rms_norm_eps": 1.5625e-7,
    "attention_bias": true, "partial_rotary_factor": 0.5, "eos_token_id": [151329, 151336, 151338]
}"#;

pub(super) fn glm(config: &HfConfig) -> Result<ModelSpec> {
    let mut spec = super::llama::llama_with(config, RopeStyle::Interleaved)?;
    for layer in &mut spec.layers {
        let Mixer::Attention(attention) = &mut layer.mixer;
        attention.bias = AttentionBias { output: false, ..attention.bias };
    }
    spec.layout.fused_gate_up = true;
    Ok(spec)
}

pub(super) fn glm4(config: &HfConfig) -> Result<ModelSpec> {
    let mut spec = glm(config)?;
    for layer in &mut spec.layers {
        layer.norms.post_mix = Some(spec.final_norm);
        layer.norms.post_ffn = Some(spec.final_norm);
    }
    spec.layout.norms = NormNames::Glm;
    Ok(spec)
}
