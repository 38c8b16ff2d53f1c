//! What an answer consists of, and the search for markers in a text that comes in pieces.

/// A part of an answer, or the continuation of the part before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Text for the reader.
    Content(String),
    /// What the model thought before it answered.
    Reasoning(String),
    /// A call of this function begins.
    Call(String),
    /// More of the arguments of the last call.
    Arguments(String),
}

/// Parts in order; neighbours of a kind are one.
#[derive(Debug, Default)]
pub struct Parts(Vec<Part>);

impl Parts {
    /// Takes the parts out, and leaves none.
    pub fn drain(&mut self) -> std::vec::Drain<'_, Part> {
        self.0.drain(..)
    }

    pub(in crate::text) fn content(&mut self, text: &str) {
        match self.0.last_mut() {
            _ if text.is_empty() => {}
            Some(Part::Content(last)) => last.push_str(text),
            _ => self.0.push(Part::Content(text.to_owned())),
        }
    }

    pub(in crate::text) fn reasoning(&mut self, text: &str) {
        match self.0.last_mut() {
            _ if text.is_empty() => {}
            Some(Part::Reasoning(last)) => last.push_str(text),
            _ => self.0.push(Part::Reasoning(text.to_owned())),
        }
    }

    pub(super) fn call(&mut self, name: &str) {
        self.0.push(Part::Call(name.to_owned()));
    }

    pub(super) fn arguments(&mut self, text: &str) {
        match self.0.last_mut() {
            _ if text.is_empty() => {}
            Some(Part::Arguments(last)) => last.push_str(text),
            _ => self.0.push(Part::Arguments(text.to_owned())),
        }
    }
}

/// Bytes at the end of `text` that may be the beginning of a marker.
fn num_held(text: &str, markers: &[&str]) -> usize {
    let begins = |marker: &&str| {
        let longest = (marker.len() - 1).min(text.len());
        (1..=longest).rev().find(|&length| text.as_bytes().ends_with(&marker.as_bytes()[..length]))
    };
    markers.iter().filter_map(begins).max().unwrap_or(0)
}

/// Appends `text` to `held` and looks for the first of `markers`. Found: the text before it, the
/// marker and the text behind it. Else what cannot belong to a marker, the rest stays in `held`.
pub(in crate::text) fn push_until<'m>(
    held: &mut String,
    text: &str,
    markers: &[&'m str],
) -> (String, Option<(&'m str, String)>) {
    held.push_str(text);
    let found = markers.iter().filter_map(|marker| Some((held.find(marker)?, *marker))).min();
    match found {
        Some((at, marker)) => {
            let rest = held.split_off(at + marker.len());
            held.truncate(at);
            (std::mem::take(held), Some((marker, rest)))
        }
        None => {
            let kept = held.split_off(held.len() - num_held(held, markers));
            (std::mem::replace(held, kept), None)
        }
    }
}

/// The content of an answer that may hold calls.
///
/// White space is held back until it is known not to stand beside a call.
#[derive(Default)]
pub(super) struct Content {
    held: String,
    /// The white space before the last marker.
    space: String,
    /// Whether the last thing that was read is a call.
    follows_call: bool,
}

impl Content {
    /// Sends what is content. At the first of `markers` it stops: the marker and what follows it.
    pub(super) fn push<'m>(
        &mut self,
        text: &str,
        markers: &[&'m str],
        out: &mut Parts,
    ) -> Option<(&'m str, String)> {
        let mut held = std::mem::take(&mut self.held);
        let (before, found) = push_until(&mut held, text, markers);
        let sure = before.trim_end().len();
        let (before, space) = before.split_at(sure);
        out.content(before);
        self.follows_call &= before.is_empty();
        if found.is_some() {
            space.clone_into(&mut self.space);
        } else {
            self.held = format!("{space}{held}");
        }
        found
    }

    /// What was read since a marker is no call: the marker is content.
    pub(super) fn give_back(&mut self, marker: &str, out: &mut Parts) {
        out.content(&std::mem::take(&mut self.space));
        out.content(marker);
        self.follows_call = false;
    }

    /// A call has been read.
    pub(super) fn call_ended(&mut self) {
        self.space.clear();
        self.follows_call = true;
    }

    /// The text is over.
    pub(super) fn finish(&mut self, out: &mut Parts) {
        let held = std::mem::take(&mut self.held);
        if !self.follows_call || !held.trim().is_empty() {
            out.content(&held);
        }
    }
}
