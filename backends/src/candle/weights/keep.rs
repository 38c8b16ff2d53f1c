//! Where weights are kept, in the form in which they are computed with.
//!
//! A model is composed once, from its spec and the names of a checkpoint; where it computes decides
//! what its matrices become. [`Host`] keeps them for the processor.

use super::rows::Rows;
use super::{Role, dense};
use crate::LoadError;
use crate::candle::device_error;
use crate::candle::spec::PositionScale;
use candle_core::{DType, Device, Tensor};
use millstream_kernels::linear::{LinearWeight, Quantization};
use millstream_kernels::rope::RopeTable;

/// Takes weights as they are read, and keeps them where they will be computed with.
pub(crate) trait Keep {
    /// A matrix that is multiplied with.
    type Matrix;
    /// A matrix for each expert of a layer.
    type Experts;
    /// A matrix whose rows are looked up.
    type Table;
    /// Numbers in f32: norms, biases, logits.
    type Vector;
    /// Cosines and sines by position.
    type Rope;
    /// Factors by position.
    type Factors;

    /// What is being done with weights, for who waits.
    fn verb(&self) -> &'static str {
        "loading weights"
    }

    /// Whether matrices that a file has in blocks stay so.
    fn serves_blocks(&self) -> bool {
        false
    }

    /// A matrix.
    fn matrix(&mut self, rows: &Rows, role: Role) -> Result<Self::Matrix, LoadError>;

    /// Room for `count` matrices of `[rows, columns]`, none of which is there yet.
    fn experts(&mut self, count: usize, shape: [usize; 2]) -> Result<Self::Experts, LoadError>;

    /// The matrix of the next expert.
    fn expert(&mut self, experts: &mut Self::Experts, rows: &Rows) -> Result<(), LoadError>;

    /// A table.
    fn table(&mut self, rows: &Rows) -> Result<Self::Table, LoadError>;

    /// A vector, or several of one length: `[len]` or `[count, len]`.
    fn vector(&mut self, values: Vec<f32>, shape: &[usize]) -> Result<Self::Vector, LoadError>;

    /// A rotation.
    fn rope(&mut self, table: RopeTable) -> Result<Self::Rope, LoadError>;

    /// Factors for positions below `max_model_len`.
    fn factors(
        &mut self,
        scale: PositionScale,
        max_model_len: usize,
    ) -> Result<Self::Factors, LoadError>;
}

/// Keeps weights in the machine's memory, packed as the processor's products read them.
#[derive(Debug)]
pub(crate) struct Host {
    /// Of tables, and of matrices that are not quantised.
    pub(crate) dtype: DType,
    /// What a file has in blocks is unpacked to `dtype`.
    pub(crate) unpacks: bool,
    pub(crate) quantize: Option<Quantization>,
}

impl Keep for Host {
    type Matrix = LinearWeight;
    type Experts = Vec<LinearWeight>;
    type Table = Tensor;
    type Vector = Tensor;
    type Rope = RopeTable;
    type Factors = PositionScale;

    fn verb(&self) -> &'static str {
        match self.quantize {
            Some(_) => "quantizing weights",
            None => "loading weights",
        }
    }

    fn serves_blocks(&self) -> bool {
        !self.unpacks && self.quantize.is_none()
    }

    fn matrix(&mut self, rows: &Rows, role: Role) -> Result<LinearWeight, LoadError> {
        let shape = [rows.count(), rows.columns];
        let weight = match (self.quantized_to(role), self.dtype) {
            (Some(to), _) => LinearWeight::quantize_rows(shape, to, |n, row| rows.read(n, row)),
            _ if self.keeps_blocks(rows, role) => rows.packed(),
            (None, DType::BF16) => Ok(LinearWeight::pack_rows(shape, |n, row| rows.read(n, row))),
            (None, dtype) => LinearWeight::pack(&dense(rows, dtype)?),
        };
        weight.map_err(device_error)
    }

    fn experts(&mut self, count: usize, _: [usize; 2]) -> Result<Vec<LinearWeight>, LoadError> {
        Ok(Vec::with_capacity(count))
    }

    fn expert(&mut self, experts: &mut Vec<LinearWeight>, rows: &Rows) -> Result<(), LoadError> {
        experts.push(self.matrix(rows, Role::Body)?);
        Ok(())
    }

    fn table(&mut self, rows: &Rows) -> Result<Tensor, LoadError> {
        dense(rows, self.dtype)
    }

    fn vector(&mut self, values: Vec<f32>, shape: &[usize]) -> Result<Tensor, LoadError> {
        Tensor::from_vec(values, shape, &Device::Cpu).map_err(device_error)
    }

    fn rope(&mut self, table: RopeTable) -> Result<RopeTable, LoadError> {
        Ok(table)
    }

    fn factors(&mut self, scale: PositionScale, _: usize) -> Result<PositionScale, LoadError> {
        Ok(scale)
    }
}

impl Host {
    /// Whether rows that a file has in blocks stay in blocks.
    fn keeps_blocks(&self, rows: &Rows, role: Role) -> bool {
        !self.unpacks && role != Role::Router && rows.are_blocks()
    }

    /// What a matrix of this role is quantised to, if it is.
    fn quantized_to(&self, role: Role) -> Option<Quantization> {
        match role {
            Role::Body => self.quantize,
            Role::Head => self.quantize.map(|_| Quantization::Int8),
            Role::Router => None,
        }
    }
}
