//! The API over a real socket, on a scripted engine.

mod answers;
mod calls;
mod constraints;
mod cors;
mod openapi;
mod platforms;
mod server;
mod streams;
mod tgi;
mod tgi_requests;
mod tokens;
mod validation;

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderMap};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::engine::{EngineHandle, NewSequence};
use crate::generate::Generator;
use crate::metrics::Metrics;
use crate::serve::{Front, serve_engine};
use crate::testing::{ScriptedEngine, engine_config, text_model};
use crate::text::TextModel;
use crate::{RouterConfig, RouterError};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

/// A running server.
struct Server {
    address: SocketAddr,
    shutdown: Option<oneshot::Sender<()>>,
    ended: JoinHandle<Result<(), RouterError>>,
}

/// An answer that has arrived as a whole.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("not JSON: {}", self.body))
    }

    /// The payloads of the events, `[DONE]` last and left out.
    fn events(&self) -> Vec<Value> {
        let mut events: Vec<&str> = self
            .body
            .split_terminator("\n\n")
            .filter(|event| !event.starts_with(':'))
            .map(|event| event.strip_prefix("data: ").unwrap_or_else(|| panic!("{event:?}")))
            .collect();
        assert_eq!(events.pop(), Some("[DONE]"), "{}", self.body);
        events.iter().map(|event| serde_json::from_str(event).unwrap()).collect()
    }
}

/// A server whose engine is in the hands of the test.
async fn start(configure: impl FnOnce(&mut RouterConfig)) -> (Server, ScriptedEngine) {
    let listener = TcpSocket::new_v4().unwrap();
    // Small, so that a client that does not read is felt soon.
    listener.set_send_buffer_size(16 << 10).unwrap();
    listener.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    start_on(listener.listen(64).unwrap(), configure)
}

fn start_on(
    listener: TcpListener,
    configure: impl FnOnce(&mut RouterConfig),
) -> (Server, ScriptedEngine) {
    start_with(text_model(), listener, configure)
}

fn start_with(
    text: Arc<TextModel>,
    listener: TcpListener,
    configure: impl FnOnce(&mut RouterConfig),
) -> (Server, ScriptedEngine) {
    let mut config = RouterConfig::new("demo", engine_config());
    config.model_aliases = vec!["demo-alias".into()];
    config.limits.max_client_batch_size = 4;
    config.limits.max_stop_sequences = 4;
    configure(&mut config);
    let (handle, inbox) = EngineHandle::new(config.limits.max_concurrent_requests);
    let metrics = Arc::new(Metrics::new());
    let (generator, sink) =
        Generator::new(handle, text.clone(), metrics.generation.clone(), config.client_timeout)
            .unwrap();
    let engine = ScriptedEngine::new(inbox, sink);
    let address = listener.local_addr().unwrap();
    let (shutdown, asked) = oneshot::channel();
    let front = Front { generator, metrics };
    let ended = tokio::spawn(serve_engine(listener, text, front, config, async {
        let _ = asked.await;
    }));
    (Server { address, shutdown: Some(shutdown), ended }, engine)
}

/// A server that answers by itself.
async fn start_answering(
    configure: impl FnOnce(&mut RouterConfig),
    answer: impl Fn(&NewSequence) -> String + Send + 'static,
) -> Server {
    let (server, engine) = start(configure).await;
    tokio::spawn(engine.answer_all(answer));
    server
}

impl Server {
    async fn send(&self, request: Request<Full<Bytes>>) -> Response<Incoming> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        send_on(stream, request).await
    }

    async fn call(&self, request: Request<Full<Bytes>>) -> Answer {
        whole(self.send(request).await).await
    }

    fn post<'s>(&'s self, path: &str, body: &Value) -> impl Future<Output = Answer> + use<'s> {
        self.call(post(path, body.to_string()))
    }

    async fn get(&self, path: &str) -> Answer {
        self.call(get(path)).await
    }

    fn shut_down(&mut self) {
        self.shutdown.take().unwrap().send(()).unwrap();
    }
}

async fn send_on(stream: TcpStream, request: Request<Full<Bytes>>) -> Response<Incoming> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    // Ends with the response's body, or when that is dropped.
    tokio::spawn(connection);
    sender.send_request(request).await.unwrap()
}

async fn whole(response: Response<Incoming>) -> Answer {
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let body = String::from_utf8(body.to_vec()).unwrap();
    Answer { status: parts.status, headers: parts.headers, body }
}

fn post(path: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    let request = Request::post(path).header(CONTENT_TYPE, "application/json");
    request.body(Full::new(body.into())).unwrap()
}

fn get(path: &str) -> Request<Full<Bytes>> {
    Request::get(path).body(Full::default()).unwrap()
}

/// `body`, with `fields` over it.
fn with(mut body: Value, fields: Value) -> Value {
    let Value::Object(fields) = fields else { panic!("not fields: {fields}") };
    body.as_object_mut().unwrap().extend(fields);
    body
}

/// The next part of a stream, as text.
async fn next_part(response: &mut Response<Incoming>) -> String {
    let frame = response.body_mut().frame().await.expect("the stream goes on").unwrap();
    String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap()
}
