//! Weights in a GPU's memory, as the checkpoint has them, in the dtype of the model.
//!
//! Rows are read by all threads into one of two pieces of pinned memory, while the device fetches
//! the other: so storage, processor and bus work at once, and no matrix is in the machine's memory.

use super::cuda_error;
use crate::LoadError;
use crate::candle::spec::PositionScale;
use crate::candle::weights::Role;
use crate::candle::weights::element::Element;
use crate::candle::weights::keep::Keep;
use crate::candle::weights::rows::Rows;
use candle_core::DType;
use half::{bf16, f16};
use millstream_kernels::cuda::{Array, Gpu, Outgoing, Plain};
use millstream_kernels::linear::cuda::Weight;
use millstream_kernels::moe::cuda::Experts;
use millstream_kernels::rope;
use millstream_kernels::threads;

/// Bytes that are read while as many are sent.
const PIECE: usize = 32 << 20;

/// Elements that a thread reads at a time.
const SHARE: usize = 1 << 16;

/// Keeps weights on a GPU.
#[derive(Debug)]
pub(crate) struct Device {
    gpu: Gpu,
    dtype: DType,
    pieces: [Outgoing; 2],
    /// Which piece is filled next.
    turn: usize,
}

/// The experts of a layer.
#[derive(Debug)]
pub(crate) struct DeviceExperts {
    pub(crate) weights: Experts,
    /// How many are there yet.
    filled: usize,
}

impl Device {
    /// Keeps weights of `dtype` on `gpu`.
    pub(crate) fn new(gpu: &Gpu, dtype: DType) -> Result<Self, LoadError> {
        let piece = || Outgoing::new(gpu, PIECE).map_err(cuda_error);
        Ok(Self { gpu: gpu.clone(), dtype, pieces: [piece()?, piece()?], turn: 0 })
    }

    /// A matrix in memory of its own.
    fn whole(&mut self, rows: &Rows) -> Result<Weight, LoadError> {
        let (out_features, in_features) = (rows.count(), rows.columns);
        let memory = self.gpu.uninitialized(self.dtype, out_features * in_features);
        let elements = memory.map_err(cuda_error)?;
        self.fill(rows, &elements)?;
        Ok(Weight { elements, out_features, in_features })
    }

    /// Reads the rows and sends them to `to`.
    fn fill(&mut self, rows: &Rows, to: &Array) -> Result<(), LoadError> {
        match self.dtype {
            DType::F32 => self.fill_as::<f32>(rows, to),
            DType::F16 => self.fill_as::<f16>(rows, to),
            _ => self.fill_as::<bf16>(rows, to),
        }
    }

    fn fill_as<E: Element + Plain>(&mut self, rows: &Rows, to: &Array) -> Result<(), LoadError> {
        let columns = rows.columns.max(1);
        let at_once = PIECE / size_of::<E>() / columns;
        if at_once == 0 {
            let most = PIECE / size_of::<E>();
            return Err(LoadError::Device(format!("a row of {columns} weights, at most {most}")));
        }
        for first in (0..rows.count()).step_by(at_once) {
            let len = columns * at_once.min(rows.count() - first);
            let piece = &mut self.pieces[self.turn];
            self.turn = 1 - self.turn;
            let memory = piece.fill_as::<E>(len).map_err(cuda_error)?;
            let rows_at_once = (SHARE / columns).max(1);
            threads::for_chunks(memory, rows_at_once * columns, |share, memory| {
                let row = first + share * rows_at_once;
                for (row, to) in (row..).zip(memory.chunks_mut(columns)) {
                    rows.read(row, to);
                }
            });
            let start = first * columns;
            piece.send(&to.slice(start..start + len)).map_err(cuda_error)?;
        }
        Ok(())
    }
}

impl Keep for Device {
    type Matrix = Weight;
    type Experts = DeviceExperts;
    type Table = Weight;
    type Vector = Array;
    type Rope = rope::cuda::RopeTable;
    type Factors = Array;

    fn matrix(&mut self, rows: &Rows, _: Role) -> Result<Weight, LoadError> {
        self.whole(rows)
    }

    fn experts(
        &mut self,
        count: usize,
        [out_features, in_features]: [usize; 2],
    ) -> Result<DeviceExperts, LoadError> {
        let memory = self.gpu.uninitialized(self.dtype, count * out_features * in_features);
        let elements = memory.map_err(cuda_error)?;
        let weights = Experts { elements, bias: None, out_features, in_features };
        Ok(DeviceExperts { weights, filled: 0 })
    }

    fn expert(&mut self, experts: &mut DeviceExperts, rows: &Rows) -> Result<(), LoadError> {
        let len = rows.count() * rows.columns;
        let start = experts.filled * len;
        self.fill(rows, &experts.weights.elements.slice(start..start + len))?;
        experts.filled += 1;
        Ok(())
    }

    fn table(&mut self, rows: &Rows) -> Result<Weight, LoadError> {
        self.whole(rows)
    }

    fn vector(&mut self, values: Vec<f32>, _: &[usize]) -> Result<Array, LoadError> {
        self.gpu.upload(&values).map_err(cuda_error)
    }

    fn rope(&mut self, table: rope::RopeTable) -> Result<Self::Rope, LoadError> {
        rope::cuda::RopeTable::new(&self.gpu, &table).map_err(super::kernel_error)
    }

    fn factors(&mut self, scale: PositionScale, max_model_len: usize) -> Result<Array, LoadError> {
        let factors: Vec<f32> = (0..max_model_len as u32).map(|at| scale.at(at)).collect();
        self.gpu.upload(&factors).map_err(cuda_error)
    }
}
