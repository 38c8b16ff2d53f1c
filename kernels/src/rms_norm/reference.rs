//! RMS norm as its formula says, in f64.

/// `x [.., hidden]`, `weight [hidden]`; gives x's shape.
pub(super) fn rms_norm(x: &[f32], weight: &[f32], eps: f32) -> Vec<f32> {
    let hidden = weight.len();
    let mut out = Vec::new();
    for row in x.chunks_exact(hidden) {
        let squares: f64 = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        let scale = 1.0 / (squares / hidden as f64 + f64::from(eps)).sqrt();
        for (&x, &weight) in row.iter().zip(weight) {
            out.push((f64::from(x) * scale * f64::from(weight)) as f32);
        }
    }
    out
}
