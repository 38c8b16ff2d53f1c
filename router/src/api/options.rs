//! The fields that chat and plain completions share: their ranges, their defaults, and what is
//! refused because it would change the answer and is not there yet. How tokens are drawn is read
//! in `sampling.rs`, how a text ends here:
//!
//! | field | values | without it |
//! |---|---|---|
//! | `max_tokens`, `max_completion_tokens` | from 1; the newer name wins | see below |
//! | `stop` | a string or a list of strings | none |
//! | `stop_token_ids` | ids that end the text, beside the model's own | none |
//! | `ignore_eos` | true: the model's own ids do not end the text | false |
//! | `min_tokens` | before so many tokens nothing ends the text | 0 |
//!
//! Without a limit, a completion has 16 tokens, which is OpenAI's number, and a chat what is left
//! of the context, or the checkpoint's `max_new_tokens` if that is less. Ids in `stop_token_ids`
//! end a text whatever `ignore_eos` says.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::config::RequestLimits;
use super::constraints::{Asked, read_constraint};
use super::error::ApiError;
use super::fields::{Fields, must_be, quoted, shown};
use super::sampling::read_sampling;
use crate::engine::SamplingParams;
use crate::text::{AnswerFormats, GenerationDefaults};

/// Bytes of one stop string: as much text may be held back.
const MAX_STOP_BYTES: usize = 1024;
const MAX_STOP_TOKENS: usize = 128;
const MAX_SALT_BYTES: usize = 256;

/// What clients call the model that know nothing but a URL, such as those of TGI.
const ANY_MODEL: &[&str] = &["dummy", "tgi"];

/// What the checks compare with.
pub(crate) struct Rules<'a> {
    pub(crate) limits: &'a RequestLimits,
    /// The served name first, then its aliases.
    pub(crate) names: &'a [String],
    pub(crate) vocab_size: u32,
    /// 0 where a prompt may be scored and nothing generated, else 1.
    pub(crate) least_max_tokens: i64,
    pub(crate) defaults: &'a GenerationDefaults,
    /// How the model writes what an answer may hold beside content.
    pub(crate) formats: AnswerFormats,
}

/// What chat and plain completions have in common, validated.
#[derive(Debug)]
pub(crate) struct Options {
    /// The accepted name that the client used.
    pub(crate) model: String,
    pub(crate) num_choices: u32,
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
    pub(crate) max_tokens: Option<MaxTokens>,
    pub(crate) sampling: SamplingParams,
    /// Whether the prompt's tokens are reported as well; the caller's to set.
    pub(crate) prompt_logprobs: bool,
    /// Whether the ids of prompt and output are told.
    pub(crate) return_token_ids: bool,
    pub(crate) seed: Option<u64>,
    pub(crate) stop: Vec<String>,
    pub(crate) include_stop: bool,
    pub(crate) stop_token_ids: Vec<u32>,
    pub(crate) ignore_eos: bool,
    pub(crate) skip_special_tokens: bool,
    pub(crate) cache_salt: Option<Arc<str>>,
    /// What the answer must satisfy.
    pub(crate) constraint: Option<Asked>,
}

/// A limit of tokens and the field that it came from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MaxTokens {
    pub(crate) field: &'static str,
    pub(crate) count: u32,
}

impl Options {
    /// Reads the shared fields. Whether log-probabilities are reported is the caller's to set.
    pub(crate) fn read(fields: &mut Fields, rules: &Rules<'_>) -> Result<Options, ApiError> {
        let model = read_model(fields, rules.names)?;
        let max_choices = rules.limits.max_choices as i64;
        let num_choices = fields.integer("n", 1..=max_choices)?.unwrap_or(1) as u32;
        refuse_unsupported(fields, num_choices)?;
        let (stream, include_usage) = read_stream(fields)?;
        let max_tokens = read_max_tokens(fields, rules.least_max_tokens)?;
        let stop = read_stop(fields, rules.limits.max_stop_sequences)?;
        let options = Options {
            model,
            num_choices,
            stream,
            include_usage,
            max_tokens,
            sampling: read_sampling(fields, rules)?,
            prompt_logprobs: false,
            return_token_ids: fields.flag("return_token_ids", false)?,
            seed: read_seed(fields)?,
            stop,
            include_stop: fields.flag("include_stop_str_in_output", false)?,
            stop_token_ids: fields.token_ids(
                "stop_token_ids",
                MAX_STOP_TOKENS,
                rules.vocab_size,
            )?,
            ignore_eos: fields.flag("ignore_eos", false)?,
            skip_special_tokens: fields.flag("skip_special_tokens", true)?,
            cache_salt: read_salt(fields)?,
            constraint: read_constraint(fields)?,
        };
        if options.constraint.is_some() && options.ignore_eos {
            let rule = "(true) cannot be used together with a constraint, which says where to end";
            return Err(ApiError::field("ignore_eos", rule));
        }
        if let Some(MaxTokens { field, count }) = options.max_tokens
            && options.sampling.min_tokens > count
        {
            let min_tokens = options.sampling.min_tokens;
            let rule = format!("({min_tokens}) must not exceed {field} ({count})");
            return Err(ApiError::field("min_tokens", rule));
        }
        Ok(options)
    }
}

/// Reads which of the accepted names is meant.
pub(super) fn read_model(fields: &mut Fields, names: &[String]) -> Result<String, ApiError> {
    let asked = fields.string("model")?;
    asked.map_or_else(|| Ok(names[0].clone()), |asked| find_model(&asked, names))
}

/// The accepted name that `asked` is, or stands for.
pub(super) fn find_model(asked: &str, names: &[String]) -> Result<String, ApiError> {
    let accepted = names.iter().find(|name| *name == asked);
    let accepted = accepted.or_else(|| names.first().filter(|_| ANY_MODEL.contains(&asked)));
    accepted
        .cloned()
        .ok_or_else(|| ApiError::UnknownModel { asked: quoted(asked), served: names[0].clone() })
}

fn read_stream(fields: &mut Fields) -> Result<(bool, bool), ApiError> {
    let stream = fields.flag("stream", false)?;
    let Some(options) = fields.object("stream_options")? else { return Ok((stream, false)) };
    if !stream {
        return Err(ApiError::field(
            "stream_options",
            "is only allowed together with stream: true",
        ));
    }
    let flag = |name: &str| match options.get(name) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(value)) => Ok(*value),
        Some(other) => Err(must_be(&format!("stream_options.{name}"), "true or false", other)),
    };
    if flag("continuous_usage_stats")? {
        let field = "stream_options.continuous_usage_stats";
        return Err(ApiError::Unsupported { field, value: "true".into() });
    }
    Ok((stream, flag("include_usage")?))
}

/// At least `least`.
fn read_max_tokens(fields: &mut Fields, least: i64) -> Result<Option<MaxTokens>, ApiError> {
    let mut read = |field| -> Result<_, ApiError> {
        let count = fields.integer(field, least..=i64::from(u32::MAX))?;
        Ok(count.map(|count| MaxTokens { field, count: count as u32 }))
    };
    let old = read("max_tokens")?;
    // The newer name wins where a client sends both.
    Ok(read("max_completion_tokens")?.or(old))
}

/// Reads `seed`.
pub(super) fn read_seed(fields: &mut Fields) -> Result<Option<u64>, ApiError> {
    let Some(value) = fields.value("seed") else { return Ok(None) };
    // Any 64 bits will do, with a sign or without.
    let seed = value.as_u64().or_else(|| value.as_i64().map(|seed| seed as u64));
    seed.map(Some).ok_or_else(|| must_be("seed", "an integer of 64 bits", &value))
}

/// Reads `stop`: at most `max` strings.
pub(super) fn read_stop(fields: &mut Fields, max: usize) -> Result<Vec<String>, ApiError> {
    let value = match fields.value("stop") {
        None => return Ok(Vec::new()),
        Some(Value::String(stop)) => vec![Value::String(stop)],
        Some(Value::Array(stops)) => stops,
        Some(other) => return Err(must_be("stop", "a string or a list of strings", &other)),
    };
    if value.len() > max {
        let rule = format!("must hold at most {max} strings, not {}", value.len());
        return Err(ApiError::field("stop", rule));
    }
    let check = |(i, stop)| match stop {
        Value::String(stop) if (1..=MAX_STOP_BYTES).contains(&stop.len()) => Ok(stop),
        Value::String(stop) => {
            let rule = format!("must have 1 to {MAX_STOP_BYTES} bytes, not {}", stop.len());
            Err(ApiError::field(format!("stop[{i}]"), rule))
        }
        other => Err(must_be(&format!("stop[{i}]"), "a string", &other)),
    };
    value.into_iter().enumerate().map(check).collect()
}

fn read_salt(fields: &mut Fields) -> Result<Option<Arc<str>>, ApiError> {
    match fields.string("cache_salt")? {
        Some(salt) if !(1..=MAX_SALT_BYTES).contains(&salt.len()) => {
            let rule = format!("must have 1 to {MAX_SALT_BYTES} bytes, not {}", salt.len());
            Err(ApiError::field("cache_salt", rule))
        }
        salt => Ok(salt.map(Arc::from)),
    }
}

/// Tells whether a value changes nothing.
type IsNeutral = fn(&Value) -> bool;

/// Fields that would change the answer, each with the values that change nothing.
const UNSUPPORTED: &[(&str, IsNeutral)] = &[
    ("functions", is_empty),
    ("function_call", |value| *value == "none" || *value == "auto"),
    ("grammar", never),
    ("length_penalty", |value| is_number(value, 1.0)),
    ("no_repeat_ngram_size", |value| is_number(value, 0.0)),
    ("use_beam_search", is_false),
    ("priority", |value| is_number(value, 0.0)),
    ("prompt_logprobs", is_false),
    ("logits_processors", is_empty),
    ("allowed_token_ids", never),
    ("bad_words", is_empty),
    ("truncate_prompt_tokens", never),
    ("prompt_embeds", never),
    ("thinking_token_budget", never),
    ("return_tokens_as_token_ids", is_false),
    ("return_full_text", is_false),
    ("watermark", is_false),
    ("adapter_id", never),
    ("audio", never),
    ("modalities", |value| *value == json!(["text"])),
    ("web_search_options", never),
    ("documents", is_empty),
    ("chat_template", never),
    ("tool_prompt", never),
];

/// The names of these fields.
pub(super) fn unsupported() -> impl Iterator<Item = &'static str> {
    UNSUPPORTED.iter().map(|(field, _)| *field)
}

fn never(_: &Value) -> bool {
    false
}

fn is_false(value: &Value) -> bool {
    *value == Value::Bool(false)
}

pub(crate) fn is_empty(value: &Value) -> bool {
    value.as_array().is_some_and(Vec::is_empty)
}

fn is_number(value: &Value, neutral: f64) -> bool {
    value.as_f64() == Some(neutral)
}

fn refuse_unsupported(fields: &mut Fields, num_choices: u32) -> Result<(), ApiError> {
    for (field, is_neutral) in UNSUPPORTED {
        if let Some(value) = fields.value(field)
            && !is_neutral(&value)
        {
            return Err(ApiError::Unsupported { field, value: shown(&value) });
        }
    }
    // The best of as many as are returned is all of them.
    if let Some(value) = fields.value("best_of")
        && !is_number(&value, 1.0)
        && !is_number(&value, f64::from(num_choices))
    {
        return Err(ApiError::Unsupported { field: "best_of", value: shown(&value) });
    }
    Ok(())
}

/// `chat_template_kwargs`, with what other fields add to them.
pub(crate) fn read_template_kwargs(fields: &mut Fields) -> Result<Map<String, Value>, ApiError> {
    let mut kwargs = fields.object("chat_template_kwargs")?.unwrap_or_default();
    // Templates of models that know efforts, or can do without thought, read it under these names.
    if let Some(effort) = fields.string("reasoning_effort")? {
        kwargs.entry("reasoning_effort").or_insert(Value::String(effort));
    }
    if let Some(thinks) = fields.bool("enable_thinking")? {
        kwargs.entry("enable_thinking").or_insert(Value::Bool(thinks));
    }
    Ok(kwargs)
}
