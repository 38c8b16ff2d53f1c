//! Ids to text, one at a time, never half a character.
//!
//! The invariant: all that [`Decoder::push`] and [`Decoder::finish`] wrote for a sequence is what
//! the tokenizers crate decodes from all its ids at once. (One exception, on purpose: where a
//! SentencePiece run of byte tokens is not UTF-8 as a whole, the crate gives up all of it; the
//! characters before the broken byte have been sent by then, and stay.)
//!
//! Spaces are never cleaned up: `clean_up_tokenization_spaces` of a tokenizer_config.json is not
//! read. It would take the space out of `a , b`, also where the model meant it, and Transformers
//! ignores it as well, but for vocabularies of whole words.
//!
//! A push costs a copy of the token's bytes. What is held back is less than one character.

use std::sync::Arc;

use super::tokenizer::{Detokenizer, Leading, Replacement, TextTokenizer, byte_token};

/// How many ids stand before the unsent ones in the window that the tokenizers crate decodes:
/// what a decoder may look back at (a space rule, a word's begin).
const CONTEXT_TOKENS: usize = 4;

/// How many ids of a prompt a decoder looks at: enough to know that a text has begun.
const PROMPT_TOKENS: usize = 2 * CONTEXT_TOKENS;

/// How many ids may stay without a whole character before they are sent as they are: four byte
/// tokens are one character at most.
const MAX_UNSENT_TOKENS: usize = 4;

/// The decoder of one sequence's output.
pub struct Decoder {
    tokenizer: Arc<TextTokenizer>,
    skip_special_tokens: bool,
    /// Special tokens that are not skipped.
    shown: Arc<[u32]>,
    /// Whether the beginning of the text is over, with its rules.
    begun: bool,
    characters: Characters,
    window: Window,
}

/// Bytes on their way to characters.
#[derive(Default)]
struct Characters {
    /// The beginning of a character: fewer than four bytes.
    pending: Vec<u8>,
    /// How many leading spaces may still be taken away.
    strip: usize,
}

/// What the tokenizers crate decodes again at each push; used for its decoders only.
#[derive(Default)]
struct Window {
    ids: Vec<u32>,
    /// `ids[..num_sent]` have been sent, and are here as context only.
    num_sent: usize,
}

impl Decoder {
    /// A decoder for the text that follows `prompt`. Its last tokens are enough.
    pub(super) fn new(
        tokenizer: Arc<TextTokenizer>,
        prompt: &[u32],
        skip_special_tokens: bool,
    ) -> Self {
        let mut decoder = Decoder {
            tokenizer,
            skip_special_tokens,
            shown: Arc::default(),
            begun: false,
            characters: Characters::default(),
            window: Window::default(),
        };
        if let Detokenizer::Table(table) = &decoder.tokenizer.detokenizer
            && let Leading::Strip(spaces) = table.leading
        {
            decoder.characters.strip = spaces;
        }
        let mut seen = String::new();
        for &token in &prompt[prompt.len().saturating_sub(PROMPT_TOKENS)..] {
            decoder.push(token, &mut seen);
        }
        decoder.finish(&mut seen);
        decoder
    }

    /// The same decoder, which skips none of these tokens.
    pub fn showing(mut self, tokens: Arc<[u32]>) -> Self {
        self.shown = tokens;
        self
    }

    /// Whether a special token is left out of the text.
    fn skips(&self, token: u32) -> bool {
        self.skip_special_tokens && !self.shown.contains(&token)
    }

    /// Appends to `out` what `token` completes: nothing while a character is not whole.
    pub fn push(&mut self, token: u32, out: &mut String) {
        match &self.tokenizer.detokenizer {
            Detokenizer::Table(table) => {
                let bytes = table.bytes(token);
                if bytes.is_empty() || (table.is_special(token) && self.skips(token)) {
                    return;
                }
                if !self.begun && table.leading == Leading::FirstToken {
                    self.begun = true;
                    out.push_str(&self.tokenizer.decode(&[token]));
                } else {
                    self.characters.push(bytes, table.replacement, out);
                }
            }
            Detokenizer::Bytes => {
                self.characters.push(&byte_token(token), Replacement::PerSequence, out);
            }
            Detokenizer::Crate => {
                if self.tokenizer.is_visible(token, self.skips(token)) {
                    self.window.push(token, &self.tokenizer, out);
                }
            }
        }
    }

    /// Appends what is held back: U+FFFD for a character that never became whole.
    pub fn finish(&mut self, out: &mut String) {
        match &self.tokenizer.detokenizer {
            Detokenizer::Table(table) => self.characters.finish(table.replacement, out),
            Detokenizer::Bytes => self.characters.finish(Replacement::PerSequence, out),
            Detokenizer::Crate => self.window.send(&self.tokenizer, out),
        }
    }
}

impl Characters {
    fn push(&mut self, mut bytes: &[u8], replacement: Replacement, out: &mut String) {
        while self.strip > 0 {
            match bytes {
                [] => return,
                [b' ', rest @ ..] => {
                    bytes = rest;
                    self.strip -= 1;
                }
                _ => self.strip = 0,
            }
        }
        if self.pending.is_empty() {
            self.pending.extend_from_slice(push_utf8(bytes, replacement, out));
        } else {
            self.pending.extend_from_slice(bytes);
            let taken = self.pending.len() - push_utf8(&self.pending, replacement, out).len();
            self.pending.drain(..taken);
        }
    }

    fn finish(&mut self, replacement: Replacement, out: &mut String) {
        if !self.pending.is_empty() {
            replace(self.pending.len(), replacement, out);
            self.pending.clear();
        }
    }
}

impl Window {
    fn push(&mut self, token: u32, tokenizer: &TextTokenizer, out: &mut String) {
        self.ids.push(token);
        // A U+FFFD at the end may be the beginning of a character.
        let may_grow = self.ids.len() - self.num_sent < MAX_UNSENT_TOKENS;
        if may_grow && tokenizer.decode(&self.ids).ends_with('\u{fffd}') {
            return;
        }
        self.send(tokenizer, out);
        if self.num_sent > 2 * CONTEXT_TOKENS {
            self.ids.drain(..self.num_sent - CONTEXT_TOKENS);
            self.num_sent = CONTEXT_TOKENS;
        }
    }

    /// Appends the text behind what has been sent.
    fn send(&mut self, tokenizer: &TextTokenizer, out: &mut String) {
        let text = tokenizer.decode(&self.ids);
        let sent = tokenizer.decode(&self.ids[..self.num_sent]);
        let common: usize = text
            .chars()
            .zip(sent.chars())
            .take_while(|(new, old)| new == old)
            .map(|(new, _)| new.len_utf8())
            .sum();
        out.push_str(&text[common..]);
        self.num_sent = self.ids.len();
    }
}

/// Appends the characters of `bytes`, with U+FFFD for what can be none; returns the tail that
/// may become one.
fn push_utf8<'a>(mut bytes: &'a [u8], replacement: Replacement, out: &mut String) -> &'a [u8] {
    loop {
        let error = match std::str::from_utf8(bytes) {
            Ok(text) => {
                out.push_str(text);
                return &[];
            }
            Err(error) => error,
        };
        let (valid, rest) = bytes.split_at(error.valid_up_to());
        out.push_str(&String::from_utf8_lossy(valid));
        let Some(num_broken) = error.error_len() else { return rest };
        replace(num_broken, replacement, out);
        bytes = &rest[num_broken..];
    }
}

fn replace(num_bytes: usize, replacement: Replacement, out: &mut String) {
    let count = match replacement {
        Replacement::PerSequence => 1,
        Replacement::PerByte => num_bytes,
    };
    out.extend(std::iter::repeat_n('\u{fffd}', count));
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;
    use crate::text::testing;

    /// Characters of one to four bytes, marks that combine, and joiners.
    const ALPHABET: [&str; 16] = [
        "a",
        "the ",
        " ",
        "\n",
        "é",
        "e\u{301}",
        "你",
        "好",
        "ß",
        "👩\u{200d}🚀",
        "🇫🇷",
        "👍🏽",
        "<0x41>",
        "\u{fffd}",
        "▁",
        "Ġ",
    ];

    fn random_text(random: &mut StdRng) -> String {
        let length = random.random_range(0..24);
        (0..length).map(|_| ALPHABET[random.random_range(0..ALPHABET.len())]).collect()
    }

    fn decode(tokenizer: &Arc<TextTokenizer>, ids: &[u32], skip: bool) -> String {
        let mut decoder = Decoder::new(Arc::clone(tokenizer), &[], skip);
        let mut out = String::new();
        for &id in ids {
            decoder.push(id, &mut out);
        }
        decoder.finish(&mut out);
        out
    }

    fn check(name: &str, tokenizer: &Arc<TextTokenizer>, ids: &[u32]) {
        let reference = tokenizer.tokenizer.as_ref().unwrap();
        for skip in [false, true] {
            let expected = reference.decode(ids, skip).unwrap();
            assert_eq!(decode(tokenizer, ids, skip), expected, "{name} {ids:?} {skip}");
        }
    }

    #[test]
    fn a_text_decodes_piece_by_piece_as_at_once() {
        for (name, json) in testing::ALL {
            let tokenizer = Arc::new(TextTokenizer::from_json(json().as_bytes()).unwrap());
            let mut random = StdRng::seed_from_u64(1);
            for _ in 0..300 {
                let text = random_text(&mut random);
                for special in [false, true] {
                    check(name, &tokenizer, &tokenizer.encode(&text, special).unwrap());
                }
            }
        }
    }

    #[test]
    fn random_ids_decode_piece_by_piece_as_at_once() {
        for (name, json) in testing::ALL {
            // What byte fallback makes of broken bytes is another test.
            if name == "sentencepiece" || name == "gemma" {
                continue;
            }
            let tokenizer = Arc::new(TextTokenizer::from_json(json().as_bytes()).unwrap());
            let mut random = StdRng::seed_from_u64(2);
            for _ in 0..500 {
                let length = random.random_range(0..40);
                // Some ids are outside the vocabulary.
                let ids: Vec<u32> = (0..length).map(|_| random.random_range(0..310)).collect();
                check(name, &tokenizer, &ids);
            }
        }
    }

    #[test]
    fn byte_tokens_become_characters_or_one_replacement_each() {
        let json = testing::sentencepiece();
        let tokenizer = Arc::new(TextTokenizer::from_json(json.as_bytes()).unwrap());
        let id = |token: &str| tokenizer.token_id(token).unwrap();
        let byte = |byte: u8| id(&format!("<0x{byte:02X}>"));
        let mut random = StdRng::seed_from_u64(3);
        for _ in 0..500 {
            let mut ids = Vec::new();
            for _ in 0..random.random_range(0..12) {
                match random.random_range(0..4) {
                    0 => ids.push(id("a")),
                    1 => ids.push(id("▁the")),
                    2 => ids.extend("é你🚀".bytes().map(byte)),
                    // A run that is broken as a whole: the crate gives up each of its bytes.
                    _ => {
                        ids.push(id("a"));
                        let broken: &[u8] =
                            [&b"\xe4"[..], b"\xf0\x9f", b"\xff\xc0"][random.random_range(0..3)];
                        ids.extend(broken.iter().map(|&value| byte(value)));
                        ids.push(id("a"));
                    }
                }
            }
            check("sentencepiece", &tokenizer, &ids);
        }
        // Whole characters of a broken run have been sent, and stay.
        let ids: Vec<u32> = b"\xc3\xa9\xff\xc3".iter().map(|&value| byte(value)).collect();
        assert_eq!(decode(&tokenizer, &ids, true), "é\u{fffd}\u{fffd}");
    }

    #[test]
    fn a_character_appears_with_its_last_byte() {
        let json = testing::byte_level();
        let tokenizer = Arc::new(TextTokenizer::from_json(json.as_bytes()).unwrap());
        let ids = tokenizer.encode("é🚀x", false).unwrap();
        let mut decoder = Decoder::new(Arc::clone(&tokenizer), &[], true);
        let mut pieces = Vec::new();
        for id in ids {
            let mut piece = String::new();
            decoder.push(id, &mut piece);
            pieces.push(piece);
        }
        // The vocabulary has a token for `é`, and one for the first half of an emoji.
        assert_eq!(pieces, ["é", "", "", "🚀", "x"]);
    }

    #[test]
    fn a_broken_character_is_replaced_when_the_text_goes_on_or_ends() {
        let tokenizer = Arc::new(TextTokenizer::bytes());
        let mut decoder = Decoder::new(tokenizer, &[], true);
        let mut out = String::new();
        decoder.push(0xf0, &mut out);
        decoder.push(0x9f, &mut out);
        assert_eq!(out, "");
        decoder.push(u32::from(b'a'), &mut out);
        assert_eq!(out, "\u{fffd}a");
        decoder.push(0xe4, &mut out);
        decoder.finish(&mut out);
        decoder.finish(&mut out);
        assert_eq!(out, "\u{fffd}a\u{fffd}");
        decoder.push(300, &mut out);
        assert_eq!(out, "\u{fffd}a\u{fffd} t300");
    }

    #[test]
    fn a_continued_text_keeps_the_space_that_a_new_one_loses() {
        for json in [testing::sentencepiece(), testing::metaspace(), testing::word_piece()] {
            let tokenizer = Arc::new(TextTokenizer::from_json(json.as_bytes()).unwrap());
            let ids = tokenizer.encode("the the", false).unwrap();
            let (prompt, rest) = ids.split_at(ids.len() / 2);
            let mut out = String::new();
            let mut decoder = Decoder::new(Arc::clone(&tokenizer), prompt, true);
            rest.iter().for_each(|&id| decoder.push(id, &mut out));
            assert_eq!(out, " the");
            assert_eq!(decode(&tokenizer, rest, true), "the");
        }
    }
}
