//! The engine thread without sockets: what a router's pace cannot show reliably.

use std::sync::mpsc as std_mpsc;

use super::*;
use crate::mock::{MockConfig, MockModel};
use crate::{Batch, RowFailure, SampledToken};

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

    fn forward(&mut self, batch: &Batch<'_>) -> Vec<Result<Option<SampledToken>, RowFailure>> {
        self.begun.send(()).unwrap();
        self.gate.recv().unwrap();
        self.model.forward(batch)
    }
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
    let engine = Engine::start(move |_| {
        Ok(Box::new(Gated { model: MockModel::new(MockConfig::default()), begun, gate }))
    });
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
    let engine = Engine::start(|_| Ok(Box::new(MockModel::new(MockConfig::default()))));
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
    let engine = Engine::start(|_| Ok(Box::new(MockModel::new(MockConfig::default()))));
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
