//! How the hub is reached: mirrors, proxies, TLS, several files at once.

use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned, crypto};

use super::server::{Fault, Plan};
use super::*;

const CERTIFICATE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/hub/localhost.pem");

#[tokio::test]
async fn a_mirror_that_lists_names_alone_is_asked_for_each_file() {
    let mut plan = Plan::new(REPO, tiny());
    plan.lists_sizes = false;
    let scene = Scene::of(plan);
    scene.fetch_whole().await;
    let heads: Vec<_> = scene.hub.seen().into_iter().filter(|seen| seen.method == "HEAD").collect();
    assert_eq!(heads.len(), 3);
    // The hub's answer says what the file is; its storage need not be asked.
    assert!(heads.iter().all(|seen| !seen.at_storage));
    assert!(scene.blobs().join(server::sha256(&weights())).is_file());
    scene.hub.fail("model.safetensors?", Fault::Damage, 1);
    std::fs::remove_dir_all(scene.model()).unwrap();
    assert!(scene.fetch_fails().await.contains("SHA-256"));
}

#[tokio::test]
async fn several_files_are_downloaded_at_the_same_time() {
    let shards: Vec<String> = (0..8).map(|i| format!("shard-{i}.safetensors")).collect();
    let map: serde_json::Map<_, _> =
        shards.iter().map(|shard| (shard.clone(), shard.clone().into())).collect();
    let index = serde_json::json!({ "weight_map": map }).to_string().into_bytes();
    let mut files = tiny();
    files.insert("model.safetensors.index.json".into(), (index, false));
    files.extend(shards.iter().map(|shard| (shard.clone(), (shard.clone().into_bytes(), true))));
    let scene = Scene::of(Plan::new(REPO, files));
    // None of them is answered before all of them are asked for.
    scene.hub.fail("/shard-", Fault::Together(shards.len()), shards.len());
    let snapshot = scene.fetch().await.unwrap();
    for shard in &shards {
        assert_eq!(std::fs::read_to_string(snapshot.join(shard)).unwrap(), *shard);
    }
    assert!(!snapshot.join(WEIGHTS).exists());
}

#[tokio::test]
async fn plain_http_goes_through_a_proxy_as_whole_addresses() {
    let scene = Scene::new().with("HF_ENDPOINT", "http://hub.invalid");
    let proxy = format!("http://user:pass@{}", scene.hub.address());
    let proxies = Matcher::builder().all(proxy).no("127.0.0.1").build();
    client(scene.settings(), proxies).fetch(&order(), &Meter::default()).await.unwrap();
    let of_hub = scene.hub.seen().into_iter().filter(|seen| !seen.at_storage);
    assert!(of_hub.into_iter().all(|seen| seen.target.starts_with("http://hub.invalid/")));
}

#[tokio::test]
async fn a_proxy_of_another_kind_is_refused_by_name() {
    let scene = Scene::new();
    let proxies = Matcher::builder().all("socks5://127.0.0.1:1").build();
    let hub = client(scene.settings(), proxies);
    let error = hub.fetch(&order(), &Meter::default()).await.unwrap_err().to_string();
    assert!(error.contains("socks5"), "{error}");
    assert_eq!(scene.hub.seen(), []);
}

/// Speaks TLS as `localhost`, and passes on to `target`. Returns its port.
fn tls_in_front_of(target: SocketAddr) -> u16 {
    let certificates = CertificateDer::pem_file_iter(CERTIFICATE).unwrap().map(Result::unwrap);
    let key = PrivateKeyDer::from_pem_file(CERTIFICATE).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(certificates.collect(), key)
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let config = config.clone();
            std::thread::spawn(move || {
                let connection = ServerConnection::new(config).unwrap();
                let mut inside = StreamOwned::new(connection, stream);
                // A client that does not trust us ends here.
                let _ = server::forward_request(&mut inside, target);
                inside.conn.send_close_notify();
                let _ = inside.flush();
            });
        }
    });
    port
}

#[tokio::test]
async fn tls_needs_a_certificate_that_is_trusted() {
    let scene = Scene::new();
    let port = tls_in_front_of(scene.hub.address());
    let scene = scene.with("HF_ENDPOINT", &format!("https://localhost:{port}"));
    let error = scene.fetch_fails().await;
    assert!(error.contains("not trusted") && error.contains("SSL_CERT_FILE"), "{error}");
    assert_eq!(scene.hub.seen(), []);
    let scene = scene.with("SSL_CERT_FILE", CERTIFICATE);
    scene.fetch_whole().await;
}

#[tokio::test]
async fn tls_goes_through_a_proxy_as_a_tunnel() {
    let scene = Scene::new();
    let port = tls_in_front_of(scene.hub.address());
    let scene = scene
        .with("HF_ENDPOINT", &format!("https://localhost:{port}"))
        .with("SSL_CERT_FILE", CERTIFICATE);
    let (proxy, tunnels) = server::tunneling_proxy();
    let proxies = Matcher::builder().https(format!("http://u:p@{proxy}")).build();
    client(scene.settings(), proxies).fetch(&order(), &Meter::default()).await.unwrap();
    let tunnels = tunnels.lock().unwrap();
    assert!(tunnels.len() >= 4);
    for head in tunnels.iter() {
        assert!(head.starts_with(&format!("CONNECT localhost:{port} ")), "{head}");
        assert!(head.to_lowercase().contains("proxy-authorization: basic dtpw"), "{head}");
    }
}

#[test]
fn a_file_of_authorities_without_any_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("empty.pem");
    std::fs::write(&file, "no certificates").unwrap();
    let scene = Scene::new().with("SSL_CERT_FILE", file.to_str().unwrap());
    let Err(error) = Client::new(&scene.settings(), Matcher::builder().build()) else {
        panic!("it was taken")
    };
    let error = error.to_string();
    assert!(error.contains("SSL_CERT_FILE") && error.contains("empty.pem"), "{error}");
}
