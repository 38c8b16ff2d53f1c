//! Which files of a model are needed: what describes it, and its weights as safetensors.
//!
//! Everything else stays on the hub: pickles, GGUF, `original/`, images, other frameworks. Pure:
//! names go in, names come out, so that what is downloaded and what a cache must hold to be whole
//! are the same by construction.

use std::collections::BTreeSet;

use serde::Deserialize;

pub(super) const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";

const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";
/// Taken where the model has them.
const DESCRIPTION: [&str; 7] = [
    "generation_config.json",
    TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
];
/// What a tokenizer is made of where no `tokenizer.json` says it whole.
const PARTS_OF_TOKENIZER: [&str; 4] = ["tokenizer.model", "vocab.json", "merges.txt", "vocab.txt"];
/// Directory of further chat templates.
pub(super) const TEMPLATES: &str = "additional_chat_templates/";

/// The files that say what the model is. The error says what it lacks.
pub(super) fn description(names: &BTreeSet<&str>) -> Result<Vec<String>, String> {
    if !names.contains(CONFIG) {
        let rest = match names.iter().any(|name| name.ends_with(".gguf")) {
            true => "; a GGUF file is served from its path: download it, and name that",
            false => ", so it is no checkpoint of Transformers",
        };
        return Err(format!("has no {CONFIG}{rest}"));
    }
    let mut wanted = vec![CONFIG];
    wanted.extend(DESCRIPTION);
    if !names.contains(TOKENIZER) {
        wanted.extend(PARTS_OF_TOKENIZER);
    }
    wanted.retain(|name| names.contains(name));
    wanted.extend(names.iter().filter(|name| {
        name.strip_prefix(TEMPLATES).and_then(|name| name.strip_suffix(".jinja")).is_some_and(
            |name| !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\\']),
        )
    }));
    Ok(wanted.into_iter().map(str::to_owned).collect())
}

/// The files that hold the weights; `index` is the text of [`INDEX`], if the model has one.
///
/// An index counts before a single file, which then repeats what the shards hold; an index of
/// shards that are not there is a leftover. The error says what the model lacks.
pub(super) fn weights(names: &BTreeSet<&str>, index: Option<&[u8]>) -> Result<Vec<String>, String> {
    let Some(index) = index else {
        return match names.contains(SINGLE) {
            true => Ok(vec![SINGLE.to_owned()]),
            false => Err(format!("has neither {SINGLE} nor {INDEX}{}", others(names))),
        };
    };
    #[derive(Deserialize)]
    struct Index {
        weight_map: std::collections::BTreeMap<String, String>,
    }
    let index: Index = serde_json::from_slice(index)
        .map_err(|error| format!("has a {INDEX} that cannot be read: {error}"))?;
    let shards: BTreeSet<String> = index.weight_map.into_values().collect();
    let odd = |shard: &&String| !shard.ends_with(".safetensors") || shard.contains(['/', '\\']);
    if let Some(shard) = shards.iter().find(odd) {
        return Err(format!("has a {INDEX} that names `{}`, no file of weights", printable(shard)));
    }
    if shards.is_empty() {
        return Err(format!("has a {INDEX} that names no weights"));
    }
    match shards.iter().find(|shard| !names.contains(shard.as_str())) {
        None => Ok(shards.into_iter().collect()),
        Some(_) if names.contains(SINGLE) => Ok(vec![SINGLE.to_owned()]),
        Some(shard) => Err(format!("lacks `{}`, which its {INDEX} names", printable(shard))),
    }
}

/// What a model has in place of weights that can be read.
fn others(names: &BTreeSet<&str>) -> String {
    let kinds = [".bin", ".pth", ".pt", ".gguf", ".safetensors", ".h5", ".msgpack"];
    let found = names.iter().find(|name| kinds.iter().any(|kind| name.ends_with(kind)));
    match found {
        Some(name) if name.ends_with(".gguf") => {
            format!(
                "; its `{}` is served from its path: download it, and name that",
                printable(name)
            )
        }
        Some(name) => format!("; its `{}` is not supported", printable(name)),
        None => String::new(),
    }
}

/// A name that came from elsewhere, for a message of one line.
fn printable(name: &str) -> String {
    name.chars().take(80).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &str) -> BTreeSet<&str> {
        list.split_whitespace().collect()
    }

    fn check_description(listed: &str, expected: &str) {
        let found = description(&names(listed)).unwrap();
        assert_eq!(found.iter().map(String::as_str).collect::<BTreeSet<_>>(), names(expected));
    }

    #[test]
    fn only_what_describes_the_model_is_taken_beside_its_weights() {
        check_description(
            "config.json README.md LICENSE tokenizer.json tokenizer_config.json tokenizer.model \
             vocab.json merges.txt generation_config.json special_tokens_map.json \
             added_tokens.json chat_template.jinja additional_chat_templates/tool_use.jinja \
             additional_chat_templates/x/y.jinja additional_chat_templates/.jinja \
             preprocessor_config.json original/params.json onnx/config.json model.gguf",
            "config.json tokenizer.json tokenizer_config.json generation_config.json \
             special_tokens_map.json added_tokens.json chat_template.jinja \
             additional_chat_templates/tool_use.jinja",
        );
        check_description("config.json vocab.json merges.txt", "config.json vocab.json merges.txt");
        check_description("config.json tokenizer.model", "config.json tokenizer.model");
        let error = description(&names("model.gguf")).unwrap_err();
        assert!(error.contains("config.json; a GGUF file is served from its path"), "{error}");
    }

    fn index(shards: &[&str]) -> Vec<u8> {
        let map: serde_json::Map<_, _> =
            shards.iter().enumerate().map(|(i, s)| (i.to_string(), (*s).into())).collect();
        serde_json::json!({ "weight_map": map }).to_string().into_bytes()
    }

    #[test]
    fn weights_are_the_shards_that_the_index_names_or_the_single_file() {
        let shards = "m-1.safetensors m-2.safetensors m-3.safetensors model.safetensors";
        let found = weights(&names(shards), Some(&index(&["m-1.safetensors", "m-2.safetensors"])));
        assert_eq!(found.unwrap(), ["m-1.safetensors", "m-2.safetensors"]);
        let found = weights(&names("model.safetensors consolidated.safetensors"), None);
        assert_eq!(found.unwrap(), ["model.safetensors"]);
        let leftover = weights(&names(shards), Some(&index(&["gone.safetensors"])));
        assert_eq!(leftover.unwrap(), ["model.safetensors"]);
    }

    #[test]
    fn weights_that_cannot_be_read_are_named() {
        let cases: [(&str, Option<Vec<u8>>, &str); 8] = [
            ("pytorch_model.bin", None, "pytorch_model.bin"),
            ("m.gguf", None, "`m.gguf` is served from its path"),
            ("consolidated.safetensors", None, "consolidated.safetensors"),
            ("x", Some(b"[]".to_vec()), "cannot be read"),
            ("x", Some(index(&[])), "names no weights"),
            ("x", Some(index(&["../x.safetensors"])), "../x.safetensors"),
            ("x", Some(index(&["pytorch_model.bin"])), "pytorch_model.bin"),
            ("x", Some(index(&["gone.safetensors"])), "gone.safetensors"),
        ];
        for (listed, index, named) in cases {
            let error = weights(&names(listed), index.as_deref()).unwrap_err();
            assert!(error.contains(named) && !error.contains('\n'), "{error}");
        }
    }
}
