//! `tokenizer.json` and `tokenizer_config.json`, as Hugging Face has them, from a file's metadata.
//!
//! Two kinds of tokenizer are known. `gpt2` is a BPE over bytes, with its merges and the name of
//! its way to cut words. `llama` is SentencePiece's BPE: pieces with scores, the best pair first;
//! merges in the order of the scores of what they make are the same.
//!
//! Tokens that are matched in a text as they stand (control tokens, and those that somebody added)
//! are the `added_tokens`. They stand in the vocabulary too, which keeps their ids.

mod words;

use super::keys::Keys;
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use words::Words;

type Result<T> = std::result::Result<T, String>;

/// SentencePiece's sign for a space.
const MARK: &str = "▁";

/// Keys below `tokenizer.` that nothing here needs: tokens for filling in, other programs' copies.
const NEUTRAL: &[&str] = &[
    "ggml.add_sep_token",
    "ggml.cls_token_id",
    "ggml.fim_mid_token_id",
    "ggml.fim_pad_token_id",
    "ggml.fim_pre_token_id",
    "ggml.fim_rep_token_id",
    "ggml.fim_sep_token_id",
    "ggml.fim_suf_token_id",
    "ggml.mask_token_id",
    "ggml.middle_token_id",
    "ggml.prefix_token_id",
    "ggml.seperator_token_id",
    "ggml.suffix_token_id",
    "ggml.token_type_count",
    "huggingface.json",
    "rwkv.world",
];

/// What a file's tokenizer consists of.
pub(super) struct Tokenizer<'a> {
    tokens: Vec<&'a str>,
    types: Vec<TokenType>,
    kind: Kind<'a>,
    bos: Option<u32>,
    eos: Option<u32>,
    unknown: Option<u32>,
    padding: Option<u32>,
    /// A text begins with BOS, ends with EOS.
    adds: [bool; 2],
    /// Added tokens take the blanks behind them.
    strips_right: bool,
    templates: Option<Value>,
    /// Ids that end a text besides EOS.
    other_ends: Vec<u32>,
}

enum Kind<'a> {
    /// A BPE over bytes.
    Bytes { words: &'static Words, merges: Vec<&'a str> },
    /// SentencePiece's BPE; a space is put before a text, or not.
    Pieces { scores: Vec<f64>, add_prefix: bool },
}

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TokenType {
    Normal,
    /// Stands for what has no token.
    Unknown,
    /// Steers the model, and is no text.
    Control,
    /// Added by somebody.
    UserDefined,
    /// Fills a gap in the ids.
    Unused,
    /// `<0x0A>` stands for that byte.
    Byte,
}

/// Control tokens that end a text or a turn in models that are known, and that files often do not
/// name as the end of anything.
const ENDS: &[&str] = &[
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|END_OF_TURN_TOKEN|>",
    "<｜end▁of▁sentence｜>",
];

impl<'a> Tokenizer<'a> {
    /// Reads it.
    pub(super) fn read(keys: &Keys<'a>) -> Result<Self> {
        let key = "tokenizer.ggml.tokens";
        let tokens = keys.strings(key)?.ok_or_else(|| format!("`{key}` is missing"))?;
        let mut types = types(keys, tokens.len())?;
        for (id, (token, kind)) in tokens.iter().zip(&mut types).enumerate() {
            // Converters fill gaps so, and do not always say that they did.
            if *token == format!("[PAD{id}]") {
                *kind = TokenType::Unused;
            }
        }
        let kind = kind(keys, tokens.len())?;
        let id = |name: &str| -> Result<Option<u32>> {
            let key = format!("tokenizer.ggml.{name}_token_id");
            match keys.number(&key)? {
                // Some writers say so that there is none.
                Some(u32::MAX) => Ok(None),
                Some(id) if id as usize >= tokens.len() => {
                    Err(format!("`{key}` is {id}, the file has {} tokens", tokens.len()))
                }
                id => Ok(id),
            }
        };
        let [bos, eos, unknown, padding] = [id("bos")?, id("eos")?, id("unknown")?, id("padding")?];
        let is_end = |id: &u32| {
            let id = *id as usize;
            types[id] == TokenType::Control && ENDS.contains(&tokens[id])
        };
        let mut other_ends: Vec<u32> = (0..tokens.len() as u32).filter(is_end).collect();
        // `<|end|>` ends a message of a harmony, which goes on.
        if tokens.contains(&"<|return|>") {
            other_ends.retain(|id| tokens[*id as usize] != "<|end|>");
        }
        other_ends.extend([id("eot")?, id("eom")?].into_iter().flatten());
        let (add_bos, is_pieces) = match &kind {
            Kind::Bytes { words, .. } => (words.add_bos, false),
            Kind::Pieces { .. } => (true, true),
        };
        let switch = |name: &str| keys.switch(&format!("tokenizer.ggml.add_{name}_token"));
        let add_bos = add_bos && bos.is_some();
        let adds = [switch("bos")?.unwrap_or(add_bos), switch("eos")?.unwrap_or(false)];
        // Phi 3's tokens do so, and its files have no way to say it.
        let strips_right = is_pieces && keys.string("general.architecture")? == Some("phi3");
        let templates = templates(keys)?;
        keys.only("tokenizer.ggml.remove_extra_whitespaces", &[0.0])?;
        keys.refuse_rest("tokenizer.", NEUTRAL)?;
        Ok(Self {
            tokens,
            types,
            kind,
            bos,
            eos,
            unknown,
            padding,
            adds,
            strips_right,
            templates,
            other_ends,
        })
    }

    /// Ids that end a text, ascending.
    pub(super) fn eos_token_ids(&self) -> Vec<u32> {
        let mut ids: Vec<u32> = self.eos.iter().chain(&self.other_ends).copied().collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    fn text(&self, id: u32) -> &'a str {
        self.tokens[id as usize]
    }

    /// tokenizer_config.json.
    pub(super) fn config(&self) -> Value {
        let mut config = Map::new();
        for (key, id) in [
            ("bos_token", self.bos),
            ("eos_token", self.eos),
            ("unk_token", self.unknown),
            ("pad_token", self.padding),
        ] {
            if let Some(id) = id {
                config.insert(key.into(), self.text(id).into());
            }
        }
        config.insert("add_bos_token".into(), self.adds[0].into());
        config.insert("add_eos_token".into(), self.adds[1].into());
        if let Some(templates) = &self.templates {
            config.insert("chat_template".into(), templates.clone());
        }
        Value::Object(config)
    }

    /// tokenizer.json.
    pub(super) fn json(&self) -> Result<Value> {
        let mut json = match &self.kind {
            Kind::Bytes { words, merges } => self.byte_level(words, merges)?,
            Kind::Pieces { scores, add_prefix } => self.sentencepiece(scores, *add_prefix)?,
        };
        json["version"] = "1.0".into();
        json["truncation"] = Value::Null;
        json["padding"] = Value::Null;
        json["added_tokens"] = self.added_tokens();
        json["post_processor"] = self.post_processor()?;
        Ok(json)
    }

    fn byte_level(&self, words: &Words, merges: &[&str]) -> Result<Value> {
        let vocab = self.vocab()?;
        let pair = |merge: &&str| match merge.char_indices().skip(1).find(|(_, c)| *c == ' ') {
            Some((at, _)) => Ok([merge[..at].to_owned(), merge[at + 1..].to_owned()]),
            None => Err(format!("`tokenizer.ggml.merges`: `{merge}` is no pair of tokens")),
        };
        let merges = merges.iter().map(pair).collect::<Result<Vec<[String; 2]>>>()?;
        Ok(json!({
            "normalizer": words.composes.then(|| json!({ "type": "NFC" })),
            "pre_tokenizer": words.pre_tokenizer(),
            "decoder": {
                "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
                "use_regex": true,
            },
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null,
                "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
                "byte_fallback": false, "ignore_merges": words.ignore_merges,
                "vocab": vocab, "merges": merges,
            },
        }))
    }

    fn sentencepiece(&self, scores: &[f64], add_prefix: bool) -> Result<Value> {
        let replace = |from: &str, to: &str| {
            let pattern = json!({ "String": from });
            json!({ "type": "Replace", "pattern": pattern, "content": to })
        };
        let mut decoders =
            vec![replace(MARK, " "), json!({ "type": "ByteFallback" }), json!({ "type": "Fuse" })];
        let mut normalizers = vec![replace(" ", MARK)];
        if add_prefix {
            normalizers.insert(0, json!({ "type": "Prepend", "prepend": MARK }));
            decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
        }
        Ok(json!({
            "normalizer": { "type": "Sequence", "normalizers": normalizers },
            "pre_tokenizer": null,
            "decoder": { "type": "Sequence", "decoders": decoders },
            "model": {
                "type": "BPE", "dropout": null, "unk_token": self.unknown.map(|id| self.text(id)),
                "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true,
                "byte_fallback": true, "ignore_merges": false,
                "vocab": self.vocab()?, "merges": self.merges(scores),
            },
        }))
    }

    /// Ids by text; a gap in the ids has none.
    fn vocab(&self) -> Result<Map<String, Value>> {
        let mut vocab = Map::with_capacity(self.tokens.len());
        for (id, (token, kind)) in self.tokens.iter().zip(&self.types).enumerate() {
            if *kind == TokenType::Unused {
                continue;
            }
            if let Some(first) = vocab.insert((*token).to_owned(), id.into()) {
                let what = "`tokenizer.ggml.tokens`: tokens";
                return Err(format!("{what} {first} and {id} are both {token:?}"));
            }
        }
        Ok(vocab)
    }

    fn added_tokens(&self) -> Value {
        let added =
            self.types.iter().zip(&self.tokens).enumerate().filter_map(|(id, (kind, token))| {
                let special = match kind {
                    TokenType::Unknown | TokenType::Control => true,
                    TokenType::UserDefined => false,
                    TokenType::Normal | TokenType::Unused | TokenType::Byte => return None,
                };
                // What stands at either end of a text takes no blanks.
                let is_end = [self.bos, self.unknown].contains(&Some(id as u32));
                Some(json!({
                    "id": id, "content": token, "single_word": false, "lstrip": false,
                    "rstrip": self.strips_right && !is_end, "normalized": false, "special": special,
                }))
            });
        added.collect()
    }

    /// Puts BOS before a text and EOS behind it, as far as the file asks for either.
    fn post_processor(&self) -> Result<Value> {
        let id = |adds: bool, id: Option<u32>, name: &str| match (adds, id) {
            (true, None) => Err(format!(
                "`tokenizer.ggml.add_{name}_token` asks for a token that \
                 `tokenizer.ggml.{name}_token_id` does not name"
            )),
            (adds, id) => Ok(id.filter(|_| adds)),
        };
        let [bos, eos] = [id(self.adds[0], self.bos, "bos")?, id(self.adds[1], self.eos, "eos")?];
        if bos.is_none() && eos.is_none() {
            return Ok(Value::Null);
        }
        let token = |id: u32| json!({ "SpecialToken": { "id": self.text(id), "type_id": 0 } });
        let text = |name: &str| json!({ "Sequence": { "id": name, "type_id": 0 } });
        let around = |name: &str| {
            bos.map(token).into_iter().chain([text(name)]).chain(eos.map(token)).collect::<Vec<_>>()
        };
        let special: Map<String, Value> = [bos, eos]
            .into_iter()
            .flatten()
            .map(|id| {
                let text = self.text(id);
                (text.to_owned(), json!({ "id": text, "ids": [id], "tokens": [text] }))
            })
            .collect();
        let pair = around("A").into_iter().chain(around("B")).collect::<Vec<_>>();
        Ok(json!({
            "type": "TemplateProcessing", "single": around("A"), "pair": pair,
            "special_tokens": special,
        }))
    }

    /// Every pair of pieces that makes a piece: first those that make the piece of the best score.
    fn merges(&self, scores: &[f64]) -> Vec<[&'a str; 2]> {
        let normal = self.types.iter().zip(&self.tokens).enumerate();
        let normal = normal.filter(|(_, (kind, _))| **kind == TokenType::Normal);
        let ids: HashMap<&str, usize> = normal.map(|(id, (_, token))| (*token, id)).collect();
        // The piece that is made, and the two that make it.
        let mut merges: Vec<[usize; 3]> = Vec::new();
        for (&piece, &id) in &ids {
            for (at, _) in piece.char_indices().skip(1) {
                if let (Some(&left), Some(&right)) = (ids.get(&piece[..at]), ids.get(&piece[at..]))
                {
                    merges.push([id, left, right]);
                }
            }
        }
        // Of equal scores, the first in the vocabulary.
        merges.sort_unstable_by(|a, b| scores[b[0]].total_cmp(&scores[a[0]]).then(a.cmp(b)));
        merges.into_iter().map(|[_, left, right]| [self.tokens[left], self.tokens[right]]).collect()
    }
}

fn types(keys: &Keys<'_>, len: usize) -> Result<Vec<TokenType>> {
    let key = "tokenizer.ggml.token_type";
    let Some(types) = keys.floats(key)? else { return Ok(vec![TokenType::Normal; len]) };
    if types.len() != len {
        return Err(format!("`{key}` has {} elements, the file has {len} tokens", types.len()));
    }
    let of = |kind: &f64| match *kind as i64 {
        0 | 1 => Ok(TokenType::Normal),
        2 => Ok(TokenType::Unknown),
        3 => Ok(TokenType::Control),
        4 => Ok(TokenType::UserDefined),
        5 => Ok(TokenType::Unused),
        6 => Ok(TokenType::Byte),
        other => Err(format!("`{key}`: {other} is no type of token")),
    };
    types.iter().map(of).collect()
}

fn kind<'a>(keys: &Keys<'a>, len: usize) -> Result<Kind<'a>> {
    let model = keys.string("tokenizer.ggml.model")?.unwrap_or("none");
    let pre = keys.string("tokenizer.ggml.pre")?;
    let scores = keys.floats("tokenizer.ggml.scores")?;
    // Byte-level tokenizers say it as a habit of their class, which their files do not follow.
    let add_prefix = keys.switch("tokenizer.ggml.add_space_prefix")?;
    let merges = keys.strings("tokenizer.ggml.merges")?;
    match model {
        "gpt2" => {
            let words = Words::of(pre.unwrap_or("default"))?;
            let merges = merges.ok_or("`tokenizer.ggml.merges` is missing")?;
            Ok(Kind::Bytes { words, merges })
        }
        "llama" => {
            let scores = scores.ok_or("`tokenizer.ggml.scores` is missing")?;
            if scores.len() != len {
                let what = "`tokenizer.ggml.scores` has";
                return Err(format!("{what} {} elements, the file has {len} tokens", scores.len()));
            }
            Ok(Kind::Pieces { scores, add_prefix: add_prefix.unwrap_or(true) })
        }
        other => Err(format!(
            "`tokenizer.ggml.model` is `{other}`, which is not supported (supported: gpt2, llama)"
        )),
    }
}

/// The chat template, or the named ones if there are several.
fn templates(keys: &Keys<'_>) -> Result<Option<Value>> {
    let default = keys.string("tokenizer.chat_template")?;
    let names = keys.strings("tokenizer.chat_templates")?.unwrap_or_default();
    let mut named: Vec<Value> = Vec::new();
    for name in names {
        if let Some(text) = keys.string(&format!("tokenizer.chat_template.{name}"))? {
            named.push(json!({ "name": name, "template": text }));
        }
    }
    match (default, named.is_empty()) {
        (None, true) => Ok(None),
        (Some(text), true) => Ok(Some(text.into())),
        (default, false) => {
            named.extend(default.map(|text| json!({ "name": "default", "template": text })));
            Ok(Some(named.into()))
        }
    }
}
