//! The worker over its socket, with the mock behind it.

use std::sync::mpsc as std_mpsc;

use millstream_proto::run_reply::Message as Reply;
use millstream_proto::worker_client::WorkerClient;
use millstream_proto::{AddSequence, CONTINUE, Step, StepOutput, Welcome};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use super::*;
use crate::mock::{MockConfig, MockGroup, MockModel, MockWorker, reference_text};
use crate::{Immediate, Model};

const PROMPT: [u32; 3] = [5, 6, 7];

async fn connect(path: &Path) -> Channel {
    let endpoint = Endpoint::from_shared(format!("unix://{}", path.display())).unwrap();
    endpoint.connect().await.unwrap()
}

fn client(channel: &Channel) -> WorkerClient<Channel> {
    WorkerClient::new(channel.clone())
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

/// One `Run` stream, as a router holds it.
struct Run {
    // `None` once the router has said all.
    steps: Option<mpsc::Sender<RunRequest>>,
    replies: Streaming<RunReply>,
}

impl Run {
    async fn start(channel: &Channel) -> Self {
        let (steps, requests) = mpsc::channel(8);
        let replies =
            client(channel).run(ReceiverStream::new(requests)).await.unwrap().into_inner();
        Run { steps: Some(steps), replies }
    }

    async fn welcome(&mut self) -> Welcome {
        match self.replies.message().await.unwrap().unwrap().message.unwrap() {
            Reply::Welcome(welcome) => welcome,
            Reply::Output(output) => panic!("an output before the welcome: {output:?}"),
        }
    }

    async fn send(&self, step: Step) {
        let request = RunRequest { message: Some(Message::Step(step)) };
        self.steps.as_ref().unwrap().send(request).await.unwrap();
    }

    async fn output(&mut self) -> StepOutput {
        match self.replies.message().await.unwrap().unwrap().message.unwrap() {
            Reply::Output(output) => output,
            Reply::Welcome(welcome) => panic!("a second welcome: {welcome:?}"),
        }
    }
}

/// Adds the prompt in slot 0, and computes it.
fn first_step(epoch: u64) -> Step {
    Step {
        epoch,
        step: 1,
        add: vec![AddSequence {
            slot: 0,
            prompt_len: PROMPT.len() as u32,
            tokens: PROMPT.to_vec(),
            ..Default::default()
        }],
        row_slot: vec![0],
        row_start: vec![0],
        row_len: vec![PROMPT.len() as u32],
        row_sample: vec![1],
        new_block_slot: vec![0],
        new_block_group: vec![0],
        new_block: vec![0],
        ..Default::default()
    }
}

/// One more token of slot 0.
fn next_step(epoch: u64, step: u64) -> Step {
    Step {
        epoch,
        step,
        row_slot: vec![0],
        row_start: vec![CONTINUE],
        row_len: vec![1],
        row_sample: vec![1],
        ..Default::default()
    }
}

fn text(n: usize) -> Vec<u32> {
    reference_text(&MockConfig::default(), &PROMPT, 0, 0, n)
}

fn socket() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("worker.sock");
    (directory, path)
}

/// Starts a mock worker, and connects to it once it has loaded.
async fn mock() -> (tempfile::TempDir, MockWorker, Channel) {
    let (directory, path) = socket();
    let worker = MockWorker::start(path.clone(), MockConfig::default()).unwrap();
    let channel = connect(&path).await;
    wait_until_healthy(&channel).await;
    (directory, worker, channel)
}

async fn wait_until_healthy(channel: &Channel) {
    let request = HealthCheckRequest { service: HEALTH_SERVICE.to_owned() };
    let mut watch = HealthClient::new(channel.clone()).watch(request).await.unwrap().into_inner();
    while watch.message().await.unwrap().unwrap().status() != ServingStatus::Serving.into() {}
}

async fn is_healthy(channel: &Channel, service: &str) -> bool {
    let request = HealthCheckRequest { service: service.to_owned() };
    let response = HealthClient::new(channel.clone()).check(request).await.unwrap();
    response.into_inner().status() == ServingStatus::Serving.into()
}

/// A worker whose loading this test steers: it goes on when told.
struct Loading {
    _directory: tempfile::TempDir,
    go_on: std_mpsc::Sender<()>,
    is_waiting: mpsc::UnboundedReceiver<()>,
    worker: JoinHandle<Result<(), WorkerError>>,
    path: PathBuf,
}

impl Loading {
    fn start<L>(load: L) -> Self
    where
        L: FnOnce() -> Result<Box<dyn Pipeline>, LoadError> + Send + 'static,
    {
        let (directory, path) = socket();
        let (go_on, told) = std_mpsc::channel();
        let (waiting, is_waiting) = mpsc::unbounded_channel();
        let bound = BoundSocket::bind(path.clone()).unwrap();
        let load = move |progress: &Progress| {
            progress.set("loading weights", 43, 100);
            waiting.send(()).unwrap();
            told.recv().unwrap();
            load()
        };
        let worker = tokio::spawn(bound.serve(load, std::future::pending()));
        Loading { _directory: directory, go_on, is_waiting, worker, path }
    }
}

#[tokio::test]
async fn while_loading_everything_is_answered_with_the_progress() {
    let mut loading =
        Loading::start(|| Ok(Box::new(Immediate::new(MockModel::new(MockConfig::default())))));
    let channel = connect(&loading.path).await;
    loading.is_waiting.recv().await.unwrap();

    let info = client(&channel).info(InfoRequest {}).await.unwrap_err();
    assert_eq!((info.code(), info.message()), (Code::Unavailable, "loading weights: 43 %"));
    let run = client(&channel).run(tokio_stream::empty()).await.unwrap_err();
    assert_eq!((run.code(), run.message()), (Code::Unavailable, "loading weights: 43 %"));
    assert!(!is_healthy(&channel, HEALTH_SERVICE).await && !is_healthy(&channel, "").await);

    loading.go_on.send(()).unwrap();
    wait_until_healthy(&channel).await;
    let info = client(&channel).info(InfoRequest {}).await.unwrap().into_inner();
    assert_eq!(&info, MockModel::new(MockConfig::default()).info());
    loading.worker.abort();
}

#[tokio::test]
async fn a_model_that_cannot_be_loaded_ends_the_worker_with_the_reason() {
    let loading = Loading::start(|| {
        Err(LoadError::Missing { file: "config.json".to_owned(), model: "/m".to_owned() })
    });
    loading.go_on.send(()).unwrap();
    let error = loading.worker.await.unwrap().unwrap_err();
    assert_eq!(error.to_string(), "`config.json` is missing from /m");
    assert!(!loading.path.exists());
}

#[tokio::test]
async fn a_panic_while_loading_ends_the_worker_with_its_message() {
    let loading = Loading::start(|| panic!("a broken invariant"));
    loading.go_on.send(()).unwrap();
    let error = loading.worker.await.unwrap().unwrap_err();
    assert_eq!(error.to_string(), "the engine thread ended: a broken invariant");
}

/// Panics at the first step.
struct Fragile(MockModel);

impl Model for Fragile {
    fn info(&self) -> &WorkerInfo {
        self.0.info()
    }

    fn reset(&mut self) {}

    fn forward(
        &mut self,
        batch: &crate::Batch<'_>,
    ) -> Vec<Result<Option<crate::SampledToken>, crate::RowFailure>> {
        panic!("cannot compute {} rows", batch.rows.len())
    }
}

#[tokio::test]
async fn a_panic_in_a_step_ends_the_worker_with_its_message() {
    let loading = Loading::start(|| {
        Ok(Box::new(Immediate::new(Fragile(MockModel::new(MockConfig::default())))))
    });
    let channel = connect(&loading.path).await;
    loading.go_on.send(()).unwrap();
    wait_until_healthy(&channel).await;
    let mut run = Run::start(&channel).await;
    run.welcome().await;
    run.send(first_step(1)).await;
    let error = loading.worker.await.unwrap().unwrap_err();
    assert_eq!(error.to_string(), "the engine thread ended: cannot compute 1 rows");
}

#[tokio::test]
async fn a_stream_is_welcomed_and_its_steps_are_answered_in_order() {
    let (_directory, _worker, channel) = mock().await;
    let mut run = Run::start(&channel).await;
    let welcome = run.welcome().await;
    assert_eq!(welcome.epoch, 1);
    assert_eq!(welcome.info.as_ref(), Some(MockModel::new(MockConfig::default()).info()));
    // Always one step ahead, as a router is.
    run.send(first_step(1)).await;
    let mut tokens = Vec::new();
    for step in 1..=6 {
        run.send(next_step(1, step + 1)).await;
        let output = run.output().await;
        assert_eq!((output.epoch, output.step), (1, step));
        tokens.extend(output.tokens);
    }
    assert_eq!(tokens, text(6));
}

#[tokio::test]
async fn a_second_stream_ends_the_first_and_starts_from_nothing() {
    let (_directory, _worker, channel) = mock().await;
    let mut first = Run::start(&channel).await;
    first.welcome().await;
    first.send(first_step(1)).await;
    first.output().await;

    // A router that was replaced does not know of it: it has another connection.
    let mut second = Run::start(&channel.clone()).await;
    assert_eq!(second.welcome().await.epoch, 2);
    assert!(first.replies.message().await.unwrap().is_none());

    second.send(next_step(2, 1)).await;
    assert!(second.output().await.row_error[0].message.contains("holds no sequence"));
    second.send(Step { step: 2, ..first_step(2) }).await;
    assert_eq!(second.output().await.tokens, text(1));
}

#[tokio::test]
async fn a_step_of_another_epoch_is_dropped() {
    let (_directory, _worker, channel) = mock().await;
    drop(Run::start(&channel).await.welcome().await);
    let mut run = Run::start(&channel).await;
    assert_eq!(run.welcome().await.epoch, 2);
    run.send(first_step(1)).await;
    run.send(first_step(3)).await;
    run.send(first_step(2)).await;
    assert_eq!(run.output().await.epoch, 2);
}

#[tokio::test]
async fn a_router_that_has_said_all_gets_its_outputs_and_then_the_end() {
    let (_directory, _worker, channel) = mock().await;
    let mut run = Run::start(&channel).await;
    run.send(first_step(1)).await;
    run.send(next_step(1, 2)).await;
    run.steps = None;
    run.welcome().await;
    assert_eq!([run.output().await.tokens, run.output().await.tokens].concat(), text(2));
    assert!(run.replies.message().await.unwrap().is_none());
}

#[tokio::test]
async fn a_message_far_beyond_grpcs_default_limit_is_accepted() {
    let (_directory, path) = socket();
    let long = 3_000_000;
    let config = MockConfig {
        max_model_len: long,
        max_batch_tokens: long,
        trusting: true,
        ..MockConfig::default()
    };
    let num_blocks = long.div_ceil(config.block_size);
    let config = MockConfig { cache_groups: vec![MockGroup::full(num_blocks)], ..config };
    let _worker = MockWorker::start(path.clone(), config.clone()).unwrap();
    let channel = connect(&path).await;
    wait_until_healthy(&channel).await;
    let mut run = Run::start(&channel).await;
    run.welcome().await;
    let prompt = vec![30_000; long as usize];
    let mut step = first_step(1);
    step.row_len = vec![long];
    step.new_block_slot = vec![0; num_blocks as usize];
    step.new_block_group = vec![0; num_blocks as usize];
    step.new_block = (0..num_blocks).collect();
    step.add[0].prompt_len = long;
    step.add[0].tokens = prompt.clone();
    run.send(step).await;
    assert_eq!(run.output().await.tokens, reference_text(&config, &prompt, 0, 0, 1));
}

#[tokio::test]
async fn a_worker_that_dies_breaks_its_stream_and_the_next_one_takes_its_socket() {
    let (directory, worker, channel) = mock().await;
    let path = directory.path().join("worker.sock");
    let mut run = Run::start(&channel).await;
    run.welcome().await;
    drop(worker);
    assert!(run.replies.message().await.is_err());

    let _worker = MockWorker::start(path.clone(), MockConfig::default()).unwrap();
    let channel = connect(&path).await;
    wait_until_healthy(&channel).await;
    assert_eq!(Run::start(&channel).await.welcome().await.epoch, 1);
}

#[tokio::test]
async fn a_socket_is_its_owners_and_replaces_only_a_stale_one() {
    let (_directory, path) = socket();
    // What a killed worker leaves: a socket file that nobody listens on.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let bound = BoundSocket::bind(path.clone()).unwrap();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let error = BoundSocket::bind(path.clone()).err().unwrap().to_string();
    assert!(error.ends_with("another process listens there"), "{error}");
    drop(bound);
    assert!(!path.exists());

    std::fs::write(&path, "precious").unwrap();
    let error = BoundSocket::bind(path.clone()).err().unwrap().to_string();
    assert!(error.ends_with("a file that is not a socket is there"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");

    let nowhere = path.with_file_name("missing").join("worker.sock");
    assert!(matches!(BoundSocket::bind(nowhere), Err(WorkerError::Listen { .. })));
}
