//! The name of a model on the hub, and of a state of it.
//!
//! Both become parts of paths and of addresses, so what is held here leads nowhere else.

use std::fmt;

use super::HubError;

/// `org/name`, or the bare name of one of the hub's oldest models.
///
/// Invariant: the rules of `validate_repo_id` in Python's huggingface_hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RepoId(String);

impl RepoId {
    pub(crate) fn parse(id: &str) -> Result<RepoId, HubError> {
        let broken = |rule| Err(HubError::InvalidRepo { id: id.to_owned(), rule });
        let parts: Vec<&str> = id.split('/').collect();
        if parts.len() > 2 || parts.iter().any(|part| part.is_empty()) {
            return broken("such a name reads `org/name`");
        }
        let is_allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if !id.chars().all(|c| is_allowed(c) || c == '/') {
            return broken("such a name has ASCII letters, digits, `-`, `_` and `.` only");
        }
        if parts.iter().any(|part| part.len() > 96) {
            return broken("a part of such a name has at most 96 characters");
        }
        let is_edge_odd = |part: &&str| part.starts_with(['-', '.']) || part.ends_with(['-', '.']);
        if parts.iter().any(is_edge_odd) || id.contains("--") || id.contains("..") {
            return broken("`-` and `.` stand inside such a name, and alone");
        }
        if id.ends_with(".git") {
            return broken("such a name does not end in `.git`");
        }
        Ok(RepoId(id.to_owned()))
    }

    /// The directory of the model in the cache.
    pub(super) fn folder_name(&self) -> String {
        format!("models--{}", self.0.replace('/', "--"))
    }
}

impl fmt::Display for RepoId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A branch, a tag or a commit.
///
/// Invariant: a relative path of ordinary parts, such as `main` or `refs/pr/1`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Revision(String);

impl Revision {
    pub(crate) fn parse(revision: &str) -> Result<Revision, HubError> {
        let broken = |rule| {
            let revision = revision.escape_debug().to_string();
            Err(HubError::InvalidRevision { revision, rule })
        };
        if revision.len() > 255 {
            return broken("has more than 255 characters");
        }
        let is_odd = |part: &str| matches!(part, "" | "." | "..");
        if revision.split('/').any(is_odd) || revision.contains(|c: char| c.is_control()) {
            return broken("is no name of a state of a model");
        }
        Ok(Revision(revision.to_owned()))
    }

    /// The commit, if the revision is the full name of one.
    pub(super) fn commit(&self) -> Option<Commit> {
        Commit::parse(&self.0)
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One state of a model for all time. Invariant: 40 lower-case hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Commit(String);

impl Commit {
    pub(super) fn parse(text: &str) -> Option<Commit> {
        is_hex(text, 40).then(|| Commit(text.to_owned()))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Commit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// True for exactly `len` lower-case hexadecimal digits.
pub(super) fn is_hex(text: &str, len: usize) -> bool {
    text.len() == len && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_named_as_the_hub_names_them() {
        for id in ["gpt2", "Qwen/Qwen3-0.6B", "HuggingFaceTB/SmolLM2-135M-Instruct", "a/b_c.d"] {
            assert_eq!(RepoId::parse(id).unwrap().to_string(), id);
        }
        let wrong = [
            "", "/", "a/", "/a", "a/b/c", "a//b", "./a", "../a", "~/a", "a b", "a/b:c", "ä/b",
            "a--b/c", "a/b..c", "-a/b", "a/b.", "a/b.git",
        ];
        for id in wrong {
            let error = RepoId::parse(id).unwrap_err().to_string();
            assert!(error.contains(&format!("`{id}`")) && !error.contains('\n'), "{error}");
        }
        assert!(RepoId::parse(&"x".repeat(97)).is_err());
        assert_eq!(RepoId::parse("a/b").unwrap().folder_name(), "models--a--b");
        assert_eq!(RepoId::parse("gpt2").unwrap().folder_name(), "models--gpt2");
    }

    #[test]
    fn a_revision_never_leads_out_of_the_cache() {
        for revision in ["main", "v1.0", "refs/pr/1", "feature/x..y"] {
            assert!(Revision::parse(revision).is_ok(), "{revision}");
        }
        for revision in ["", "/main", "main/", "../x", "a/../b", "./a", "a\nb"] {
            assert!(Revision::parse(revision).is_err(), "{revision}");
        }
        let commit = "0123456789abcdef0123456789abcdef01234567";
        assert!(Revision::parse(commit).unwrap().commit().is_some());
        assert!(Revision::parse("0123456").unwrap().commit().is_none());
    }
}
