//! How tokens are drawn: the fields, their ranges and their defaults.
//!
//! A value is the request's, else the checkpoint's recommendation where there is one (marked `*`,
//! from generation_config.json), else OpenAI's. `null` is absent.
//!
//! | field | values | else |
//! |---|---|---|
//! | `temperature` * | 0 to 100; 0 takes the likeliest token | 1 |
//! | `top_p` * | 0 to 1; 0 takes the likeliest token | 1 |
//! | `top_k` * | from -1; 0 and -1 keep all | 0 |
//! | `min_p` * | 0 to 1 | 0 |
//! | `typical_p` * | above 0, at most 1 | 1 |
//! | `repetition_penalty` * | above 0, at most 100; counts prompt and output | 1 |
//! | `presence_penalty` | -2 to 2; counts the output alone | 0 |
//! | `frequency_penalty` | -2 to 2; counts the output alone | 0 |
//! | `logit_bias` | token id to -100 .. 100 | none |
//! | `min_tokens` | from 0; before so many tokens none that ends the text is drawn | 0 |
//!
//! Those that OpenAI does not have are named as in vLLM, `typical_p` as in TGI. In which order they
//! apply is the worker's to say (`sampling` of `millstream-backends`).

use millstream_proto::MAX_BIASES;
use serde_json::Value;

use super::error::ApiError;
use super::fields::{Fields, must_be, quoted};
use super::options::Rules;
use crate::engine::SamplingParams;
use crate::text::{MAX_REPETITION_PENALTY, MAX_TEMPERATURE};

/// Below this a division overflows, and the largest logit wins anyway.
const GREEDY_BELOW: f64 = 1e-5;

/// Reads the fields. Whether log-probabilities are reported is the caller's to set.
pub(super) fn read_sampling(
    fields: &mut Fields,
    rules: &Rules<'_>,
) -> Result<SamplingParams, ApiError> {
    let defaults = rules.defaults;
    let or = |given: Option<f64>, default: Option<f32>, neutral: f64| {
        given.or(default.map(f64::from)).unwrap_or(neutral)
    };
    let temperature = fields.number("temperature", 0.0..=MAX_TEMPERATURE)?;
    let temperature = or(temperature, defaults.temperature, 1.0);
    let top_p = or(fields.number("top_p", 0.0..=1.0)?, defaults.top_p, 1.0);
    let min_p = or(fields.number("min_p", 0.0..=1.0)?, defaults.min_p, 0.0);
    let typical_p = or(fields.positive("typical_p", 1.0)?, defaults.typical_p, 1.0);
    let repetition = fields.positive("repetition_penalty", MAX_REPETITION_PENALTY)?;
    let repetition = or(repetition, defaults.repetition_penalty, 1.0);
    let presence = fields.number("presence_penalty", -2.0..=2.0)?.unwrap_or(0.0);
    let frequency = fields.number("frequency_penalty", -2.0..=2.0)?.unwrap_or(0.0);
    // Both 0 and -1 are written for "all".
    let top_k = fields.integer("top_k", -1..=i64::from(u32::MAX))?.map(|k| k.max(0) as u32);
    let top_k = top_k.or(defaults.top_k).unwrap_or(0);
    let min_tokens = fields.integer("min_tokens", 0..=i64::from(u32::MAX))?.unwrap_or(0) as u32;
    let (bias_token, bias) = read_logit_bias(fields, rules.vocab_size)?;
    // A nucleus of nothing still holds the most likely token.
    let greedy = temperature < GREEDY_BELOW || top_p <= 0.0;
    // On the wire 0 is off, so that a message without the field means the same.
    let unless_one = |value: f64| if value == 1.0 { 0.0 } else { value as f32 };
    Ok(SamplingParams {
        temperature: if greedy { 0.0 } else { temperature as f32 },
        top_k: if greedy || top_k >= rules.vocab_size { 0 } else { top_k },
        top_p: if greedy { 1.0 } else { top_p as f32 },
        min_p: if greedy { 0.0 } else { min_p as f32 },
        typical_p: if greedy { 0.0 } else { unless_one(typical_p) },
        repetition_penalty: unless_one(repetition),
        presence_penalty: presence as f32,
        frequency_penalty: frequency as f32,
        bias_token,
        bias,
        logprobs: false,
        top_logprobs: 0,
        min_tokens,
    })
}

fn read_logit_bias(fields: &mut Fields, vocab_size: u32) -> Result<(Vec<u32>, Vec<f32>), ApiError> {
    let Some(bias) = fields.object("logit_bias")? else { return Ok((Vec::new(), Vec::new())) };
    if bias.len() > MAX_BIASES {
        let rule = format!("must hold at most {MAX_BIASES} tokens, not {}", bias.len());
        return Err(ApiError::field("logit_bias", rule));
    }
    let entry = |(key, value): (&String, &Value)| {
        let token = key.parse::<u32>().ok().filter(|token| *token < vocab_size);
        let token = token.ok_or_else(|| {
            let rule = format!("must map token ids below {vocab_size}, not {}", quoted(key));
            ApiError::field("logit_bias", rule)
        })?;
        let bias = value.as_f64().filter(|bias| (-100.0..=100.0).contains(bias));
        let bias = bias.ok_or_else(|| {
            must_be(&format!("logit_bias.{token}"), "a number from -100 to 100", value)
        })?;
        Ok((token, bias as f32))
    };
    bias.iter().map(entry).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::config::RequestLimits;
    use super::*;
    use crate::text::{AnswerFormats, GenerationDefaults};

    fn read(fields: &Value, defaults: &GenerationDefaults) -> SamplingParams {
        let (limits, names) = (&RequestLimits::default(), &[]);
        let formats = AnswerFormats::default();
        let rules =
            Rules { limits, names, vocab_size: 100, least_max_tokens: 1, defaults, formats };
        let mut fields = Fields::parse(fields.to_string().as_bytes()).unwrap();
        read_sampling(&mut fields, &rules).unwrap()
    }

    #[test]
    fn every_recommendation_is_taken_and_every_value_of_a_request_wins() {
        let defaults = GenerationDefaults {
            temperature: Some(0.25),
            top_p: Some(0.5),
            top_k: Some(20),
            min_p: Some(0.125),
            typical_p: Some(0.75),
            repetition_penalty: Some(1.5),
            ..GenerationDefaults::default()
        };
        let recommended = SamplingParams {
            temperature: 0.25,
            top_p: 0.5,
            top_k: 20,
            min_p: 0.125,
            typical_p: 0.75,
            repetition_penalty: 1.5,
            ..SamplingParams::default()
        };
        let keys = ["temperature", "top_p", "top_k", "min_p", "typical_p", "repetition_penalty"];
        let absent: Value = keys.iter().map(|key| (*key, Value::Null)).collect();
        assert_eq!(read(&json!({}), &defaults), recommended);
        assert_eq!(read(&absent, &defaults), recommended);
        let neutral = json!({
            "temperature": 1, "top_p": 1, "top_k": -1, "min_p": 0, "typical_p": 1,
            "repetition_penalty": 1,
        });
        let plain = SamplingParams { temperature: 1.0, top_p: 1.0, ..SamplingParams::default() };
        assert_eq!(read(&neutral, &defaults), plain);
        assert_eq!(read(&json!({}), &GenerationDefaults::default()), plain);
        let one = read(&json!({"typical_p": 0.5}), &defaults);
        assert_eq!(one, SamplingParams { typical_p: 0.5, ..recommended });
    }

    #[test]
    fn a_request_draws_from_a_checkpoint_that_recommends_greedy_decoding() {
        let defaults =
            GenerationDefaults { temperature: Some(0.0), ..GenerationDefaults::default() };
        assert_eq!(read(&json!({}), &defaults).temperature, 0.0);
        let drawn = read(&json!({"temperature": 0.5, "top_k": 3}), &defaults);
        assert_eq!((drawn.temperature, drawn.top_k), (0.5, 3));
    }
}
