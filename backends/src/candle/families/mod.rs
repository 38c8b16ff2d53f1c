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
mod nested;
mod olmo;
mod phi3;
mod qwen;
mod rope;
mod smollm3;
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
    ("granite", granite::granite, granite::DEFAULTS),
    ("llama", llama::llama, "{}"),
    ("ministral", mistral::mistral, mistral::DEFAULTS),
    ("ministral3", mistral::ministral3, mistral::MINISTRAL3_DEFAULTS),
    ("mistral", mistral::mistral, mistral::DEFAULTS),
    ("olmo2", olmo::olmo2, olmo::DEFAULTS),
    ("olmo3", olmo::olmo3, olmo::OLMO3_DEFAULTS),
    ("phi3", phi3::phi3, phi3::DEFAULTS),
    ("qwen2", qwen::qwen2, qwen::QWEN2_DEFAULTS),
    ("qwen2_5_vl_text", qwen::qwen2, qwen::QWEN2_VL_DEFAULTS),
    ("qwen3", qwen::qwen3, qwen::QWEN3_DEFAULTS),
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
    "bos_token_id",
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
    config.refuse_quantization()?;
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

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use serde_json::json;

    /// Llama-3.2-1B as released.
    pub(crate) fn llama() -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"], "attention_bias": false,
            "attention_dropout": 0.0, "bos_token_id": 128000,
            "eos_token_id": [128001, 128008, 128009], "head_dim": 64, "hidden_act": "silu",
            "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 8192,
            "max_position_embeddings": 131072, "mlp_bias": false, "model_type": "llama",
            "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8,
            "pretraining_tp": 1, "rms_norm_eps": 1e-5,
            "rope_scaling": {
                "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                "original_max_position_embeddings": 8192, "rope_type": "llama3"
            },
            "rope_theta": 500000.0, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
            "transformers_version": "4.45.0.dev0", "use_cache": true, "vocab_size": 128256
        })
    }

    /// Qwen3-0.6B as released.
    pub(crate) fn qwen3() -> Value {
        json!({
            "architectures": ["Qwen3ForCausalLM"], "attention_bias": false,
            "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645,
            "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024, "initializer_range": 0.02,
            "intermediate_size": 3072, "max_position_embeddings": 40960, "max_window_layers": 28,
            "model_type": "qwen3", "num_attention_heads": 16, "num_hidden_layers": 28,
            "num_key_value_heads": 8, "rms_norm_eps": 1e-6, "rope_scaling": null,
            "rope_theta": 1000000, "sliding_window": null, "tie_word_embeddings": true,
            "torch_dtype": "bfloat16", "transformers_version": "4.51.0", "use_cache": true,
            "use_sliding_window": false, "vocab_size": 151936
        })
    }

    pub(crate) fn with(mut config: Value, key: &str, value: Value) -> Value {
        config[key] = value;
        config
    }

    pub(crate) fn spec(config: &Value) -> Result<ModelSpec> {
        parse(config.to_string().as_bytes())
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        let cases = [
            (
                "model_type",
                json!("gpt2"),
                "model_type `gpt2` is not supported (supported: cohere, cohere2, ge",
            ),
            ("hidden_act", json!("gelu"), "`hidden_act` is \"gelu\", which is not supported"),
            ("logits_scaling", json!(8.0), "`logits_scaling` is 8.0, which is not supported"),
            ("quantization_config", json!({"quant_method": "fp8"}), "method `fp8`"),
            (
                "rope_scaling",
                json!({"type": "dynamic", "factor": 4.0}),
                "`rope_scaling.type` is \"dy",
            ),
            ("rope_scaling", json!({"type": "linear", "factor": 4.0, "mscale": 1.0}), "mscale"),
            ("rope_scaling", json!({"type": "linear"}), "`rope_scaling.factor` is missing"),
            ("rope_scaling", json!([1]), "`rope_scaling` must be an object, not [1]"),
            ("partial_rotary_factor", json!(1.5), "rope rotates 96 of 64 values"),
            ("hidden_size", json!(-4), "`hidden_size` must be a whole number below 2^32, not -4"),
            ("hidden_size", Value::Null, "`hidden_size` is missing"),
            ("num_key_value_heads", json!(7), "32 heads are not a multiple of 7 KV heads"),
            ("num_hidden_layers", json!(100_000), "100000 layers"),
            ("head_dim", json!(63), "rope rotates 63 of 63 values"),
            ("eos_token_id", json!("</s>"), "`eos_token_id` must be a token id"),
        ];
        for (key, value, want) in cases {
            let error = spec(&with(llama(), key, value)).unwrap_err().to_string();
            assert!(error.contains(want), "{key}: {error}");
        }
        assert!(parse(b"{").unwrap_err().to_string().contains("not JSON"));
    }

    #[test]
    fn keys_that_say_nothing_are_accepted() {
        let cases = [
            ("some_new_switch", json!(false)),
            ("some_new_value", Value::Null),
            ("partial_rotary_factor", json!(1.0)),
            ("_name_or_path", json!("here")),
        ];
        for (key, value) in cases {
            assert_eq!(spec(&with(llama(), key, value)).unwrap(), spec(&llama()).unwrap(), "{key}");
        }
    }

    #[test]
    fn the_stated_dtype_has_two_names() {
        let read = |key: &str| stated_dtype(format!(r#"{{"{key}": "float16"}}"#).as_bytes());
        assert_eq!(read("dtype").unwrap().as_deref(), Some("float16"));
        assert_eq!(read("torch_dtype").unwrap().as_deref(), Some("float16"));
        assert_eq!(read("other").unwrap(), None);
    }
}
