//! The cache, shared with Python's library in both directions.

use super::*;
use crate::hub::tests::server::COMMIT;
use serde_json::Value;

/// `tests/fixtures/make_hub_cache.py` wrote it.
fn fixture() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/hub/cache.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn scene() -> Scene {
    let fixture = fixture();
    assert_eq!(fixture["commit"], COMMIT);
    let files = fixture["files"].as_object().unwrap().iter().map(|(name, file)| {
        let text = file["text"].as_str().unwrap().as_bytes().to_vec();
        (name.clone(), (text, file["lfs"].as_bool().unwrap()))
    });
    Scene::of(Plan::new(fixture["repo"].as_str().unwrap(), files.collect()))
}

/// Lays out what Python's library left in its cache, but for the paths that `leave_out` picks.
fn lay_out(root: &Path, leave_out: impl Fn(&str) -> bool) {
    let fixture = fixture();
    let cache = fixture["cache"].as_object().unwrap();
    for (path, entry) in cache.iter().filter(|(path, _)| !leave_out(path)) {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        match (entry["link"].as_str(), entry["file"].as_str()) {
            (Some(target), _) => std::os::unix::fs::symlink(target, path).unwrap(),
            (None, text) => std::fs::write(path, text.unwrap()).unwrap(),
        }
    }
}

fn check_snapshot(snapshot: &Path) {
    let fixture = fixture();
    for name in fixture["needed"].as_array().unwrap() {
        let name = name.as_str().unwrap();
        let text = std::fs::read_to_string(snapshot.join(name)).unwrap();
        assert_eq!(text, fixture["files"][name]["text"].as_str().unwrap(), "{name}");
    }
}

#[tokio::test]
async fn a_download_leaves_exactly_what_the_python_library_leaves() {
    let scene = scene();
    let snapshot = scene.fetch().await.unwrap();
    check_snapshot(&snapshot);
    let found = describe(&scene.home.path().join("hub"));
    let fixture = fixture();
    let expected = fixture["cache"].as_object().unwrap();
    let paths = |map: &serde_json::Map<String, Value>| map.keys().cloned().collect::<Vec<_>>();
    assert_eq!(paths(&found), paths(expected));
    for (path, entry) in expected {
        assert_eq!(found[path], *entry, "{path}");
    }
    let needed = fixture["needed"].as_array().unwrap();
    for seen in scene.hub.seen().iter().filter(|seen| seen.target.contains("/resolve/")) {
        let is_needed = needed.iter().any(|name| seen.target.ends_with(name.as_str().unwrap()));
        assert!(is_needed && seen.method == "GET", "{seen:?}");
    }
}

#[tokio::test]
async fn what_the_python_library_downloaded_is_read_offline_without_a_request() {
    // Without its listing of the commit too, which older versions do not write.
    for without in ["no path has this in it", "/trees/", "CACHEDIR.TAG"] {
        let scene = scene().with("HF_HUB_OFFLINE", "1");
        lay_out(&scene.home.path().join("hub"), |path| path.contains(without));
        let snapshot = scene.fetch().await.unwrap();
        check_snapshot(&snapshot);
        assert_eq!(snapshot, scene.model().join("snapshots").join(COMMIT));
        assert_eq!(scene.hub.seen(), []);
    }
}

#[tokio::test]
async fn what_the_python_library_downloaded_is_not_downloaded_again() {
    let scene = scene();
    lay_out(&scene.home.path().join("hub"), |_| false);
    check_snapshot(&scene.fetch().await.unwrap());
    // What `main` means now; and of a commit, nothing.
    assert_eq!(scene.hub.seen().len(), 1);
    let order = order_of(REPO, COMMIT);
    check_snapshot(&scene.client().fetch(&order, &Meter::default()).await.unwrap());
    assert_eq!(scene.hub.seen().len(), 1);
}

#[tokio::test]
async fn contents_that_lie_there_are_linked_and_not_downloaded_again() {
    let scene = scene();
    lay_out(&scene.home.path().join("hub"), |path| path.contains("/snapshots/"));
    check_snapshot(&scene.fetch().await.unwrap());
    assert_eq!(scene.hub.seen().len(), 1);
}

#[tokio::test]
async fn an_incomplete_snapshot_is_completed_online_and_refused_offline() {
    for missing in ["chat_template.jinja", "model-00002-of-00002.safetensors", "config.json"] {
        let is_missing = |path: &str| {
            path.ends_with(missing) && path.contains("/snapshots/") || path.contains(".locks")
        };
        let offline = scene().with("HF_HUB_OFFLINE", "1");
        lay_out(&offline.home.path().join("hub"), is_missing);
        let error = offline.fetch_fails().await;
        for named in [missing, "acme/tiny", "HF_HUB_OFFLINE"] {
            assert!(error.contains(named), "{error}");
        }
        assert_eq!(offline.hub.seen(), []);
        let online = scene();
        lay_out(&online.home.path().join("hub"), is_missing);
        check_snapshot(&online.fetch().await.unwrap());
    }
}

#[tokio::test]
async fn a_blob_of_the_wrong_size_and_a_link_to_nothing_are_not_taken_for_whole() {
    let scene = Scene::new();
    scene.fetch_whole().await;
    let blob = scene.blobs().join(server::sha256(&weights()));
    std::fs::write(&blob, &weights()[1..]).unwrap();
    scene.fetch_whole().await;
    std::fs::remove_file(&blob).unwrap();
    scene.fetch_whole().await;
    assert_eq!(scene.hub.starts(WEIGHTS), [0, 0, 0]);
}

#[tokio::test]
async fn offline_without_a_cache_says_what_is_missing_and_why() {
    let scene = Scene::new().with("TRANSFORMERS_OFFLINE", "1");
    let error = scene.fetch_fails().await;
    for named in ["acme/tiny", "main", "TRANSFORMERS_OFFLINE", scene.home.path().to_str().unwrap()]
    {
        assert!(error.contains(named), "{error}");
    }
    assert_eq!(scene.hub.seen(), []);
}

#[tokio::test]
async fn without_links_a_snapshot_holds_the_files_themselves() {
    let scene = Scene::new().with("HF_HUB_DISABLE_SYMLINKS", "1");
    scene.fetch_whole().await;
    scene.fetch_whole().await;
    let weights = scene.model().join("snapshots").join(COMMIT).join(WEIGHTS);
    assert!(weights.symlink_metadata().unwrap().is_file());
    assert_eq!(scene.hub.starts(WEIGHTS), [0]);
}

#[tokio::test]
async fn two_downloads_of_the_same_model_share_each_file() {
    let scene = Scene::new();
    let (first, second) = tokio::join!(scene.fetch(), scene.fetch());
    assert_eq!(first.unwrap(), second.unwrap());
    for file in ["config.json", "tokenizer.json", WEIGHTS] {
        assert_eq!(scene.hub.starts(file), [0], "{file}");
    }
    scene.fetch_whole().await;
}

#[tokio::test]
async fn a_model_without_its_weights_is_its_description() {
    let scene = Scene::new();
    let order = Order { weights: false, ..order() };
    let snapshot = scene.client().fetch(&order, &Meter::default()).await.unwrap();
    assert!(snapshot.join("tokenizer.json").is_file() && !snapshot.join(WEIGHTS).exists());
    scene.fetch_whole().await;
}

#[tokio::test]
async fn a_revision_with_slashes_is_one_part_of_the_address_and_a_path_in_the_cache() {
    let scene = Scene::new();
    let order = order_of(REPO, "refs/pr/1");
    scene.client().fetch(&order, &Meter::default()).await.unwrap();
    let commit = std::fs::read_to_string(scene.model().join("refs/refs/pr/1")).unwrap();
    assert_eq!(commit, COMMIT);
    assert!(!scene.model().join("refs/main").exists());
}
