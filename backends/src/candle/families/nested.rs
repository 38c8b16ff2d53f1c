//! Configurations whose text model is a part: `text_config` beside towers for images or sound.
//!
//! The text model is served as if it stood alone: nothing of the towers acts on a text.

use super::super::spec::ModelSpec;
use super::{HfConfig, Result};

/// `model_type` of those that are known to compute text as their text model alone does.
pub(super) const FAMILIES: &[&str] = &["gemma3", "mistral3", "qwen2_5_vl", "qwen3_vl"];

/// A configuration and the text model in it.
pub(super) struct Nested<'c> {
    outer: &'c HfConfig,
    text: HfConfig,
}

/// The text model of a configuration that has one inside; `None` if it is one itself.
pub(super) fn split(config: &HfConfig) -> Result<Option<Nested<'_>>> {
    let model_type = config.string("model_type")?;
    if !FAMILIES.contains(&model_type) {
        return Ok(None);
    }
    match config.object("text_config")? {
        Some(text) => Ok(Some(Nested { outer: config, text })),
        // Files of Qwen 2.5 VL have the keys of the text model at the top.
        None if model_type == "qwen2_5_vl" => {
            let text = config.renamed("qwen2", |key| {
                key.starts_with("vision_") || key.starts_with("image_") || key.starts_with("video_")
            });
            Ok(Some(Nested { outer: config, text }))
        }
        None => Err(config.missing("text_config")),
    }
}

impl Nested<'_> {
    /// Reads the text model with `read`, and what the outer configuration says of it.
    pub(super) fn model(&self, read: fn(&HfConfig) -> Result<ModelSpec>) -> Result<ModelSpec> {
        self.outer.refuse_quantization(&[])?;
        let mut spec = read(&self.text)?;
        spec.layout.nested = true;
        let key = "tie_word_embeddings";
        if self.outer.has(key) {
            spec.head.tied = self.outer.switch(key)?;
        }
        spec.layout.tied_unless_stored = !self.outer.has(key) && !self.text.has(key);
        for id in self.outer.token_ids("eos_token_id")? {
            if !spec.eos.contains(&id) {
                spec.eos.push(id);
            }
        }
        Ok(spec)
    }
}
