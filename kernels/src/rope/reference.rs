//! Rotary positions as the formula says, in f64 from the angles on.

use super::RopeStyle;

/// `x [T, H, head_size]` with `T = positions.len()`; gives x's shape.
pub(super) fn rope(
    x: &[f32],
    inv_freq: &[f64],
    style: RopeStyle,
    positions: &[u32],
    head_size: usize,
) -> Vec<f32> {
    let mut out = x.to_vec();
    let heads = x.len() / positions.len() / head_size;
    for (t, &position) in positions.iter().enumerate() {
        for head in 0..heads {
            let start = (t * heads + head) * head_size;
            for (i, frequency) in inv_freq.iter().enumerate() {
                let (first, second) = match style {
                    RopeStyle::Half => (start + i, start + i + inv_freq.len()),
                    RopeStyle::Interleaved => (start + 2 * i, start + 2 * i + 1),
                };
                let (sin, cos) = (f64::from(position) * frequency).sin_cos();
                let (a, b) = (f64::from(x[first]), f64::from(x[second]));
                out[first] = (a * cos - b * sin) as f32;
                out[second] = (b * cos + a * sin) as f32;
            }
        }
    }
    out
}
