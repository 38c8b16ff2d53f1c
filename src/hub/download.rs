//! One file from the hub into the cache: continued where it broke off, checked, then named.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use hyper::{Method, StatusCode};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tracing::{debug, warn};

use super::api::{Attempts, Blob};
use super::cache::Cache;
use super::error::Failure;
use super::http::{Answer, Call};
use super::partial::{Finished, Partial};
use super::progress::Meter;
use super::repo::Commit;
use super::{Hub, HubError, Order};

/// Parts of a body that wait for the disk, at most.
const QUEUED_PARTS: usize = 64;

/// One file on its way.
pub(super) struct Download<'a> {
    pub(super) hub: &'a Hub,
    pub(super) order: &'a Order,
    pub(super) cache: &'a Cache,
    pub(super) meter: &'a Meter,
    pub(super) commit: &'a Commit,
    pub(super) file: &'a str,
    pub(super) blob: &'a Blob,
}

impl Download<'_> {
    /// Sees to it that the snapshot has the file, whole.
    pub(super) async fn run(&self) -> Result<(), HubError> {
        if self.cache.has(self.commit, self.file, Some(self.blob)) {
            return Ok(());
        }
        let lock = self.cache.lock(self.blob).await?;
        let is_new = !self.cache.has_blob(self.blob);
        if is_new {
            self.fetch(lock).await?;
        } else {
            self.meter.add_there(self.blob.size);
        }
        self.cache.link(self.commit, self.file, self.blob, is_new)
    }

    async fn fetch(&self, lock: Option<std::fs::File>) -> Result<(), HubError> {
        let mut partial = self.open(lock).await?;
        if partial.is_continued() {
            debug!(file = self.file, there = partial.len(), "continued");
            self.meter.add_there(partial.len());
        }
        loop {
            let is_continued = partial.is_continued();
            partial = self.fetch_rest(partial).await?;
            let path = self.cache.blob(self.blob);
            let (kind, found) = match blocking(move || partial.finish(&path)).await {
                Ok(Finished::Whole) => return Ok(()),
                Ok(Finished::Damaged { kind, found }) => (kind, found),
                Err(error) => return Err(self.disk("finish", error)),
            };
            self.meter.take_back(self.blob.size);
            if !is_continued {
                return Err(HubError::WrongHash {
                    repo: self.order.repo.to_string(),
                    file: self.file.to_owned(),
                    kind,
                    expected: self.blob.etag.clone(),
                    found,
                });
            }
            // What was there before may have been anything; what comes now is the hub's.
            warn!(file = self.file, "the beginning that was kept is damaged, downloading it again");
            partial = self.open(self.cache.lock(self.blob).await?).await?;
        }
    }

    async fn open(&self, lock: Option<std::fs::File>) -> Result<Partial, HubError> {
        let (path, blob) = (self.cache.incomplete(self.blob), self.blob.clone());
        let opened = blocking(move || Partial::open(path, &blob, lock)).await;
        opened.map_err(|error| self.disk("open", error))
    }

    /// Attempts, until all bytes are there.
    async fn fetch_rest(&self, mut partial: Partial) -> Result<Partial, HubError> {
        let mut attempts = Attempts::new(self.hub.settings.retries);
        while partial.len() < self.blob.size {
            let len = partial.len();
            let attempt;
            (partial, attempt) = self.attempt(partial).await?;
            if partial.len() > len {
                attempts.brought_something();
            }
            if let Err(failure) = attempt {
                attempts.pause_after(failure).await?;
            }
        }
        Ok(partial)
    }

    /// Asks for what is missing, and writes what comes. The partial file comes back either way.
    async fn attempt(
        &self,
        mut partial: Partial,
    ) -> Result<(Partial, Result<(), Failure>), HubError> {
        let url = self.hub.file_url(self.order, self.commit, self.file);
        let patience = self.hub.settings.download_timeout;
        let call = Call { method: Method::GET, url: &url, start: partial.len(), patience };
        let answer = match self.hub.client.ask(&call).await {
            Ok(answer) => answer,
            Err(failure) => return Ok((partial, Err(failure))),
        };
        if let Some(encoding) = answer.header("content-encoding").filter(|e| *e != "identity") {
            let reason = format!("the file comes as {encoding}, which nobody asked for");
            let failure = HubError::Protocol { url: answer.url.clone(), reason };
            return Ok((partial, Err(failure.into())));
        }
        let len = partial.len();
        let begins_anew = match answer.status {
            StatusCode::PARTIAL_CONTENT if continues(&answer, len, self.blob.size) => false,
            StatusCode::PARTIAL_CONTENT => {
                let failure = answer.passing("another part of the file than was asked for".into());
                return Ok((partial, Err(failure)));
            }
            // A server without ranges sends it all.
            StatusCode::OK => true,
            StatusCode::RANGE_NOT_SATISFIABLE if len > 0 => {
                self.restart(&mut partial)?;
                return Ok((partial, Err(answer.passing(answer.status.to_string()))));
            }
            _ => {
                let failure = self.hub.refusal(&answer, self.order, Some(self.file));
                return Ok((partial, Err(failure)));
            }
        };
        if begins_anew && len > 0 {
            self.restart(&mut partial)?;
        }
        self.pump(answer, partial).await
    }

    fn restart(&self, partial: &mut Partial) -> Result<(), HubError> {
        self.meter.take_back(partial.len());
        partial.restart().map_err(|error| self.disk("empty", error))
    }

    /// Lets the disk write what the network brings: two threads, a bounded queue between them.
    async fn pump(
        &self,
        mut answer: Answer,
        mut partial: Partial,
    ) -> Result<(Partial, Result<(), Failure>), HubError> {
        let len_before = partial.len();
        let (sender, mut parts) = mpsc::channel::<Bytes>(QUEUED_PARTS);
        let meter = self.meter.clone();
        let writer = spawn_blocking(move || {
            while let Some(part) = parts.blocking_recv() {
                if let Err(error) = partial.write(&part) {
                    return (partial, Err(error));
                }
                meter.add_arrived(part.len() as u64);
            }
            (partial, Ok(()))
        });
        let received = loop {
            match answer.next_part().await {
                Ok(Some(part)) => {
                    if sender.send(part).await.is_err() {
                        break Ok(());
                    }
                }
                Ok(None) => break Ok(()),
                Err(failure) => break Err(failure),
            }
        };
        drop(sender);
        let (partial, written) = writer.await.map_err(|error| self.disk("write", error.into()))?;
        match written {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                let failure = self.too_long(&answer, &error);
                return Ok((partial, Err(failure)));
            }
            written => written.map_err(|error| self.disk("write", error))?,
        }
        if received.is_ok() && partial.len() < self.blob.size {
            let got = partial.len() - len_before;
            let reason = format!("the answer ended early, after {got} bytes");
            return Ok((partial, Err(answer.passing(reason))));
        }
        Ok((partial, received))
    }

    fn too_long(&self, answer: &Answer, error: &io::Error) -> Failure {
        let reason = format!("`{}` has {error}", self.file);
        HubError::Protocol { url: answer.url.clone(), reason }.into()
    }

    fn disk(&self, what: &'static str, error: io::Error) -> HubError {
        use io::ErrorKind as K;
        let path: PathBuf = self.cache.incomplete(self.blob);
        match error.kind() {
            K::StorageFull | K::QuotaExceeded | K::FileTooLarge => HubError::DiskFull {
                directory: path.parent().unwrap_or(Path::new("")).display().to_string(),
                file: self.file.to_owned(),
            },
            _ => HubError::file(what, &path)(error),
        }
    }
}

/// True if a part of the file begins where ours ends, and is a part of the same file.
fn continues(answer: &Answer, len: u64, size: u64) -> bool {
    let range = answer.header("content-range").and_then(|range| range.strip_prefix("bytes "));
    let Some((range, total)) = range.and_then(|range| range.split_once('/')) else { return false };
    let start = range.split_once('-').and_then(|(start, _)| start.trim().parse::<u64>().ok());
    let is_same = total == "*" || total.parse() == Ok(size);
    start == Some(len) && is_same
}

/// Runs what waits for the disk where waiting is allowed.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    spawn_blocking(work).await.map_err(io::Error::from)?
}
