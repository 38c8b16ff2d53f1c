//! SmolLM 3: Llama of which every fourth layer knows no positions.

use super::super::spec::{Mixer, ModelSpec};
use super::windows::slide_if_used;
use super::{HfConfig, Result};
use serde_json::json;

pub(super) const DEFAULTS: &str = r#"{
    "num_key_value_heads": 4, "rope_theta": 2000000.0, "tie_word_embeddings": true,
    "no_rope_layer_interval": 4
}"#;

pub(super) fn smollm3(config: &HfConfig) -> Result<ModelSpec> {
    let mut spec = super::llama::llama(config)?;
    let every = config.usize("no_rope_layer_interval")?.max(1);
    let rotates: Vec<bool> = match config.has("no_rope_layers") {
        // In spite of its name, 1 stands for a layer that rotates.
        true => config.numbers("no_rope_layers")?.iter().map(|&n| n != 0.0).collect(),
        false => (0..spec.layers.len()).map(|layer| (layer + 1) % every != 0).collect(),
    };
    if rotates.len() != spec.layers.len() {
        let rule = format!("a list of {}, one number per layer", spec.layers.len());
        return Err(config.wrong("no_rope_layers", &rule, &json!(rotates.len())));
    }
    for (layer, rotates) in spec.layers.iter_mut().zip(&rotates) {
        let Mixer::Attention(attention) = &mut layer.mixer;
        attention.rope = attention.rope.take().filter(|_| *rotates);
    }
    slide_if_used(config, &mut spec, |layer| !rotates[layer])?;
    config.get("max_window_layers");
    config.get("no_rope_layer_interval");
    Ok(spec)
}
