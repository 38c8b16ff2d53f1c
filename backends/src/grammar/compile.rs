//! From a grammar's source to a matcher at its beginning.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::{Mutex, OnceLock, PoisonError};

use llguidance::api::TopLevelGrammar;
use llguidance::{Matcher, ParserFactory};
use millstream_proto::Grammar;

use super::{pool, vocabulary};

/// Grammars that are kept compiled, the one used last at the end. What one holds is bounded by
/// [`MAX_LEXER_STATES`].
const MAX_COMPILED: usize = 64;

/// States of a grammar's lexer, some 1 to 2 KB each. Tests fill one.
const MAX_LEXER_STATES: usize = if cfg!(test) { 2_000 } else { 50_000 };

/// Compiles the grammars of one vocabulary.
pub(super) struct Compiler {
    /// `tokenizer.json`, until it has been read.
    tokenizer: Mutex<Option<Cow<'static, [u8]>>>,
    vocab_size: usize,
    factory: OnceLock<Result<ParserFactory, String>>,
    /// By digest, oldest use first.
    compiled: Mutex<VecDeque<(Vec<u8>, Compiled)>>,
}

/// A grammar at its beginning. Clones share what its lexer has learnt.
#[derive(Clone)]
pub(super) struct Compiled {
    pub(super) matcher: Matcher,
    /// How many lexers were given up before this one.
    pub(super) edition: u64,
}

impl Compiler {
    pub(super) fn new(tokenizer: Cow<'static, [u8]>, vocab_size: usize) -> Self {
        Compiler {
            tokenizer: Mutex::new(Some(tokenizer)),
            vocab_size,
            factory: OnceLock::new(),
            compiled: Mutex::default(),
        }
    }

    /// What compiles; reads the vocabulary when it is asked first, and whoever else asks waits.
    pub(super) fn factory(&self) -> Result<&ParserFactory, String> {
        let factory = self.factory.get_or_init(|| {
            let tokenizer = self.tokenizer.lock().unwrap_or_else(PoisonError::into_inner).take();
            pool::catch(|| factory(&tokenizer.unwrap_or_default(), self.vocab_size))
        });
        factory.as_ref().map_err(Clone::clone)
    }

    /// A grammar of this edition or a later one.
    pub(super) fn compiled(&self, grammar: &Grammar, edition: u64) -> Result<Compiled, String> {
        if let Some(known) = self.known(&grammar.digest, edition) {
            return Ok(known);
        }
        let new = Compiled { matcher: compile(self.factory()?, grammar)?, edition };
        let mut compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        compiled.retain(|(digest, _)| *digest != grammar.digest);
        if compiled.len() == MAX_COMPILED {
            compiled.pop_front();
        }
        compiled.push_back((grammar.digest.clone(), new.clone()));
        Ok(new)
    }

    fn known(&self, digest: &[u8], edition: u64) -> Option<Compiled> {
        let mut compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        let index = compiled
            .iter()
            .position(|(known, compiled)| known == digest && compiled.edition >= edition)?;
        let used = compiled.remove(index)?;
        let known = used.1.clone();
        compiled.push_back(used);
        Some(known)
    }
}

fn factory(tokenizer: &[u8], vocab_size: usize) -> Result<ParserFactory, String> {
    let tokens = vocabulary::read(tokenizer, vocab_size)?;
    let mut factory = ParserFactory::new_simple(&tokens).map_err(|error| error.to_string())?;
    factory.quiet();
    let limits = factory.limits_mut();
    limits.max_lexer_states = MAX_LEXER_STATES;
    // They would hold the text so far.
    limits.verbose_errors = false;
    Ok(factory)
}

fn compile(factory: &ParserFactory, grammar: &Grammar) -> Result<Matcher, String> {
    let source = std::str::from_utf8(&grammar.source)
        .map_err(|error| format!("the grammar is not text: {error}"))?;
    let parsed = TopLevelGrammar::from_tagged_str(&grammar.kind, source);
    let parser = parsed.and_then(|grammar| factory.create_parser(grammar));
    let matcher = Matcher::new(parser);
    match matcher.get_error() {
        None => Ok(matcher),
        Some(reason) => Err(reason),
    }
}
