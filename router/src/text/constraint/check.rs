//! Accepts a constraint, or refuses it, before anybody is given a place for it.
//!
//! The worker compiles it again over its whole vocabulary. Whether it can does not depend on the
//! vocabulary but for the special tokens that a grammar may name, and the ids, so here the tokens
//! are the 256 bytes and those, and the other ids stand for nothing. The limits are half of the worker's: what is accepted fits there as well.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use millstream_proto::Grammar;

use super::Constraint;

/// The longest source of a grammar: it travels with every sequence that has it.
const MAX_SOURCE_BYTES: usize = 256 << 10;

/// Grammars that are known to be good, by digest.
const MAX_ACCEPTED: usize = 256;

/// Characters of a reason that a client is told at most.
const MAX_REASON_CHARS: usize = 400;

/// Accepts the constraints of one model.
pub(in crate::text) struct Checker {
    special_tokens: Vec<String>,
    num_ids: usize,
    factory: OnceLock<Result<ParserFactory, String>>,
    /// The one used last at the end.
    accepted: Mutex<VecDeque<Vec<u8>>>,
}

impl Checker {
    /// For a tokenizer with these special tokens, and with ids below `num_ids`.
    pub(in crate::text) fn new(special_tokens: Vec<String>, num_ids: usize) -> Self {
        let (factory, accepted) = (OnceLock::new(), Mutex::default());
        Checker { special_tokens, num_ids, factory, accepted }
    }

    /// The grammar for the worker, or why it will not be used: words that continue "the grammar".
    pub(in crate::text) fn accept(&self, constraint: &Constraint) -> Result<Grammar, String> {
        let grammar = constraint.encode();
        let len = grammar.source.len();
        if len > MAX_SOURCE_BYTES {
            return Err(format!("must have at most {MAX_SOURCE_BYTES} bytes, not {len}"));
        }
        if self.was_accepted(&grammar.digest) {
            return Ok(grammar);
        }
        let checked = catch_unwind(AssertUnwindSafe(|| self.check(&grammar)));
        match checked.unwrap_or_else(|_| Err("its reader failed".to_owned())) {
            Ok(()) => {}
            Err(reason) => return Err(cannot(&reason)),
        }
        let mut accepted = self.accepted.lock().unwrap_or_else(PoisonError::into_inner);
        if accepted.len() == MAX_ACCEPTED {
            accepted.pop_front();
        }
        accepted.push_back(grammar.digest.clone());
        Ok(grammar)
    }

    fn was_accepted(&self, digest: &[u8]) -> bool {
        let mut accepted = self.accepted.lock().unwrap_or_else(PoisonError::into_inner);
        let known = accepted.iter().position(|known| known == digest);
        let known = known.and_then(|index| accepted.remove(index));
        known.map(|digest| accepted.push_back(digest)).is_some()
    }

    fn check(&self, grammar: &Grammar) -> Result<(), String> {
        let factory =
            self.factory.get_or_init(|| factory(&tokens(&self.special_tokens, self.num_ids)));
        let factory = factory.as_ref().map_err(Clone::clone)?;
        let parsed = TopLevelGrammar::from_tagged_str(
            &grammar.kind,
            &String::from_utf8_lossy(&grammar.source),
        );
        let mut matcher = Matcher::new(parsed.and_then(|parsed| factory.create_parser(parsed)));
        if let Some(reason) = matcher.get_error() {
            return Err(reason);
        }
        // What nothing satisfies would end with an error in the middle of an answer.
        if matcher.is_stopped() {
            return match matcher.stop_reason() {
                reason if reason.is_ok() => Ok(()),
                reason => Err(reason.to_string()),
            };
        }
        let mask = matcher.compute_mask().map_err(|error| error.to_string())?;
        if mask.is_zero() { Err("no text satisfies it".to_owned()) } else { Ok(()) }
    }
}

fn factory(tokens: &TokEnv) -> Result<ParserFactory, String> {
    let mut factory = ParserFactory::new_simple(tokens).map_err(|error| error.to_string())?;
    factory.quiet();
    let ParserLimits {
        initial_lexer_fuel, step_lexer_fuel, step_max_items, max_grammar_size, ..
    } = ParserLimits::default();
    let limits = factory.limits_mut();
    limits.initial_lexer_fuel = initial_lexer_fuel / 2;
    limits.step_lexer_fuel = step_lexer_fuel / 2;
    limits.step_max_items = step_max_items / 2;
    limits.max_grammar_size = max_grammar_size / 2;
    limits.verbose_errors = false;
    Ok(factory)
}

/// Each byte, the special tokens, nothing for the other ids, and one that ends the text. Special
/// tokens begin with a byte that is in no text.
fn tokens(special: &[String], num_ids: usize) -> TokEnv {
    let marked = |name: &str| [&[TokTrie::SPECIAL_TOKEN_MARKER], name.as_bytes()].concat();
    let mut words: Vec<Vec<u8>> = (0..=u8::MAX).map(|byte| vec![byte]).collect();
    words.extend(special.iter().map(|name| marked(name)));
    words.resize(num_ids.max(words.len()), Vec::new());
    words.push(marked("<|the end of the text|>"));
    let info = TokRxInfo::new(words.len() as u32, words.len() as u32 - 1);
    Arc::new(ApproximateTokEnv::new(TokTrie::from(&info, &words)))
}

/// Why something is not done, as the end of a sentence.
pub(super) fn cannot(reason: &str) -> String {
    format!("cannot be followed: {}", one_line(reason))
}

/// A reason as part of a sentence: one line, not longer than it must be.
fn one_line(reason: &str) -> String {
    let words: Vec<&str> = reason.split_whitespace().collect();
    let line = words.join(" ");
    match line.char_indices().nth(MAX_REASON_CHARS) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}
