//! One choice on its way from tokens to visible text: decoding, stop strings, and the
//! log-probabilities that must appear together with the text they belong to.
//!
//! Three things hold text back: half a character, the beginning of what may become a stop string,
//! and nothing else. A token's entry leaves with the first piece of text that completes it, so a
//! client that joins the entries reads the text it was sent. Offsets count from the start of the
//! decoded text, in bytes inside and in characters for the client.

use std::collections::VecDeque;

use super::TokenEntry;
use crate::engine::TokenLogprobs;
use crate::text::{Decoder, StopMatcher};

/// A token whose text is not visible yet.
struct Held {
    entry: TokenEntry,
    /// Where its text begins.
    start: usize,
    /// Visible bytes at which it leaves.
    leaves_at: usize,
}

/// What a push made visible; reused, so that a token allocates nothing.
#[derive(Default)]
pub(crate) struct Visible {
    pub(crate) text: String,
    pub(crate) tokens: Vec<TokenEntry>,
    decoded: String,
}

impl Visible {
    pub(crate) fn clear(&mut self) {
        self.text.clear();
        self.tokens.clear();
    }
}

/// The text of one choice so far.
pub(crate) struct ChoiceText {
    decoder: Decoder,
    stop: Option<StopMatcher>,
    /// Stop strings are looked for in the text after this many tokens.
    min_tokens: u32,
    num_tokens: u32,
    num_decoded: usize,
    num_decoded_chars: usize,
    num_visible: usize,
    held: VecDeque<Held>,
}

impl ChoiceText {
    pub(crate) fn new(decoder: Decoder, stop: Option<StopMatcher>, min_tokens: u32) -> ChoiceText {
        ChoiceText {
            decoder,
            stop,
            min_tokens,
            num_tokens: 0,
            num_decoded: 0,
            num_decoded_chars: 0,
            num_visible: 0,
            held: VecDeque::new(),
        }
    }

    /// The same text with so many characters before it.
    pub(crate) fn after(self, num_chars: usize) -> ChoiceText {
        ChoiceText { num_decoded_chars: num_chars, ..self }
    }

    /// Takes one token in and appends to `visible` what it makes visible. The stop string that it
    /// completed is returned, and the text ends here.
    pub(crate) fn push(
        &mut self,
        token: u32,
        logprobs: Option<TokenLogprobs>,
        visible: &mut Visible,
    ) -> Option<String> {
        self.num_tokens += 1;
        visible.decoded.clear();
        self.decoder.push(token, &mut visible.decoded);
        if let Some(TokenLogprobs { logprob, top }) = logprobs {
            let start = self.num_decoded;
            let text_offset = self.num_decoded_chars;
            let text_len = visible.decoded.len();
            self.held.push_back(Held {
                entry: TokenEntry { token, logprob: Some(logprob), top, text_offset, text_len },
                start,
                // A token that decoded to nothing yet waits for at least the byte that follows.
                leaves_at: (start + text_len).max(start + 1),
            });
            self.num_decoded_chars += visible.decoded.chars().count();
        }
        self.show(visible)
    }

    /// The sequence has ended by itself: shows what was held back, as far as no stop string is
    /// complete in it.
    pub(crate) fn finish(&mut self, visible: &mut Visible) -> Option<String> {
        visible.decoded.clear();
        self.decoder.finish(&mut visible.decoded);
        let stopped = self.show(visible);
        if stopped.is_some() {
            return stopped;
        }
        if let Some(stop) = &mut self.stop {
            stop.finish(&mut visible.text);
        }
        visible.tokens.extend(self.held.drain(..).map(|held| held.entry));
        None
    }

    /// Lets `visible.decoded` through as far as the stop strings allow; returns one that is
    /// complete.
    fn show(&mut self, visible: &mut Visible) -> Option<String> {
        self.num_decoded += visible.decoded.len();
        let before = visible.text.len();
        let stopped = match &mut self.stop {
            Some(stop) if self.num_tokens > self.min_tokens => {
                stop.push(&visible.decoded, &mut visible.text)
            }
            _ => {
                visible.text.push_str(&visible.decoded);
                None
            }
        };
        self.num_visible += visible.text.len() - before;
        if stopped.is_some() {
            // What begins after the cut was never said.
            self.held.retain(|held| held.start < self.num_visible);
            visible.tokens.extend(self.held.drain(..).map(|held| held.entry));
            return stopped;
        }
        let leaving =
            self.held.iter().take_while(|held| held.leaves_at <= self.num_visible).count();
        visible.tokens.extend(self.held.drain(..leaving).map(|held| held.entry));
        None
    }
}
