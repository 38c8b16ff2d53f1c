//! What is supported: architectures by the name that files have for them, and what each calls its
//! tensors.
//!
//! A tensor of a file has the name that Hugging Face's checkpoints have for the same tensor, so
//! that everything after this folder knows one naming. Where a file stores something else than a
//! checkpoint does, a [`Part`] says how to undo it:
//!
//! - Llama's queries and keys are reordered: files rotate adjacent values of a head, checkpoints
//!   the two halves against each other.
//! - Gemma's norms have the one added that a checkpoint leaves to the model.
//! - All experts of a layer share a tensor, where each has its own.

use super::config;
use super::keys::Keys;
use serde_json::{Map, Value};

/// Writes an architecture's part of config.json.
type WriteConfig = fn(&Keys<'_>, &mut Map<String, Value>) -> Result<(), String>;

/// An architecture, as its difference from Llama.
pub(super) struct Architecture {
    /// `general.architecture`.
    pub(super) name: &'static str,
    pub(super) config: WriteConfig,
    /// Queries and keys rotate in adjacent pairs, and are stored in that order.
    pub(super) adjacent_pairs: bool,
    /// Norms are stored with one added.
    pub(super) norms_plus_one: bool,
    /// What its norms and fused projections are called.
    pub(super) naming: Naming,
}

/// What differs in the names of a layer's tensors.
#[derive(Clone, Copy)]
pub(super) enum Naming {
    Llama,
    Gemma,
    Phi3,
    Glm,
}

const fn like_llama(name: &'static str, config: WriteConfig) -> Architecture {
    Architecture {
        name,
        config,
        adjacent_pairs: false,
        norms_plus_one: false,
        naming: Naming::Llama,
    }
}

const ARCHITECTURES: &[Architecture] = &[
    like_llama("cohere2", config::cohere2),
    Architecture {
        norms_plus_one: true,
        naming: Naming::Gemma,
        ..like_llama("gemma2", config::gemma2)
    },
    Architecture {
        norms_plus_one: true,
        naming: Naming::Gemma,
        ..like_llama("gemma3", config::gemma3)
    },
    Architecture { naming: Naming::Glm, ..like_llama("glm4", config::glm4) },
    Architecture { adjacent_pairs: true, ..like_llama("granite", config::granite) },
    Architecture { adjacent_pairs: true, ..like_llama("llama", config::llama) },
    like_llama("olmo2", config::olmo2),
    Architecture { naming: Naming::Phi3, ..like_llama("phi3", config::phi3) },
    like_llama("qwen2", config::qwen2),
    like_llama("qwen3", config::qwen3),
    like_llama("qwen3moe", config::qwen3moe),
];

impl Architecture {
    /// The architecture of this name.
    pub(super) fn of(name: &str) -> Result<&'static Self, String> {
        ARCHITECTURES.iter().find(|known| known.name == name).ok_or_else(|| {
            let known: Vec<&str> = ARCHITECTURES.iter().map(|known| known.name).collect();
            let known = known.join(", ");
            let what = format!("`general.architecture` is `{name}`, which is not supported");
            format!("{what} (supported: {known})")
        })
    }

    /// The name in a checkpoint of the tensor that a file calls `name`, and what it is; its own
    /// name if it has no place in a checkpoint.
    pub(super) fn rename(&self, name: &str) -> (String, Part) {
        let of_model = match name {
            "token_embd.weight" => Some("model.embed_tokens.weight"),
            "output_norm.weight" => Some("model.norm.weight"),
            "output.weight" => Some("lm_head.weight"),
            _ => None,
        };
        if let Some(renamed) = of_model {
            let part = if name == "output_norm.weight" { Part::Norm } else { Part::Other };
            return (renamed.to_owned(), part);
        }
        let in_layer = name.strip_prefix("blk.").and_then(|rest| {
            let (index, rest) = rest.split_once('.')?;
            let (role, kind) = rest.rsplit_once('.')?;
            let index: u32 = index.parse().ok()?;
            let (renamed, part) = self.role(role)?;
            Some((format!("model.layers.{index}.{renamed}.{kind}"), part))
        });
        in_layer.unwrap_or_else(|| (name.to_owned(), Part::Other))
    }

    /// What a tensor of a layer is called in a checkpoint.
    fn role(&self, role: &str) -> Option<(&'static str, Part)> {
        let [ffn_norm, post_mix, post_ffn] = match self.naming {
            Naming::Llama | Naming::Phi3 => [
                "post_attention_layernorm",
                "post_attention_layernorm",
                "post_feedforward_layernorm",
            ],
            Naming::Gemma => [
                "pre_feedforward_layernorm",
                "post_attention_layernorm",
                "post_feedforward_layernorm",
            ],
            Naming::Glm => {
                ["post_attention_layernorm", "post_self_attn_layernorm", "post_mlp_layernorm"]
            }
        };
        let up = match self.naming {
            Naming::Phi3 | Naming::Glm => "mlp.gate_up_proj",
            Naming::Llama | Naming::Gemma => "mlp.up_proj",
        };
        // Mixtral is a Llama with experts, and has other names for them.
        let [router, gate_exps, up_exps, down_exps] = match self.name {
            "llama" => [
                "block_sparse_moe.gate",
                "block_sparse_moe.experts.#.w1",
                "block_sparse_moe.experts.#.w3",
                "block_sparse_moe.experts.#.w2",
            ],
            _ => [
                "mlp.gate",
                "mlp.experts.#.gate_proj",
                "mlp.experts.#.up_proj",
                "mlp.experts.#.down_proj",
            ],
        };
        Some(match role {
            "attn_norm" => ("input_layernorm", Part::Norm),
            "post_attention_norm" => (post_mix, Part::Norm),
            "ffn_norm" => (ffn_norm, Part::Norm),
            "post_ffw_norm" => (post_ffn, Part::Norm),
            "attn_q" => ("self_attn.q_proj", Part::Heads),
            "attn_k" => ("self_attn.k_proj", Part::Heads),
            "attn_v" => ("self_attn.v_proj", Part::Other),
            "attn_qkv" => ("self_attn.qkv_proj", Part::Other),
            "attn_output" => ("self_attn.o_proj", Part::Other),
            "attn_q_norm" => ("self_attn.q_norm", Part::Norm),
            "attn_k_norm" => ("self_attn.k_norm", Part::Norm),
            "ffn_gate" => ("mlp.gate_proj", Part::Other),
            "ffn_up" => (up, Part::Other),
            "ffn_down" => ("mlp.down_proj", Part::Other),
            "ffn_gate_inp" => (router, Part::Other),
            "ffn_gate_exps" => (gate_exps, Part::Experts),
            "ffn_up_exps" => (up_exps, Part::Experts),
            "ffn_down_exps" => (down_exps, Part::Experts),
            _ => return None,
        })
    }
}

/// What a tensor is, where files store it in a way of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Rows of queries or keys, head by head.
    Heads,
    /// The weight of a norm.
    Norm,
    /// One matrix for each expert; `#` in its name stands for the expert's number.
    Experts,
    Other,
}
