//! gpt-oss: an answer is a list of messages, each with a header that names its channel.
//!
//! ```text
//! <|channel|>analysis<|message|>thoughts<|end|><|start|>assistant
//! <|channel|>commentary to=functions.name <|constrain|>json<|message|>{..}<|call|>
//! ```
//!
//! `analysis` is reasoning, a message to a function is a call, and the others (`final`, and
//! `commentary` to nobody) are content. A prompt ends where the header of the first begins.

use std::sync::Arc;

use super::grammar::{Calls, arguments};
use super::parts::push_until;
use super::{Parts, Tool};
use crate::text::Constraint;
use crate::text::lark::{Lark, nested, quoted};
use crate::text::reasoning::Opening;

const START: &str = "<|start|>";
const CHANNEL: &str = "<|channel|>";
const CONSTRAIN: &str = "<|constrain|>";
const MESSAGE: &str = "<|message|>";
const END: &str = "<|end|>";

/// What ends a message: its end, or, where that was forgotten, the header of the next.
const ENDS: [&str; 5] = [END, "<|call|>", "<|return|>", START, CHANNEL];

pub(in crate::text) const MARKERS: &[&str] =
    &[START, CHANNEL, CONSTRAIN, MESSAGE, END, "<|call|>", "<|return|>"];

/// Where a prompt leaves the model: before a header, or in a message that it goes on with.
pub(in crate::text) fn opening(prompt: &str) -> Opening {
    let is_open = prompt.rfind(MESSAGE).is_some_and(|at| {
        let message = &prompt[at..];
        !ENDS.iter().any(|end| message.contains(end))
    });
    if is_open { Opening::Closed } else { Opening::Before }
}

/// The reader of one answer.
pub(in crate::text) struct Harmony {
    /// Where messages to functions are calls: the tools that were offered. Else they are content.
    tools: Option<Arc<[Tool]>>,
    /// Whether the analysis is reasoning. Else it is content.
    reasons: bool,
    state: State,
    /// Channels that have said something.
    has_content: bool,
    has_reasoning: bool,
}

enum State {
    Header(String),
    /// In a message: text that may be the beginning of its end.
    Message(Kind, String),
}

#[derive(Clone, Copy)]
enum Kind {
    Content,
    Reasoning,
    Call,
}

impl Harmony {
    pub(in crate::text) fn new(
        opening: Opening,
        tools: Option<Arc<[Tool]>>,
        reasons: bool,
    ) -> Harmony {
        let state = match opening {
            // The answer goes on with a message of the prompt.
            Opening::Closed => State::Message(Kind::Content, String::new()),
            Opening::Before | Opening::Inside => State::Header(String::new()),
        };
        let has_content = opening == Opening::Closed;
        Harmony { tools, reasons, state, has_content, has_reasoning: false }
    }

    pub(in crate::text) fn push(&mut self, text: &str, out: &mut Parts) {
        let mut text = text.to_owned();
        loop {
            match &mut self.state {
                State::Header(held) => {
                    let (header, found) = push_until(held, &text, &[MESSAGE]);
                    let Some((_, rest)) = found else {
                        held.insert_str(0, &header);
                        return;
                    };
                    let kind = self.begin(&header, out);
                    self.state = State::Message(kind, String::new());
                    text = rest;
                }
                State::Message(kind, held) => {
                    let (message, found) = push_until(held, &text, &ENDS);
                    match kind {
                        Kind::Content => out.content(&message),
                        Kind::Reasoning => out.reasoning(&message),
                        Kind::Call => out.arguments(&message),
                    }
                    let Some((end, rest)) = found else { return };
                    self.state = State::Header(String::new());
                    text = if end == CHANNEL { format!("{CHANNEL}{rest}") } else { rest };
                }
            }
        }
    }

    /// Begins the message behind a header. Messages of a kind are separated by a line's end.
    fn begin(&mut self, header: &str, out: &mut Parts) -> Kind {
        match self.function(header) {
            Some(name) => {
                out.call(name);
                Kind::Call
            }
            None if self.reasons && word_after(header, CHANNEL) == Some("analysis") => {
                if std::mem::replace(&mut self.has_reasoning, true) {
                    out.reasoning("\n");
                }
                Kind::Reasoning
            }
            None => {
                if std::mem::replace(&mut self.has_content, true) {
                    out.content("\n");
                }
                Kind::Content
            }
        }
    }

    /// The function that a message is for. The namespace may be left out of a name that we know.
    fn function<'h>(&self, header: &'h str) -> Option<&'h str> {
        let tools = self.tools.as_ref()?;
        let recipient = word_after(header, "to=")?;
        let name = recipient.strip_prefix("functions.").filter(|name| !name.is_empty());
        name.or_else(|| tools.iter().any(|tool| tool.name == recipient).then_some(recipient))
    }

    pub(in crate::text) fn finish(&mut self, out: &mut Parts) {
        match &mut self.state {
            // A header that was not finished says nothing; text in its place is an answer.
            State::Header(held) if !held.contains("<|") => out.content(held),
            State::Header(_) => {}
            State::Message(Kind::Content, held) => out.content(held),
            State::Message(Kind::Reasoning, held) => out.reasoning(held),
            State::Message(Kind::Call, held) => out.arguments(held),
        }
        self.state = State::Header(String::new());
    }
}

/// The word behind `mark` in a header.
fn word_after<'h>(header: &'h str, mark: &str) -> Option<&'h str> {
    let (_, rest) = header.split_once(mark)?;
    rest.split(|c: char| c.is_whitespace() || c == '<').next()
}

/// The grammar of an answer with one call: these models write no second one before they have an
/// answer to the first.
pub(super) fn calls(lark: &mut Lark<'_>, calls: &Calls<'_>) -> String {
    let kind = content_type(lark);
    let (channel, message) = (lark.marker(CHANNEL), lark.marker(MESSAGE));
    let call = calls.any_tool(lark, |lark, tool: &Tool| {
        let to = quoted(&format!(" to=functions.{}", tool.name));
        let commentary = quoted("commentary");
        let header = format!("{channel} {commentary} {to} | {to} {channel} {commentary}");
        let header = lark.rule(&header);
        format!("{header} {kind} {message} {}", arguments(tool))
    });
    let thought = thought(lark, "analysis");
    let text = lark.without(END);
    match calls.content_or(&text) {
        None => format!("{thought}* {call}"),
        Some(content) => {
            let preamble = self::thought(lark, "commentary");
            let last = format!("{channel} \"final\" {kind} {message} {content}");
            format!("({thought} | {preamble})* ({call} | {last})")
        }
    }
}

/// An answer whose content is `constraint`, after any thoughts.
pub(in crate::text) fn final_content(lark: &mut Lark<'_>, constraint: &Constraint) -> String {
    let (kind, thought) = (content_type(lark), thought(lark, "analysis"));
    let (channel, message) = (lark.marker(CHANNEL), lark.marker(MESSAGE));
    format!("{thought}* {channel} \"final\" {kind} {message} {}", nested(constraint))
}

/// A message in a channel, and the header of the next up to its channel.
fn thought(lark: &mut Lark<'_>, name: &str) -> String {
    let (channel, message, start) =
        (lark.marker(CHANNEL), lark.marker(MESSAGE), lark.marker(START));
    let text = lark.until(END);
    lark.rule(&format!("{channel} {} {message} {text} {start} \"assistant\"", quoted(name)))
}

/// What a header may say about the message: that it is JSON.
fn content_type(lark: &mut Lark<'_>) -> String {
    let constrain = lark.marker(CONSTRAIN);
    lark.rule(&format!("(\" \"? {constrain} \"json\" | \" json\")?"))
}
