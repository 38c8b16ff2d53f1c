//! Answers that break off, lie or never come.

use super::server::{Fault, Plan};
use super::*;

/// Requests for the weights at the host that keeps them; the hub's own address has no query.
const AT_STORAGE: &str = "model.safetensors?";

/// One request for the weights goes wrong, and the download still succeeds; `starts` are the first
/// bytes that were asked for.
async fn check_recovers(fault: Fault, starts: &[u64]) {
    let scene = Scene::new();
    let shown = format!("{fault:?}");
    scene.hub.fail(AT_STORAGE, fault, 1);
    scene.fetch_whole().await;
    assert_eq!(scene.hub.starts(WEIGHTS), starts, "{shown}");
}

#[tokio::test]
async fn what_breaks_off_is_continued_where_it_broke_off() {
    check_recovers(Fault::Cut(60_000), &[0, 60_000]).await;
    check_recovers(Fault::Cut(0), &[0, 0]).await;
    check_recovers(Fault::Close, &[0, 0]).await;
    // A signed address that has expired, and a storage that is overloaded.
    check_recovers(Fault::Refuse(403, "", ""), &[0, 0]).await;
    check_recovers(Fault::Refuse(503, "", ""), &[0, 0]).await;
}

#[tokio::test]
async fn what_stalls_is_given_up_and_continued() {
    let scene = Scene::new().with("HF_HUB_DOWNLOAD_TIMEOUT", "1");
    scene.hub.fail(AT_STORAGE, Fault::Stall(60_000), 1);
    scene.fetch_whole().await;
    assert!(scene.hub.starts(WEIGHTS).len() > 1);
    scene.hub.release();
}

#[tokio::test]
async fn attempts_are_counted_anew_whenever_something_arrives() {
    let scene = Scene::new();
    scene.hub.fail(AT_STORAGE, Fault::Cut(20_000), 4);
    scene.fetch_whole().await;
    assert_eq!(scene.hub.starts(WEIGHTS), [0, 20_000, 40_000, 60_000, 80_000]);
}

#[tokio::test]
async fn a_download_that_never_gets_further_ends_and_names_what_failed() {
    for (fault, named) in [
        (Fault::Refuse(502, "", ""), "502"),
        (Fault::Refuse(429, "", ""), "429"),
        (Fault::Close, "connection"),
        (Fault::Cut(0), "body"),
    ] {
        let scene = Scene::new();
        scene.hub.fail(WEIGHTS, fault, 100);
        let error = scene.fetch_fails().await;
        assert!(error.contains(WEIGHTS) && error.contains(named), "{error}");
        assert!(!scene.model().join("refs").exists());
    }
}

#[tokio::test]
async fn a_server_without_ranges_sends_all_again() {
    let scene = Scene::new();
    scene.hub.fail(AT_STORAGE, Fault::Cut(60_000), 1);
    scene.hub.fail(AT_STORAGE, Fault::NoRange, 1);
    scene.fetch_whole().await;
    assert_eq!(scene.hub.starts(WEIGHTS), [0, 60_000]);
}

#[tokio::test]
async fn a_part_that_was_not_asked_for_is_not_taken() {
    let scene = Scene::new();
    scene.hub.fail(AT_STORAGE, Fault::Cut(60_000), 1);
    scene.hub.fail(AT_STORAGE, Fault::WrongRange, 1);
    scene.fetch_whole().await;
    assert_eq!(scene.hub.starts(WEIGHTS), [0, 60_000, 60_000]);
}

#[tokio::test]
async fn a_range_that_the_server_refuses_begins_anew() {
    let scene = Scene::new();
    scene.hub.fail(AT_STORAGE, Fault::Cut(60_000), 1);
    scene.hub.fail(AT_STORAGE, Fault::Refuse(416, "", ""), 1);
    scene.fetch_whole().await;
    assert_eq!(scene.hub.starts(WEIGHTS), [0, 60_000, 0]);
}

/// Lays `bytes` where an earlier process would have left its partial download.
async fn check_continues(bytes: &[u8], starts: &[u64]) {
    let scene = Scene::new();
    std::fs::create_dir_all(scene.blobs()).unwrap();
    std::fs::write(scene.incomplete(), bytes).unwrap();
    scene.fetch_whole().await;
    assert_eq!(scene.hub.starts(WEIGHTS), starts);
}

#[tokio::test]
async fn what_an_earlier_process_left_is_continued_or_found_to_be_damaged() {
    let whole = weights();
    check_continues(&whole[..70_001], &[70_001]).await;
    // All was there, but for its name.
    check_continues(&whole, &[]).await;
    check_continues(&[&whole[..], b"!"].concat(), &[0]).await;
    check_continues(&[7; 5000], &[5000, 0]).await;
    check_continues(&vec![7; whole.len()], &[0]).await;
}

#[tokio::test]
async fn a_file_with_the_wrong_hash_is_deleted_and_named() {
    for (part, file) in [(AT_STORAGE, WEIGHTS), ("tokenizer.json", "tokenizer.json")] {
        let scene = Scene::new();
        scene.hub.fail(part, Fault::Damage, 1);
        let error = scene.fetch_fails().await;
        assert!(error.contains(&format!("`{file}`")) && error.contains("SHA-"), "{error}");
        let (data, _) = &tiny()[file];
        for name in [server::sha256(data), server::git_id(data)] {
            assert!(!scene.blobs().join(&name).exists());
            assert!(!scene.blobs().join(format!("{name}.incomplete")).exists());
        }
        scene.fetch_whole().await;
    }
}

#[tokio::test]
async fn more_bytes_than_were_promised_are_refused() {
    let scene = Scene::new();
    scene.hub.fail(AT_STORAGE, Fault::TooLong, 1);
    let error = scene.fetch_fails().await;
    assert!(error.contains(WEIGHTS) && error.contains("100000 bytes"), "{error}");
}

#[tokio::test]
async fn a_listing_is_asked_for_again_when_the_hub_fails() {
    let scene = Scene::new();
    scene.hub.fail("/api/models/", Fault::Refuse(500, "", ""), 1);
    scene.hub.fail("/api/models/", Fault::Close, 1);
    scene.fetch_whole().await;
    assert_eq!(scene.hub.seen().iter().filter(|seen| seen.target.contains("/api/")).count(), 3);
}

#[tokio::test]
async fn a_disk_without_room_is_told_before_the_first_byte() {
    let mut plan = Plan::new(REPO, tiny());
    plan.claimed.insert(WEIGHTS.to_owned(), 1 << 62);
    let scene = Scene::of(plan);
    let error = scene.fetch_fails().await;
    assert!(error.contains("not enough space") && error.contains("HF_HUB_CACHE"), "{error}");
    assert_eq!(scene.hub.starts(WEIGHTS), [0; 0]);
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_disk_that_becomes_full_is_told_and_names_the_file() {
    let scene = Scene::new();
    std::fs::create_dir_all(scene.blobs()).unwrap();
    std::os::unix::fs::symlink("/dev/full", scene.incomplete()).unwrap();
    let error = scene.fetch_fails().await;
    assert!(error.contains("full") && error.contains(WEIGHTS), "{error}");
}

#[tokio::test]
async fn a_cache_that_cannot_be_written_to_is_named() {
    let scene = Scene::new();
    std::fs::write(scene.home.path().join("hub"), "no directory").unwrap();
    let error = scene.fetch_fails().await;
    assert!(error.contains("cannot") && error.contains("hub/models--acme--tiny"), "{error}");
}
