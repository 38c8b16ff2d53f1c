//! The weights of a layer's experts, in whichever of four ways a checkpoint has them.
//!
//! - Each expert has tensors of its own, as most models are released.
//! - All of a layer share one tensor `[E, rows, columns]`, as Transformers 5 writes them.
//! - The same with columns before rows, and the rows of gate and up alternating: gpt-oss.
//! - The same with rows before columns, in MXFP4: gpt-oss as released.
//!
//! What comes out is always one matrix per expert, rows before columns, gate before up.

use super::keep::Keep;
use super::layer::LayerWeights;
use super::names::MoeNames;
use super::rows::{Order, Part, Stack};
use crate::LoadError;
use crate::candle::spec::{ExpertNames, Moe};

/// The experts of a layer.
pub(crate) struct ExpertWeights<K: Keep> {
    /// `E` of `[2I, hidden]`: gate, then up.
    pub(crate) gate_up: K::Experts,
    /// `[E, 2I]` in f32.
    pub(crate) gate_up_bias: Option<K::Vector>,
    /// `E` of `[hidden, I]`.
    pub(crate) down: K::Experts,
    /// `[E, hidden]` in f32.
    pub(crate) down_bias: Option<K::Vector>,
}

/// All rows of a matrix of a stack.
const ALL: [usize; 2] = [0, 1];
/// Those of gate, and those of up, where the two alternate.
const ALTERNATING: [[usize; 2]; 2] = [[0, 2], [1, 2]];

impl<K: Keep> LayerWeights<'_, K> {
    /// Takes the experts of the layer.
    pub(crate) fn experts(&mut self, moe: &Moe) -> Result<ExpertWeights<K>, LoadError> {
        let names = self.names.moe();
        let stacks = ["gate_up_proj", "down_proj"]
            .map(|projection| self.name(&format!("{}.{projection}", names.experts)));
        match self.names.layout.experts {
            ExpertNames::GptOss => self.take_gpt_oss(&stacks, moe),
            _ if self.weights.has(&stacks[0]) => self.take_stacked(&stacks, moe),
            _ => self.take_each(&names, moe),
        }
    }

    /// Every expert by itself.
    fn take_each(&mut self, names: &MoeNames, moe: &Moe) -> Result<ExpertWeights<K>, LoadError> {
        let (inter, hidden) = (moe.expert.inter, self.hidden);
        let part = |from: &Self, expert: usize, part: usize, rows: usize| {
            let (experts, part) = (names.experts, names.parts[part]);
            Part::whole(from.name(&format!("{experts}.{expert}.{part}.weight")), rows)
        };
        let gate_up = |from: &Self, e| vec![part(from, e, 0, inter), part(from, e, 1, inter)];
        let down = |from: &Self, e| vec![part(from, e, 2, hidden)];
        Ok(ExpertWeights {
            gate_up: self.matrices(moe.experts, [2 * inter, hidden], gate_up)?,
            gate_up_bias: None,
            down: self.matrices(moe.experts, [hidden, inter], down)?,
            down_bias: None,
        })
    }

    fn take_stacked(
        &mut self,
        [gate_up, down]: &[String; 2],
        moe: &Moe,
    ) -> Result<ExpertWeights<K>, LoadError> {
        let (inter, hidden) = (moe.expert.inter, self.hidden);
        let stack = |rows| Stack { matrices: moe.experts, rows, order: Order::Rows };
        let all = |name: &str, e, rows| vec![stack(rows).part(name, e, ALL)];
        let gate_up_shape = [2 * inter, hidden];
        Ok(ExpertWeights {
            gate_up: self
                .matrices(moe.experts, gate_up_shape, |_, e| all(gate_up, e, 2 * inter))?,
            gate_up_bias: None,
            down: self.matrices(moe.experts, [hidden, inter], |_, e| all(down, e, hidden))?,
            down_bias: None,
        })
    }

    fn take_gpt_oss(
        &mut self,
        [gate_up, down]: &[String; 2],
        moe: &Moe,
    ) -> Result<ExpertWeights<K>, LoadError> {
        let (experts, inter, hidden) = (moe.experts, moe.expert.inter, self.hidden);
        let order = match self.weights.has(&format!("{gate_up}_blocks")) {
            true => Order::Mxfp4,
            false => Order::Columns,
        };
        let stack = |rows| Stack { matrices: experts, rows, order };
        let apart = |e| ALTERNATING.map(|rows| stack(2 * inter).part(gate_up, e, rows)).to_vec();
        let gate_up_weights = self.matrices(experts, [2 * inter, hidden], |_, e| apart(e))?;
        let all = |e| vec![stack(hidden).part(down, e, ALL)];
        let down_weights = self.matrices(experts, [hidden, inter], |_, e| all(e))?;
        let mut bias =
            |name: &str, len: usize| self.weights.floats(&format!("{name}_bias"), &[experts, len]);
        let gate_up_bias = gate_before_up(&bias(gate_up, 2 * inter)?, inter);
        let down_bias = bias(down, hidden)?;
        let keep = &mut self.weights.keep;
        Ok(ExpertWeights {
            gate_up: gate_up_weights,
            gate_up_bias: Some(keep.vector(gate_up_bias, &[experts, 2 * inter])?),
            down: down_weights,
            down_bias: Some(keep.vector(down_bias, &[experts, hidden])?),
        })
    }

    /// A matrix of this shape for each expert, of the parts that it has.
    fn matrices(
        &mut self,
        experts: usize,
        shape: [usize; 2],
        parts: impl Fn(&Self, usize) -> Vec<Part>,
    ) -> Result<K::Experts, LoadError> {
        let parts: Vec<Vec<Part>> = (0..experts).map(|expert| parts(self, expert)).collect();
        self.weights.experts(&parts, shape)
    }
}

/// Rows of `2I` numbers in which gate and up alternate, with gate before up.
fn gate_before_up(bias: &[f32], inter: usize) -> Vec<f32> {
    let rows = bias.chunks_exact(2 * inter);
    rows.flat_map(|row| [0, 1].map(|first| row.iter().skip(first).step_by(2)).into_iter().flatten())
        .copied()
        .collect()
}
