//! The bytes of a checkpoint's file, of which no more stays in memory than is being read.
//!
//! A file is mapped, not read: a page comes in when it is first looked at, and counts as this
//! process's memory from then on. So whoever has read a range says so, and the pages of a piece of
//! the file are given back once all of it was read. Ranges that are read twice, or after they were
//! given back, come in again: nothing depends on what was said but memory.

use crate::{LoadError, ModelSource};
use std::fs;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes that are given back together: few enough for many files and threads to be read at once,
/// enough for the system's work to be nothing beside the reading. A multiple of every page size.
const PIECE: usize = 1 << 20;

/// A file's bytes, wherever they lie.
#[derive(Debug)]
pub(crate) enum File {
    Mapped {
        map: memmap2::Mmap,
        /// Bytes of each piece that were read.
        read: Vec<AtomicUsize>,
    },
    Embedded(&'static [u8]),
}

impl File {
    /// A file of the model, or `None` if it has no such file. An embedded one is read where it is.
    pub(crate) fn open(source: &ModelSource, name: &str) -> Result<Option<Self>, LoadError> {
        let open = || match source {
            ModelSource::Embedded(files) => {
                let file = files.iter().find(|(file, _)| *file == name);
                Ok(file.map(|(_, bytes)| Self::Embedded(bytes)))
            }
            ModelSource::Directory(_) => match source.path(name)? {
                Some(path) => Self::map(&fs::File::open(path)?).map(Some),
                None => Ok(None),
            },
            // It is one file, and has no other.
            ModelSource::Gguf(_) => Ok(None),
        };
        match open() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(LoadError::Read { file: name.into(), source }),
            Ok(file) => Ok(file),
        }
    }

    #[allow(unsafe_code, reason = "weights are larger than what may be read into memory twice")]
    pub(crate) fn map(file: &fs::File) -> io::Result<Self> {
        // SAFETY: the map is read-only and lives as long as this `File`. What it cannot rule out is
        // that another process truncates or rewrites the file while it is being loaded: the
        // documented limit of every memory-mapped checkpoint. All numbers read from it are
        // bounds-checked.
        let map = unsafe { memmap2::Mmap::map(file) }?;
        #[cfg(unix)]
        // Read once, front to back. Only advice: a refusal changes nothing.
        let _ = map.advise(memmap2::Advice::Sequential);
        let mut read = Vec::new();
        read.resize_with(map.len().div_ceil(PIECE), AtomicUsize::default);
        Ok(Self::Mapped { map, read })
    }

    /// All of it.
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Self::Mapped { map, .. } => map,
            Self::Embedded(bytes) => bytes,
        }
    }

    /// Notes that a range was read. Pieces that were read from end to end are given back.
    pub(crate) fn was_read(&self, range: Range<usize>) {
        let Self::Mapped { map, read } = self else { return };
        let mut start = range.start;
        while start < range.end {
            let piece = start / PIECE;
            let whole = piece * PIECE..map.len().min((piece + 1) * PIECE);
            let end = range.end.min(whole.end);
            let before = read[piece].fetch_add(end - start, Ordering::Relaxed);
            if before < whole.len() && before + (end - start) >= whole.len() {
                self.give_back(whole);
            }
            start = end;
        }
    }

    /// Gives the pages of a range back, whether they were read or not.
    #[allow(unsafe_code, reason = "only the system can take pages back")]
    pub(crate) fn give_back(&self, range: Range<usize>) {
        #[cfg(unix)]
        if let Self::Mapped { map, .. } = self
            && !map[range.clone()].is_empty()
        {
            // SAFETY: the range lies in the map, which was just checked. The map is of a file and
            // nothing was written to it, so a page that is taken away comes in again, with the same
            // bytes, when it is looked at. A refusal costs memory and nothing else.
            let _ = unsafe {
                let advice = memmap2::UncheckedAdvice::DontNeed;
                map.unchecked_advise_range(advice, range.start, range.len())
            };
        }
        #[cfg(not(unix))]
        let _ = range;
    }
}

/// A range of a file.
#[derive(Clone, Debug)]
pub(crate) struct Span {
    file: Arc<File>,
    range: Range<usize>,
}

impl Span {
    /// The bytes `range` of `file`, which has them.
    pub(crate) fn new(file: Arc<File>, range: Range<usize>) -> Self {
        assert!(file.bytes().get(range.clone()).is_some(), "{range:?} lies in the file");
        Self { file, range }
    }

    /// All of it, little-endian and perhaps unaligned.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.file.bytes()[self.range.clone()]
    }

    /// Lets `read` see the bytes `range` of this one, for the last time.
    pub(crate) fn read<T>(&self, range: Range<usize>, read: impl FnOnce(&[u8]) -> T) -> T {
        let result = read(&self.bytes()[range.clone()]);
        let start = self.range.start;
        self.file.was_read(start + range.start..start + range.end);
        result
    }

    /// Gives the memory of the bytes `range` of this one back.
    pub(crate) fn give_back(&self, range: Range<usize>) {
        let start = self.range.start;
        self.file.give_back(start + range.start..start + range.end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_given_back_reads_the_same_again() {
        let bytes: Vec<u8> = (0..5 * PIECE / 2).map(|i| (i * 7 % 251) as u8).collect();
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("f"), &bytes).unwrap();
        let source = ModelSource::Directory(directory.path().to_owned());
        let file = Arc::new(File::open(&source, "f").unwrap().unwrap());
        let span = Span::new(file.clone(), 5..bytes.len());
        // In pieces that fit nothing, each twice.
        for _ in 0..2 {
            for start in (0..span.bytes().len()).step_by(100_003).rev() {
                let range = start..span.bytes().len().min(start + 100_003);
                span.read(range.clone(), |read| assert_eq!(*read, bytes[5..][range]));
            }
        }
        span.give_back(0..1);
        assert_eq!(span.bytes(), &bytes[5..]);
        file.was_read(0..0);
    }

    #[test]
    fn a_file_that_is_not_there_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let source = ModelSource::Directory(directory.path().to_owned());
        assert!(File::open(&source, "f").unwrap().is_none());
        assert!(File::open(&ModelSource::Embedded(&[("g", b"")]), "f").unwrap().is_none());
    }
}
