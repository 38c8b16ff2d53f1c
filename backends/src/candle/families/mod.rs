//! Model families: `config.json -> ModelSpec`, one short pure function each.
//!
//! Every key of a configuration is read by its family, or is known to leave the mathematics as it
//! is, or is absent in effect (null or false). Any other key is refused by name: a key that is
//! skipped silently is a model that answers almost right. So `HfConfig` notes which keys were
//! read, and `parse` ends by looking at the rest.
//!
//! This module knows the keys of Hugging Face configurations. It does not know tensors.

mod llama;
mod qwen3;

use super::spec::ModelSpec;
use crate::LoadError;
use serde_json::{Map, Value};
use std::cell::RefCell;
use std::collections::BTreeSet;

type Result<T> = std::result::Result<T, LoadError>;
type Family = fn(&HfConfig) -> Result<ModelSpec>;

/// `model_type` of what is supported.
const FAMILIES: &[(&str, Family)] = &[("llama", llama::llama), ("qwen3", qwen3::qwen3)];

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
    let model_type = config.string("model_type")?;
    let Some((_, family)) = FAMILIES.iter().find(|(name, _)| *name == model_type) else {
        let known: Vec<&str> = FAMILIES.iter().map(|(name, _)| *name).collect();
        let known = known.join(", ");
        return Err(invalid(format!(
            "model_type `{model_type}` is not supported (supported: {known})"
        )));
    };
    config.refuse_quantization()?;
    let spec = family(&config)?;
    config.refuse_rest(NEUTRAL)?;
    spec.check().map_err(invalid)?;
    Ok(spec)
}

/// The dtype that `config.json` says the weights have: `bfloat16`, `float16` or `float32`.
pub(super) fn stated_dtype(config_json: &[u8]) -> Result<Option<String>> {
    let config = HfConfig::parse(config_json)?;
    let stated = config.get("dtype").or_else(|| config.get("torch_dtype"));
    Ok(stated.and_then(Value::as_str).map(str::to_owned))
}

/// An object of a configuration that remembers which of its keys were read.
pub(crate) struct HfConfig {
    values: Map<String, Value>,
    /// Where this object stands in the file, for messages: empty, or `rope_scaling.`.
    path: String,
    read: RefCell<BTreeSet<String>>,
}

impl HfConfig {
    fn parse(json: &[u8]) -> Result<Self> {
        match serde_json::from_slice(json) {
            Ok(Value::Object(values)) => Ok(Self::new(values, String::new())),
            Ok(_) => Err(invalid("not a JSON object".into())),
            Err(error) => Err(invalid(format!("not JSON: {error}"))),
        }
    }

    fn new(values: Map<String, Value>, path: String) -> Self {
        Self { values, path, read: RefCell::default() }
    }

    /// The value of a key; null is as good as absent.
    fn get(&self, key: &str) -> Option<&Value> {
        self.read.borrow_mut().insert(key.to_owned());
        self.values.get(key).filter(|value| !value.is_null())
    }

    fn wrong(&self, key: &str, rule: &str, value: &Value) -> LoadError {
        invalid(format!("`{}{key}` must be {rule}, not {value}", self.path))
    }

    fn missing(&self, key: &str) -> LoadError {
        invalid(format!("`{}{key}` is missing", self.path))
    }

    fn string(&self, key: &str) -> Result<&str> {
        let value = self.get(key).ok_or_else(|| self.missing(key))?;
        value.as_str().ok_or_else(|| self.wrong(key, "a string", value))
    }

    /// A whole number that fits 32 bits, so that products of two cannot overflow.
    fn optional_usize(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_u64().and_then(|n| u32::try_from(n).ok()) {
            Some(n) => Ok(Some(n as usize)),
            None => Err(self.wrong(key, "a whole number below 2^32", value)),
        }
    }

    fn usize(&self, key: &str) -> Result<usize> {
        self.optional_usize(key)?.ok_or_else(|| self.missing(key))
    }

    fn optional_f64(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_f64().map(Some).ok_or_else(|| self.wrong(key, "a number", value))
    }

    fn f64(&self, key: &str) -> Result<f64> {
        self.optional_f64(key)?.ok_or_else(|| self.missing(key))
    }

    /// A switch that is off unless it is stated.
    fn switch(&self, key: &str) -> Result<bool> {
        match self.get(key) {
            None => Ok(false),
            Some(value) => value.as_bool().ok_or_else(|| self.wrong(key, "true or false", value)),
        }
    }

    /// An object inside this one.
    fn object(&self, key: &str) -> Result<Option<Self>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(values)) => {
                Ok(Some(Self::new(values.clone(), format!("{}{key}.", self.path))))
            }
            Some(value) => Err(self.wrong(key, "an object", value)),
        }
    }

    /// Refuses a key whose value is none of those that leave the mathematics as it is.
    fn only(&self, key: &str, allowed: &[Value]) -> Result<()> {
        match self.get(key) {
            Some(value) if !allowed.contains(value) => {
                let allowed: Vec<String> = allowed.iter().map(Value::to_string).collect();
                let what = format!("`{}{key}` is {value}, which is not supported", self.path);
                Err(invalid(format!("{what} (supported: {})", allowed.join(", "))))
            }
            _ => Ok(()),
        }
    }

    /// Ids that end a text: one number or a list.
    fn token_ids(&self, key: &str) -> Result<Vec<u32>> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        parse_token_ids(value).ok_or_else(|| self.wrong(key, "a token id or a list of them", value))
    }

    fn refuse_quantization(&self) -> Result<()> {
        let Some(quantization) = self.get("quantization_config") else { return Ok(()) };
        let method = quantization.get("quant_method").and_then(Value::as_str).unwrap_or("unnamed");
        Err(invalid(format!(
            "the weights are quantized (`quantization_config`, method `{method}`), which is not \
             supported yet; use the checkpoint in bf16, f16 or f32"
        )))
    }

    /// Refuses every key that was not read, is not neutral, and says something.
    fn refuse_rest(&self, neutral: &[&str]) -> Result<()> {
        let read = self.read.borrow();
        for (key, value) in &self.values {
            let known = read.contains(key) || neutral.contains(&key.as_str());
            if !known && !value.is_null() && *value != Value::Bool(false) {
                return Err(LoadError::Unsupported {
                    key: format!("{}{key}", self.path),
                    value: value.to_string(),
                });
            }
        }
        Ok(())
    }
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
            ("model_type", json!("gpt2"), "model_type `gpt2` is not supported (supported: llama"),
            ("hidden_act", json!("gelu"), "`hidden_act` is \"gelu\", which is not supported"),
            ("logits_scaling", json!(8.0), "`logits_scaling` is 8.0, which is not supported"),
            ("quantization_config", json!({"quant_method": "fp8"}), "method `fp8`"),
            ("rope_scaling", json!({"type": "yarn", "factor": 4.0}), "`rope_scaling.type` is \"ya"),
            ("rope_scaling", json!({"type": "linear", "factor": 4.0, "mscale": 1.0}), "mscale"),
            ("rope_scaling", json!({"type": "linear"}), "`rope_scaling.factor` is missing"),
            ("rope_scaling", json!([1]), "`rope_scaling` must be an object, not [1]"),
            ("partial_rotary_factor", json!(0.5), "`partial_rotary_factor` is 0.5"),
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
