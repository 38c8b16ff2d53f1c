//! `config.json` and `generation_config.json`, as Hugging Face has them, from a file's metadata.
//!
//! Every key below the architecture's name is read, or is known to leave the mathematics as it is.
//! Any other is refused by name, unless it says 0 or false.

use super::architectures::Architecture;
use super::keys::Keys;
use serde_json::{Map, Value, json};

type Result<T> = std::result::Result<T, String>;
type Config = Map<String, Value>;

/// Keys, below the architecture's name, that nothing here needs.
const NEUTRAL: &[&str] = &[
    // The head's rows say so.
    "vocab_size",
    // Which program trained it for what length, and how a file was made.
    "rope.scaling.finetuned",
    "tensor_data_layout",
    "attention.causal",
];

/// More layers than any model has.
const MAX_LAYERS: u32 = 100_000;

/// Tensors that the configuration holds, so that nobody else has to read them.
pub(super) const IN_CONFIG: [&str; 3] =
    ["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"];

/// The whole of config.json.
pub(super) fn config(keys: &Keys<'_>, architecture: &Architecture) -> Result<Value> {
    let mut config = Config::new();
    let name = architecture.name;
    if let Some(false) = keys.switch(&format!("{name}.attention.causal"))? {
        return Err(format!("`{name}.attention.causal` is false, which is not supported"));
    }
    common(&Below { keys, name }, &mut config)?;
    (architecture.config)(keys, &mut config)?;
    if architecture.adjacent_pairs && config.contains_key("partial_rotary_factor") {
        let key = format!("{name}.rope.dimension_count");
        return Err(format!("`{key}` is not the size of a head, which is not supported"));
    }
    keys.refuse_rest(&format!("{name}."), NEUTRAL)?;
    Ok(Value::Object(config))
}

/// The keys below an architecture's name.
struct Below<'k, 'a> {
    keys: &'k Keys<'a>,
    name: &'k str,
}

impl Below<'_, '_> {
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.name)
    }

    fn number(&self, key: &str) -> Result<Option<u32>> {
        self.keys.number(&self.key(key))
    }

    fn required(&self, key: &str) -> Result<u32> {
        self.keys.required(&self.key(key))
    }

    fn float(&self, key: &str) -> Result<Option<f64>> {
        self.keys.float(&self.key(key))
    }

    /// Writes a number that the file may leave open.
    fn copy(&self, key: &str, config: &mut Config, to: &str) -> Result<()> {
        if let Some(value) = self.float(key)? {
            config.insert(to.into(), value.into());
        }
        Ok(())
    }
}

/// What all architectures have.
fn common(below: &Below<'_, '_>, config: &mut Config) -> Result<()> {
    let (hidden, heads) =
        (below.required("embedding_length")?, below.required("attention.head_count")?);
    let head_dim = head_dim(below, hidden, heads)?;
    let kv_heads = below.number("attention.head_count_kv")?.unwrap_or(heads);
    for (key, value) in [
        ("vocab_size", json!(vocab_size(below.keys)?)),
        ("hidden_size", json!(hidden)),
        ("num_hidden_layers", json!(below.required("block_count")?)),
        ("max_position_embeddings", json!(below.required("context_length")?)),
        ("num_attention_heads", json!(heads)),
        ("num_key_value_heads", json!(kv_heads)),
        ("head_dim", json!(head_dim)),
        ("tie_word_embeddings", json!(below.keys.shape("output.weight").is_none())),
    ] {
        config.insert(key.into(), value);
    }
    if let Some(inter) = below.number("feed_forward_length")? {
        config.insert("intermediate_size".into(), inter.into());
    }
    below.copy("attention.layer_norm_rms_epsilon", config, "rms_norm_eps")?;
    below.copy("rope.freq_base", config, "rope_theta")?;
    if let Some(dims) = below.number("rope.dimension_count")?.filter(|dims| *dims != head_dim) {
        // A little more than the share: of it, whoever reads this takes the whole part.
        let share = (f64::from(dims) + 0.125) / f64::from(head_dim);
        config.insert("partial_rotary_factor".into(), share.into());
    }
    match rope_scaling(below, config)? {
        Some(scaling) => config.insert("rope_scaling".into(), scaling),
        None => None,
    };
    Ok(())
}

fn head_dim(below: &Below<'_, '_>, hidden: u32, heads: u32) -> Result<u32> {
    let head_dim = match below.number("attention.key_length")? {
        Some(length) => length,
        None => hidden.checked_div(heads).unwrap_or(0),
    };
    if head_dim == 0 {
        return Err(format!("`{}`: {heads} heads in {hidden}", below.key("attention.head_count")));
    }
    match below.number("attention.value_length")? {
        Some(other) if other != head_dim => {
            let key = below.key("attention.value_length");
            Err(format!("`{key}` is {other}, keys have {head_dim}, which is not supported"))
        }
        _ => Ok(head_dim),
    }
}

/// The rows of the embedding, which are the ids that a model knows.
fn vocab_size(keys: &Keys<'_>) -> Result<usize> {
    match keys.shape("token_embd.weight") {
        Some([vocab, _]) => Ok(*vocab),
        Some(shape) => {
            Err(format!("tensor `token_embd.weight` has shape {shape:?}, not two sides"))
        }
        None => Err("tensor `token_embd.weight` is missing: the file is a vocabulary alone".into()),
    }
}

/// How positions are stretched. Factors for each pair come as tensors, whatever they were made
/// from: Llama 3's rule, or the short and long ones of Phi 3.
fn rope_scaling(below: &Below<'_, '_>, config: &Config) -> Result<Option<Value>> {
    let keys = below.keys;
    let type_key = below.key("rope.scaling.type");
    let stated = keys.string(&type_key)?;
    let factor = match below.float("rope.scaling.factor")? {
        Some(factor) => Some(factor),
        None => below.float("rope.scale_linear")?,
    };
    let original = below.number("rope.scaling.original_context_length")?;
    let attention = below.float("rope.scaling.attn_factor")?;
    let context = config["max_position_embeddings"].clone();
    let original_or_context = original.map_or(context, Value::from);
    if let Some(freqs) = keys.tensor("rope_freqs.weight")? {
        return Ok(Some(json!({
            "rope_type": "longrope", "short_factor": freqs, "long_factor": freqs,
            "original_max_position_embeddings": original_or_context, "attention_factor": 1.0,
        })));
    }
    let long = keys.tensor("rope_factors_long.weight")?;
    let short = keys.tensor("rope_factors_short.weight")?;
    if let (Some(short), Some(long)) = (short, long) {
        let mut scaling = json!({
            "rope_type": "longrope", "short_factor": short, "long_factor": long,
            "original_max_position_embeddings": original_or_context,
        });
        if let Some(attention) = attention {
            scaling["attention_factor"] = attention.into();
        }
        return Ok(Some(scaling));
    }
    match (stated, factor) {
        (Some("none"), _) | (None, None) => Ok(None),
        (Some("linear") | None, Some(factor)) => {
            let is_one = factor == 1.0 || factor == 0.0;
            Ok((!is_one).then(|| json!({ "rope_type": "linear", "factor": factor })))
        }
        (Some("yarn"), Some(factor)) => yarn(below, factor, &original_or_context).map(Some),
        (Some("linear" | "yarn"), None) => {
            Err(format!("`{}` is missing", below.key("rope.scaling.factor")))
        }
        (Some(other), _) => Err(format!("`{type_key}` is {other:?}, which is not supported")),
    }
}

fn yarn(below: &Below<'_, '_>, factor: f64, original: &Value) -> Result<Value> {
    let mut scaling = json!({
        "rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original,
    });
    for (key, to) in [
        ("rope.scaling.yarn_attn_factor", "attention_factor"),
        ("rope.scaling.yarn_beta_fast", "beta_fast"),
        ("rope.scaling.yarn_beta_slow", "beta_slow"),
    ] {
        if let Some(value) = below.float(key)? {
            scaling[to] = value.into();
        }
    }
    below.keys.only(&below.key("rope.scaling.yarn_ext_factor"), &[1.0, -1.0])?;
    Ok(scaling)
}

fn model_type(config: &mut Config, name: &str) {
    config.insert("model_type".into(), name.into());
}

/// Llama; with experts, Mixtral.
pub(super) fn llama(keys: &Keys<'_>, config: &mut Config) -> Result<()> {
    let below = Below { keys, name: "llama" };
    let Some(experts) = below.number("expert_count")?.filter(|&experts| experts > 0) else {
        model_type(config, "llama");
        keys.number("llama.expert_used_count")?;
        let has = |name: &str| keys.shape(name).is_some();
        config.insert("attention_bias".into(), has("blk.0.attn_q.bias").into());
        config.insert("mlp_bias".into(), has("blk.0.ffn_gate.bias").into());
        return Ok(());
    };
    model_type(config, "mixtral");
    config.insert("num_local_experts".into(), experts.into());
    config.insert("num_experts_per_tok".into(), below.required("expert_used_count")?.into());
    // Mixtral has a window where its files do not say otherwise.
    config.insert("sliding_window".into(), Value::Null);
    Ok(())
}

pub(super) fn granite(keys: &Keys<'_>, config: &mut Config) -> Result<()> {
    model_type(config, "granite");
    let below = Below { keys, name: "granite" };
    for (key, to) in [
        ("attention.scale", "attention_multiplier"),
        ("embedding_scale", "embedding_multiplier"),
        ("residual_scale", "residual_multiplier"),
        ("logit_scale", "logits_scaling"),
    ] {
        below.copy(key, config, to)?;
    }
    if !config.contains_key("attention_multiplier") {
        let head_dim = config["head_dim"].as_f64().unwrap_or(1.0);
        config.insert("attention_multiplier".into(), head_dim.powf(-0.5).into());
    }
    // Here the switch says whether positions rotate at all.
    keys.only("granite.rope.scaling.finetuned", &[1.0])
}

pub(super) fn qwen2(keys: &Keys<'_>, config: &mut Config) -> Result<()> {
    model_type(config, "qwen2");
    keys.only("qwen2.pooling_type", &[0.0])
}

pub(super) fn qwen3(keys: &Keys<'_>, config: &mut Config) -> Result<()> {
    model_type(config, "qwen3");
    keys.only("qwen3.pooling_type", &[0.0])
}

pub(super) fn qwen3moe(keys: &Keys<'_>, config: &mut Config) -> Result<()> {
    model_type(config, "qwen3_moe");
    let below = Below { keys, name: "qwen3moe" };
    for (key, to) in [
        ("expert_count", "num_experts"),
        ("expert_used_count", "num_experts_per_tok"),
        ("expert_feed_forward_length", "moe_intermediate_size"),
    ] {
        config.insert(to.into(), below.required(key)?.into());
    }
    // Softmax, with the weights of the chosen scaled to a sum of one: files that say nothing of
    // the latter mean it.
    keys.only("qwen3moe.expert_gating_func", &[1.0])?;
    keys.only("qwen3moe.expert_weights_scale", &[1.0])?;
    let renormalized = keys.switch("qwen3moe.expert_weights_norm")?.unwrap_or(true);
    config.insert("norm_topk_prob".into(), renormalized.into());
    let layers = below.required("block_count")?;
    let is_dense = |layer: &u32| keys.shape(&format!("blk.{layer}.ffn_gate_inp.weight")).is_none();
    let dense: Vec<u32> = (0..layers.min(MAX_LAYERS)).filter(is_dense).collect();
    config.insert("mlp_only_layers".into(), dense.into());
    Ok(())
}

pub(super) fn gemma2(keys: &Keys<'_>, config: &mut Config) -> Result<()> {
    model_type(config, "gemma2");
    let below = Below { keys, name: "gemma2" };
    below.copy("attn_logit_softcapping", config, "attn_logit_softcapping")?;
    // Of the sizes released, one scales its scores by the width of the model.
    gemma(&below, config, 46, 2)
}

pub(super) fn gemma3(keys: &Keys<'_>, config: &mut Config) -> Result<()> {
    model_type(config, "gemma3_text");
    let below = Below { keys, name: "gemma3" };
    let local = below.float("rope.freq_base_swa")?.unwrap_or(10_000.0);
    config.insert("rope_local_base_freq".into(), local.into());
    gemma(&below, config, 62, 6)
}

/// What the generations share: `by_width` layers mean scores that are scaled by the model's width,
/// and every `pattern`th layer sees everything.
fn gemma(below: &Below<'_, '_>, config: &mut Config, by_width: u32, pattern: u32) -> Result<()> {
    below.copy("final_logit_softcapping", config, "final_logit_softcapping")?;
    config.entry("final_logit_softcapping").or_insert(match below.name {
        "gemma2" => json!(30.0),
        _ => Value::Null,
    });
    let number = |key: &str| config[key].as_u64().unwrap_or(1);
    let scalar = match number("num_hidden_layers") == u64::from(by_width) {
        true => number("hidden_size") / number("num_attention_heads").max(1),
        false => number("head_dim"),
    };
    config.insert("query_pre_attn_scalar".into(), scalar.into());
    let window = match below.name {
        "gemma2" => Some(below.number("attention.sliding_window")?.unwrap_or(4096)),
        _ => below.number("attention.sliding_window")?,
    };
    let window = window.filter(|&window| window > 0);
    config.insert("sliding_window".into(), window.into());
    let every = below.number("attention.sliding_window_pattern")?.unwrap_or(pattern);
    if below.name == "gemma3" {
        config.insert("sliding_window_pattern".into(), every.into());
    } else if every != pattern {
        let key = below.key("attention.sliding_window_pattern");
        return Err(format!("`{key}` is {every}, which is not supported"));
    }
    Ok(())
}

pub(super) fn phi3(keys: &Keys<'_>, config: &mut Config) -> Result<()> {
    model_type(config, "phi3");
    let window = keys.number("phi3.attention.sliding_window")?.filter(|&window| window > 0);
    config.insert("sliding_window".into(), window.into());
    // Phi 3 has one of its own where its files say nothing.
    if let Some(original) = keys.number("phi3.rope.scaling.original_context_length")? {
        config.insert("original_max_position_embeddings".into(), original.into());
    }
    Ok(())
}

/// OLMo 2; with a window, OLMo 3, whose other layers alone are stretched.
pub(super) fn olmo2(keys: &Keys<'_>, config: &mut Config) -> Result<()> {
    model_type(config, "olmo2");
    let below = Below { keys, name: "olmo2" };
    let pattern = keys.switches(&below.key("attention.sliding_window_pattern"))?;
    let local_theta = below.float("rope.freq_base_swa")?;
    let window = below.number("attention.sliding_window")?;
    let Some(window) = window.filter(|&window| window > 0) else { return Ok(()) };
    model_type(config, "olmo3");
    config.insert("sliding_window".into(), window.into());
    let every_fourth = || {
        let layers = config["num_hidden_layers"].as_u64().unwrap_or(0);
        (1..=layers.min(MAX_LAYERS.into())).map(|layer| layer % 4 != 0).collect()
    };
    let slides: Vec<bool> = pattern.unwrap_or_else(every_fourth);
    let kind = |slides: bool| if slides { "sliding_attention" } else { "full_attention" };
    config.insert("layer_types".into(), slides.into_iter().map(kind).collect());
    let theta = config.remove("rope_theta").unwrap_or_else(|| json!(10_000.0));
    let mut full = config.remove("rope_scaling").unwrap_or_else(|| json!({}));
    let mut sliding = json!({ "rope_type": "default", "rope_theta": theta });
    full["rope_theta"] = theta;
    if let Some(local_theta) = local_theta {
        sliding["rope_theta"] = local_theta.into();
    }
    let parameters = json!({ "full_attention": full, "sliding_attention": sliding });
    config.insert("rope_parameters".into(), parameters);
    Ok(())
}

pub(super) fn glm4(keys: &Keys<'_>, config: &mut Config) -> Result<()> {
    model_type(config, "glm4");
    config.insert("attention_bias".into(), keys.shape("blk.0.attn_q.bias").is_some().into());
    config.entry("partial_rotary_factor").or_insert(json!(1.0));
    Ok(())
}

pub(super) fn cohere2(keys: &Keys<'_>, config: &mut Config) -> Result<()> {
    model_type(config, "cohere2");
    let below = Below { keys, name: "cohere2" };
    below.copy("attention.layer_norm_epsilon", config, "layer_norm_eps")?;
    below.copy("logit_scale", config, "logit_scale")?;
    config.insert("sliding_window".into(), below.required("attention.sliding_window")?.into());
    let every = below.number("attention.sliding_window_pattern")?.unwrap_or(4);
    config.insert("sliding_window_pattern".into(), every.into());
    Ok(())
}

/// What the file recommends for sampling, and the ids that end a text.
pub(super) fn generation_config(keys: &Keys<'_>, eos_token_ids: &[u32]) -> Result<Value> {
    let mut config = Config::new();
    config.insert("eos_token_id".into(), json!(eos_token_ids));
    for (key, to) in [
        ("temp", "temperature"),
        ("top_p", "top_p"),
        ("min_p", "min_p"),
        ("penalty_repeat", "repetition_penalty"),
    ] {
        if let Some(value) = keys.float(&format!("general.sampling.{key}"))? {
            config.insert(to.into(), value.into());
        }
    }
    if let Some(top_k) = keys.number("general.sampling.top_k")? {
        config.insert("top_k".into(), top_k.into());
    }
    if config.len() > 1 {
        config.insert("do_sample".into(), true.into());
    }
    Ok(Value::Object(config))
}
