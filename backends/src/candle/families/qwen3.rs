//! Qwen3: Llama with normalised queries and keys.

use super::super::spec::{Mixer, ModelSpec, QkNorm};
use super::{HfConfig, Result};
use serde_json::json;

pub(super) fn qwen3(config: &HfConfig) -> Result<ModelSpec> {
    let mut spec = super::llama::llama(config)?;
    no_window(config)?;
    for layer in &mut spec.layers {
        let Mixer::Attention(attention) = &mut layer.mixer;
        attention.qk_norm = Some(QkNorm::PerHead(layer.norms.pre_mix));
    }
    Ok(spec)
}

/// The released models carry a window that is switched off.
fn no_window(config: &HfConfig) -> Result<()> {
    config.only("use_sliding_window", &[json!(false)])?;
    config.get("sliding_window");
    config.get("max_window_layers");
    match config.get("layer_types").and_then(|value| value.as_array()) {
        Some(types) if types.iter().any(|t| *t != json!("full_attention")) => {
            config.only("layer_types", &[json!("full_attention in every layer")])
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::spec::Norm;
    use super::super::tests::{llama, qwen3, spec, with};
    use super::*;
    use serde_json::Value;

    #[test]
    fn qwen3_is_llama_with_normalised_queries_and_keys() {
        let mut as_llama = qwen3();
        for key in ["max_window_layers", "sliding_window", "use_sliding_window"] {
            as_llama.as_object_mut().unwrap().remove(key);
        }
        let mut want = spec(&with(as_llama, "model_type", llama()["model_type"].clone())).unwrap();
        for layer in &mut want.layers {
            let Mixer::Attention(attention) = &mut layer.mixer;
            attention.qk_norm = Some(QkNorm::PerHead(Norm { eps: 1e-6 }));
        }
        assert_eq!(spec(&qwen3()).unwrap(), want);
        let Mixer::Attention(attention) = &want.layers[27].mixer;
        assert_eq!((attention.q_width(), attention.kv_width()), (2048, 1024));
    }

    #[test]
    fn a_window_that_is_on_is_refused_and_one_that_is_off_is_not() {
        let full = Value::from(vec!["full_attention"; 28]);
        for (key, value) in [("sliding_window", json!(4096)), ("layer_types", full)] {
            assert_eq!(spec(&with(qwen3(), key, value)).unwrap(), spec(&qwen3()).unwrap());
        }
        let mixed = json!(["full_attention", "sliding_attention"]);
        for (key, value) in [("use_sliding_window", json!(true)), ("layer_types", mixed)] {
            let error = spec(&with(qwen3(), key, value)).unwrap_err().to_string();
            assert!(error.contains(&format!("`{key}` is")), "{error}");
        }
    }
}
