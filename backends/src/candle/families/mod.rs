//! Model families: `config.json -> ModelSpec`, one short pure function each.
//!
//! Every key of a configuration is read by its family, or is known to leave the mathematics as it
//! is, or is absent in effect (null or false). Any other key is refused by name: a key that is
//! skipped silently is a model that answers almost right. So `HfConfig` notes which keys were
//! read, and `parse` ends by looking at the rest.
//!
//! `llama` is the whole of a model; the others are stated as their difference from it. `rope` and
//! `windows` read what many families share.
//!
//! This module knows the keys of Hugging Face configurations. It does not know tensors.

mod cohere;
mod config;
mod gemma;
mod glm;
#[cfg(test)]
mod golden;
mod granite;
mod llama;
mod mistral;
mod moe;
mod nested;
mod olmo;
mod phi3;
mod qwen;
mod rope;
mod smollm3;
#[cfg(test)]
pub(super) mod tests;
mod windows;

use super::spec::ModelSpec;
use crate::LoadError;
use config::HfConfig;
use serde_json::Value;

type Result<T> = std::result::Result<T, LoadError>;
type Read = fn(&HfConfig) -> Result<ModelSpec>;

/// What is supported: `model_type`, what reads it, and the keys whose default in Transformers'
/// class of that name is not Llama's, as JSON.
const FAMILIES: &[(&str, Read, &str)] = &[
    ("cohere", cohere::cohere, cohere::DEFAULTS),
    ("cohere2", cohere::cohere2, cohere::COHERE2_DEFAULTS),
    ("gemma2", gemma::gemma2, gemma::GEMMA2_DEFAULTS),
    ("gemma3_text", gemma::gemma3, gemma::GEMMA3_DEFAULTS),
    ("glm", glm::glm, glm::DEFAULTS),
    ("glm4", glm::glm4, glm::DEFAULTS),
    ("glm4_moe", moe::glm4_moe, moe::GLM4_MOE_DEFAULTS),
    ("gpt_oss", moe::gpt_oss, moe::GPT_OSS_DEFAULTS),
    ("granite", granite::granite, granite::DEFAULTS),
    ("llama", llama::llama, "{}"),
    ("ministral", mistral::mistral, mistral::DEFAULTS),
    ("ministral3", mistral::ministral3, mistral::MINISTRAL3_DEFAULTS),
    ("mistral", mistral::mistral, mistral::DEFAULTS),
    ("mixtral", moe::mixtral, moe::MIXTRAL_DEFAULTS),
    ("olmo2", olmo::olmo2, olmo::DEFAULTS),
    ("olmo3", olmo::olmo3, olmo::OLMO3_DEFAULTS),
    ("phi3", phi3::phi3, phi3::DEFAULTS),
    ("qwen2", qwen::qwen2, qwen::QWEN2_DEFAULTS),
    ("qwen2_5_vl_text", qwen::qwen2, qwen::QWEN2_VL_DEFAULTS),
    ("qwen3", qwen::qwen3, qwen::QWEN3_DEFAULTS),
    ("qwen3_moe", moe::qwen3_moe, moe::QWEN3_MOE_DEFAULTS),
    ("qwen3_vl_text", qwen::qwen3, qwen::QWEN3_VL_DEFAULTS),
    ("smollm3", smollm3::smollm3, smollm3::DEFAULTS),
];

/// Keys that no family needs: provenance, training, and how other programs run the model.
const NEUTRAL: &[&str] = &[
    "_attn_implementation",
    "_commit_hash",
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "auto_map",
    "bos_token_id",
    "cache_implementation",
    "do_sample",
    "dtype",
    "finetuning_task",
    "id2label",
    "initializer_range",
    "is_llama_config",
    "label2id",
    "max_length",
    "model_max_length",
    "pad_token_id",
    "sep_token_id",
    "task_specific_params",
    "temperature",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "transformers.js_config",
    "transformers_version",
    "unk_token_id",
    "unsloth_fixed",
    "unsloth_version",
    "use_cache",
];

/// Reads the spec of a supported model out of its `config.json`.
pub(super) fn parse(config_json: &[u8]) -> Result<ModelSpec> {
    let config = HfConfig::parse(config_json)?;
    let spec = match nested::split(&config)? {
        None => text_model(&config)?,
        Some(nested) => nested.model(text_model)?,
    };
    spec.check().map_err(invalid)?;
    Ok(spec)
}

/// The spec of a configuration that describes a text model and nothing else.
fn text_model(config: &HfConfig) -> Result<ModelSpec> {
    let model_type = config.string("model_type")?;
    let Some((_, read, defaults)) = FAMILIES.iter().find(|(name, ..)| *name == model_type) else {
        let names = FAMILIES.iter().map(|(name, ..)| *name);
        let mut known: Vec<&str> = names.chain(nested::FAMILIES.iter().copied()).collect();
        known.sort_unstable();
        return Err(invalid(format!(
            "model_type `{model_type}` is not supported (supported: {})",
            known.join(", ")
        )));
    };
    // gpt-oss is released with packed experts, which are unpacked as they are loaded.
    config.refuse_quantization(if model_type == "gpt_oss" { &["mxfp4"] } else { &[] })?;
    let config = config.with_defaults(defaults);
    let spec = read(&config)?;
    config.refuse_rest(NEUTRAL)?;
    Ok(spec)
}

/// The dtype that `config.json` says the weights have: `bfloat16`, `float16` or `float32`.
pub(super) fn stated_dtype(config_json: &[u8]) -> Result<Option<String>> {
    let config = HfConfig::parse(config_json)?;
    let text = config.object("text_config")?;
    let stated = [Some(&config), text.as_ref()].into_iter().flatten().find_map(|config| {
        let stated = config.get("dtype").or_else(|| config.get("torch_dtype"))?;
        stated.as_str().map(str::to_owned)
    });
    Ok(stated)
}

fn invalid(reason: String) -> LoadError {
    LoadError::Invalid { file: "config.json".into(), reason }
}

/// Token ids written as one number or as a list of numbers.
pub(crate) fn parse_token_ids(value: &Value) -> Option<Vec<u32>> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Value::Array(ids) => ids.iter().map(id).collect(),
        one => id(one).map(|id| vec![id]),
    }
}
