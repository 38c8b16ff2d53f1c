//! The log-probabilities of a prompt, as they come in, chunk by chunk.

use std::sync::Arc;

use super::TokenEntry;
use crate::engine::TokenLogprobs;
use crate::text::Decoder;

/// A prompt that is being scored.
pub(crate) struct PromptScores {
    tokens: Arc<[u32]>,
    /// Of the tokens from the second on.
    found: Vec<TokenLogprobs>,
    decoder: Decoder,
}

impl PromptScores {
    /// `decoder` has seen nothing yet.
    pub(crate) fn new(tokens: Arc<[u32]>, decoder: Decoder) -> Self {
        PromptScores { tokens, found: Vec::new(), decoder }
    }

    /// Takes in what is new; true once every token has its log-probabilities.
    pub(crate) fn add(&mut self, new: Vec<TokenLogprobs>) -> bool {
        self.found.extend(new);
        self.found.len() + 1 >= self.tokens.len()
    }

    /// An entry for each token of the prompt.
    pub(crate) fn entries(mut self) -> Vec<TokenEntry> {
        let unknown = (None, Vec::new());
        let known = self.found.into_iter().map(|found| (Some(found.logprob), found.top));
        let (mut text, mut text_offset) = (String::new(), 0);
        let entry = |(&token, (logprob, top))| {
            text.clear();
            self.decoder.push(token, &mut text);
            let entry = TokenEntry { token, logprob, top, text_offset, text_len: text.len() };
            text_offset += text.chars().count();
            entry
        };
        self.tokens.iter().zip(std::iter::once(unknown).chain(known)).map(entry).collect()
    }
}
