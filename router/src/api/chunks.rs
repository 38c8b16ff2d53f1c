//! Writing answers: the events of a stream and the body of a whole answer.
//!
//! This is the hot path of the server: one event per token. What stays the same over a stream is
//! written once, an event is five appends to one buffer, and no JSON value is built.

use std::sync::Arc;

use bytes::{BufMut, BytesMut};

use super::answer::Message;
use crate::generate::{Finish, FinishKind, StopCause, TokenEntry};
use crate::text::TextModel;

/// Log-probabilities below this are shown as this: JSON has no infinity.
pub(crate) const LOWEST_LOGPROB: f32 = -9999.0;

/// Which of the two shapes an answer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    Chat,
    Completion,
}

/// What identifies an answer; the same in all of its events.
#[derive(Debug)]
pub(crate) struct Envelope {
    pub(crate) shape: Shape,
    pub(crate) id: String,
    /// Seconds since 1970.
    pub(crate) created: u64,
    pub(crate) model: String,
    pub(crate) fingerprint: String,
}

/// Tokens of a whole request.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    pub(crate) prompt_tokens: usize,
    pub(crate) completion_tokens: usize,
    pub(crate) cached_tokens: usize,
}

impl Usage {
    /// Counts the end of a choice. The choices of a prompt share it, so only the first one's
    /// cached tokens are tokens that another request had left.
    pub(crate) fn count(&mut self, choice: usize, num_choices: usize, finish: &Finish) {
        self.completion_tokens += finish.num_tokens as usize;
        if choice.is_multiple_of(num_choices) {
            self.cached_tokens += finish.cached_tokens as usize;
        }
    }

    fn write(&self, out: &mut BytesMut) {
        let Usage { prompt_tokens, completion_tokens, cached_tokens } = self;
        let total = prompt_tokens + completion_tokens;
        put(
            out,
            format_args!(
                "{{\"prompt_tokens\":{prompt_tokens},\"completion_tokens\":{completion_tokens},\
                 \"total_tokens\":{total},\
                 \"prompt_tokens_details\":{{\"cached_tokens\":{cached_tokens}}}}}"
            ),
        );
    }
}

/// One choice of a whole answer.
#[derive(Debug, Default)]
pub(crate) struct WholeChoice {
    pub(crate) text: String,
    /// The prompt's tokens, where they were asked for.
    pub(crate) prompt: Vec<TokenEntry>,
    /// What the text says, where it is more than content.
    pub(crate) message: Option<Message>,
    pub(crate) tokens: Vec<TokenEntry>,
    pub(crate) finish: Option<Finish>,
}

impl WholeChoice {
    /// The tokens of the output, the one that ended it among them.
    fn output_ids(&self) -> Vec<u32> {
        let ids = self.tokens.iter().map(|entry| entry.token);
        ids.chain(self.finish.as_ref().and_then(stop_token)).collect()
    }
}

/// The token that ended a text without being part of it.
fn stop_token(finish: &Finish) -> Option<u32> {
    match finish.kind {
        FinishKind::Stop(StopCause::Token { token, .. }) => Some(token),
        _ => None,
    }
}

/// The prompts of a request whose tokens are told by their ids.
pub(crate) struct TokenIds {
    pub(crate) prompts: Vec<Arc<[u32]>>,
    /// Choices that are returned per prompt.
    pub(crate) num_choices: usize,
}

/// OpenAI's word for an end; `None` where it is an error.
pub(crate) fn finish_reason(finish: &Finish) -> Option<&'static str> {
    match finish.kind {
        FinishKind::Stop(_) => Some("stop"),
        FinishKind::Length => Some("length"),
        FinishKind::Failed(_) | FinishKind::Interrupted(_) => None,
    }
}

/// The end of a choice: OpenAI's word for it, and what it was.
#[derive(Clone, Copy)]
struct Ending<'a> {
    reason: &'static str,
    finish: &'a Finish,
}

/// Writes the events or the body of one answer.
pub(crate) struct ChunkWriter {
    shape: Shape,
    text: Arc<TextModel>,
    /// Whether log-probabilities are reported, and alternatives with them.
    logprobs: bool,
    top_logprobs: bool,
    /// Tokens that the request names as its own stops.
    stop_token_ids: Vec<u32>,
    /// Where ids are told, in vLLM's form.
    token_ids: Option<TokenIds>,
    /// From the beginning of an event to its list of choices.
    head: Vec<u8>,
    /// From the end of a choice to the end of the event.
    tail: &'static [u8],
}

impl ChunkWriter {
    /// For the events of a stream. With `include_usage` every event mentions it.
    pub(crate) fn for_stream(
        envelope: &Envelope,
        text: Arc<TextModel>,
        include_usage: bool,
    ) -> Self {
        let object = match envelope.shape {
            Shape::Chat => "chat.completion.chunk",
            Shape::Completion => "text_completion",
        };
        let mut head = BytesMut::from("data: ");
        write_envelope(&mut head, envelope, object);
        let tail: &[u8] = if include_usage { b"],\"usage\":null}\n\n" } else { b"]}\n\n" };
        Self::new(envelope.shape, text, &head, tail)
    }

    /// For a whole answer.
    pub(crate) fn for_body(envelope: &Envelope, text: Arc<TextModel>) -> Self {
        let object = match envelope.shape {
            Shape::Chat => "chat.completion",
            Shape::Completion => "text_completion",
        };
        let mut head = BytesMut::new();
        write_envelope(&mut head, envelope, object);
        Self::new(envelope.shape, text, &head, b"}")
    }

    fn new(shape: Shape, text: Arc<TextModel>, head: &[u8], tail: &'static [u8]) -> Self {
        ChunkWriter {
            shape,
            text,
            logprobs: false,
            top_logprobs: false,
            stop_token_ids: Vec::new(),
            token_ids: None,
            head: head.to_vec(),
            tail,
        }
    }

    /// Reports log-probabilities, with alternatives if `top`.
    pub(crate) fn with_logprobs(mut self, top: bool) -> Self {
        self.logprobs = true;
        self.top_logprobs = top;
        self
    }

    /// Tells of these tokens, and of stop strings, which of them ended a text.
    pub(crate) fn with_stop_token_ids(mut self, ids: Vec<u32>) -> Self {
        self.stop_token_ids = ids;
        self
    }

    /// Tells the ids of tokens.
    pub(crate) fn with_token_ids(mut self, ids: Option<TokenIds>) -> Self {
        self.token_ids = ids;
        self
    }

    /// The event that begins a choice. Completions have one only where it tells of the prompt.
    pub(crate) fn begin(&self, out: &mut BytesMut, choice: usize) {
        if self.shape == Shape::Completion && self.token_ids.is_none() {
            return;
        }
        self.open(out, choice);
        self.prompt_token_ids(out, choice);
        out.put_slice(match self.shape {
            Shape::Chat => b"\"delta\":{\"role\":\"assistant\",\"content\":\"\"}",
            Shape::Completion => b"\"text\":\"\"",
        });
        self.close(out, &[], None);
    }

    /// The prompt's text and what is told of its tokens.
    pub(crate) fn echo(
        &self,
        out: &mut BytesMut,
        choice: usize,
        text: &str,
        prompt: &[TokenEntry],
    ) {
        self.open(out, choice);
        out.put_slice(b"\"text\":");
        put_string(out, text);
        let logprobs = (self.logprobs && !prompt.is_empty()).then_some(prompt);
        self.close_choice(out, logprobs, None);
        out.put_slice(self.tail);
    }

    /// `"prompt_token_ids":[..],` where ids are told.
    fn prompt_token_ids(&self, out: &mut BytesMut, choice: usize) {
        let Some(TokenIds { prompts, num_choices }) = &self.token_ids else { return };
        out.put_slice(b"\"prompt_token_ids\":");
        put_list(out, &prompts[choice / num_choices], |out, id| put_number(out, *id as usize));
        out.put_u8(b',');
    }

    /// `,"token_ids":[..]` where ids are told.
    fn output_token_ids(&self, out: &mut BytesMut, ids: impl Iterator<Item = u32>) {
        if self.token_ids.is_some() {
            out.put_slice(b",\"token_ids\":");
            put_list(out, &ids.collect::<Vec<_>>(), |out, id| put_number(out, *id as usize));
        }
    }

    /// One piece of text, with the tokens that became visible with it.
    pub(crate) fn piece(
        &self,
        out: &mut BytesMut,
        choice: usize,
        text: &str,
        tokens: &[TokenEntry],
    ) {
        self.open(out, choice);
        match self.shape {
            Shape::Chat => {
                out.put_slice(b"\"delta\":{\"content\":");
                put_string(out, text);
                out.put_u8(b'}');
            }
            Shape::Completion => {
                out.put_slice(b"\"text\":");
                put_string(out, text);
            }
        }
        self.close(out, tokens, None);
    }

    /// An event whose delta, an object, is what `write` writes.
    pub(crate) fn delta(
        &self,
        out: &mut BytesMut,
        choice: usize,
        write: impl FnOnce(&mut BytesMut),
        tokens: &[TokenEntry],
    ) {
        self.open(out, choice);
        out.put_slice(b"\"delta\":");
        write(out);
        self.close(out, tokens, None);
    }

    /// The event that ends a choice.
    pub(crate) fn end(
        &self,
        out: &mut BytesMut,
        choice: usize,
        reason: &'static str,
        finish: &Finish,
    ) {
        self.open(out, choice);
        out.put_slice(match self.shape {
            Shape::Chat => b"\"delta\":{}",
            Shape::Completion => b"\"text\":\"\"",
        });
        self.close(out, &[], Some(Ending { reason, finish }));
    }

    /// The event with the number of tokens.
    pub(crate) fn usage(&self, out: &mut BytesMut, usage: &Usage) {
        out.put_slice(&self.head);
        out.put_slice(b"],\"usage\":");
        usage.write(out);
        out.put_slice(b"}\n\n");
    }

    /// A whole answer; every choice has ended without an error.
    pub(crate) fn body(&self, out: &mut BytesMut, choices: &[WholeChoice], usage: &Usage) {
        out.put_slice(&self.head);
        for (index, choice) in choices.iter().enumerate() {
            if index > 0 {
                out.put_u8(b',');
            }
            put(out, format_args!("{{\"index\":{index},"));
            self.prompt_token_ids(out, index);
            match self.shape {
                Shape::Chat => {
                    out.put_slice(b"\"message\":{\"role\":\"assistant\",\"content\":");
                    match &choice.message {
                        None => put_string(out, &choice.text),
                        Some(message) => message.write_fields(out),
                    }
                    out.put_slice(b",\"refusal\":null}");
                }
                Shape::Completion => {
                    out.put_slice(b"\"text\":");
                    put_string(out, &choice.text);
                }
            }
            self.output_token_ids(out, choice.output_ids().into_iter());
            let all = self.logprobs.then(|| [&choice.prompt[..], &choice.tokens].concat());
            let ending = choice.finish.as_ref().and_then(|finish| {
                let reason = finish_reason(finish)?;
                let message = choice.message.as_ref();
                let reason = message.map_or(reason, |message| message.end(reason));
                Some(Ending { reason, finish })
            });
            self.close_choice(out, all.as_deref(), ending);
        }
        out.put_slice(b"],\"usage\":");
        usage.write(out);
        out.put_slice(self.tail);
    }

    fn open(&self, out: &mut BytesMut, choice: usize) {
        out.put_slice(&self.head);
        out.put_slice(b"{\"index\":");
        put_number(out, choice);
        out.put_u8(b',');
    }

    fn close(&self, out: &mut BytesMut, tokens: &[TokenEntry], ending: Option<Ending<'_>>) {
        let last = ending.and_then(|ending| stop_token(ending.finish));
        self.output_token_ids(out, tokens.iter().map(|entry| entry.token).chain(last));
        let tokens = (self.logprobs && !tokens.is_empty()).then_some(tokens);
        self.close_choice(out, tokens, ending);
        out.put_slice(self.tail);
    }

    fn close_choice(
        &self,
        out: &mut BytesMut,
        tokens: Option<&[TokenEntry]>,
        ending: Option<Ending<'_>>,
    ) {
        out.put_slice(b",\"logprobs\":");
        match (tokens, self.shape) {
            (None, _) => out.put_slice(b"null"),
            (Some(tokens), Shape::Chat) => self.chat_logprobs(out, tokens),
            (Some(tokens), Shape::Completion) => self.completion_logprobs(out, tokens),
        }
        let Some(Ending { reason, finish }) = ending else {
            out.put_slice(b",\"finish_reason\":null}");
            return;
        };
        put(out, format_args!(",\"finish_reason\":\"{reason}\",\"stop_reason\":"));
        match &finish.kind {
            FinishKind::Stop(StopCause::Text(stop)) => put_string(out, stop),
            FinishKind::Stop(StopCause::Token { token, .. })
                if self.stop_token_ids.contains(token) =>
            {
                put_number(out, *token as usize);
            }
            _ => out.put_slice(b"null"),
        }
        out.put_u8(b'}');
    }

    fn chat_logprobs(&self, out: &mut BytesMut, tokens: &[TokenEntry]) {
        out.put_slice(b"{\"content\":");
        put_list(out, tokens, |out, entry| {
            self.chat_token(out, entry.token, entry.logprob);
            out.put_slice(b",\"top_logprobs\":");
            put_list(out, &entry.top, |out, (token, logprob)| {
                self.chat_token(out, *token, Some(*logprob));
                out.put_u8(b'}');
            });
            out.put_u8(b'}');
        });
        out.put_slice(b",\"refusal\":null}");
    }

    /// `{"token":..,"logprob":..,"bytes":[..]`, still open.
    fn chat_token(&self, out: &mut BytesMut, token: u32, logprob: Option<f32>) {
        let (text, bytes) = self.text.token_text(token);
        out.put_slice(b"{\"token\":");
        put_string(out, &text);
        out.put_slice(b",\"logprob\":");
        put_logprob(out, logprob);
        out.put_slice(b",\"bytes\":");
        put_list(out, &bytes, |out, byte| put_number(out, usize::from(*byte)));
    }

    fn completion_logprobs(&self, out: &mut BytesMut, tokens: &[TokenEntry]) {
        out.put_slice(b"{\"tokens\":");
        put_list(out, tokens, |out, entry| put_string(out, &self.text.token_text(entry.token).0));
        out.put_slice(b",\"token_logprobs\":");
        put_list(out, tokens, |out, entry| put_logprob(out, entry.logprob));
        out.put_slice(b",\"top_logprobs\":");
        if self.top_logprobs {
            put_list(out, tokens, |out, entry| match entry.logprob {
                Some(logprob) => self.top_of(out, entry, logprob),
                None => out.put_slice(b"null"),
            });
        } else {
            out.put_slice(b"null");
        }
        out.put_slice(b",\"text_offset\":");
        put_list(out, tokens, |out, entry| put_number(out, entry.text_offset));
        out.put_u8(b'}');
    }

    /// The alternatives as an object, the token itself always among them. Of two tokens that
    /// look the same the likelier one stands.
    fn top_of(&self, out: &mut BytesMut, entry: &TokenEntry, logprob: f32) {
        let mut names: Vec<String> = Vec::with_capacity(entry.top.len() + 1);
        out.put_u8(b'{');
        for (token, logprob) in entry.top.iter().chain([&(entry.token, logprob)]) {
            let (name, _) = self.text.token_text(*token);
            if names.contains(&name) {
                continue;
            }
            if !names.is_empty() {
                out.put_u8(b',');
            }
            put_string(out, &name);
            out.put_u8(b':');
            put_logprob(out, Some(*logprob));
            names.push(name);
        }
        out.put_u8(b'}');
    }
}

/// `{"id":..,"choices":[`
fn write_envelope(out: &mut BytesMut, envelope: &Envelope, object: &str) {
    out.put_slice(b"{\"id\":");
    put_string(out, &envelope.id);
    put(out, format_args!(",\"object\":\"{object}\",\"created\":{}", envelope.created));
    out.put_slice(b",\"model\":");
    put_string(out, &envelope.model);
    out.put_slice(b",\"system_fingerprint\":");
    put_string(out, &envelope.fingerprint);
    out.put_slice(b",\"choices\":[");
}

pub(super) fn put_list<T>(out: &mut BytesMut, items: &[T], put_one: impl Fn(&mut BytesMut, &T)) {
    out.put_u8(b'[');
    for (i, item) in items.iter().enumerate() {
        if i > 0 {
            out.put_u8(b',');
        }
        put_one(out, item);
    }
    out.put_u8(b']');
}

pub(super) fn put_string(out: &mut BytesMut, text: &str) {
    serde_json::to_writer(out.writer(), text).expect("a string can be written to memory");
}

/// `null` for what nothing predicts.
fn put_logprob(out: &mut BytesMut, logprob: Option<f32>) {
    let logprob = logprob.map(|logprob| logprob.max(LOWEST_LOGPROB));
    serde_json::to_writer(out.writer(), &logprob).expect("a number can be written to memory");
}

fn put_number(out: &mut BytesMut, number: usize) {
    serde_json::to_writer(out.writer(), &number).expect("a number can be written to memory");
}

pub(super) fn put(out: &mut BytesMut, text: std::fmt::Arguments<'_>) {
    std::fmt::Write::write_fmt(out, text).expect("memory can be written to");
}
