//! The tensors of one layer, by the part of the layer that they are of.

use super::names::{Names, NormRole};
use super::{Part, Weights};
use crate::LoadError;
use candle_core::Tensor;

/// Where a layer's tensors are.
pub(crate) struct LayerWeights<'w> {
    pub(crate) weights: &'w mut Weights,
    pub(crate) names: &'w Names,
    /// Which layer.
    pub(crate) index: usize,
    /// Width of the residual stream.
    pub(crate) hidden: usize,
}

impl LayerWeights<'_> {
    /// What the checkpoint calls a part of this layer.
    pub(crate) fn name(&self, part: &str) -> String {
        self.names.layer(self.index, part)
    }

    /// One vector, `[len]` in f32.
    pub(crate) fn vector(&mut self, part: &str, len: usize) -> Result<Tensor, LoadError> {
        let name = self.name(part);
        self.weights.vector(&[(name, len)])
    }

    /// The weight of a norm of the residual stream, `[hidden]` in f32.
    pub(crate) fn norm(&mut self, role: NormRole) -> Result<Tensor, LoadError> {
        self.vector(self.names.norm(role), self.hidden)
    }

    /// Projections of the same input, one after the other: `[sum of rows, columns]`, and their
    /// biases `[sum of rows]` in f32 if they have any.
    pub(crate) fn projections(
        &mut self,
        parts: &[(&str, usize)],
        columns: usize,
        bias: bool,
    ) -> Result<(Tensor, Option<Tensor>), LoadError> {
        let named = |kind: &str| -> Vec<Part> {
            parts.iter().map(|(part, rows)| (self.name(&format!("{part}.{kind}")), *rows)).collect()
        };
        let (weight, bias) = (named("weight"), bias.then(|| named("bias")));
        let weight = self.weights.matrix(&weight, columns)?;
        Ok((weight, bias.map(|bias| self.weights.vector(&bias)).transpose()?))
    }
}
