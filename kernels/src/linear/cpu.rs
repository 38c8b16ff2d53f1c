//! Linear on the CPU: products are cut into parts, some columns each, and threads share out the
//! parts, each of which goes through its own rows of w once. Several products, those of a layer's
//! experts, are cut together: threads are woken once for all of them.

use std::cell::OnceCell;
use std::ops::Range;

use super::packed::Packed;
use super::panels::Inputs;
use super::{dense, panels};
use crate::parallel;
use crate::simd::Level;
use crate::simd::pairs::COLUMNS;
use crate::threads;
use crate::view::{Floats, Rows};

/// Handing out a piece of work costs some microseconds: a piece takes at least so long, as long as
/// there is one for each thread.
const PIECE_NS: usize = 100_000;

/// At most so many pieces for each thread: they even out what threads are otherwise busy with.
const PIECES_PER_THREAD: usize = 4;

/// Some rows of x times all of w.
pub(super) struct Product<'a> {
    pub(super) rows: Range<usize>,
    pub(super) w: Matrix<'a>,
    /// `[N]`.
    pub(super) bias: Option<&'a [f32]>,
}

/// `[N, K]`.
pub(super) enum Matrix<'a> {
    /// As it was stored.
    Dense(Floats<'a>),
    /// bf16, in panels.
    Packed(&'a Packed),
}

/// Some columns of a product.
pub(super) struct Part<'a> {
    /// Of the product.
    pub(super) first: usize,
    /// `[N]`, for all columns of the product.
    pub(super) bias: Option<&'a [f32]>,
    /// `[rows of the product][columns]`.
    pub(super) out: Vec<&'a mut [f32]>,
}

/// Products of one N, `out_features`, whose rows follow each other and are all of x; out `[T, N]`.
pub(super) fn linear(x: Rows<'_>, products: &[Product<'_>], out_features: usize, out: &mut [f32]) {
    if out.is_empty() {
        return;
    }
    let inputs = OnceCell::new();
    let operands: Vec<Operands<'_>> = products
        .iter()
        .map(|Product { rows, w, .. }| match *w {
            Matrix::Dense(w) => Operands::Dense(dense::Operands { x: x.part(rows.clone()), w }),
            Matrix::Packed(w) => {
                let x = inputs.get_or_init(|| Inputs::new(x));
                Operands::Packed(panels::Operands { x, rows: (rows.start, rows.len()), w })
            }
        })
        .collect();
    let strips: Vec<Strips> =
        operands.iter().map(|operands| operands.strips(out_features)).collect();
    let nanoseconds = strips.iter().map(|strips| strips.count * strips.nanoseconds).sum();
    let mut pieces: Vec<Vec<(Operands<'_>, Part<'_>)>> = Vec::new();
    let mut rest = out;
    for (i, cuts) in cut(&strips, num_pieces(nanoseconds)).into_iter().enumerate() {
        let bias = products[i].bias;
        let (own, after) = rest.split_at_mut(products[i].rows.len() * out_features);
        rest = after;
        let widths: Vec<usize> =
            cuts.iter().map(|cut| cut.strips.len() * strips[i].columns).collect();
        for (cut, out) in cuts.iter().zip(split_columns(own, out_features, &widths)) {
            pieces.resize_with(pieces.len().max(cut.piece + 1), Vec::new);
            let first = cut.strips.start * strips[i].columns;
            pieces[cut.piece].push((operands[i], Part { first, bias, out }));
        }
    }
    let level = Level::current();
    parallel::for_each(pieces, nanoseconds, |parts| {
        for (operands, part) in parts {
            match operands {
                Operands::Dense(operands) => level.run(dense::Block { operands, part }),
                Operands::Packed(operands) => panels::Block { operands, part }.run(),
            }
        }
    });
}

/// What a product reads.
#[derive(Clone, Copy)]
enum Operands<'a> {
    Dense(dense::Operands<'a>),
    Packed(panels::Operands<'a>),
}

/// The columns of a product, as many together as are computed together.
struct Strips {
    count: usize,
    columns: usize,
    /// An estimate of the time that one thread takes for one; not 0.
    nanoseconds: usize,
}

impl Operands<'_> {
    fn strips(&self, out_features: usize) -> Strips {
        let (columns, nanoseconds) = match self {
            Self::Dense(operands) => (dense::COLUMNS, operands.nanoseconds(out_features)),
            Self::Packed(operands) => (COLUMNS, operands.nanoseconds()),
        };
        let count = out_features.div_ceil(columns);
        Strips { count, columns, nanoseconds: nanoseconds.max(1) }
    }
}

/// How many pieces are made of work that one thread does in `nanoseconds`.
fn num_pieces(nanoseconds: usize) -> usize {
    if !parallel::is_worth_it(nanoseconds) {
        return 1;
    }
    let threads = threads::count();
    threads * (nanoseconds / (threads * PIECE_NS)).clamp(1, PIECES_PER_THREAD)
}

/// Strips of one product that belong to one piece.
#[derive(Debug, PartialEq)]
struct Cut {
    piece: usize,
    strips: Range<usize>,
}

/// Shares out the strips of all products among `pieces` that take equally long: for each product,
/// its cuts from its first strip to its last.
fn cut(products: &[Strips], pieces: usize) -> Vec<Vec<Cut>> {
    let total: usize = products.iter().map(|strips| strips.count * strips.nanoseconds).sum();
    let mut before = 0;
    let mut all = Vec::with_capacity(products.len());
    for &Strips { count, nanoseconds, .. } in products {
        let (mut cuts, mut start) = (Vec::new(), 0);
        while start < count {
            // A strip belongs to the piece in whose time it begins.
            let piece = (before + start * nanoseconds) * pieces / total;
            let piece_end = ((piece + 1) * total).div_ceil(pieces);
            let end = (piece_end - before).div_ceil(nanoseconds).min(count);
            cuts.push(Cut { piece, strips: start..end });
            start = end;
        }
        before += count * nanoseconds;
        all.push(cuts);
    }
    all
}

/// Cuts the columns of `out`, `[T, out_features]`, into blocks of these widths, the last of which
/// may be narrower: for each block, its part of each row.
fn split_columns<'a>(
    out: &'a mut [f32],
    out_features: usize,
    widths: &[usize],
) -> Vec<Vec<&'a mut [f32]>> {
    let tokens = out.len() / out_features;
    let mut blocks: Vec<_> = widths.iter().map(|_| Vec::with_capacity(tokens)).collect();
    for mut row in out.chunks_exact_mut(out_features) {
        for (block, &width) in blocks.iter_mut().zip(widths) {
            let (part, rest) = row.split_at_mut(width.min(row.len()));
            block.push(part);
            row = rest;
        }
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Products of so many strips that take so long each; gives how long each piece takes.
    fn check(products: &[(usize, usize)], pieces: usize) -> Vec<usize> {
        let strips = |&(count, nanoseconds)| Strips { count, columns: 1, nanoseconds };
        let cuts = cut(&products.iter().map(strips).collect::<Vec<_>>(), pieces);
        let mut times = vec![0; pieces];
        for (cuts, &(count, nanoseconds)) in cuts.iter().zip(products) {
            let strips: Vec<usize> = cuts.iter().flat_map(|cut| cut.strips.clone()).collect();
            assert_eq!(strips, (0..count).collect::<Vec<_>>(), "each strip once, in order");
            assert!(cuts.iter().all(|cut| !cut.strips.is_empty()));
            cuts.iter().for_each(|cut| times[cut.piece] += cut.strips.len() * nanoseconds);
        }
        times
    }

    #[test]
    fn pieces_take_equally_long_but_for_one_strip() {
        assert_eq!(check(&[(32, 7)], 2), [112, 112]);
        assert_eq!(check(&[(33, 7)], 2), [119, 112]);
        assert_eq!(check(&[(10, 5)], 4), [15, 10, 15, 10]);
        assert_eq!(check(&[(1, 5)], 2), [5, 0]);
        assert_eq!(check(&[(4, 10), (4, 30)], 2), [100, 60]);
        assert_eq!(check(&[(8, 1), (0, 9), (8, 1), (8, 1)], 3), [8, 8, 8]);
    }
}
