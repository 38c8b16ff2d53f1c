//! The body of a streamed answer: server-sent events from a generation.
//!
//! A poll takes everything that is waiting and returns it as one frame of whole events. Silence is
//! broken by a comment every so often, so that proxies keep a stream open that waits for a
//! worker. An error ends the stream with an event of its own; in OpenAI's streams `[DONE]` is
//! always last.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use hyper::body::{Body, Frame};
use tokio::time::{Instant, Sleep, sleep};

use super::answer::{ChatAnswer, Place};
use super::chunks::{ChunkWriter, Usage, finish_reason};
use super::drain::InFlight;
use super::error::ApiError;
use crate::generate::{ChoiceOutput, Finish, FinishKind, Generation};

/// Room taken for events at a time.
const BUFFER_BYTES: usize = 4096;

/// The form that an API gives to the news of a generation.
pub(crate) trait WriteEvents: Send + Unpin + 'static {
    /// Writes the events of everything that is new, one entry per choice. True: they are the last.
    fn write(&mut self, news: &mut [ChoiceOutput], out: &mut BytesMut) -> bool;
}

/// What a stream needs to know beside its generation.
pub(crate) struct StreamPlan {
    pub(crate) writer: ChunkWriter,
    /// With the prompt's tokens; the rest is counted here.
    pub(crate) usage: Usage,
    pub(crate) include_usage: bool,
    /// Choices per prompt.
    pub(crate) num_choices: usize,
    /// Text that precedes each choice, or nothing.
    pub(crate) echoes: Vec<String>,
    /// The reader of each choice; empty where all text is content.
    pub(crate) answers: Vec<ChatAnswer>,
}

/// Events in OpenAI's form.
pub(crate) struct OpenAiEvents {
    plan: StreamPlan,
    /// Choices whose first event is written.
    begun: Vec<bool>,
    num_running: usize,
}

impl OpenAiEvents {
    pub(crate) fn new(plan: StreamPlan) -> OpenAiEvents {
        let num_running = plan.echoes.len();
        OpenAiEvents { plan, begun: vec![false; num_running], num_running }
    }
}

/// The events of one request.
pub(crate) struct EventStream<W> {
    generation: Generation,
    events: W,
    /// Silence after which a comment is sent.
    keep_alive: Duration,
    out: BytesMut,
    quiet: Pin<Box<Sleep>>,
    last_sent: Instant,
    done: bool,
    _in_flight: InFlight,
}

impl WriteEvents for OpenAiEvents {
    fn write(&mut self, news: &mut [ChoiceOutput], out: &mut BytesMut) -> bool {
        let writer = &self.plan.writer;
        for (index, choice) in news.iter_mut().enumerate() {
            if choice.pieces.is_empty() && choice.finish.is_none() {
                continue;
            }
            if !self.begun[index] {
                self.begun[index] = true;
                writer.begin(out, index);
                let echo = &self.plan.echoes[index];
                if !echo.is_empty() || !choice.prompt.is_empty() {
                    writer.echo(out, index, echo, &choice.prompt);
                }
            }
            let (mut text, mut token) = (0, 0);
            for piece in &choice.pieces {
                let tokens = &choice.tokens[token..piece.tokens_end];
                let piece_text = &choice.text[text..piece.text_end];
                match self.plan.answers.get_mut(index) {
                    None => writer.piece(out, index, piece_text, tokens),
                    Some(answer) => {
                        let place = Place { writer, out, choice: index };
                        answer.piece(place, piece_text, tokens);
                    }
                }
                (text, token) = (piece.text_end, piece.tokens_end);
            }
            let Some(finish) = &choice.finish else { continue };
            self.plan.usage.count(index, self.plan.num_choices, finish);
            match finish_reason(finish) {
                Some(reason) => {
                    let answer = self.plan.answers.get_mut(index);
                    let reason = answer.map_or(reason, |answer| {
                        answer.end(Place { writer, out, choice: index }, reason)
                    });
                    writer.end(out, index, reason, finish);
                    self.num_running -= 1;
                }
                None => {
                    // One choice that fails ends the request; dropping it aborts the others.
                    put_event(out, &failure(finish).body());
                    self.plan.include_usage = false;
                    self.num_running = 0;
                    break;
                }
            }
        }
        if self.num_running == 0 {
            if self.plan.include_usage {
                writer.usage(out, &self.plan.usage);
            }
            out.put_slice(b"data: [DONE]\n\n");
        }
        self.num_running == 0
    }
}

impl<W: WriteEvents> EventStream<W> {
    pub(crate) fn new(
        generation: Generation,
        events: W,
        keep_alive: Duration,
        in_flight: InFlight,
    ) -> Self {
        EventStream {
            generation,
            events,
            keep_alive,
            quiet: Box::pin(sleep(keep_alive)),
            out: BytesMut::new(),
            last_sent: Instant::now(),
            done: false,
            _in_flight: in_flight,
        }
    }

    /// Writes the events of everything that is waiting. `Ready` if there were any.
    fn poll_events(&mut self, context: &mut Context<'_>) -> Poll<()> {
        match ready!(self.generation.poll_next(context)) {
            Some(news) => {
                self.out.reserve(BUFFER_BYTES);
                self.done = self.events.write(news, &mut self.out);
            }
            None => self.done = true,
        }
        Poll::Ready(())
    }

    fn poll_keep_alive(&mut self, context: &mut Context<'_>) -> Poll<()> {
        while self.quiet.as_mut().poll(context).is_ready() {
            let due = self.last_sent + self.keep_alive;
            if due <= Instant::now() {
                self.out.put_slice(b": keep-alive\n\n");
                self.quiet.as_mut().reset(Instant::now() + self.keep_alive);
                return Poll::Ready(());
            }
            // Something was sent meanwhile: moving the timer only now keeps it off the hot path.
            self.quiet.as_mut().reset(due);
        }
        Poll::Pending
    }
}

impl<W: WriteEvents> Body for EventStream<W> {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        while !this.done && this.out.is_empty() {
            if this.poll_events(context).is_pending() {
                ready!(this.poll_keep_alive(context));
            }
        }
        if this.out.is_empty() {
            return Poll::Ready(None);
        }
        this.last_sent = Instant::now();
        Poll::Ready(Some(Ok(Frame::data(this.out.split().freeze()))))
    }

    fn is_end_stream(&self) -> bool {
        self.done && self.out.is_empty()
    }
}

pub(crate) fn put_event(out: &mut BytesMut, json: &str) {
    out.put_slice(b"data: ");
    out.put_slice(json.as_bytes());
    out.put_slice(b"\n\n");
}

/// How an end that is an error looks to the client.
pub(crate) fn failure(finish: &Finish) -> ApiError {
    match &finish.kind {
        FinishKind::Interrupted(reason) => ApiError::Interrupted(reason.clone()),
        FinishKind::Failed(reason) => ApiError::Failed(reason.clone()),
        FinishKind::Stop(_) | FinishKind::Length => ApiError::Internal,
    }
}
