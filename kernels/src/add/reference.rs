//! Add as its formula says.

/// `x` and `y` of one length.
pub(super) fn add(x: &[f32], y: &[f32]) -> Vec<f32> {
    (0..x.len()).map(|i| x[i] + y[i]).collect()
}
