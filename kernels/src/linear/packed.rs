//! A bf16 matrix in panels: the order in which products read it.
//!
//! ```text
//! panel p     columns 32p .. 32p + 32 of the result, which are rows of w
//!   line k    elements 2k and 2k + 1 of each: 128 bytes
//! ```
//!
//! A panel is one run of memory that a product reads from its beginning to its end. What is
//! missing of the last panel and of the last tile of k is zero.

use std::fmt;
use std::ops::Range;

use half::bf16;

use crate::simd::LANES;
use crate::simd::memory::{Lasting, collect_runs};
use crate::simd::pairs::{COLUMNS, Line, TILE_PAIRS};

/// `w [N, K]` in panels.
pub(crate) struct Packed {
    /// `[panels][pairs]`.
    lines: Lasting<Line>,
    /// Of a panel: K / 2, filled up.
    pub(super) pairs: usize,
}

impl fmt::Debug for Packed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Packed").field("pairs", &self.pairs).finish_non_exhaustive()
    }
}

impl Packed {
    /// Packs `w`, `[N, in_features]`, with neither of them 0, whose row n `read` writes.
    ///
    /// Threads share out the panels. Nothing of w is kept but the rows of the panels that are being
    /// made, so w need not be in memory.
    pub(super) fn new(
        [out_features, in_features]: [usize; 2],
        read: impl Fn(usize, &mut [bf16]) + Sync,
    ) -> Self {
        let pairs = in_features.div_ceil(2).next_multiple_of(TILE_PAIRS);
        // Some 2 elements a nanosecond.
        let nanoseconds = out_features * in_features / 2;
        let lines = collect_runs(out_features.div_ceil(COLUMNS), pairs, nanoseconds, |panel| {
            let first = panel * COLUMNS;
            let mut rows = PanelRows::new(pairs);
            rows.read(first..out_features.min(first + COLUMNS), in_features, &read);
            (0..pairs / TILE_PAIRS).flat_map(move |tile| rows.lines(tile))
        });
        Self { lines, pairs }
    }

    /// The columns from `32 * index` on.
    pub(super) fn panel(&self, index: usize) -> &[Line] {
        &self.lines[index * self.pairs..][..self.pairs]
    }

    /// The columns from `32 * index` on, of this panel and all that follow.
    #[cfg(target_arch = "x86_64")]
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

/// The rows of w that become one panel.
struct PanelRows {
    /// Of 32 rows, `stride` pairs each, with zeros where w has no element.
    pairs: Vec<[bf16; 2]>,
    stride: usize,
}

impl PanelRows {
    fn new(pairs: usize) -> Self {
        // An odd number of cache lines: the same k of all rows then falls into different sets of a
        // cache.
        let stride = ((pairs / TILE_PAIRS) | 1) * TILE_PAIRS;
        Self { pairs: vec![[bf16::ZERO; 2]; COLUMNS * stride], stride }
    }

    /// Takes up to 32 rows of w, of `in_features` elements each.
    fn read(
        &mut self,
        range: Range<usize>,
        in_features: usize,
        read: &(impl Fn(usize, &mut [bf16]) + Sync),
    ) {
        for (n, row) in range.zip(self.pairs.chunks_exact_mut(self.stride)) {
            read(n, &mut row.as_flattened_mut()[..in_features]);
        }
    }

    /// [`TILE_PAIRS`] lines of the panel.
    fn lines(&self, tile: usize) -> [Line; TILE_PAIRS] {
        // Arrays, so that nothing is checked for each element.
        let mut rows = [&[[bf16::ZERO; 2]; TILE_PAIRS]; COLUMNS];
        for (to, row) in rows.iter_mut().zip(self.pairs.chunks_exact(self.stride)) {
            let pairs = row[tile * TILE_PAIRS..].first_chunk();
            *to = pairs.unwrap_or_else(|| unreachable!("a row is a multiple of a tile"));
        }
        std::array::from_fn(|k| {
            let mut line = [[[bf16::ZERO; 2]; LANES]; 2];
            for (to, row) in line.as_flattened_mut().iter_mut().zip(&rows) {
                *to = row[k];
            }
            Line(line)
        })
    }
}
