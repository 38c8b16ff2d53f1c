//! The paged KV cache: how large it may be, and its memory.
//!
//! Every layer has one K and one V tensor, laid out as [`kv_cache`] says. Layers of the same shape
//! and window form a group, whose layers share block numbers. The memory is claimed as zeros that
//! the system hands out page by page when they are first written, so a generous cache costs what is
//! used of it, and the part that is made ready ahead (`ahead`).
//!
//! A group without a window holds all of a sequence, one with a window no more than the window and
//! what is being computed. So that they fill up together, the memory is divided as a sequence of
//! [`REFERENCE_TOKENS`] would: longer ones fill the groups without a window first, shorter ones the
//! others.
//!
//! Who holds which block is decided by the router; this file knows none of it.

use super::LoadOptions;
use super::device_error;
use super::memory;
use super::spec::{CacheGroup, ModelSpec};
use crate::LoadError;
use candle_core::{DType, Tensor};
use millstream_kernels::kv_cache;
use tracing::warn;

const MIB: u64 = 1 << 20;
/// A sequence is not cut below this by itself.
const LEAST_TOKENS: usize = 512;

/// Length of the sequence that finds its groups balanced, if the model serves such lengths.
const REFERENCE_TOKENS: usize = 8192;

/// Tokens of a chunk that such a sequence holds in a group with a window, beside the window.
const CHUNK_TOKENS: u64 = 1024;

/// How large the cache is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct CachePlan {
    pub(crate) groups: Vec<CacheGroup>,
    pub(crate) dtype: DType,
    pub(crate) block_size: usize,
    /// Blocks of each group.
    pub(crate) num_blocks: Vec<usize>,
    /// Longest sequence that is served.
    pub(crate) max_model_len: usize,
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
    pub(crate) k: Tensor,
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
    ///
    /// Where the user has not said how long a sequence may get, and one of the longest that the
    /// model was made for does not fit, that length is halved until it does: so a worker that is
    /// started again, with a little less memory, comes to the same.
    pub(crate) fn new(
        spec: &ModelSpec,
        dtype: DType,
        options: &LoadOptions,
        memory: u64,
    ) -> Result<Self, LoadError> {
        let mut max_model_len = max_model_len(spec, options)?;
        let block_size = options.block_size as usize;
        if block_size == 0 || !block_size.is_multiple_of(kv_cache::GROUP) {
            return Err(LoadError::BlockSize { block_size, multiple_of: kv_cache::GROUP });
        }
        let (groups, num_blocks) = (spec.cache_groups(), Vec::new());
        let mut plan = Self { groups, dtype, block_size, num_blocks, max_model_len };
        let sizes = |plan: &Self, len| -> Vec<Size> {
            plan.groups.iter().map(|group| Size::new(plan, group, len, options)).collect()
        };
        let may_be_less = options.max_model_len.is_none();
        while may_be_less
            && max_model_len > LEAST_TOKENS
            && bytes(&sizes(&plan, max_model_len), 0) > memory
        {
            max_model_len /= 2;
        }
        let sizes = sizes(&plan, max_model_len);
        let needed = bytes(&sizes, 0);
        if memory < needed {
            return Err(LoadError::CacheMemory {
                free_mib: memory / MIB,
                max_model_len: max_model_len as u32,
                needed_mib: needed.div_ceil(MIB),
            });
        }
        if max_model_len < plan.max_model_len {
            let (made_for, free_mib) = (plan.max_model_len, memory / MIB);
            warn!(
                max_model_len,
                made_for,
                free_mib,
                "sequences are kept shorter than the model allows, for want of memory; \
                 --kv-cache-memory and --max-total-tokens decide otherwise"
            );
        }
        plan.max_model_len = max_model_len;
        let full = most_affordable(|full| bytes(&sizes, full) <= memory);
        plan.num_blocks = sizes.iter().map(|size| size.blocks(full) as usize).collect();
        Ok(plan)
    }

    /// Bytes that a token's keys and values take in all layers of a group.
    pub(crate) fn bytes_per_token(&self, group: &CacheGroup) -> u64 {
        let head = kv_cache::stored_size(group.head_dim) * self.dtype.size_in_bytes();
        (2 * group.kv_heads * head * group.layers.len()) as u64
    }

    /// Claims the memory.
    pub(crate) fn allocate(&self) -> Result<KvCache, LoadError> {
        let num_layers = self.groups.iter().map(|group| group.layers.len()).sum();
        let mut layers: Vec<Option<LayerCache>> = Vec::new();
        layers.resize_with(num_layers, || None);
        for (index, group) in self.groups.iter().enumerate() {
            let shape = [self.num_blocks[index], group.kv_heads, self.block_size, group.head_dim];
            for &layer in &group.layers {
                let k = kv_cache::zeros(shape, self.dtype).map_err(device_error)?;
                let v = kv_cache::zeros(shape, self.dtype).map_err(device_error)?;
                layers[layer] = Some(LayerCache { group: index, k, v });
            }
        }
        Ok(KvCache { layers: layers.into_iter().flatten().collect() })
    }
}

/// How large one group can be.
struct Size {
    bytes_per_block: u64,
    /// Tokens of the reference sequence, and how many of them the group holds at once.
    reference: u64,
    held: u64,
    /// Blocks that one sequence of the longest length needs to advance.
    least: u64,
    /// Blocks that all slots together can use.
    most: u64,
}

impl Size {
    fn new(
        plan: &CachePlan,
        group: &CacheGroup,
        max_model_len: usize,
        options: &LoadOptions,
    ) -> Self {
        let block_size = plan.block_size as u64;
        let reference = max_model_len.min(REFERENCE_TOKENS) as u64;
        let all = (max_model_len as u64).div_ceil(block_size);
        let (held, least, usable) = match group.window.map(u64::from) {
            None => (reference, all, all),
            Some(window) => {
                // Positions from any offset in a block on, and one block for a decode that goes on
                // while the one before it is in flight.
                let blocks = |positions: u64| (positions.div_ceil(block_size) + 2).min(all);
                let before = window.max(1) - 1;
                let chunks_in_flight = 2 * u64::from(options.max_batch_tokens);
                let held = (window + CHUNK_TOKENS).min(reference);
                (held, blocks(before), blocks(before + chunks_in_flight))
            }
        };
        // One block more per slot: what the scheduler keeps free for each running sequence.
        let most = (usable + 1) * u64::from(options.max_slots.max(1));
        // Cells are numbered in 32 bits.
        let numberable = u64::from(u32::MAX) / block_size;
        let bytes_per_block = plan.bytes_per_token(group) * block_size;
        Self { bytes_per_block, reference, held, least, most: most.min(numberable).max(least) }
    }

    /// The blocks of this group where one that holds all of a sequence has `full`.
    fn blocks(&self, full: u64) -> u64 {
        (full * self.held / self.reference).clamp(self.least, self.most)
    }
}

/// Bytes of all groups where one that holds all of a sequence has `full` blocks.
fn bytes(sizes: &[Size], full: u64) -> u64 {
    sizes.iter().map(|size| size.blocks(full) * size.bytes_per_block).sum()
}

/// The largest 32-bit number that is affordable, where 0 is, and whatever is below one that is.
fn most_affordable(is_affordable: impl Fn(u64) -> bool) -> u64 {
    let (mut low, mut high) = (0, u64::from(u32::MAX));
    while low < high {
        let middle = (low + high).div_ceil(2);
        (low, high) = if is_affordable(middle) { (middle, high) } else { (low, middle - 1) };
    }
    low
}

/// Bytes that the cache may take: what the user says, or half of what is free now, after the
/// weights. The other half is for activations, the router and everything else on the machine.
pub(crate) fn memory_budget(options: &LoadOptions) -> u64 {
    options.kv_cache_memory.unwrap_or_else(|| memory::available() / 2)
}

#[cfg(test)]
mod tests {
    use super::super::families;
    use super::super::families::tests::qwen3;
    use super::super::spec::Mixer;
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
            assert_eq!(plan(&options, memory).unwrap().num_blocks, [blocks], "{memory} bytes");
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

    /// The same model with a window of 512 in five layers of six, as Gemma 3 has it: 4 layers keep
    /// everything, 24 see 512 tokens.
    fn windowed() -> ModelSpec {
        let mut spec = spec();
        for (index, layer) in spec.layers.iter_mut().enumerate() {
            let Mixer::Attention(attention) = &mut layer.mixer;
            attention.window = (index % 6 != 5).then_some(512);
        }
        spec
    }

    /// Blocks of the group with the window and of the one without, and the bytes of both.
    fn windowed_blocks(options: &LoadOptions, memory: u64) -> (usize, usize, u64) {
        let plan = CachePlan::new(&windowed(), DType::BF16, options, memory).unwrap();
        let [window, full] = plan.num_blocks[..] else { panic!("{:?}", plan.num_blocks) };
        (window, full, (24 * window + 4 * full) as u64 * PER_BLOCK / 28)
    }

    #[test]
    fn a_window_gets_the_share_of_a_sequence_that_it_holds() {
        let many = |len| LoadOptions { max_slots: 256, ..options(len) };
        let memory = 4 << 30;
        // 512 + 1024 of 8192 tokens.
        let (window, full, bytes) = windowed_blocks(&many(40_960), memory);
        assert_eq!(window, full * 1536 / 8192);
        assert!(bytes <= memory && bytes > memory - PER_BLOCK * 2, "{bytes}");
        // Where no sequence is longer than that, the groups are alike.
        let (window, full, _) = windowed_blocks(&many(1500), memory);
        assert_eq!(window, full);
    }

    #[test]
    fn each_group_holds_one_sequence_of_the_longest_length() {
        // The least: 2560 blocks without a window, 511 / 16 + 2 = 34 with one.
        let least = (4 * 2560 + 24 * 34) * PER_BLOCK / 28;
        assert_eq!(windowed_blocks(&options(40_960), least), (34, 2560, least));
        let error = CachePlan::new(&windowed(), DType::BF16, &options(40_960), least - 1);
        let error = error.unwrap_err().to_string();
        assert!(error.contains("one sequence of 40960 tokens needs"), "{error}");
    }

    #[test]
    fn no_group_gets_more_than_all_slots_can_use() {
        let options = LoadOptions { max_batch_tokens: 100, ..options(40_960) };
        let (window, full, _) = windowed_blocks(&options, 1 << 40);
        // Two chunks beside the window: 511 + 200 tokens are 45 blocks and 2.
        assert_eq!((window, full), (2 * (47 + 1), 2 * (2560 + 1)));
    }

    #[test]
    fn a_length_that_nobody_asked_for_is_halved_until_it_fits() {
        let unsaid = LoadOptions { max_model_len: None, ..options(1) };
        for (blocks, len) in [(2560, 40960), (2559, 20480), (700, 10240)] {
            assert_eq!(plan(&unsaid, blocks * PER_BLOCK).unwrap().max_model_len, len, "{blocks}");
        }
        let error = plan(&unsaid, 7 * PER_BLOCK).unwrap_err().to_string();
        assert!(error.contains("one sequence of 320 tokens needs"), "{error}");
    }

    #[test]
    fn blocks_that_the_cache_cannot_be_made_of_are_refused() {
        for block_size in [0, 8, 24] {
            let error = plan(&LoadOptions { block_size, ..options(100) }, 1 << 40).unwrap_err();
            let expected =
                format!("block_size: expected a multiple of 16 above 0, found {block_size}");
            assert_eq!(error.to_string(), expected);
        }
        assert!(plan(&LoadOptions { block_size: 32, ..options(100) }, 1 << 40).is_ok());
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
