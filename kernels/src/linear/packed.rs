//! A bf16 matrix in panels: the order in which products read it.
//!
//! ```text
//! panel p     columns 32p .. 32p + 32 of the result, which are rows of w
//!   line k    elements 2k and 2k + 1 of each: 128 bytes
//! ```
//!
//! A panel is one run of memory that a product reads from its beginning to its end. What is
//! missing of the last panel and of the last tile of k is zero.
#![allow(unsafe_code)] // Memory that is written by several threads before it is a vector.

use std::fmt;

use half::bf16;

use crate::parallel;
use crate::simd::LANES;
use crate::simd::memory::prefer_huge_pages;
use crate::simd::pairs::{COLUMNS, Line, TILE_PAIRS};

/// `w [N, K]` in panels.
pub(crate) struct Packed {
    /// `[panels][pairs]`.
    lines: Vec<Line>,
    /// Of a panel: K / 2, filled up.
    pub(super) pairs: usize,
}

impl fmt::Debug for Packed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Packed").field("pairs", &self.pairs).finish_non_exhaustive()
    }
}

impl Packed {
    /// Packs `w`, `[N, in_features]`, with neither of them 0.
    pub(super) fn new(w: &[bf16], in_features: usize) -> Self {
        let pairs = in_features.div_ceil(2).next_multiple_of(TILE_PAIRS);
        let panels: Vec<&[bf16]> = w.chunks(COLUMNS * in_features).collect();
        let mut lines = Vec::with_capacity(panels.len() * pairs);
        let len = panels.len() * pairs;
        let memory = &mut lines.spare_capacity_mut()[..len];
        prefer_huge_pages(memory);
        // Some 4 bytes a nanosecond.
        parallel::for_rows(memory, pairs, len * size_of::<Line>() / 4, |first, memory| {
            for (panel, lines) in memory.chunks_exact_mut(pairs).enumerate() {
                for (k, line) in lines.iter_mut().enumerate() {
                    line.write(pack_line(panels[first + panel], in_features, k));
                }
            }
        });
        // SAFETY: there is memory for `len` lines, and each of them was written above.
        unsafe { lines.set_len(len) };
        Self { lines, pairs }
    }

    /// The columns from `32 * index` on.
    pub(super) fn panel(&self, index: usize) -> &[Line] {
        &self.lines[index * self.pairs..][..self.pairs]
    }

    /// The columns from `32 * index` on, of this panel and all that follow.
    pub(super) fn from(&self, index: usize) -> &[Line] {
        &self.lines[index * self.pairs..]
    }

    /// Writes row `n` of w to `to`, as long as it is, widened.
    pub(crate) fn row(&self, n: usize, to: &mut [f32]) {
        let (panel, column) = (self.panel(n / COLUMNS), n % COLUMNS);
        for (line, to) in panel.iter().zip(to.chunks_mut(2)) {
            let pair = line.0.as_flattened()[column];
            for (to, from) in to.iter_mut().zip(pair) {
                *to = from.to_f32();
            }
        }
    }
}

/// Elements 2k and 2k + 1 of each of `rows`, as far as there are any.
fn pack_line(rows: &[bf16], in_features: usize, k: usize) -> Line {
    let mut line = [[[bf16::ZERO; 2]; LANES]; 2];
    let columns = line.as_flattened_mut().iter_mut();
    for (to, row) in columns.zip(rows.chunks_exact(in_features)) {
        match row.get(2 * k..) {
            Some(&[first, second, ..]) => *to = [first, second],
            Some(&[last]) => to[0] = last,
            _ => {}
        }
    }
    Line(line)
}
