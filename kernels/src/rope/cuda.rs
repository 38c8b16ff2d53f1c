//! The table of a rotation in the GPU's memory, as [`crate::heads::cuda`] reads it.

use super::RopeTable as HostTable;
use crate::Result;
use crate::cuda::{Array, Gpu};

/// Cosines and sines of every angle.
#[derive(Clone, Debug)]
pub struct RopeTable {
    /// `[max_pos, dims/2]` f32.
    pub cos: Array,
    /// As `cos`.
    pub sin: Array,
    /// How many elements at the head's front are turned.
    pub dims: usize,
    /// One past the largest position.
    pub max_pos: usize,
}

impl RopeTable {
    /// Copies `table` to the GPU.
    pub fn new(gpu: &Gpu, table: &HostTable) -> Result<Self> {
        let (cos, sin) = (gpu.upload(&table.cos)?, gpu.upload(&table.sin)?);
        Ok(Self { cos, sin, dims: table.dims(), max_pos: table.max_pos() })
    }
}
