//! Connections: accepted, limited, and drained by us.
//!
//! hyper speaks the protocols; what it leaves open is closed here. A connection that does not
//! finish its first bytes, or does not take what is written to it, is dropped, so a silent peer
//! costs a socket for a bounded time. HTTP/1.1 and HTTP/2 share the port.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::{Sleep, sleep};
use tracing::{debug, warn};

/// For the head of a request; also how long a kept-alive connection may stay silent. Longer than
/// the 60 s after which common load balancers let go of theirs, which must not race with ours.
const HEADER_TIMEOUT: Duration = Duration::from_secs(75);
/// Bytes after which the protocol is known.
const OPENING_BYTES: usize = 24;
/// Bytes of a connection's buffers, and so of a request's head.
const BUFFER_BYTES: usize = 64 << 10;
/// Requests at a time on one HTTP/2 connection.
const MAX_STREAMS: u32 = 1024;
const HTTP2_PING_INTERVAL: Duration = Duration::from_secs(30);
/// Wait after an accept that failed, as for want of file descriptors.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);

/// Serves `routes` on `listener` until `close` turns true, then until the last connection has
/// finished its request.
pub(crate) async fn listen(
    listener: TcpListener,
    routes: Router,
    client_timeout: Duration,
    mut close: watch::Receiver<bool>,
) {
    // Every connection holds a sender: the receiver ends with the last of them.
    let (open, mut all_closed) = mpsc::channel::<()>(1);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = closed(&mut close) => break,
        };
        match accepted {
            Ok((stream, _)) => {
                let connection = serve(stream, routes.clone(), client_timeout, close.clone());
                let open = open.clone();
                tokio::spawn(async move {
                    connection.await;
                    drop(open);
                });
            }
            Err(error) => {
                warn!(%error, "a connection could not be accepted");
                sleep(ACCEPT_BACKOFF).await;
            }
        }
    }
    drop(listener);
    drop(open);
    all_closed.recv().await;
}

/// Waits until `close` turns true, or its sender is gone.
async fn closed(close: &mut watch::Receiver<bool>) {
    let _ = close.wait_for(|close| *close).await;
}

async fn serve(
    stream: TcpStream,
    routes: Router,
    client_timeout: Duration,
    mut close: watch::Receiver<bool>,
) {
    // Each event is one small write, and should leave at once.
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, "a connection ended before it began");
        return;
    }
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(BUFFER_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(HTTP2_PING_INTERVAL)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(BUFFER_BYTES as u32);
    let io = TokioIo::new(Guarded::new(stream, HEADER_TIMEOUT, client_timeout));
    let connection = builder.serve_connection(io, TowerToHyperService::new(routes));
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = closed(&mut close) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "a connection ended early");
    }
}

/// A socket whose peer must open the conversation and take what it is sent.
struct Guarded {
    stream: TcpStream,
    write_timeout: Duration,
    /// Until the protocol is known.
    opening: Option<(usize, Pin<Box<Sleep>>)>,
    /// While a write waits.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Guarded {
    fn new(stream: TcpStream, opening_timeout: Duration, write_timeout: Duration) -> Guarded {
        let opening = Some((0, Box::pin(sleep(opening_timeout))));
        Guarded { stream, write_timeout, opening, stalled: None }
    }

    /// Watches over the outcome of a write.
    fn watch<T>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let timeout = self.write_timeout;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(timeout)));
        match stalled.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncRead for Guarded {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(context, buffer);
        if let Some((num_read, deadline)) = &mut this.opening {
            *num_read += buffer.filled().len() - before;
            if *num_read >= OPENING_BYTES {
                this.opening = None;
            } else if read.is_pending() && deadline.as_mut().poll(context).is_ready() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
        read
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        // An answer is being written: a short request has opened the conversation too.
        this.opening = None;
        let written = Pin::new(&mut this.stream).poll_write(context, bytes);
        this.watch(context, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.opening = None;
        let written = Pin::new(&mut this.stream).poll_write_vectored(context, bytes);
        this.watch(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const SHORT: Duration = Duration::from_millis(1);
    const LONG: Duration = Duration::from_secs(3600);

    /// A guarded socket and its peer.
    async fn pair(opening_timeout: Duration, write_timeout: Duration) -> (Guarded, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        (Guarded::new(stream, opening_timeout, write_timeout), peer)
    }

    #[tokio::test]
    async fn a_peer_that_does_not_say_what_it_speaks_is_dropped() {
        for said in ["", "P", "PRI * HTTP/2.0"] {
            let (mut guarded, mut peer) = pair(SHORT, LONG).await;
            peer.write_all(said.as_bytes()).await.unwrap();
            let error = guarded.read_to_end(&mut Vec::new()).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{said:?}");
        }
    }

    #[tokio::test]
    async fn a_peer_that_does_not_take_what_it_is_sent_is_dropped() {
        let (mut guarded, _peer) = pair(LONG, SHORT).await;
        let part = [0; 1 << 16];
        let error = loop {
            if let Err(error) = guarded.write_all(&part).await {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_peer_that_reads_late_gets_everything() {
        let (mut guarded, mut peer) = pair(SHORT, LONG).await;
        let sent = vec![7; 8 << 20];
        let (written, read) = tokio::join!(
            async {
                guarded.write_all(&sent).await?;
                guarded.shutdown().await
            },
            async {
                let mut read = Vec::new();
                peer.read_to_end(&mut read).await.map(|_| read)
            }
        );
        written.unwrap();
        assert!(read.unwrap() == sent);
    }
}
