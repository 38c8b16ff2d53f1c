//! Which ids a model may sample, and which end a text: numbers out of the tokenizer's and the
//! generation's files. The tokenizer itself is the router's.

use super::families::parse_token_ids;
use super::spec::ModelSpec;
use crate::{LoadError, ModelSource};
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use std::fmt;

/// What the worker knows of a vocabulary.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Vocabulary {
    /// Ids below this are tokens: those that the tokenizer knows, of those that the head scores.
    /// Heads are often padded to a round number, and a padded id has no text.
    pub(crate) size: usize,
    /// Ids that end a text, ascending: those of config.json, of generation_config.json, and the
    /// tokenizer's own. A checkpoint often names the end of the document in one place and the end
    /// of the turn in another; each ends a text.
    pub(crate) eos_token_ids: Vec<u32>,
}

impl Vocabulary {
    /// Reads it. Every file but config.json may be missing; none may be malformed.
    pub(crate) fn read(source: &ModelSource, spec: &ModelSpec) -> Result<Self, LoadError> {
        let mut vocabulary = Vocabulary { size: spec.vocab, eos_token_ids: spec.eos.clone() };
        vocabulary.eos_token_ids.extend(generation_eos(source)?);
        if let Some(json) = read(source, "tokenizer.json")? {
            let eos_token = eos_token(source)?;
            let mut parser = serde_json::Deserializer::from_slice(&json);
            let known = Tokenizer(eos_token.as_deref())
                .deserialize(&mut parser)
                .map_err(|error| invalid("tokenizer.json", &error))?;
            vocabulary.eos_token_ids.extend(known.eos);
            if known.num_ids > 0 {
                vocabulary.size = spec.vocab.min(known.num_ids as usize);
            }
        }
        vocabulary.eos_token_ids.sort_unstable();
        vocabulary.eos_token_ids.dedup();
        Ok(vocabulary)
    }
}

fn generation_eos(source: &ModelSource) -> Result<Vec<u32>, LoadError> {
    let file = "generation_config.json";
    match read_json(source, file)?.get("eos_token_id") {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(value) => parse_token_ids(value).ok_or_else(|| {
            let reason = format!("`eos_token_id` must be a token id or a list, not {value}");
            invalid(file, &reason)
        }),
    }
}

/// The text of the tokenizer's end token.
fn eos_token(source: &ModelSource) -> Result<Option<String>, LoadError> {
    for file in ["tokenizer_config.json", "special_tokens_map.json"] {
        let json = read_json(source, file)?;
        let token = match json.get("eos_token") {
            None | Some(Value::Null) => continue,
            Some(Value::Object(token)) => token.get("content"),
            token => token,
        };
        let token = token.and_then(Value::as_str).ok_or_else(|| {
            let reason = format!("`eos_token` must be a string, not {}", json["eos_token"]);
            invalid(file, &reason)
        })?;
        return Ok(Some(token.to_owned()));
    }
    Ok(None)
}

fn read(
    source: &ModelSource,
    file: &str,
) -> Result<Option<std::borrow::Cow<'static, [u8]>>, LoadError> {
    source.read(file).map_err(|source| LoadError::Read { file: file.into(), source })
}

/// A JSON file; `Null` where it is missing, in which every lookup finds nothing.
fn read_json(source: &ModelSource, file: &str) -> Result<Value, LoadError> {
    let Some(json) = read(source, file)? else { return Ok(Value::Null) };
    serde_json::from_slice(&json).map_err(|error| invalid(file, &error))
}

fn invalid(file: &str, reason: &dyn fmt::Display) -> LoadError {
    LoadError::Invalid { file: file.into(), reason: reason.to_string() }
}

/// What is looked for in tokenizer.json, which is read without keeping its hundreds of thousands
/// of strings.
#[derive(Default)]
struct Known {
    /// One more than the largest id.
    num_ids: u32,
    /// The id of the end token.
    eos: Option<u32>,
}

impl Known {
    fn add(&mut self, id: u32, is_eos: bool) {
        self.num_ids = self.num_ids.max(id.saturating_add(1));
        if is_eos {
            self.eos = Some(id);
        }
    }
}

#[derive(Deserialize)]
struct AddedToken {
    id: u32,
    #[serde(default)]
    content: String,
}

/// The file: `added_tokens`, and `model` with its vocabulary. Each of these readers looks for the
/// id of this end token.
#[derive(Clone, Copy)]
struct Tokenizer<'a>(Option<&'a str>);

impl<'de> DeserializeSeed<'de> for Tokenizer<'_> {
    type Value = Known;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Known, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Tokenizer<'_> {
    type Value = Known;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a tokenizer: an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Known, A::Error> {
        let mut added: Vec<AddedToken> = Vec::new();
        let mut known = None;
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "added_tokens" => added = map.next_value()?,
                "model" => known = Some(map.next_value_seed(TokenizerModel(self.0))?),
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        let mut known = known.ok_or_else(|| A::Error::missing_field("model"))?;
        for token in added {
            known.add(token.id, self.0 == Some(&token.content));
        }
        Ok(known)
    }
}

#[derive(Clone, Copy)]
struct TokenizerModel<'a>(Option<&'a str>);

impl<'de> DeserializeSeed<'de> for TokenizerModel<'_> {
    type Value = Known;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Known, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for TokenizerModel<'_> {
    type Value = Known;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a tokenizer's model: an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Known, A::Error> {
        let mut known = Known::default();
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "vocab" => known = map.next_value_seed(Vocab(self.0))?,
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(known)
    }
}

/// An object of ids, or a list (Unigram) of pieces and scores in which the place is the id.
#[derive(Clone, Copy)]
struct Vocab<'a>(Option<&'a str>);

impl<'de> DeserializeSeed<'de> for Vocab<'_> {
    type Value = Known;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Known, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Vocab<'_> {
    type Value = Known;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a vocabulary: an object of ids, or a list")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Known, A::Error> {
        let mut known = Known::default();
        while let Some((token, id)) = map.next_entry::<String, u32>()? {
            known.add(id, self.0 == Some(&token));
        }
        Ok(known)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Known, A::Error> {
        let mut known = Known::default();
        while let Some((piece, _)) = list.next_element::<(String, IgnoredAny)>()? {
            known.add(known.num_ids, self.0 == Some(&piece));
        }
        Ok(known)
    }
}

#[cfg(test)]
mod tests {
    use super::super::families;
    use super::super::families::tests::{qwen3, with};
    use super::*;

    /// Names and contents.
    type Files<'a> = &'a [(&'a str, &'a str)];

    fn spec(vocab: usize) -> ModelSpec {
        let config = with(qwen3(), "vocab_size", vocab.into());
        families::parse(config.to_string().as_bytes()).unwrap()
    }

    fn source(files: Files<'_>) -> (tempfile::TempDir, ModelSource) {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(directory.path().join(name), text).unwrap();
        }
        let source = ModelSource::Directory(directory.path().to_owned());
        (directory, source)
    }

    #[test]
    fn the_tokenizer_says_which_ids_exist() {
        let cases = [
            (r#"{"model": {"vocab": {"a": 0, "c": 7, "b": 1}, "merges": [["a", "b"]]}}"#, 8),
            (r#"{"added_tokens": [{"id": 11}, {"id": 9}], "model": {"vocab": {"a": 3}}}"#, 12),
            (r#"{"model": {"type": "Unigram", "vocab": [["a", -1.5], ["b", -2.0]]}}"#, 2),
            (r#"{"added_tokens": [{"id": 500}], "model": {"vocab": {"a": 3}}}"#, 100),
            (r#"{"model": {}}"#, 100),
        ];
        for (tokenizer, want) in cases {
            let (_directory, source) = source(&[("tokenizer.json", tokenizer)]);
            let vocabulary = Vocabulary::read(&source, &spec(100)).unwrap();
            assert_eq!(vocabulary.size, want, "{tokenizer}");
        }
        let (_directory, none) = source(&[]);
        assert_eq!(Vocabulary::read(&none, &spec(100)).unwrap().size, 100);
    }

    #[test]
    fn eos_ids_are_merged_from_every_file() {
        let added = r#"{"added_tokens": [{"id": 7, "content": "</s>"}], "model": {}}"#;
        let bpe = r#"{"added_tokens": [], "model": {"vocab": {"a": 0, "</s>": 9}}}"#;
        let unigram = r#"{"model": {"vocab": [["a", -1.5], ["<\u002fs>", -2.0]]}}"#;
        let generation = r#"{"eos_token_id": [151645, 151643], "temperature": 0.6}"#;
        let eos = r#"{"eos_token": "</s>"}"#;
        let eos_object = r#"{"eos_token": {"content": "</s>", "lstrip": false}}"#;
        let cases: [(Files<'_>, &[u32]); 9] = [
            (&[], &[151_645]),
            (&[("generation_config.json", generation)], &[151_643, 151_645]),
            (&[("generation_config.json", r#"{"eos_token_id": null}"#)], &[151_645]),
            (&[("tokenizer.json", added)], &[151_645]),
            (&[("tokenizer.json", added), ("tokenizer_config.json", eos)], &[7, 151_645]),
            (&[("tokenizer.json", bpe), ("tokenizer_config.json", eos_object)], &[9, 151_645]),
            (&[("tokenizer.json", unigram), ("special_tokens_map.json", eos)], &[1, 151_645]),
            // The tokenizer's own file comes before the map, and an unknown text has no id.
            (
                &[
                    ("tokenizer.json", bpe),
                    ("tokenizer_config.json", r#"{"eos_token": "<end>"}"#),
                    ("special_tokens_map.json", eos),
                ],
                &[151_645],
            ),
            (&[("tokenizer_config.json", eos)], &[151_645]),
        ];
        for (files, expected) in cases {
            let (_directory, source) = source(files);
            let vocabulary = Vocabulary::read(&source, &spec(100)).unwrap();
            assert_eq!(vocabulary.eos_token_ids, expected, "{files:?}");
        }
    }

    #[test]
    fn a_malformed_file_is_named() {
        let tokenizer = ("tokenizer.json", r#"{"model": {}}"#);
        let cases: [(Files<'_>, &str); 9] = [
            (&[("tokenizer.json", r#"{"model": {"vocab": 3}}"#)], "`tokenizer.json`: "),
            (&[("tokenizer.json", r#"{"model": {"vocab": {"a": -1}}}"#)], "`tokenizer.json`: "),
            (&[("tokenizer.json", r#"{"added_tokens": []}"#)], "missing field `model`"),
            (&[("tokenizer.json", r#"{"model": "#)], "`tokenizer.json`: EOF"),
            (&[("generation_config.json", "[")], "`generation_config.json`: "),
            (
                &[("generation_config.json", r#"{"eos_token_id": "</s>"}"#)],
                r#"`eos_token_id` must be a token id or a list, not "</s>""#,
            ),
            (&[("generation_config.json", r#"{"eos_token_id": [2, -1]}"#)], "not [2,-1]"),
            (&[tokenizer, ("tokenizer_config.json", "}")], "`tokenizer_config.json`: "),
            (
                &[tokenizer, ("tokenizer_config.json", r#"{"eos_token": 2}"#)],
                "`tokenizer_config.json`: `eos_token` must be a string, not 2",
            ),
        ];
        for (files, expected) in cases {
            let (_directory, source) = source(files);
            let error = Vocabulary::read(&source, &spec(100)).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
