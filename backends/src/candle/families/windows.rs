//! Which layers see a sliding window only.

use super::super::spec::{Mixer, ModelSpec};
use super::rope::{FULL, SLIDING};
use super::{HfConfig, Result};
use serde_json::{Value, json};

/// Gives the layers that slide their window. `layer_types` says which; where it is absent, the
/// family's own rule does, by the layer's index.
pub(super) fn slide(
    config: &HfConfig,
    spec: &mut ModelSpec,
    default: impl Fn(usize) -> bool,
) -> Result<()> {
    let window = config.optional_usize("sliding_window")?;
    let slides = match layer_types(config, spec.layers.len())? {
        Some(types) => types,
        None => (0..spec.layers.len()).map(default).collect(),
    };
    for (layer, slides) in spec.layers.iter_mut().zip(slides) {
        let Mixer::Attention(attention) = &mut layer.mixer;
        attention.window = window.filter(|_| slides).map(|window| window as u32);
    }
    Ok(())
}

/// Whether each layer slides, as `layer_types` has it.
pub(super) fn layer_types(config: &HfConfig, num_layers: usize) -> Result<Option<Vec<bool>>> {
    let Some(value) = config.get("layer_types") else { return Ok(None) };
    let rule = format!("a list of {num_layers}, each \"{FULL}\" or \"{SLIDING}\"");
    let slides = |kind: &Value| match kind.as_str() {
        Some(SLIDING) => Some(true),
        Some(FULL) => Some(false),
        _ => None,
    };
    let types: Option<Vec<bool>> =
        value.as_array().and_then(|types| types.iter().map(slides).collect());
    match types.filter(|types| types.len() == num_layers) {
        Some(types) => Ok(Some(types)),
        None => Err(config.wrong("layer_types", &rule, value)),
    }
}

/// A window that is there and switched off, unless `use_sliding_window` switches it on.
pub(super) fn slide_if_used(
    config: &HfConfig,
    spec: &mut ModelSpec,
    default: impl Fn(usize) -> bool,
) -> Result<()> {
    slide(config, spec, default)?;
    if !config.switch("use_sliding_window")? {
        for layer in &mut spec.layers {
            let Mixer::Attention(attention) = &mut layer.mixer;
            attention.window = None;
        }
    }
    Ok(())
}

/// Every how manieth layer sees everything, where a file has it as one number.
pub(super) fn pattern(config: &HfConfig) -> Result<usize> {
    // Re-saved files carry a copy that nothing reads.
    config.get("_sliding_window_pattern");
    match config.usize("sliding_window_pattern")? {
        0 => Err(config.wrong("sliding_window_pattern", "at least 1", &json!(0))),
        pattern => Ok(pattern),
    }
}
