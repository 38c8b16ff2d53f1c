//! Qwen 2: Llama with biases on queries, keys and values. Qwen 3: Llama with normalised queries
//! and keys. Either may have a sliding window, which the released models carry switched off.

use super::super::spec::{AttentionBias, Mixer, ModelSpec, QkNorm};
use super::windows::slide_if_used;
use super::{HfConfig, Result};

pub(super) const QWEN2_DEFAULTS: &str = r#"{"sliding_window": 4096, "max_window_layers": 28}"#;
pub(super) const QWEN3_DEFAULTS: &str =
    r#"{"sliding_window": 4096, "max_window_layers": 28, "head_dim": 128}"#;

pub(super) const QWEN2_VL_DEFAULTS: &str =
    r#"{"sliding_window": 4096, "max_window_layers": 80, "rope_theta": 1000000.0}"#;
pub(super) const QWEN3_VL_DEFAULTS: &str = r#"{
    "max_window_layers": 28, "head_dim": 128, "rope_theta": 500000.0
}"#;

pub(super) fn qwen2(config: &HfConfig) -> Result<ModelSpec> {
    let mut spec = windowed(config)?;
    for layer in &mut spec.layers {
        let Mixer::Attention(attention) = &mut layer.mixer;
        attention.bias = AttentionBias { qkv: true, output: false };
    }
    Ok(spec)
}

pub(super) fn qwen3(config: &HfConfig) -> Result<ModelSpec> {
    let mut spec = windowed(config)?;
    for layer in &mut spec.layers {
        let Mixer::Attention(attention) = &mut layer.mixer;
        attention.qk_norm = Some(QkNorm::PerHead(spec.final_norm));
    }
    Ok(spec)
}

fn windowed(config: &HfConfig) -> Result<ModelSpec> {
    let mut spec = super::llama::llama(config)?;
    let first = config.usize("max_window_layers")?;
    slide_if_used(config, &mut spec, |layer| layer >= first)?;
    Ok(spec)
}
