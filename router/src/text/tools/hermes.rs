//! Calls as JSON between tags: `<tool_call>{"name": .., "arguments": {..}}</tool_call>`.

use super::Parts;
use super::grammar::{Calls, json_call};
use super::json::{JsonCall, Progress};
use super::parts::Content;
use crate::text::lark::Lark;

pub(super) const OPEN: &str = "<tool_call>";
pub(super) const CLOSE: &str = "</tool_call>";

/// The parser of one answer.
#[derive(Default)]
pub(in crate::text) struct Hermes {
    content: Content,
    state: State,
}

#[derive(Default)]
enum State {
    #[default]
    Content,
    Call(JsonCall),
    /// Behind a call's object: the text that may be the closing tag.
    Closing(String),
}

impl Hermes {
    pub(super) fn push(&mut self, text: &str, out: &mut Parts) {
        let mut text = text.to_owned();
        loop {
            let (state, rest) = match &mut self.state {
                State::Content => match self.content.push(&text, &[OPEN], out) {
                    Some((_, rest)) => (State::Call(JsonCall::object()), rest),
                    None => return,
                },
                State::Call(call) => match call.push(&text, out) {
                    Progress::More => return,
                    Progress::Ended(rest) => {
                        self.content.call_ended();
                        (State::Closing(String::new()), rest)
                    }
                    Progress::Malformed(rest) => {
                        self.content.give_back(OPEN, out);
                        (State::Content, rest)
                    }
                },
                State::Closing(held) => match after_close(held, &text) {
                    Some(rest) => (State::Content, rest),
                    None => return,
                },
            };
            self.state = state;
            text = rest;
        }
    }

    pub(super) fn finish(&mut self, out: &mut Parts) {
        if let State::Call(call) = &mut self.state
            && let Some(rest) = call.finish()
        {
            self.content.give_back(OPEN, out);
            out.content(&rest);
        }
        self.content.finish(out);
    }
}

/// What follows the closing tag, or all of the text where there is none. `None`: it may come.
pub(super) fn after_close(held: &mut String, text: &str) -> Option<String> {
    held.push_str(text);
    let seen = held.trim_start();
    if let Some(rest) = seen.strip_prefix(CLOSE) {
        return Some(rest.to_owned());
    }
    (!CLOSE.starts_with(seen)).then(|| std::mem::take(held))
}

/// The grammar of calls.
pub(super) fn calls(lark: &mut Lark<'_>, calls: &Calls<'_>) -> String {
    let objects = calls.any_tool(lark, |_, tool| json_call(tool, "arguments"));
    let body = format!("\"\\n\" {objects} \"\\n\" {}", lark.marker(CLOSE));
    calls.marked(lark, OPEN, &body, "\"\\n\"?")
}
