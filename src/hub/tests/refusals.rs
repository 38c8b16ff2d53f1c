//! What the hub will not give, and what is said then.

use super::server::{Fault, Plan};
use super::*;

fn gated() -> Scene {
    let mut plan = Plan::new(REPO, tiny());
    plan.token = Some(TOKEN.to_owned());
    Scene::of(plan)
}

/// The download fails with an error that names everything of `named`.
async fn check(scene: &Scene, named: &[&str]) {
    let error = scene.fetch_fails().await;
    for named in named {
        assert!(error.contains(named), "`{named}` is not in: {error}");
    }
}

#[tokio::test]
async fn a_gated_model_names_the_page_of_its_licence_and_the_variable() {
    let scene = gated();
    let page = format!("{}/acme/tiny", scene.hub.url());
    check(&scene, &["`acme/tiny` is gated", &page, "set HF_TOKEN"]).await;
    let scene = gated().with("HF_TOKEN", "hf_other");
    check(&scene, &["gated", "token from HF_TOKEN"]).await;
}

#[tokio::test]
async fn the_token_opens_a_gated_model_and_is_shown_to_the_hub_alone() {
    let scene = gated().with("HF_TOKEN", TOKEN);
    scene.fetch_whole().await;
    let seen = scene.hub.seen();
    assert!(seen.iter().any(|seen| seen.at_storage));
    for seen in seen {
        let expected = (!seen.at_storage).then(|| format!("Bearer {TOKEN}"));
        assert_eq!(seen.authorization, expected, "{seen:?}");
    }
}

#[tokio::test]
async fn the_token_follows_no_redirect_to_another_host() {
    let stranger = FakeHub::start(Plan::new(REPO, tiny()));
    let scene = gated().with("HF_TOKEN", TOKEN);
    let path = format!("/acme/tiny/resolve/{}/tokenizer.json", server::COMMIT);
    scene.hub.fail("tokenizer.json", Fault::Redirect(stranger.url() + &path), 1);
    scene.fetch_whole().await;
    let seen = stranger.seen();
    assert_eq!((seen.len(), seen[0].authorization.as_deref()), (1, None));
}

#[tokio::test]
async fn what_does_not_exist_is_named() {
    let scene = Scene::new();
    let fetch = async |repo: &str, revision: &str| {
        let order = order_of(repo, revision);
        scene.client().fetch(&order, &Meter::default()).await.unwrap_err().to_string()
    };
    let error = fetch("acme/other", "main").await;
    for named in ["`acme/other`", "neither a directory", &scene.hub.url(), "HF_TOKEN"] {
        assert!(error.contains(named), "{error}");
    }
    let error = fetch(REPO, "v9").await;
    assert!(error.contains("no revision `v9`"), "{error}");
    scene.hub.fail("tokenizer.json", Fault::Refuse(404, "EntryNotFound", "Entry not found"), 1);
    let error = fetch(REPO, "main").await;
    assert!(error.contains("no file `tokenizer.json`"), "{error}");
}

#[tokio::test]
async fn other_refusals_repeat_the_hubs_words_in_one_line() {
    let cases: [(Fault, &[&str]); 5] = [
        (Fault::Refuse(401, "", "Invalid credentials in Authorization header"), &["HF_TOKEN"]),
        (Fault::Refuse(401, "", ""), &["private"]),
        (Fault::Refuse(403, "", "Access to this resource is disabled."), &["403", "is disabled"]),
        (Fault::Refuse(400, "", "no way"), &["400", "no way"]),
        (Fault::Redirect("/api/models/round".into()), &["redirects"]),
    ];
    for (fault, named) in cases {
        let scene = Scene::new().with("HF_TOKEN", TOKEN);
        scene.hub.fail("/api/models/", fault, 100);
        check(&scene, named).await;
    }
}

#[tokio::test]
async fn a_model_without_safetensors_is_refused_before_its_weights_are_downloaded() {
    let mut files = tiny();
    files.remove(WEIGHTS);
    files.insert("pytorch_model.bin".into(), (weights(), true));
    let scene = Scene::of(Plan::new(REPO, files));
    check(&scene, &["`acme/tiny`", "model.safetensors", "pytorch_model.bin"]).await;
    let mut files = tiny();
    files.remove("config.json");
    check(&Scene::of(Plan::new(REPO, files)), &["`acme/tiny`", "config.json"]).await;
}

#[tokio::test]
async fn a_whole_copy_is_served_when_the_hub_is_of_no_help() {
    let faults = [
        Fault::Close,
        Fault::Refuse(500, "", ""),
        Fault::Refuse(403, "GatedRepo", ""),
        Fault::Refuse(404, "RepoNotFound", ""),
        Fault::Refuse(401, "", "Invalid credentials in Authorization header"),
    ];
    for fault in faults {
        let scene = Scene::new().with("HF_TOKEN", TOKEN);
        scene.fetch_whole().await;
        let num_seen = scene.hub.seen().len();
        scene.hub.fail("", fault, 100);
        scene.fetch_whole().await;
        assert_eq!(scene.hub.seen().len(), num_seen + 1, "it is asked once");
        // A revision that is gone is not what was asked for.
        scene.hub.fail("", Fault::Refuse(404, "RevisionNotFound", ""), 1);
    }
    let scene = Scene::new();
    scene.fetch_whole().await;
    scene.hub.fail("", Fault::Refuse(404, "RevisionNotFound", ""), 1);
    check(&scene, &["no revision `main`"]).await;
}
