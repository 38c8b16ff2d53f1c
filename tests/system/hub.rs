//! Models by their name on the hub: a small hub on this machine, the real executable.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::json;
use tempfile::TempDir;

use crate::common::{Server, chat, executable, request, send_signal, wait_until};

#[path = "../../src/hub/tests/server.rs"]
#[allow(dead_code, reason = "the unit tests use all of it")]
mod server;

use server::{COMMIT, FakeHub, Fault, Plan};

const REPO: &str = "acme/demo";
const TOKEN: &str = "hf_dontshowthis";
const WEIGHTS: &str = "model.safetensors";
/// The request that brings the weights, at the host that keeps them.
const AT_STORAGE: &str = "model.safetensors?";

/// The demo model, as if it were on the hub, behind a token.
fn hub() -> FakeHub {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/demo/model");
    let files = std::fs::read_dir(folder).unwrap().map(|file| {
        let file = file.unwrap();
        let name = file.file_name().into_string().unwrap();
        let is_lfs = name == WEIGHTS;
        (name, (std::fs::read(file.path()).unwrap(), is_lfs))
    });
    let mut plan = Plan::new(REPO, files.collect::<BTreeMap<_, _>>());
    plan.token = Some(TOKEN.to_owned());
    FakeHub::start(plan)
}

/// A place for downloads, and the environment that names it.
struct Place {
    home: TempDir,
    hub: FakeHub,
}

impl Place {
    fn new() -> Place {
        Place { home: tempfile::tempdir().unwrap(), hub: hub() }
    }

    fn variables(&self) -> [(&str, String); 4] {
        let home = self.home.path().to_str().unwrap().to_owned();
        [
            ("HF_ENDPOINT", self.hub.url()),
            ("HF_HOME", home),
            ("HF_TOKEN", TOKEN.to_owned()),
            // What stalls here stalls for as long as a test needs.
            ("HF_HUB_DOWNLOAD_TIMEOUT", "3600".to_owned()),
        ]
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = executable();
        command.args(args).envs(self.variables()).stdin(Stdio::null());
        command
    }

    fn download(&self) -> Output {
        self.command(&["download", REPO, "--log-level", "trace"]).output().unwrap()
    }

    fn snapshot(&self) -> PathBuf {
        self.home.path().join("hub/models--acme--demo/snapshots").join(COMMIT)
    }

    /// Bytes of weights that have arrived, if they are still arriving.
    fn arrived(&self) -> Option<u64> {
        let blobs = self.home.path().join("hub/models--acme--demo/blobs");
        let blobs = std::fs::read_dir(blobs).ok()?.map_while(Result::ok);
        let is_incomplete = |path: &PathBuf| path.extension().is_some_and(|e| e == "incomplete");
        let mut sizes = blobs.map(|blob| blob.path()).filter(is_incomplete);
        Some(sizes.next()?.metadata().ok()?.len())
    }
}

#[test]
fn a_download_prints_the_directory_of_the_files_and_never_the_token() {
    let place = Place::new();
    for _ in 0..2 {
        let output = place.download();
        let (out, log) = (String::from_utf8(output.stdout), String::from_utf8(output.stderr));
        let (out, log) = (out.unwrap(), log.unwrap());
        assert!(output.status.success(), "{log}");
        assert_eq!(out, format!("{}\n", place.snapshot().display()));
        assert!(log.contains("all files are there"), "{log}");
        assert!(!log.contains(TOKEN) && !log.contains("s3cret"), "{log}");
    }
    assert_eq!(place.hub.starts(WEIGHTS), [0]);
}

#[test]
fn a_download_that_was_killed_is_continued_by_the_next() {
    let place = Place::new();
    place.hub.fail(AT_STORAGE, Fault::Stall(1_000_000), 1);
    let mut first = place.command(&["download", REPO]).stdout(Stdio::null()).spawn().unwrap();
    wait_until("the first million bytes are on the disk", || place.arrived() == Some(1_000_000));
    first.kill().unwrap();
    first.wait().unwrap();
    assert!(!place.snapshot().join(WEIGHTS).exists());
    let output = place.download();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(place.hub.starts(WEIGHTS), [0, 1_000_000]);
    let original = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/demo/model").join(WEIGHTS);
    let downloaded = std::fs::read(place.snapshot().join(WEIGHTS)).unwrap();
    assert!(downloaded == std::fs::read(original).unwrap());
    place.hub.release();
}

/// Runs into an error that is told in one line, and names everything of `named`.
fn check_error(command: &mut Command, named: &[&str]) {
    let output = command.output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    let errors: Vec<&str> = stderr.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "{stderr}");
    for named in named {
        assert!(errors[0].contains(named), "`{named}` is not in: {stderr}");
    }
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(output.stdout.is_empty() && !stderr.contains(TOKEN), "{stderr}");
}

#[test]
fn what_cannot_be_downloaded_is_one_line() {
    let place = Place::new();
    let serve = ["serve", "--port", "0", "--model-id"];
    let with = |id| [&serve[..], &[id]].concat();
    check_error(&mut place.command(&with("acme/other")), &["`acme/other`", "private"]);
    check_error(&mut place.command(&["download", "acme/other"]), &["`acme/other`"]);
    check_error(&mut place.command(&["download", "a/b/c"]), &["`a/b/c`", "org/name"]);
    check_error(&mut place.command(&["download", REPO, "--revision", "v9"]), &["no revision `v9`"]);
    check_error(place.command(&with(REPO)).env("HF_TOKEN", "hf_no"), &["gated", "HF_TOKEN"]);
    check_error(place.command(&with(REPO)).env("HF_HUB_OFFLINE", "1"), &["HF_HUB_OFFLINE"]);
}

/// A server that is not ready yet.
struct Starting {
    child: Child,
    address: SocketAddr,
}

impl Starting {
    fn start(place: &Place) -> Starting {
        let mut child = place
            .command(&["serve", "--port", "0", "--model-id", REPO, "--json-output"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let address = lines.by_ref().map_while(Result::ok).find_map(|line| {
            let line: serde_json::Value = serde_json::from_str(&line).ok()?;
            line["address"].as_str()?.parse().ok()
        });
        let address = address.expect("it does not say where it listens");
        // The rest of the log; its end comes with that of the process.
        std::thread::spawn(move || lines.for_each(drop));
        Starting { child, address }
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        // Either fails only if the process has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_server_answers_while_it_downloads_and_ends_when_it_is_told_to() {
    let place = Place::new();
    place.hub.fail(AT_STORAGE, Fault::Stall(1_000_000), 1);
    let mut server = Starting::start(&place);
    let get = |path: &str| request(server.address, "GET", path, None, &[]);
    assert_eq!(get("/live").status, 200);
    wait_until("the first million bytes are on the disk", || place.arrived() == Some(1_000_000));
    let ready = get("/ready").json();
    let reason = ready["reason"].as_str().unwrap();
    assert!(reason.starts_with("downloading the model: ") && reason.contains(" % of "), "{ready}");
    for path in ["/ready", "/health", "/v1/models"] {
        assert_eq!(get(path).status, 503, "{path}");
    }
    send_signal("TERM", server.child.id());
    assert!(server.child.wait().unwrap().success());
    assert_eq!(place.arrived(), Some(1_000_000));
    place.hub.release();
}

#[test]
fn a_model_of_the_hub_is_served_under_its_name_by_a_worker_that_knows_no_token() {
    let place = Place::new();
    let variables = place.variables();
    let variables: Vec<_> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let server = Server::start_with(&["--model-id", REPO, "--revision", "main"], &variables);
    let answer = server.chat(&chat("What is 2 + 3?", json!({"max_tokens": 8})));
    assert_eq!(answer["model"], REPO);
    assert_eq!(server.get("/v1/models").json()["data"][0]["id"], REPO);
    assert!(!server.log_contains(TOKEN));
    if cfg!(target_os = "linux") {
        let read = |pid: u32, file: &str| {
            String::from_utf8_lossy(&std::fs::read(format!("/proc/{pid}/{file}")).unwrap())
                .into_owned()
        };
        let worker = server.worker();
        let command_line = read(worker, "cmdline");
        assert!(command_line.contains(place.snapshot().to_str().unwrap()), "{command_line}");
        for file in ["cmdline", "environ"] {
            assert!(!read(worker, file).contains(TOKEN), "{file} of the worker");
        }
        assert!(!read(server.pid(), "cmdline").contains(TOKEN));
    }
    // A worker that is started again asks the hub for nothing.
    let num_seen = place.hub.seen().len();
    send_signal("KILL", server.worker());
    wait_until("another worker answers", || {
        server.workers().len() == 2 && server.get("/ready").status == 200
    });
    assert_eq!(place.hub.seen().len(), num_seen);
}
