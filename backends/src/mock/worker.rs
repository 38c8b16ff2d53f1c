//! A worker process in miniature: the mock behind a real socket, with a life of its own.

use std::future::pending;
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread::JoinHandle;

use tokio::runtime::Builder;
use tokio::sync::oneshot;

use super::{MockConfig, MockModel};
use crate::error::WorkerError;
use crate::pipeline::Immediate;
use crate::server::BoundSocket;

/// Serves the mock on a Unix socket, from threads of its own, until dropped. To its clients a drop
/// looks like the death of a process: connections break in the middle of whatever they were doing.
#[derive(Debug)]
pub struct MockWorker {
    // Both are there until the drop takes them.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl MockWorker {
    /// Starts serving. Clients may connect once this returns.
    pub fn start(listen: PathBuf, config: MockConfig) -> Result<Self, WorkerError> {
        let (stop, stopped) = oneshot::channel();
        let (started, has_started) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("mock worker".to_owned())
            .spawn(move || live(listen, config, &started, stopped))
            .map_err(|error| WorkerError::Engine(error.to_string()))?;
        has_started.recv().expect("a worker reports its start")?;
        Ok(MockWorker { stop: Some(stop), thread: Some(thread) })
    }
}

/// A worker's life. Its runtime begins and ends here, and every connection with it.
fn live(
    listen: PathBuf,
    config: MockConfig,
    started: &mpsc::Sender<Result<(), WorkerError>>,
    stopped: oneshot::Receiver<()>,
) {
    let runtime = match Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            started.send(Err(WorkerError::Engine(error.to_string()))).ok();
            return;
        }
    };
    runtime.block_on(async {
        let socket = match BoundSocket::bind(listen) {
            Ok(socket) => socket,
            Err(error) => {
                started.send(Err(error)).ok();
                return;
            }
        };
        started.send(Ok(())).ok();
        let mock = Immediate::new(MockModel::new(config));
        tokio::select! {
            _ = socket.serve(move |_| Ok(Box::new(mock)), pending()) => {}
            _ = stopped => {}
        }
    });
}

impl Drop for MockWorker {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // Returns once every connection is broken and the socket is gone. A worker that
            // panicked is as dead.
            thread.join().ok();
        }
    }
}
