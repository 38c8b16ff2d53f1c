//! Strings to tokens and back.
//!
//! A [`TextModel`] is everything that a checkpoint says about text: its tokenizer, its chat
//! template, its special tokens and the sampling that its authors recommend. It is read once,
//! never changes, and is shared by all requests. What moves lives in small per-request state
//! machines: a [`Decoder`] turns ids into characters, a [`StopMatcher`] looks for stop strings.
//!
//! This module knows ids, strings and JSON messages. It does not know requests, sequences or
//! HTTP. Encoding and rendering take milliseconds for long prompts: async code goes through
//! [`EncoderPool`].

mod answer;
mod constraint;
mod decode;
mod defaults;
#[cfg(test)]
mod fixtures;
mod infill;
mod lark;
mod pool;
mod reasoning;
mod stop;
mod template;
#[cfg(test)]
mod testing;
mod tokenizer;
mod tools;

use std::io;
use std::sync::Arc;

use millstream_proto::Grammar;
use serde_json::{Map, Value};
use tracing::warn;

pub use answer::{AnswerFormats, AnswerReader, FormatChoice};
pub use constraint::Constraint;
pub use decode::Decoder;
pub use defaults::GenerationDefaults;
pub(crate) use defaults::{MAX_REPETITION_PENALTY, MAX_TEMPERATURE};
pub use pool::{EncoderPool, PoolError};
pub use reasoning::{Opening, ReasoningFormat};
pub use stop::StopMatcher;
pub use template::{ChatPrompt, TemplateError};
pub use tokenizer::TokenSpan;
pub use tools::{CallRules, Part, Parts, Tool, ToolFormat};

use constraint::Checker;
use defaults::Ignored;
use infill::Infill;
use template::{ChatTemplates, Globals, JsonFile};
use tokenizer::TextTokenizer;

/// Reads one file of a checkpoint by name; `None` where the checkpoint has no such file.
pub type ReadFile<'a> = dyn Fn(&str) -> io::Result<Option<Vec<u8>>> + 'a;

/// What a checkpoint says about text; immutable and shared.
pub struct TextModel {
    tokenizer: Arc<TextTokenizer>,
    templates: Option<ChatTemplates>,
    defaults: GenerationDefaults,
    /// The id that begins a text, where the checkpoint names one.
    bos_token_id: Option<u32>,
    constraints: Checker,
    infill: Option<Infill>,
    formats: AnswerFormats,
}

/// What an operator says in place of a checkpoint's own files.
#[derive(Clone, Debug, Default)]
pub struct TextOverrides {
    /// A file to read instead of `tokenizer_config.json`: its name, for messages, and its
    /// content. Its chat template goes before all others.
    pub tokenizer_config: Option<(String, Vec<u8>)>,
    /// Variables that chat templates see where a request does not set them
    /// (`{"enable_thinking": false}`).
    pub chat_template_kwargs: Map<String, Value>,
    /// How tool calls are written.
    pub tool_format: FormatChoice<ToolFormat>,
    /// How reasoning is marked.
    pub reasoning_format: FormatChoice<ReasoningFormat>,
}

/// Why a checkpoint's text files, or a text, could not be used.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// A file could not be read.
    #[error("cannot read {file}: {source}")]
    Read {
        /// The file's name in the checkpoint.
        file: String,
        /// What the system said.
        source: io::Error,
    },
    /// A file is there, and says something that we cannot use.
    #[error("{file} is not usable: {reason}")]
    Invalid {
        /// The file's name in the checkpoint, or as it was given.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The checkpoint has no tokenizer that can be read.
    #[error(
        "the checkpoint has no tokenizer.json{found}; convert its tokenizer with Transformers \
         (AutoTokenizer.from_pretrained(..).save_pretrained(..)) and start again"
    )]
    NoTokenizer {
        /// What it has instead, in words that follow the file's name; or nothing.
        found: String,
    },
    /// The tokenizer refused a text.
    #[error("cannot encode the text: {0}")]
    Encode(String),
}

impl TextModel {
    /// Reads `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json`, the chat
    /// template (`chat_template.jinja` and `additional_chat_templates/tool_use.jinja`, or inside
    /// `tokenizer_config.json` or `chat_template.json`), `generation_config.json` and
    /// `config.json`; all but the first may be missing.
    pub fn load(read: &ReadFile<'_>) -> Result<TextModel, TextError> {
        Self::load_with(read, TextOverrides::default())
    }

    /// As [`load`](Self::load), where the operator has a word.
    pub fn load_with(
        read: &ReadFile<'_>,
        overrides: TextOverrides,
    ) -> Result<TextModel, TextError> {
        let Some(json) = read_file(read, "tokenizer.json")? else { return Err(no_tokenizer(read)) };
        let tokenizer = TextTokenizer::from_json(&json)?;
        let given = match &overrides.tokenizer_config {
            Some((name, bytes)) => Some((name.as_str(), parse_json(name, bytes)?)),
            None => None,
        };
        let own_config = match given {
            Some(_) => Value::Null,
            None => read_json(read, "tokenizer_config.json")?,
        };
        let config = given.as_ref().map_or(&own_config, |(_, given)| given);
        let special_tokens =
            template::special_tokens(&read_json(read, "special_tokens_map.json")?, config);
        let token_id = |key| tokenizer.token_id(special_tokens.get(key)?.as_str()?);
        let (mut defaults, ignored) = GenerationDefaults::read(
            &read_json(read, "generation_config.json")?,
            &read_json(read, "config.json")?,
        )?;
        for Ignored { key, value } in ignored {
            warn!(key, value, "generation_config.json asks for what is not supported, ignored");
        }
        // A base checkpoint's configuration often names the end of the document, its tokenizer
        // the end of the turn: both end a sequence.
        defaults.add_eos_token_id(token_id("eos_token"));
        let bos_token_id = token_id("bos_token");

        let processor = read_json(read, "chat_template.json")?;
        let given = given.as_ref().map(|(name, json)| JsonFile { name, json });
        let own = [
            JsonFile { name: "tokenizer_config.json", json: &own_config },
            JsonFile { name: "chat_template.json", json: &processor },
        ];
        let globals = Globals { special_tokens, kwargs: overrides.chat_template_kwargs };
        let templates = ChatTemplates::load(read, given, own, globals)?;
        let constraints = Checker::new(tokenizer.special_tokens(), tokenizer.num_ids());
        let detected = templates.as_ref().map(|templates| templates.formats).unwrap_or_default();
        let formats = AnswerFormats {
            tools: overrides.tool_format.or_template(detected.tools),
            reasoning: overrides.reasoning_format.or_template(detected.reasoning),
        };
        let (infill, tokenizer) = (Infill::find(&tokenizer), Arc::new(tokenizer));
        Ok(TextModel { tokenizer, templates, defaults, bos_token_id, constraints, infill, formats })
    }

    /// For dummy weights without a tokenizer: an id below 256 is that byte, any other id reads
    /// ` t<id>`. There is no chat template.
    pub fn bytes_fallback() -> TextModel {
        TextModel {
            tokenizer: Arc::new(TextTokenizer::bytes()),
            templates: None,
            defaults: GenerationDefaults::default(),
            bos_token_id: None,
            constraints: Checker::new(Vec::new(), 0),
            infill: None,
            formats: AnswerFormats::default(),
        }
    }

    /// The ids of `text`, never truncated or padded. `add_special_tokens` is for plain prompts;
    /// a rendered chat already holds what its template wants, so it passes `false`.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, TextError> {
        self.tokenizer.encode(text, add_special_tokens)
    }

    /// The tokens of `text`, each with its place in it.
    pub fn encode_spans(
        &self,
        text: &str,
        add_special_tokens: bool,
    ) -> Result<Vec<TokenSpan>, TextError> {
        self.tokenizer.encode_spans(text, add_special_tokens)
    }

    /// The ids of a rendered chat. A BOS that the template wrote and the tokenizer adds as well
    /// stands there once.
    pub fn encode_chat(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, TextError> {
        let mut ids = self.tokenizer.encode(text, add_special_tokens)?;
        if add_special_tokens
            && let (Some(bos), [first, second, ..]) = (self.bos_token_id, ids.as_slice())
            && *first == bos
            && *second == bos
        {
            ids.remove(0);
        }
        Ok(ids)
    }

    /// The ids of a prompt whose answer belongs between `before` and `after`; `None` for a model
    /// that was not made to fill in.
    pub fn encode_infill(
        &self,
        before: &str,
        after: &str,
        add_special_tokens: bool,
    ) -> Result<Option<Vec<u32>>, TextError> {
        let Some(infill) = &self.infill else { return Ok(None) };
        let beginning = if add_special_tokens { self.encode("", true)? } else { Vec::new() };
        let (before, after) = (self.encode(before, false)?, self.encode(after, false)?);
        Ok(Some(infill.prompt(&beginning, &before, &after)))
    }

    /// The prompt that the model's chat template makes of a conversation.
    pub fn render_chat(&self, prompt: &ChatPrompt<'_>) -> Result<String, TemplateError> {
        self.templates.as_ref().ok_or(TemplateError::NoTemplate)?.render(prompt)
    }

    /// Whether [`render_chat`](Self::render_chat) can work at all.
    pub fn has_chat_template(&self) -> bool {
        self.templates.is_some()
    }

    /// A decoder for one sequence's output, as a text of its own: a leading space that the
    /// tokenizer puts before every first word is not shown. This is what a chat wants.
    pub fn decoder(&self, skip_special_tokens: bool) -> Decoder {
        Decoder::new(Arc::clone(&self.tokenizer), &[], skip_special_tokens)
    }

    /// A decoder for one sequence's output as the continuation of `prompt`: prompt and output
    /// joined are one text. This is what a completion wants.
    pub fn decoder_after(&self, prompt: &[u32], skip_special_tokens: bool) -> Decoder {
        Decoder::new(Arc::clone(&self.tokenizer), prompt, skip_special_tokens)
    }

    /// One token as shown in log-probabilities: its text (U+FFFD for a part of a character) and
    /// its bytes. Both are empty for an id that the tokenizer does not know.
    pub fn token_text(&self, id: u32) -> (String, Vec<u8>) {
        let bytes = self.tokenizer.token_bytes(id);
        (String::from_utf8_lossy(&bytes).into_owned(), bytes)
    }

    /// The grammar that makes a worker follow `constraint`, or why none can: words that continue a
    /// sentence about the field that asked for it. Takes milliseconds for what is new.
    pub fn accept(&self, constraint: &Constraint) -> Result<Grammar, String> {
        self.constraints.accept(constraint)
    }

    /// How the vocabulary spells a token, which is not always as the text that it stands for.
    pub fn token_name(&self, id: u32) -> String {
        self.tokenizer.token_name(id).unwrap_or_else(|| self.token_text(id).0)
    }

    /// Whether a token is one of the tokenizer's special ones, which a text does not show.
    pub fn is_special(&self, id: u32) -> bool {
        self.tokenizer.is_special(id)
    }

    /// The text of a whole list of ids.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> String {
        let mut decoder = self.decoder(skip_special_tokens);
        let mut text = String::new();
        ids.iter().for_each(|id| decoder.push(*id, &mut text));
        decoder.finish(&mut text);
        text
    }

    /// The same without the sampling that the checkpoint recommends. What ends a text stays.
    pub fn without_recommendations(self) -> TextModel {
        TextModel { defaults: self.defaults.only_eos(), ..self }
    }

    /// The sampling that the checkpoint recommends, and what ends its sequences.
    pub fn generation_defaults(&self) -> &GenerationDefaults {
        &self.defaults
    }
}

fn read_file(read: &ReadFile<'_>, file: &str) -> Result<Option<Vec<u8>>, TextError> {
    read(file).map_err(|source| TextError::Read { file: file.to_owned(), source })
}

fn read_text(read: &ReadFile<'_>, file: &str) -> Result<Option<String>, TextError> {
    let Some(bytes) = read_file(read, file)? else { return Ok(None) };
    String::from_utf8(bytes)
        .map(Some)
        .map_err(|error| TextError::Invalid { file: file.to_owned(), reason: error.to_string() })
}

/// A JSON file; `Null` where it is missing, so that every lookup in it finds nothing.
fn read_json(read: &ReadFile<'_>, file: &str) -> Result<Value, TextError> {
    read_file(read, file)?.map_or(Ok(Value::Null), |bytes| parse_json(file, &bytes))
}

fn parse_json(file: &str, bytes: &[u8]) -> Result<Value, TextError> {
    serde_json::from_slice(bytes)
        .map_err(|error| TextError::Invalid { file: file.to_owned(), reason: error.to_string() })
}

/// Tokenizers in other forms: a file that shows it, and what it is.
const OTHER_TOKENIZERS: [(&str, &str); 6] = [
    ("tokenizer.model", "a SentencePiece model"),
    ("spiece.model", "a SentencePiece model"),
    ("sentencepiece.bpe.model", "a SentencePiece model"),
    ("tekken.json", "Mistral's own format"),
    ("tiktoken.model", "a tiktoken vocabulary"),
    ("vocab.json", "a vocabulary that does not say how text is cut into words"),
];

fn no_tokenizer(read: &ReadFile<'_>) -> TextError {
    let is_there = |file: &str| read(file).is_ok_and(|bytes| bytes.is_some());
    let other = OTHER_TOKENIZERS.iter().find(|(file, _)| is_there(file));
    let found = other.map_or(String::new(), |(file, kind)| format!(", only {file} ({kind})"));
    TextError::NoTokenizer { found }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn load(files: &[(&str, String)]) -> Result<TextModel, TextError> {
        TextModel::load(&|name| {
            let file = files.iter().find(|(file, _)| *file == name);
            Ok(file.map(|(_, content)| content.clone().into_bytes()))
        })
    }

    #[test]
    fn a_checkpoint_is_read_file_by_file() {
        let config = json!({
            "bos_token": "<s>",
            "eos_token": { "content": "</s>" },
            "chat_template": "{{ bos_token }}{% for m in messages %}the{% endfor %}",
        });
        let model = load(&[
            ("tokenizer.json", testing::sentencepiece()),
            ("tokenizer_config.json", config.to_string()),
            ("generation_config.json", json!({ "eos_token_id": 7, "top_p": 0.5 }).to_string()),
            ("config.json", json!({ "eos_token_id": [7, 9] }).to_string()),
        ])
        .unwrap();
        assert_eq!(model.generation_defaults().top_p, Some(0.5));
        assert_eq!(model.generation_defaults().eos_token_ids, [7, 9, 2]);
        let model = model.without_recommendations();
        let eos_alone =
            GenerationDefaults { eos_token_ids: vec![7, 9, 2], ..GenerationDefaults::default() };
        assert_eq!(*model.generation_defaults(), eos_alone);

        assert!(model.has_chat_template());
        let prompt = ChatPrompt {
            messages: &[json!({ "role": "user", "content": "Hi" })],
            tools: None,
            add_generation_prompt: true,
            continue_final_message: false,
            kwargs: &Map::new(),
        };
        let text = model.render_chat(&prompt).unwrap();
        // The template wrote the BOS, and no second one is added.
        let ids = model.encode(&text, false).unwrap();
        assert_eq!(ids.iter().filter(|&&id| id == 1).count(), 1);

        let mut out = String::new();
        let mut decoder = model.decoder(true);
        ids.iter().for_each(|&id| decoder.push(id, &mut out));
        assert_eq!(out, "the");
        assert_eq!(model.token_text(1), ("<s>".to_owned(), b"<s>".to_vec()));
    }

    #[test]
    fn a_checkpoint_without_templates_still_completes() {
        let model = load(&[("tokenizer.json", testing::byte_level())]).unwrap();
        assert!(!model.has_chat_template());
        assert_eq!(*model.generation_defaults(), GenerationDefaults::default());
        let half = model.encode("é🚀", false).unwrap()[1];
        assert_eq!(model.token_text(half), ("\u{fffd}".to_owned(), b"\xf0\x9f".to_vec()));
    }

    #[test]
    fn what_is_missing_or_broken_is_named() {
        let tokenizer = ("tokenizer.json", testing::byte_level());
        for (files, expected) in [
            (vec![], "the checkpoint has no tokenizer.json; convert"),
            (
                vec![("tokenizer.model", String::new())],
                "the checkpoint has no tokenizer.json, only tokenizer.model (a SentencePiece \
                 model); convert its tokenizer with Transformers",
            ),
            (
                vec![tokenizer.clone(), ("chat_template.jinja", "{% if %}".to_owned())],
                "chat_template.jinja is not usable: the chat template does not compile: line 1: ",
            ),
            (
                vec![tokenizer.clone(), ("config.json", "{".to_owned())],
                "config.json is not usable: ",
            ),
            (
                vec![tokenizer, ("tokenizer_config.json", r#"{"chat_template":1}"#.to_owned())],
                "tokenizer_config.json is not usable: chat_template: ",
            ),
        ] {
            let error = load(&files).err().unwrap().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
        let unreadable = |_: &str| Err(io::Error::other("no disk"));
        let error = TextModel::load(&unreadable).err().unwrap().to_string();
        assert_eq!(error, "cannot read tokenizer.json: no disk");
    }

    #[test]
    fn an_operator_goes_before_the_checkpoint_and_a_request_before_both() {
        let config = json!({ "eos_token": "</s>", "chat_template": "{{ mood }}{{ eos_token }}" });
        let overrides = TextOverrides {
            tokenizer_config: Some(("/etc/config.json".to_owned(), config.to_string().into())),
            chat_template_kwargs: Map::from_iter([("mood".to_owned(), "calm".into())]),
            ..TextOverrides::default()
        };
        let files = [
            ("tokenizer.json", testing::sentencepiece()),
            ("tokenizer_config.json", json!({ "eos_token": "<s>" }).to_string()),
            ("chat_template.jinja", "own".to_owned()),
        ];
        let read = |name: &str| {
            let file = files.iter().find(|(file, _)| *file == name);
            Ok(file.map(|(_, content)| content.clone().into_bytes()))
        };
        let model = TextModel::load_with(&read, overrides).unwrap();
        assert_eq!(model.generation_defaults().eos_token_ids, [2]);
        for (kwargs, expected) in [(json!({}), "calm</s>"), (json!({ "mood": "wild" }), "wild</s>")]
        {
            let prompt = ChatPrompt {
                messages: &[json!({ "role": "user", "content": "Hi" })],
                tools: None,
                add_generation_prompt: true,
                continue_final_message: false,
                kwargs: kwargs.as_object().unwrap(),
            };
            assert_eq!(model.render_chat(&prompt).unwrap(), expected);
        }
        let broken = TextOverrides {
            tokenizer_config: Some(("/etc/config.json".to_owned(), b"{".to_vec())),
            ..TextOverrides::default()
        };
        let error = TextModel::load_with(&read, broken).err().unwrap().to_string();
        assert!(error.starts_with("/etc/config.json is not usable: EOF"), "{error}");
    }

    #[test]
    fn a_model_of_bytes_needs_no_files() {
        let model = TextModel::bytes_fallback();
        let ids = model.encode("né", true).unwrap();
        let mut out = String::new();
        let mut decoder = model.decoder(true);
        ids.iter().chain(&[300]).for_each(|&id| decoder.push(id, &mut out));
        assert_eq!(out, "né t300");
        assert_eq!(model.token_text(300), (" t300".to_owned(), b" t300".to_vec()));
    }
}
