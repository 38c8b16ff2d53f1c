//! A server process of a test's own, and the processes behind it.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tempfile::TempDir;

use super::{Response, Stream, http, wait_until};

/// The executable under test, with nothing of the caller's environment that could change it.
pub(crate) fn executable() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millstream"));
    command.env_clear();
    command
}

/// A running `millstream serve`. Dropping it kills it, as `kill -9` does.
pub(crate) struct Server {
    child: Child,
    address: SocketAddr,
    /// What it has logged so far.
    log: Arc<Mutex<String>>,
    /// Where it keeps what is temporary.
    temporary: TempDir,
}

impl Server {
    /// Starts the demo model, or what `flags` name, and waits until it is ready.
    pub(crate) fn start(flags: &[&str]) -> Server {
        Server::start_with(flags, &[])
    }

    /// The same, with these variables in its environment.
    pub(crate) fn start_with(flags: &[&str], variables: &[(&str, &str)]) -> Server {
        let temporary = tempfile::tempdir().expect("no temporary directory");
        let mut child = executable()
            .args(["serve", "--port", "0"])
            .args(flags)
            .env("KV_CACHE_MEMORY", "64MiB")
            .env("TMPDIR", temporary.path())
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("cannot start the executable");
        let log = Arc::new(Mutex::new(String::new()));
        let stderr = BufReader::new(child.stderr.take().expect("stderr is piped"));
        std::thread::spawn({
            let log = log.clone();
            move || {
                for line in stderr.lines().map_while(Result::ok) {
                    // Shown by the test harness if the test fails.
                    eprintln!("  | {line}");
                    let mut log = log.lock().unwrap();
                    log.push_str(&line);
                    log.push('\n');
                }
            }
        });
        let mut stdout = BufReader::new(child.stdout.take().expect("stdout is piped")).lines();
        let address = stdout.by_ref().map_while(Result::ok).find_map(|line| {
            line.split_once("listening on http://").and_then(|(_, rest)| rest.trim().parse().ok())
        });
        let Some(address) = address else {
            let status = child.wait();
            panic!("the server did not start ({status:?}):\n{}", log.lock().unwrap());
        };
        // The rest of the greeting; its end comes with that of the process.
        std::thread::spawn(move || stdout.for_each(drop));
        Server { child, address, log, temporary }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn get(&self, path: &str) -> Response {
        http::request(self.address, "GET", path, None, &[])
    }

    pub(crate) fn get_with(&self, path: &str, header: (&str, &str)) -> Response {
        http::request(self.address, "GET", path, None, &[header])
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Response {
        http::request(self.address, "POST", path, Some(body), &[])
    }

    /// The answer to a chat request that succeeds.
    pub(crate) fn chat(&self, body: &Value) -> Value {
        let response = self.post("/v1/chat/completions", body);
        assert_eq!(response.status, 200, "{body}: {}", response.body);
        response.json()
    }

    /// A chat request that is streamed.
    pub(crate) fn stream(&self, body: &Value) -> Stream {
        http::stream(self.address, "/v1/chat/completions", body)
    }

    /// The value of a metric without labels.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let metrics = self.get("/metrics").body;
        let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.trim().parse().ok())
            .unwrap_or_else(|| panic!("no metric {name} in:\n{metrics}"))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Process ids of all workers so far, the running one last.
    pub(crate) fn workers(&self) -> Vec<u32> {
        let log = self.log.lock().unwrap();
        let started = log.lines().filter(|line| line.contains("worker started"));
        let pid = |line: &str| {
            line.split_once("pid=")?.1.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
        };
        started.filter_map(pid).collect()
    }

    /// The worker that runs now.
    pub(crate) fn worker(&self) -> u32 {
        *self.workers().last().expect("no worker was started")
    }

    pub(crate) fn log_contains(&self, text: &str) -> bool {
        self.log.lock().unwrap().contains(text)
    }

    /// Where it keeps what is temporary; empty once nothing of it is left.
    pub(crate) fn temporary(&self) -> &Path {
        self.temporary.path()
    }

    /// Waits for the end of the process.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        wait_until("the server ends", || {
            status = self.child.try_wait().expect("cannot wait for the server");
            status.is_some()
        });
        status.expect("it has ended")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Either fails only if the process has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a signal, by name, to a process.
pub(crate) fn send_signal(signal: &str, pid: u32) {
    let kill = format!("kill -{signal} {pid}");
    let status = Command::new("/bin/sh").args(["-c", &kill]).status().expect("no shell");
    assert!(status.success(), "`{kill}` failed");
}

/// True while the process exists and has not ended.
pub(crate) fn is_running(pid: u32) -> bool {
    // An ended process whose new parent has not asked for its status yet is a zombie.
    if let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.trim().chars().next());
        return !matches!(state, Some('Z' | 'X'));
    }
    let kill = format!("kill -0 {pid} 2>/dev/null");
    !Path::new("/proc/self").exists()
        && Command::new("/bin/sh").args(["-c", &kill]).status().is_ok_and(|s| s.success())
}
