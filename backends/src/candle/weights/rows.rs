//! The rows of a matrix, read one by one and in any order from wherever they are stored.
//!
//! Whoever keeps a matrix in another form than files do (panels, blocks of integers) asks for its
//! rows, in the type that it makes that form of. So no matrix is ever in memory twice, and how it
//! is stored is known here alone: one way to read a row for each way to store it.

use super::element::{Element, convert};
use super::file::Span;
use super::{dummy, mxfp4};
use crate::gguf::blocks::dequantize;
use crate::gguf::{RowOrder, TensorType};
use candle_core::DType;
use millstream_kernels::threads;
use std::slice;

/// Elements that a thread reads at a time.
const SHARE: usize = 1 << 16;

/// Some rows of a tensor, which follow each other in the matrix that is made of them.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) name: String,
    /// What the tensor is; a matrix of just these rows, if it is `None`.
    pub(crate) stack: Option<Stack>,
    /// The first one, counted over all matrices of a stack.
    pub(crate) first: usize,
    /// From one to the next.
    pub(crate) step: usize,
    /// How many.
    pub(crate) rows: usize,
}

/// A tensor that holds several matrices.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stack {
    pub(crate) matrices: usize,
    /// Of each matrix.
    pub(crate) rows: usize,
    pub(crate) order: Order,
}

/// In which order a stack is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// `[matrices, rows, columns]`.
    Rows,
    /// `[matrices, columns, rows]`.
    Columns,
    /// As `Rows`, in MXFP4.
    Mxfp4,
}

impl Part {
    /// A tensor of so many rows.
    pub(crate) fn whole(name: String, rows: usize) -> Self {
        Self { name, stack: None, first: 0, step: 1, rows }
    }
}

impl Stack {
    /// Of one matrix of the tensor `name`, every `step`-th row from `first` on.
    pub(crate) fn part(self, name: &str, matrix: usize, [first, step]: [usize; 2]) -> Part {
        let rows = (self.rows - first).div_ceil(step);
        let first = matrix * self.rows + first;
        Part { name: name.to_owned(), stack: Some(self), first, step, rows }
    }
}

/// A matrix, `[rows, columns]`, as it is stored.
pub(crate) struct Rows {
    pub(crate) columns: usize,
    pub(crate) pieces: Vec<Piece>,
}

/// Rows of one stored matrix: `first`, `first + step` and so on.
pub(crate) struct Piece {
    pub(crate) stored: Stored,
    pub(crate) first: usize,
    pub(crate) step: usize,
    pub(crate) rows: usize,
}

/// A matrix in a file, or one that is made up.
#[derive(Debug)]
pub(crate) enum Stored {
    /// Row after row.
    Rows { span: Span, dtype: DType },
    /// Column after column, of each of several matrices of so many rows.
    Columns { span: Span, dtype: DType, rows: usize },
    /// Row after row, see [`mxfp4`].
    Mxfp4 { blocks: Span, scales: Span },
    /// Row after row, in the order of a GGUF file.
    Gguf { span: Span, kind: TensorType, rows: RowOrder, plus_one: bool },
    /// Random numbers.
    Random(dummy::Pool),
}

impl Rows {
    /// How many rows there are.
    pub(crate) fn count(&self) -> usize {
        self.pieces.iter().map(|piece| piece.rows).sum()
    }

    /// Bytes that all rows are stored in.
    pub(crate) fn num_bytes(&self) -> usize {
        self.pieces.iter().map(|piece| piece.rows * piece.stored.bytes_per_row(self.columns)).sum()
    }

    /// Reads row `n`, for the last time, into `to`, of as many elements as there are columns.
    pub(crate) fn read<T: Element>(&self, n: usize, to: &mut [T]) {
        let (stored, n) = self.place(n);
        stored.read(n, to);
    }

    /// Where row `n` is stored, and as which row.
    pub(super) fn place(&self, n: usize) -> (&Stored, usize) {
        let mut n = n;
        for Piece { stored, first, step, rows } in &self.pieces {
            if n < *rows {
                return (stored, first + n * step);
            }
            n -= rows;
        }
        panic!("row {n} lies behind the last row of the matrix");
    }

    /// All rows, one after the other.
    pub(crate) fn dense<T: Element>(&self) -> Vec<T> {
        let mut out = T::zeros(self.count() * self.columns);
        let columns = self.columns.max(1);
        let share = (SHARE / columns).max(1);
        threads::for_chunks(&mut out, share * columns, |i, out| {
            for (n, row) in (i * share..).zip(out.chunks_mut(columns)) {
                self.read(n, row);
            }
        });
        out
    }

    /// Ends the reading: gives back what could not be given back row by row.
    pub(crate) fn finish(self) {
        for Piece { stored, first, .. } in self.pieces {
            if let Stored::Columns { span, dtype, rows } = stored {
                let matrix = self.columns * rows * dtype.size_in_bytes();
                let start = first / rows * matrix;
                span.give_back(start..start + matrix);
            }
        }
    }
}

impl Stored {
    /// The same, where it is stored column after column, in matrices of so many rows.
    pub(crate) fn by_columns(self, rows: usize) -> Self {
        match self {
            Self::Rows { span, dtype } => Self::Columns { span, dtype, rows },
            other => other,
        }
    }

    /// Whether its rows are stored in another order.
    pub(crate) fn reorders(&self) -> bool {
        matches!(self, Self::Gguf { rows, .. } if *rows != RowOrder::AsIs)
    }

    fn bytes_per_row(&self, columns: usize) -> usize {
        match self {
            Self::Rows { dtype, .. } | Self::Columns { dtype, .. } => {
                columns * dtype.size_in_bytes()
            }
            Self::Mxfp4 { .. } => columns / mxfp4::BLOCK * (mxfp4::BLOCK_BYTES + 1),
            Self::Gguf { kind, .. } => kind.num_bytes(columns),
            Self::Random(_) => 0,
        }
    }

    /// Reads row `n` of all that there are.
    fn read<T: Element>(&self, n: usize, to: &mut [T]) {
        let columns = to.len();
        match self {
            Self::Rows { span, dtype } => {
                let row = columns * dtype.size_in_bytes();
                span.read(n * row..(n + 1) * row, |bytes| convert(bytes, *dtype, to));
            }
            Self::Columns { span, dtype, rows } => {
                let (size, bytes) = (dtype.size_in_bytes(), span.bytes());
                let (matrix, row) = (n / rows, n % rows);
                for (k, to) in to.iter_mut().enumerate() {
                    let at = ((matrix * columns + k) * rows + row) * size;
                    convert(&bytes[at..at + size], *dtype, slice::from_mut(to));
                }
            }
            Self::Mxfp4 { blocks, scales } => {
                let row = columns / mxfp4::BLOCK;
                let packed = row * mxfp4::BLOCK_BYTES;
                blocks.read(n * packed..(n + 1) * packed, |blocks| {
                    scales.read(n * row..(n + 1) * row, |scales| {
                        mxfp4::unpack(blocks, scales, to);
                    });
                });
            }
            Self::Gguf { span, kind, rows, plus_one } => {
                let (n, row) = (rows.stored(n), kind.num_bytes(columns));
                let one = if *plus_one { 1.0 } else { 0.0 };
                span.read(n * row..(n + 1) * row, |bytes| unpack(*kind, bytes, one, to));
            }
            Self::Random(pool) => pool.read(n * columns, to),
        }
    }
}

/// Numbers that are unpacked at a time: a block of any type, or several.
const UNPACKED: usize = 256;

/// Stored numbers of a type, less `one`.
fn unpack<T: Element>(kind: TensorType, bytes: &[u8], one: f32, to: &mut [T]) {
    let mut numbers = [0f32; UNPACKED];
    let bytes = bytes.chunks(kind.num_bytes(UNPACKED));
    for (bytes, to) in bytes.zip(to.chunks_mut(UNPACKED)) {
        let numbers = &mut numbers[..to.len()];
        dequantize(kind, bytes, numbers);
        for (to, x) in to.iter_mut().zip(numbers) {
            *to = T::from_f32(*x - one);
        }
    }
}
