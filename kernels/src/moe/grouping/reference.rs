//! Gather and combine as their formulas say, with the rows found by a stable sort.

use crate::moe::Routes;

/// The entries of `routes`, `t * top_k + k`, in the order of their rows.
fn sorted(routes: &Routes) -> Vec<usize> {
    let mut entries: Vec<usize> = (0..routes.experts.len()).collect();
    entries.sort_by_key(|&i| routes.experts[i]);
    entries
}

/// `x [T, hidden]`; gives `[T * top_k, hidden]`.
pub(super) fn gather(x: &[f32], hidden: usize, routes: &Routes) -> Vec<f32> {
    let row = |i: usize| &x[i / routes.top_k * hidden..][..hidden];
    sorted(routes).into_iter().flat_map(row).copied().collect()
}

/// `y [T * top_k, hidden]`; gives `[T, hidden]`.
pub(super) fn combine(y: &[f32], hidden: usize, routes: &Routes) -> Vec<f32> {
    let mut out = vec![0.0; routes.experts.len() / routes.top_k * hidden];
    for (row, i) in sorted(routes).into_iter().enumerate() {
        for h in 0..hidden {
            let part = f64::from(routes.weights[i]) * f64::from(y[row * hidden + h]);
            out[i / routes.top_k * hidden + h] += part;
        }
    }
    out.into_iter().map(|x: f64| x as f32).collect()
}
