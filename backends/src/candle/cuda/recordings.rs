//! Recorded passes: a step that only decodes is given to the device as one.
//!
//! Launching some ten kernels a layer takes the host longer than a small model takes the device to
//! run them. So the passes of a few numbers of rows are recorded, and a step of fewer rows is padded
//! up to the next. The largest is recorded first, before the cache is sized, because it takes the
//! most memory; the smallest while nothing is to be done; the others when they are needed, one at a
//! step.

use super::step::{Layout, Pass, Shape, Tables};
use millstream_kernels::KernelError;
use millstream_kernels::cuda::{Array, Graph};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

/// What is recorded while nothing is to be done: up to so many rows.
const SMALL: usize = 16;

/// The recorded numbers of rows.
#[derive(Debug)]
pub(crate) struct Recordings {
    /// Ascending; the last one is the most rows that a step may have.
    sizes: Vec<usize>,
    recorded: BTreeMap<usize, Recorded>,
}

/// A number of rows, with what its passes read and, once it is there, their recording.
#[derive(Debug)]
pub(crate) struct Recorded {
    pub(crate) layout: Layout,
    pub(crate) pass: Pass,
    pub(crate) graph: Option<Graph>,
    /// It ran once as it is, so that all that it launches is loaded.
    pub(crate) has_run: bool,
}

/// The numbers of rows up to `most` that are recorded: rows beyond a step's own cost a little time,
/// each recording memory and the time to make it.
fn sizes(most: usize) -> Vec<usize> {
    let mut sizes: Vec<usize> = [1, 2, 4].into_iter().filter(|size| *size < most).collect();
    let mut size = 8;
    while size < most {
        sizes.push(size);
        size += match size {
            0..64 => 8,
            64..256 => 32,
            256..1024 => 128,
            _ => 512,
        };
    }
    sizes.push(most);
    sizes
}

impl Recordings {
    /// Nothing is recorded yet, of steps of up to `most` rows.
    pub(crate) fn new(most: usize) -> Self {
        Recordings { sizes: sizes(most), recorded: BTreeMap::new() }
    }

    /// The number of rows that stands for `rows`.
    pub(crate) fn size(&self, rows: usize) -> Option<usize> {
        let at = self.sizes.partition_point(|size| *size < rows);
        self.sizes.get(at).copied()
    }

    /// The passes of a size, found in `packed`.
    pub(crate) fn get(
        &mut self,
        size: usize,
        packed: &Array,
        tables: &Tables,
    ) -> Result<&mut Recorded, KernelError> {
        match self.recorded.entry(size) {
            Entry::Occupied(recorded) => Ok(recorded.into_mut()),
            Entry::Vacant(place) => {
                let layout = Layout::new(Shape::decode(size), tables.groups.len());
                let pass = Pass::new(&layout, packed, tables)?;
                Ok(place.insert(Recorded { layout, pass, graph: None, has_run: false }))
            }
        }
    }

    /// The next size to record while nothing is to be done.
    pub(crate) fn next_small(&self) -> Option<usize> {
        let is_missing = |size: &usize| self.recorded.get(size).is_none_or(|it| it.graph.is_none());
        self.sizes.iter().copied().filter(|size| *size <= SMALL).find(is_missing)
    }

    /// The largest size.
    pub(crate) fn largest(&self) -> usize {
        self.sizes.last().copied().unwrap_or(1)
    }

    /// Forgets what was recorded: memory that it reads moves.
    pub(crate) fn clear(&mut self) {
        self.recorded.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_of_rows_has_a_size_that_is_little_larger() {
        for most in [1, 2, 3, 8, 9, 100, 256, 1000, 4096] {
            let recordings = Recordings::new(most);
            assert!(recordings.sizes.is_sorted_by(|a, b| a < b), "{:?}", recordings.sizes);
            assert_eq!(recordings.largest(), most);
            for rows in 1..=most {
                let size = recordings.size(rows).unwrap();
                assert!(size >= rows && size <= rows + (rows / 2).max(7), "{size} for {rows}");
            }
            assert_eq!(recordings.size(most + 1), None);
            assert_eq!(recordings.next_small(), Some(1));
        }
    }
}
