//! A server as a child process, for the benches that ask one over HTTP.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use tempfile::TempDir;

/// Loading a model takes at most so long.
const START: Duration = Duration::from_secs(300);

/// A server that is ready; it ends with this value.
pub(crate) struct Server {
    process: Child,
    /// `http://127.0.0.1:port`
    pub(crate) url: String,
    /// The model's, if it is there for this server only.
    _directory: Option<TempDir>,
}

impl Server {
    /// `millstream serve`, as it was built beside this bench, with random weights of the shape
    /// that a config.json describes.
    pub(crate) fn millstream(config: &Path, flags: &[&str]) -> anyhow::Result<Server> {
        let directory = tempfile::tempdir()?;
        std::fs::copy(config, directory.path().join("config.json"))
            .with_context(|| format!("cannot copy {}", config.display()))?;
        let mut arguments: Vec<OsString> = vec!["serve".into(), "--load-format=dummy".into()];
        arguments.extend(["--hostname".into(), "127.0.0.1".into()]);
        arguments.extend(["--model-id".into(), directory.path().into()]);
        arguments.extend(flags.iter().map(OsString::from));
        let mut server = Server::start(&program()?, &arguments)?;
        server._directory = Some(directory);
        Ok(server)
    }

    /// Starts `program`, which is told its port by `--port`, and waits until its /health is 200.
    pub(crate) fn start(program: &Path, arguments: &[OsString]) -> anyhow::Result<Server> {
        // The port is free now, and nobody else is likely to ask for one before the server does.
        let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let log = tempfile::tempfile()?;
        let process = Command::new(program)
            .args(arguments)
            .arg("--port")
            .arg(port.to_string())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log.try_clone()?)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let url = format!("http://127.0.0.1:{port}");
        let mut server = Server { process, url, _directory: None };
        let begin = Instant::now();
        while !is_healthy(port) {
            if let Some(status) = server.process.try_wait()? {
                bail!("{} ended with {status}: {}", program.display(), said(log)?);
            }
            if begin.elapsed() > START {
                bail!("{} is not ready after {START:?}: {}", program.display(), said(log)?);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // One that has ended already is as good.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The executable beside this one, which is target/PROFILE/deps/NAME-HASH.
fn program() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let profile = own.ancestors().nth(2).context("this executable is not where cargo puts it")?;
    let program = profile.join("millstream");
    ensure!(program.is_file(), "{} is missing; cargo build --release first", program.display());
    Ok(program)
}

fn said(mut log: File) -> anyhow::Result<String> {
    let mut text = Vec::new();
    log.rewind()?;
    log.read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn is_healthy(port: u16) -> bool {
    let ask = || {
        let mut socket = TcpStream::connect(("127.0.0.1", port))?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(socket, "GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")?;
        let mut status = String::new();
        BufReader::new(socket).read_line(&mut status)?;
        std::io::Result::Ok(status)
    };
    ask().is_ok_and(|status| status.contains(" 200 "))
}
