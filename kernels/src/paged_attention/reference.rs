//! Attention of one row as its formula says, in f64, over a context that is not paged.

use super::AttentionParams;
use crate::testing::values;

/// `q [n, H, D]` at the last n positions of `k`, `v [context, K, D]`; gives `[n, H, D]`.
pub(super) fn attention(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    [heads, kv_heads, head_size]: [usize; 3],
    params: &AttentionParams<'_>,
) -> Vec<f32> {
    let (n, context) = (q.len() / (heads * head_size), k.len() / (kv_heads * head_size));
    let sinks = params.sinks.map(values);
    let mut out = Vec::new();
    for i in 0..n {
        let position = context - n + i;
        let first = params.window.map_or(0, |w| (position + 1).saturating_sub(w as usize));
        for head in 0..heads {
            let q = &q[(i * heads + head) * head_size..][..head_size];
            let kv_head = head / (heads / kv_heads);
            let at = |j: usize, i: usize| (j * kv_heads + kv_head) * head_size + i;
            let score = |j: usize| {
                let dot: f64 =
                    (0..head_size).map(|i| f64::from(q[i]) * f64::from(k[at(j, i)])).sum();
                let score = dot * f64::from(params.scale);
                params.softcap.map_or(score, |c| f64::from(c) * (score / f64::from(c)).tanh())
            };
            let scores: Vec<f64> = (first..=position).map(score).collect();
            let sink = sinks.as_ref().map(|sinks| f64::from(sinks[head]));
            let max = scores.iter().copied().chain(sink).fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
            let total: f64 = weights.iter().chain(&sink.map(|s| (s - max).exp())).sum();
            for i in 0..head_size {
                let mixed: f64 =
                    (first..=position).map(|j| weights[j - first] * f64::from(v[at(j, i)])).sum();
                out.push((mixed / total) as f32);
            }
        }
    }
    out
}
