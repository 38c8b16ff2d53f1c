//! A product whose result goes through a gated activation, on the CPU: where there are many rows, the
//! columns of a piece meet their gates while both are in the cache of the thread that computed them,
//! so that neither is written to memory.

use super::cpu::{self, Part, Product, Sources};
use crate::activation::Activation;
use crate::activation::cpu::{Gate, gated as gate};
use crate::parallel::{self, Disjoint};
use crate::scratch::Aligned;
use crate::simd::{LANES, Level};
use crate::view::Rows;

/// Fewer rows than these take as long as reading w does, which is quickest from its first column to
/// its last; then all that they give stays in a cache, too.
const MANY_ROWS: usize = 24;

/// One product, of `2 * half` columns, gates first; out `[T, half]`.
pub(super) fn gated(
    x: Rows<'_>,
    product: &Product<'_>,
    act: Activation,
    half: usize,
    out: &mut [f32],
) {
    if out.is_empty() {
        return;
    }
    if x.count < MANY_ROWS {
        let mut both = Aligned::new(x.count * 2 * half);
        cpu::linear(x, product, 2 * half, &mut both);
        let both = Rows { data: &both, stride: 2 * half, len: 2 * half, count: x.count };
        return gate(both, act, out);
    }
    let sources = Sources::new(x);
    let operands = sources.operands(product);
    let strips = operands.strips(2 * half);
    let nanoseconds = strips.count * strips.nanoseconds;
    // Of either half.
    let columns = strips.in_piece().div_ceil(2) * strips.columns;
    let (out, level) = (Disjoint::new(out), Level::current());
    parallel::for_pieces(half.div_ceil(columns), nanoseconds, |piece| {
        let gates = piece * columns..((piece + 1) * columns).min(half);
        // A part begins with a strip, which the second half need not do.
        let before = (half + gates.start) % strips.columns;
        let ups = half + gates.start - before..half + gates.end;
        let first = gates.len().next_multiple_of(LANES);
        let stride = (first + ups.len()).next_multiple_of(LANES);
        let mut both = Aligned::<f32>::new(x.count * stride);
        let to = Disjoint::new(&mut both);
        for (columns, start) in [(gates.clone(), 0), (ups, first)] {
            operands.run(Part { columns, bias: product.bias, out: &to, start, stride });
        }
        let rows =
            |start: usize| Rows { data: &both[start..], stride, len: gates.len(), count: x.count };
        let (gate, up) = (rows(0), rows(first + before));
        level.run(Gate { gate, up, act, out: &out, start: gates.start, stride: half });
    });
}
