//! What a request of TGI's API says.
//!
//! Recommendations of the checkpoint mean nothing here, as in TGI; `null` is absent. Fields of
//! OpenAI's extensions that TGI does not have (`min_p`, `presence_penalty`, `logit_bias`,
//! `min_tokens`) are read as there.
//!
//! | parameter | values | without it |
//! |---|---|---|
//! | `do_sample` | true: tokens are drawn | false; true where no `parameters` are given |
//! | `temperature` | 0 to 100; TGI refuses 0, which is greedy here | 1 |
//! | `top_k` | from -1; TGI refuses 0 and -1, which keep all here | all |
//! | `top_p` | 0 to 1; TGI refuses 1, which keeps all here | 1 |
//! | `typical_p` | above 0, at most 1; TGI refuses 1 | 1 |
//! | `repetition_penalty` | above 0, at most 100 | 1 |
//! | `frequency_penalty` | -2 to 2 | 0 |
//! | `seed` | 64 bits; TGI refuses it together with `best_of` | any |
//! | `best_of` | 1 to the limit; above 1 it needs sampling, and no stream | 1 |
//! | `max_new_tokens` | from 1; at least 1024 of them must fit the context | what fits |
//! | `stop` | a list of strings up to the limit; the text ends with the one that is found | none |
//! | `truncate` | the last so many tokens of the prompt are read | all |
//! | `return_full_text` | true: `generated_text` begins with `inputs` | false, for `POST /` true |
//! | `details` | true: `details` are told | false |
//! | `top_n_tokens` | alternatives for each token in `details` | 0 |
//! | `grammar` | `type` (json, json_object, json_schema or regex) and `value` | none |
//! | `decoder_input_details` | true: `details` tell the prompt's tokens, not in a stream | false |
//! | `watermark`, `adapter_id` | false and null | |
//!
//! As in TGI, `temperature`, `top_k`, `top_p` and `typical_p` draw without `do_sample` where their
//! value is not the neutral one, even beside `do_sample: false`.

use serde_json::{Value, json};

use crate::api::constraints::Asked;
use crate::api::error::ApiError;
use crate::api::fields::{Fields, must_be, quoted, shown};
use crate::api::options::{MaxTokens, Options, Rules, read_seed, read_stop};
use crate::api::sampling::read_sampling;
use crate::engine::SamplingParams;
use crate::text::{Constraint, GenerationDefaults};

/// In which form a request is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// `POST /generate`: one object.
    Object,
    /// `POST /generate_stream`: events.
    Stream,
    /// `POST /`: a list of one object, or events where the request says `stream`.
    Compat,
}

/// A validated request.
#[derive(Debug)]
pub(crate) struct GenerateRequest {
    pub(crate) inputs: String,
    pub(crate) options: Options,
    pub(crate) details: bool,
    /// Whether the tokens of the prompt are told too.
    pub(crate) return_full_text: bool,
    /// Tokens of the prompt that are read, from its end.
    pub(crate) truncate: Option<usize>,
}

impl GenerateRequest {
    pub(crate) fn read(
        fields: &mut Fields,
        rules: &Rules<'_>,
        form: Form,
    ) -> Result<GenerateRequest, ApiError> {
        let inputs = read_inputs(fields)?;
        let stream = match form {
            Form::Object => false,
            Form::Stream => true,
            Form::Compat => fields.flag("stream", false)?,
        };
        let given = fields.object("parameters")?;
        let samples_by_default = given.is_none();
        let mut parameters = Fields::inside("parameters.", given.unwrap_or_default());
        refuse_unsupported(&mut parameters)?;
        let details = parameters.flag("details", false)?;
        let mut sampling = read_tgi_sampling(&mut parameters, rules, samples_by_default)?;
        let best_of = read_best_of(&mut parameters, rules, stream, sampling.temperature > 0.0)?;
        let max_top = rules.limits.max_top_logprobs as i64;
        let top_n_tokens = parameters.integer("top_n_tokens", 0..=max_top)?.unwrap_or(0);
        let tells_tokens = details || stream;
        let decoder_input_details = read_decoder_input_details(&mut parameters, stream)?;
        sampling.logprobs = tells_tokens || best_of > 1;
        sampling.top_logprobs = if tells_tokens { top_n_tokens as u32 } else { 0 };
        let max_new_tokens = parameters.integer("max_new_tokens", 1..=i64::from(u32::MAX))?;
        let max_tokens =
            max_new_tokens.map(|count| MaxTokens { field: "max_new_tokens", count: count as u32 });
        let options = Options {
            model: rules.names[0].clone(),
            num_choices: best_of,
            stream,
            include_usage: false,
            max_tokens,
            sampling,
            seed: read_seed(&mut parameters)?,
            stop: read_stop(&mut parameters, rules.limits.max_stop_sequences)?,
            include_stop: true,
            stop_token_ids: Vec::new(),
            ignore_eos: false,
            skip_special_tokens: true,
            cache_salt: None,
            constraint: read_grammar(&mut parameters)?,
            prompt_logprobs: decoder_input_details,
            return_token_ids: false,
        };
        let truncate = read_truncate(&mut parameters)?;
        let return_full_text = parameters.flag("return_full_text", form == Form::Compat)?;
        fields.keep(parameters);
        Ok(GenerateRequest { inputs, options, details, return_full_text, truncate })
    }
}

/// Reads `inputs`: a text that is not empty.
pub(super) fn read_inputs(fields: &mut Fields) -> Result<String, ApiError> {
    match fields.string("inputs")? {
        None => Err(ApiError::field("inputs", "must be given")),
        Some(inputs) if inputs.is_empty() => Err(ApiError::field("inputs", "must not be empty")),
        Some(inputs) => Ok(inputs),
    }
}

/// Reads `truncate`.
pub(super) fn read_truncate(parameters: &mut Fields) -> Result<Option<usize>, ApiError> {
    let truncate = parameters.integer("truncate", 1..=i64::from(u32::MAX))?;
    Ok(truncate.map(|truncate| truncate as usize))
}

/// Whether the prompt's tokens are told, with their log-probabilities.
fn read_decoder_input_details(parameters: &mut Fields, stream: bool) -> Result<bool, ApiError> {
    let field = "decoder_input_details";
    match parameters.flag(field, false)? {
        true if stream => Err(ApiError::field(field, "(true) cannot be streamed")),
        told => Ok(told),
    }
}

fn refuse_unsupported(parameters: &mut Fields) -> Result<(), ApiError> {
    if parameters.flag("watermark", false)? {
        return Err(ApiError::Unsupported { field: "watermark", value: "true".into() });
    }
    match parameters.value("adapter_id") {
        None => Ok(()),
        Some(id) => Err(ApiError::Unsupported { field: "adapter_id", value: shown(&id) }),
    }
}

/// How tokens are drawn; greedily unless something asks for more.
fn read_tgi_sampling(
    parameters: &mut Fields,
    rules: &Rules<'_>,
    samples_by_default: bool,
) -> Result<SamplingParams, ApiError> {
    let neutral = GenerationDefaults::default();
    let mut sampling = read_sampling(parameters, &Rules { defaults: &neutral, ..*rules })?;
    let narrows = sampling.temperature != 1.0
        || sampling.top_k > 0
        || sampling.top_p < 1.0
        || sampling.typical_p > 0.0
        || sampling.min_p > 0.0;
    if !parameters.flag("do_sample", samples_by_default)? && !narrows {
        sampling.temperature = 0.0;
    }
    Ok(sampling)
}

fn read_best_of(
    parameters: &mut Fields,
    rules: &Rules<'_>,
    stream: bool,
    samples: bool,
) -> Result<u32, ApiError> {
    let max = rules.limits.max_choices.min(rules.limits.max_concurrent_requests) as i64;
    let best_of = parameters.integer("best_of", 1..=max)?.unwrap_or(1);
    if best_of > 1 && stream {
        return Err(ApiError::field("best_of", format!("({best_of}) cannot be streamed")));
    }
    if best_of > 1 && !samples {
        let rule = format!("({best_of}) needs sampling, as with do_sample: true");
        return Err(ApiError::field("best_of", rule));
    }
    Ok(best_of as u32)
}

fn read_grammar(parameters: &mut Fields) -> Result<Option<Asked>, ApiError> {
    let Some(grammar) = parameters.object("grammar")? else { return Ok(None) };
    let (at, value) = ("grammar.value", grammar.get("value").unwrap_or(&Value::Null));
    let constraint = match (grammar.get("type").and_then(Value::as_str), value) {
        (Some("regex"), Value::String(regex)) if !regex.is_empty() => {
            Constraint::Regex(regex.clone())
        }
        (Some("regex"), other) => return Err(must_be(at, "a regular expression", other)),
        // TGI refuses an object of which nothing else is said.
        (Some("json_object"), Value::Null) => read_schema(at, &json!({"type": "object"}))?,
        (Some("json" | "json_object"), schema) => read_schema(at, schema)?,
        (Some("json_schema"), Value::Object(named)) => {
            let schema = named.get("schema").unwrap_or(&Value::Null);
            read_schema("grammar.value.schema", schema)?
        }
        (Some("json_schema"), other) => return Err(must_be(at, "an object with a schema", other)),
        (Some(other), _) => {
            let rule =
                format!("must be json, json_object, json_schema or regex, not {}", quoted(other));
            return Err(ApiError::field("grammar.type", rule));
        }
        (None, _) => return Err(ApiError::field("grammar.type", "must be given, as a string")),
    };
    Ok(Some(Asked { field: "grammar", constraint, is_needed: true }))
}

/// A JSON schema: an object, as it is or as text.
fn read_schema(at: &str, value: &Value) -> Result<Constraint, ApiError> {
    let schema = match value {
        Value::String(text) => serde_json::from_str(text).unwrap_or_default(),
        _ => value.clone(),
    };
    if !schema.is_object() {
        return Err(must_be(at, "a JSON schema", value));
    }
    Constraint::json_schema(&schema).map_err(|reason| ApiError::field(at, reason))
}
