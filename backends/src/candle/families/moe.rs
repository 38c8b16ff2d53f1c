//! Families of which some layers are mixtures of experts: Mixtral, Qwen 3 MoE, GLM 4.5, gpt-oss.

use super::super::spec::{AttentionBias, ExpertNames, Ffn, Mixer, Mlp, ModelSpec, Moe, QkNorm};
use super::rope::{FULL, parameters};
use super::windows::{slide, slide_if_used};
use super::{HfConfig, Result};
use millstream_kernels::activation::Activation;
use millstream_kernels::moe::{Groups, Order, Routing, Score};
use serde_json::json;

pub(super) const MIXTRAL_DEFAULTS: &str = r#"{
    "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 1000000.0,
    "num_local_experts": 8, "num_experts_per_tok": 2
}"#;
pub(super) const QWEN3_MOE_DEFAULTS: &str = r#"{
    "num_key_value_heads": 4, "sliding_window": 4096, "max_window_layers": 0,
    "decoder_sparse_step": 1, "num_experts_per_tok": 8, "mlp_only_layers": []
}"#;
pub(super) const GLM4_MOE_DEFAULTS: &str = r#"{
    "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "partial_rotary_factor": 0.5,
    "num_experts_per_tok": 8, "n_group": 1, "topk_group": 1, "n_shared_experts": 1,
    "first_k_dense_replace": 1, "routed_scaling_factor": 1.0, "norm_topk_prob": true
}"#;
pub(super) const GPT_OSS_DEFAULTS: &str = r#"{
    "num_key_value_heads": 8, "head_dim": 64, "rms_norm_eps": 1e-5, "rope_theta": 150000.0,
    "attention_bias": true, "sliding_window": 128, "num_experts_per_tok": 4,
    "num_local_experts": 128, "swiglu_limit": 7.0, "swiglu_alpha": 1.702, "eos_token_id": 200002
}"#;

/// Mixtral: Mistral whose feed-forwards are the two likeliest of a few.
pub(super) fn mixtral(config: &HfConfig) -> Result<ModelSpec> {
    let mut spec = super::mistral::mistral(config)?;
    let moe = moe(config, "intermediate_size", softmax(config, true)?)?;
    spec.layers.iter_mut().for_each(|layer| layer.ffn = Ffn::Moe(moe.clone()));
    spec.layout.experts = ExpertNames::Mixtral;
    Ok(spec)
}

/// Qwen 3 MoE: Qwen 3 whose feed-forwards, or most of them, are the likeliest of many.
pub(super) fn qwen3_moe(config: &HfConfig) -> Result<ModelSpec> {
    let mut spec = super::qwen::qwen3(config)?;
    // Here the number of layers before the first window does not count.
    slide_if_used(config, &mut spec, |_| true)?;
    let renormalize = config.switch("norm_topk_prob")?;
    let moe = moe(config, "moe_intermediate_size", softmax(config, renormalize)?)?;
    let step = config.usize("decoder_sparse_step")?.max(1);
    let dense = config.numbers("mlp_only_layers")?;
    for (index, layer) in spec.layers.iter_mut().enumerate() {
        if (index + 1) % step == 0 && !dense.contains(&(index as f64)) {
            layer.ffn = Ffn::Moe(moe.clone());
        }
    }
    Ok(spec)
}

/// GLM 4.5: Llama that rotates half of each head, with biases on queries, keys and values. After
/// the first layers, experts are chosen by sigmoid and bonus, beside one for every token.
pub(super) fn glm4_moe(config: &HfConfig) -> Result<ModelSpec> {
    let mut spec = super::llama::llama(config)?;
    let mut moe = moe(config, "moe_intermediate_size", sigmoid(config)?)?;
    let inter = moe.expert.inter * config.usize("n_shared_experts")?;
    moe.shared = Some(Mlp { inter, ..moe.expert.clone() }).filter(|shared| shared.inter > 0);
    moe.select_bias = true;
    let (first, qk_norm) = (config.usize("first_k_dense_replace")?, config.switch("use_qk_norm")?);
    for (index, layer) in spec.layers.iter_mut().enumerate() {
        let Mixer::Attention(attention) = &mut layer.mixer;
        attention.bias = AttentionBias { output: false, ..attention.bias };
        attention.qk_norm = qk_norm.then_some(QkNorm::PerHead(spec.final_norm));
        if index >= first {
            layer.ffn = Ffn::Moe(moe.clone());
        }
    }
    config.only("decoder_sparse_step", &[json!(1)])?;
    spec.layout.surplus_layers = config.optional_usize("num_nextn_predict_layers")?.unwrap_or(0);
    Ok(spec)
}

/// gpt-oss: Llama with biases everywhere and sinks in its attention; every other layer sees a
/// window, and all choose among experts with a clamped gate.
pub(super) fn gpt_oss(config: &HfConfig) -> Result<ModelSpec> {
    let mut spec = super::llama::llama(config)?;
    slide(config, &mut spec, |layer| layer % 2 == 0)?;
    let mut routing = softmax(config, false)?;
    routing.order = Order::TopKThenScore;
    let top_k = routing.top_k;
    let mut moe = moe(config, "intermediate_size", routing)?;
    let (alpha, limit) = (config.f64("swiglu_alpha")? as f32, config.f64("swiglu_limit")? as f32);
    moe.expert.act = Activation::ClampedSwish { alpha, limit };
    moe.expert.bias = true;
    moe.router_bias = true;
    for layer in &mut spec.layers {
        let Mixer::Attention(attention) = &mut layer.mixer;
        attention.sinks = true;
        layer.ffn = Ffn::Moe(moe.clone());
    }
    spec.layout.experts = ExpertNames::GptOss;
    config.get("quantization_config");
    let same = parameters(config, FULL)?
        .and_then(|rope| rope.get("original_max_position_embeddings").cloned());
    config.only("experts_per_token", &[json!(top_k)])?;
    config.only("initial_context_length", &[same.unwrap_or_default()])?;
    Ok(spec)
}

/// The softmax of all experts, of which the likeliest count.
fn softmax(config: &HfConfig, renormalize: bool) -> Result<Routing> {
    Ok(Routing {
        top_k: config.usize("num_experts_per_tok")?,
        score: Score::Softmax,
        order: Order::ScoreThenTopK,
        renormalize,
        scale: 1.0,
        groups: None,
    })
}

/// The sigmoid of each expert, with a bonus for being chosen, within the best groups of experts.
fn sigmoid(config: &HfConfig) -> Result<Routing> {
    for (key, value) in
        [("moe_router_dtype", "float32"), ("scoring_func", "sigmoid"), ("topk_method", "noaux_tc")]
    {
        config.only(key, &[json!(value)])?;
    }
    let groups = Groups { num: config.usize("n_group")?, keep: config.usize("topk_group")? };
    Ok(Routing {
        top_k: config.usize("num_experts_per_tok")?,
        score: Score::Sigmoid,
        order: Order::ScoreThenTopK,
        renormalize: config.switch("norm_topk_prob")?,
        scale: config.f64("routed_scaling_factor")? as f32,
        groups: (groups.num > 1).then_some(groups),
    })
}

/// Experts of the width that a key states, with the gate of the dense model.
fn moe(config: &HfConfig, width: &str, routing: Routing) -> Result<Moe> {
    let count = ["num_experts", "num_local_experts", "n_routed_experts"];
    let count = count.into_iter().find(|key| config.has(key)).unwrap_or("num_experts");
    for in_training_only in ["router_aux_loss_coef", "router_jitter_noise", "output_router_logits"]
    {
        config.get(in_training_only);
    }
    let act = super::llama::activation(config)?;
    Ok(Moe {
        experts: config.usize(count)?,
        expert: Mlp { inter: config.usize(width)?, act, bias: false },
        routing,
        router_bias: false,
        select_bias: false,
        shared: None,
    })
}
