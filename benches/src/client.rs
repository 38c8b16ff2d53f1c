//! One connection to the server, and one request at a time on it.

use std::time::Instant;

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use crate::sse::{EventScanner, Payload, classify};

/// The part of an error's body that is shown.
const MAX_SHOWN_BYTES: usize = 300;

/// Where requests go, and as whom.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// `host:port`
    pub(crate) authority: String,
    pub(crate) api_key: Option<String>,
}

impl Target {
    /// The server at `http://host` or `http://host:port`.
    pub(crate) fn new(url: &str, api_key: Option<String>) -> anyhow::Result<Target> {
        let authority = url.strip_prefix("http://").context("the URL must begin with http://")?;
        let authority = match authority.rsplit_once(':') {
            Some((_, port)) if port.parse::<u16>().is_ok() => authority.to_owned(),
            _ => format!("{authority}:80"),
        };
        Ok(Target { authority, api_key })
    }
}

/// A keep-alive connection; reconnects when the server has closed it.
pub(crate) struct Client {
    target: Target,
    sender: Option<SendRequest<Full<Bytes>>>,
}

/// One answered request, as its client saw it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Answer {
    /// From sending the request to the first text.
    pub(crate) ttft_us: u64,
    /// From sending the request to the end of the stream.
    pub(crate) e2e_us: u64,
    /// From the first text to the last.
    pub(crate) text_us: u64,
    pub(crate) prompt_tokens: u64,
    pub(crate) output_tokens: u64,
    /// Events that brought text.
    pub(crate) text_events: u64,
}

impl Client {
    pub(crate) fn new(target: Target) -> Self {
        Client { target, sender: None }
    }

    /// Names of the models that the server lists.
    pub(crate) async fn models(&mut self) -> anyhow::Result<Vec<String>> {
        let response = self.send(Method::GET, "/v1/models", String::new()).await?;
        let body = check_status(response).await?.into_body().collect().await?.to_bytes();
        let list: Value = serde_json::from_slice(&body).context("/v1/models is no JSON")?;
        let models = list["data"].as_array().into_iter().flatten();
        Ok(models.filter_map(|model| model["id"].as_str().map(str::to_owned)).collect())
    }

    /// Streams one answer; the time between two texts goes into `gaps_us`.
    pub(crate) async fn stream(
        &mut self,
        path: &str,
        body: String,
        gaps_us: &mut Vec<u32>,
    ) -> anyhow::Result<Answer> {
        let sent = Instant::now();
        let response = self.send(Method::POST, path, body).await?;
        let mut body = check_status(response).await?.into_body();
        let mut stream = StreamState::default();
        while let Some(frame) = body.frame().await {
            if let Some(bytes) = frame.context("stream broken")?.data_ref() {
                stream.take(bytes, Instant::now(), gaps_us)?;
            }
        }
        stream.finish(sent, Instant::now())
    }

    async fn send(
        &mut self,
        method: Method,
        path: &str,
        body: String,
    ) -> anyhow::Result<Response<Incoming>> {
        let mut request = Request::builder().method(method).uri(path);
        request = request.header(HOST, &self.target.authority);
        request = request.header(CONTENT_TYPE, "application/json");
        if let Some(key) = &self.target.api_key {
            request = request.header(AUTHORIZATION, format!("Bearer {key}"));
        }
        let request = request.body(Full::new(Bytes::from(body)))?;
        // A server may close a connection that it kept just as the next request comes: then
        // nothing of it is answered, and it is sent once more on a new one.
        if let Some(sender) = self.sender.as_mut().filter(|sender| !sender.is_closed())
            && let Ok(response) = send_on(sender, request.clone()).await
        {
            return Ok(response);
        }
        let sender = self.sender.insert(connect(&self.target.authority).await?);
        send_on(sender, request).await.context("request failed")
    }
}

async fn send_on(
    sender: &mut SendRequest<Full<Bytes>>,
    request: Request<Full<Bytes>>,
) -> hyper::Result<Response<Incoming>> {
    sender.ready().await?;
    sender.send_request(request).await
}

async fn connect(authority: &str) -> anyhow::Result<SendRequest<Full<Bytes>>> {
    let context = || format!("cannot connect to {authority}");
    let socket = TcpStream::connect(authority).await.with_context(context)?;
    socket.set_nodelay(true)?;
    let (sender, connection) = handshake(TokioIo::new(socket)).await.with_context(context)?;
    // What goes wrong on the connection is reported by the request that waits for it.
    tokio::spawn(connection);
    Ok(sender)
}

async fn check_status(response: Response<Incoming>) -> anyhow::Result<Response<Incoming>> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let body = response.into_body().collect().await?.to_bytes();
    Err(anyhow!("{status}: {}", shown(&body)))
}

fn shown(body: &[u8]) -> String {
    String::from_utf8_lossy(&body[..body.len().min(MAX_SHOWN_BYTES)]).trim().to_owned()
}

/// What has come of a stream so far.
#[derive(Debug, Default)]
struct StreamState {
    scanner: EventScanner,
    /// First and last arrival of text.
    text: Option<(Instant, Instant)>,
    num_texts: u64,
    /// The last event before the end, which holds the usage.
    last: Vec<u8>,
    done: bool,
    failed: bool,
}

impl StreamState {
    fn take(&mut self, bytes: &[u8], now: Instant, gaps_us: &mut Vec<u32>) -> anyhow::Result<()> {
        let StreamState { scanner, text, num_texts, last, done, failed } = self;
        scanner.feed(bytes, |event| {
            let payload = classify(event);
            if payload == Payload::Text {
                *num_texts += 1;
                if let Some((_, last)) = text {
                    let gap_us = now.duration_since(*last).as_micros();
                    gaps_us.push(u32::try_from(gap_us).unwrap_or(u32::MAX));
                    *last = now;
                } else {
                    *text = Some((now, now));
                }
            }
            *done |= payload == Payload::Done;
            // What follows an error, an end for example, does not undo it.
            if payload != Payload::Done && !*failed {
                last.clear();
                last.extend_from_slice(event);
                *failed = payload == Payload::Error;
            }
        });
        if self.failed {
            bail!("error in the stream: {}", shown(&self.last));
        }
        Ok(())
    }

    fn finish(self, sent: Instant, now: Instant) -> anyhow::Result<Answer> {
        if !self.done {
            bail!("the stream ended without [DONE]");
        }
        let (first, last) = self.text.context("the stream brought no text")?;
        let event: Value = serde_json::from_slice(&self.last).unwrap_or_default();
        let usage = |key: &str| event["usage"][key].as_u64();
        let us = |from: Instant, to: Instant| to.duration_since(from).as_micros() as u64;
        Ok(Answer {
            ttft_us: us(sent, first),
            e2e_us: us(sent, now),
            text_us: us(first, last),
            prompt_tokens: usage("prompt_tokens").unwrap_or(0),
            // A server that reports no usage sends, as most do, a token per event.
            output_tokens: usage("completion_tokens").unwrap_or(self.num_texts),
            text_events: self.num_texts,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    const ROLE: &str =
        "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n";
    const TEXT: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";
    const USAGE: &str =
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":4}}\n\n";
    const DONE: &str = "data: [DONE]\n\n";

    /// Pieces that arrive at these milliseconds after the request was sent.
    fn answer(pieces: &[(u64, &str)]) -> anyhow::Result<(Answer, Vec<u32>)> {
        let sent = Instant::now();
        let at = |ms| sent + Duration::from_millis(ms);
        let mut stream = StreamState::default();
        let mut gaps_us = Vec::new();
        for (ms, piece) in pieces {
            stream.take(piece.as_bytes(), at(*ms), &mut gaps_us)?;
        }
        let end = pieces.last().map_or(0, |(ms, _)| *ms);
        Ok((stream.finish(sent, at(end))?, gaps_us))
    }

    #[test]
    fn the_first_token_is_the_first_text_and_gaps_lie_between_texts() {
        let two_texts = TEXT.repeat(2);
        let pieces = [(5, ROLE), (10, TEXT), (13, TEXT), (20, &two_texts), (21, USAGE), (22, DONE)];
        let (answer, gaps_us) = answer(&pieces).unwrap();
        let expected = Answer {
            ttft_us: 10_000,
            e2e_us: 22_000,
            text_us: 10_000,
            prompt_tokens: 9,
            output_tokens: 4,
            text_events: 4,
        };
        assert_eq!(answer, expected);
        assert_eq!(gaps_us, [3000, 7000, 0]);
    }

    #[test]
    fn a_url_without_a_port_means_port_80() {
        let authority = |url| Target::new(url, None).map(|target| target.authority).ok();
        assert_eq!(authority("http://host:3000").as_deref(), Some("host:3000"));
        assert_eq!(authority("http://host").as_deref(), Some("host:80"));
        assert_eq!(authority("https://host"), None);
    }

    #[test]
    fn a_server_without_usage_is_believed_a_token_per_event() {
        let (answer, _) = answer(&[(1, TEXT), (2, TEXT), (3, DONE)]).unwrap();
        assert_eq!(answer.output_tokens, 2);
    }

    /// Reads a request up to its empty body, and writes an answer.
    async fn answer_one(socket: &mut TcpStream) {
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            assert_ne!(socket.read_buf(&mut request).await.unwrap(), 0);
        }
        let answer = "HTTP/1.1 200 OK\r\ncontent-length: 24\r\n\r\n{\"data\": [{\"id\": \"it\"}]}";
        socket.write_all(answer.as_bytes()).await.unwrap();
    }

    #[tokio::test]
    async fn a_request_on_a_kept_connection_that_closes_unanswered_is_sent_again() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            answer_one(&mut socket).await;
            // The second request is read in part, so the client is already waiting for its answer.
            assert_ne!(socket.read(&mut [0; 8]).await.unwrap(), 0);
            drop(socket);
            let (mut socket, _) = listener.accept().await.unwrap();
            answer_one(&mut socket).await;
        });
        let mut client = Client::new(Target::new(&url, None).unwrap());
        for _ in 0..2 {
            assert_eq!(client.models().await.unwrap(), ["it"]);
        }
        server.await.unwrap();
    }

    #[test]
    fn a_stream_that_fails_or_does_not_end_is_an_error() {
        let error = "data: {\"error\":{\"message\":\"boom\"}}\n\n";
        let failed = [ROLE, TEXT, error, DONE].concat();
        let cases: [(&[(u64, &str)], &str); 4] = [
            (&[(1, TEXT)], "without [DONE]"),
            (&[(1, TEXT), (2, error)], "boom"),
            (&[(1, &failed)], "boom"),
            (&[(1, ROLE), (2, DONE)], "no text"),
        ];
        for (pieces, expected) in cases {
            let error = answer(pieces).expect_err(expected).to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
