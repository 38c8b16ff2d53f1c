//! Small tokenizers in the shapes of real ones, for tests.

use serde_json::{Map, Value, json};

/// Writes a tokenizer.json.
pub(super) type Build = fn() -> String;

/// Every tokenizer of this file by name.
pub(super) const ALL: [(&str, Build); 6] = [
    ("byte_level", byte_level),
    ("sentencepiece", sentencepiece),
    ("gemma", gemma),
    ("metaspace", metaspace),
    ("word_piece", word_piece),
    ("no_decoder", no_decoder),
];

/// The 256 characters that stand for bytes in byte-level BPE, in the order of the bytes.
pub(super) fn byte_alphabet() -> String {
    let mut others = (0x100..).filter_map(char::from_u32);
    (0..=255_u8)
        .map(|byte| match byte {
            0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
            _ => others.next().unwrap(),
        })
        .collect()
}

/// GPT-2's kind: 256 bytes, some merges, two special tokens and two added ones.
pub(super) fn byte_level() -> String {
    let merges = [("t", "h"), ("th", "e"), ("Ġ", "t"), ("Ã", "©"), ("ð", "Ł")];
    let tokens = byte_alphabet().chars().map(String::from).collect();
    json!({
        "version": "1.0",
        "added_tokens": [
            added(261, "<|im_start|>", true),
            added(262, "<|im_end|>", true),
            added(263, "<think>", false),
            added(264, "你好", false),
        ],
        "pre_tokenizer": {
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true
        },
        "decoder": {
            "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true
        },
        "model": bpe(tokens, &merges, false),
    })
    .to_string()
}

/// Llama 2's kind: word marks, byte fallback, a BOS, and a leading space that is stripped.
pub(super) fn sentencepiece() -> String {
    sentencepiece_with(&json!({ "type": "Sequence", "decoders": [
        { "type": "Replace", "pattern": { "String": "▁" }, "content": " " },
        { "type": "ByteFallback" },
        { "type": "Fuse" },
        { "type": "Strip", "content": " ", "start": 1, "stop": 0 },
    ]}))
}

/// Gemma's kind: as Llama 2, but leading spaces stay.
pub(super) fn gemma() -> String {
    sentencepiece_with(&json!({ "type": "Sequence", "decoders": [
        { "type": "Replace", "pattern": { "String": "▁" }, "content": " " },
        { "type": "ByteFallback" },
        { "type": "Fuse" },
    ]}))
}

/// T5's kind: the decoder drops the word marks of the first token.
pub(super) fn metaspace() -> String {
    sentencepiece_with(&json!({
        "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true
    }))
}

fn sentencepiece_with(decoder: &Value) -> String {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).to_vec();
    tokens.extend((0..=255_u8).map(|byte| format!("<0x{byte:02X}>")));
    tokens.extend("▁athe你\n".chars().map(String::from));
    let merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("▁", "a")];
    json!({
        "version": "1.0",
        "added_tokens": [added(0, "<unk>", true), added(1, "<s>", true), added(2, "</s>", true)],
        "normalizer": { "type": "Sequence", "normalizers": [
            { "type": "Prepend", "prepend": "▁" },
            { "type": "Replace", "pattern": { "String": " " }, "content": "▁" },
        ]},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                { "SpecialToken": { "id": "<s>", "type_id": 0 } },
                { "Sequence": { "id": "A", "type_id": 0 } },
            ],
            "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }],
            "special_tokens": { "<s>": { "id": "<s>", "ids": [1], "tokens": ["<s>"] } },
        },
        "decoder": decoder,
        "model": bpe(tokens, &merges, true),
    })
    .to_string()
}

/// BERT's kind, whose decoder looks at neighbours: the tokenizers crate must decode it.
pub(super) fn word_piece() -> String {
    words(&json!({ "type": "WordPiece", "prefix": "##", "cleanup": true }))
}

/// Words without a decoder: joined by spaces.
pub(super) fn no_decoder() -> String {
    words(&Value::Null)
}

fn words(decoder: &Value) -> String {
    json!({
        "version": "1.0",
        "added_tokens": [added(0, "[UNK]", true), added(8, "[SEP]", true)],
        "pre_tokenizer": { "type": "Whitespace" },
        "decoder": decoder,
        "model": {
            "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": vocab(["[UNK]", "the", "a", "##the", "##a", "é", ".", "n't"].map(String::from)),
        },
    })
    .to_string()
}

fn added(id: u32, content: &str, special: bool) -> Value {
    json!({
        "id": id, "content": content, "special": special,
        "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
    })
}

fn bpe(mut tokens: Vec<String>, merges: &[(&str, &str)], byte_fallback: bool) -> Value {
    tokens.extend(merges.iter().map(|(left, right)| format!("{left}{right}")));
    let merges: Vec<String> =
        merges.iter().map(|(left, right)| format!("{left} {right}")).collect();
    json!({
        "type": "BPE", "dropout": null, "unk_token": null, "fuse_unk": false,
        "byte_fallback": byte_fallback, "ignore_merges": false,
        "vocab": vocab(tokens), "merges": merges,
    })
}

fn vocab(tokens: impl IntoIterator<Item = String>) -> Map<String, Value> {
    tokens.into_iter().enumerate().map(|(id, token)| (token, json!(id))).collect()
}
