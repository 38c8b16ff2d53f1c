//! Mixture of experts: many feed-forwards, of which each token goes through a few.

use super::Mlp;
use millstream_kernels::moe::Routing;

/// `sum of weight_e * expert_e(x)` over the experts that the router chooses for a token, plus what
/// every token goes through.
#[derive(Clone, Debug, PartialEq)]
pub struct Moe {
    /// How many experts there are.
    pub experts: usize,
    /// Each of them.
    pub expert: Mlp,
    /// From the router's logits to the experts chosen, and their weights.
    pub routing: Routing,
    /// The router's projection adds a bias.
    pub router_bias: bool,
    /// Each expert has a bonus that counts for being chosen, and not in its weight.
    pub select_bias: bool,
    /// A feed-forward that every token goes through besides.
    pub shared: Option<Mlp>,
}
