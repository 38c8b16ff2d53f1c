//! A small blocking HTTP client, independent of the server's libraries: one request a connection.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

use serde_json::Value;

use super::PATIENCE;

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Response {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(header, _)| header == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// A streamed answer. Dropping it closes the connection.
pub(crate) struct Stream {
    lines: BufReader<Body>,
}

impl Stream {
    /// The next event, or `None` after `[DONE]`.
    pub(crate) fn next_event(&mut self) -> Option<Value> {
        loop {
            let mut line = String::new();
            let num_bytes = self.lines.read_line(&mut line).expect("the stream broke");
            assert!(num_bytes > 0, "the stream ended without [DONE]");
            let Some(payload) = line.strip_prefix("data:") else { continue };
            if payload.trim() == "[DONE]" {
                return None;
            }
            return Some(serde_json::from_str(payload).expect(payload));
        }
    }

    /// The next piece of text, or `None` at the end.
    pub(crate) fn next_text(&mut self) -> Option<String> {
        while let Some(event) = self.next_event() {
            assert!(event.get("error").is_none(), "error in the stream: {event}");
            let text = event["choices"][0]["delta"]["content"].as_str();
            if let Some(text) = text.filter(|text| !text.is_empty()) {
                return Some(text.to_owned());
            }
        }
        None
    }

    /// All the text that is left.
    pub(crate) fn rest(mut self) -> String {
        std::iter::from_fn(|| self.next_text()).collect()
    }
}

/// Sends a request and reads the whole answer.
pub(crate) fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    body: Option<&Value>,
    headers: &[(&str, &str)],
) -> Response {
    let (status, headers, mut reader) = send(address, method, path, body, headers);
    let mut body = String::new();
    reader.read_to_string(&mut body).expect("the body broke");
    Response { status, headers, body }
}

/// Sends a request whose answer is a stream of events.
pub(crate) fn stream(address: SocketAddr, path: &str, body: &Value) -> Stream {
    let (status, headers, mut reader) = send(address, "POST", path, Some(body), &[]);
    if status != 200 {
        let mut body = String::new();
        let _ = reader.read_to_string(&mut body);
        panic!("no stream but {status} {headers:?}: {body}");
    }
    Stream { lines: BufReader::new(reader) }
}

fn send(
    address: SocketAddr,
    method: &str,
    path: &str,
    body: Option<&Value>,
    headers: &[(&str, &str)],
) -> (u16, Vec<(String, String)>, Body) {
    let body = body.map(Value::to_string).unwrap_or_default();
    let mut request = format!("{method} {path} HTTP/1.1\r\nhost: {address}\r\n");
    request += &format!("connection: close\r\ncontent-length: {}\r\n", body.len());
    request += "content-type: application/json\r\n";
    for (name, value) in headers {
        request += &format!("{name}: {value}\r\n");
    }
    request += &format!("\r\n{body}");
    let mut socket = TcpStream::connect(address).expect("cannot connect");
    socket.set_read_timeout(Some(PATIENCE)).expect("no read timeout");
    // A server may answer, and close, before it has read all of a body that it refuses.
    let _ = socket.write_all(request.as_bytes());

    let mut reader = BufReader::new(socket);
    let status_line = read_line(&mut reader);
    let status = status_line.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.unwrap_or_else(|| panic!("no status in `{status_line}`"));
    let mut headers = Vec::new();
    loop {
        let line = read_line(&mut reader);
        let Some((name, value)) = line.split_once(':') else { break };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let has = |name: &str, value: &str| {
        headers.iter().any(|header| header.0 == name && header.1.eq_ignore_ascii_case(value))
    };
    let length = headers.iter().find(|(name, _)| name == "content-length");
    let left = match length.and_then(|(_, length)| length.parse().ok()) {
        Some(length) => Left::Length(length),
        None if has("transfer-encoding", "chunked") => Left::NextChunk,
        None => Left::Length(u64::MAX),
    };
    (status, headers, Body { reader, left })
}

fn read_line(reader: &mut BufReader<TcpStream>) -> String {
    let mut line = String::new();
    reader.read_line(&mut line).expect("the connection broke");
    line.trim_end().to_owned()
}

/// The body of an answer, without its framing.
struct Body {
    reader: BufReader<TcpStream>,
    left: Left,
}

enum Left {
    /// Bytes to come; the end of the connection is also the end.
    Length(u64),
    /// Bytes to come of this chunk.
    Chunk(u64),
    /// The size of a chunk comes next.
    NextChunk,
    Nothing,
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if let Left::NextChunk = self.left {
            let size = read_line(&mut self.reader);
            let size = u64::from_str_radix(size.split(';').next().unwrap_or(""), 16);
            let Ok(size) = size else { return Err(std::io::ErrorKind::UnexpectedEof.into()) };
            self.left = if size == 0 { Left::Nothing } else { Left::Chunk(size) };
        }
        let (Left::Length(left) | Left::Chunk(left)) = &mut self.left else { return Ok(0) };
        let wanted = buffer.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
        let num_bytes = self.reader.read(&mut buffer[..wanted])?;
        *left -= num_bytes as u64;
        if let Left::Chunk(left) = self.left {
            if num_bytes == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            if left == 0 {
                read_line(&mut self.reader);
                self.left = Left::NextChunk;
            }
        }
        Ok(num_bytes)
    }
}
