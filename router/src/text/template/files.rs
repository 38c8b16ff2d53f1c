//! Where a checkpoint keeps its chat templates, and which one counts.
//!
//! The default template is the first that is found of: `chat_template.jinja`, the `chat_template`
//! of `tokenizer_config.json`, that of `chat_template.json`. The template for conversations with
//! tools is `additional_chat_templates/tool_use.jinja`, or stands beside the default one in a
//! list of named templates. Other names (`rag`, ...) cannot be asked for, and are not read.

use serde_json::{Map, Value as Json};

use crate::text::ReadFile;
use crate::text::{TextError, read_text};

/// The name of the template for conversations without tools.
pub(super) const DEFAULT: &str = "default";
/// The name of the template for conversations with tools.
pub(super) const TOOL_USE: &str = "tool_use";

const DEFAULT_FILE: &str = "chat_template.jinja";
const TOOL_USE_FILE: &str = "additional_chat_templates/tool_use.jinja";

/// A template as it was found.
#[derive(Debug, PartialEq)]
pub(super) struct Source {
    /// [`DEFAULT`] or [`TOOL_USE`].
    pub(super) name: &'static str,
    /// The file that it stands in, for messages.
    pub(super) file: String,
    pub(super) text: String,
}

/// A JSON file that may hold templates, with its name.
pub(in crate::text) struct JsonFile<'a> {
    pub(in crate::text) name: &'a str,
    pub(in crate::text) json: &'a Json,
}

/// The checkpoint's templates. `given` comes before its own files, `json` behind them.
pub(super) fn find(
    read: &ReadFile<'_>,
    given: Option<JsonFile<'_>>,
    json: [JsonFile<'_>; 2],
) -> Result<Vec<Source>, TextError> {
    let given = given.map_or(Ok(Vec::new()), |file| in_json(&file))?;
    if !given.is_empty() {
        return Ok(given);
    }
    let file = |name, file: &'static str| -> Result<Option<Source>, TextError> {
        let text = read_text(read, file)?;
        Ok(text.map(|text| Source { name, file: file.to_owned(), text }))
    };
    let mut sources: Vec<Source> = file(DEFAULT, DEFAULT_FILE)?.into_iter().collect();
    for file in json {
        if sources.is_empty() {
            sources = in_json(&file)?;
        }
    }
    if let Some(tool_use) = file(TOOL_USE, TOOL_USE_FILE)? {
        sources.retain(|source| source.name != TOOL_USE);
        sources.push(tool_use);
    }
    Ok(sources)
}

/// The `chat_template` of a file: a string, or a list of `{name, template}`.
fn in_json(file: &JsonFile<'_>) -> Result<Vec<Source>, TextError> {
    let invalid = |reason: String| TextError::Invalid {
        file: file.name.to_owned(),
        reason: format!("chat_template: {reason}"),
    };
    let source =
        |name, text: &str| Source { name, file: file.name.to_owned(), text: text.to_owned() };
    let list = match &file.json["chat_template"] {
        Json::Null => return Ok(Vec::new()),
        Json::String(text) => return Ok(vec![source(DEFAULT, text)]),
        Json::Array(list) => list,
        _ => return Err(invalid("expected a string or a list of named templates".to_owned())),
    };
    let mut named = Vec::new();
    for entry in list {
        match (entry["name"].as_str(), entry["template"].as_str()) {
            (Some(name), Some(text)) => named.push((name, text)),
            _ => {
                let reason = "a named template needs the strings `name` and `template`";
                return Err(invalid(reason.to_owned()));
            }
        }
    }
    // A single template under another name is still the only choice.
    if let [(_, text)] = named.as_slice() {
        return Ok(vec![source(DEFAULT, text)]);
    }
    let sources = [DEFAULT, TOOL_USE].into_iter().filter_map(|name| {
        let (_, text) = named.iter().find(|(found, _)| *found == name)?;
        Some(source(name, text))
    });
    let sources: Vec<Source> = sources.collect();
    if !named.is_empty() && sources.first().is_none_or(|first| first.name != DEFAULT) {
        let names: Vec<&str> = named.iter().map(|(name, _)| *name).collect();
        return Err(invalid(format!("none of {} is named `default`", names.join(", "))));
    }
    Ok(sources)
}

/// The special tokens that a template may name (`bos_token`, ...), from the two files that list
/// them; a token is a string, or an object with its `content`.
pub(in crate::text) fn special_tokens(map: &Json, tokenizer_config: &Json) -> Map<String, Json> {
    let mut tokens = Map::new();
    for file in [map, tokenizer_config] {
        for (key, value) in file.as_object().into_iter().flatten() {
            let content = value.as_str().or_else(|| value["content"].as_str());
            if let Some(content) = content.filter(|_| key.ends_with("_token")) {
                tokens.insert(key.clone(), content.into());
            }
        }
    }
    tokens
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    type Files<'a> = &'a [(&'a str, &'a str)];

    fn find(
        files: Files<'_>,
        given: &Json,
        json: [&Json; 2],
    ) -> Result<Vec<(&'static str, String)>, TextError> {
        let read = |name: &str| {
            let file = files.iter().find(|(file, _)| *file == name);
            Ok(file.map(|(_, text)| text.as_bytes().to_vec()))
        };
        let given = JsonFile { name: "given.json", json: given };
        let [first, second] = json;
        let json = [
            JsonFile { name: "tokenizer_config.json", json: first },
            JsonFile { name: "chat_template.json", json: second },
        ];
        let sources = super::find(&read, Some(given), json)?;
        Ok(sources.into_iter().map(|source| (source.name, source.text)).collect())
    }

    #[test]
    fn a_template_is_found_wherever_a_checkpoint_keeps_it() {
        let text = |text: &str| json!({ "chat_template": text });
        let named = |list: &[(&str, &str)]| -> Json {
            let entry = |(name, text): &(&str, &str)| json!({ "name": name, "template": text });
            json!({ "chat_template": list.iter().map(entry).collect::<Vec<_>>() })
        };
        let list = named(&[("rag", "R"), ("tool_use", "T"), ("default", "D")]);
        let file: Files<'_> = &[(DEFAULT_FILE, "F")];
        let both: Files<'_> = &[(DEFAULT_FILE, "F"), (TOOL_USE_FILE, "U")];
        let tools: Files<'_> = &[(TOOL_USE_FILE, "U")];
        let null = Json::Null;
        for (files, given, json, expected) in [
            (file, &null, [&text("C"), &text("L")], &[(DEFAULT, "F")][..]),
            (both, &null, [&list, &null], &[(DEFAULT, "F"), (TOOL_USE, "U")]),
            (tools, &null, [&list, &null], &[(DEFAULT, "D"), (TOOL_USE, "U")]),
            (tools, &null, [&text("C"), &text("L")], &[(DEFAULT, "C"), (TOOL_USE, "U")]),
            (&[], &null, [&null, &text("L")], &[(DEFAULT, "L")]),
            (&[], &null, [&list, &text("L")], &[(DEFAULT, "D"), (TOOL_USE, "T")]),
            (&[], &null, [&named(&[("chat", "O")]), &null], &[(DEFAULT, "O")]),
            (both, &text("G"), [&list, &null], &[(DEFAULT, "G")]),
            (file, &json!({ "model_max_length": 7 }), [&null, &null], &[(DEFAULT, "F")]),
            (&[], &null, [&json!({ "chat_template": [] }), &json!({})], &[]),
        ] {
            let found = find(files, given, json).unwrap();
            let expected: Vec<_> = expected.iter().map(|(n, t)| (*n, (*t).to_owned())).collect();
            assert_eq!(found, expected, "{files:?} {given} {json:?}");
        }
    }

    #[test]
    fn a_template_that_cannot_be_found_out_names_its_file() {
        for (template, reason) in [
            (json!(7), "expected a string or a list"),
            (json!([{ "name": "default" }]), "needs the strings `name` and `template`"),
            (
                json!([{ "name": "a", "template": "" }, { "name": "b", "template": "" }]),
                "none of a, b is named `default`",
            ),
        ] {
            let json = json!({ "chat_template": template });
            let error = find(&[], &Json::Null, [&json, &Json::Null]).unwrap_err().to_string();
            assert!(error.starts_with("tokenizer_config.json is not usable: chat_template: "));
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn special_tokens_are_read_from_both_files_in_both_spellings() {
        let map =
            json!({ "bos_token": "<s>", "eos_token": { "content": "</s>", "lstrip": false } });
        let config = json!({ "eos_token": "<end>", "pad_token": null, "add_bos_token": true });
        let tokens = special_tokens(&map, &config);
        assert_eq!(Json::Object(tokens), json!({ "bos_token": "<s>", "eos_token": "<end>" }));
    }
}
