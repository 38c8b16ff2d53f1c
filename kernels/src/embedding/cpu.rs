//! Embedding on the CPU: one copy per token, widened on the way.

use crate::element::Element;
use crate::parallel;
use crate::view::Floats;

/// What a row that lies in panels costs for each element: every second one is in another line of
/// the cache.
const PACKED_NS: usize = 2;

/// `table [V, hidden]`, ids below V, out `[T, hidden]`.
pub(super) fn embedding(table: Floats<'_>, ids: &[u32], hidden: usize, out: &mut [f32]) {
    match table {
        Floats::F32(table) => gather(table, ids, hidden, out),
        Floats::F16(table) => gather(table, ids, hidden, out),
        Floats::Bf16(table) => gather(table, ids, hidden, out),
    }
}

fn gather<E: Element>(table: &[E], ids: &[u32], hidden: usize, out: &mut [f32]) {
    for (&id, out) in ids.iter().zip(out.chunks_exact_mut(hidden.max(1))) {
        E::widen(&table[id as usize * hidden..][..hidden], out);
    }
}

/// The rows of a table that lies in panels, which `read` writes; out `[T, hidden]`.
pub(super) fn embedding_packed(
    ids: &[u32],
    hidden: usize,
    read: impl Fn(usize, &mut [f32]) + Sync,
    out: &mut [f32],
) {
    parallel::for_rows(out, hidden, PACKED_NS * ids.len() * hidden, |first, out| {
        for (&id, out) in ids[first..].iter().zip(out.chunks_exact_mut(hidden)) {
            read(id as usize, out);
        }
    });
}

/// Multiplies all of `x` by a factor, if there is one.
pub(super) fn scale(x: &mut [f32], factor: Option<f32>) {
    if let Some(factor) = factor {
        x.iter_mut().for_each(|x| *x *= factor);
    }
}
