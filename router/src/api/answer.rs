//! Answers that are more than content: reasoning and tool calls, as deltas and as messages.
//!
//! Reasoning goes by two names, as clients of either generation of servers read it: `reasoning`
//! and `reasoning_content`. A call has its index, id and name in one delta and its arguments in
//! those that follow. Log-probabilities stand in the event with which their text became visible;
//! those of markers wait for the next.

use std::sync::Arc;

use bytes::{BufMut, BytesMut};
use uuid::Uuid;

use super::chunks::{ChunkWriter, put, put_list, put_string};
use crate::generate::TokenEntry;
use crate::text::{AnswerFormats, AnswerReader, Opening, Part, Parts, Tool, ToolFormat};

/// How the answers to a request are read, the same for all of its choices.
#[derive(Debug)]
pub(crate) struct AnswerForm {
    pub(crate) formats: AnswerFormats,
    pub(crate) opening: Opening,
    pub(crate) tools: Arc<[Tool]>,
    /// Special tokens that the reader must see.
    pub(crate) markers: Arc<[u32]>,
    pub(crate) shows: Shows,
}

/// What the client wants to see of an answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shows {
    pub(crate) reasoning: bool,
    /// Whether calls are a reason to end; not where the client has named the function itself.
    pub(crate) tool_calls_reason: bool,
}

impl AnswerForm {
    /// The reader of one choice.
    pub(crate) fn begin(&self) -> ChatAnswer {
        ChatAnswer {
            reader: AnswerReader::new(self.formats, self.opening, &self.tools),
            parts: Parts::default(),
            shows: self.shows,
            has_short_ids: self.formats.tools == Some(ToolFormat::Mistral),
            num_calls: 0,
            tokens: Vec::new(),
        }
    }
}

/// One choice, while its text arrives.
pub(crate) struct ChatAnswer {
    reader: AnswerReader,
    /// What was read last; empty between pieces.
    parts: Parts,
    shows: Shows,
    /// Mistral's templates refuse the ids of other models when they come back.
    has_short_ids: bool,
    num_calls: usize,
    /// Tokens whose text is not in an event yet.
    tokens: Vec<TokenEntry>,
}

/// Where events of a choice are written.
pub(crate) struct Place<'a> {
    pub(crate) writer: &'a ChunkWriter,
    pub(crate) out: &'a mut BytesMut,
    pub(crate) choice: usize,
}

impl ChatAnswer {
    /// Writes the events of one piece of text.
    pub(crate) fn piece(&mut self, place: Place<'_>, text: &str, tokens: &[TokenEntry]) {
        self.tokens.extend_from_slice(tokens);
        self.reader.push(text, &mut self.parts);
        self.write(place);
    }

    /// Writes what was held back, and returns the reason for which the choice ended.
    pub(crate) fn end(&mut self, place: Place<'_>, reason: &'static str) -> &'static str {
        self.reader.finish(&mut self.parts);
        let Place { writer, out, choice } = place;
        self.write(Place { writer, out: &mut *out, choice });
        if !self.tokens.is_empty() {
            writer.delta(out, choice, |out| out.put_slice(b"{}"), &self.tokens);
        }
        self.shows.reason(reason, self.num_calls)
    }

    fn write(&mut self, place: Place<'_>) {
        let Place { writer, out, choice } = place;
        for part in self.parts.drain() {
            if matches!(part, Part::Reasoning(_)) && !self.shows.reasoning {
                continue;
            }
            self.num_calls += usize::from(matches!(part, Part::Call(_)));
            let (index, short_ids) = (self.num_calls.saturating_sub(1), self.has_short_ids);
            let write = |out: &mut BytesMut| write_delta(out, &part, index, short_ids);
            writer.delta(out, choice, write, &self.tokens);
            self.tokens.clear();
        }
    }

    /// The message that a whole text is.
    pub(crate) fn whole(&mut self, text: &str) -> Message {
        self.reader.push(text, &mut self.parts);
        self.reader.finish(&mut self.parts);
        let mut message = Message {
            content: String::new(),
            reasoning: String::new(),
            calls: Vec::new(),
            shows: self.shows,
        };
        for part in self.parts.drain() {
            match part {
                Part::Content(text) => message.content.push_str(&text),
                Part::Reasoning(text) if self.shows.reasoning => message.reasoning.push_str(&text),
                Part::Reasoning(_) => {}
                Part::Call(name) => {
                    let id = call_id(self.has_short_ids);
                    message.calls.push(Call { id, name, arguments: String::new() });
                }
                Part::Arguments(text) => {
                    if let Some(call) = message.calls.last_mut() {
                        call.arguments.push_str(&text);
                    }
                }
            }
        }
        message
    }
}

impl Shows {
    fn reason(self, reason: &'static str, num_calls: usize) -> &'static str {
        let called = num_calls > 0 && self.tool_calls_reason;
        if called && reason == "stop" { "tool_calls" } else { reason }
    }
}

/// What a whole text says.
#[derive(Debug)]
pub(crate) struct Message {
    content: String,
    reasoning: String,
    calls: Vec<Call>,
    shows: Shows,
}

#[derive(Debug)]
struct Call {
    id: String,
    name: String,
    arguments: String,
}

impl Message {
    /// The content, and the other fields behind it. Calls alone have no content.
    pub(crate) fn write_fields(&self, out: &mut BytesMut) {
        if self.content.is_empty() && !self.calls.is_empty() {
            out.put_slice(b"null");
        } else {
            put_string(out, &self.content);
        }
        if !self.reasoning.is_empty() {
            for name in ["reasoning", "reasoning_content"] {
                put(out, format_args!(",\"{name}\":"));
                put_string(out, &self.reasoning);
            }
        }
        if !self.calls.is_empty() {
            out.put_slice(b",\"tool_calls\":");
            put_list(out, &self.calls, |out, call| {
                out.put_u8(b'{');
                call.write_fields(out);
                out.put_u8(b'}');
            });
        }
    }

    /// The reason for which the choice ended.
    pub(crate) fn end(&self, reason: &'static str) -> &'static str {
        self.shows.reason(reason, self.calls.len())
    }

    /// What is left without reasoning and calls.
    pub(crate) fn into_content(self) -> String {
        self.content
    }
}

impl Call {
    fn write_fields(&self, out: &mut BytesMut) {
        put(out, format_args!("\"id\":\"{}\",\"type\":\"function\",", self.id));
        out.put_slice(b"\"function\":{\"name\":");
        put_string(out, &self.name);
        out.put_slice(b",\"arguments\":");
        put_string(out, &self.arguments);
        out.put_u8(b'}');
    }
}

/// Writes a part as a delta; `index` is that of the last call.
fn write_delta(out: &mut BytesMut, part: &Part, index: usize, short_ids: bool) {
    match part {
        Part::Content(text) => {
            out.put_slice(b"{\"content\":");
            put_string(out, text);
        }
        Part::Reasoning(text) => {
            out.put_slice(b"{\"reasoning\":");
            put_string(out, text);
            out.put_slice(b",\"reasoning_content\":");
            put_string(out, text);
        }
        Part::Call(name) => {
            put(out, format_args!("{{\"tool_calls\":[{{\"index\":{index},"));
            let (id, name) = (call_id(short_ids), name.clone());
            Call { id, name, arguments: String::new() }.write_fields(out);
            out.put_slice(b"}]");
        }
        Part::Arguments(text) => {
            put(out, format_args!("{{\"tool_calls\":[{{\"index\":{index},"));
            out.put_slice(b"\"function\":{\"arguments\":");
            put_string(out, text);
            out.put_slice(b"}}]");
        }
    }
    out.put_u8(b'}');
}

/// A new id of a call: `call_` and 32 digits, or nine digits.
fn call_id(is_short: bool) -> String {
    let digits = Uuid::new_v4().simple().to_string();
    if is_short { digits[..9].to_owned() } else { format!("call_{digits}") }
}
