//! The mixture-of-experts layer: each token goes through the few experts that a router chooses.
//!
//! Rows are brought together by expert, so that an expert's weights are read once for all of them;
//! a row's result is that of the row alone, because every product's is, and because what a token's
//! experts give is added in the order in which they were chosen.
//!
//! Activations are f32. `T` tokens in the batch, `E` experts, `k` of them per token.

use super::layers::{Linear, Mlp};
use super::spec;
use super::weights::keep::{Host, Keep};
use super::weights::layer::LayerWeights;
use super::workspace::Workspace;
use crate::LoadError;
use candle_core::Tensor;
use millstream_kernels::linear::{grouped_linear, linear};
use millstream_kernels::moe;
use millstream_kernels::{KernelError, activation, add::add};

type Result<T, E = KernelError> = std::result::Result<T, E>;

/// The experts of a layer, with what chooses among them.
pub(crate) struct Moe<K: Keep> {
    pub(crate) spec: spec::Moe,
    pub(crate) router: Linear<K>,
    /// `[E]`.
    pub(crate) select_bias: Option<K::Vector>,
    pub(crate) gate_up: Experts<K>,
    pub(crate) down: Experts<K>,
    pub(crate) shared: Option<Mlp<K>>,
}

impl<K: Keep> Moe<K> {
    pub(crate) fn load(
        from: &mut LayerWeights<'_, K>,
        spec: &spec::Moe,
    ) -> Result<Self, LoadError> {
        let names = from.names.moe();
        let (weight, bias) = from.router((names.router, spec.experts), spec.router_bias)?;
        let router = Linear { weight, bias };
        let select_bias = match spec.select_bias {
            true => {
                let name = format!("{}.e_score_correction_bias", names.router);
                Some(from.vector(&name, spec.experts)?)
            }
            false => None,
        };
        let experts = from.experts(spec)?;
        let shared = match &spec.shared {
            Some(mlp) => Some(Mlp::load(from, "mlp.shared_experts", mlp)?),
            None => None,
        };
        Ok(Self {
            spec: spec.clone(),
            router,
            select_bias,
            gate_up: Experts { weights: experts.gate_up, bias: experts.gate_up_bias },
            down: Experts { weights: experts.down, bias: experts.down_bias },
            shared,
        })
    }
}

impl Moe<Host> {
    /// `x` and the result are `[T, hidden]`.
    pub(crate) fn forward(&self, x: &Tensor, space: &mut Workspace) -> Result<Tensor> {
        let logits = linear(x, &self.router.weight, self.router.bias.as_ref())?; // [T,E]
        let routes = moe::route(&logits, self.select_bias.as_ref(), &self.spec.routing)?;
        let grouping = moe::Grouping::new(&routes, self.spec.experts)?;
        let rows = moe::gather(x, &grouping)?; // [T*k,hidden]
        let gate_up = self.gate_up.forward(&rows, grouping.ends())?; // [T*k,2*inter]
        let inner = activation::gated(&gate_up, self.spec.expert.act)?; // [T*k,inter]
        let rows = self.down.forward(&inner, grouping.ends())?; // [T*k,hidden]
        let mixed = moe::combine(&rows, &grouping, &routes.weights)?; // [T,hidden]
        match &self.shared {
            Some(shared) => add(&mixed, &shared.forward(x, space)?),
            None => Ok(mixed),
        }
    }
}

/// A projection for each expert.
pub(crate) struct Experts<K: Keep> {
    /// `E` of them.
    pub(crate) weights: K::Experts,
    /// `[E, N]`.
    pub(crate) bias: Option<K::Vector>,
}

impl Experts<Host> {
    /// Rows `[R, K]`, those of expert e before `ends[e]`; gives `[R, N]`.
    fn forward(&self, rows: &Tensor, ends: &[u32]) -> Result<Tensor> {
        grouped_linear(rows, ends, &self.weights, self.bias.as_ref())
    }
}
