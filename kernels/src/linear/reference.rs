//! Linear as its formula says, in f64.

/// `x [T, in_features]`, `w [N, in_features]`, `bias [N]` or empty; gives `[T, N]`.
pub(super) fn linear(x: &[f32], w: &[f32], bias: &[f32], in_features: usize) -> Vec<f32> {
    let mut out = Vec::new();
    for x_row in x.chunks_exact(in_features) {
        for (n, w_row) in w.chunks_exact(in_features).enumerate() {
            let mut sum = f64::from(bias.get(n).copied().unwrap_or(0.0));
            for (&x, &w) in x_row.iter().zip(w_row) {
                sum += f64::from(x) * f64::from(w);
            }
            out.push(sum as f32);
        }
    }
    out
}
