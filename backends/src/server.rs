//! The gRPC edge: a Unix socket in front of the engine thread.
//!
//! The socket is bound at once and answers from the first moment; until the model is loaded the
//! answer is UNAVAILABLE, with the progress in words. Each accepted `Run` stream is a new epoch.
//! This module knows sockets and messages. It does not look into a step.

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use millstream_proto::run_request::Message;
use millstream_proto::worker_server::{Worker, WorkerServer};
use millstream_proto::{
    HEALTH_SERVICE, InfoRequest, MAX_MESSAGE_BYTES, RunReply, RunRequest, WorkerInfo,
};
use tokio::net::UnixListener;
use tokio::sync::oneshot;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};
use tonic_health::ServingStatus;
use tonic_health::server::{HealthReporter, health_reporter};
use tracing::{debug, info};

use crate::engine::{Engine, EngineHandle};
use crate::error::{LoadError, WorkerError};
use crate::pipeline::Pipeline;
use crate::progress::Progress;

/// Bytes of a stream that may be under way unacknowledged. A failover brings tens of megabytes,
/// for which HTTP/2's default of 64 KiB would mean a thousand turns.
const WINDOW_BYTES: u32 = 8 << 20;

/// How long the router may take to read the end of its stream, once the worker was asked to leave.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);

/// Serves a model on a Unix socket until `shutdown` resolves, or something ends the worker: that is
/// the error.
///
/// The socket is bound before `load` begins, and only its owner may connect. `load` runs on the
/// engine thread, where the model then stays. After `shutdown` the router's stream ends in order,
/// which tells it that this worker leaves as planned and that no request is to blame.
pub async fn serve<L>(
    listen: PathBuf,
    load: L,
    shutdown: impl Future<Output = ()>,
) -> Result<(), WorkerError>
where
    L: FnOnce(&Progress) -> Result<Box<dyn Pipeline>, LoadError> + Send + 'static,
{
    BoundSocket::bind(listen)?.serve(load, shutdown).await
}

/// A socket that accepts connections. Its file goes when it goes.
pub(crate) struct BoundSocket {
    path: PathBuf,
    // Taken by `serve`.
    listener: Option<UnixListener>,
}

impl BoundSocket {
    /// Binds a socket, in place of one that nobody listens on any more. Needs a Tokio runtime.
    pub(crate) fn bind(path: PathBuf) -> Result<Self, WorkerError> {
        remove_stale(&path)?;
        let listener = UnixListener::bind(&path);
        let owner_only = std::fs::Permissions::from_mode(0o600);
        let bound = listener.and_then(|listener| {
            std::fs::set_permissions(&path, owner_only)?;
            Ok(listener)
        });
        match bound {
            Ok(listener) => Ok(BoundSocket { path, listener: Some(listener) }),
            Err(source) => Err(WorkerError::Listen { path, source }),
        }
    }

    /// Loads the model, and serves it until `shutdown` resolves.
    pub(crate) async fn serve<L>(
        mut self,
        load: L,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), WorkerError>
    where
        L: FnOnce(&Progress) -> Result<Box<dyn Pipeline>, LoadError> + Send + 'static,
    {
        let listener = self.listener.take().expect("a socket is served once");
        let mut engine = Engine::start(load)?;
        let (health, health_service) = health_reporter();
        report_health(&health, ServingStatus::NotServing).await;
        let edge = WorkerServer::new(Edge { engine: engine.handle.clone() })
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let handle = engine.handle.clone();
        let (close, closed) = oneshot::channel::<()>();
        let server = Server::builder()
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .add_service(edge)
            .add_service(health_service)
            // A sender that is gone means the end as well.
            .serve_with_incoming_shutdown(UnixListenerStream::new(listener), async {
                drop(closed.await);
            });
        let path = self.path.clone();
        let supervise = async move {
            if (&mut engine.loaded).await.is_ok() {
                info!(socket = %path.display(), "the model is loaded");
                report_health(&health, ServingStatus::Serving).await;
            }
            engine.ended().await
        };
        let leave = async move {
            shutdown.await;
            // First the door: a router whose stream ends dials again, and must not come back here.
            drop(close);
            handle.end_latest().await;
            tokio::time::sleep(LEAVE_TIMEOUT).await;
        };
        tokio::select! {
            served = server => Ok(served?),
            error = supervise => Err(error),
            () = leave => Ok(()),
        }
    }
}

impl Drop for BoundSocket {
    fn drop(&mut self) {
        // It may be gone already; then there is nothing to tidy up.
        std::fs::remove_file(&self.path).ok();
    }
}

/// Removes what a worker that was killed has left, and nothing else.
fn remove_stale(path: &Path) -> Result<(), WorkerError> {
    let occupied = |reason| Err(WorkerError::Occupied { path: path.to_owned(), reason });
    match std::fs::symlink_metadata(path) {
        // Nothing there; any other trouble shows when the socket is bound.
        Err(_) => return Ok(()),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return occupied("a file that is not a socket is there");
        }
        Ok(_) => {}
    }
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return occupied("another process listens there");
    }
    std::fs::remove_file(path)
        .map_err(|source| WorkerError::Listen { path: path.to_owned(), source })
}

/// Reports the worker, and the process as a whole, which has no other purpose.
async fn report_health(health: &HealthReporter, status: ServingStatus) {
    health.set_service_status(HEALTH_SERVICE, status).await;
    health.set_service_status("", status).await;
}

struct Edge {
    engine: EngineHandle,
}

#[tonic::async_trait]
impl Worker for Edge {
    type RunStream = ReceiverStream<Result<RunReply, Status>>;

    async fn info(&self, _: Request<InfoRequest>) -> Result<Response<WorkerInfo>, Status> {
        self.engine.info().cloned().map(Response::new)
    }

    async fn run(
        &self,
        request: Request<Streaming<RunRequest>>,
    ) -> Result<Response<Self::RunStream>, Status> {
        self.engine.info()?;
        let (epoch, replies, outgoing) = self.engine.accept();
        let (engine, incoming) = (self.engine.clone(), request.into_inner());
        tokio::spawn(async move {
            engine.begin(epoch, replies).await;
            forward(&engine, epoch, incoming).await;
            engine.end(epoch).await;
        });
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }
}

/// Hands a stream's steps to the engine until the router has sent all, is gone, or another stream
/// was accepted.
async fn forward(engine: &EngineHandle, epoch: u64, mut incoming: Streaming<RunRequest>) {
    loop {
        let request = match incoming.message().await {
            Ok(Some(request)) => request,
            Ok(None) => return,
            Err(status) => return debug!(epoch, %status, "the router's stream broke"),
        };
        if engine.is_stale(epoch) {
            return;
        }
        // A message that this version does not know asks for nothing.
        if let Some(Message::Step(step)) = request.message {
            engine.step(epoch, step).await;
        }
    }
}

#[cfg(test)]
mod tests;
