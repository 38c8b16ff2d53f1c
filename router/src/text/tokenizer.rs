//! The tokenizer of a checkpoint: text to ids, and the bytes behind each id.
//!
//! Most tokenizers of language models decode in one of a few ways, each of which maps an id to
//! bytes without looking at its neighbours. For those the bytes of the whole vocabulary are laid
//! out once ([`Detokenizer::Table`]), and decoding is a copy. Any other decoder is left to the
//! tokenizers crate ([`Detokenizer::Crate`]).
//!
//! This file knows ids, strings and bytes. It does not know streams: that is `decode.rs`.

use std::borrow::Cow;
use std::panic::catch_unwind;

use serde::de::IgnoredAny;
use serde_json::Value;
use tokenizers::Tokenizer;

use super::TextError;
use super::pool::panic_text;

/// A vocabulary whose largest id is beyond this is a broken file, not a table to allocate.
const MAX_TOKEN_ID: u32 = 1 << 22;

/// A token and the characters of the text that it stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenSpan {
    /// The token.
    pub id: u32,
    /// Its first character; 0, as `stop`, for a token that the tokenizer added.
    pub start: usize,
    /// The character after its last.
    pub stop: usize,
}

/// Text to ids and ids to bytes.
pub(super) struct TextTokenizer {
    /// `None`: ids below 256 are bytes ([`TextTokenizer::bytes`]).
    pub(super) tokenizer: Option<Tokenizer>,
    pub(super) detokenizer: Detokenizer,
}

/// How ids become text.
pub(super) enum Detokenizer {
    /// Every id has its bytes; a text is their concatenation.
    Table(TokenTable),
    /// Ids below 256 are bytes, others read ` t<id>`.
    Bytes,
    /// Whatever the tokenizers crate says, over a window of ids.
    Crate,
}

/// The bytes of every id, back to back.
pub(super) struct TokenTable {
    bytes: Vec<u8>,
    /// `bytes[offsets[id]..offsets[id + 1]]` are the bytes of `id`.
    offsets: Vec<u32>,
    special: Vec<bool>,
    /// What becomes of bytes that are not UTF-8.
    pub(super) replacement: Replacement,
    /// What the beginning of a text loses.
    pub(super) leading: Leading,
}

/// How many U+FFFD stand for bytes that are not UTF-8.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Replacement {
    /// One per broken sequence, as `String::from_utf8_lossy` does: byte-level BPE.
    PerSequence,
    /// One per byte: SentencePiece with byte fallback.
    PerByte,
}

/// What a text loses at its beginning: the space that SentencePiece puts before the first word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Leading {
    /// Nothing.
    Keep,
    /// Up to so many spaces.
    Strip(usize),
    /// All word marks of the first token; the table cannot tell them from spaces, the
    /// tokenizers crate can.
    FirstToken,
}

impl TextTokenizer {
    /// Reads `tokenizer.json`.
    pub(super) fn from_json(json: &[u8]) -> Result<Self, TextError> {
        let invalid =
            |reason: String| TextError::Invalid { file: "tokenizer.json".to_owned(), reason };
        // The crate panics over some broken files, above all over what is no JSON.
        serde_json::from_slice::<IgnoredAny>(json).map_err(|error| invalid(error.to_string()))?;
        let read = catch_unwind(|| Tokenizer::from_bytes(json));
        let read = read.unwrap_or_else(|panic| Err(panic_text(&*panic).into()));
        let mut tokenizer = read.map_err(|error| invalid(error.to_string()))?;
        // Both may be left over from training. A prompt is never cut or filled behind its back.
        tokenizer.with_truncation(None).map_err(|error| invalid(error.to_string()))?;
        tokenizer.with_padding(None);
        let detokenizer = Detokenizer::new(&tokenizer).map_err(invalid)?;
        Ok(TextTokenizer { tokenizer: Some(tokenizer), detokenizer })
    }

    /// A tokenizer whose ids are bytes.
    pub(super) fn bytes() -> Self {
        TextTokenizer { tokenizer: None, detokenizer: Detokenizer::Bytes }
    }

    pub(super) fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>, TextError> {
        let Some(tokenizer) = &self.tokenizer else {
            return Ok(text.bytes().map(u32::from).collect());
        };
        let encoding = tokenizer
            .encode_fast(text, special)
            .map_err(|error| TextError::Encode(error.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    pub(super) fn encode_spans(
        &self,
        text: &str,
        special: bool,
    ) -> Result<Vec<TokenSpan>, TextError> {
        let Some(tokenizer) = &self.tokenizer else {
            let bytes = |(start, c): (usize, char)| {
                let id = move |byte: &u8| TokenSpan { id: (*byte).into(), start, stop: start + 1 };
                c.encode_utf8(&mut [0; 4]).as_bytes().iter().map(id).collect::<Vec<_>>()
            };
            return Ok(text.chars().enumerate().flat_map(bytes).collect());
        };
        let encoding = tokenizer
            .encode_char_offsets(text, special)
            .map_err(|error| TextError::Encode(error.to_string()))?;
        let tokens = encoding.get_ids().iter().zip(encoding.get_offsets());
        Ok(tokens.map(|(&id, &(start, stop))| TokenSpan { id, start, stop }).collect())
    }

    /// How the vocabulary spells a token.
    pub(super) fn token_name(&self, id: u32) -> Option<String> {
        self.tokenizer.as_ref()?.id_to_token(id)
    }

    /// The id of a token by its exact content.
    pub(super) fn token_id(&self, token: &str) -> Option<u32> {
        self.tokenizer.as_ref()?.token_to_id(token)
    }

    /// One more than the largest id.
    pub(super) fn num_ids(&self) -> usize {
        let Some(tokenizer) = &self.tokenizer else { return 0 };
        let added = tokenizer.get_added_tokens_decoder();
        let num_added = added.keys().max().map_or(0, |id| *id as usize + 1);
        tokenizer.get_vocab_size(false).max(num_added)
    }

    /// The contents of the tokens that stand for no text.
    pub(super) fn special_tokens(&self) -> Vec<String> {
        let added =
            self.tokenizer.iter().flat_map(|tokenizer| tokenizer.get_added_tokens_decoder());
        let special = added.filter(|(_, token)| token.special);
        special.map(|(_, token)| token.content).collect()
    }

    /// What the tokenizers crate makes of `ids`; empty where it fails, which it does for no
    /// decoder that we know.
    pub(super) fn decode(&self, ids: &[u32]) -> String {
        let decode = |tokenizer: &Tokenizer| tokenizer.decode(ids, false).ok();
        self.tokenizer.as_ref().and_then(decode).unwrap_or_default()
    }

    /// Whether a token leaves anything in a text.
    pub(super) fn is_visible(&self, id: u32, skip_special_tokens: bool) -> bool {
        let Some(tokenizer) = &self.tokenizer else { return true };
        let added = tokenizer.get_added_vocabulary();
        let token = added.simple_id_to_token(id).or_else(|| tokenizer.id_to_token(id));
        token.is_some_and(|token| !skip_special_tokens || !added.is_special_token(&token))
    }

    /// Whether a token leaves something in a text only where special tokens are asked for.
    pub(super) fn is_special(&self, id: u32) -> bool {
        match &self.detokenizer {
            Detokenizer::Table(table) => table.is_special(id),
            Detokenizer::Bytes => false,
            Detokenizer::Crate => self.is_visible(id, false) && !self.is_visible(id, true),
        }
    }

    /// The bytes of one id, wherever in a text it may stand.
    pub(super) fn token_bytes(&self, id: u32) -> Vec<u8> {
        match &self.detokenizer {
            Detokenizer::Table(table) => table.bytes(id).to_vec(),
            Detokenizer::Bytes => byte_token(id).into_owned(),
            Detokenizer::Crate => self.decode(&[id]).into_bytes(),
        }
    }
}

/// The bytes of an id of [`TextTokenizer::bytes`].
pub(super) fn byte_token(id: u32) -> Cow<'static, [u8]> {
    match u8::try_from(id) {
        Ok(byte) => Cow::Owned(vec![byte]),
        Err(_) => Cow::Owned(format!(" t{id}").into_bytes()),
    }
}

impl Detokenizer {
    fn new(tokenizer: &Tokenizer) -> Result<Self, String> {
        let decoder =
            serde_json::to_value(tokenizer.get_decoder()).map_err(|error| error.to_string())?;
        match Scheme::of(&decoder) {
            Some(scheme) => Ok(Detokenizer::Table(TokenTable::new(tokenizer, &scheme)?)),
            None => Ok(Detokenizer::Crate),
        }
    }
}

/// How a token's content becomes its bytes.
struct Scheme {
    /// Characters stand for bytes (byte-level BPE).
    byte_level: bool,
    /// Parts of the content that stand for others, in order.
    replace: Vec<(String, String)>,
    /// `<0x0A>` stands for that byte.
    byte_fallback: bool,
    leading: Leading,
}

impl Scheme {
    /// Reads the `decoder` of a tokenizer.json; `None` for one that looks at more than one
    /// token, or that we do not know.
    fn of(decoder: &Value) -> Option<Scheme> {
        let steps = match decoder["type"].as_str()? {
            "Sequence" => decoder["decoders"].as_array()?.as_slice(),
            _ => std::slice::from_ref(decoder),
        };
        let mut scheme = Scheme {
            byte_level: false,
            replace: Vec::new(),
            byte_fallback: false,
            leading: Leading::Keep,
        };
        let mut fused = false;
        for (index, step) in steps.iter().enumerate() {
            match step["type"].as_str()? {
                // Byte-level decoding joins everything, so nothing may stand before it.
                "ByteLevel" if index == 0 => {
                    scheme.byte_level = true;
                    fused = true;
                }
                "Replace" if !fused && !scheme.byte_fallback => {
                    let pattern = step["pattern"]["String"].as_str()?;
                    let content = step["content"].as_str()?;
                    scheme.replace.push((pattern.to_owned(), content.to_owned()));
                }
                "ByteFallback" if !fused => scheme.byte_fallback = true,
                "Fuse" => fused = true,
                "Strip" if fused && scheme.leading == Leading::Keep => {
                    let (start, stop) = (step["start"].as_u64()?, step["stop"].as_u64()?);
                    if step["content"].as_str()? != " " || stop != 0 {
                        return None;
                    }
                    scheme.leading = Leading::Strip(usize::try_from(start).ok()?);
                }
                "Metaspace" if steps.len() == 1 => {
                    let mark = step["replacement"].as_str()?;
                    scheme.replace.push((mark.to_owned(), " ".to_owned()));
                    if step["prepend_scheme"].as_str()? != "never" {
                        scheme.leading = Leading::FirstToken;
                    }
                }
                _ => return None,
            }
        }
        Some(scheme)
    }

    fn bytes(&self, content: &str) -> Vec<u8> {
        if self.byte_level {
            // A token that is not spelled in the byte alphabet (an added one) is itself.
            return content
                .chars()
                .map(byte_of_char)
                .collect::<Option<Vec<u8>>>()
                .unwrap_or_else(|| content.as_bytes().to_vec());
        }
        let mut text = content.to_owned();
        for (from, to) in &self.replace {
            text = text.replace(from, to);
        }
        match fallback_byte(&text) {
            Some(byte) if self.byte_fallback => vec![byte],
            _ => text.into_bytes(),
        }
    }
}

/// The byte that a token like `<0x0A>` stands for.
fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// The byte behind a character of the byte-level alphabet: printable Latin-1 characters stand
/// for themselves, the other 68 bytes for U+0100 and on, in order (GPT-2's `bytes_to_unicode`).
fn byte_of_char(c: char) -> Option<u8> {
    let code = u32::from(c);
    match code {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => u8::try_from(code).ok(),
        0x100..=0x120 => u8::try_from(code - 0x100).ok(),
        0x121..=0x142 => u8::try_from(code - 0x121 + 0x7f).ok(),
        0x143 => Some(0xad),
        _ => None,
    }
}

impl TokenTable {
    fn new(tokenizer: &Tokenizer, scheme: &Scheme) -> Result<Self, String> {
        let vocab = tokenizer.get_vocab(true);
        let added = tokenizer.get_added_vocabulary();
        let largest = vocab.values().copied().max().unwrap_or(0);
        if largest > MAX_TOKEN_ID {
            return Err(format!("token id {largest} exceeds the limit of {MAX_TOKEN_ID}"));
        }

        let mut contents: Vec<Option<Vec<u8>>> = vec![None; largest as usize + 1];
        let mut special = vec![false; contents.len()];
        for (token, id) in vocab {
            // An added token may be spelled differently when decoded, and wins over the model's
            // own spelling of the same id.
            let token = added.simple_id_to_token(id).unwrap_or(token);
            special[id as usize] = added.is_special_token(&token);
            contents[id as usize] = Some(scheme.bytes(&token));
        }

        let mut bytes = Vec::new();
        let mut offsets = vec![0];
        for content in contents {
            bytes.extend_from_slice(content.as_deref().unwrap_or_default());
            offsets.push(u32::try_from(bytes.len()).map_err(|error| error.to_string())?);
        }
        let replacement =
            if scheme.byte_level { Replacement::PerSequence } else { Replacement::PerByte };
        Ok(TokenTable { bytes, offsets, special, replacement, leading: scheme.leading })
    }

    /// The bytes of `id`; empty for an id outside the vocabulary.
    pub(super) fn bytes(&self, id: u32) -> &[u8] {
        let id = id as usize;
        match self.offsets.get(id + 1) {
            Some(&end) => &self.bytes[self.offsets[id] as usize..end as usize],
            None => &[],
        }
    }

    pub(super) fn is_special(&self, id: u32) -> bool {
        self.special.get(id as usize).copied().unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::testing;

    fn load(json: &str) -> TextTokenizer {
        TextTokenizer::from_json(json.as_bytes()).unwrap()
    }

    #[test]
    fn every_byte_has_a_character_and_back() {
        let bytes: Vec<u8> =
            testing::byte_alphabet().chars().map(|c| byte_of_char(c).unwrap()).collect();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
        assert_eq!(byte_of_char('你'), None);
        assert_eq!(byte_of_char('\u{144}'), None);
    }

    #[test]
    fn common_decoders_have_a_table_and_others_do_not() {
        for (name, json) in testing::ALL {
            let is_table = matches!(load(&json()).detokenizer, Detokenizer::Table(_));
            assert_eq!(is_table, !["word_piece", "no_decoder"].contains(&name), "{name}");
        }
    }

    #[test]
    fn special_tokens_in_a_text_are_one_id_each() {
        let tokenizer = load(&testing::byte_level());
        let start = tokenizer.token_id("<|im_start|>").unwrap();
        let ids = tokenizer.encode("<|im_start|>a<|im_start|>", false).unwrap();
        assert_eq!(ids, [start, tokenizer.token_id("a").unwrap(), start]);
    }

    #[test]
    fn a_bos_is_added_only_where_it_is_asked_for() {
        let tokenizer = load(&testing::sentencepiece());
        let bos = tokenizer.token_id("<s>").unwrap();
        let the = tokenizer.token_id("▁the").unwrap();
        assert_eq!(tokenizer.encode("the", true).unwrap(), [bos, the]);
        assert_eq!(tokenizer.encode("the", false).unwrap(), [the]);
        assert_eq!(tokenizer.encode("<s>the", false).unwrap()[0], bos);
    }

    #[test]
    fn truncation_and_padding_of_the_file_are_ignored() {
        let mut json: Value = serde_json::from_str(&testing::byte_level()).unwrap();
        json["truncation"] = serde_json::json!({
            "direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0
        });
        json["padding"] = serde_json::json!({
            "strategy": { "Fixed": 64 }, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "!"
        });
        assert_eq!(load(&json.to_string()).encode("aaaaaaaa", true).unwrap().len(), 8);
    }

    #[test]
    fn a_token_has_its_bytes_wherever_it_stands() {
        let byte_level = load(&testing::byte_level());
        let sentencepiece = load(&testing::sentencepiece());
        for (tokenizer, token, bytes) in [
            (&byte_level, "Ġt", &b" t"[..]),
            (&byte_level, "ðŁ", b"\xf0\x9f"),
            (&byte_level, "<|im_end|>", b"<|im_end|>"),
            (&byte_level, "你好", "你好".as_bytes()),
            (&sentencepiece, "▁the", b" the"),
            (&sentencepiece, "<0x0A>", b"\n"),
            (&sentencepiece, "</s>", b"</s>"),
        ] {
            let id = tokenizer.token_id(token).unwrap();
            assert_eq!(tokenizer.token_bytes(id), bytes, "{token}");
        }
        assert_eq!(byte_level.token_bytes(9_999), b"");
        assert_eq!(load(&testing::word_piece()).token_bytes(1), b"the");
        assert_eq!(TextTokenizer::bytes().token_bytes(300), b" t300");
    }

    #[test]
    fn a_token_has_a_place_in_the_text_a_spelling_and_a_rank() {
        let byte_level = load(&testing::byte_level());
        let spans = byte_level.encode_spans("a\u{1f680}<|im_end|>", true).unwrap();
        let places: Vec<_> = spans.iter().map(|span| (span.start, span.stop)).collect();
        // The rocket is cut into the tokens of its bytes.
        assert_eq!((places[0], *places.last().unwrap()), ((0, 1), (2, 12)));
        assert!(spans.len() > 3 && places[1..places.len() - 1].iter().all(|at| *at == (1, 2)));
        let ids: Vec<u32> = spans.iter().map(|span| span.id).collect();
        assert_eq!(ids, byte_level.encode("a\u{1f680}<|im_end|>", true).unwrap());
        let is_special: Vec<bool> = ids.iter().map(|id| byte_level.is_special(*id)).collect();
        assert_eq!(is_special.iter().position(|special| *special), Some(ids.len() - 1));

        let sentencepiece = load(&testing::sentencepiece());
        let bos = sentencepiece.encode_spans("the", true).unwrap()[0];
        assert_eq!((bos.start, bos.stop, sentencepiece.is_special(bos.id)), (0, 0, true));
        let the = sentencepiece.token_id("▁the").unwrap();
        assert_eq!(sentencepiece.token_name(the).as_deref(), Some("▁the"));
        let word_piece = load(&testing::word_piece());
        assert!(!word_piece.is_special(1) && !word_piece.is_special(9_999));

        let bytes = TextTokenizer::bytes();
        let places = bytes.encode_spans("a\u{e9}", true).unwrap();
        let expected = [(97, 0, 1), (0xc3, 1, 2), (0xa9, 1, 2)];
        assert_eq!(places, expected.map(|(id, start, stop)| TokenSpan { id, start, stop }));
        assert!(!bytes.is_special(300) && bytes.token_name(97).is_none());
    }

    #[test]
    fn a_broken_tokenizer_is_refused_with_its_file() {
        let huge = testing::byte_level().replace("\"ðŁ\":260", "\"ðŁ\":4294967294");
        for (json, reason) in [("{", "EOF"), (huge.as_str(), "exceeds the limit")] {
            let error = TextTokenizer::from_json(json.as_bytes()).err().unwrap().to_string();
            assert!(error.starts_with("tokenizer.json is not usable: "), "{error}");
            assert!(error.contains(reason), "{error}");
        }
    }
}
