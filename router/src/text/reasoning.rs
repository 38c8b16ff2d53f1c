//! What a model thinks before it answers: how it is marked, read, and left out of a constraint.

use super::Constraint;
use super::lark::{Lark, TokenId, nested};
use super::tools::{Parts, ToolFormat, harmony, push_until};

/// How a model marks its reasoning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReasoningFormat {
    /// `<think>..</think>` before the answer: Qwen3, DeepSeek R1.
    Think,
    /// The channel `analysis`: gpt-oss.
    Harmony,
}

/// Where a prompt leaves the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// Inside its reasoning.
    Inside,
    /// Where it may begin to reason.
    Before,
    /// Behind its reasoning, or where it has none.
    Closed,
}

const OPEN: &str = "<think>";
const CLOSE: &str = "</think>";

impl ReasoningFormat {
    /// The format of a model with this chat template.
    pub(super) fn of_template(source: &str) -> Option<ReasoningFormat> {
        if ToolFormat::of_template(source) == Some(ToolFormat::Harmony) {
            Some(ReasoningFormat::Harmony)
        } else if source.contains(OPEN) || source.contains(CLOSE) {
            Some(ReasoningFormat::Think)
        } else {
            None
        }
    }

    /// The markers that may be single tokens.
    pub(super) fn markers(self) -> &'static [&'static str] {
        match self {
            ReasoningFormat::Think => &[OPEN, CLOSE],
            ReasoningFormat::Harmony => harmony::MARKERS,
        }
    }
}

impl Opening {
    /// Read off the end of a rendered prompt, in a format with tags.
    pub(super) fn of_tagged(prompt: &str) -> Opening {
        let end = prompt.trim_end();
        if end.ends_with(OPEN) {
            Opening::Inside
        } else if end.ends_with(CLOSE) {
            Opening::Closed
        } else {
            Opening::Before
        }
    }
}

/// Splits an answer at its tags. Line ends beside them belong to neither part.
pub(super) struct Think {
    state: State,
    held: String,
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    /// Nothing was read but white space, or the beginning of a tag.
    Start,
    /// Inside; whether something was thought yet.
    Inside(bool),
    /// Behind the closing tag, and nothing was said yet.
    Behind,
    Content,
}

impl Think {
    pub(super) fn new(opening: Opening) -> Think {
        let state = match opening {
            Opening::Inside => State::Inside(false),
            // A model that was told not to reason may do so all the same.
            Opening::Before | Opening::Closed => State::Start,
        };
        Think { state, held: String::new() }
    }

    /// Sends the reasoning and returns what is not.
    pub(super) fn push(&mut self, text: &str, out: &mut Parts) -> String {
        let mut text = text.to_owned();
        if self.state == State::Start {
            self.held.push_str(&text);
            let seen = self.held.trim_start();
            if let Some(rest) = seen.strip_prefix(OPEN) {
                text = rest.to_owned();
                self.held.clear();
                self.state = State::Inside(false);
            } else if OPEN.starts_with(seen) {
                return String::new();
            } else {
                self.state = State::Content;
                return std::mem::take(&mut self.held);
            }
        }
        if let State::Inside(has_begun) = self.state {
            let (thought, found) = push_until(&mut self.held, &text, &[CLOSE]);
            let thought = if has_begun { &thought } else { thought.trim_start_matches('\n') };
            let sure = thought.trim_end_matches('\n').len();
            out.reasoning(&thought[..sure]);
            match found {
                Some((_, rest)) => {
                    text = rest;
                    self.state = State::Behind;
                }
                None => {
                    // Line ends are sent before what follows them.
                    self.held.insert_str(0, &thought[sure..]);
                    self.state = State::Inside(has_begun || sure > 0);
                    return String::new();
                }
            }
        }
        if self.state == State::Behind {
            let said = text.trim_start_matches('\n');
            if !said.is_empty() {
                self.state = State::Content;
            }
            return said.to_owned();
        }
        text
    }

    /// The text is over. Returns what is held back and no reasoning.
    pub(super) fn finish(&mut self, out: &mut Parts) -> String {
        let held = std::mem::take(&mut self.held);
        match self.state {
            State::Start => return held,
            State::Inside(_) => out.reasoning(held.trim_end_matches('\n')),
            State::Behind | State::Content => {}
        }
        String::new()
    }
}

/// The reasoning that may come before an answer, as an expression; with the line ends behind it.
pub(super) fn thought(lark: &mut Lark<'_>, opening: Opening) -> String {
    if opening == Opening::Closed {
        return String::new();
    }
    let text = lark.until(CLOSE);
    match opening {
        Opening::Inside => format!(r"{text} /\n{{0,2}}/"),
        _ => format!(r"({} {text} /\n{{0,2}}/)?", lark.marker(OPEN)),
    }
}

/// The same constraint on what follows the reasoning: one grammar from the first token.
pub(super) fn after_reasoning(
    constraint: &Constraint,
    format: ReasoningFormat,
    opening: Opening,
    token_id: &TokenId<'_>,
) -> Constraint {
    if opening == Opening::Closed {
        return constraint.clone();
    }
    let mut lark = Lark::new(token_id);
    let start = match format {
        ReasoningFormat::Think => {
            format!("{} {}", thought(&mut lark, opening), nested(constraint))
        }
        ReasoningFormat::Harmony => harmony::final_content(&mut lark, constraint),
    };
    lark.into_constraint(&start)
}
