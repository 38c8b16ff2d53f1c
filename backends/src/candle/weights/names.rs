//! What tensors are called in a checkpoint, and what else may lie beside them.
//!
//! The one place that knows: the decoder asks for parts by their role.

use crate::candle::spec::{ExpertNames, Layout, NormNames};

/// The names of one checkpoint.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    pub(crate) layout: Layout,
    num_layers: usize,
    /// Before the names of the body: `model.`, or what a larger model puts there.
    body: &'static str,
    /// Before the name of the head.
    head: &'static str,
}

/// Where the body and the head are, in the order in which they are looked for: alone, in a larger
/// model as Transformers 5 writes it, as it was written before, and a body that is all there is.
const PLACES: [(&str, &str); 4] = [
    ("model.", ""),
    ("model.language_model.", ""),
    ("language_model.model.", "language_model."),
    ("", ""),
];

/// A norm of a layer, by its role.
#[derive(Clone, Copy, Debug)]
pub(crate) enum NormRole {
    PreMix,
    PostMix,
    PreFfn,
    PostFfn,
}

/// The names of a layer's experts, below the layer's own name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MoeNames {
    /// The projection that chooses.
    pub(crate) router: &'static str,
    /// All experts together, or each under its number.
    pub(crate) experts: &'static str,
    /// Gate, up and down of an expert that has tensors of its own.
    pub(crate) parts: [&'static str; 3],
}

impl Names {
    /// The names of a model of this layout, in a checkpoint that has what `has` says.
    pub(crate) fn new(layout: Layout, num_layers: usize, has: impl Fn(&str) -> bool) -> Self {
        let is_here = |(body, _): &&(&str, &str)| has(&format!("{body}embed_tokens.weight"));
        let (body, head) = *PLACES.iter().find(is_here).unwrap_or(&PLACES[0]);
        Self { layout, num_layers, body, head }
    }

    /// The embedding table, `[vocab, hidden]`.
    pub(crate) fn embed(&self) -> String {
        format!("{}embed_tokens.weight", self.body)
    }

    /// The norm before the head, `[hidden]`.
    pub(crate) fn final_norm(&self) -> String {
        format!("{}norm.weight", self.body)
    }

    /// The head, `[vocab, hidden]`, where it is not the embedding table.
    pub(crate) fn head(&self) -> String {
        format!("{}lm_head.weight", self.head)
    }

    /// A tensor of layer `index`: `part` is `self_attn.q_proj.weight`.
    pub(crate) fn layer(&self, index: usize, part: &str) -> String {
        format!("{}layers.{index}.{part}", self.body)
    }

    /// The weight of a norm of a layer, below the layer's own name.
    pub(crate) fn norm(&self, role: NormRole) -> &'static str {
        match (self.layout.norms, role) {
            (_, NormRole::PreMix) => "input_layernorm.weight",
            (NormNames::Llama | NormNames::Glm, NormRole::PreFfn)
            | (NormNames::Gemma | NormNames::Llama, NormRole::PostMix) => {
                "post_attention_layernorm.weight"
            }
            (NormNames::Gemma, NormRole::PreFfn) => "pre_feedforward_layernorm.weight",
            (NormNames::Gemma | NormNames::Llama, NormRole::PostFfn) => {
                "post_feedforward_layernorm.weight"
            }
            (NormNames::Glm, NormRole::PostMix) => "post_self_attn_layernorm.weight",
            (NormNames::Glm, NormRole::PostFfn) => "post_mlp_layernorm.weight",
        }
    }

    /// What a layer's experts are called.
    pub(crate) fn moe(&self) -> MoeNames {
        let projections = ["gate_proj", "up_proj", "down_proj"];
        let (router, experts, parts) = match self.layout.experts {
            ExpertNames::Qwen => ("mlp.gate", "mlp.experts", projections),
            ExpertNames::Mixtral => {
                ("block_sparse_moe.gate", "block_sparse_moe.experts", ["w1", "w3", "w2"])
            }
            ExpertNames::GptOss => ("mlp.router", "mlp.experts", projections),
        };
        MoeNames { router, experts, parts }
    }

    /// Whether a tensor may stay unread: it repeats what the configuration says (rope frequencies
    /// in old Llama checkpoints, a copy of the table as the head of a tied one), or it belongs to
    /// what is not served (towers beside a nested text model, layers that predict further tokens).
    pub(crate) fn may_stay_unread(&self, name: &str, tied: bool) -> bool {
        let surplus = self.num_layers..self.num_layers + self.layout.surplus_layers;
        let is_of = |layer: usize| name.starts_with(&self.layer(layer, ""));
        let is_text = name.starts_with(self.body) || name == self.head();
        name.ends_with("rotary_emb.inv_freq")
            || (tied && name == self.head())
            || (self.layout.nested && !is_text)
            || surplus.into_iter().any(is_of)
    }
}

/// Whether a tensor is the weight of a norm, which is about one where the others are about zero.
pub(crate) fn is_norm(name: &str) -> bool {
    name.ends_with("norm.weight")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(layout: Layout, embed: &'static str) -> Names {
        Names::new(layout, 2, move |name| name == embed)
    }

    #[test]
    fn the_body_is_found_wherever_a_larger_model_has_it() {
        for (embed, layer, head) in [
            ("model.embed_tokens.weight", "model.layers.1.x", "lm_head.weight"),
            (
                "language_model.model.embed_tokens.weight",
                "language_model.model.layers.1.x",
                "language_model.lm_head.weight",
            ),
            (
                "model.language_model.embed_tokens.weight",
                "model.language_model.layers.1.x",
                "lm_head.weight",
            ),
            ("embed_tokens.weight", "layers.1.x", "lm_head.weight"),
            ("nowhere", "model.layers.1.x", "lm_head.weight"),
        ] {
            let names = names(Layout::default(), embed);
            assert_eq!((names.layer(1, "x").as_str(), names.head().as_str()), (layer, head));
        }
    }

    #[test]
    fn towers_and_further_predictors_may_stay_unread_and_layers_may_not() {
        let embed = "language_model.model.embed_tokens.weight";
        let layout = Layout { nested: true, surplus_layers: 1, ..Layout::default() };
        for (name, nested, alone) in [
            ("vision_tower.layers.0.weight", true, false),
            ("language_model.model.layers.1.x.weight", false, false),
            ("language_model.model.layers.2.x.weight", true, false),
            ("language_model.lm_head.weight", false, false),
            ("language_model.model.layers.0.self_attn.rotary_emb.inv_freq", true, true),
        ] {
            assert_eq!(names(layout, embed).may_stay_unread(name, false), nested, "{name}");
            let names = names(Layout::default(), embed);
            assert_eq!(names.may_stay_unread(name, false), alone, "{name}");
            assert!(names.may_stay_unread("language_model.lm_head.weight", true));
        }
    }
}
