//! The sampling that a checkpoint's authors recommend, and the ids that end its sequences.
//!
//! A request's own values always win over these. As in vLLM, `temperature`, `top_p`, `top_k`,
//! `min_p`, `repetition_penalty` and `max_new_tokens` are taken, and beside them `typical_p`; a
//! file without `do_sample` recommends sampling. Unlike vLLM, which does not read it, an explicit
//! `do_sample: false` is greedy decoding, as in Transformers: the temperature is 0, and what only
//! sampling reads is not taken.
//!
//! What cannot be honoured is listed, for a warning, and does not keep a model from starting:
//! values out of range, and other keys that would change the texts in Transformers. Ids that end
//! a text are no recommendation: malformed ones are an error.

use serde_json::Value;

use super::TextError;

/// Above this, probabilities are as good as equal.
pub(crate) const MAX_TEMPERATURE: f64 = 100.0;
/// Above this, a token that is there is as good as banned.
pub(crate) const MAX_REPETITION_PENALTY: f64 = 100.0;

/// Characters of an ignored value that are shown.
const MAX_SHOWN: usize = 60;

/// What `generation_config.json` says; `None` where it says nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationDefaults {
    /// In `0..=100`; 0 where the checkpoint asks for greedy decoding (`do_sample: false`).
    pub temperature: Option<f32>,
    /// Nucleus sampling's share of the probability, in `0..=1`.
    pub top_p: Option<f32>,
    /// How many tokens are kept; 0, which means all, is kept as it is.
    pub top_k: Option<u32>,
    /// The least probability, relative to the most probable token's, in `0..=1`.
    pub min_p: Option<f32>,
    /// Locally typical sampling's share of the probability, above 0 and at most 1.
    pub typical_p: Option<f32>,
    /// Above 0 and at most 100; 1 changes nothing.
    pub repetition_penalty: Option<f32>,
    /// Tokens of an answer at most, at least 1, where a chat request does not say.
    pub max_new_tokens: Option<u32>,
    /// Ids that end a sequence, without duplicates.
    pub eos_token_ids: Vec<u32>,
}

/// A key of `generation_config.json` that would change the texts and is not honoured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ignored {
    pub(super) key: &'static str,
    /// Its value, as JSON, cut short.
    pub(super) value: String,
}

impl Ignored {
    fn new(key: &'static str, value: &Value) -> Self {
        Ignored { key, value: value.to_string().chars().take(MAX_SHOWN).collect() }
    }
}

impl GenerationDefaults {
    /// `Null` stands for a missing file.
    pub(super) fn read(
        generation_config: &Value,
        config: &Value,
    ) -> Result<(Self, Vec<Ignored>), TextError> {
        let mut file = Recommendation { values: generation_config, ignored: Vec::new() };
        let mut defaults = if generation_config["do_sample"].as_bool() == Some(false) {
            GenerationDefaults { temperature: Some(0.0), ..GenerationDefaults::default() }
        } else {
            GenerationDefaults {
                temperature: file.number("temperature", |t| (0.0..=MAX_TEMPERATURE).contains(&t)),
                top_p: file.number("top_p", |p| (0.0..=1.0).contains(&p)),
                top_k: file.top_k(),
                min_p: file.number("min_p", |p| (0.0..=1.0).contains(&p)),
                typical_p: file.number("typical_p", |p| p > 0.0 && p <= 1.0),
                ..GenerationDefaults::default()
            }
        };
        defaults.repetition_penalty =
            file.number("repetition_penalty", |r| r > 0.0 && r <= MAX_REPETITION_PENALTY);
        defaults.max_new_tokens = file.integer("max_new_tokens").filter(|count| *count > 0);
        file.ignore_unsupported();
        for (file, key, value) in [
            ("generation_config.json", "eos_token_id", &generation_config["eos_token_id"]),
            ("config.json", "eos_token_id", &config["eos_token_id"]),
            ("config.json", "text_config.eos_token_id", &config["text_config"]["eos_token_id"]),
        ] {
            let ids = token_ids(value).ok_or_else(|| TextError::Invalid {
                file: file.to_owned(),
                reason: format!("{key} must be a token id or a list of these, not {value}"),
            })?;
            ids.into_iter().for_each(|id| defaults.add_eos_token_id(Some(id)));
        }
        Ok((defaults, file.ignored))
    }

    pub(super) fn add_eos_token_id(&mut self, id: Option<u32>) {
        if let Some(id) = id
            && !self.eos_token_ids.contains(&id)
        {
            self.eos_token_ids.push(id);
        }
    }

    /// Nothing recommended; what ends a text still ends it.
    pub(super) fn only_eos(self) -> Self {
        GenerationDefaults { eos_token_ids: self.eos_token_ids, ..GenerationDefaults::default() }
    }
}

/// `generation_config.json` while it is read.
struct Recommendation<'a> {
    values: &'a Value,
    ignored: Vec<Ignored>,
}

impl Recommendation<'_> {
    fn number(&mut self, key: &'static str, is_valid: impl Fn(f64) -> bool) -> Option<f32> {
        let value = self.values.get(key).filter(|value| !value.is_null())?;
        let number = value.as_f64().filter(|number| is_valid(*number));
        if number.is_none() {
            self.ignored.push(Ignored::new(key, value));
        }
        // What is above 0 stays above it.
        number.map(|number| match number as f32 {
            0.0 if number > 0.0 => f32::MIN_POSITIVE,
            number => number,
        })
    }

    fn integer(&mut self, key: &'static str) -> Option<u32> {
        let value = self.values.get(key).filter(|value| !value.is_null())?;
        let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
        if number.is_none() {
            self.ignored.push(Ignored::new(key, value));
        }
        number
    }

    fn top_k(&mut self) -> Option<u32> {
        // Both 0 and -1 are written for "all".
        if self.values["top_k"] == -1 { Some(0) } else { self.integer("top_k") }
    }

    fn ignore_unsupported(&mut self) {
        for (key, is_neutral) in UNSUPPORTED {
            if let Some(value) = self.values.get(key).filter(|value| !is_neutral(value)) {
                self.ignored.push(Ignored::new(key, value));
            }
        }
    }
}

/// Tells whether a value changes nothing.
type IsNeutral = fn(&Value) -> bool;

/// Keys of Transformers' `GenerationConfig` that change texts, or where they end, with the values
/// that do not. `max_length` is left out: most files repeat the context's length there.
const UNSUPPORTED: &[(&str, IsNeutral)] = &[
    ("num_beams", is_at_most_one),
    ("num_beam_groups", is_at_most_one),
    ("penalty_alpha", is_nothing),
    ("dola_layers", is_nothing),
    ("guidance_scale", is_at_most_one),
    ("sequence_bias", is_nothing),
    ("no_repeat_ngram_size", is_nothing),
    ("encoder_no_repeat_ngram_size", is_nothing),
    ("encoder_repetition_penalty", |value| is_nothing(value) || value.as_f64() == Some(1.0)),
    ("bad_words_ids", is_nothing),
    ("force_words_ids", is_nothing),
    ("constraints", is_nothing),
    ("min_length", is_nothing),
    ("min_new_tokens", is_nothing),
    ("forced_bos_token_id", is_nothing),
    ("forced_eos_token_id", is_nothing),
    ("forced_decoder_ids", is_nothing),
    ("suppress_tokens", is_nothing),
    ("begin_suppress_tokens", is_nothing),
    ("exponential_decay_length_penalty", is_nothing),
    ("top_h", is_nothing),
    ("epsilon_cutoff", is_nothing),
    ("eta_cutoff", is_nothing),
    ("watermarking_config", is_nothing),
    ("stop_strings", is_nothing),
    ("max_time", is_nothing),
];

fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::Array(values) => values.is_empty(),
        Value::Object(values) => values.is_empty(),
        _ => false,
    }
}

fn is_at_most_one(value: &Value) -> bool {
    is_nothing(value) || value.as_f64().is_some_and(|number| number <= 1.0)
}

/// Ids written as one number or as a list; none where there is nothing.
fn token_ids(value: &Value) -> Option<Vec<u32>> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Value::Null => Some(Vec::new()),
        Value::Array(ids) => ids.iter().map(id).collect(),
        one => id(one).map(|id| vec![id]),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(generation_config: &Value) -> (GenerationDefaults, Vec<Ignored>) {
        GenerationDefaults::read(generation_config, &Value::Null).unwrap()
    }

    fn keys(ignored: &[Ignored]) -> Vec<&'static str> {
        ignored.iter().map(|ignored| ignored.key).collect()
    }

    #[test]
    fn recommended_sampling_is_taken_unless_it_is_switched_off() {
        let values = json!({
            "temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.1, "typical_p": 0.9,
            "repetition_penalty": 1.05, "max_new_tokens": 2048,
        });
        let with = |do_sample: Value| {
            let mut values = values.clone();
            values["do_sample"] = do_sample;
            values
        };
        let greedy = GenerationDefaults {
            temperature: Some(0.0),
            // Not sampling alone.
            repetition_penalty: Some(1.05),
            max_new_tokens: Some(2048),
            ..GenerationDefaults::default()
        };
        let all = GenerationDefaults {
            temperature: Some(0.6),
            top_p: Some(0.95),
            top_k: Some(20),
            min_p: Some(0.1),
            typical_p: Some(0.9),
            ..greedy.clone()
        };
        let whole = GenerationDefaults {
            temperature: Some(1.0),
            top_k: Some(0),
            ..GenerationDefaults::default()
        };
        for (config, expected) in [
            (values.clone(), all.clone()),
            (with(json!(true)), all),
            (with(json!(false)), greedy),
            (json!({ "top_k": 0, "temperature": 1, "top_p": null }), whole.clone()),
            (json!({ "top_k": -1, "temperature": 1 }), whole),
            (json!({}), GenerationDefaults::default()),
            (Value::Null, GenerationDefaults::default()),
        ] {
            assert_eq!(read(&config), (expected, Vec::new()), "{config}");
        }
    }

    #[test]
    fn a_value_out_of_range_is_named_and_not_taken() {
        for (key, value) in [
            ("temperature", json!("hot")),
            ("temperature", json!(-0.5)),
            ("temperature", json!(101)),
            ("top_p", json!(1.5)),
            ("top_k", json!(-2)),
            ("top_k", json!(0.5)),
            ("min_p", json!(-1)),
            ("typical_p", json!(0)),
            ("typical_p", json!(1.01)),
            ("repetition_penalty", json!(0)),
            ("repetition_penalty", json!(1e9)),
            ("max_new_tokens", json!(-1)),
            ("max_new_tokens", json!("many")),
        ] {
            let (defaults, ignored) = read(&json!({ key: value }));
            assert_eq!(defaults, GenerationDefaults::default(), "{key} {value}");
            assert_eq!(ignored, [Ignored { key, value: value.to_string() }]);
        }
        let tiny = read(&json!({ "typical_p": 1e-60, "repetition_penalty": 1e-60 })).0;
        assert!(tiny.typical_p > Some(0.0) && tiny.repetition_penalty > Some(0.0));
    }

    #[test]
    fn what_would_change_a_text_and_is_not_supported_is_named() {
        let config = json!({
            "num_beams": 4, "no_repeat_ngram_size": 3, "bad_words_ids": [[5, 6]],
            "suppress_tokens": vec![1; 100], "forced_eos_token_id": 2, "min_new_tokens": 5,
            "guidance_scale": 1.5, "encoder_repetition_penalty": 1.2, "stop_strings": ["\n"],
            "pad_token_id": 0, "bos_token_id": 1, "transformers_version": "5.0.0",
            "max_length": 4096, "use_cache": true,
        });
        let (defaults, ignored) = read(&config);
        assert_eq!(defaults, GenerationDefaults::default());
        let expected = [
            "num_beams",
            "guidance_scale",
            "no_repeat_ngram_size",
            "encoder_repetition_penalty",
            "bad_words_ids",
            "min_new_tokens",
            "forced_eos_token_id",
            "suppress_tokens",
            "stop_strings",
        ];
        assert_eq!(keys(&ignored), expected);
        assert_eq!(ignored[0].value, "4");
        assert!(ignored.iter().all(|ignored| ignored.value.chars().count() <= MAX_SHOWN));
        // Every key at the value that Transformers gives it by default.
        let neutral = json!({
            "num_beams": 1, "num_beam_groups": 1, "penalty_alpha": null, "diversity_penalty": 0.0,
            "length_penalty": 1.0, "no_repeat_ngram_size": 0, "encoder_repetition_penalty": 1.0,
            "bad_words_ids": null, "min_length": 0, "min_new_tokens": null, "epsilon_cutoff": 0.0,
            "eta_cutoff": 0.0, "guidance_scale": null, "suppress_tokens": [], "sequence_bias": {},
            "early_stopping": false, "renormalize_logits": false, "stop_strings": null,
        });
        assert_eq!(keys(&read(&neutral).1), [""; 0]);
    }

    #[test]
    fn every_file_adds_its_eos_once() {
        for (generation_config, config, expected) in [
            (json!({ "eos_token_id": 7 }), Value::Null, &[7][..]),
            (json!({ "eos_token_id": [7, 8] }), json!({ "eos_token_id": 8 }), &[7, 8]),
            (Value::Null, json!({ "text_config": { "eos_token_id": [3] } }), &[3]),
            (json!({ "eos_token_id": [1, 1] }), json!({ "eos_token_id": null }), &[1]),
        ] {
            let (defaults, _) = GenerationDefaults::read(&generation_config, &config).unwrap();
            assert_eq!(defaults.eos_token_ids, expected, "{generation_config} {config}");
        }
    }

    #[test]
    fn eos_ids_that_are_none_are_an_error_that_names_the_file() {
        for (generation_config, config, expected) in [
            (
                json!({ "eos_token_id": "</s>" }),
                Value::Null,
                "generation_config.json is not usable: eos_token_id must be a token id or a list \
                 of these, not \"</s>\"",
            ),
            (
                Value::Null,
                json!({ "text_config": { "eos_token_id": [1, -1] } }),
                "config.json is not usable: text_config.eos_token_id must be a token id or a list \
                 of these, not [1,-1]",
            ),
        ] {
            let error = GenerationDefaults::read(&generation_config, &config).unwrap_err();
            assert_eq!(error.to_string(), expected);
        }
    }
}
