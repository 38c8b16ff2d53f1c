//! Route: which experts each token goes to, and what their results weigh.
//!
//! ```text
//! s       = score(logits[t])            softmax over all experts, or the sigmoid of each
//! choice  = s + select_bias             the bias chooses, and does not weigh
//! chosen  = the top_k largest choice    the largest first; of equals, the smallest expert first
//! w       = s[chosen]
//! w       = w / (sum w + 1e-20)         if renormalised
//! weights = scale * w
//! ```
//!
//! [`Order::TopKThenScore`] chooses by the logits: `choice = logits + select_bias`, and
//! `w = score(logits[chosen])`, where a softmax is over the chosen alone.
//!
//! With [`Groups`], the experts are in `num` groups of neighbours. A group is worth the sum of its
//! two largest choices, and only experts of the `keep` most valuable groups can be chosen.
//!
//! | as in | score | order | renormalised | bias | groups |
//! |---|---|---|---|---|---|
//! | Mixtral; Qwen3-MoE by its `norm_topk_prob` | softmax | score first | yes | | |
//! | gpt-oss | softmax | top-k first | no | | |
//! | DeepSeek-V3, GLM-4.5 | sigmoid | score first | by `norm_topk_prob` | yes | yes |
//! | MiniMax-M2 | sigmoid | score first | yes | yes | |
//!
//! A NaN counts as larger than any number: it is chosen, so the weights of its token are NaN and
//! the token shows that it is broken, instead of going somewhere at random.
//!
//! logits `[T, E]` f32, rows may be strided; select_bias `[E]` f32.

mod cpu;
#[cfg(test)]
mod reference;

use candle_core::{Device, Tensor};

use crate::view::{self, Locked};
use crate::{KernelError, Result};

/// How a layer sends tokens to experts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Routing {
    /// How many experts a token goes to; 1 to E.
    pub top_k: usize,
    /// What makes weights of logits.
    pub score: Score,
    /// Whether experts are chosen by their scores or by their logits.
    pub order: Order,
    /// Whether the weights of a token are divided by their sum.
    pub renormalize: bool,
    /// What the weights are multiplied with in the end.
    pub scale: f32,
    /// The groups that experts are chosen from, if any.
    pub groups: Option<Groups>,
}

/// What makes weights of logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Score {
    /// `exp(x[e]) / sum_e exp(x[e])`
    Softmax,
    /// `1 / (1 + exp(-x[e]))`
    Sigmoid,
}

/// Whether scores are computed for all experts or for the chosen ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The experts with the largest scores.
    ScoreThenTopK,
    /// The experts with the largest logits; a softmax is over these.
    TopKThenScore,
}

/// Groups of neighbouring experts, of which only the best are chosen from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Groups {
    /// How many there are; each has the same number of experts, at least 2.
    pub num: usize,
    /// How many are kept; they have at least `top_k` experts together.
    pub keep: usize,
}

/// The experts of each token and their weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Routes {
    /// `[T * top_k]`: the experts of token t begin at `t * top_k`, the first choice first.
    pub experts: Vec<u32>,
    /// `[T * top_k]`: what the result of each weighs.
    pub weights: Vec<f32>,
    /// How many experts a token goes to.
    pub top_k: usize,
}

/// The routes of `logits` `[T, E]` f32; `select_bias` `[E]` f32 takes part in the choice alone.
pub fn route(logits: &Tensor, select_bias: Option<&Tensor>, routing: &Routing) -> Result<Routes> {
    let [_, experts] = view::dims(logits, "logits", ["T", "E"])?;
    if let Some(bias) = select_bias {
        view::shape(bias, "select_bias", &[experts])?;
    }
    check_routing(routing, experts)?;
    match logits.device() {
        Device::Cpu => {
            let logits = Locked::new(logits, "logits")?;
            let bias = select_bias.map(|bias| Locked::new(bias, "select_bias")).transpose()?;
            let bias = bias.as_ref().map(Locked::f32s).transpose()?;
            Ok(cpu::route(logits.rows()?, bias, routing))
        }
        device => Err(KernelError::device("logits", device)),
    }
}

pub(super) fn check_routing(routing: &Routing, experts: usize) -> Result<()> {
    let wrong = |argument, rule, found: usize| {
        Err(KernelError::Value { argument, rule, found: found.to_string() })
    };
    let top_k = routing.top_k;
    if top_k == 0 || top_k > experts {
        return wrong("top_k", format!("1 to the {experts} experts"), top_k);
    }
    let Some(Groups { num, keep }) = routing.groups else { return Ok(()) };
    if num == 0 || !experts.is_multiple_of(num) || experts / num < 2 {
        return wrong(
            "groups.num",
            format!("equal parts, of 2 or more, of {experts} experts"),
            num,
        );
    }
    if keep > num || keep * (experts / num) < top_k {
        let rule = format!("up to {num} groups of {} with top_k ({top_k}) experts", experts / num);
        return wrong("groups.keep", rule, keep);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
