//! Mistral, Ministral: Llama whose layers, or some of them, see a sliding window.
//! Ministral 3: Llama whose queries grow with their position beyond the original context.

use super::super::spec::{Mixer, ModelSpec, PositionScale};
use super::rope::{FULL, original_max_positions, parameters};
use super::windows::slide;
use super::{HfConfig, Result};

pub(super) const DEFAULTS: &str = r#"{"num_key_value_heads": 8, "sliding_window": 4096}"#;
pub(super) const MINISTRAL3_DEFAULTS: &str =
    r#"{"num_key_value_heads": 8, "head_dim": 128, "rms_norm_eps": 1e-5}"#;

pub(super) fn mistral(config: &HfConfig) -> Result<ModelSpec> {
    let mut spec = super::llama::llama(config)?;
    slide(config, &mut spec, |_| true)?;
    Ok(spec)
}

pub(super) fn ministral3(config: &HfConfig) -> Result<ModelSpec> {
    let mut spec = mistral(config)?;
    let Some(rope) = parameters(config, FULL)? else {
        return Err(config.missing("rope_parameters"));
    };
    let scale = PositionScale {
        beta: rope.f64("llama_4_scaling_beta")?,
        original_max_positions: original_max_positions(config, &rope)? as f64,
    };
    for layer in &mut spec.layers {
        let Mixer::Attention(attention) = &mut layer.mixer;
        attention.query_scale = Some(scale);
    }
    Ok(spec)
}
