//! Embedding as its formula says.

/// `table [V, hidden]`; gives `[T, hidden]`.
pub(super) fn embedding(table: &[f32], ids: &[u32], hidden: usize) -> Vec<f32> {
    let mut out = Vec::new();
    for &id in ids {
        for i in 0..hidden {
            out.push(table[id as usize * hidden + i]);
        }
    }
    out
}
