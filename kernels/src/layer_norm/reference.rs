//! Layer norm as its formula says, in f64.

/// `x [.., hidden]`, `weight [hidden]`, `bias [hidden]`; gives x's shape.
pub(super) fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], eps: f32) -> Vec<f32> {
    let hidden = weight.len();
    let mut out = Vec::new();
    for row in x.chunks_exact(hidden) {
        let mean = row.iter().map(|&x| f64::from(x)).sum::<f64>() / hidden as f64;
        let squares: f64 = row.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum();
        let deviation = (squares / hidden as f64 + f64::from(eps)).sqrt();
        for i in 0..hidden {
            let normal = (f64::from(row[i]) - mean) / deviation;
            out.push((normal * f64::from(weight[i]) + f64::from(bias[i])) as f32);
        }
    }
    out
}
