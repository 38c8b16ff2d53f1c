//! The engine's thread: the only place in the engine with a socket and a clock.
//!
//! One thread, one current-thread runtime, one [`EngineCore`]. It waits for three things (commands,
//! the worker, the tick), tells the core, and does what the core answers: events go to the sink,
//! steps to the worker. It never waits for a client, and for the worker only by not being able to
//! plan: two steps in flight are the limit, so the channel to the worker is never full.
//!
//! A worker is lost when its stream ends or fails, or when a step passes its deadline; in the last
//! case it hangs, and the launcher is asked to kill it. The thread then dials until a worker
//! answers. It ends when every [`EngineHandle`](super::EngineHandle) is gone.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use millstream_proto::worker_client::WorkerClient;
use millstream_proto::{
    InfoRequest, MAX_MESSAGE_BYTES, MAX_STEPS_IN_FLIGHT, RunReply, RunRequest, Step, WorkerInfo,
    run_reply, run_request,
};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};
use tracing::{debug, error, info, warn};

use super::core::{EngineConfig, EngineCore, Fault, Input};
use super::scheduler::Stats;
use super::{Command, EngineInbox, EngineState, Event};

/// Takes the events of one step. It must not block: it runs on the engine's thread.
pub type EventSink = Box<dyn FnMut(Vec<Event>) + Send>;

/// Sees the engine's figures after each change. It must not block.
pub type StatsSink = Box<dyn FnMut(&Stats) + Send>;

/// How the worker is reached, and what to do when it hangs.
#[derive(Clone)]
pub struct WorkerLink {
    /// Unix socket of the worker; the same one after a restart.
    pub socket: PathBuf,
    /// Ends a worker that does not answer any more; whoever started it starts another.
    pub kill: Arc<dyn Fn() + Send + Sync>,
}

/// How often deadlines are looked at while nothing else happens.
const TICK: Duration = Duration::from_millis(50);
/// Pauses between attempts to reach a worker: short at first, since ready-to-serve counts.
const DIAL_PAUSE: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(100));

/// Starts the engine's thread.
pub fn spawn(
    config: EngineConfig,
    inbox: EngineInbox,
    events: EventSink,
    stats: StatsSink,
    link: WorkerLink,
) -> io::Result<JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("engine".into()).spawn(move || {
        let core = EngineCore::new(config);
        let shell = Shell { core, inbox, events, stats, link, started: Instant::now() };
        runtime.block_on(shell.run());
    })
}

/// A worker that has welcomed us.
struct Connection {
    epoch: u64,
    info: Arc<WorkerInfo>,
    steps: mpsc::Sender<RunRequest>,
    replies: Streaming<RunReply>,
}

struct Shell {
    core: EngineCore,
    inbox: EngineInbox,
    events: EventSink,
    stats: StatsSink,
    link: WorkerLink,
    started: Instant,
}

/// What ended a connection.
enum Ended {
    /// The worker is gone; planned if it ended its stream in order.
    Lost { is_planned: bool },
    /// Nobody is left to ask anything.
    Closed,
}

impl Shell {
    async fn run(mut self) {
        loop {
            let Some(connection) = self.connect().await else { return };
            info!(
                epoch = connection.epoch,
                model = %connection.info.fingerprint,
                timed_prefill_tokens = connection.info.timed_prefill_tokens,
                "worker ready"
            );
            self.inbox.state.send_replace(EngineState::Ready(connection.info.clone()));
            let (epoch, info) = (connection.epoch, connection.info.clone());
            self.tell(Input::Connected { epoch, info: info.clone() });
            let ended = self.converse(connection).await;
            self.inbox.state.send_replace(EngineState::Recovering(info));
            match ended {
                Ended::Closed => return,
                Ended::Lost { is_planned } => self.tell(Input::Lost { is_planned }),
            }
        }
    }

    /// Dials until a worker answers; commands are taken and time passes meanwhile.
    async fn connect(&mut self) -> Option<Connection> {
        let (progress_sender, mut progress) = watch::channel(String::from("worker starting"));
        let dialing = dial(self.link.socket.clone(), progress_sender);
        tokio::pin!(dialing);
        let mut tick = ticker();
        loop {
            tokio::select! {
                connection = &mut dialing => return Some(connection),
                Ok(()) = progress.changed() => {
                    let detail = progress.borrow_and_update().clone();
                    self.inbox.state.send_if_modified(|state| {
                        let starting = matches!(state, EngineState::Starting(_));
                        if starting {
                            *state = EngineState::Starting(detail);
                        }
                        starting
                    });
                }
                command = self.inbox.commands.recv() => self.take_commands(command?),
                _ = tick.tick() => self.tell(Input::Tick),
            }
        }
    }

    /// Runs steps until the worker is lost or nobody asks any more.
    async fn converse(&mut self, mut connection: Connection) -> Ended {
        let mut tick = ticker();
        loop {
            if let Some(fault) = self.core.take_fault() {
                return self.drop_faulty(&fault);
            }
            while let Some(step) = self.core.next_step(self.now()) {
                if !send(&connection.steps, step) {
                    return Ended::Lost { is_planned: false };
                }
            }
            tokio::select! {
                reply = connection.replies.message() => match reply {
                    Ok(Some(RunReply { message: Some(run_reply::Message::Output(output)) })) => {
                        self.tell(Input::Output(output));
                    }
                    Ok(Some(other)) => debug!(?other, "unexpected message from the worker"),
                    Ok(None) => {
                        info!("worker ended its stream");
                        return Ended::Lost { is_planned: true };
                    }
                    Err(status) => {
                        warn!(%status, "worker lost");
                        return Ended::Lost { is_planned: false };
                    }
                },
                command = self.inbox.commands.recv() => match command {
                    Some(command) => self.take_commands(command),
                    None => return Ended::Closed,
                },
                _ = tick.tick() => self.tell(Input::Tick),
            }
            if self.core.oldest_step_deadline().is_some_and(|deadline| deadline <= self.now()) {
                warn!("step passed its deadline, killing the worker");
                (self.link.kill)();
                return Ended::Lost { is_planned: false };
            }
        }
    }

    /// A worker that cannot be believed, or used, is ended; the launcher starts another.
    fn drop_faulty(&self, fault: &Fault) -> Ended {
        error!(%fault, "worker dropped");
        (self.link.kill)();
        Ended::Lost { is_planned: false }
    }

    /// Takes all commands that are there, so that a burst of requests enters the same step.
    fn take_commands(&mut self, first: Command) {
        let mut next = Some(first);
        while let Some(command) = next {
            self.tell(Input::Command(command));
            next = self.inbox.commands.try_recv().ok();
        }
    }

    fn tell(&mut self, input: Input) {
        let events = self.core.handle(input, self.now());
        if !events.is_empty() {
            (self.events)(events);
        }
        for _ in 0..self.core.take_left() {
            self.inbox.leave();
        }
        (self.stats)(&self.core.stats());
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }
}

/// False if the worker is gone. The channel holds all steps that may be in flight.
fn send(steps: &mpsc::Sender<RunRequest>, step: Step) -> bool {
    steps.try_send(RunRequest { message: Some(run_request::Message::Step(step)) }).is_ok()
}

fn ticker() -> tokio::time::Interval {
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tick
}

/// Tries until a worker welcomes us; what it says while it loads goes to `progress`.
async fn dial(socket: PathBuf, progress: watch::Sender<String>) -> Connection {
    let mut pause = DIAL_PAUSE.0;
    loop {
        match open(socket.clone()).await {
            Ok(connection) => return connection,
            Err(status) => {
                debug!(%status, "worker not reachable yet");
                if status.code() == Code::Unavailable && !status.message().is_empty() {
                    progress.send_replace(status.message().to_owned());
                }
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(DIAL_PAUSE.1);
    }
}

async fn open(socket: PathBuf) -> Result<Connection, Status> {
    let mut client = WorkerClient::new(channel(socket).await?)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    client.info(InfoRequest {}).await?;
    let (steps, receiver) = mpsc::channel(MAX_STEPS_IN_FLIGHT);
    let mut replies = client.run(ReceiverStream::new(receiver)).await?.into_inner();
    match replies.message().await?.and_then(|reply| reply.message) {
        Some(run_reply::Message::Welcome(welcome)) => {
            let info = welcome.info.ok_or_else(|| Status::data_loss("welcome without info"))?;
            Ok(Connection { epoch: welcome.epoch, info: Arc::new(info), steps, replies })
        }
        other => Err(Status::data_loss(format!("expected a welcome, got {other:?}"))),
    }
}

async fn channel(socket: PathBuf) -> Result<Channel, Status> {
    // The address is required by the API and used by nobody: the connector knows the socket.
    let endpoint = Endpoint::from_static("http://worker.invalid");
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { Ok::<_, io::Error>(TokioIo::new(UnixStream::connect(socket).await?)) }
    });
    // A socket that is not there yet is the normal case at start: no words for the client in it.
    endpoint.connect_with_connector(connector).await.map_err(|_| Status::unavailable(""))
}
