//! The weights of a layer's experts, in whichever of four ways a checkpoint has them.
//!
//! - Each expert has tensors of its own, as most models are released.
//! - All of a layer share one tensor `[E, rows, columns]`, as Transformers 5 writes them.
//! - The same with columns before rows, and the rows of gate and up alternating: gpt-oss.
//! - The same with rows before columns, in MXFP4: gpt-oss as released.
//!
//! What comes out is always one matrix per expert, rows before columns, gate before up.

use super::Part;
use super::layer::LayerWeights;
use super::names::MoeNames;
use crate::LoadError;
use crate::candle::device_error;
use crate::candle::spec::{ExpertNames, Moe};
use candle_core::Tensor;

/// The experts of a layer.
pub(crate) struct ExpertWeights {
    /// `E` of `[2I, hidden]`: gate, then up.
    pub(crate) gate_up: Vec<Tensor>,
    /// `[E, 2I]` in f32.
    pub(crate) gate_up_bias: Option<Tensor>,
    /// `E` of `[hidden, I]`.
    pub(crate) down: Vec<Tensor>,
    /// `[E, hidden]` in f32.
    pub(crate) down_bias: Option<Tensor>,
}

impl LayerWeights<'_> {
    /// Takes the experts of the layer.
    pub(crate) fn experts(&mut self, moe: &Moe) -> Result<ExpertWeights, LoadError> {
        let names = self.names.moe();
        let (inter, hidden) = (moe.expert.inter, self.hidden);
        let fused = self.name(&format!("{}.gate_up_proj", names.experts));
        let experts = match self.names.layout.experts {
            ExpertNames::GptOss => return self.take_gpt_oss(&names, moe),
            _ if self.weights.has(&fused) => {
                let down = self.name(&format!("{}.down_proj", names.experts));
                ExpertWeights {
                    gate_up: self.weights.matrices(&fused, [moe.experts, 2 * inter, hidden])?,
                    gate_up_bias: None,
                    down: self.weights.matrices(&down, [moe.experts, hidden, inter])?,
                    down_bias: None,
                }
            }
            _ => self.take_each(&names, moe)?,
        };
        Ok(experts)
    }

    /// Every expert by itself.
    fn take_each(&mut self, names: &MoeNames, moe: &Moe) -> Result<ExpertWeights, LoadError> {
        let (inter, hidden) = (moe.expert.inter, self.hidden);
        let (mut gate_up, mut down) = (Vec::new(), Vec::new());
        for expert in 0..moe.experts {
            let part = |part: usize, rows: usize| -> Part {
                let (experts, part) = (names.experts, names.parts[part]);
                (self.name(&format!("{experts}.{expert}.{part}.weight")), rows)
            };
            let (gate, up, out) = (part(0, inter), part(1, inter), part(2, hidden));
            gate_up.push(self.weights.matrix(&[gate, up], hidden)?);
            down.push(self.weights.matrix(&[out], inter)?);
        }
        Ok(ExpertWeights { gate_up, gate_up_bias: None, down, down_bias: None })
    }

    fn take_gpt_oss(&mut self, names: &MoeNames, moe: &Moe) -> Result<ExpertWeights, LoadError> {
        let (experts, inter, hidden) = (moe.experts, moe.expert.inter, self.hidden);
        let gate_up = self.name(&format!("{}.gate_up_proj", names.experts));
        let down = self.name(&format!("{}.down_proj", names.experts));
        let packed = self.weights.has(&format!("{gate_up}_blocks"));
        let mut matrices = |name: &str, rows: usize, columns: usize| match packed {
            true => self.weights.mxfp4(name, [experts, rows, columns]),
            false => {
                let stored = self.weights.matrices(name, [experts, columns, rows])?;
                each(stored, |matrix| matrix.t()?.contiguous())
            }
        };
        let (alternating, down_weights) =
            (matrices(&gate_up, 2 * inter, hidden)?, matrices(&down, hidden, inter)?);
        let apart = |rows: Tensor| gate_before_up(&rows, 0);
        let mut bias = |name: &str, len: usize| {
            let bias = self.weights.vectors(&format!("{name}_bias"), [experts, len])?;
            Ok::<_, LoadError>(bias)
        };
        let gate_up_bias = bias(&gate_up, 2 * inter)?;
        Ok(ExpertWeights {
            gate_up: each(alternating, apart)?,
            gate_up_bias: Some(gate_before_up(&gate_up_bias, 1).map_err(device_error)?),
            down: down_weights,
            down_bias: Some(bias(&down, hidden)?),
        })
    }
}

fn each(
    matrices: Vec<Tensor>,
    turn: impl Fn(Tensor) -> candle_core::Result<Tensor>,
) -> Result<Vec<Tensor>, LoadError> {
    matrices.into_iter().map(|matrix| turn(matrix).map_err(device_error)).collect()
}

/// Gate and up, which alternate along a dimension, one after the other.
fn gate_before_up(x: &Tensor, dim: usize) -> candle_core::Result<Tensor> {
    let len = x.dim(dim)? as u32;
    let order: Vec<u32> = (0..len).step_by(2).chain((1..len).step_by(2)).collect();
    x.index_select(&Tensor::new(order, x.device())?, dim)
}
