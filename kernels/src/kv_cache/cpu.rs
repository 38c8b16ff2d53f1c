//! The write into the paged cache on the CPU: one narrowing copy per token and kv head.

use candle_core::Layout;

use crate::element::Element;
use crate::view::Rows;

/// The inner dimensions of a cache.
#[derive(Clone, Copy)]
pub(super) struct Geometry {
    kv_heads: usize,
    block_size: usize,
    head_size: usize,
}

impl Geometry {
    /// The dimensions of a cache `[N, K, B, D]`.
    pub(super) fn of(cache: &Layout) -> Self {
        match *cache.dims() {
            [_, kv_heads, block_size, head_size] => Self { kv_heads, block_size, head_size },
            _ => unreachable!("a cache has four dimensions"),
        }
    }
}

/// `cache [N, K, B, D]`, `x [T, K, D]`, one slot per token, below `N * B`.
pub(super) fn write<E: Element>(
    cache: &mut [E],
    Geometry { kv_heads, block_size, head_size }: Geometry,
    x: Rows<'_>,
    slot_mapping: &[u32],
) {
    for (t, &slot) in slot_mapping.iter().enumerate() {
        let (block, offset) = (slot as usize / block_size, slot as usize % block_size);
        for (head, x) in x.row(t).chunks_exact(head_size.max(1)).enumerate() {
            let start = ((block * kv_heads + head) * block_size + offset) * head_size;
            E::narrow(x, &mut cache[start..][..head_size]);
        }
    }
}
