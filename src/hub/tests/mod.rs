//! Downloads from a small hub on this machine, and every way in which they may go wrong.

mod cache;
mod faults;
mod network;
mod refusals;
pub(crate) mod server;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::client::proxy::matcher::Matcher;
use tempfile::TempDir;

use super::http::Client;
use super::settings::Retries;
use super::{Hub, HubError, Meter, Order, RepoId, Revision, Settings};
use server::{FakeHub, Plan};

const REPO: &str = "acme/tiny";
const WEIGHTS: &str = "model.safetensors";
const TOKEN: &str = "hf_dontshowthis";

/// A model of one file of weights.
fn tiny() -> BTreeMap<String, (Vec<u8>, bool)> {
    let weights: Vec<u8> = (0..100_000_u32).map(|i| (i.wrapping_mul(i) >> 7) as u8).collect();
    let files = [
        ("README.md", b"# Tiny".to_vec(), false),
        ("config.json", b"{}".to_vec(), false),
        ("tokenizer.json", b"{\"version\": \"1.0\"}".to_vec(), false),
        (WEIGHTS, weights, true),
    ];
    files.into_iter().map(|(name, data, is_lfs)| (name.to_owned(), (data, is_lfs))).collect()
}

fn weights() -> Vec<u8> {
    tiny()[WEIGHTS].0.clone()
}

fn order() -> Order {
    order_of(REPO, "main")
}

fn order_of(repo: &str, revision: &str) -> Order {
    let (repo, revision) = (RepoId::parse(repo).unwrap(), Revision::parse(revision).unwrap());
    Order { repo, revision, weights: true }
}

/// A hub that serves [`tiny`], and an empty cache.
struct Scene {
    hub: FakeHub,
    home: TempDir,
    variables: Vec<(&'static str, String)>,
}

impl Scene {
    fn new() -> Scene {
        Scene::of(Plan::new(REPO, tiny()))
    }

    fn of(plan: Plan) -> Scene {
        Scene { hub: FakeHub::start(plan), home: tempfile::tempdir().unwrap(), variables: vec![] }
    }

    /// With one more variable in the environment.
    fn with(mut self, name: &'static str, value: &str) -> Scene {
        self.variables.push((name, value.to_owned()));
        self
    }

    fn settings(&self) -> Settings {
        let variable = |name: &str| match name {
            "HF_HOME" => self.home.path().to_str().map(str::to_owned),
            _ => {
                let set = self.variables.iter().find(|(variable, _)| *variable == name);
                let set = set.map(|(_, value)| value.clone());
                set.or_else(|| (name == "HF_ENDPOINT").then(|| self.hub.url()))
            }
        };
        let mut settings = Settings::read(&variable).unwrap();
        settings.retries =
            Retries { max: 2, first_pause: Duration::ZERO, max_pause: Duration::ZERO };
        settings
    }

    fn client(&self) -> Hub {
        client(self.settings(), Matcher::builder().build())
    }

    async fn fetch(&self) -> Result<PathBuf, HubError> {
        self.client().fetch(&order(), &Meter::default()).await
    }

    /// The weights arrive whole after all.
    async fn fetch_whole(&self) {
        let snapshot = self.fetch().await.unwrap();
        assert!(std::fs::read(snapshot.join(WEIGHTS)).unwrap() == weights());
        assert_eq!(self.unfinished(), 0);
    }

    /// The download fails; returns what is said, which is one line without the token.
    async fn fetch_fails(&self) -> String {
        let error = self.fetch().await.unwrap_err().to_string();
        assert!(!error.contains('\n') && !error.contains(TOKEN), "{error}");
        assert!(!error.contains("Signature"), "{error}");
        error
    }

    fn model(&self) -> PathBuf {
        self.home.path().join("hub/models--acme--tiny")
    }

    fn blobs(&self) -> PathBuf {
        self.model().join("blobs")
    }

    /// Files that are still arriving.
    fn unfinished(&self) -> usize {
        let blobs = std::fs::read_dir(self.blobs()).unwrap();
        let names = blobs.map(|blob| blob.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.ends_with(".incomplete")).count()
    }

    fn incomplete(&self) -> PathBuf {
        self.blobs().join(format!("{}.incomplete", server::sha256(&weights())))
    }
}

fn client(settings: Settings, proxies: Matcher) -> Hub {
    let client = Client::new(&settings, proxies).unwrap();
    Hub { settings, client }
}

/// Every file with its text and every link with its target, by path, as the fixture has them.
fn describe(root: &Path) -> serde_json::Map<String, serde_json::Value> {
    fn walk(root: &Path, folder: &Path, found: &mut BTreeMap<String, serde_json::Value>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let key = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            if let Ok(target) = std::fs::read_link(&path) {
                found.insert(key, serde_json::json!({ "link": target }));
            } else if path.is_dir() {
                walk(root, &path, found);
            } else {
                let text = std::fs::read_to_string(&path).unwrap();
                found.insert(key, serde_json::json!({ "file": text }));
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(root, root, &mut found);
    found.into_iter().collect()
}
