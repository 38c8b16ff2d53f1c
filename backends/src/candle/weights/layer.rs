//! The tensors of one layer, by the part of the layer that they are of.

use super::keep::Keep;
use super::names::{Names, NormRole};
use super::rows::Part;
use super::{Role, Weights};
use crate::LoadError;

/// Where a layer's tensors are.
pub(crate) struct LayerWeights<'w, K> {
    pub(crate) weights: &'w mut Weights<K>,
    pub(crate) names: &'w Names,
    /// Which layer.
    pub(crate) index: usize,
    /// Width of the residual stream.
    pub(crate) hidden: usize,
}

impl<K: Keep> LayerWeights<'_, K> {
    /// What the checkpoint calls a part of this layer.
    pub(crate) fn name(&self, part: &str) -> String {
        self.names.layer(self.index, part)
    }

    /// The elements of one vector, `[len]` in f32.
    pub(crate) fn values(&mut self, part: &str, len: usize) -> Result<Vec<f32>, LoadError> {
        let name = self.name(part);
        self.weights.vector(&[(name, len)])
    }

    /// One vector, `[len]` in f32.
    pub(crate) fn vector(&mut self, part: &str, len: usize) -> Result<K::Vector, LoadError> {
        let values = self.values(part, len)?;
        self.weights.keep.vector(values, &[len])
    }

    /// The weight of a norm of the residual stream, `[hidden]` in f32.
    pub(crate) fn norm(&mut self, role: NormRole) -> Result<Vec<f32>, LoadError> {
        self.values(self.names.norm(role), self.hidden)
    }

    /// Projections of the same input, one after the other: `[sum of rows, columns]`, and their
    /// biases `[sum of rows]` in f32 if they have any.
    pub(crate) fn projections(
        &mut self,
        parts: &[(&str, usize)],
        columns: usize,
        bias: bool,
    ) -> Result<(K::Matrix, Option<K::Vector>), LoadError> {
        let weight = self.matrix(parts, columns, Role::Body)?;
        Ok((weight, self.biases(parts, bias)?))
    }

    /// What chooses among a layer's experts, `[rows, hidden]`, and its bias if it has one.
    pub(crate) fn router(
        &mut self,
        part: (&str, usize),
        bias: bool,
    ) -> Result<(K::Matrix, Option<K::Vector>), LoadError> {
        let weight = self.matrix(&[part], self.hidden, Role::Router)?;
        Ok((weight, self.biases(&[part], bias)?))
    }

    fn matrix(
        &mut self,
        parts: &[(&str, usize)],
        columns: usize,
        role: Role,
    ) -> Result<K::Matrix, LoadError> {
        let whole =
            |(part, rows): &(&str, usize)| Part::whole(self.name(&format!("{part}.weight")), *rows);
        let parts: Vec<Part> = parts.iter().map(whole).collect();
        self.weights.matrix(&parts, columns, role)
    }

    fn biases(
        &mut self,
        parts: &[(&str, usize)],
        any: bool,
    ) -> Result<Option<K::Vector>, LoadError> {
        if !any {
            return Ok(None);
        }
        let named = |(part, rows): &(&str, usize)| (self.name(&format!("{part}.bias")), *rows);
        let parts: Vec<_> = parts.iter().map(named).collect();
        let values = self.weights.vector(&parts)?;
        let shape = [values.len()];
        self.weights.keep.vector(values, &shape).map(Some)
    }
}
