//! Phi 3 and 4: Llama with fused projections, whose rotation is stretched pair by pair.

use super::super::spec::{Layout, ModelSpec};
use super::windows::slide;
use super::{HfConfig, Result};
use serde_json::json;

pub(super) const DEFAULTS: &str =
    r#"{"original_max_position_embeddings": 4096, "rms_norm_eps": 1e-5}"#;

pub(super) fn phi3(config: &HfConfig) -> Result<ModelSpec> {
    let mut spec = super::llama::llama(config)?;
    slide(config, &mut spec, |_| true)?;
    spec.layout = Layout { fused_qkv: true, fused_gate_up: true, ..spec.layout };
    for without_effect in ["embd_pdrop", "resid_pdrop", "original_max_position_embeddings"] {
        config.get(without_effect);
    }
    for key in ["full_attn_mod", "interpolate_factor"] {
        config.only(key, &[json!(1)])?;
    }
    Ok(spec)
}
