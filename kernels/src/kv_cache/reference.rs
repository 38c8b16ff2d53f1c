//! The write into the paged cache as its formula says.

/// `cache [N, K, B, D]` (`[_, kv_heads, block_size, head_size]`), `x [T, K, D]`.
pub(super) fn write(
    cache: &mut [f32],
    [kv_heads, block_size, head_size]: [usize; 3],
    x: &[f32],
    slot_mapping: &[u32],
) {
    for (t, &slot) in slot_mapping.iter().enumerate() {
        let (block, offset) = (slot as usize / block_size, slot as usize % block_size);
        for head in 0..kv_heads {
            for i in 0..head_size {
                let to = ((block * kv_heads + head) * block_size + offset) * head_size + i;
                cache[to] = x[(t * kv_heads + head) * head_size + i];
            }
        }
    }
}
