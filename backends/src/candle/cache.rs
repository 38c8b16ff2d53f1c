//! The paged KV cache: how large it may be, and its memory.
//!
//! Every layer has one K and one V tensor `[N, K, B, D]`: block, KV head, offset in the block,
//! head. Layers of the same shape form a group, whose layers share block numbers. The memory is
//! claimed as zeros that the system hands out page by page when they are first written, so a
//! generous cache costs what is used of it.
//!
//! Who holds which block is decided by the router; this file knows none of it.

use super::LoadOptions;
use super::device_error;
use super::memory;
use super::spec::{CacheGroup, ModelSpec};
use super::weights::element::Element;
use crate::LoadError;
use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};

const MIB: u64 = 1 << 20;

/// How large the cache is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct CachePlan {
    pub(crate) groups: Vec<CacheGroup>,
    pub(crate) dtype: DType,
    pub(crate) block_size: usize,
    /// Blocks of each group.
    pub(crate) num_blocks: usize,
}

/// The cache's memory.
pub(crate) struct KvCache {
    /// In the order of the model's layers.
    pub(crate) layers: Vec<LayerCache>,
}

/// One layer's keys and values.
pub(crate) struct LayerCache {
    /// Index of the group whose block tables and slot mapping apply.
    pub(crate) group: usize,
    /// `[N, K, B, D]`.
    pub(crate) k: Tensor,
    /// `[N, K, B, D]`.
    pub(crate) v: Tensor,
}

/// The longest sequence to serve: what the model was made for, or less.
pub(crate) fn max_model_len(spec: &ModelSpec, options: &LoadOptions) -> Result<usize, LoadError> {
    let longest = spec.max_positions;
    match options.max_model_len.map(|len| len as usize) {
        None => Ok(longest),
        Some(len) if (1..=longest).contains(&len) => Ok(len),
        Some(len) => Err(LoadError::Invalid {
            file: "config.json".into(),
            reason: format!(
                "--max-total-tokens ({len}) must be between 1 and max_position_embeddings ({longest})"
            ),
        }),
    }
}

impl CachePlan {
    /// Sizes the cache: as many blocks as `memory` bytes hold, and no more than all slots can use.
    pub(crate) fn new(
        spec: &ModelSpec,
        dtype: DType,
        options: &LoadOptions,
        memory: u64,
    ) -> Result<Self, LoadError> {
        let max_model_len = max_model_len(spec, options)?;
        let block_size = options.block_size.max(1) as usize;
        let mut plan = Self { groups: spec.cache_groups(), dtype, block_size, num_blocks: 0 };
        let bytes_per_block = plan.bytes_per_block();
        let one_sequence = max_model_len.div_ceil(block_size);
        let affordable = memory / bytes_per_block;
        if affordable < one_sequence as u64 {
            return Err(LoadError::CacheMemory {
                free_mib: memory / MIB,
                max_model_len: max_model_len as u32,
                needed_mib: (one_sequence as u64 * bytes_per_block).div_ceil(MIB),
            });
        }
        // One block more per slot: what the scheduler keeps free for each running sequence.
        let usable = (one_sequence as u64 + 1) * u64::from(options.max_slots.max(1));
        // Cells are numbered in 32 bits.
        let numberable = u64::from(u32::MAX) / block_size as u64;
        plan.num_blocks = affordable.min(usable).min(numberable) as usize;
        Ok(plan)
    }

    /// Bytes that a token's keys and values take in all layers of a group.
    pub(crate) fn bytes_per_token(&self, group: &CacheGroup) -> u64 {
        let values = 2 * group.kv_heads * group.head_dim * group.layers.len();
        (values * self.dtype.size_in_bytes()) as u64
    }

    fn bytes_per_block(&self) -> u64 {
        let per_token: u64 = self.groups.iter().map(|group| self.bytes_per_token(group)).sum();
        per_token * self.block_size as u64
    }

    /// Claims the memory.
    pub(crate) fn allocate(&self) -> Result<KvCache, LoadError> {
        let num_layers = self.groups.iter().map(|group| group.layers.len()).sum();
        let mut layers: Vec<Option<LayerCache>> = Vec::new();
        layers.resize_with(num_layers, || None);
        for (index, group) in self.groups.iter().enumerate() {
            let shape = (self.num_blocks, group.kv_heads, self.block_size, group.head_dim);
            for &layer in &group.layers {
                let k = zeros(self.dtype, shape).map_err(device_error)?;
                let v = zeros(self.dtype, shape).map_err(device_error)?;
                layers[layer] = Some(LayerCache { group: index, k, v });
            }
        }
        Ok(KvCache { layers: layers.into_iter().flatten().collect() })
    }
}

/// Bytes that the cache may take: what the user says, or half of what is free now, after the
/// weights. The other half is for activations, the router and everything else on the machine.
pub(crate) fn memory_budget(options: &LoadOptions) -> u64 {
    options.kv_cache_memory.unwrap_or_else(|| memory::available() / 2)
}

/// Zeros that cost nothing until they are written.
fn zeros(dtype: DType, shape: (usize, usize, usize, usize)) -> candle_core::Result<Tensor> {
    let len = shape.0 * shape.1 * shape.2 * shape.3;
    match dtype {
        DType::F32 => Tensor::from_vec(f32::zeros(len), shape, &Device::Cpu),
        DType::F16 => Tensor::from_vec(f16::zeros(len), shape, &Device::Cpu),
        _ => Tensor::from_vec(bf16::zeros(len), shape, &Device::Cpu),
    }
}

#[cfg(test)]
mod tests {
    use super::super::families;
    use super::super::families::tests::qwen3;
    use super::*;

    fn spec() -> ModelSpec {
        families::parse(qwen3().to_string().as_bytes()).unwrap()
    }

    /// Qwen3-0.6B: 28 layers of 8 heads of 128, K and V, 2 bytes: 112 KiB per token.
    const PER_BLOCK: u64 = 16 * 112 * 1024;

    fn plan(options: &LoadOptions, memory: u64) -> Result<CachePlan, LoadError> {
        CachePlan::new(&spec(), DType::BF16, options, memory)
    }

    fn options(max_model_len: u32) -> LoadOptions {
        LoadOptions { max_model_len: Some(max_model_len), max_slots: 2, ..LoadOptions::default() }
    }

    #[test]
    fn the_cache_holds_what_memory_allows_and_slots_can_use() {
        let cases = [(10 * PER_BLOCK, 10), (10 * PER_BLOCK - 1, 9), (1 << 40, 2 * (3 + 1))];
        for (memory, blocks) in cases {
            let options = if memory < 1 << 40 { options(100) } else { options(33) };
            assert_eq!(plan(&options, memory).unwrap().num_blocks, blocks, "{memory} bytes");
        }
        let plan = plan(&options(33), 1 << 40).unwrap();
        assert_eq!(plan.bytes_per_token(&plan.groups[0]), 112 * 1024);
    }

    #[test]
    fn a_cache_that_cannot_hold_one_sequence_says_what_to_lower() {
        let error = plan(&options(4096), 255 * PER_BLOCK).unwrap_err();
        assert_eq!(
            error.to_string(),
            "not enough memory for the KV cache: 446 MiB free, one sequence of 4096 tokens needs \
             448 MiB; lower --max-total-tokens or raise --kv-cache-memory"
        );
        assert!(plan(&options(4096), 256 * PER_BLOCK).is_ok());
    }

    #[test]
    fn a_length_that_the_model_was_not_made_for_is_refused() {
        for len in [0, 40961] {
            let error = plan(&options(len), 1 << 40).unwrap_err().to_string();
            assert!(
                error.contains(&format!("--max-total-tokens ({len}) must be between")),
                "{error}"
            );
        }
    }
}
