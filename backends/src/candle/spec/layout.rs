//! Which of the usual namings a checkpoint follows, and how it cuts its tensors.
//!
//! The names themselves are in `weights/names.rs`.

/// How a checkpoint names and cuts the tensors of a model; the default is Llama's.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Layout {
    /// What the norms of a layer are called.
    pub norms: NormNames,
    /// q, k and v are one tensor, in this order.
    pub fused_qkv: bool,
    /// Gate and up are one tensor, in this order.
    pub fused_gate_up: bool,
    /// What router and experts are called.
    pub experts: ExpertNames,
    /// The text model is a part of a larger one: what belongs to the others may stay unread.
    pub nested: bool,
    /// The configuration does not say whether the head is the embedding table: it is, unless the
    /// checkpoint has a head.
    pub tied_unless_stored: bool,
    /// Layers after the last that predict further tokens in training, and are not served.
    pub surplus_layers: usize,
}

/// What the norms of a layer are called.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum NormNames {
    /// `post_attention_layernorm` is that of the feed-forward's input.
    #[default]
    Llama,
    /// `post_attention_layernorm` is that of the mixer's output, `pre_` and
    /// `post_feedforward_layernorm` those around the feed-forward.
    Gemma,
    /// As Llama, with `post_self_attn_layernorm` and `post_mlp_layernorm` of the outputs.
    Glm,
}

/// What router and experts are called. Whether each expert has tensors of its own or all of a
/// layer share one is seen in the checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum ExpertNames {
    /// `mlp.gate`; `mlp.experts.0.gate_proj`, `up_proj`, `down_proj`.
    #[default]
    Qwen,
    /// `block_sparse_moe.gate`; `block_sparse_moe.experts.0.w1`, `w3`, `w2`.
    Mixtral,
    /// `mlp.router`; one tensor for all experts, columns before rows, gate and up alternating.
    GptOss,
}
