//! Granite 3: Llama with a factor on the embedding, the scores, the residuals and the logits.

use super::super::spec::{Mixer, ModelSpec};
use super::{HfConfig, Result};

pub(super) const DEFAULTS: &str = r#"{
    "embedding_multiplier": 1.0, "attention_multiplier": 1.0, "residual_multiplier": 1.0,
    "logits_scaling": 1.0
}"#;

pub(super) fn granite(config: &HfConfig) -> Result<ModelSpec> {
    let mut spec = super::llama::llama(config)?;
    spec.embed.scale = Some(config.f64("embedding_multiplier")? as f32);
    spec.head.scale = Some(1.0 / config.f64("logits_scaling")? as f32);
    let scale = config.f64("attention_multiplier")? as f32;
    let residual = config.f64("residual_multiplier")? as f32;
    for layer in &mut spec.layers {
        let Mixer::Attention(attention) = &mut layer.mixer;
        attention.scale = scale;
        layer.residual_scale = Some(residual);
    }
    Ok(spec)
}
