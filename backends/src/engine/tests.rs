//! The engine thread without sockets: what a router's pace cannot show reliably.

use std::sync::mpsc as std_mpsc;

use super::*;
use crate::mock::{Deferred, MockConfig, MockModel};
use crate::{Batch, Computed, Immediate, Model, RowResult};

/// The mock, which says when a forward pass begins, and waits until it may.
struct Gated {
    model: MockModel,
    begun: mpsc::UnboundedSender<()>,
    gate: std_mpsc::Receiver<()>,
}

impl Model for Gated {
    fn info(&self) -> &WorkerInfo {
        self.model.info()
    }

    fn reset(&mut self) {
        self.model.reset();
    }

    fn forward(&mut self, batch: &Batch<'_>) -> Vec<RowResult> {
        self.begun.send(()).unwrap();
        self.gate.recv().unwrap();
        self.model.forward(batch)
    }
}

fn mock() -> MockModel {
    MockModel::new(MockConfig::default())
}

/// A step that puts a sequence into slot 0, in place of any other, and computes its first token.
fn step(epoch: u64, step: u64) -> Step {
    let add =
        millstream_proto::AddSequence { prompt_len: 9, tokens: vec![1; 9], ..Default::default() };
    Step {
        epoch,
        step,
        release: vec![0],
        add: vec![add],
        row_slot: vec![0],
        row_start: vec![0],
        row_len: vec![1],
        row_sample: vec![0],
        new_block_slot: vec![0],
        new_block_group: vec![0],
        new_block: vec![0],
        ..Default::default()
    }
}

fn epoch_of(reply: Option<Result<RunReply, Status>>) -> u64 {
    match reply.unwrap().unwrap().message.unwrap() {
        Message::Welcome(welcome) => welcome.epoch,
        Message::Output(output) => output.epoch,
    }
}

#[tokio::test]
async fn steps_that_were_queued_when_a_new_stream_came_are_not_computed() {
    let (begun, mut has_begun) = mpsc::unbounded_channel();
    let (open_gate, gate) = std_mpsc::channel();
    let engine =
        Engine::start(move |_| Ok(Box::new(Immediate::new(Gated { model: mock(), begun, gate }))));
    let handle = engine.unwrap().handle;
    let (first, replies, mut first_outgoing) = handle.accept();
    handle.begin(first, replies).await;
    handle.step(first, step(first, 1)).await;
    has_begun.recv().await.unwrap();
    handle.step(first, step(first, 2)).await;

    let (second, replies, mut second_outgoing) = handle.accept();
    assert!(handle.is_stale(first) && !handle.is_stale(second));
    handle.begin(second, replies).await;
    open_gate.send(()).unwrap();
    assert_eq!(epoch_of(second_outgoing.recv().await), second);
    // The step that was running is answered, for whoever still listens; then comes the end.
    assert_eq!(epoch_of(first_outgoing.recv().await), first);
    assert_eq!(epoch_of(first_outgoing.recv().await), first);
    assert!(first_outgoing.recv().await.is_none());

    open_gate.send(()).unwrap();
    handle.step(second, step(second, 1)).await;
    assert_eq!(epoch_of(second_outgoing.recv().await), second);
    // One pass of the first stream, one of the second.
    has_begun.recv().await.unwrap();
    assert!(has_begun.try_recv().is_err());
}

#[tokio::test]
async fn a_router_that_does_not_read_is_cut_off_and_the_next_one_is_served() {
    let engine = Engine::start(|_| Ok(Box::new(Immediate::new(mock()))));
    let handle = engine.unwrap().handle;
    let (epoch, replies, mut outgoing) = handle.accept();
    handle.begin(epoch, replies).await;
    for number in 1..=20 {
        handle.step(epoch, step(epoch, number)).await;
    }
    let (next, replies, mut next_outgoing) = handle.accept();
    handle.begin(next, replies).await;
    assert_eq!(epoch_of(next_outgoing.recv().await), next);
    let mut num_replies = 0;
    while outgoing.recv().await.is_some() {
        num_replies += 1;
    }
    assert_eq!(num_replies, REPLY_QUEUE);
}

#[tokio::test]
async fn of_streams_accepted_together_the_latest_is_served_in_whatever_order_they_begin() {
    let engine = Engine::start(|_| Ok(Box::new(Immediate::new(mock()))));
    let handle = engine.unwrap().handle;
    let (early, early_replies, mut early_outgoing) = handle.accept();
    let (late, late_replies, mut late_outgoing) = handle.accept();
    handle.begin(late, late_replies).await;
    handle.begin(early, early_replies).await;
    assert_eq!(epoch_of(late_outgoing.recv().await), late);
    assert!(early_outgoing.recv().await.is_none());
    handle.step(late, step(late, 1)).await;
    assert_eq!(epoch_of(late_outgoing.recv().await), late);
}

/// What a [`GatedDevice`] does.
#[derive(Debug, PartialEq)]
enum Act {
    /// It has a batch.
    Begin,
    /// It used the time in which nothing is in flight.
    Idle,
}

/// A device with two batches in flight, which says what it does, and is done with a batch when it
/// may be and somebody waits for it.
struct GatedDevice {
    device: Deferred<MockModel>,
    acts: mpsc::UnboundedSender<Act>,
    gate: std_mpsc::Receiver<()>,
    /// Pieces of work that wait until nothing is in flight.
    num_pieces: u32,
}

impl Pipeline for GatedDevice {
    fn info(&self) -> &WorkerInfo {
        self.device.info()
    }

    fn reset(&mut self) {
        self.device.reset();
    }

    fn depth(&self) -> usize {
        self.device.depth()
    }

    fn begin(&mut self, batch: &Batch<'_>) {
        self.device.begin(batch);
    }

    fn sample(&mut self, batch: &Batch<'_>) {
        self.device.sample(batch);
        self.acts.send(Act::Begin).unwrap();
    }

    fn is_done(&self) -> bool {
        false
    }

    fn finish(&mut self) -> Computed {
        self.gate.recv().unwrap();
        self.device.finish()
    }

    fn idle(&mut self) -> bool {
        let Some(left) = self.num_pieces.checked_sub(1) else { return false };
        self.num_pieces = left;
        self.acts.send(Act::Idle).unwrap();
        true
    }
}

/// An engine with a [`GatedDevice`], what that does, and its gate.
fn gated(num_pieces: u32) -> (EngineHandle, mpsc::UnboundedReceiver<Act>, std_mpsc::Sender<()>) {
    let (acts, does) = mpsc::unbounded_channel();
    let (open_gate, gate) = std_mpsc::channel();
    let device = GatedDevice { device: Deferred::new(mock(), 0), acts, gate, num_pieces };
    let engine = Engine::start(move |_| Ok(Box::new(device)));
    (engine.unwrap().handle, does, open_gate)
}

#[tokio::test]
async fn a_step_is_begun_while_another_is_in_flight_and_both_are_answered_before_the_end() {
    let (handle, mut does, open_gate) = gated(0);
    let (epoch, replies, mut outgoing) = handle.accept();
    handle.begin(epoch, replies).await;
    for number in 1..=3 {
        handle.step(epoch, step(epoch, number)).await;
    }
    handle.end(epoch).await;
    assert_eq!(epoch_of(outgoing.recv().await), epoch);
    assert_eq!([does.recv().await, does.recv().await], [Some(Act::Begin), Some(Act::Begin)]);
    assert!(outgoing.try_recv().is_err() && does.try_recv().is_err(), "two are in flight");
    for number in 1..=3 {
        open_gate.send(()).unwrap();
        let Some(Message::Output(output)) = outgoing.recv().await.unwrap().unwrap().message else {
            panic!("no output of step {number}")
        };
        assert_eq!(output.step, number);
    }
    assert!(outgoing.recv().await.is_none());
    assert_eq!(does.recv().await, Some(Act::Begin));
}

#[tokio::test]
async fn a_new_stream_hears_nothing_of_the_steps_that_were_in_flight() {
    let (handle, mut does, open_gate) = gated(0);
    let (first, replies, mut first_outgoing) = handle.accept();
    handle.begin(first, replies).await;
    handle.step(first, step(first, 1)).await;
    handle.step(first, step(first, 2)).await;
    assert_eq!([does.recv().await, does.recv().await], [Some(Act::Begin), Some(Act::Begin)]);

    let (second, replies, mut second_outgoing) = handle.accept();
    handle.begin(second, replies).await;
    // The engine waits for the earliest step, and so comes to the new stream.
    open_gate.send(()).unwrap();
    assert_eq!(epoch_of(second_outgoing.recv().await), second);
    assert_eq!(epoch_of(first_outgoing.recv().await), first);
    assert_eq!(epoch_of(first_outgoing.recv().await), first);
    assert!(first_outgoing.recv().await.is_none());

    handle.step(second, step(second, 1)).await;
    handle.end(second).await;
    open_gate.send(()).unwrap();
    assert_eq!(epoch_of(second_outgoing.recv().await), second);
    assert!(second_outgoing.recv().await.is_none());
}

#[tokio::test]
async fn an_output_is_sent_when_it_is_computed_though_nothing_else_comes() {
    let engine = Engine::start(|_| Ok(Box::new(Deferred::new(mock(), 1_000))));
    let handle = engine.unwrap().handle;
    let (epoch, replies, mut outgoing) = handle.accept();
    handle.begin(epoch, replies).await;
    assert_eq!(epoch_of(outgoing.recv().await), epoch);
    for number in 1..=3 {
        handle.step(epoch, step(epoch, number)).await;
        assert_eq!(epoch_of(outgoing.recv().await), epoch);
    }
}

#[tokio::test]
async fn while_nothing_is_in_flight_what_there_was_no_time_for_is_done() {
    let (handle, mut does, open_gate) = gated(3);
    for _ in 0..3 {
        assert_eq!(does.recv().await, Some(Act::Idle));
    }
    let (epoch, replies, mut outgoing) = handle.accept();
    handle.begin(epoch, replies).await;
    handle.step(epoch, step(epoch, 1)).await;
    handle.end(epoch).await;
    open_gate.send(()).unwrap();
    assert_eq!(does.recv().await, Some(Act::Begin));
    assert_eq!(epoch_of(outgoing.recv().await), epoch);
    assert_eq!(epoch_of(outgoing.recv().await), epoch);
}
