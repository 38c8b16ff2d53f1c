//! Grouping on the CPU: each row is read once per expert of its token, and written once.

use crate::parallel;
use crate::view::Rows;

/// The rows `tokens` of x, one after the other.
pub(super) fn gather(x: Rows<'_>, tokens: &[u32]) -> Vec<f32> {
    let mut out = vec![0.0; tokens.len() * x.len];
    // Some 8 elements per nanosecond.
    let nanoseconds = out.len() / 8;
    parallel::for_rows(&mut out, x.len, nanoseconds, |first, out| {
        for (out, &token) in out.chunks_exact_mut(x.len).zip(&tokens[first..]) {
            out.copy_from_slice(x.row(token as usize));
        }
    });
    out
}

/// `rows [T * top_k]` of y, times `weights [T * top_k]`, added up for each token.
pub(super) fn combine(y: Rows<'_>, rows: &[u32], weights: &[f32], top_k: usize) -> Vec<f32> {
    let mut out = vec![0.0; rows.len() / top_k * y.len];
    // Some 4 elements of y per nanosecond.
    let nanoseconds = rows.len() * y.len / 4;
    parallel::for_rows(&mut out, y.len, nanoseconds, |first, out| {
        for (t, out) in out.chunks_exact_mut(y.len).enumerate() {
            // The k-th expert of token `first + t`.
            for i in (first + t) * top_k..(first + t + 1) * top_k {
                let (row, weight) = (y.row(rows[i] as usize), weights[i]);
                for (out, y) in out.iter_mut().zip(row) {
                    *out += weight * y;
                }
            }
        }
    });
    out
}
