//! The paged cache of keys and values: `cache[b, :, o, :] = k[t, :, :]` for the slot
//! `b * B + o = slot_mapping[t]`, rounded to the cache's dtype, nearest and ties to even.
//!
//! cache_k, cache_v `[N, K, B, D]` f32|f16|bf16 (block, kv head, offset in the block, element), so
//! that what one head reads of one block is contiguous; k, v `[T, K, D]` f32, strided in T or not.

mod cpu;
#[cfg(test)]
mod reference;

use candle_core::{CpuStorage, DType, Device, InplaceOp2, Layout, Tensor};
use half::vec::HalfBitsVecExt;
use half::{bf16, f16};

use crate::simd::memory::prefer_huge_pages;
use crate::view::{self, Locked};
use crate::{KernelError, Result};

/// A cache `[N, K, B, D]` of zeros, which takes no memory until it is written: in huge pages where
/// the system has them, because blocks lie anywhere and each is read whole.
pub fn zeros(shape: [usize; 4], dtype: DType) -> Result<Tensor> {
    let (len, shape) = (shape.iter().product(), shape.as_slice());
    let halves = || {
        let mut bits = vec![0_u16; len];
        prefer_huge_pages(&mut bits);
        bits
    };
    match dtype {
        DType::F32 => {
            let mut cache = vec![0_f32; len];
            prefer_huge_pages(&mut cache);
            Ok(Tensor::from_vec(cache, shape, &Device::Cpu)?)
        }
        DType::F16 => {
            Ok(Tensor::from_vec(halves().reinterpret_into::<f16>(), shape, &Device::Cpu)?)
        }
        DType::BF16 => {
            Ok(Tensor::from_vec(halves().reinterpret_into::<bf16>(), shape, &Device::Cpu)?)
        }
        found => {
            let (argument, expected) = ("cache", "f32, f16 or bf16");
            Err(KernelError::DType { argument, expected, found })
        }
    }
}

/// Writes `k` and `v` `[T, K, D]` into the caches `[N, K, B, D]`, in place; token t goes to slot
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
    let [blocks, kv_heads, block_size, head_size] =
        view::dims(cache_k, "cache_k", ["N", "K", "B", "D"])?;
    view::shape(cache_v, "cache_v", cache_k.dims())?;
    let [tokens, _, _] = view::dims(k, "k", ["T", "K", "D"])?;
    view::shape(k, "k", &[tokens, kv_heads, head_size])?;
    view::shape(v, "v", &[tokens, kv_heads, head_size])?;
    view::len("slot_mapping", tokens, slot_mapping.len())?;
    view::indices("slot_mapping", slot_mapping, blocks * block_size)?;
    Locked::new(cache_k, "cache_k")?.floats()?;
    Locked::new(cache_v, "cache_v")?.floats()?;
    Locked::new(k, "k")?.rows()?;
    Locked::new(v, "v")?.rows()?;
    match cache_k.device() {
        Device::Cpu => {
            cache_k.inplace_op2(k, &Write { slot_mapping })?;
            cache_v.inplace_op2(v, &Write { slot_mapping })?;
            Ok(())
        }
        device => Err(KernelError::device("cache_k", device)),
    }
}

/// [`write`] of one of the two, as candle's in-place operation: candle holds the write lock of the
/// cache and refuses operands that share its memory.
struct Write<'a> {
    slot_mapping: &'a [u32],
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
        let geometry = cpu::Geometry::of(cache_layout);
        let x = view::rows(x, x_layout, "x").map_err(candle_core::Error::wrap)?;
        let start = cache_layout.start_offset();
        match cache {
            CpuStorage::F32(cache) => {
                cpu::write(&mut cache[start..], geometry, x, self.slot_mapping);
            }
            CpuStorage::F16(cache) => {
                cpu::write(&mut cache[start..], geometry, x, self.slot_mapping);
            }
            CpuStorage::BF16(cache) => {
                cpu::write(&mut cache[start..], geometry, x, self.slot_mapping);
            }
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

    #[test]
    fn each_token_lands_in_its_slot_and_nothing_else_changes() {
        for dtype in DTYPES {
            for [blocks, kv_heads, block_size, head_size] in
                [[1, 1, 1, 1], [5, 3, 7, 33], [4, 2, 16, 257]]
            {
                let slots = blocks * block_size;
                let mapping: Vec<u32> = (0..slots as u32).rev().step_by(3).collect();
                let shape = [mapping.len(), kv_heads, head_size];
                let k = random_tensor(1, &shape, DType::F32);
                let v = random_tensor(2, &shape, DType::F32);
                let shape = [blocks, kv_heads, block_size, head_size];
                let cache_k = random_tensor(3, &shape, dtype);
                let cache_v = random_tensor(4, &shape, dtype);
                let (mut expected_k, mut expected_v) = (values(&cache_k), values(&cache_v));
                write(&cache_k, &cache_v, &k, &strided(&v), &mapping).unwrap();
                let geometry = [kv_heads, block_size, head_size];
                for (expected, x) in [(&mut expected_k, &k), (&mut expected_v, &v)] {
                    let rounded = values(&x.to_dtype(dtype).unwrap());
                    reference::write(expected, geometry, &rounded, &mapping);
                }
                assert_eq!(values(&cache_k), expected_k, "{dtype:?}");
                assert_eq!(values(&cache_v), expected_v, "{dtype:?}");
            }
        }
    }

    #[test]
    fn of_two_tokens_in_one_slot_the_later_stays() {
        let cache = |seed| random_tensor(seed, &[2, 1, 2, 1], DType::F32);
        let (cache_k, cache_v) = (cache(1), cache(2));
        let k = Tensor::new(&[[[1f32]], [[2.0]]], &Device::Cpu).unwrap();
        write(&cache_k, &cache_v, &k, &k, &[3, 3]).unwrap();
        assert_eq!((values(&cache_k)[3], values(&cache_v)[3]), (2.0, 2.0));
    }

    #[test]
    fn wrong_arguments_are_named_and_nothing_is_written() {
        let cache = |dtype| random_tensor(1, &[3, 2, 4, 5], dtype);
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
            write(&k, &k, &[0, 12]),
            "slot_mapping[1]: expected an index below 12, found 12",
        );
        assert_error(write(&k, &k, &[0]), "slot_mapping: expected 2 entries, found 1");
        assert_error(write(&k, &short, &[0, 1]), "v: expected shape [2, 2, 5], found [1, 2, 5]");
        assert_error(
            write(&k, &turned, &[0, 1]),
            "v: expected rows that are contiguous, found shape [2, 2, 5] with strides [10, 1, 2]",
        );
        assert_error(
            super::write(&cache_k, &permuted, &k, &k, &[0, 1]),
            "cache_v: expected a contiguous tensor, found shape [3, 2, 4, 5] with strides [5, 15, 30, 1]",
        );
        assert_error(
            super::write(&cache_k, &integers, &k, &k, &[0, 1]),
            "cache_v: expected dtype f32, f16 or bf16, found I64",
        );
        assert_eq!((values(&cache_k), values(&cache_v)), before);
    }

    #[test]
    fn keys_that_are_part_of_the_cache_are_refused() {
        let cache_k = random_tensor(1, &[3, 2, 4, 5], DType::F32);
        let cache_v = random_tensor(1, &[3, 2, 4, 5], DType::F32);
        let part = cache_k.narrow(2, 0, 1).unwrap().squeeze(2).unwrap();
        assert!(write(&cache_k, &cache_v, &part, &part, &[0, 1, 2]).is_err());
    }
}
