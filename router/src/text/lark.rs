//! Pieces of grammars in llguidance's variant of Lark.
//!
//! What a model writes around its answer (`</think>`, `<tool_call>`) is a single token in most
//! vocabularies. Such a marker is matched as that token, by its id, and by its characters.

use serde_json::Value;

use super::Constraint;

/// The id of the token that reads like this as a whole.
pub(super) type TokenId<'a> = dyn Fn(&str) -> Option<u32> + 'a;

/// Rules on their way to a grammar.
pub(super) struct Lark<'a> {
    token_id: &'a TokenId<'a>,
    rules: String,
    num_rules: usize,
}

impl<'a> Lark<'a> {
    pub(super) fn new(token_id: &'a TokenId<'a>) -> Lark<'a> {
        Lark { token_id, rules: String::new(), num_rules: 0 }
    }

    /// Adds a rule, and returns its name.
    pub(super) fn rule(&mut self, body: &str) -> String {
        self.define("r", "", body)
    }

    /// Adds a terminal: what one lexeme is. Returns its name.
    pub(super) fn terminal(&mut self, body: &str) -> String {
        self.define("T", "", body)
    }

    fn define(&mut self, kind: &str, attributes: &str, body: &str) -> String {
        let name = format!("{kind}{}", self.num_rules);
        self.num_rules += 1;
        self.rules.push_str(&format!("{name}{attributes}: {body}\n"));
        name
    }

    /// Whether the vocabulary has a token for this marker.
    pub(super) fn is_token(&self, marker: &str) -> bool {
        (self.token_id)(marker).is_some()
    }

    /// This marker, as an expression.
    pub(super) fn marker(&self, marker: &str) -> String {
        match (self.token_id)(marker) {
            Some(id) => format!("({} | <[{id}]>)", quoted(marker)),
            None => quoted(marker),
        }
    }

    /// Any text up to the first `end`, and `end`.
    pub(super) fn until(&mut self, end: &str) -> String {
        let written = self.until_text(end);
        let Some(id) = (self.token_id)(end) else { return written };
        let before = self.without(end);
        self.rule(&format!("{written} | {before} <[{id}]>"))
    }

    /// The same where `end` is never a token.
    pub(super) fn until_text(&mut self, end: &str) -> String {
        self.define("r", &format!("[suffix={}]", quoted(end)), r"/(.|\n)*/")
    }

    /// Any text that does not contain `marker`.
    pub(super) fn without(&mut self, marker: &str) -> String {
        let marker = escaped(marker);
        self.terminal(&format!(r"/(.|\n)*/ & ~/(.|\n)*{marker}(.|\n)*/"))
    }

    /// The whole grammar, of texts that match `start`.
    pub(super) fn into_constraint(self, start: &str) -> Constraint {
        Constraint::Lark(format!("start: {start}\n{}", self.rules))
    }
}

/// A text as a string of a grammar.
pub(super) fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// A text as a part of a regular expression between slashes.
fn escaped(text: &str) -> String {
    let special = |c| r"\.+*?()|[]{}^$/".contains(c);
    text.chars().flat_map(|c| special(c).then_some('\\').into_iter().chain([c])).collect()
}

/// A constraint as an expression inside of another grammar.
pub(super) fn nested(constraint: &Constraint) -> String {
    match constraint {
        Constraint::JsonSchema(schema) => format!("%json {schema}"),
        Constraint::Regex(regex) if regex.is_empty() => quoted(""),
        Constraint::Regex(regex) => format!("/{}/", with_slashes_escaped(regex)),
        Constraint::Choice(texts) => {
            let texts: Vec<String> = texts.iter().map(|text| quoted(text)).collect();
            format!("({})", texts.join(" | "))
        }
        Constraint::Lark(lark) => format!("%lark {{\n{lark}\n}}"),
    }
}

fn with_slashes_escaped(regex: &str) -> String {
    let mut is_escaped = false;
    let mut escaped = String::with_capacity(regex.len());
    for c in regex.chars() {
        if c == '/' && !is_escaped {
            escaped.push('\\');
        }
        is_escaped = c == '\\' && !is_escaped;
        escaped.push(c);
    }
    escaped
}
