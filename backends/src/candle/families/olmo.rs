//! OLMo 2: Llama that normalises what its halves add instead of what they read, and queries and
//! keys over all heads together. OLMo 3: three of four layers see a sliding window, and only the
//! others are stretched.

use super::super::spec::{LayerNorms, Mixer, ModelSpec, NormNames, QkNorm};
use super::rope::local_rope;
use super::windows::slide;
use super::{HfConfig, Result};

pub(super) const DEFAULTS: &str = r#"{"rms_norm_eps": 1e-5}"#;
pub(super) const OLMO3_DEFAULTS: &str =
    r#"{"rms_norm_eps": 1e-5, "rope_theta": 500000.0, "sliding_window": 4096}"#;

pub(super) fn olmo2(config: &HfConfig) -> Result<ModelSpec> {
    let mut spec = super::llama::llama(config)?;
    let norm = Some(spec.final_norm);
    for layer in &mut spec.layers {
        let Mixer::Attention(attention) = &mut layer.mixer;
        attention.qk_norm = norm.map(QkNorm::Whole);
        layer.norms = LayerNorms { post_mix: norm, post_ffn: norm, ..LayerNorms::default() };
    }
    spec.layout.norms = NormNames::Gemma;
    Ok(spec)
}

pub(super) fn olmo3(config: &HfConfig) -> Result<ModelSpec> {
    let mut spec = olmo2(config)?;
    slide(config, &mut spec, |layer| (layer + 1) % 4 != 0)?;
    for layer in &mut spec.layers {
        let Mixer::Attention(attention) = &mut layer.mixer;
        if attention.window.is_some() {
            attention.rope = Some(local_rope(config, attention.head_dim, 500_000.0)?);
        }
    }
    Ok(spec)
}
