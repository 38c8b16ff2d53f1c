//! Events in TGI's form: one for each token, the last with the whole text.

use std::sync::Arc;

use bytes::{BufMut, BytesMut};
use serde::Serialize;

use super::answer::{Plan, Token, finish_reason, stop_token, texts, token, top_tokens};
use super::error::TgiError;
use crate::api::error::ApiError;
use crate::api::stream::{WriteEvents, failure, put_event};
use crate::generate::{ChoiceOutput, Finish, TokenEntry};
use crate::text::TextModel;

#[derive(Serialize)]
struct StreamResponse<'a> {
    /// Counts from 1.
    index: u32,
    token: Token<'a>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    top_tokens: Vec<Token<'a>>,
    generated_text: Option<&'a str>,
    details: Option<StreamDetails>,
}

#[derive(Serialize)]
struct StreamDetails {
    finish_reason: &'static str,
    generated_tokens: u32,
    seed: Option<u64>,
    input_length: usize,
}

/// Writes the events of one request, which has one choice.
pub(super) struct TgiEvents {
    model: Arc<TextModel>,
    plan: Plan,
    /// The echo, and the text of all tokens that were told.
    told: String,
    /// Text whose token is not complete yet.
    untold: String,
    num_tokens: u32,
}

impl TgiEvents {
    pub(super) fn new(plan: Plan, model: Arc<TextModel>) -> TgiEvents {
        TgiEvents { model, told: plan.echo.clone(), untold: String::new(), plan, num_tokens: 0 }
    }

    /// Writes the tokens that became visible and, where the text has ended, its end with the last
    /// token: the one that ended it, if that is not in the text itself. True: the end is written.
    fn write_tokens(
        &mut self,
        tokens: &[TokenEntry],
        end: Option<&Finish>,
        out: &mut BytesMut,
    ) -> bool {
        let ending = end.and_then(|finish| stop_token(&self.model, finish));
        let end_of_text = end.filter(|_| ending.is_none());
        let mut untold = std::mem::take(&mut self.untold);
        let mut num_told = 0;
        let texts = texts(&self.model, &untold, tokens, end.is_some());
        for (i, (entry, text)) in tokens.iter().zip(texts).enumerate() {
            self.told.push_str(text);
            num_told += text.len();
            let token = token(&self.model, entry, text);
            let end = end_of_text.filter(|_| i + 1 == tokens.len());
            self.write_one(token, &entry.top, end, out);
        }
        untold.drain(..num_told);
        self.untold = untold;
        match ending {
            Some((token, top)) => {
                self.write_one(token, top, end, out);
                true
            }
            None => end.is_some() && !tokens.is_empty(),
        }
    }

    fn write_one(
        &mut self,
        token: Token<'_>,
        top: &[(u32, f32)],
        end: Option<&Finish>,
        out: &mut BytesMut,
    ) {
        self.num_tokens += 1;
        let shows_top = self.plan.top_tokens;
        let details = end.filter(|_| self.plan.details).map(|finish| StreamDetails {
            finish_reason: finish_reason(finish).unwrap_or_default(),
            generated_tokens: finish.num_tokens,
            seed: self.plan.seed,
            input_length: self.plan.prompt.len(),
        });
        let event = StreamResponse {
            index: self.num_tokens,
            token,
            top_tokens: if shows_top { top_tokens(&self.model, top) } else { Vec::new() },
            generated_text: end.map(|_| self.told.as_str()),
            details,
        };
        out.put_slice(b"data: ");
        serde_json::to_writer(out.writer(), &event).expect("an event can be written to memory");
        out.put_slice(b"\n\n");
    }
}

impl WriteEvents for TgiEvents {
    fn write(&mut self, news: &mut [ChoiceOutput], out: &mut BytesMut) -> bool {
        let choice = &news[0];
        self.untold.push_str(&choice.text);
        let end = choice.finish.as_ref();
        let failed = end.filter(|finish| finish_reason(finish).is_none());
        if let Some(finish) = failed {
            self.write_tokens(&choice.tokens, None, out);
            put_event(out, &TgiError(failure(finish)).body());
        } else if !self.write_tokens(&choice.tokens, end, out) && end.is_some() {
            // Every text ends with a token.
            put_event(out, &TgiError(ApiError::Internal).body());
        }
        end.is_some()
    }
}
