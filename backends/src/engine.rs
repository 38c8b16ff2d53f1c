//! The one thread that runs the model: steps come in through a short queue, outputs go out to the
//! stream of the present epoch.
//!
//! Invariants:
//! - only the stream accepted last is served: what is queued from an earlier one is discarded
//!   without being computed, and its reply stream ends;
//! - the thread never waits for a router: one that does not read what it asked for is cut off;
//! - a step is begun as soon as it is there and another may be in flight, and the output of a step
//!   is sent as soon as it is computed: neither waits for the other;
//! - a panic is an end, not a hang: whoever waits on [`Engine::ended`] learns of it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use millstream_proto::run_reply::Message;
use millstream_proto::{MAX_STEPS_IN_FLIGHT, RunReply, Step, Welcome, WorkerInfo};
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{mpsc, oneshot};
use tonic::Status;
use tracing::{info, warn};

use crate::error::{LoadError, WorkerError};
use crate::executor::Executor;
use crate::pipeline::Pipeline;
use crate::progress::Progress;

/// Replies that wait to be read: a welcome and the outputs of all steps that may be in flight, and
/// as much again in case the reader lags by a message.
const REPLY_QUEUE: usize = 2 * (1 + MAX_STEPS_IN_FLIGHT);

/// How long the thread looks out for a step and for an output without sleeping.
const SPIN: Duration = Duration::from_micros(50);

/// How long it then sleeps before it looks again: a small part of what a step takes.
const NAP: Duration = Duration::from_micros(20);

/// Where the engine's replies to one stream go.
pub(crate) type Replies = mpsc::Sender<Result<RunReply, Status>>;

enum Command {
    /// A stream was accepted: the one before ends, its sequences are forgotten.
    Begin { epoch: u64, replies: Replies },
    /// A step that came in on the stream of this epoch.
    Step { epoch: u64, step: Box<Step> },
    /// The stream of this epoch has sent all that it will.
    End { epoch: u64 },
}

/// Gives steps to the engine thread. Clones give to the same one.
#[derive(Clone)]
pub(crate) struct EngineHandle {
    commands: mpsc::Sender<Command>,
    /// The epoch of the stream accepted last, which makes all others stale at once, also those
    /// whose steps are in the queue already.
    accepted: Arc<AtomicU64>,
    info: Arc<OnceLock<WorkerInfo>>,
    progress: Progress,
}

/// The engine thread, as its starter sees it.
pub(crate) struct Engine {
    pub(crate) handle: EngineHandle,
    /// Resolves once the model is loaded; fails if it cannot be.
    pub(crate) loaded: oneshot::Receiver<()>,
    ended: oneshot::Receiver<LoadError>,
    thread: JoinHandle<()>,
}

impl Engine {
    /// Starts the thread, which loads the model and then runs steps until every handle is gone.
    pub(crate) fn start<L>(load: L) -> Result<Self, WorkerError>
    where
        L: FnOnce(&Progress) -> Result<Box<dyn Pipeline>, LoadError> + Send + 'static,
    {
        let (commands, queue) = mpsc::channel(MAX_STEPS_IN_FLIGHT);
        let (loaded_sender, loaded) = oneshot::channel();
        let (ended_sender, ended) = oneshot::channel();
        let handle = EngineHandle {
            commands,
            accepted: Arc::default(),
            info: Arc::default(),
            progress: Progress::default(),
        };
        let (accepted, info, progress) =
            (handle.accepted.clone(), handle.info.clone(), handle.progress.clone());
        let body = move || match load(&progress) {
            Err(error) => {
                ended_sender.send(error).ok();
            }
            Ok(pipeline) => {
                // Lives as long as the thread's work: its drop tells of a panic.
                let _ended_sender = ended_sender;
                info.get_or_init(|| pipeline.info().clone());
                // The starter may be gone; the thread then ends on its own.
                loaded_sender.send(()).ok();
                let executor = Executor::new(pipeline);
                EngineThread { executor, accepted, replies: None }.run(queue);
            }
        };
        let thread = std::thread::Builder::new()
            .name("engine".to_owned())
            .spawn(body)
            .map_err(|error| WorkerError::Engine(error.to_string()))?;
        Ok(Engine { handle, loaded, ended, thread })
    }

    /// Waits for the thread to fail: the model cannot be loaded, or something panicked.
    pub(crate) async fn ended(self) -> WorkerError {
        if let Ok(error) = self.ended.await {
            return WorkerError::Load(error);
        }
        // Nothing is left to do on the thread but to unwind.
        let reason = match self.thread.join() {
            Ok(()) => "nobody can give it steps any more".to_owned(),
            Err(panic) => panic
                .downcast::<String>()
                .map(|text| *text)
                .or_else(|panic| panic.downcast::<&str>().map(|text| (*text).to_owned()))
                .unwrap_or_else(|_| "it panicked".to_owned()),
        };
        WorkerError::Engine(reason)
    }
}

impl EngineHandle {
    /// What the model serves, or how far loading it has come.
    pub(crate) fn info(&self) -> Result<&WorkerInfo, Status> {
        self.info.get().ok_or_else(|| Status::unavailable(self.progress.to_string()))
    }

    /// Accepts a stream: from now on all earlier ones are stale. Returns its epoch, and what the
    /// stream has to send.
    pub(crate) fn accept(&self) -> (u64, Replies, mpsc::Receiver<Result<RunReply, Status>>) {
        let (replies, outgoing) = mpsc::channel(REPLY_QUEUE);
        (self.accepted.fetch_add(1, Ordering::AcqRel) + 1, replies, outgoing)
    }

    /// Whether a later stream was accepted.
    pub(crate) fn is_stale(&self, epoch: u64) -> bool {
        self.accepted.load(Ordering::Acquire) != epoch
    }

    /// Begins the epoch of an accepted stream: its welcome comes first, then its outputs.
    pub(crate) async fn begin(&self, epoch: u64, replies: Replies) {
        self.give(Command::Begin { epoch, replies }).await;
    }

    /// Queues a step; waits while as many as may be in flight are queued.
    pub(crate) async fn step(&self, epoch: u64, step: Step) {
        self.give(Command::Step { epoch, step: Box::new(step) }).await;
    }

    /// Ends a stream after the outputs of its steps.
    pub(crate) async fn end(&self, epoch: u64) {
        self.give(Command::End { epoch }).await;
    }

    /// Ends the stream accepted last, after the outputs of the steps that are queued.
    pub(crate) async fn end_latest(&self) {
        self.end(self.accepted.load(Ordering::Acquire)).await;
    }

    async fn give(&self, command: Command) {
        // The thread only goes away with the process, which is then ending.
        self.commands.send(command).await.ok();
    }
}

struct EngineThread {
    executor: Executor<Box<dyn Pipeline>>,
    accepted: Arc<AtomicU64>,
    /// The present stream; `None` before the first one and after it ended or was cut off.
    replies: Option<Replies>,
}

impl EngineThread {
    fn run(mut self, mut queue: mpsc::Receiver<Command>) {
        loop {
            if self.executor.in_flight() == 0 {
                let Some(command) = self.wait(&mut queue) else { return };
                self.obey(command);
            } else if let Some(command) = self.watch(&mut queue) {
                self.obey(command);
            } else {
                self.finish();
            }
        }
    }

    /// The next command, or `None` once nobody can give one any more. While it is not there, what
    /// there was no time for is done.
    fn wait(&mut self, queue: &mut mpsc::Receiver<Command>) -> Option<Command> {
        loop {
            match queue.try_recv() {
                Ok(command) => return Some(command),
                Err(TryRecvError::Empty) if self.executor.idle() => {}
                Err(_) => return queue.blocking_recv(),
            }
        }
    }

    /// A command that comes before the earliest step in flight is done, if one may come now.
    fn watch(&mut self, queue: &mut mpsc::Receiver<Command>) -> Option<Command> {
        if self.executor.in_flight() == self.executor.depth() {
            return None;
        }
        let begun = Instant::now();
        loop {
            match queue.try_recv() {
                Ok(command) => return Some(command),
                Err(TryRecvError::Disconnected) => return None,
                Err(TryRecvError::Empty) if self.executor.is_done() => return None,
                Err(TryRecvError::Empty) if begun.elapsed() < SPIN => std::hint::spin_loop(),
                Err(TryRecvError::Empty) => std::thread::sleep(NAP),
            }
        }
    }

    fn obey(&mut self, command: Command) {
        let latest = self.accepted.load(Ordering::Acquire);
        match command {
            // Streams accepted at the same time may come in any order: the latest is served.
            Command::Begin { epoch, replies } if epoch == latest => self.begin(epoch, replies),
            Command::Step { epoch, step } if epoch == latest => self.step(*step),
            Command::End { epoch } if epoch == latest => self.end(),
            Command::Begin { .. } | Command::Step { .. } | Command::End { .. } => {}
        }
    }

    /// The stream before ends here, whatever the new one does; what it has in flight is given up.
    fn begin(&mut self, epoch: u64, replies: Replies) {
        info!(epoch, "a router connected");
        self.replies = Some(replies);
        self.executor.reset(epoch);
        let info = Some(self.executor.info().clone());
        self.reply(Message::Welcome(Welcome { epoch, info }));
    }

    fn step(&mut self, step: Step) {
        let epoch = self.executor.epoch();
        if step.epoch != epoch {
            return warn!(epoch, of_step = step.epoch, "a step of another epoch was dropped");
        }
        // Nobody would read the output.
        if self.replies.as_ref().is_none_or(Replies::is_closed) {
            return;
        }
        self.executor.begin(step);
    }

    /// Waits for the earliest step in flight, and sends its output.
    fn finish(&mut self) {
        let output = self.executor.finish();
        self.reply(Message::Output(output));
    }

    fn end(&mut self) {
        while self.executor.in_flight() > 0 {
            self.finish();
        }
        self.replies = None;
    }

    fn reply(&mut self, message: Message) {
        let Some(replies) = &self.replies else { return };
        if let Err(error) = replies.try_send(Ok(RunReply { message: Some(message) })) {
            if matches!(error, mpsc::error::TrySendError::Full(_)) {
                warn!(limit = REPLY_QUEUE, "the router does not read its outputs: stream ended");
            }
            self.replies = None;
        }
    }
}

#[cfg(test)]
mod tests;
