//! Contents that are still arriving: `blobs/ETAG.incomplete`, and the hash of what is there.
//!
//! A partial file is only ever a beginning of the contents. It is kept when a download breaks off,
//! however it does, and continued by the next one, in this process or another; it takes the blob's
//! name only when all of it is there and its hash is right.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::api::{Blob, Hash};

/// Of a file that is read to be hashed.
const READ_BYTES: usize = 1 << 20;

/// A file that grows into a blob.
pub(super) struct Partial {
    file: File,
    path: PathBuf,
    /// Bytes that are there, from the first on.
    len: u64,
    /// True if some of them were there before this process came.
    is_continued: bool,
    hasher: Hasher,
    blob: Blob,
    /// Held as long as anything is written; `None` where files cannot be locked.
    _lock: Option<File>,
}

/// What became of a partial file that is all there.
pub(super) enum Finished {
    Whole,
    /// It was deleted.
    Damaged {
        kind: &'static str,
        found: String,
    },
}

enum Hasher {
    Sha256(Sha256),
    Sha1(Sha1),
    None,
}

impl Partial {
    /// Continues what lies at `path`, or begins there. Reads what is there, so it may take long.
    pub(super) fn open(path: PathBuf, blob: &Blob, lock: Option<File>) -> io::Result<Partial> {
        // Never truncated here: what is there is the beginning, and is worth its download.
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).open(&path)?;
        let len = file.metadata()?.len();
        let hasher = Hasher::new(blob);
        let blob = blob.clone();
        let mut partial =
            Partial { file, path, len, is_continued: len > 0, hasher, blob, _lock: lock };
        if partial.len > partial.blob.size {
            partial.restart()?;
        }
        partial.hash_what_is_there()?;
        Ok(partial)
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn is_continued(&self) -> bool {
        self.is_continued
    }

    /// Forgets everything that is there.
    pub(super) fn restart(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.len = 0;
        self.is_continued = false;
        self.hasher = Hasher::new(&self.blob);
        Ok(())
    }

    /// Adds the next bytes. Beyond the size of the blob there are none.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.len() as u64 > self.blob.size - self.len {
            let reason = format!("more than the {} bytes that it should have", self.blob.size);
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        }
        // At its place, not at the end: where locks do not work, a second process that downloads
        // the same contents writes the same bytes there.
        self.file.write_all_at(bytes, self.len)?;
        self.len += bytes.len() as u64;
        self.hasher.update(bytes);
        Ok(())
    }

    /// Checks the whole, and gives it its name: `path` of the blob.
    pub(super) fn finish(self, path: &std::path::Path) -> io::Result<Finished> {
        debug_assert_eq!(self.len, self.blob.size, "a partial file is finished when all is there");
        if let Some((kind, found)) = self.hasher.finish()
            && found != self.blob.etag
        {
            fs::remove_file(&self.path)?;
            return Ok(Finished::Damaged { kind, found });
        }
        // The name must not reach the disk before the contents do.
        self.file.sync_all()?;
        match fs::rename(&self.path, path) {
            // Without locks, another process may have been first.
            Err(error) if error.kind() == io::ErrorKind::NotFound && path.exists() => {}
            renamed => renamed?,
        }
        Ok(Finished::Whole)
    }

    fn hash_what_is_there(&mut self) -> io::Result<()> {
        let mut file = &self.file;
        let mut buffer = vec![0; READ_BYTES];
        let mut left = self.len;
        while left > 0 {
            let wanted = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let num_read = file.read(&mut buffer[..wanted])?;
            if num_read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.hasher.update(&buffer[..num_read]);
            left -= num_read as u64;
        }
        Ok(())
    }
}

impl Hasher {
    fn new(blob: &Blob) -> Hasher {
        match blob.hash {
            Some(Hash::Sha256) => Hasher::Sha256(Sha256::new()),
            // What git hashes begins with a header of its own.
            Some(Hash::GitSha1) => {
                Hasher::Sha1(Sha1::new_with_prefix(format!("blob {}\0", blob.size)))
            }
            None => Hasher::None,
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Sha256(hasher) => hasher.update(bytes),
            Hasher::Sha1(hasher) => hasher.update(bytes),
            Hasher::None => {}
        }
    }

    /// The name of the hash, and the hash.
    fn finish(&self) -> Option<(&'static str, String)> {
        match self {
            Hasher::Sha256(hasher) => Some(("SHA-256", format!("{:x}", hasher.clone().finalize()))),
            Hasher::Sha1(hasher) => Some(("git SHA-1", format!("{:x}", hasher.clone().finalize()))),
            Hasher::None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// `printf hello | git hash-object --stdin`, and `printf hello | sha256sum`.
    const GIT_ID: &str = "b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0";
    const SHA256: &str = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";

    fn hello() -> [Blob; 2] {
        [Blob::of_git(5, GIT_ID).unwrap(), Blob::of_lfs(5, SHA256, "").unwrap()]
    }

    fn open(dir: &Path, blob: &Blob) -> Partial {
        Partial::open(dir.join("x.incomplete"), blob, None).unwrap()
    }

    #[test]
    fn a_file_gets_its_name_when_its_hash_is_right_however_often_it_was_continued() {
        for blob in hello() {
            let dir = tempfile::tempdir().unwrap();
            for (len, part) in [(0, &b"he"[..]), (2, b"l"), (3, b"lo")] {
                let mut partial = open(dir.path(), &blob);
                assert_eq!((partial.len(), partial.is_continued()), (len, len > 0));
                partial.write(part).unwrap();
            }
            let whole = dir.path().join("x");
            let finished = open(dir.path(), &blob).finish(&whole).unwrap();
            assert!(matches!(finished, Finished::Whole));
            assert_eq!(fs::read(whole).unwrap(), b"hello");
            assert!(!dir.path().join("x.incomplete").exists());
        }
    }

    #[test]
    fn a_file_with_another_hash_is_deleted() {
        for blob in hello() {
            let dir = tempfile::tempdir().unwrap();
            let mut partial = open(dir.path(), &blob);
            partial.write(b"jello").unwrap();
            let finished = partial.finish(&dir.path().join("x")).unwrap();
            assert!(matches!(finished, Finished::Damaged { found, .. } if found != blob.etag));
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        }
    }

    #[test]
    fn what_is_longer_than_the_blob_begins_anew_and_never_grows_beyond_it() {
        let [blob, _] = hello();
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("x.incomplete"), b"hello world").unwrap();
        let mut partial = open(dir.path(), &blob);
        assert_eq!((partial.len(), partial.is_continued()), (0, false));
        partial.write(b"hell").unwrap();
        assert_eq!(partial.write(b"o!").unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
