//! Calls as the whole answer: `{"name": .., "parameters": {..}}`, with or without
//! `<|python_tag|>` before it, several separated by `;`.
//!
//! Without a marker an answer in JSON may look like a call, so only the tools that were offered
//! can be called, and only an answer that begins with one is a call.

use std::sync::Arc;

use super::grammar::{Calls, json_call};
use super::json::{JsonCall, Progress};
use super::parts::Content;
use super::{Parts, Tool};
use crate::text::lark::Lark;

const TAG: &str = "<|python_tag|>";

/// The parser of one answer.
pub(in crate::text) struct Llama3Json {
    tools: Arc<[Tool]>,
    content: Content,
    state: State,
}

enum State {
    /// Nothing was read but this white space.
    Start(String),
    Content,
    /// A call, and what stands before it.
    Call(String, JsonCall),
    /// Behind a call: white space and separators.
    Between(String),
}

impl Llama3Json {
    pub(super) fn new(tools: Arc<[Tool]>) -> Llama3Json {
        Llama3Json { tools, content: Content::default(), state: State::Start(String::new()) }
    }

    pub(super) fn push(&mut self, text: &str, out: &mut Parts) {
        let mut text = text.to_owned();
        loop {
            let (state, rest) = match &mut self.state {
                State::Start(held) | State::Between(held) => {
                    held.push_str(&text);
                    let separators = |c: char| c.is_whitespace() || matches!(c, ';' | ',');
                    let seen = held.trim_start_matches(separators);
                    match seen.chars().next() {
                        None => return,
                        Some('{') => {
                            let rest = seen.to_owned();
                            held.truncate(held.len() - rest.len());
                            let before = std::mem::take(held);
                            (self.call(before), rest)
                        }
                        Some(_) => (State::Content, std::mem::take(held)),
                    }
                }
                State::Content => match self.content.push(&text, &[TAG], out) {
                    Some((_, rest)) => (self.call(TAG.to_owned()), rest),
                    None => return,
                },
                State::Call(before, call) => match call.push(&text, out) {
                    Progress::More => return,
                    Progress::Ended(rest) => {
                        self.content.call_ended();
                        (State::Between(String::new()), rest)
                    }
                    Progress::Malformed(rest) => {
                        self.content.give_back(before, out);
                        (State::Content, rest)
                    }
                },
            };
            self.state = state;
            text = rest;
        }
    }

    fn call(&self, before: String) -> State {
        State::Call(before, JsonCall::object_of(Arc::clone(&self.tools)))
    }

    pub(super) fn finish(&mut self, out: &mut Parts) {
        match &mut self.state {
            State::Call(before, call) => {
                if let Some(rest) = call.finish() {
                    self.content.give_back(before, out);
                    out.content(&rest);
                }
            }
            State::Start(held) => out.content(held),
            State::Content | State::Between(_) => {}
        }
        self.content.finish(out);
    }
}

/// The grammar of one call: these models were taught one at a time.
pub(super) fn calls(lark: &mut Lark<'_>, calls: &Calls<'_>) -> String {
    let objects = calls.any_tool(lark, |_, tool| json_call(tool, "parameters"));
    let call = lark.rule(&format!("{}? {objects}", lark.marker(TAG)));
    // Another answer does not look like a call.
    let text = r"/\s*([^\s{](.|\n)*)?/ & ~/(.|\n)*<\|python_tag\|>(.|\n)*/";
    let text = lark.terminal(text);
    calls.or_content(&call, &text)
}
