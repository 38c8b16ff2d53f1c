//! The cache of models, in the layout of Python's huggingface_hub, so both share their downloads.
//!
//! ```text
//! CACHE/CACHEDIR.TAG                                  backups leave this directory out
//! CACHE/.locks/models--org--name/ETAG.lock            held while a blob is written (flock)
//! CACHE/models--org--name/refs/REVISION               the commit that a branch or tag meant
//! CACHE/models--org--name/trees/COMMIT.json           the files of a commit, sizes and hashes
//! CACHE/models--org--name/blobs/ETAG                  contents; ETAG.incomplete while they arrive
//! CACHE/models--org--name/snapshots/COMMIT/FILE       a relative link to the contents
//! ```
//!
//! Python's library also leaves `.no_exist/COMMIT/FILE` for files that it asked for in vain; a
//! listing makes them needless here. What lies under `blobs` without `.incomplete` is whole, and a
//! snapshot is whole when every needed file of its commit is linked: a directory alone says
//! nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tracing::{debug, info, warn};

use super::api::{Blob, Listing};
use super::repo::{Commit, RepoId, Revision};
use super::settings::Settings;
use super::{HubError, files};

const TAG_FILE: &str = "CACHEDIR.TAG";
const TAG: &str = "Signature: 8a477f597d28d172789f06886806bc55\n\
    # This file is a cache directory tag created by huggingface_hub.\n\
    # For information about cache directory tags, see:\n\
    #\thttps://bford.info/cachedir/\n";
const TREE_VERSION: u32 = 1;
/// Of a listing or an index that is read into memory.
const MAX_TEXT_BYTES: u64 = 64 << 20;
/// Between two looks at a lock that another process holds.
const LOCK_PAUSE: Duration = Duration::from_millis(100);
/// Who may open a lock file that we make: as Python's library, so that a group can share a cache.
const LOCK_MODE: u32 = 0o664;

/// The cached files of one model.
#[derive(Clone, Debug)]
pub(super) struct Cache {
    root: PathBuf,
    folder: String,
    symlinks: bool,
}

/// `trees/COMMIT.json`.
#[derive(Serialize, Deserialize)]
struct Tree {
    format_version: u32,
    files: BTreeMap<String, TreeEntry>,
}

#[derive(Serialize, Deserialize)]
struct TreeEntry {
    size: u64,
    blob_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lfs_sha256: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lfs_size: Option<u64>,
}

impl Cache {
    pub(super) fn new(settings: &Settings, repo: &RepoId) -> Cache {
        Cache {
            // What is printed and handed on must mean the same from anywhere.
            root: std::path::absolute(&settings.cache).unwrap_or_else(|_| settings.cache.clone()),
            folder: repo.folder_name(),
            symlinks: settings.symlinks,
        }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    fn model(&self) -> PathBuf {
        self.root.join(&self.folder)
    }

    pub(super) fn snapshot(&self, commit: &Commit) -> PathBuf {
        self.model().join("snapshots").join(commit.as_str())
    }

    pub(super) fn blob(&self, blob: &Blob) -> PathBuf {
        self.model().join("blobs").join(&blob.etag)
    }

    pub(super) fn incomplete(&self, blob: &Blob) -> PathBuf {
        self.model().join("blobs").join(format!("{}.incomplete", blob.etag))
    }

    /// The commit that a revision meant when it was last downloaded.
    pub(super) fn commit_of(&self, revision: &Revision) -> Option<Commit> {
        revision.commit().or_else(|| {
            let text =
                fs::read_to_string(self.model().join("refs").join(revision.as_str())).ok()?;
            Commit::parse(text.trim())
        })
    }

    /// Remembers what a revision means now; a cache that cannot be written to stays as it is.
    pub(super) fn remember_commit(&self, revision: &Revision, commit: &Commit) {
        if self.commit_of(revision).as_ref() != Some(commit) {
            let path = self.model().join("refs").join(revision.as_str());
            if let Err(error) = replace(&path, commit.as_str().as_bytes()) {
                debug!(path = %path.display(), %error, "the revision is not remembered");
            }
        }
    }

    /// The files of a commit as they were listed when it was downloaded.
    pub(super) fn tree(&self, commit: &Commit) -> Option<Listing> {
        let tree: Tree = serde_json::from_slice(&read_text(&self.tree_path(commit)).ok()?).ok()?;
        let blob = |entry: &TreeEntry| match (&entry.lfs_sha256, entry.lfs_size) {
            (Some(sha256), Some(size)) => Blob::of_lfs(size, sha256, &entry.blob_id),
            _ => Blob::of_git(entry.size, &entry.blob_id),
        };
        let files = tree.files.iter().map(|(name, entry)| (name.clone(), blob(entry))).collect();
        (tree.format_version == TREE_VERSION).then(|| Listing { commit: commit.clone(), files })
    }

    /// Remembers a listing, if it says everything of every file.
    pub(super) fn remember_tree(&self, listing: &Listing) {
        let path = self.tree_path(&listing.commit);
        let entries: Option<BTreeMap<String, TreeEntry>> =
            listing.files.iter().map(|(name, blob)| Some((name.clone(), entry(blob)?))).collect();
        let Some(files) = entries.filter(|_| !path.exists()) else { return };
        let mut text = Vec::new();
        let format = serde_json::ser::PrettyFormatter::with_indent(b" ");
        let mut writer = serde_json::Serializer::with_formatter(&mut text, format);
        let tree = Tree { format_version: TREE_VERSION, files };
        let written = tree.serialize(&mut writer).map_err(io::Error::from);
        if let Err(error) = written.and_then(|()| replace(&path, &text)) {
            debug!(path = %path.display(), %error, "the listing is not remembered");
        }
    }

    fn tree_path(&self, commit: &Commit) -> PathBuf {
        self.model().join("trees").join(format!("{commit}.json"))
    }

    /// The files that a snapshot happens to have: all there is to know of one without a tree.
    pub(super) fn scan(&self, commit: &Commit) -> Listing {
        let snapshot = self.snapshot(commit);
        let mut files = BTreeMap::new();
        for folder in ["", files::TEMPLATES] {
            let entries = fs::read_dir(snapshot.join(folder)).into_iter().flatten().flatten();
            let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
            files.extend(names.map(|name| (format!("{folder}{name}"), None)));
        }
        files.retain(|name, _| snapshot.join(name).is_file());
        Listing { commit: commit.clone(), files }
    }

    /// What a snapshot lacks of the files that its commit has and a model needs; `None` if it is
    /// whole.
    pub(super) fn lacks(&self, listing: &Listing, weights: bool) -> Option<String> {
        let names: BTreeSet<&str> = listing.files.keys().map(String::as_str).collect();
        let description = match files::description(&names) {
            Ok(description) => description,
            Err(lack) => return Some(format!("it {lack}")),
        };
        let is_missing = |name: &&String| {
            !self.has(&listing.commit, name, listing.files.get(*name).and_then(Option::as_ref))
        };
        let missing = |name: &String| Some(format!("`{name}` is missing"));
        if let Some(name) = description.iter().find(is_missing) {
            return missing(name);
        }
        if !weights {
            return None;
        }
        match self.weights(listing) {
            Ok(weights) => weights.iter().find(is_missing).and_then(missing),
            Err(lack) => Some(format!("it {lack}")),
        }
    }

    /// The files of the weights, by the index in the snapshot. The error says what is lacking.
    pub(super) fn weights(&self, listing: &Listing) -> Result<Vec<String>, String> {
        let names: BTreeSet<&str> = listing.files.keys().map(String::as_str).collect();
        if !names.contains(files::INDEX) {
            return files::weights(&names, None);
        }
        let index = read_text(&self.snapshot(&listing.commit).join(files::INDEX))
            .map_err(|error| format!("has a {} that cannot be read: {error}", files::INDEX))?;
        files::weights(&names, Some(&index))
    }

    /// True if a snapshot has the file, with the right size where that is known.
    pub(super) fn has(&self, commit: &Commit, file: &str, blob: Option<&Blob>) -> bool {
        is_file(&self.snapshot(commit).join(file), blob)
    }

    /// True if the contents are there, whole.
    pub(super) fn has_blob(&self, blob: &Blob) -> bool {
        is_file(&self.blob(blob), Some(blob))
    }

    /// Bytes of a blob that are still to be downloaded.
    pub(super) fn missing_bytes(&self, blob: &Blob) -> u64 {
        let there = fs::metadata(self.incomplete(blob)).map_or(0, |file| file.len());
        if self.has_blob(blob) { 0 } else { blob.size.saturating_sub(there) }
    }

    /// Bytes that may still be written into the cache, where the system says.
    pub(super) fn free_bytes(&self) -> Option<u64> {
        // The first that exists: the others will be made in it.
        let place = self.root.ancestors().find(|place| place.is_dir())?;
        let stat = rustix::fs::statvfs(place).ok()?;
        Some(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// Makes the directories, and marks the cache as one.
    pub(super) fn prepare(&self) -> Result<(), HubError> {
        let blobs = self.model().join("blobs");
        fs::create_dir_all(&blobs).map_err(HubError::file("create the directory", &blobs))?;
        let tag = self.root.join(TAG_FILE);
        if !tag.exists() {
            // Only backups miss it.
            let _ = fs::write(tag, TAG);
        }
        Ok(())
    }

    /// Puts contents that are whole into a snapshot; `is_new` if no other snapshot has them yet.
    pub(super) fn link(
        &self,
        commit: &Commit,
        file: &str,
        blob: &Blob,
        is_new: bool,
    ) -> Result<(), HubError> {
        let pointer = self.snapshot(commit).join(file);
        let folder = pointer.parent().unwrap_or(&pointer);
        fs::create_dir_all(folder).map_err(HubError::file("create the directory", folder))?;
        let up = "../".repeat(2 + file.matches('/').count());
        let target = format!("{up}blobs/{}", blob.etag);
        if self.symlinks {
            match replace_link(&pointer, Path::new(&target)) {
                Ok(()) => return Ok(()),
                Err(error) => debug!(%error, "no symbolic links here, the file itself is put"),
            }
        }
        let contents = self.blob(blob);
        let put = if is_new { fs::rename(&contents, &pointer) } else { copy(&contents, &pointer) };
        put.map_err(HubError::file("put a file at", &pointer))
    }

    /// Waits until no other process writes this blob. `None` where files cannot be locked.
    pub(super) async fn lock(&self, blob: &Blob) -> Result<Option<File>, HubError> {
        let folder = self.root.join(".locks").join(&self.folder);
        fs::create_dir_all(&folder).map_err(HubError::file("create the directory", &folder))?;
        let path = folder.join(format!("{}.lock", blob.etag));
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).mode(LOCK_MODE).open(&path);
        let file = file.map_err(HubError::file("open the lock", &path))?;
        let mut is_told = false;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Some(file)),
                Err(TryLockError::WouldBlock) if !is_told => {
                    info!(lock = %path.display(), "somebody else is downloading this, waiting");
                    is_told = true;
                }
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => {
                    // Two writers would write the same bytes to the same places.
                    warn!(lock = %path.display(), %error, "cannot lock, going on without");
                    return Ok(None);
                }
            }
            tokio::time::sleep(LOCK_PAUSE).await;
        }
    }
}

fn entry(blob: &Option<Blob>) -> Option<TreeEntry> {
    let blob = blob.as_ref()?;
    let git_id = blob.git_id.clone()?;
    let is_lfs = blob.etag != git_id;
    Some(TreeEntry {
        size: blob.size,
        blob_id: git_id,
        lfs_sha256: is_lfs.then(|| blob.etag.clone()),
        lfs_size: is_lfs.then_some(blob.size),
    })
}

fn is_file(path: &Path, blob: Option<&Blob>) -> bool {
    // Follows links: one whose contents are gone is no file.
    fs::metadata(path)
        .is_ok_and(|file| file.is_file() && blob.is_none_or(|blob| blob.size == file.len()))
}

fn read_text(path: &Path) -> io::Result<Vec<u8>> {
    let len = fs::metadata(path)?.len();
    if len > MAX_TEXT_BYTES {
        return Err(io::Error::other(format!("{len} bytes, at most {MAX_TEXT_BYTES} are read")));
    }
    fs::read(path)
}

/// A name beside `path` that no other process uses.
fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{name}.{}.tmp", std::process::id()))
}

/// Writes a file as a whole: readers see the old one or the new one.
fn replace(path: &Path, contents: &[u8]) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let new = beside(path);
    fs::write(&new, contents)?;
    fs::rename(&new, path)
}

fn replace_link(path: &Path, target: &Path) -> io::Result<()> {
    if fs::read_link(path).is_ok_and(|there| there == target) {
        return Ok(());
    }
    let new = beside(path);
    let _ = fs::remove_file(&new);
    symlink(target, &new)?;
    fs::rename(&new, path)
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let new = beside(to);
    fs::copy(from, &new)?;
    fs::rename(&new, to)
}
