//! Embedding on the CPU: one copy per token, widened on the way.

use crate::element::Element;
use crate::view::Floats;

/// `table [V, hidden]`, ids below V; gives `[T, hidden]`.
pub(super) fn embedding(table: Floats<'_>, ids: &[u32], hidden: usize) -> Vec<f32> {
    match table {
        Floats::F32(table) => gather(table, ids, hidden),
        Floats::F16(table) => gather(table, ids, hidden),
        Floats::Bf16(table) => gather(table, ids, hidden),
    }
}

fn gather<E: Element>(table: &[E], ids: &[u32], hidden: usize) -> Vec<f32> {
    let mut out = vec![0.0; ids.len() * hidden];
    for (&id, out) in ids.iter().zip(out.chunks_exact_mut(hidden.max(1))) {
        E::widen(&table[id as usize * hidden..][..hidden], out);
    }
    out
}
