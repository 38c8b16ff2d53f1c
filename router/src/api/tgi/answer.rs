//! Whole answers in TGI's form, and the pieces that events share with them.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Instant;

use axum::http::{HeaderMap, HeaderValue};
use serde::Serialize;

use crate::api::chunks::{LOWEST_LOGPROB, WholeChoice};
use crate::generate::{Finish, FinishKind, StopCause, TokenEntry};
use crate::text::TextModel;

/// What an answer needs to know of its request.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The tokens that were read.
    pub(crate) prompt: Arc<[u32]>,
    /// What a text begins with: the prompt's, or nothing.
    pub(crate) echo: String,
    pub(crate) num_choices: usize,
    /// Characters of `inputs`.
    pub(crate) num_characters: usize,
    /// Known to the client where tokens are drawn.
    pub(crate) seed: Option<u64>,
    pub(crate) details: bool,
    pub(crate) top_tokens: bool,
}

impl Plan {
    /// What each choice begins with.
    pub(crate) fn echoes(&self) -> Vec<String> {
        vec![self.echo.clone(); self.num_choices]
    }
}

#[derive(Serialize)]
pub(super) struct Token<'a> {
    id: u32,
    text: Cow<'a, str>,
    logprob: f32,
    special: bool,
}

/// A token of the prompt. Nothing precedes the first, so it has no log-probability.
#[derive(Serialize)]
struct PrefillToken {
    id: u32,
    text: String,
    logprob: Option<f32>,
}

#[derive(Serialize)]
pub(super) struct GenerateResponse<'a> {
    generated_text: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<Details<'a>>,
}

#[derive(Serialize)]
struct Details<'a> {
    #[serde(flatten)]
    best: SequenceDetails<'a>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    best_of_sequences: Vec<Sequence<'a>>,
}

/// A sequence that was not the best.
#[derive(Serialize)]
struct Sequence<'a> {
    generated_text: &'a str,
    #[serde(flatten)]
    details: SequenceDetails<'a>,
}

#[derive(Serialize)]
struct SequenceDetails<'a> {
    finish_reason: &'static str,
    generated_tokens: u32,
    seed: Option<u64>,
    prefill: Vec<PrefillToken>,
    tokens: Vec<Token<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    top_tokens: Vec<Vec<Token<'a>>>,
}

/// The answer of these choices, the best of which is the first.
pub(super) fn response<'a>(
    model: &TextModel,
    plan: &Plan,
    choices: &'a [WholeChoice],
) -> GenerateResponse<'a> {
    let (best, others) = choices.split_first().expect("a request has a choice");
    let details = plan.details.then(|| Details {
        best: sequence_details(model, plan, best),
        best_of_sequences: others
            .iter()
            .map(|other| Sequence {
                generated_text: &other.text,
                details: sequence_details(model, plan, other),
            })
            .collect(),
    });
    GenerateResponse { generated_text: &best.text, details }
}

fn sequence_details<'a>(
    model: &TextModel,
    plan: &Plan,
    choice: &'a WholeChoice,
) -> SequenceDetails<'a> {
    let finish = choice.finish.as_ref();
    let text = &choice.text[plan.echo.len()..];
    let texts = texts(model, text, &choice.tokens, true);
    let mut tokens: Vec<Token<'_>> =
        choice.tokens.iter().zip(texts).map(|(entry, text)| token(model, entry, text)).collect();
    let mut tops: Vec<&[(u32, f32)]> = choice.tokens.iter().map(|entry| &entry.top[..]).collect();
    if let Some((ending, top)) = finish.and_then(|finish| stop_token(model, finish)) {
        tokens.push(ending);
        tops.push(top);
    }
    SequenceDetails {
        finish_reason: finish.and_then(finish_reason).unwrap_or_default(),
        generated_tokens: finish.map_or(0, |finish| finish.num_tokens),
        seed: plan.seed,
        prefill: choice.prompt.iter().map(|entry| prefill_token(model, entry)).collect(),
        tokens,
        top_tokens: if plan.top_tokens {
            tops.into_iter().map(|top| top_tokens(model, top)).collect()
        } else {
            Vec::new()
        },
    }
}

fn prefill_token(model: &TextModel, entry: &TokenEntry) -> PrefillToken {
    let (text, logprob) = (model.token_text(entry.token).0, entry.logprob.map(shown_logprob));
    PrefillToken { id: entry.token, text, logprob }
}

/// TGI's word for an end; `None` where it is an error.
pub(super) fn finish_reason(finish: &Finish) -> Option<&'static str> {
    match finish.kind {
        FinishKind::Stop(StopCause::Token { .. }) => Some("eos_token"),
        FinishKind::Stop(StopCause::Text(_)) => Some("stop_sequence"),
        FinishKind::Length => Some("length"),
        FinishKind::Failed(_) | FinishKind::Interrupted(_) => None,
    }
}

/// What each of these tokens added to `text`, which begins with the first one's. Of a text that
/// has ended, the last token that is seen takes all that is left.
pub(super) fn texts<'a>(
    model: &TextModel,
    text: &'a str,
    tokens: &'a [TokenEntry],
    has_ended: bool,
) -> impl Iterator<Item = &'a str> + use<'a> {
    let is_seen = |entry: &TokenEntry| !model.is_special(entry.token);
    let last = if has_ended { tokens.iter().rposition(is_seen) } else { None };
    let mut rest = text;
    tokens.iter().enumerate().map(move |(i, entry)| {
        let is_last = last == Some(i);
        let end = if is_last { rest.len() } else { entry.text_len.min(rest.len()) };
        let (own, behind) = rest.split_at(end);
        rest = behind;
        own
    })
}

/// A token that added `text`. A special one adds nothing, and is shown as it is spelled.
pub(super) fn token<'a>(model: &TextModel, entry: &TokenEntry, text: &'a str) -> Token<'a> {
    let special = model.is_special(entry.token);
    let text = if special { model.token_text(entry.token).0.into() } else { text.into() };
    Token { id: entry.token, text, logprob: shown_logprob(entry.logprob.unwrap_or(0.0)), special }
}

/// The token that ended a text, which has no part in it, and the alternatives to it.
pub(super) fn stop_token<'a, 'f>(
    model: &TextModel,
    finish: &'f Finish,
) -> Option<(Token<'a>, &'f [(u32, f32)])> {
    let FinishKind::Stop(StopCause::Token { token, logprobs: Some(logprobs) }) = &finish.kind
    else {
        return None;
    };
    let text = model.token_text(*token).0.into();
    let logprob = shown_logprob(logprobs.logprob);
    Some((Token { id: *token, text, logprob, special: true }, &logprobs.top))
}

pub(super) fn top_tokens<'a>(model: &TextModel, top: &[(u32, f32)]) -> Vec<Token<'a>> {
    let token = |&(id, logprob): &(u32, f32)| Token {
        id,
        text: model.token_text(id).0.into(),
        logprob: shown_logprob(logprob),
        special: model.is_special(id),
    };
    top.iter().map(token).collect()
}

fn shown_logprob(logprob: f32) -> f32 {
    logprob.max(LOWEST_LOGPROB)
}

/// When what began.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    pub(super) arrived: Instant,
    pub(super) submitted: Instant,
}

/// The headers that tell where the time of a whole answer went, in TGI's units: milliseconds, but
/// seconds for `x-compute-time`.
pub(super) fn timing_headers(headers: &mut HeaderMap, clock: Clock, plan: &Plan, finish: &Finish) {
    let total = clock.arrived.elapsed();
    // The engine counts from when it takes a sequence in, microseconds after it is submitted.
    let inference = clock.submitted.elapsed().saturating_sub(finish.waited);
    let per_token = inference / finish.num_tokens.max(1);
    let mut put = |name: &'static str, value: String| {
        let value = HeaderValue::from_str(&value).expect("digits fit a header");
        headers.insert(name, value);
    };
    put("x-compute-time", total.as_secs_f64().to_string());
    put("x-total-time", total.as_millis().to_string());
    put("x-validation-time", (clock.submitted - clock.arrived).as_millis().to_string());
    put("x-queue-time", finish.waited.as_millis().to_string());
    put("x-inference-time", inference.as_millis().to_string());
    put("x-time-per-token", per_token.as_millis().to_string());
    put("x-prompt-tokens", plan.prompt.len().to_string());
    put("x-generated-tokens", finish.num_tokens.to_string());
}
