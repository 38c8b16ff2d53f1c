//! The paged cache of keys and values, in the order in which attention multiplies them: of the slot
//! `b * B + o = slot_mapping[t]` it holds `k[t]` and `v[t]`, rounded to its dtype, nearest and ties
//! to even.
//!
//! cache_k, cache_v `[N, K, B / 16, 16 * D]` f32|f16|bf16: block, kv head, group of sixteen
//! positions, and within a group element d of position o
//!
//! ```text
//! of keys     at ((d / P) * 16 + o) * P + d % P     [D / P, 16, P]
//! of values   at ((o / P) * D + d) * P + o % P      [16 / P, D, P]
//! ```
//!
//! P is how many elements a step of attention multiplies: two of bf16, one of f32 and f16. So
//! sixteen neighbours of a step are one vector, and a group is read from its beginning to its end.
//! D is the head size of k and v, rounded up to a multiple of sixteen: what is beyond it is written
//! as zeros. k, v `[T, K, head_size]` f32, strided in T or not.

mod cpu;
#[cfg(test)]
mod reference;

use std::ops::Range;

use candle_core::{CpuStorage, DType, Device, InplaceOp2, Layout, Tensor, WithDType};
use half::vec::HalfBitsVecExt;
use half::{bf16, f16};

use crate::element::Element;
use crate::simd::LANES;
use crate::simd::memory::{self, prefer_huge_pages};
use crate::view::{self, Locked};
use crate::{KernelError, Result};

/// Positions of a group: a block has a multiple of them.
pub const GROUP: usize = LANES;

/// The size that a head takes in a cache.
pub fn stored_size(head_size: usize) -> usize {
    head_size.next_multiple_of(LANES)
}

/// A cache for `[N, K, B, head_size]`, of zeros, which takes no memory until it is written: in huge
/// pages where the system has them, because blocks lie anywhere and each is read whole.
pub fn zeros(
    [blocks, kv_heads, block_size, head_size]: [usize; 4],
    dtype: DType,
) -> Result<Tensor> {
    if !block_size.is_multiple_of(GROUP) {
        let (argument, rule) = ("block_size", format!("a multiple of {GROUP}"));
        return Err(KernelError::Value { argument, rule, found: block_size.to_string() });
    }
    let shape = Geometry { blocks, kv_heads, groups: block_size / GROUP, head_size }.shape();
    let shape = shape.as_slice();
    match dtype {
        DType::F32 => aligned(shape, 0_f32, |zeros| zeros),
        DType::F16 => aligned(shape, 0_u16, HalfBitsVecExt::reinterpret_into::<f16>),
        DType::BF16 => aligned(shape, 0_u16, HalfBitsVecExt::reinterpret_into::<bf16>),
        found => {
            let (argument, expected) = ("cache", "f32, f16 or bf16");
            Err(KernelError::DType { argument, expected, found })
        }
    }
}

/// `zero`s of `shape` that begin with a line of the processor's cache, as what `of` makes of them.
fn aligned<B: Copy, E: WithDType>(
    shape: &[usize],
    zero: B,
    of: impl Fn(Vec<B>) -> Vec<E>,
) -> Result<Tensor> {
    const LINE: usize = 64;
    let len = shape.iter().product();
    let mut memory = vec![zero; len + LINE / size_of::<B>()];
    prefer_huge_pages(&mut memory);
    let first = memory.as_ptr().align_offset(LINE);
    let memory = of(memory);
    let all = Tensor::from_vec(memory, len + LINE / size_of::<B>(), &Device::Cpu)?;
    Ok(all.narrow(0, first, len)?.reshape(shape)?)
}

/// Has the system back some blocks of a cache with memory, which it otherwise does when they are first
/// written; what they hold stays. So whoever writes there later does not wait until it is cleared.
pub fn populate(cache: &Tensor, blocks: Range<usize>) -> Result<()> {
    let [all, kv_heads, groups, width] =
        view::dims(cache, "cache", ["N", "K", "B / 16", "16 * D"])?;
    if blocks.start > blocks.end || blocks.end > all {
        let (argument, rule) = ("blocks", format!("a range within 0..{all}"));
        return Err(KernelError::Value { argument, rule, found: format!("{blocks:?}") });
    }
    let block = kv_heads * groups * width;
    let elements = blocks.start * block..blocks.end * block;
    match cache.dtype() {
        DType::F32 => backed::<f32>(cache, elements),
        DType::F16 => backed::<f16>(cache, elements),
        DType::BF16 => backed::<bf16>(cache, elements),
        found => {
            let (argument, expected) = ("cache", "f32, f16 or bf16");
            Err(KernelError::DType { argument, expected, found })
        }
    }
}

fn backed<E: Element>(cache: &Tensor, elements: Range<usize>) -> Result<()> {
    view::write(cache, "cache", &[], |all: &mut [E]| memory::populate(&mut all[elements]))
}

/// Which of the two a cache holds.
#[derive(Clone, Copy)]
pub(crate) enum Part {
    Keys,
    Values,
}

/// The dimensions of a cache, and the head size that it is used with.
#[derive(Clone, Copy)]
pub(crate) struct Geometry {
    pub(crate) blocks: usize,
    pub(crate) kv_heads: usize,
    /// Of a block.
    pub(crate) groups: usize,
    pub(crate) head_size: usize,
}

impl Geometry {
    /// The dimensions of two caches, which must be the same, for heads of `head_size`.
    pub(crate) fn of([cache_k, cache_v]: [&Tensor; 2], head_size: usize) -> Result<Self> {
        let [blocks, kv_heads, groups, _] =
            view::dims(cache_k, "cache_k", ["N", "K", "B / 16", "16 * D"])?;
        let geometry = Self { blocks, kv_heads, groups, head_size };
        view::shape(cache_k, "cache_k", &geometry.shape())?;
        view::shape(cache_v, "cache_v", &geometry.shape())?;
        Ok(geometry)
    }

    pub(crate) fn shape(&self) -> [usize; 4] {
        [self.blocks, self.kv_heads, self.groups, GROUP * self.stored_size()]
    }

    /// See [`stored_size`].
    #[inline(always)]
    pub(crate) fn stored_size(&self) -> usize {
        stored_size(self.head_size)
    }

    #[inline(always)]
    pub(crate) fn block_size(&self) -> usize {
        self.groups * GROUP
    }

    /// How many groups lie before group `group` of a block and a head.
    #[inline(always)]
    pub(crate) fn group(&self, block: usize, kv_head: usize, group: usize) -> usize {
        (block * self.kv_heads + kv_head) * self.groups + group
    }
}

/// How many of `slots`, from the first on, follow each other within a group.
pub(crate) fn neighbours(slots: &[u32]) -> usize {
    let most = slots.len().min(GROUP - slots[0] as usize % GROUP);
    (1..most).find(|&i| slots[i] != slots[0] + i as u32).unwrap_or(most)
}

/// Writes `k` and `v` `[T, K, head_size]` into their caches, in place; token t goes to slot
/// `slot_mapping[t] = block * B + offset`. Where a slot is named twice, the later token stays.
///
/// The caches must be contiguous; all arguments are checked before the first byte is written. A
/// `k` or `v` that shares its memory with the cache it goes to is refused by candle.
pub fn write(
    cache_k: &Tensor,
    cache_v: &Tensor,
    k: &Tensor,
    v: &Tensor,
    slot_mapping: &[u32],
) -> Result<()> {
    let [tokens, _, head_size] = view::dims(k, "k", ["T", "K", "head_size"])?;
    let geometry = Geometry::of([cache_k, cache_v], head_size)?;
    view::shape(k, "k", &[tokens, geometry.kv_heads, head_size])?;
    view::shape(v, "v", &[tokens, geometry.kv_heads, head_size])?;
    view::len("slot_mapping", tokens, slot_mapping.len())?;
    view::indices("slot_mapping", slot_mapping, geometry.blocks * geometry.block_size())?;
    Locked::new(cache_k, "cache_k")?.floats()?;
    Locked::new(cache_v, "cache_v")?.floats()?;
    Locked::new(k, "k")?.rows()?;
    Locked::new(v, "v")?.rows()?;
    match cache_k.device() {
        Device::Cpu => {
            cache_k.inplace_op2(k, &Write { geometry, part: Part::Keys, slot_mapping })?;
            cache_v.inplace_op2(v, &Write { geometry, part: Part::Values, slot_mapping })?;
            Ok(())
        }
        device => Err(KernelError::device("cache_k", device)),
    }
}

/// [`write`] of one of the two, as candle's in-place operation: candle holds the write lock of the
/// cache and refuses operands that share its memory.
struct Write<'a> {
    geometry: Geometry,
    part: Part,
    slot_mapping: &'a [u32],
}

impl Write<'_> {
    fn run<E: Element>(&self, cache: &mut [E], x: view::Rows<'_>) {
        cpu::write((cache, self.part), self.geometry, x, self.slot_mapping);
    }
}

impl InplaceOp2 for Write<'_> {
    fn name(&self) -> &'static str {
        "kv_cache::write"
    }

    fn cpu_fwd(
        &self,
        cache: &mut CpuStorage,
        cache_layout: &Layout,
        x: &CpuStorage,
        x_layout: &Layout,
    ) -> candle_core::Result<()> {
        let x = view::rows(x, x_layout, "x").map_err(candle_core::Error::wrap)?;
        let start = cache_layout.start_offset();
        match cache {
            CpuStorage::F32(cache) => self.run(&mut cache[start..], x),
            CpuStorage::F16(cache) => self.run(&mut cache[start..], x),
            CpuStorage::BF16(cache) => self.run(&mut cache[start..], x),
            _ => unreachable!("`write` checked the dtype of the cache"),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;
    use crate::testing::{DTYPES, assert_error, random_tensor, strided, values};

    fn cache_shape(shape: [usize; 4]) -> [usize; 4] {
        zeros(shape, DType::F32).unwrap().dims().try_into().unwrap()
    }

    #[test]
    fn each_token_lands_in_its_slot_and_nothing_else_changes() {
        for dtype in DTYPES {
            for [blocks, kv_heads, block_size, head_size] in
                [[1, 1, 16, 1], [5, 3, 48, 33], [4, 2, 16, 257], [2, 2, 32, 64]]
            {
                let slots = (blocks * block_size) as u32;
                // One by one from the end, then runs that begin and end within a step and a group.
                let (singles, runs) =
                    ((0..slots).rev().step_by(3), (0..slots).filter(|s| s % 23 > 1));
                let mapping: Vec<u32> = singles.chain(runs).collect();
                let shape = [mapping.len(), kv_heads, head_size];
                let k = random_tensor(1, &shape, DType::F32);
                let v = random_tensor(2, &shape, DType::F32);
                let shape = cache_shape([blocks, kv_heads, block_size, head_size]);
                let cache_k = random_tensor(3, &shape, dtype);
                let cache_v = random_tensor(4, &shape, dtype);
                let (mut expected_k, mut expected_v) = (values(&cache_k), values(&cache_v));
                write(&cache_k, &cache_v, &k, &strided(&v), &mapping).unwrap();
                let geometry = [kv_heads, block_size, head_size];
                let step = if dtype == DType::BF16 { 2 } else { 1 };
                for (expected, part, x) in
                    [(&mut expected_k, Part::Keys, &k), (&mut expected_v, Part::Values, &v)]
                {
                    let rounded = values(&x.to_dtype(dtype).unwrap());
                    reference::write((expected, part, step), geometry, &rounded, &mapping);
                }
                assert_eq!(values(&cache_k), expected_k, "{dtype:?}");
                assert_eq!(values(&cache_v), expected_v, "{dtype:?}");
            }
        }
    }

    #[test]
    fn of_two_tokens_in_one_slot_the_later_stays() {
        let cache = |seed| random_tensor(seed, &cache_shape([2, 1, 16, 1]), DType::F32);
        let (cache_k, cache_v) = (cache(1), cache(2));
        let k = Tensor::new(&[[[1f32]], [[2.0]]], &Device::Cpu).unwrap();
        write(&cache_k, &cache_v, &k, &k, &[19, 19]).unwrap();
        // A head of one element takes sixteen.
        let (at_k, at_v) = (16 * 16 + 3, 16 * 16 + 3 * 16);
        assert_eq!((values(&cache_k)[at_k], values(&cache_v)[at_v]), (2.0, 2.0));
    }

    #[test]
    fn wrong_arguments_are_named_and_nothing_is_written() {
        let cache = |dtype| random_tensor(1, &[3, 2, 1, 256], dtype);
        let (cache_k, cache_v) = (cache(DType::F32), cache(DType::F16));
        let before = (values(&cache_k), values(&cache_v));
        let k = random_tensor(2, &[2, 2, 5], DType::F32);
        let short = k.narrow(0, 0, 1).unwrap();
        let turned = random_tensor(2, &[2, 5, 2], DType::F32).transpose(1, 2).unwrap();
        let permuted = cache(DType::F32).transpose(0, 2).unwrap().contiguous().unwrap();
        let permuted = permuted.transpose(0, 2).unwrap();
        let integers = cache(DType::F32).to_dtype(DType::I64).unwrap();
        let write = |k: &Tensor, v: &Tensor, slots: &[u32]| write(&cache_k, &cache_v, k, v, slots);
        assert_error(
            write(&k, &k, &[0, 48]),
            "slot_mapping[1]: expected an index below 48, found 48",
        );
        assert_error(write(&k, &k, &[0]), "slot_mapping: expected 2 entries, found 1");
        assert_error(write(&k, &short, &[0, 1]), "v: expected shape [2, 2, 5], found [1, 2, 5]");
        assert_error(
            write(&k, &turned, &[0, 1]),
            "v: expected rows that are contiguous, found shape [2, 2, 5] with strides [10, 1, 2]",
        );
        assert_error(
            super::write(&cache_k, &permuted, &k, &k, &[0, 1]),
            "cache_v: expected a contiguous tensor, found shape [3, 2, 1, 256] with strides [256, 768, 1536, 1]",
        );
        assert_error(
            super::write(&cache_k, &integers, &k, &k, &[0, 1]),
            "cache_v: expected dtype f32, f16 or bf16, found I64",
        );
        assert_error(
            super::write(&cache_k, &random_tensor(1, &[3, 2, 2, 256], DType::F32), &k, &k, &[0, 1]),
            "cache_v: expected shape [3, 2, 1, 256], found [3, 2, 2, 256]",
        );
        assert_eq!((values(&cache_k), values(&cache_v)), before);
    }

    #[test]
    fn blocks_that_are_no_whole_groups_are_refused() {
        let message = "block_size: expected a multiple of 16, found 24";
        assert_error(zeros([3, 2, 24, 64], DType::BF16), message);
    }

    #[test]
    fn what_is_backed_with_memory_stays_as_it_is() {
        for dtype in DTYPES {
            let cache = random_tensor(1, &cache_shape([5, 2, 16, 64]), dtype);
            let before = values(&cache);
            for blocks in [0..5, 1..4, 2..2, 5..5] {
                populate(&cache, blocks).unwrap();
            }
            assert_eq!(values(&cache), before);
        }
        let cache = zeros([5, 2, 16, 64], DType::BF16).unwrap();
        let message = "blocks: expected a range within 0..5, found 4..6";
        assert_error(populate(&cache, 4..6), message);
    }

    #[test]
    fn keys_that_are_part_of_the_cache_are_refused() {
        let [cache_k, cache_v] =
            [1, 2].map(|seed| random_tensor(seed, &[3, 1, 1, 256], DType::F32));
        let part = cache_k.flatten_all().unwrap().narrow(0, 0, 48).unwrap();
        let part = part.reshape((3, 1, 16)).unwrap();
        assert!(write(&cache_k, &cache_v, &part, &part, &[0, 1, 2]).is_err());
    }
}
