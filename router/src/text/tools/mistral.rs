//! Calls behind `[TOOL_CALLS]`: a list, `[{"name": .., "arguments": {..}}]`, or in the newer form
//! one call a marker, `[TOOL_CALLS]name[ARGS]{..}`.

use super::Parts;
use super::grammar::{Calls, arguments, json_call};
use super::json::{JsonCall, Progress};
use super::parts::Content;
use crate::text::lark::{Lark, quoted};

const OPEN: &str = "[TOOL_CALLS]";
const ARGS: &str = "[ARGS]";

/// The parser of one answer.
#[derive(Default)]
pub(in crate::text) struct Mistral {
    content: Content,
    state: State,
}

#[derive(Default)]
enum State {
    #[default]
    Content,
    /// Behind the marker: the text that tells the form, and a name.
    Form(String),
    /// A call of a list, and what opened it.
    Item(String, JsonCall),
    /// Behind a call of a list: white space.
    Between(String),
    Arguments(JsonCall),
}

/// What follows the marker.
enum Form {
    Unknown,
    /// A list; its text from its first item.
    List(String),
    /// A name, and the text from the arguments.
    Named(String, String),
    Neither,
}

impl Mistral {
    pub(super) fn push(&mut self, text: &str, out: &mut Parts) {
        let mut text = text.to_owned();
        loop {
            let (state, rest) = match &mut self.state {
                State::Content => match self.content.push(&text, &[OPEN], out) {
                    Some((_, rest)) => (State::Form(String::new()), rest),
                    None => return,
                },
                State::Form(held) => {
                    held.push_str(&text);
                    match form(held) {
                        Form::Unknown => return,
                        Form::List(rest) => {
                            let opened = format!("{OPEN}{}", &held[..held.len() - rest.len()]);
                            (State::Item(opened, JsonCall::object()), rest)
                        }
                        Form::Named(name, rest) => {
                            out.call(&name);
                            (State::Arguments(JsonCall::arguments()), rest)
                        }
                        Form::Neither => {
                            self.content.give_back(OPEN, out);
                            (State::Content, std::mem::take(held))
                        }
                    }
                }
                State::Item(opened, call) => match call.push(&text, out) {
                    Progress::More => return,
                    Progress::Ended(rest) => {
                        self.content.call_ended();
                        (State::Between(String::new()), rest)
                    }
                    Progress::Malformed(rest) => {
                        self.content.give_back(opened, out);
                        (State::Content, rest)
                    }
                },
                State::Between(held) => {
                    held.push_str(&text);
                    let seen = held.trim_start();
                    match seen.chars().next() {
                        None => return,
                        Some(',') => {
                            let item = State::Item(",".to_owned(), JsonCall::object());
                            (item, seen[1..].to_owned())
                        }
                        Some(']') => (State::Content, seen[1..].to_owned()),
                        Some(_) => (State::Content, std::mem::take(held)),
                    }
                }
                State::Arguments(call) => match call.push(&text, out) {
                    Progress::More => return,
                    Progress::Ended(rest) | Progress::Malformed(rest) => {
                        self.content.call_ended();
                        (State::Content, rest)
                    }
                },
            };
            self.state = state;
            text = rest;
        }
    }

    pub(super) fn finish(&mut self, out: &mut Parts) {
        let unsent = match &mut self.state {
            State::Form(held) => Some((OPEN.to_owned(), std::mem::take(held))),
            State::Item(opened, call) => call.finish().map(|rest| (std::mem::take(opened), rest)),
            State::Content | State::Between(_) | State::Arguments(_) => None,
        };
        if let Some((opened, rest)) = unsent {
            self.content.give_back(&opened, out);
            out.content(&rest);
        }
        self.content.finish(out);
    }
}

/// The form of what follows a marker. A name may be followed by `[CALL_ID]` and an id.
fn form(text: &str) -> Form {
    let seen = text.trim_start();
    if seen.is_empty() {
        return Form::Unknown;
    }
    if let Some(list) = seen.strip_prefix('[') {
        return Form::List(list.to_owned());
    }
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let name_end = seen.find(|c| !is_name(c)).unwrap_or(seen.len());
    let (name, rest) = seen.split_at(name_end);
    let rest = rest.trim_start();
    if name.is_empty() || !(rest.is_empty() || rest.starts_with(['[', '{'])) {
        return Form::Neither;
    }
    let Some(begin) = rest.find('{') else { return Form::Unknown };
    let between = rest[..begin].trim_end();
    if between.is_empty() || between.ends_with(ARGS) {
        Form::Named(name.to_owned(), rest[begin..].to_owned())
    } else {
        Form::Neither
    }
}

/// The grammar of calls, in the form that the vocabulary has markers for.
pub(super) fn calls(lark: &mut Lark<'_>, calls: &Calls<'_>) -> String {
    if lark.is_token(ARGS) {
        let args = lark.marker(ARGS);
        let body = calls
            .any_tool(lark, |_, tool| format!("{} {args} {}", quoted(&tool.name), arguments(tool)));
        return calls.marked(lark, OPEN, &body, "");
    }
    let object = calls.any_tool(lark, |_, tool| json_call(tool, "arguments"));
    let more = if calls.parallel() { format!("(/, ?/ {object})*") } else { String::new() };
    calls.marked_once(lark, OPEN, &format!("\" \"? \"[\" {object} {more} \"]\""))
}
