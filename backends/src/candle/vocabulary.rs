//! Which ids a model may sample, and which end a text: two numbers out of the tokenizer's and the
//! generation's files. The tokenizer itself is the router's.

use super::families::parse_token_ids;
use super::spec::ModelSpec;
use crate::{LoadError, ModelSource};
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::fmt;

/// Ids below this are tokens: those that the tokenizer knows, of those that the head scores.
/// Heads are often padded to a round number, and a padded id has no text.
pub(crate) fn vocab_size(source: &ModelSource, spec: &ModelSpec) -> Result<usize, LoadError> {
    let Some(json) = read(source, "tokenizer.json")? else { return Ok(spec.vocab) };
    let tokenizer: Tokenizer =
        serde_json::from_slice(&json).map_err(|error| invalid("tokenizer.json", &error))?;
    let added = tokenizer.added_tokens.iter().map(|token| token.id + 1).max();
    let known = added.max(Some(tokenizer.model.vocab.0)).unwrap_or(0);
    match known {
        0 => Ok(spec.vocab),
        known => Ok((known as usize).min(spec.vocab)),
    }
}

/// Ids that end a text, of config.json and generation_config.json together, ascending.
pub(crate) fn eos_token_ids(source: &ModelSource, spec: &ModelSpec) -> Result<Vec<u32>, LoadError> {
    let mut ids = spec.eos.clone();
    if let Some(json) = read(source, "generation_config.json")? {
        let config: serde_json::Value = serde_json::from_slice(&json)
            .map_err(|error| invalid("generation_config.json", &error))?;
        let eos = config.get("eos_token_id").filter(|value| !value.is_null());
        if let Some(value) = eos {
            ids.extend(parse_token_ids(value).ok_or_else(|| {
                let reason = format!("`eos_token_id` must be a token id or a list, not {value}");
                invalid("generation_config.json", &reason)
            })?);
        }
    }
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

fn read(
    source: &ModelSource,
    file: &str,
) -> Result<Option<std::borrow::Cow<'static, [u8]>>, LoadError> {
    source.read(file).map_err(|source| LoadError::Read { file: file.into(), source })
}

fn invalid(file: &str, reason: &dyn fmt::Display) -> LoadError {
    LoadError::Invalid { file: file.into(), reason: reason.to_string() }
}

#[derive(Deserialize)]
struct Tokenizer {
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    model: TokenizerModel,
}

#[derive(Deserialize)]
struct AddedToken {
    id: u32,
}

#[derive(Deserialize)]
struct TokenizerModel {
    #[serde(default)]
    vocab: NumIds,
}

/// One more than the largest id of a vocabulary: an object of ids, or a list (Unigram) in which
/// the place is the id. Read without keeping its hundreds of thousands of strings.
#[derive(Default)]
struct NumIds(u32);

impl<'de> Deserialize<'de> for NumIds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NumIdsVisitor)
    }
}

struct NumIdsVisitor;

impl<'de> Visitor<'de> for NumIdsVisitor {
    type Value = NumIds;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a vocabulary: an object of ids, or a list")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<NumIds, A::Error> {
        let mut num_ids = 0;
        while let Some((_, id)) = map.next_entry::<IgnoredAny, u32>()? {
            num_ids = num_ids.max(id.saturating_add(1));
        }
        Ok(NumIds(num_ids))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<NumIds, A::Error> {
        let mut num_ids = 0;
        while list.next_element::<IgnoredAny>()?.is_some() {
            num_ids += 1;
        }
        Ok(NumIds(num_ids))
    }
}

#[cfg(test)]
mod tests {
    use super::super::families;
    use super::super::families::tests::{qwen3, with};
    use super::*;

    fn spec(vocab: usize) -> ModelSpec {
        let config = with(qwen3(), "vocab_size", vocab.into());
        families::parse(config.to_string().as_bytes()).unwrap()
    }

    fn source(files: &[(&str, &str)]) -> (tempfile::TempDir, ModelSource) {
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
            assert_eq!(vocab_size(&source, &spec(100)).unwrap(), want, "{tokenizer}");
        }
        let (_directory, none) = source(&[]);
        assert_eq!(vocab_size(&none, &spec(100)).unwrap(), 100);
        let (_directory, broken) = source(&[("tokenizer.json", r#"{"model": {"vocab": 3}}"#)]);
        let error = vocab_size(&broken, &spec(100)).unwrap_err().to_string();
        assert!(error.starts_with("`tokenizer.json`: "), "{error}");
    }

    #[test]
    fn eos_ids_are_merged_from_both_files() {
        let generation = r#"{"eos_token_id": [151645, 151643], "temperature": 0.6}"#;
        let (_directory, both) = source(&[("generation_config.json", generation)]);
        assert_eq!(eos_token_ids(&both, &spec(100)).unwrap(), [151_643, 151_645]);
        let (_directory, one) = source(&[("generation_config.json", "{}")]);
        assert_eq!(eos_token_ids(&one, &spec(100)).unwrap(), [151_645]);
    }
}
