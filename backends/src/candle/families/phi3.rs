//! Phi 3 and 4: Llama with fused projections, whose rotation is stretched pair by pair.

use super::super::spec::{Layout, ModelSpec};
use super::windows::slide;
use super::{HfConfig, Result};

pub(super) const DEFAULTS: &str =
    r#"{"original_max_position_embeddings": 4096, "rms_norm_eps": 1e-5}"#;

pub(super) fn phi3(config: &HfConfig) -> Result<ModelSpec> {
    let mut spec = super::llama::llama(config)?;
    slide(config, &mut spec, |_| true)?;
    spec.layout = Layout { fused_qkv: true, fused_gate_up: true, ..spec.layout };
    for said_without_effect in
        ["embd_pdrop", "resid_pdrop", "original_max_position_embeddings", "auto_map"]
    {
        config.get(said_without_effect);
    }
    Ok(spec)
}
