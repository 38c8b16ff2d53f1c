//! The write into the paged cache as its formula says.

use super::Part;

/// `cache [N, K, B / 16, 16 * D]` in steps of `step`, `x [T, K, head_size]`.
pub(super) fn write(
    (cache, part, step): (&mut [f32], Part, usize),
    [kv_heads, block_size, head_size]: [usize; 3],
    x: &[f32],
    slot_mapping: &[u32],
) {
    let size = head_size.div_ceil(16) * 16;
    for (t, &slot) in slot_mapping.iter().enumerate() {
        let (block, offset) = (slot as usize / block_size, slot as usize % block_size);
        for head in 0..kv_heads {
            let group = (block * kv_heads + head) * (block_size / 16) + offset / 16;
            for d in 0..size {
                let o = offset % 16;
                let at = match part {
                    Part::Keys => ((d / step) * 16 + o) * step + d % step,
                    Part::Values => ((o / step) * size + d) * step + o % step,
                };
                cache[group * 16 * size + at] =
                    if d < head_size { x[(t * kv_heads + head) * head_size + d] } else { 0.0 };
            }
        }
    }
}
