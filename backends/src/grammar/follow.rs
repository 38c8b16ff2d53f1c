//! A text on its way through a grammar.

use std::sync::Arc;

use llguidance::Matcher;
use millstream_proto::Grammar;

use super::compile::{Compiled, Compiler};
use super::{Mask, allowed};

/// A text, and the matcher that has read it.
pub(super) struct Follower {
    compiler: Arc<Compiler>,
    grammar: Grammar,
    tokens: Vec<u32>,
    compiled: Compiled,
}

impl Follower {
    /// A text that begins with `tokens`, and what may follow them.
    pub(super) fn begin(
        compiler: Arc<Compiler>,
        grammar: Grammar,
        tokens: Vec<u32>,
    ) -> Result<(Self, Mask), String> {
        let compiled = compiler.compiled(&grammar, 0)?;
        let mut follower = Follower { compiler, grammar, tokens, compiled };
        let mask = follower.read_all().or_else(|_| follower.read_again())?;
        Ok((follower, mask))
    }

    /// The text goes on with `token`.
    pub(super) fn advance(mut self, token: u32) -> Result<(Self, Mask), String> {
        self.tokens.push(token);
        let mask = read(&mut self.compiled.matcher, &[token]).or_else(|_| self.read_again())?;
        Ok((self, mask))
    }

    fn read_all(&mut self) -> Result<Mask, String> {
        read(&mut self.compiled.matcher, &self.tokens)
    }

    /// All texts of a grammar share one lexer, which learns from each and is full one day: then
    /// nothing more can be read with it. A text fails if it alone fills a lexer.
    fn read_again(&mut self) -> Result<Mask, String> {
        self.compiled = self.compiler.compiled(&self.grammar, self.compiled.edition + 1)?;
        self.read_all()
    }
}

fn read(matcher: &mut Matcher, tokens: &[u32]) -> Result<Mask, String> {
    matcher.consume_tokens(tokens).map_err(|error| error.to_string())?;
    allowed(matcher)
}
