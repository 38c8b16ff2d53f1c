//! What the hub is asked: which files a revision has, what each of them is, and what a refusal
//! means.
//!
//! One question tells all: `api/models/{repo}/revision/{revision}?blobs=true` names the commit and
//! every file with its size and hash. Mirrors that leave out sizes are asked for each file, by
//! `HEAD {repo}/resolve/{commit}/{file}`, as Python's huggingface_hub does.

use std::collections::BTreeMap;

use hyper::{Method, StatusCode};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use tracing::{debug, warn};

use super::error::Failure;
use super::http::{Answer, Call};
use super::repo::{Commit, is_hex};
use super::settings::Retries;
use super::{Hub, HubError, Order};

/// What `urllib.parse.quote(safe="")` leaves as it is.
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// Characters of a server's own words that are repeated.
const MAX_MESSAGE_CHARS: usize = 200;

/// The files of a commit.
#[derive(Debug, PartialEq)]
pub(super) struct Listing {
    pub(super) commit: Commit,
    /// By name within the model; a file that the listing says nothing of has to be asked for.
    pub(super) files: BTreeMap<String, Option<Blob>>,
}

/// The contents of a file.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Blob {
    /// What the contents are called in the cache; it is their hash, where [`Blob::hash`] is set.
    ///
    /// Invariant: the name of a file, never a way to another one.
    pub(super) etag: String,
    pub(super) size: u64,
    pub(super) hash: Option<Hash>,
    /// Git's name for what stands in the repository: for large files a pointer to the contents.
    pub(super) git_id: Option<String>,
}

/// What the name of a blob is the hash of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Hash {
    /// SHA-256 of the contents, for files that git keeps outside (LFS, Xet).
    Sha256,
    /// SHA-1 of git's header and the contents, for all others.
    GitSha1,
}

impl Blob {
    /// A file that git keeps by itself.
    pub(super) fn of_git(size: u64, git_id: &str) -> Option<Blob> {
        let etag = is_hex(git_id, 40).then(|| git_id.to_owned())?;
        Some(Blob { git_id: Some(etag.clone()), etag, size, hash: Some(Hash::GitSha1) })
    }

    /// A file that git keeps outside.
    pub(super) fn of_lfs(size: u64, sha256: &str, git_id: &str) -> Option<Blob> {
        let etag = is_hex(sha256, 64).then(|| sha256.to_owned())?;
        let git_id = is_hex(git_id, 40).then(|| git_id.to_owned());
        Some(Blob { etag, size, hash: Some(Hash::Sha256), git_id })
    }

    /// A file of which only headers tell. What is not the length of a SHA-256 may be the hash of
    /// anything.
    fn of_headers(size: u64, etag: &str) -> Option<Blob> {
        let etag = etag.trim_start_matches("W/").trim_matches('"');
        let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        let is_name = (1..=128).contains(&etag.len()) && etag.bytes().all(is_plain);
        (is_name && !etag.starts_with('.')).then(|| Blob {
            etag: etag.to_owned(),
            size,
            hash: is_hex(etag, 64).then_some(Hash::Sha256),
            git_id: None,
        })
    }
}

/// `GET api/models/...`, as far as it matters here.
#[derive(Deserialize)]
struct ModelInfo {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: String,
    size: u64,
}

impl Sibling {
    fn blob(&self) -> Option<Blob> {
        match (&self.lfs, self.size, self.blob_id.as_deref()) {
            (Some(lfs), _, git_id) => Blob::of_lfs(lfs.size, &lfs.sha256, git_id.unwrap_or("")),
            (None, Some(size), Some(git_id)) => Blob::of_git(size, git_id),
            _ => None,
        }
    }
}

impl Hub {
    /// The commit that the revision means now, and its files.
    pub(super) async fn listing(
        &self,
        order: &Order,
        retries: Retries,
    ) -> Result<Listing, HubError> {
        let revision = utf8_percent_encode(order.revision.as_str(), UNRESERVED);
        let endpoint = &self.settings.endpoint;
        let url = format!("{endpoint}/api/models/{}/revision/{revision}?blobs=true", order.repo);
        let mut attempts = Attempts::new(retries);
        loop {
            match self.listing_once(order, &url).await {
                Ok(listing) => return Ok(listing),
                Err(failure) => attempts.pause_after(failure).await?,
            }
        }
    }

    async fn listing_once(&self, order: &Order, url: &str) -> Result<Listing, Failure> {
        let patience = self.settings.etag_timeout;
        let call = Call { method: Method::GET, url, start: 0, patience };
        let answer = self.client.ask(&call).await?;
        if answer.status != StatusCode::OK {
            return Err(self.refusal(&answer, order, None));
        }
        let url = answer.url.clone();
        let wrong = |reason: String| HubError::Protocol { url: url.clone(), reason };
        let info: ModelInfo = serde_json::from_slice(&answer.text().await?)
            .map_err(|error| wrong(format!("not the description of a model: {error}")))?;
        let commit = Commit::parse(&info.sha)
            .ok_or_else(|| wrong("it names no commit in `sha`".to_owned()))?;
        let files = info.siblings.iter().map(|file| (file.rfilename.clone(), file.blob()));
        Ok(Listing { commit, files: files.collect() })
    }

    /// What the headers of one file say of its contents.
    pub(super) async fn look_up(
        &self,
        order: &Order,
        commit: &Commit,
        file: &str,
    ) -> Result<Blob, HubError> {
        let url = self.file_url(order, commit, file);
        let mut attempts = Attempts::new(self.settings.retries);
        loop {
            match self.look_up_once(order, &url, file).await {
                Ok(blob) => return Ok(blob),
                Err(failure) => attempts.pause_after(failure).await?,
            }
        }
    }

    async fn look_up_once(&self, order: &Order, url: &str, file: &str) -> Result<Blob, Failure> {
        let patience = self.settings.etag_timeout;
        let call = Call { method: Method::HEAD, url, start: 0, patience };
        let answer = self.client.ask(&call).await?;
        if !answer.status.is_success() && !answer.status.is_redirection() {
            return Err(self.refusal(&answer, order, Some(file)));
        }
        let etag = answer.header("x-linked-etag").or_else(|| answer.header("etag"));
        // The length of a redirect is that of the redirect.
        let length = answer.header("content-length").filter(|_| answer.status.is_success());
        let size = answer.header("x-linked-size").or(length).and_then(|size| size.parse().ok());
        let blob = etag.zip(size).and_then(|(etag, size)| Blob::of_headers(size, etag));
        let blob = blob.ok_or_else(|| HubError::Protocol {
            url: answer.url.clone(),
            reason: "its headers name no etag or no size of the file".into(),
        })?;
        if blob.hash.is_none() {
            debug!(file, etag = blob.etag, "the size alone can be checked");
        }
        Ok(blob)
    }

    /// Where a file is downloaded from.
    pub(super) fn file_url(&self, order: &Order, commit: &Commit, file: &str) -> String {
        let file: Vec<String> =
            file.split('/').map(|part| utf8_percent_encode(part, UNRESERVED).to_string()).collect();
        format!("{}/{}/resolve/{commit}/{}", self.settings.endpoint, order.repo, file.join("/"))
    }

    /// What an answer means that is not what was asked for.
    pub(super) fn refusal(&self, answer: &Answer, order: &Order, file: Option<&str>) -> Failure {
        let (repo, revision) = (order.repo.to_string(), order.revision.to_string());
        let endpoint = self.settings.endpoint.clone();
        let page = format!("{endpoint}/{repo}");
        let token = self.client.token_source();
        let message = message(answer);
        let status = answer.status.as_u16();
        // A signed address may have expired: the hub makes another for the next attempt.
        let is_passing = !answer.is_of_hub || matches!(status, 408 | 429 | 500 | 502 | 503 | 504);
        if is_passing {
            let reason = answer.status.to_string();
            return answer.passing(reason);
        }
        let entry_not_found = || HubError::EntryNotFound {
            repo: order.repo.to_string(),
            revision: order.revision.to_string(),
            file: file.unwrap_or("").to_owned(),
        };
        let error = match (answer.header("x-error-code"), status) {
            (Some("GatedRepo"), _) => HubError::Gated { repo, page, token },
            (Some("RevisionNotFound"), _) => HubError::RevisionNotFound { repo, revision, page },
            (Some("EntryNotFound"), _) => entry_not_found(),
            (Some("RepoNotFound"), _) => HubError::RepoNotFound { repo, endpoint, token },
            (_, 401) if message.starts_with("Invalid credentials") => match token {
                Some(source_of_token) => HubError::BadToken { endpoint, source_of_token },
                None => HubError::RepoNotFound { repo, endpoint, token },
            },
            (None, 404) if file.is_some() => entry_not_found(),
            // Who may not know that a model exists is asked who he is; so is who misspells it.
            (_, 401 | 404) => HubError::RepoNotFound { repo, endpoint, token },
            _ => HubError::Refused { url: answer.url.clone(), status, message },
        };
        error.into()
    }
}

/// The server's own words, as one line of harmless length.
fn message(answer: &Answer) -> String {
    let message = answer.header("x-error-message").unwrap_or("");
    message.chars().filter(|c| !c.is_control()).take(MAX_MESSAGE_CHARS).collect()
}

/// Attempts at one thing: how many have failed in a row, and how long to wait for the next.
pub(super) struct Attempts {
    retries: Retries,
    num_failed: u32,
}

impl Attempts {
    pub(super) fn new(retries: Retries) -> Attempts {
        Attempts { retries, num_failed: 0 }
    }

    /// An attempt failed, but something came of it: its failure begins a new row.
    pub(super) fn brought_something(&mut self) {
        self.num_failed = 0;
    }

    /// Returns when it is time for the next attempt; the error if there should be none.
    pub(super) async fn pause_after(&mut self, failure: Failure) -> Result<(), HubError> {
        let (url, reason, retry_after) = match failure {
            Failure::Final(error) => return Err(error),
            Failure::Passing { url, reason, retry_after } => (url, reason, retry_after),
        };
        if self.num_failed >= self.retries.max {
            return Err(HubError::Unreachable { url, reason });
        }
        // Beyond 2^16 every first pause that means anything has met the longest one.
        let pause = self.retries.first_pause * 2_u32.pow(self.num_failed.min(16));
        let pause = retry_after.unwrap_or(pause.min(self.retries.max_pause));
        self.num_failed += 1;
        let pause_ms = pause.as_millis() as u64;
        warn!(url, reason, pause_ms, attempt = self.num_failed, "the hub failed, trying again");
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_make_a_blob_only_where_its_name_leads_nowhere_else() {
        let sha256 = "a".repeat(64);
        let blob = Blob::of_headers(7, &format!("\"{sha256}\"")).unwrap();
        assert_eq!((blob.etag, blob.size, blob.hash), (sha256, 7, Some(Hash::Sha256)));
        let blob = Blob::of_headers(7, "W/\"5f0-1a\"").unwrap();
        assert_eq!((blob.etag.as_str(), blob.hash), ("5f0-1a", None));
        for etag in ["", "\"\"", "../x", "a/b", ".hidden", "ä", &"a".repeat(129)] {
            assert_eq!(Blob::of_headers(7, etag), None, "{etag}");
        }
    }

    #[test]
    fn a_listing_without_sizes_or_with_odd_hashes_leaves_the_question_open() {
        let sha1 = "b".repeat(40);
        let sha256 = "c".repeat(64);
        let blob =
            |json: serde_json::Value| serde_json::from_value::<Sibling>(json).unwrap().blob();
        let git = serde_json::json!({"rfilename": "a", "size": 3, "blobId": sha1});
        assert_eq!(blob(git), Blob::of_git(3, &sha1));
        let lfs = serde_json::json!({"rfilename": "a", "size": 3, "blobId": sha1,
            "lfs": {"sha256": sha256, "size": 9, "pointerSize": 135}});
        let blob_of_lfs = blob(lfs).unwrap();
        assert_eq!((blob_of_lfs.etag, blob_of_lfs.size), (sha256, 9));
        for open in [
            serde_json::json!({"rfilename": "a"}),
            serde_json::json!({"rfilename": "a", "size": 3, "blobId": "../x"}),
            serde_json::json!({"rfilename": "a", "lfs": {"sha256": "../x", "size": 3}}),
        ] {
            assert_eq!(blob(open), None);
        }
    }
}
