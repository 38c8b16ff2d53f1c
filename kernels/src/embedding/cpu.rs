//! Embedding on the CPU: one copy per token, widened on the way.

use crate::element::Element;
use crate::linear::Packed;
use crate::parallel;
use crate::view::Floats;

/// What a row that lies in panels costs for each element: every second one is in another line of
/// the cache.
const PACKED_NS: usize = 2;

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

/// `table [V, hidden]`, ids below V; gives `[T, hidden]`.
pub(super) fn embedding_packed(table: &Packed, ids: &[u32], hidden: usize) -> Vec<f32> {
    let mut out = vec![0.0; ids.len() * hidden];
    parallel::for_rows(&mut out, hidden, PACKED_NS * ids.len() * hidden, |first, out| {
        for (&id, out) in ids[first..].iter().zip(out.chunks_exact_mut(hidden)) {
            table.row(id as usize, out);
        }
    });
    out
}
