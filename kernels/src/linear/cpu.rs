//! Linear on the CPU: products are cut into parts, some columns each, and threads share out the
//! parts, each of which goes through its own rows of w once. Several products, those of a layer's
//! experts, are cut together: threads are woken once for all of them.

use std::cell::OnceCell;
use std::ops::Range;

use super::packed::Packed;
use super::panels::Inputs;
use super::quantized::Quantized;
use super::{dense, integers, panels};
use crate::parallel::{self, Disjoint};
use crate::simd::pairs::COLUMNS;
use crate::simd::{LANES, Level};
use crate::threads;
use crate::view::{Floats, Rows};

/// A piece takes at least so long, as long as there is one for each thread: taking one costs some ten
/// nanoseconds. As a thread's pieces follow each other, they are read from memory as one run.
const PIECE_NS: usize = 4_000;

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
    /// In 8 or in 4 bits, in panels.
    Quantized(&'a Quantized),
}

/// Some columns of a product, which are those of one thread.
pub(super) struct Part<'a> {
    /// Of the product.
    pub(super) columns: Range<usize>,
    /// `[N]`, for all columns of the product.
    pub(super) bias: Option<&'a [f32]>,
    pub(super) out: &'a Disjoint<'a, f32>,
    /// Where in `out` this part's first element goes, and how far apart its rows are.
    pub(super) start: usize,
    pub(super) stride: usize,
}

impl Part<'_> {
    /// What this part has of row `t` of the product.
    #[inline(always)]
    pub(super) fn row(&mut self, t: usize) -> &mut [f32] {
        let start = self.start + t * self.stride;
        // SAFETY: parts differ in their columns or in their rows, and while this one is borrowed
        // it gives out no other.
        #[allow(unsafe_code)] // Columns of one matrix, which the compiler cannot see apart.
        unsafe {
            self.out.part(start..start + self.columns.len())
        }
    }

    /// Where row `t` and column `first` of the part go, if it has such a column.
    #[inline(always)]
    pub(super) fn address(&self, t: usize, first: usize) -> *const u8 {
        self.out.address(self.start + t * self.stride + first).cast()
    }

    /// Writes the sums of row `t` and sixteen columns, from column `first` of the part on, as far as
    /// there are such columns.
    #[inline(always)]
    pub(super) fn write(&mut self, (t, first): (usize, usize), sums: &[f32; LANES]) {
        let (bias, column) = (self.bias, self.columns.start + first);
        let Some(out) = self.row(t).get_mut(first..) else { return };
        let bias = bias.map(|bias| &bias[column..]);
        match (out.first_chunk_mut::<LANES>(), bias) {
            (Some(out), None) => *out = *sums,
            (Some(out), Some(bias)) => {
                for ((out, sum), bias) in out.iter_mut().zip(sums).zip(&bias[..LANES]) {
                    *out = sum + bias;
                }
            }
            (None, bias) => {
                for (i, out) in out.iter_mut().enumerate() {
                    *out = sums[i] + bias.map_or(0.0, |bias| bias[i]);
                }
            }
        }
    }
}

/// What the products of a call read: x in the forms that they want.
pub(super) struct Sources<'a> {
    x: Rows<'a>,
    rounded: OnceCell<Inputs>,
    quantized: integers::Inputs<'a>,
}

/// One product, `w` and `bias` against its rows of x; out `[T, N]`.
pub(super) fn linear(x: Rows<'_>, product: &Product<'_>, out_features: usize, out: &mut [f32]) {
    if out.is_empty() {
        return;
    }
    let sources = Sources::new(x);
    let operands = sources.operands(product);
    let strips = operands.strips(out_features);
    let nanoseconds = strips.count * strips.nanoseconds;
    let columns = strips.in_piece() * strips.columns;
    let out = Disjoint::new(out);
    parallel::for_pieces(out_features.div_ceil(columns), nanoseconds, |piece| {
        let start = piece * columns;
        operands.run(Part {
            columns: start..(start + columns).min(out_features),
            bias: product.bias,
            out: &out,
            start,
            stride: out_features,
        });
    });
}

/// Products of one N, `out_features`, whose rows follow each other and are all of x; out `[T, N]`.
pub(super) fn grouped(x: Rows<'_>, products: &[Product<'_>], out_features: usize, out: &mut [f32]) {
    if out.is_empty() {
        return;
    }
    let sources = Sources::new(x);
    let operands: Vec<Operands<'_>> =
        products.iter().map(|product| sources.operands(product)).collect();
    let strips: Vec<Strips> =
        operands.iter().map(|operands| operands.strips(out_features)).collect();
    let nanoseconds = strips.iter().map(|strips| strips.count * strips.nanoseconds).sum();
    let out = Disjoint::new(out);
    let mut pieces: Vec<Vec<(Operands<'_>, Part<'_>)>> = Vec::new();
    for (i, cuts) in cut(&strips, num_pieces(nanoseconds)).into_iter().enumerate() {
        for Cut { piece, strips: range } in cuts {
            pieces.resize_with(pieces.len().max(piece + 1), Vec::new);
            let [start, end] = [range.start, range.end].map(|strip| strip * strips[i].columns);
            let part = Part {
                columns: start..end.min(out_features),
                bias: products[i].bias,
                out: &out,
                start: products[i].rows.start * out_features + start,
                stride: out_features,
            };
            pieces[piece].push((operands[i], part));
        }
    }
    parallel::for_each(pieces, nanoseconds, |parts| {
        parts.into_iter().for_each(|(operands, part)| operands.run(part));
    });
}

impl<'a> Sources<'a> {
    pub(super) fn new(x: Rows<'a>) -> Self {
        Self { x, rounded: OnceCell::new(), quantized: integers::Inputs::new(x) }
    }

    pub(super) fn operands(&'a self, Product { rows, w, .. }: &Product<'a>) -> Operands<'a> {
        let (x, range) = (self.x, (rows.start, rows.len()));
        match *w {
            Matrix::Dense(w) => {
                let x = x.part(rows.clone());
                Operands::Dense(dense::Operands { x, w }, Level::current())
            }
            Matrix::Packed(w) => {
                let x = self.rounded.get_or_init(|| Inputs::new(x));
                Operands::Packed(panels::Operands { x, rows: range, w })
            }
            Matrix::Quantized(w) => {
                Operands::Quantized(integers::Operands::new(&self.quantized, range, w))
            }
        }
    }
}

/// What a product reads.
#[derive(Clone, Copy)]
pub(super) enum Operands<'a> {
    Dense(dense::Operands<'a>, Level),
    Packed(panels::Operands<'a>),
    Quantized(integers::Operands<'a>),
}

/// The columns of a product, as many together as are computed together.
pub(super) struct Strips {
    pub(super) count: usize,
    pub(super) columns: usize,
    /// An estimate of the time that one thread takes for one; not 0.
    pub(super) nanoseconds: usize,
}

impl Strips {
    /// How many of them one thread computes at a time.
    pub(super) fn in_piece(&self) -> usize {
        let share = self.count.div_ceil(threads::count()).max(1);
        PIECE_NS.div_ceil(self.nanoseconds).min(share)
    }
}

impl Operands<'_> {
    pub(super) fn strips(&self, out_features: usize) -> Strips {
        let (columns, nanoseconds) = match self {
            Self::Dense(operands, _) => (dense::COLUMNS, operands.nanoseconds(out_features)),
            Self::Packed(operands) => (COLUMNS, operands.nanoseconds()),
            Self::Quantized(operands) => (COLUMNS, operands.nanoseconds()),
        };
        let count = out_features.div_ceil(columns);
        Strips { count, columns, nanoseconds: nanoseconds.max(1) }
    }

    /// Computes a part.
    pub(super) fn run(self, part: Part<'_>) {
        match self {
            Self::Dense(operands, level) => level.run(dense::Block { operands, part }),
            Self::Packed(operands) => panels::Block { operands, part }.run(),
            Self::Quantized(operands) => integers::Product { operands, part }.run(),
        }
    }
}

/// How many pieces are made of products that one thread does in `nanoseconds`: larger ones than of a
/// single product, as each has a list of its parts.
fn num_pieces(nanoseconds: usize) -> usize {
    if !parallel::is_worth_it(nanoseconds) {
        return 1;
    }
    (nanoseconds / (4 * PIECE_NS)).max(threads::count())
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
