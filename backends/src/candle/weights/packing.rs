//! How products keep matrices that a file has in blocks.
//!
//! The kernels' blocks are 32 integers with a scale, in 4 bits with a minimum too. Some of a file's
//! types are such blocks already, and are taken as they are: Q8_0 (and what has fewer bits and no
//! minimum) in 8 bits, Q4_0, Q4_1 and Q4_K in 4, with scales and minima rounded to f16 where a file
//! makes them as products of two numbers. The other types are quantised anew, in 8 bits: what that
//! loses is far below what they have lost.
//!
//! Matrices that are stacked into one are kept in one form.

use super::rows::{Piece, Rows, Stored};
use crate::gguf::TensorType;
use crate::gguf::blocks::Unpacked;
use millstream_kernels::KernelError;
use millstream_kernels::linear::{Block, LinearWeight, Quantization};

/// Integers of a kernels' block.
const BLOCK: usize = 32;

/// Whether the blocks of a type can be taken as they are.
fn as_is(kind: TensorType, to: Quantization) -> bool {
    match to {
        Quantization::Int8 => {
            matches!(kind, TensorType::Q4_0 | TensorType::Q5_0 | TensorType::Q8_0)
        }
        Quantization::Int4 => {
            matches!(kind, TensorType::Q4_0 | TensorType::Q4_1 | TensorType::Q4K)
        }
    }
}

/// The type of what is in blocks.
fn kind(stored: &Stored) -> Option<TensorType> {
    match stored {
        Stored::Gguf { kind, .. } => kind.grouping().map(|_| *kind),
        _ => None,
    }
}

impl Rows {
    /// Whether each part is in blocks.
    pub(super) fn are_blocks(&self) -> bool {
        self.pieces.iter().all(|piece| kind(&piece.stored).is_some())
    }

    /// The matrix, each part of which is in blocks, as products keep it.
    pub(super) fn packed(&self) -> Result<LinearWeight, KernelError> {
        let shape = [self.count(), self.columns];
        let every = |to: &Quantization| {
            let stored = |piece: &Piece| kind(&piece.stored).is_some_and(|kind| as_is(kind, *to));
            self.pieces.iter().all(stored)
        };
        match [Quantization::Int4, Quantization::Int8].into_iter().find(every) {
            Some(to) => {
                LinearWeight::from_blocks(shape, to, |n, blocks| self.blocks(n, to, blocks))
            }
            None => {
                LinearWeight::quantize_rows(shape, Quantization::Int8, |n, to| self.read(n, to))
            }
        }
    }

    /// Reads the blocks of row `n`, for the last time.
    fn blocks(&self, n: usize, to: Quantization, blocks: &mut [Block]) {
        let (stored, n) = self.place(n);
        let Stored::Gguf { span, kind, rows, .. } = stored else {
            unreachable!("every part is in blocks")
        };
        let (n, row) = (rows.stored(n), kind.num_bytes(self.columns));
        span.read(n * row..(n + 1) * row, |bytes| repack(*kind, bytes, to, blocks));
    }
}

/// A row's blocks as the kernels have them.
fn repack(kind: TensorType, bytes: &[u8], to: Quantization, blocks: &mut [Block]) {
    let mut unpacked = Unpacked::new();
    let stored = bytes.chunks_exact(kind.block_bytes());
    for (bytes, blocks) in stored.zip(blocks.chunks_mut(kind.block_len() / BLOCK)) {
        unpacked.unpack(kind, bytes);
        let integers = unpacked.q.as_chunks::<BLOCK>().0;
        for (g, (block, q)) in blocks.iter_mut().zip(integers).enumerate() {
            let (scale, minimum) = (unpacked.scales[g], unpacked.minima[g]);
            *block = match (kind, to) {
                // About zero in the file, from zero on in 4 bits. Eight times a half is a half.
                (TensorType::Q4_0, Quantization::Int4) => {
                    Block { q: q.map(|q| q + 8), scale, min: -8.0 * scale }
                }
                (_, Quantization::Int4) => Block { q: *q, scale, min: minimum },
                (_, Quantization::Int8) => Block { q: *q, scale, min: 0.0 },
            };
        }
    }
}
