//! What configurations mean, beyond what the dumps of `golden` and the parity tests show.

use super::*;
use crate::candle::spec::Mixer;
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
        ("rope_scaling", json!({"type": "dynamic", "factor": 4.0}), "`rope_scaling.type` is \"dy"),
        ("rope_scaling", json!({"type": "linear", "factor": 4.0, "mscale": 1.0}), "mscale"),
        ("rope_scaling", json!({"type": "linear"}), "`rope_scaling.factor` is missing"),
        ("rope_scaling", json!([1]), "`rope_scaling` must be an object, not [1]"),
        ("partial_rotary_factor", json!(1.5), "rope rotates 96 of 64 values"),
        ("hidden_size", json!(-4), "`hidden_size` must be a whole number below 2^32, not -4"),
        ("hidden_size", Value::Null, "`hidden_size` is missing"),
        ("num_key_value_heads", json!(7), "32 heads are not a multiple of 7 KV heads"),
        ("num_hidden_layers", json!(100_000), "`num_hidden_layers` must be 1 to 4096, not 100000"),
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

/// The configuration of a parity fixture.
fn fixture(case: &str) -> Value {
    let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/parity");
    let path = std::path::Path::new(fixtures).join(case).join("config.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn what_families_cannot_make_sense_of_is_refused_by_name() {
    let layers = json!(["full_attention", "chunked_attention"]);
    let towers = json!({"model_type": "gemma3_text", "use_bidirectional_attention": true});
    let cases = [
        ("olmo3", "layer_types", layers, "`layer_types` must be a list of"),
        (
            "gemma3-text",
            "layer_types",
            json!(["full_attention"]),
            "`layer_types` must be a list of",
        ),
        ("gemma3-text", "attn_logit_softcapping", json!(50.0), "`attn_logit_softcapping` is 50.0"),
        ("gemma3-text", "use_bidirectional_attention", json!(true), "use_bidirectional_attention"),
        ("smollm3", "no_rope_layers", json!([1]), "`no_rope_layers` must be a list of"),
        ("mistral", "sliding_window", json!(0), "`sliding_window` is 0"),
        ("cohere2", "use_parallel_block", json!(false), "`use_parallel_block` is false"),
        ("cohere2", "rotary_pct", json!(0.5), "`rotary_pct` is 0.5"),
        ("cohere2", "use_qk_norm", json!(true), "`use_qk_norm` is true"),
        ("granite", "logits_scaling", json!(0.0), "logits factor must be positive, not inf"),
        ("mixtral", "num_experts_per_tok", json!(9), "9 of 5 experts"),
        ("gpt-oss-mxfp4", "quantization_config", json!({"quant_method": "awq"}), "method `awq`"),
        ("gemma3-vision", "text_config", Value::Null, "`text_config` is missing"),
        ("gemma3-vision", "text_config", towers, "`text_config."),
        ("gemma3-vision", "text_config", json!({"model_type": "gpt2"}), "`gpt2` is not supported"),
    ];
    for (case, key, value, want) in cases {
        let error = spec(&with(fixture(case), key, value)).unwrap_err().to_string();
        assert!(error.contains(want), "{case}, {key}: {error}");
    }
}

#[test]
fn yarn_stretches_the_longest_text_and_sharpens_the_scores() {
    let yarn =
        json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768});
    let config = with(with(qwen3(), "rope_scaling", yarn), "max_position_embeddings", json!(32768));
    let spec = spec(&config).unwrap();
    assert_eq!(spec.max_positions, 131_072);
    let Mixer::Attention(attention) = &spec.layers[0].mixer;
    let factor = attention.rope.as_ref().unwrap().attention_factor();
    assert!((factor - (0.1 * 4f64.ln() + 1.0)).abs() < 1e-12);
}

/// Replaces values of released configurations, wherever they stand, by others: what comes of it is
/// an error, or a spec that can be asked everything without a panic.
#[test]
fn no_value_of_any_key_panics() {
    let others = [
        Value::Null,
        json!(0),
        json!(1),
        json!(-1),
        json!(7.5),
        json!(4_294_967_295_u32),
        json!(1e300),
        json!(true),
        json!("x"),
        json!([]),
        json!([1, "full_attention"]),
        json!({}),
    ];
    let configs = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/configs");
    let (mut refused, mut accepted) = (0, 0);
    for entry in std::fs::read_dir(configs).unwrap() {
        let Ok(config) =
            serde_json::from_slice::<Value>(&std::fs::read(entry.unwrap().path()).unwrap())
        else {
            continue;
        };
        for pointer in pointers(&config, String::new()) {
            for other in &others {
                let mut config = config.clone();
                *config.pointer_mut(&pointer).unwrap() = other.clone();
                let Ok(mut spec) = spec(&config) else {
                    refused += 1;
                    continue;
                };
                accepted += 1;
                spec.settle(spec.max_positions);
                assert!(!spec.cache_groups().is_empty(), "{pointer} = {other}");
                let Mixer::Attention(attention) = &spec.layers[0].mixer;
                assert!(attention.rope.as_ref().is_none_or(|rope| !rope.inv_freq().is_empty()));
            }
        }
    }
    assert!(refused > 1000 && accepted > 1000, "{refused} refused, {accepted} accepted");
}

/// Where the values of a document stand.
fn pointers(value: &Value, at: String) -> Vec<String> {
    let mut inside: Vec<String> = match value {
        Value::Object(values) => {
            values.iter().flat_map(|(key, value)| pointers(value, format!("{at}/{key}"))).collect()
        }
        _ => Vec::new(),
    };
    inside.push(at);
    inside
}
