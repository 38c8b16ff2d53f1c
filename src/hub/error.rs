//! Everything that can go wrong between a model's name and its files, each as one line that says
//! what to do. No message ever holds a token, nor the query of an address, which may be signed.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why a model could not be had from the hub.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HubError {
    #[error("model `{id}` is neither a directory nor the name of a model on the hub: {rule}")]
    InvalidRepo { id: String, rule: &'static str },
    #[error("revision `{revision}` {rule}; it is a branch, a tag or a commit")]
    InvalidRevision { revision: String, rule: &'static str },
    #[error("{name} {rule}")]
    Setting { name: String, rule: String },
    #[error(
        "model `{repo}` is gated: accept its licence on {page}, then {}",
        access(*.token, "set HF_TOKEN to a token of that account")
    )]
    Gated { repo: String, page: String, token: Option<&'static str> },
    #[error(
        "model `{repo}` is neither a directory here nor to be seen on {endpoint}: check its name; \
         if it is private, {}",
        access(*.token, "set HF_TOKEN to a token that may read it")
    )]
    RepoNotFound { repo: String, endpoint: String, token: Option<&'static str> },
    #[error("model `{repo}` has no revision `{revision}`; see {page}/refs for those it has")]
    RevisionNotFound { repo: String, revision: String, page: String },
    #[error("model `{repo}` has no file `{file}` at revision `{revision}`")]
    EntryNotFound { repo: String, revision: String, file: String },
    #[error(
        "{endpoint} does not know the token from {source_of_token}; make a new one, or unset it"
    )]
    BadToken { endpoint: String, source_of_token: &'static str },
    #[error("{url} answers {status}{}", told(.message))]
    Refused { url: String, status: u16, message: String },
    #[error(
        "cannot get {url}: {reason}; check the network and the proxy variables, or set \
         HF_HUB_OFFLINE=1 to use what the cache has"
    )]
    Unreachable { url: String, reason: String },
    #[error("{url} answers what is no hub's answer: {reason}; check HF_ENDPOINT and proxies")]
    Protocol { url: String, reason: String },
    #[error(
        "model `{repo}` at revision `{revision}` is not whole in the cache {cache} ({missing}), \
         and {why} keeps from downloading it"
    )]
    Offline { repo: String, revision: String, cache: String, missing: String, why: &'static str },
    #[error("model `{repo}` {lack}")]
    Unfit { repo: String, lack: String },
    #[error(
        "not enough space in {directory}: {} are still to be downloaded, {} are free; make room, \
         or set HF_HUB_CACHE to a directory on another disk",
        size(*.needed),
        size(*.free)
    )]
    NoSpace { directory: String, needed: u64, free: u64 },
    #[error(
        "the disk of {directory} became full while `{file}` was downloaded; make room and start \
         again, what is there is kept"
    )]
    DiskFull { directory: String, file: String },
    #[error(
        "`{file}` of model `{repo}` arrived damaged: its {kind} is {found}, expected {expected}; \
         it was deleted, start again"
    )]
    WrongHash { repo: String, file: String, kind: &'static str, expected: String, found: String },
    #[error("cannot {what} {}: {source}", path.display())]
    File { what: &'static str, path: PathBuf, source: io::Error },
}

impl HubError {
    /// For `map_err`: `what` could not be done to `path`.
    pub(super) fn file(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> HubError {
        let path = path.to_owned();
        move |source| HubError::File { what, path, source }
    }

    /// True where a whole copy in the cache may be served although the hub did not help: it
    /// could not be asked, or knows nothing of us. A revision that is gone is gone.
    pub(super) fn leaves_the_cache(&self) -> bool {
        use HubError as E;
        matches!(
            self,
            E::Unreachable { .. }
                | E::Refused { .. }
                | E::Protocol { .. }
                | E::Gated { .. }
                | E::RepoNotFound { .. }
                | E::BadToken { .. }
        )
    }
}

/// Why one attempt failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// Another attempt would fail as this one did.
    Final(HubError),
    /// Another attempt may succeed, not before `retry_after` if the server names a time.
    Passing { url: String, reason: String, retry_after: Option<Duration> },
}

impl From<HubError> for Failure {
    fn from(error: HubError) -> Failure {
        Failure::Final(error)
    }
}

fn access(token: Option<&'static str>, without: &str) -> String {
    match token {
        None => without.to_owned(),
        Some(name) => format!("make sure that the token from {name} belongs to that account"),
    }
}

fn told(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}

/// An amount of bytes for people, in the units of disks: `7.6 GB`.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [(f64, &str); 4] = [(1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")];
    let number = bytes as f64;
    match UNITS.into_iter().find(|(unit, _)| number >= *unit) {
        Some((unit, name)) => format!("{:.1} {name}", number / unit),
        None => format!("{bytes} bytes"),
    }
}
