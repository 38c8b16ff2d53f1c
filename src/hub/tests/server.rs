//! A small hub for tests: the listing of one model, its files, and a second host that keeps the
//! large ones; and everything that can go wrong on the way, as often as a test asks for it.
//!
//! Standard library only: the client under test shares no code with it. One request a connection.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};

use serde_json::{Value, json};
use sha1::{Digest, Sha1};
use sha2::Sha256;

pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What goes wrong with a request.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// A refusal: status, `X-Error-Code`, `X-Error-Message`.
    Refuse(u16, &'static str, &'static str),
    /// The answer breaks off after so many bytes of its body.
    Cut(usize),
    /// The answer stops after so many bytes of its body, until [`FakeHub::release`].
    Stall(usize),
    /// The bytes are others than those that were promised.
    Damage,
    /// More bytes than were promised.
    TooLong,
    /// A range is answered by the whole file.
    NoRange,
    /// A range is answered by another one.
    WrongRange,
    /// The connection is closed without an answer.
    Close,
    /// To this address.
    Redirect(String),
    /// Answered only once so many of these requests wait at the same time.
    Together(usize),
}

/// One request that was seen.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Seen {
    pub(crate) method: String,
    /// As it was sent, with its query.
    pub(crate) target: String,
    /// First byte that was asked for.
    pub(crate) start: Option<u64>,
    pub(crate) authorization: Option<String>,
    /// True at the host that keeps large files.
    pub(crate) at_storage: bool,
}

struct Rule {
    part: String,
    fault: Fault,
    times: usize,
}

#[derive(Default)]
struct Shared {
    seen: Vec<Seen>,
    rules: Vec<Rule>,
    num_waiting: usize,
    is_released: bool,
}

struct State {
    repo: String,
    /// Name to contents, and whether git keeps them outside.
    files: BTreeMap<String, (Vec<u8>, bool)>,
    /// False for a mirror whose listing has names alone.
    lists_sizes: bool,
    /// Sizes that are claimed in the listing instead of the true ones.
    claimed: BTreeMap<String, u64>,
    /// Without it files are refused.
    token: Option<String>,
    storage: SocketAddr,
    shared: Mutex<Shared>,
    changed: Condvar,
}

/// What is served, and how.
pub(crate) struct Plan {
    pub(crate) repo: String,
    pub(crate) files: BTreeMap<String, (Vec<u8>, bool)>,
    pub(crate) lists_sizes: bool,
    pub(crate) claimed: BTreeMap<String, u64>,
    pub(crate) token: Option<String>,
}

impl Plan {
    pub(crate) fn new(repo: &str, files: BTreeMap<String, (Vec<u8>, bool)>) -> Plan {
        let repo = repo.to_owned();
        Plan { repo, files, lists_sizes: true, claimed: BTreeMap::new(), token: None }
    }
}

/// A running hub. Its threads end with the process.
pub(crate) struct FakeHub {
    address: SocketAddr,
    state: Arc<State>,
}

impl FakeHub {
    pub(crate) fn start(plan: Plan) -> FakeHub {
        let hub = TcpListener::bind("127.0.0.1:0").expect("no free port");
        let storage = TcpListener::bind("127.0.0.1:0").expect("no free port");
        let address = hub.local_addr().expect("it is bound");
        let state = Arc::new(State {
            repo: plan.repo,
            files: plan.files,
            lists_sizes: plan.lists_sizes,
            claimed: plan.claimed,
            token: plan.token,
            storage: storage.local_addr().expect("it is bound"),
            shared: Mutex::default(),
            changed: Condvar::new(),
        });
        for (listener, at_storage) in [(hub, false), (storage, true)] {
            let state = state.clone();
            std::thread::spawn(move || {
                for stream in listener.incoming().map_while(Result::ok) {
                    let state = state.clone();
                    // A client that is gone is no failure of the hub.
                    std::thread::spawn(move || drop(state.converse(stream, at_storage)));
                }
            });
        }
        FakeHub { address, state }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The next `times` requests whose target contains `part` go wrong.
    pub(crate) fn fail(&self, part: &str, fault: Fault, times: usize) {
        let rule = Rule { part: part.to_owned(), fault, times };
        self.state.shared.lock().unwrap().rules.push(rule);
    }

    /// Everything that was asked so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.state.shared.lock().unwrap().seen.clone()
    }

    /// First bytes that were asked for, of all requests for the contents of a file.
    pub(crate) fn starts(&self, file: &str) -> Vec<u64> {
        let is_of_file = |seen: &&Seen| {
            let is_last_hop = seen.at_storage || !self.state.files[file].1;
            seen.method == "GET" && is_last_hop && path(&seen.target).ends_with(file)
        };
        self.seen().iter().filter(is_of_file).map(|seen| seen.start.unwrap_or(0)).collect()
    }

    /// Lets go on what stalls.
    pub(crate) fn release(&self) {
        self.state.shared.lock().unwrap().is_released = true;
        self.state.changed.notify_all();
    }
}

fn path(target: &str) -> &str {
    target.split('?').next().unwrap_or("")
}

fn hex(digest: impl AsRef<[u8]>) -> String {
    digest.as_ref().iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

pub(crate) fn sha256(data: &[u8]) -> String {
    hex(Sha256::digest(data))
}

pub(crate) fn git_id(data: &[u8]) -> String {
    let header = format!("blob {}\0", data.len());
    hex(Sha1::new_with_prefix(header).chain_update(data).finalize())
}

/// What git keeps of a file that is stored outside.
fn pointer(data: &[u8]) -> Vec<u8> {
    let (oid, size) = (sha256(data), data.len());
    format!("version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {size}\n").into()
}

impl State {
    fn converse(&self, stream: TcpStream, at_storage: bool) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            if line.trim_end().is_empty() {
                break;
            }
            lines.push(line.trim_end().to_owned());
        }
        let Some((method, rest)) = lines.first().and_then(|line| line.split_once(' ')) else {
            return Ok(());
        };
        let header = |name: &str| {
            lines[1..].iter().find_map(|line| {
                let (header, value) = line.split_once(':')?;
                header.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
            })
        };
        let start = header("range")
            .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
        let seen = Seen {
            method: method.to_owned(),
            target: rest.split(' ').next().unwrap_or("").to_owned(),
            start,
            authorization: header("authorization"),
            at_storage,
        };
        self.shared.lock().unwrap().seen.push(seen.clone());
        let mut reply = Reply { stream, is_head: seen.method == "HEAD" };
        let fault = self.fault(&seen.target);
        match &fault {
            Some(Fault::Close) => return Ok(()),
            Some(Fault::Refuse(status, code, message)) => {
                return reply.refuse(*status, code, message);
            }
            Some(Fault::Redirect(to)) => return reply.redirect(to, &[]),
            Some(Fault::Together(count)) => self.wait_for_others(*count),
            _ => {}
        }
        self.answer(&seen, &mut reply, fault.as_ref())
    }

    /// The fault of this request, if it has one.
    fn fault(&self, target: &str) -> Option<Fault> {
        let mut shared = self.shared.lock().unwrap();
        let rule =
            shared.rules.iter_mut().find(|rule| rule.times > 0 && target.contains(&rule.part))?;
        rule.times -= 1;
        Some(rule.fault.clone())
    }

    fn wait_for_others(&self, count: usize) {
        let mut shared = self.shared.lock().unwrap();
        shared.num_waiting += 1;
        self.changed.notify_all();
        while shared.num_waiting < count {
            shared = self.changed.wait(shared).unwrap();
        }
    }

    fn wait_for_release(&self) {
        let mut shared = self.shared.lock().unwrap();
        while !shared.is_released {
            shared = self.changed.wait(shared).unwrap();
        }
    }

    fn answer(&self, seen: &Seen, reply: &mut Reply, fault: Option<&Fault>) -> std::io::Result<()> {
        // A proxy is sent whole addresses.
        let target = seen.target.strip_prefix("http://").map_or(seen.target.as_str(), |address| {
            address.find('/').map_or("/", |slash| &address[slash..])
        });
        let path = path(target);
        if seen.at_storage {
            let Some((data, _)) = self.files.get(path.trim_start_matches('/')) else {
                return reply.refuse(403, "", "");
            };
            return self.send(seen, reply, data, fault);
        }
        if path.starts_with("/api/models/") {
            let listing = format!("/api/models/{}/revision/", self.repo);
            return match path.strip_prefix(&listing) {
                Some("main" | "refs%2Fpr%2F1" | COMMIT) => {
                    reply.head(200, &[("content-type", "application/json")])?;
                    reply.body(self.listing(seen).to_string().as_bytes())
                }
                Some(_) => reply.refuse(404, "RevisionNotFound", "Invalid rev id"),
                None => reply.refuse(404, "RepoNotFound", "Repository not found"),
            };
        }
        let name = path.strip_prefix(&format!("/{}/resolve/{COMMIT}/", self.repo));
        let Some((name, (data, is_lfs))) =
            name.and_then(|name| Some((name, self.files.get(name)?)))
        else {
            return reply.refuse(404, "EntryNotFound", "Entry not found");
        };
        let expected = self.token.as_ref().map(|token| format!("Bearer {token}"));
        if expected.is_some() && expected != seen.authorization {
            return reply.refuse(401, "GatedRepo", "Access to this model is restricted");
        }
        let (oid, len) = (format!("\"{}\"", sha256(data)), data.len().to_string());
        if *is_lfs {
            let to = format!("http://{}/{name}?X-Amz-Signature=s3cret", self.storage);
            return reply.redirect(&to, &[("x-linked-etag", &oid), ("x-linked-size", &len)]);
        }
        self.send(seen, reply, data, fault)
    }

    fn listing(&self, seen: &Seen) -> Value {
        let has_sizes = self.lists_sizes && seen.target.ends_with("?blobs=true");
        let siblings = self.files.iter().map(|(name, (data, is_lfs))| {
            let size = self.claimed.get(name).copied().unwrap_or(data.len() as u64);
            let pointer = pointer(data);
            match (has_sizes, is_lfs) {
                (false, _) => json!({"rfilename": name}),
                (true, false) => json!({"rfilename": name, "size": size, "blobId": git_id(data)}),
                (true, true) => json!({
                    "rfilename": name, "size": size, "blobId": git_id(&pointer),
                    "lfs": {"sha256": sha256(data), "size": size, "pointerSize": pointer.len()},
                }),
            }
        });
        let siblings: Vec<Value> = siblings.collect();
        json!({"id": self.repo, "sha": COMMIT, "private": false, "siblings": siblings})
    }

    /// Sends a file, or what is asked for of it.
    fn send(
        &self,
        seen: &Seen,
        reply: &mut Reply,
        data: &[u8],
        fault: Option<&Fault>,
    ) -> std::io::Result<()> {
        let mut data = data.to_vec();
        let etag = format!("\"{}\"", git_id(&data));
        match fault {
            Some(Fault::Damage) => data.iter_mut().for_each(|byte| *byte ^= 1),
            Some(Fault::TooLong) => data.push(b'!'),
            _ => {}
        }
        let start = match (seen.start, fault) {
            (Some(start), Some(Fault::WrongRange)) => Some(start as usize + 1),
            (Some(start), fault) if !matches!(fault, Some(Fault::NoRange)) => Some(start as usize),
            _ => None,
        };
        if start.is_some_and(|start| start >= data.len()) {
            return reply.refuse(416, "", "");
        }
        let body = &data[start.unwrap_or(0)..];
        let len = body.len().to_string();
        let range = format!("bytes {}-{}/{}", start.unwrap_or(0), data.len() - 1, data.len());
        let mut headers = vec![("etag", etag.as_str()), ("content-length", len.as_str())];
        if start.is_some() {
            headers.push(("content-range", &range));
        }
        reply.head(if start.is_some() { 206 } else { 200 }, &headers)?;
        match fault {
            Some(Fault::Cut(bytes)) => reply.body(&body[..*bytes]),
            Some(Fault::Stall(bytes)) => {
                reply.body(&body[..*bytes])?;
                self.wait_for_release();
                reply.body(&body[*bytes..])
            }
            _ => reply.body(body),
        }
    }
}

/// An answer that is being written.
struct Reply {
    stream: TcpStream,
    is_head: bool,
}

impl Reply {
    fn head(&mut self, status: u16, headers: &[(&str, &str)]) -> std::io::Result<()> {
        let mut head = format!("HTTP/1.1 {status} Status\r\nconnection: close\r\n");
        head += &format!("x-repo-commit: {COMMIT}\r\n");
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        self.stream.write_all((head + "\r\n").as_bytes())
    }

    fn body(&mut self, body: &[u8]) -> std::io::Result<()> {
        if !self.is_head {
            self.stream.write_all(body)?;
        }
        self.stream.flush()
    }

    fn refuse(&mut self, status: u16, code: &str, message: &str) -> std::io::Result<()> {
        let headers =
            [("x-error-code", code), ("x-error-message", message), ("content-length", "0")];
        let is_set = |header: &&(&str, &str)| !header.1.is_empty();
        let headers: Vec<_> = headers.iter().filter(is_set).copied().collect();
        self.head(status, &headers)
    }

    fn redirect(&mut self, to: &str, headers: &[(&str, &str)]) -> std::io::Result<()> {
        let mut all = vec![("location", to), ("content-length", "0")];
        all.extend_from_slice(headers);
        self.head(302, &all)
    }
}

/// Sends one request of `client` on to `target`, and the answer back.
pub(crate) fn forward_request(
    client: &mut (impl Read + Write),
    target: SocketAddr,
) -> std::io::Result<()> {
    let mut server = TcpStream::connect(target)?;
    server.write_all(&read_head(client)?)?;
    std::io::copy(&mut server, client).map(drop)
}

/// The head of a request, up to its empty line.
fn read_head(client: &mut impl Read) -> std::io::Result<Vec<u8>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        client.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    Ok(head)
}

/// A proxy that tunnels, and the heads of what it was asked.
pub(crate) fn tunneling_proxy() -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("no free port");
    let address = listener.local_addr().expect("it is bound");
    let heads = Arc::new(Mutex::new(Vec::new()));
    let seen = heads.clone();
    std::thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let seen = seen.clone();
            std::thread::spawn(move || drop(tunnel(client, &seen)));
        }
    });
    (address, heads)
}

fn tunnel(mut client: TcpStream, seen: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let head = String::from_utf8_lossy(&read_head(&mut client)?).into_owned();
    let target = head.split(' ').nth(1).unwrap_or("").to_owned();
    seen.lock().unwrap().push(head);
    let mut server = TcpStream::connect(target)?;
    client.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
    let (mut up, mut up_to) = (client.try_clone()?, server.try_clone()?);
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut up, &mut up_to);
        let _ = up_to.shutdown(std::net::Shutdown::Write);
    });
    std::io::copy(&mut server, &mut client)?;
    client.shutdown(std::net::Shutdown::Write)
}
