//! Where HTTP, text and engine meet: who waits for whom.
//!
//! ```text
//!  connection task          pump thread                    engine thread
//!  ───────────────          ───────────                    ─────────────
//!  admit ─────────────────────────────────────────────────► counts, refuses at once
//!  (encode)
//!  submit ── Register ────► knows the sequence
//!         ── Add ─────────────────────────────────────────► queues it
//!                           Events ◄────────────────────── one batch per step
//!                           decodes, looks for stops
//!                           ── Abort (stop string) ───────► frees its blocks
//!  waits ◄── wakes ──────── appends to the Output
//!  takes the Output
//!  drop ─── Forget ───────► ── Abort ─────────────────────► frees its blocks
//! ```
//!
//! - The connection waits for the pump, by a waker on its `Output`.
//! - The pump waits for its channel alone: never for a reader, never for the engine.
//! - The engine waits for neither: both of its channels take without waiting.
//!
//! So a client that reads slowly costs the memory of its own text, and nobody's time; one that
//! takes nothing for `client_timeout` is left. Registration precedes submission on one channel
//! each, and the engine can only speak of a sequence after its submission, so no event is missed.
//!
//! Every admitted place is used or given back: [`Places`] gives back on drop what was not
//! submitted, and a [`Generation`] aborts on drop what has not ended.

mod choice;
mod output;
mod pump;
mod scores;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

pub use output::{ChoiceOutput, Piece};

use crate::engine::run::EventSink;
use crate::engine::{
    EngineHandle, EngineState, Event, Grammar, NewSequence, SamplingParams, SequenceId,
    SubmitError, TokenLogprobs,
};
use crate::metrics::GenerationMetrics;
use crate::text::{StopMatcher, TextModel};
use choice::ChoiceText;
use output::Output;
use pump::{Live, Message, Pump};
use scores::PromptScores;

/// One prompt of a request.
#[derive(Clone, Debug)]
pub struct Prompt {
    /// At least one token.
    pub tokens: Arc<[u32]>,
    /// Prompt and output fit the model together, and one more token does in any case. 0 is for a
    /// prompt that is only to be scored: its choice ends without a token.
    pub max_tokens: u32,
    /// Characters that are shown before the output: text offsets count from them.
    pub num_shown_before: usize,
    /// Choices of equal prompts differ by this or by their index.
    pub seed: u64,
}

/// What a client asked for, validated and encoded.
#[derive(Clone, Debug)]
pub struct GenerationRequest {
    /// Choice `i` continues prompt `i / num_choices`.
    pub prompts: Vec<Prompt>,
    /// Choices per prompt.
    pub num_choices: u32,
    /// How tokens are drawn.
    pub sampling: SamplingParams,
    /// Tokens that end the text and are not shown.
    pub stop_token_ids: Arc<[u32]>,
    /// Strings that end the text.
    pub stop: Vec<String>,
    /// Whether the stop string itself is shown.
    pub include_stop: bool,
    /// Whether special tokens are left out of the text.
    pub skip_special_tokens: bool,
    /// Special tokens that stay in the text all the same.
    pub shown_tokens: Arc<[u32]>,
    /// Whether prompt and output are one text, as in a completion; a chat's answer is its own.
    pub continues_prompt: bool,
    /// Prefix hits happen only between requests of equal salt.
    pub cache_salt: Option<Arc<str>>,
    /// Whether the log-probabilities of the prompt's tokens are reported.
    pub prompt_logprobs: bool,
    /// What each choice must satisfy; accepted before, and encoded.
    pub grammar: Option<Arc<Grammar>>,
    /// False: the reader wants everything at once.
    pub streamed: bool,
}

/// A token with its log-probabilities.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenEntry {
    /// The token.
    pub token: u32,
    /// Its natural logarithm of probability; `None` for the first token of a prompt, which nothing
    /// predicts.
    pub logprob: Option<f32>,
    /// The most likely tokens of its position, most likely first.
    pub top: Vec<(u32, f32)>,
    /// Where its text begins in the text of the choice, in characters; a prompt's text begins at 0.
    pub text_offset: usize,
    /// Bytes of text that it added: none for the first half of a character, which is the second
    /// half's.
    pub text_len: usize,
}

/// Why a choice ended.
#[derive(Clone, Debug, PartialEq)]
pub enum FinishKind {
    /// The text came to its end.
    Stop(StopCause),
    /// The limit of tokens.
    Length,
    /// The sequence could not go on.
    Failed(String),
    /// The server or the pace of the client ended it.
    Interrupted(String),
}

/// What ended a text before its limit.
#[derive(Clone, Debug, PartialEq)]
pub enum StopCause {
    /// This stop token was sampled. It is counted, and has no part in the text.
    Token {
        /// The token.
        token: u32,
        /// Where log-probabilities were asked for.
        logprobs: Option<TokenLogprobs>,
    },
    /// This stop string was completed.
    Text(String),
}

/// The end of a choice.
#[derive(Clone, Debug, PartialEq)]
pub struct Finish {
    /// Why.
    pub kind: FinishKind,
    /// Tokens generated, the stop token included.
    pub num_tokens: u32,
    /// Tokens of the prompt that came from the prefix cache.
    pub cached_tokens: u32,
    /// How long it waited for its first step.
    pub waited: Duration,
}

#[cfg(test)]
impl Finish {
    fn failed(message: &str) -> Finish {
        let kind = FinishKind::Failed(message.into());
        Finish { kind, num_tokens: 0, cached_tokens: 0, waited: Duration::ZERO }
    }
}

/// Starts generations; cheap to clone.
#[derive(Clone)]
pub struct Generator {
    engine: EngineHandle,
    text: Arc<TextModel>,
    pump: Arc<PumpSender>,
}

/// Closes the pump when the last generator is gone. The pump holds on to the engine, and the
/// engine's sink to the pump: without this neither would end first.
struct PumpSender(Sender<Message>);

impl Drop for PumpSender {
    fn drop(&mut self) {
        let _ = self.0.send(Message::Close);
    }
}

impl Generator {
    /// Starts the pump. The sink must reach the engine behind `engine`; once it is dropped, every
    /// generation ends with an error.
    pub fn new(
        engine: EngineHandle,
        text: Arc<TextModel>,
        metrics: Arc<GenerationMetrics>,
        client_timeout: Duration,
    ) -> std::io::Result<(Generator, EventSink)> {
        let (sender, messages) = channel();
        let pump = Pump::new(engine.clone(), metrics, client_timeout);
        std::thread::Builder::new().name("pump".into()).spawn(move || pump.run(&messages))?;
        let end = SinkEnd(sender.clone());
        let sink = Box::new(move |events: Vec<Event>| {
            // The pump outlives the sink, which holds a sender.
            let _ = end.0.send(Message::Events(events));
        });
        Ok((Generator { engine, text, pump: Arc::new(PumpSender(sender)) }, sink))
    }

    /// Where the engine stands.
    pub fn state(&self) -> EngineState {
        self.engine.state()
    }

    /// The engine behind it.
    pub fn engine(&self) -> &EngineHandle {
        &self.engine
    }

    /// Takes places for `count` sequences, all or none, without waiting.
    pub fn admit(&self, count: usize) -> Result<Places, SubmitError> {
        Ok(Places { ids: self.engine.admit(count)?, engine: self.engine.clone() })
    }

    /// Hands a request to the engine. `places` has one place for each choice of each prompt.
    pub fn submit(
        &self,
        mut places: Places,
        request: &GenerationRequest,
    ) -> Result<Generation, SubmitError> {
        let num_choices = request.num_choices as usize;
        let count = request.prompts.len() * num_choices;
        assert_eq!(places.ids.len(), count, "one place per choice");
        let output = Arc::new(Output::new(count, request.streamed));
        let ids = std::mem::take(&mut places.ids);
        let live = ids.iter().enumerate().map(|(i, id)| {
            let prompt = &request.prompts[i / num_choices];
            (*id, self.live(output.clone(), i, request, prompt))
        });
        // The pump lives as long as this sender.
        let _ = self.pump.0.send(Message::Register(live.collect()));
        let taken = (0..count).map(|_| ChoiceOutput::default()).collect();
        let generation = Generation { output, ids: ids.clone(), pump: self.pump.0.clone(), taken };
        for (i, id) in ids.iter().enumerate() {
            let prompt = &request.prompts[i / num_choices];
            let sequence = NewSequence {
                prompt: prompt.tokens.clone(),
                sampling: request.sampling.clone(),
                max_tokens: prompt.max_tokens.max(1),
                stop_token_ids: request.stop_token_ids.clone(),
                seed: prompt.seed,
                choice: (i % num_choices) as u32,
                cache_salt: request.cache_salt.clone(),
                prompt_logprobs: request.prompt_logprobs,
                grammar: request.grammar.clone(),
            };
            if let Err(error) = self.engine.submit(*id, sequence) {
                self.engine.cancel(count - i);
                return Err(error);
            }
        }
        Ok(generation)
    }

    fn live(
        &self,
        output: Arc<Output>,
        choice: usize,
        request: &GenerationRequest,
        prompt: &Prompt,
    ) -> Live {
        let stop = (!request.stop.is_empty())
            .then(|| StopMatcher::new(request.stop.clone(), request.include_stop));
        let tokens = &prompt.tokens;
        let before = if request.continues_prompt { &tokens[..] } else { &[] };
        let decoder = self.text.decoder_after(before, request.skip_special_tokens);
        let decoder = decoder.showing(request.shown_tokens.clone());
        Live {
            output,
            choice,
            text: ChoiceText::new(decoder, stop, request.sampling.min_tokens)
                .after(prompt.num_shown_before),
            is_silent: prompt.max_tokens == 0,
            scores: request.prompt_logprobs.then(|| {
                let decoder = self.text.decoder(request.skip_special_tokens);
                PromptScores::new(tokens.clone(), decoder)
            }),
            num_prompt_tokens: tokens.len(),
            submitted: Instant::now(),
            num_tokens: 0,
            cached_tokens: None,
            waited: Duration::ZERO,
            last_token: None,
        }
    }

    /// Ends every generation with this reason.
    pub fn interrupt_all(&self, reason: &str) {
        let _ = self.pump.0.send(Message::InterruptAll(reason.into()));
    }
}

/// Tells the pump that the engine's side is gone.
struct SinkEnd(Sender<Message>);

impl Drop for SinkEnd {
    fn drop(&mut self) {
        let _ = self.0.send(Message::EngineGone);
    }
}

/// Places at the engine's door, given back on drop unless they were used.
pub struct Places {
    ids: Vec<SequenceId>,
    engine: EngineHandle,
}

impl Places {
    /// The first `count` of them, for one of several requests that were admitted together.
    pub fn split(&mut self, count: usize) -> Places {
        let rest = self.ids.split_off(count);
        let ids = std::mem::replace(&mut self.ids, rest);
        Places { ids, engine: self.engine.clone() }
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        if !self.ids.is_empty() {
            self.engine.cancel(self.ids.len());
        }
    }
}

/// The reading end of a request. Dropping it aborts what has not ended.
pub struct Generation {
    output: Arc<Output>,
    ids: Vec<SequenceId>,
    pump: Sender<Message>,
    taken: Vec<ChoiceOutput>,
}

impl Generation {
    /// What is new, one entry per choice; `None` when every choice has ended and been taken.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<&mut [ChoiceOutput]>> {
        match self.output.poll_take(context, &mut self.taken) {
            Poll::Ready(true) => Poll::Ready(Some(&mut self.taken)),
            Poll::Ready(false) => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    }

    /// Waits for what is new; `None` as for [`poll_next`](Self::poll_next).
    pub async fn next(&mut self) -> Option<&mut [ChoiceOutput]> {
        let (output, taken) = (&self.output, &mut self.taken);
        let news = std::future::poll_fn(|context| output.poll_take(context, taken)).await;
        news.then_some(&mut self.taken[..])
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        if !self.output.has_ended() {
            let _ = self.pump.send(Message::Forget(std::mem::take(&mut self.ids)));
        }
    }
}
