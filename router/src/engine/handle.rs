//! The engine's front door: what other threads may ask of it, and the limit at the door.
//!
//! A handle admits or refuses at once, by counting; it never waits for the engine. Ids are given
//! here, so a caller can prepare for the events of a sequence before the first one can happen.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use millstream_proto::WorkerInfo;
use tokio::sync::{mpsc, watch};

use super::{NewSequence, SequenceId};

/// What the engine can be asked to do.
#[derive(Debug)]
pub enum Command {
    /// Generate this sequence. It has been counted already.
    Add(SequenceId, Box<NewSequence>),
    /// Forget this sequence; no further event of it is sent. Unknown ids are fine.
    Abort(SequenceId),
}

/// Where the engine stands, as seen from outside.
#[derive(Clone, Debug)]
pub enum EngineState {
    /// No worker has been ready yet; the text says what is being waited for.
    Starting(String),
    /// Steps run.
    Ready(Arc<WorkerInfo>),
    /// The worker is gone; sequences wait for the next one.
    Recovering(Arc<WorkerInfo>),
}

impl EngineState {
    /// What the worker serves, once one has been ready.
    pub fn info(&self) -> Option<&Arc<WorkerInfo>> {
        match self {
            EngineState::Starting(_) => None,
            EngineState::Ready(info) | EngineState::Recovering(info) => Some(info),
        }
    }
}

/// The limit at the door.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// As many sequences as allowed are queued or running.
    #[error(
        "{limit} sequences are queued or running, the most this server accepts; try again later"
    )]
    Overloaded {
        /// The limit that was reached.
        limit: usize,
    },
    /// The engine has ended.
    #[error("the server is shutting down")]
    Closed,
}

struct Shared {
    commands: mpsc::UnboundedSender<Command>,
    next_id: AtomicU64,
    /// Sequences admitted and not yet ended; never above `max_sequences`.
    num_sequences: Arc<AtomicUsize>,
    max_sequences: usize,
    state: watch::Receiver<EngineState>,
}

/// Asks things of the engine; cheap to clone.
#[derive(Clone)]
pub struct EngineHandle {
    shared: Arc<Shared>,
}

/// The engine's side of its handles.
pub struct EngineInbox {
    /// What was asked, in order. The number of admitted sequences bounds it.
    pub commands: mpsc::UnboundedReceiver<Command>,
    /// What [`EngineHandle::state`] reports.
    pub state: watch::Sender<EngineState>,
    num_sequences: Arc<AtomicUsize>,
}

impl EngineInbox {
    /// A sequence has ended (finished or aborted): its place at the door is free again.
    pub fn leave(&self) {
        self.num_sequences.fetch_sub(1, Ordering::Relaxed);
    }
}

impl EngineHandle {
    /// A handle that admits `max_sequences` at a time, and the inbox for the engine behind it.
    pub fn new(max_sequences: usize) -> (EngineHandle, EngineInbox) {
        let (commands, inbox) = mpsc::unbounded_channel();
        let (state_sender, state) = watch::channel(EngineState::Starting("worker starting".into()));
        let num_sequences = Arc::new(AtomicUsize::new(0));
        let shared = Shared {
            commands,
            next_id: AtomicU64::new(1),
            num_sequences: num_sequences.clone(),
            max_sequences,
            state,
        };
        let inbox = EngineInbox { commands: inbox, state: state_sender, num_sequences };
        (EngineHandle { shared: Arc::new(shared) }, inbox)
    }

    /// Takes places for `count` sequences, all or none, and names them.
    ///
    /// Each place must then be used by one [`submit`](Self::submit) or given back by
    /// [`cancel`](Self::cancel).
    pub fn admit(&self, count: usize) -> Result<Vec<SequenceId>, SubmitError> {
        let limit = self.shared.max_sequences;
        self.shared
            .num_sequences
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
                (taken + count <= limit).then_some(taken + count)
            })
            .map_err(|_| SubmitError::Overloaded { limit })?;
        let first = self.shared.next_id.fetch_add(count as u64, Ordering::Relaxed);
        Ok((first..first + count as u64).map(SequenceId).collect())
    }

    /// Hands an admitted sequence to the engine.
    pub fn submit(&self, id: SequenceId, sequence: NewSequence) -> Result<(), SubmitError> {
        let command = Command::Add(id, Box::new(sequence));
        self.shared.commands.send(command).map_err(|_| SubmitError::Closed)
    }

    /// Gives back the places of admitted sequences that were never submitted.
    pub fn cancel(&self, count: usize) {
        self.shared.num_sequences.fetch_sub(count, Ordering::Relaxed);
    }

    /// Ends a submitted sequence early. Its blocks are free within one step.
    pub fn abort(&self, id: SequenceId) {
        // An engine that has ended holds nothing to abort.
        let _ = self.shared.commands.send(Command::Abort(id));
    }

    /// Where the engine stands.
    pub fn state(&self) -> EngineState {
        self.shared.state.borrow().clone()
    }

    /// Follows where the engine stands.
    pub fn watch_state(&self) -> watch::Receiver<EngineState> {
        self.shared.state.clone()
    }

    /// Sequences queued or running, and the most that are admitted.
    pub fn load(&self) -> (usize, usize) {
        (self.shared.num_sequences.load(Ordering::Relaxed), self.shared.max_sequences)
    }
}
