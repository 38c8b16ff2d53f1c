//! What tensors are called in a checkpoint, and what else may lie beside them.
//!
//! The one place that knows: the decoder asks for parts by their role.

/// The embedding table, `[vocab, hidden]`.
pub(crate) const EMBED: &str = "model.embed_tokens.weight";
/// The norm before the head, `[hidden]`.
pub(crate) const FINAL_NORM: &str = "model.norm.weight";
/// The head, `[vocab, hidden]`, where it is not the embedding table.
pub(crate) const HEAD: &str = "lm_head.weight";

/// A tensor of layer `index`: `part` is `self_attn.q_proj`, `kind` is `weight` or `bias`.
pub(crate) fn layer(index: usize, part: &str, kind: &str) -> String {
    format!("model.layers.{index}.{part}.{kind}")
}

/// Whether a tensor of a checkpoint may stay unread: it repeats what the configuration says.
/// Old Llama checkpoints carry their rope frequencies, tied ones may carry a copy of the table.
pub(crate) fn may_stay_unread(name: &str, tied: bool) -> bool {
    name.ends_with("rotary_emb.inv_freq") || (tied && name == HEAD)
}

/// Whether a tensor is the weight of a norm, which is about one where the others are about zero.
pub(crate) fn is_norm(name: &str) -> bool {
    name.ends_with("norm.weight")
}
