//! Tokenizers of every kind against what Python makes of them (`make_tokenizers.py`).

use std::path::Path;
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use super::TextModel;
use super::decode::Decoder;
use super::tokenizer::{Detokenizer, TextTokenizer};

const DIRECTORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/tokenizers");

struct Fixture {
    kind: String,
    json: Value,
    tokenizer: Arc<TextTokenizer>,
}

fn read(name: &str) -> Value {
    let path = Path::new(DIRECTORY).join(name).with_extension("json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn fixtures() -> Vec<Fixture> {
    let files = std::fs::read_dir(DIRECTORY).unwrap().map(|file| file.unwrap().file_name());
    let kind = |file: &str| Some(file.strip_suffix(".json")?.to_owned());
    let kinds = files.filter_map(|file| kind(file.to_str().unwrap()));
    let mut names: Vec<String> = kinds.filter(|kind| kind != "texts").collect();
    names.sort();
    assert!(names.len() >= 15, "{names:?}");
    let load = |kind: String| {
        let json = read(&kind);
        let tokenizer = TextTokenizer::from_json(json["tokenizer"].to_string().as_bytes()).unwrap();
        Fixture { kind, json, tokenizer: Arc::new(tokenizer) }
    };
    names.into_iter().map(load).collect()
}

fn ids(value: &Value) -> Vec<u32> {
    let ids = value.as_array().unwrap().iter();
    ids.map(|id| u32::try_from(id.as_u64().unwrap()).unwrap()).collect()
}

/// Ids with what they decode to, with special tokens and without.
fn decodings(fixture: &Fixture) -> Vec<(Vec<u32>, [String; 2])> {
    let texts = read("texts");
    let of_texts = fixture.json["texts"].as_array().unwrap();
    let of_sequences = fixture.json["sequences"].as_array().unwrap();
    let texts = texts.as_array().unwrap().iter().chain(std::iter::repeat(&Value::Null));
    let all = of_texts.iter().chain(of_sequences).zip(texts);
    all.map(|(case, text)| {
        let decoded = case[1].as_str().or(text.as_str()).unwrap();
        let skipped = case[2].as_str().unwrap_or(decoded);
        (ids(&case[0]), [decoded.to_owned(), skipped.to_owned()])
    })
    .collect()
}

#[test]
fn texts_are_encoded_as_in_python() {
    let texts = read("texts");
    for fixture in fixtures() {
        let cases = fixture.json["texts"].as_array().unwrap();
        assert_eq!(cases.len(), texts.as_array().unwrap().len());
        for (case, text) in cases.iter().zip(texts.as_array().unwrap()) {
            let encoded = fixture.tokenizer.encode(text.as_str().unwrap(), false).unwrap();
            assert_eq!(encoded, ids(&case[0]), "{} {text}", fixture.kind);
        }
        let with_special = fixture.json["with_special"].as_array().unwrap();
        for (expected, text) in with_special.iter().zip(texts.as_array().unwrap()) {
            let encoded = fixture.tokenizer.encode(text.as_str().unwrap(), true).unwrap();
            assert_eq!(encoded, ids(expected), "{} {text}", fixture.kind);
        }
    }
}

#[test]
fn ids_are_decoded_one_by_one_as_python_decodes_them_at_once() {
    for fixture in fixtures() {
        let is_table = matches!(fixture.tokenizer.detokenizer, Detokenizer::Table(_));
        assert!(is_table, "{} is decoded the slow way", fixture.kind);
        for (ids, expected) in decodings(&fixture) {
            for (skip, expected) in [false, true].into_iter().zip(expected) {
                let mut decoder = Decoder::new(Arc::clone(&fixture.tokenizer), &[], skip);
                let mut text = String::new();
                for &id in &ids {
                    decoder.push(id, &mut text);
                    // What has been sent is never taken back.
                    assert!(expected.starts_with(&text), "{} {ids:?} {text:?}", fixture.kind);
                }
                decoder.finish(&mut text);
                assert_eq!(text, expected, "{} {ids:?} {skip}", fixture.kind);
            }
        }
    }
}

#[test]
fn a_text_goes_on_behind_a_prompt_as_if_both_were_one() {
    let mut random = StdRng::seed_from_u64(7);
    for fixture in fixtures() {
        for (ids, [whole, _]) in decodings(&fixture).into_iter().filter(|(ids, _)| ids.len() > 1) {
            let (prompt, output) = ids.split_at(random.random_range(1..ids.len()));
            let reference = fixture.tokenizer.tokenizer.as_ref().unwrap();
            let before = reference.decode(prompt, false).unwrap();
            // A character that begins in the prompt is nobody's whole character.
            if !whole.starts_with(&before) || before.ends_with('\u{fffd}') {
                continue;
            }
            let mut decoder = Decoder::new(Arc::clone(&fixture.tokenizer), prompt, false);
            let mut text = String::new();
            output.iter().for_each(|&id| decoder.push(id, &mut text));
            decoder.finish(&mut text);
            assert_eq!(text, whole[before.len()..], "{} {prompt:?} {output:?}", fixture.kind);
        }
    }
}

#[test]
fn a_rendered_chat_has_its_bos_once() {
    let mut num_with_bos = 0;
    for fixture in fixtures() {
        let Some(bos) = fixture.json["bos"].as_str() else { continue };
        num_with_bos += 1;
        let config = json!({ "bos_token": bos }).to_string();
        let tokenizer = fixture.json["tokenizer"].to_string();
        let read = |name: &str| {
            Ok(match name {
                "tokenizer.json" => Some(tokenizer.clone().into_bytes()),
                "tokenizer_config.json" => Some(config.clone().into_bytes()),
                _ => None,
            })
        };
        let model = TextModel::load(&read).unwrap();
        let bos_id = fixture.tokenizer.token_id(bos).unwrap();
        let written = format!("{bos}a chat");
        let alone = model.encode_chat(&written, false).unwrap();
        for (text, add_special_tokens) in
            [(written.as_str(), false), (&written, true), ("a chat", true)]
        {
            let ids = model.encode_chat(text, add_special_tokens).unwrap();
            let count = ids.iter().filter(|&&id| id == bos_id).count();
            assert_eq!((ids[0], count), (bos_id, 1), "{} {text}", fixture.kind);
            if text == written {
                assert_eq!(ids[..alone.len()], alone, "{}", fixture.kind);
            }
        }
        // A plain prompt is the client's own.
        assert_eq!(model.encode(&written, true).unwrap()[..2], [bos_id, bos_id]);
    }
    assert!(num_with_bos >= 8, "{num_with_bos} kinds with a BOS");
}

/// Numbers and kinds that a tokenizer.json does not expect, written over what stands there.
fn mutate(bytes: &mut Vec<u8>, random: &mut StdRng) {
    let at = random.random_range(0..bytes.len());
    match random.random_range(0..5) {
        0 => bytes[at] ^= 1 << random.random_range(0..8),
        1 => bytes.truncate(at),
        2 => {
            let end = (at + random.random_range(1..60)).min(bytes.len());
            bytes.drain(at..end);
        }
        3 => {
            let end = (at + random.random_range(1..60)).min(bytes.len());
            let piece = bytes[at..end].to_vec();
            let to = random.random_range(0..bytes.len());
            bytes.splice(to..to, piece);
        }
        _ => {
            let digit = bytes[at..].iter().position(u8::is_ascii_digit);
            let Some(digit) = digit.map(|offset| at + offset) else { return };
            let number = ["-1", "4294967295", "1e9", "null", "99999"][random.random_range(0..5)];
            bytes.splice(digit..=digit, number.bytes());
        }
    }
}

#[test]
fn a_broken_tokenizer_is_refused_or_encodes_and_decodes() {
    let mut random = StdRng::seed_from_u64(8);
    let mut num_accepted = 0;
    for fixture in fixtures() {
        let whole = fixture.json["tokenizer"].to_string().into_bytes();
        // The structure is what can break: most of a vocabulary would only make this slow.
        for _ in 0..40 {
            let mut broken = whole.clone();
            (0..random.random_range(1..3)).for_each(|_| mutate(&mut broken, &mut random));
            let Ok(tokenizer) = TextTokenizer::from_json(&broken) else { continue };
            num_accepted += 1;
            let tokenizer = Arc::new(tokenizer);
            let ids = tokenizer.encode("The dog's 你好 <s> day", true).unwrap_or_default();
            let mut decoder = Decoder::new(Arc::clone(&tokenizer), &[], true);
            let mut text = String::new();
            for id in ids.into_iter().chain([0, 7, u32::MAX]) {
                decoder.push(id, &mut text);
            }
            decoder.finish(&mut text);
        }
    }
    assert!(num_accepted > 50, "{num_accepted}");
}
