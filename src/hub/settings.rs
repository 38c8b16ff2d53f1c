//! What the environment says about the hub, read as Python's huggingface_hub reads it.
//!
//! | variable | meaning | default |
//! |---|---|---|
//! | `HF_ENDPOINT` | the hub, or a mirror of it | `https://huggingface.co` |
//! | `HF_TOKEN`, `HUGGING_FACE_HUB_TOKEN`, TGI's `HF_API_TOKEN` | token; the first that is set | |
//! | `HF_TOKEN_PATH` | file that holds the token, as `hf auth login` writes it | `$HF_HOME/token` |
//! | `HF_HUB_DISABLE_IMPLICIT_TOKEN` | send no token | false |
//! | `HF_HUB_CACHE`, `HUGGINGFACE_HUB_CACHE` | the cache of models | `$HF_HOME/hub` |
//! | `HF_HOME` | everything of the hub's | `$XDG_CACHE_HOME/huggingface` |
//! | `XDG_CACHE_HOME` | all caches | `~/.cache` |
//! | `HF_HUB_OFFLINE`, else `TRANSFORMERS_OFFLINE` | only the cache | false |
//! | `HF_HUB_ETAG_TIMEOUT` | seconds that a question may take | 10 |
//! | `HF_HUB_DOWNLOAD_TIMEOUT` | seconds without a byte of a file | 10 |
//! | `HF_HUB_DISABLE_PROGRESS_BARS` | log lines instead of a bar | false |
//! | `HF_HUB_DISABLE_SYMLINKS` | snapshots hold files, not links | false |
//! | `HF_HUB_USER_AGENT_ORIGIN` | added to the user agent | |
//!
//! A variable that is set to nothing counts as not set. `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY`
//! and `NO_PROXY` hold as for curl; `SSL_CERT_FILE`, `REQUESTS_CA_BUNDLE` or `CURL_CA_BUNDLE`
//! names a file of further certificate authorities.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::Uri;
use hyper::header::HeaderValue;

use super::HubError;

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";
/// Seconds, of `huggingface_hub.constants`.
const DEFAULT_TIMEOUT: u64 = 10;
/// A token is some forty characters; what is longer is another file.
const MAX_TOKEN_BYTES: u64 = 4096;

/// How the hub is reached, and where its files are kept.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Without a slash at its end.
    pub(super) endpoint: String,
    pub(super) token: Option<Token>,
    /// The cache of models.
    pub(crate) cache: PathBuf,
    /// The variable that forbids requests, if one does.
    pub(super) offline: Option<&'static str>,
    pub(super) etag_timeout: Duration,
    pub(super) download_timeout: Duration,
    pub(crate) progress_bars: bool,
    pub(super) symlinks: bool,
    pub(super) user_agent: String,
    /// A file of further certificate authorities, and the variable that names it.
    pub(super) authorities: Option<(&'static str, PathBuf)>,
    pub(super) retries: Retries,
}

/// A token, and where it was found.
#[derive(Clone, Debug)]
pub(super) struct Token {
    pub(super) source: &'static str,
    /// `Bearer TOKEN`, marked as sensitive, so it shows in no debug output.
    pub(super) authorization: HeaderValue,
}

/// How often what failed is tried again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Retries {
    /// Attempts in a row that bring nothing new, after the first.
    pub(super) max: u32,
    /// Before the second attempt; each later pause is twice as long.
    pub(super) first_pause: Duration,
    pub(super) max_pause: Duration,
}

impl Default for Retries {
    /// As `http_backoff` in Python's library, but a little quicker to try the first time.
    fn default() -> Retries {
        Retries {
            max: 5,
            first_pause: Duration::from_millis(500),
            max_pause: Duration::from_secs(8),
        }
    }
}

impl Settings {
    /// Reads the environment of this process; `cache` stands for HUGGINGFACE_HUB_CACHE where a
    /// flag gives it.
    pub(crate) fn from_env(cache: Option<&str>) -> Result<Settings, HubError> {
        Settings::read(&|name| match (name, cache) {
            ("HUGGINGFACE_HUB_CACHE", Some(cache)) => Some(cache.to_owned()),
            _ => std::env::var(name).ok(),
        })
    }

    pub(super) fn read(variable: &dyn Fn(&str) -> Option<String>) -> Result<Settings, HubError> {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let is_true = |name: &str| set(name).is_some_and(|value| is_true(&value));
        let home = home(&set)?;
        let path = |names: &[&'static str]| {
            names.iter().find_map(|name| set(name)).map(|value| expand(&value, &set))
        };
        let cache = path(&["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"]).transpose()?;
        let token_path = path(&["HF_TOKEN_PATH"]).transpose()?;
        let token = if is_true("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
            None
        } else {
            token(&set, &token_path.unwrap_or_else(|| home.join("token")))?
        };
        let offline = ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"]
            .into_iter()
            .find(|name| set(name).is_some())
            .filter(|name| is_true(name));
        let mut user_agent = format!("millstream/{}", env!("CARGO_PKG_VERSION"));
        if let Some(origin) = set("HF_HUB_USER_AGENT_ORIGIN") {
            user_agent += &format!("; origin/{origin}");
        }
        let authorities = ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"]
            .into_iter()
            .find_map(|name| Some((name, PathBuf::from(set(name)?))));
        Ok(Settings {
            endpoint: endpoint(set("HF_ENDPOINT"))?,
            token,
            cache: cache.unwrap_or_else(|| home.join("hub")),
            offline,
            etag_timeout: seconds("HF_HUB_ETAG_TIMEOUT", &set)?,
            download_timeout: seconds("HF_HUB_DOWNLOAD_TIMEOUT", &set)?,
            progress_bars: !is_true("HF_HUB_DISABLE_PROGRESS_BARS"),
            symlinks: !is_true("HF_HUB_DISABLE_SYMLINKS"),
            user_agent,
            authorities,
            retries: Retries::default(),
        })
    }
}

fn is_true(value: &str) -> bool {
    ["1", "ON", "YES", "TRUE"].contains(&value.to_ascii_uppercase().as_str())
}

/// `HF_HOME`, or what stands for it.
fn home(set: &dyn Fn(&str) -> Option<String>) -> Result<PathBuf, HubError> {
    match (set("HF_HOME"), set("XDG_CACHE_HOME")) {
        (Some(home), _) => expand(&home, set),
        (None, Some(caches)) => expand(&format!("{caches}/huggingface"), set),
        (None, None) => expand("~/.cache/huggingface", set),
    }
}

/// Replaces a leading `~` and every `$NAME` and `${NAME}` that is set.
fn expand(path: &str, set: &dyn Fn(&str) -> Option<String>) -> Result<PathBuf, HubError> {
    let mut rest = path;
    let mut expanded = String::new();
    if rest == "~" || rest.starts_with("~/") {
        let user = set("HOME").map(PathBuf::from).or_else(std::env::home_dir);
        let user = user.filter(|user| user.is_absolute()).ok_or_else(|| HubError::Setting {
            name: "HOME".into(),
            rule: "is not set, so there is no place for downloads; set HF_HOME".into(),
        })?;
        expanded += &user.to_string_lossy();
        rest = &rest[1..];
    }
    while let Some(dollar) = rest.find('$') {
        expanded += &rest[..dollar];
        let after = &rest[dollar + 1..];
        let (name, len) = match after.strip_prefix('{').and_then(|name| name.split_once('}')) {
            Some((name, _)) => (name, name.len() + 2),
            None => {
                let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
                let len = after.find(|c| !is_name(c)).unwrap_or(after.len());
                (&after[..len], len)
            }
        };
        match set(name) {
            Some(value) => expanded += &value,
            None => expanded += &rest[dollar..dollar + 1 + len],
        }
        rest = &after[len..];
    }
    expanded += rest;
    Ok(PathBuf::from(expanded))
}

fn endpoint(value: Option<String>) -> Result<String, HubError> {
    let value = value.unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned());
    let endpoint = value.trim().trim_end_matches('/').to_owned();
    let is_address = endpoint.parse::<Uri>().is_ok_and(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https"))
            && uri.host().is_some_and(|host| !host.is_empty())
            && uri.query().is_none()
            // A password would stand in every message that names the address.
            && uri.authority().is_some_and(|authority| !authority.as_str().contains('@'))
    });
    if is_address {
        return Ok(endpoint);
    }
    let rule = "must be an address such as https://huggingface.co, without user or query".into();
    Err(HubError::Setting { name: "HF_ENDPOINT".into(), rule })
}

fn seconds(name: &str, set: &dyn Fn(&str) -> Option<String>) -> Result<Duration, HubError> {
    let Some(value) = set(name) else { return Ok(Duration::from_secs(DEFAULT_TIMEOUT)) };
    match value.trim().parse::<u64>() {
        Ok(0) => Ok(Duration::from_secs(DEFAULT_TIMEOUT)),
        // A year bounds what is added to clocks.
        Ok(seconds) if seconds <= 31_536_000 => Ok(Duration::from_secs(seconds)),
        _ => Err(HubError::Setting {
            name: name.to_owned(),
            rule: format!("must be a whole number of seconds, at most a year, is `{value}`"),
        }),
    }
}

/// The token of the environment, or of the file that a login left.
fn token(set: &dyn Fn(&str) -> Option<String>, path: &Path) -> Result<Option<Token>, HubError> {
    let names = ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_API_TOKEN"];
    let (source, text) = match names.into_iter().find_map(|name| Some((name, set(name)?))) {
        Some(found) => found,
        None => match std::fs::metadata(path).map(|file| (file.is_file(), file.len())) {
            Ok((true, ..=MAX_TOKEN_BYTES)) => {
                let text = std::fs::read_to_string(path);
                ("the token file", text.map_err(HubError::file("read the token in", path))?)
            }
            // Nobody has logged in; or what lies there is no token.
            _ => return Ok(None),
        },
    };
    let text: String = text.chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
    let text = text.trim();
    if text.is_empty() {
        return Ok(None);
    }
    let mut authorization = HeaderValue::from_str(&format!("Bearer {text}")).map_err(|_| {
        let rule = "holds characters that no token has".to_owned();
        HubError::Setting { name: source.to_owned(), rule }
    })?;
    authorization.set_sensitive(true);
    Ok(Some(Token { source, authorization }))
}

#[cfg(test)]
mod tests {
    use super::*;

    type Variables<'a> = &'a [(&'a str, &'a str)];

    fn read(variables: Variables<'_>) -> Result<Settings, HubError> {
        Settings::read(&|name| {
            let found = variables.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    fn settings(variables: Variables<'_>) -> Settings {
        read(variables).unwrap()
    }

    #[test]
    fn the_cache_is_where_the_python_library_has_it() {
        let cases: [(Variables<'_>, &str); 9] = [
            (&[], "/h/.cache/huggingface/hub"),
            (&[("XDG_CACHE_HOME", "/x")], "/x/huggingface/hub"),
            (&[("XDG_CACHE_HOME", "/x"), ("HF_HOME", "/hf")], "/hf/hub"),
            (&[("HF_HOME", "")], "/h/.cache/huggingface/hub"),
            (&[("HF_HOME", "/hf"), ("HUGGINGFACE_HUB_CACHE", "/data")], "/data"),
            (&[("HF_HUB_CACHE", "/new"), ("HUGGINGFACE_HUB_CACHE", "/data")], "/new"),
            (&[("HF_HOME", "~/hf")], "/h/hf/hub"),
            (&[("HF_HUB_CACHE", "$A/${B}/$C/x$")], "/a/b/$C/x$"),
            (&[("HF_HUB_CACHE", "~x")], "~x"),
        ];
        for (variables, expected) in cases {
            let mut all = vec![("HOME", "/h"), ("A", "/a"), ("B", "b")];
            all.extend_from_slice(variables);
            assert_eq!(settings(&all).cache, Path::new(expected), "{variables:?}");
        }
    }

    #[test]
    fn offline_is_said_by_either_variable_and_the_first_one_decides() {
        let cases: [(Variables<'_>, Option<&str>); 6] = [
            (&[], None),
            (&[("HF_HUB_OFFLINE", "1")], Some("HF_HUB_OFFLINE")),
            (&[("HF_HUB_OFFLINE", "yes")], Some("HF_HUB_OFFLINE")),
            (&[("TRANSFORMERS_OFFLINE", "True")], Some("TRANSFORMERS_OFFLINE")),
            (&[("HF_HUB_OFFLINE", "0"), ("TRANSFORMERS_OFFLINE", "1")], None),
            (
                &[("HF_HUB_OFFLINE", ""), ("TRANSFORMERS_OFFLINE", "1")],
                Some("TRANSFORMERS_OFFLINE"),
            ),
        ];
        for (variables, expected) in cases {
            assert_eq!(settings(variables).offline, expected, "{variables:?}");
        }
    }

    #[test]
    fn a_token_is_found_where_the_python_library_finds_it_and_is_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        std::fs::write(&file, "from-file\n").unwrap();
        let (home, file) = (dir.path().to_str().unwrap(), file.to_str().unwrap());
        let cases: [(Variables<'_>, Option<(&str, &str)>); 7] = [
            (&[("HF_HOME", "/nowhere")], None),
            (&[("HF_HOME", home)], Some(("the token file", "Bearer from-file"))),
            (&[("HF_TOKEN_PATH", file)], Some(("the token file", "Bearer from-file"))),
            (&[("HF_HOME", home), ("HF_TOKEN", " a\n")], Some(("HF_TOKEN", "Bearer a"))),
            (&[("HUGGING_FACE_HUB_TOKEN", "b"), ("HF_TOKEN", "a")], Some(("HF_TOKEN", "Bearer a"))),
            (&[("HUGGING_FACE_HUB_TOKEN", "b")], Some(("HUGGING_FACE_HUB_TOKEN", "Bearer b"))),
            (&[("HF_TOKEN", "a"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")], None),
        ];
        for (variables, expected) in cases {
            let settings = settings(variables);
            let token = settings.token.as_ref();
            let found = token.map(|token| (token.source, token.authorization.to_str().unwrap()));
            assert_eq!(found, expected, "{variables:?}");
            assert!(!format!("{settings:?}").contains("Bearer"), "{settings:?}");
        }
        let error = read(&[("HF_TOKEN", "s\u{1}cret")]).unwrap_err().to_string();
        assert!(error.contains("HF_TOKEN") && !error.contains("cret"), "{error}");
    }

    #[test]
    fn an_endpoint_is_an_address_that_may_have_a_path() {
        let endpoint = |value| Ok::<_, HubError>(read(&[("HF_ENDPOINT", value)])?.endpoint);
        assert_eq!(settings(&[]).endpoint, "https://huggingface.co");
        assert_eq!(endpoint("http://localhost:8080/").unwrap(), "http://localhost:8080");
        assert_eq!(endpoint("https://h/api/hf/repo").unwrap(), "https://h/api/hf/repo");
        for wrong in ["huggingface.co", "ftp://h", "https://", "https://u:p@h", "https://h/?q=1"] {
            let error = endpoint(wrong).unwrap_err().to_string();
            assert!(error.starts_with("HF_ENDPOINT") && !error.contains("u:p"), "{error}");
        }
    }

    #[test]
    fn timeouts_are_whole_seconds() {
        assert_eq!(settings(&[]).etag_timeout, Duration::from_secs(10));
        let settings = settings(&[("HF_HUB_DOWNLOAD_TIMEOUT", "60"), ("HF_HUB_ETAG_TIMEOUT", "0")]);
        assert_eq!(settings.download_timeout, Duration::from_secs(60));
        assert_eq!(settings.etag_timeout, Duration::from_secs(10));
        let error = read(&[("HF_HUB_ETAG_TIMEOUT", "soon")]).unwrap_err().to_string();
        assert!(error.contains("HF_HUB_ETAG_TIMEOUT") && error.contains("soon"), "{error}");
    }
}
