//! The pump: one thread that turns the engine's events into text for the readers.
//!
//! It alone knows which sequence belongs to which reader. Its channel has no bound of its own and
//! needs none: registrations are bounded by what the engine admits, events by the tokens that the
//! admitted sequences may generate. It waits for nothing but that channel.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::task::Waker;
use std::time::{Duration, Instant};

use tracing::{debug, error};

use super::choice::{ChoiceText, Visible};
use super::output::{News, Output};
use super::scores::PromptScores;
use super::{Finish, FinishKind, StopCause};
use crate::engine::{EngineHandle, Event, FinishReason, SequenceId};
use crate::metrics::GenerationMetrics;

/// How often readers that take nothing are looked for; more often where they have less time.
const SCAN_INTERVAL: Duration = Duration::from_secs(1);

/// What the pump is told.
pub(crate) enum Message {
    /// These sequences are about to be submitted.
    Register(Vec<(SequenceId, Live)>),
    /// What one step brought.
    Events(Vec<Event>),
    /// Nobody reads these any more.
    Forget(Vec<SequenceId>),
    /// Every sequence ends now, for this reason.
    InterruptAll(String),
    /// No event will come any more.
    EngineGone,
    /// No registration will come any more.
    Close,
}

/// A sequence between its registration and its end.
pub(crate) struct Live {
    pub(crate) output: Arc<Output>,
    /// Index in the output.
    pub(crate) choice: usize,
    pub(crate) text: ChoiceText,
    /// Nothing of the output is wanted.
    pub(crate) is_silent: bool,
    /// Until the prompt is scored, where that is wanted.
    pub(crate) scores: Option<PromptScores>,
    pub(crate) num_prompt_tokens: usize,
    pub(crate) submitted: Instant,
    pub(crate) num_tokens: u32,
    pub(crate) cached_tokens: Option<u32>,
    pub(crate) waited: Duration,
    pub(crate) last_token: Option<Instant>,
}

pub(crate) struct Pump {
    live: HashMap<SequenceId, Live>,
    engine: EngineHandle,
    metrics: Arc<GenerationMetrics>,
    client_timeout: Duration,
    visible: Visible,
    wakers: Vec<Waker>,
    now: Instant,
}

impl Pump {
    pub(crate) fn new(
        engine: EngineHandle,
        metrics: Arc<GenerationMetrics>,
        client_timeout: Duration,
    ) -> Pump {
        Pump {
            live: HashMap::new(),
            engine,
            metrics,
            client_timeout,
            visible: Visible::default(),
            wakers: Vec::new(),
            now: Instant::now(),
        }
    }

    /// Runs until the generator is closed and the last sequence has ended. Its handle on the
    /// engine goes with it, which lets the engine end.
    pub(crate) fn run(mut self, messages: &Receiver<Message>) {
        let scan_interval = SCAN_INTERVAL.min(self.client_timeout);
        let mut next_scan = Instant::now() + scan_interval;
        let mut is_closed = false;
        loop {
            let wait = next_scan.saturating_duration_since(Instant::now());
            let message = match messages.recv_timeout(wait) {
                Ok(message) => Some(message),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            self.now = Instant::now();
            if let Some(message) = message {
                is_closed |= matches!(message, Message::Close);
                self.handle(message);
            }
            if self.now >= next_scan {
                self.leave_abandoned();
                next_scan = self.now + scan_interval;
            }
            // Readers are woken after the whole step, or they would contend for its outputs.
            self.wakers.drain(..).for_each(Waker::wake);
            if is_closed && self.live.is_empty() {
                return;
            }
        }
    }

    fn handle(&mut self, message: Message) {
        match message {
            Message::Register(sequences) => self.live.extend(sequences),
            Message::Events(events) => {
                for event in events {
                    self.guarded_event(event);
                }
            }
            Message::Forget(ids) => {
                for id in ids {
                    if let Some(live) = self.live.remove(&id) {
                        self.engine.abort(id);
                        self.metrics.aborted.inc();
                        debug!(sequence = id.0, tokens = live.num_tokens, "client left");
                    }
                }
            }
            Message::InterruptAll(reason) => self.end_all(&FinishKind::Interrupted(reason)),
            Message::Close => {}
            Message::EngineGone => {
                self.end_all(&FinishKind::Failed("the engine has stopped".into()));
            }
        }
    }

    /// A panic in the decoding of one sequence ends that sequence alone.
    fn guarded_event(&mut self, event: Event) {
        let id = event.id;
        if catch_unwind(AssertUnwindSafe(|| self.event(event))).is_err() {
            error!(sequence = id.0, "decoding panicked");
            self.visible.clear();
            self.engine.abort(id);
            self.end(id, FinishKind::Failed("the text could not be decoded".into()));
        }
    }

    fn event(&mut self, event: Event) {
        // Events of a sequence that was left in the meantime.
        let Some(live) = self.live.get_mut(&event.id) else { return };
        live.cached_tokens = live.cached_tokens.or(event.cached_tokens);
        live.waited = event.waited.unwrap_or(live.waited);
        if let Some(scores) = &mut live.scores
            && scores.add(event.prompt_logprobs)
            && let Some(scores) = live.scores.take()
        {
            live.output.score(live.choice, scores.entries());
        }
        let is_over =
            matches!(event.finish, Some(FinishReason::StopToken(_) | FinishReason::Length));
        if live.is_silent && is_over {
            return self.end(event.id, FinishKind::Length);
        }
        if !event.tokens.is_empty() {
            match live.last_token.replace(self.now) {
                None => {
                    let since = self.now - live.submitted;
                    self.metrics.time_to_first_token.observe(since.as_secs_f64());
                }
                Some(last) => {
                    let each = (self.now - last).as_secs_f64() / event.tokens.len() as f64;
                    event
                        .tokens
                        .iter()
                        .for_each(|_| self.metrics.inter_token_latency.observe(each));
                }
            }
        }
        let mut logprobs = event.logprobs.into_iter();
        let mut stop_logprobs = None;
        let num_tokens = event.tokens.len();
        for (i, token) in event.tokens.into_iter().enumerate() {
            live.num_tokens += 1;
            let logprobs = logprobs.next();
            // The token that ends a text is counted and not shown.
            if event.finish == Some(FinishReason::StopToken(token)) {
                stop_logprobs = logprobs;
                break;
            }
            if let Some(stop) = live.text.push(token, logprobs, &mut self.visible) {
                if event.finish.is_none() {
                    self.engine.abort(event.id);
                }
                self.end(event.id, FinishKind::Stop(StopCause::Text(stop)));
                return;
            }
            // The last token leaves together with the end: some clients are told both at once.
            if event.finish.is_some() && i + 1 == num_tokens {
                break;
            }
            let news =
                News { text: &self.visible.text, tokens: &mut self.visible.tokens, finish: None };
            self.wakers.extend(live.output.push(live.choice, news, self.now));
            self.visible.clear();
        }
        let Some(reason) = event.finish else { return };
        let stopped = live.text.finish(&mut self.visible);
        let kind = match (stopped, reason) {
            (Some(stop), _) => FinishKind::Stop(StopCause::Text(stop)),
            (None, FinishReason::StopToken(token)) => {
                FinishKind::Stop(StopCause::Token { token, logprobs: stop_logprobs })
            }
            (None, FinishReason::Length) => FinishKind::Length,
            (None, FinishReason::Error(message)) => FinishKind::Failed(message),
        };
        self.end(event.id, kind);
    }

    /// Ends a sequence with what is still in `visible`.
    fn end(&mut self, id: SequenceId, kind: FinishKind) {
        let Some(live) = self.live.remove(&id) else { return };
        self.metrics.finished(&kind);
        self.metrics.duration.observe((self.now - live.submitted).as_secs_f64());
        self.metrics.prompt_tokens.observe(live.num_prompt_tokens as f64);
        self.metrics.generated_tokens.observe(f64::from(live.num_tokens));
        let finish = Finish {
            kind,
            num_tokens: live.num_tokens,
            cached_tokens: live.cached_tokens.unwrap_or(0),
            waited: live.waited,
        };
        let news = News {
            text: &self.visible.text,
            tokens: &mut self.visible.tokens,
            finish: Some(finish),
        };
        self.wakers.extend(live.output.push(live.choice, news, self.now));
        self.visible.clear();
    }

    fn end_all(&mut self, kind: &FinishKind) {
        let ids: Vec<SequenceId> = self.live.keys().copied().collect();
        for id in ids {
            self.engine.abort(id);
            self.end(id, kind.clone());
        }
    }

    fn leave_abandoned(&mut self) {
        let abandoned: Vec<SequenceId> = self
            .live
            .iter()
            .filter(|(_, live)| live.output.is_abandoned(self.client_timeout, self.now))
            .map(|(id, _)| *id)
            .collect();
        for id in abandoned {
            debug!(sequence = id.0, "client took nothing for too long");
            self.engine.abort(id);
            let seconds = self.client_timeout.as_secs();
            let reason = format!("nothing was taken from this stream for {seconds} s");
            self.end(id, FinishKind::Interrupted(reason));
        }
    }
}
