//! What an answer must satisfy, in the forms in which clients say it.

mod check;
mod schema;
#[cfg(test)]
mod tests;

use millstream_proto::Grammar;
use serde_json::Value;
use sha2::{Digest, Sha256};

pub(super) use check::Checker;
pub(super) use schema::ESCAPES;

/// A language that an answer must be in, from its first token to its last.
#[derive(Clone, Debug, PartialEq)]
pub enum Constraint {
    /// A JSON document that this JSON schema accepts, in the words of [`Constraint::json_schema`].
    JsonSchema(Value),
    /// A text that this regular expression matches as a whole.
    Regex(String),
    /// One of these texts; at least one.
    Choice(Vec<String>),
    /// A text of this grammar, in llguidance's variant of Lark.
    Lark(String),
}

impl Constraint {
    /// A document that satisfies `schema`, put into words that are followed to the letter; or why it
    /// cannot be followed, in words that continue a sentence about the field that holds it.
    pub fn json_schema(schema: &Value) -> Result<Constraint, String> {
        let followed = schema::followed(schema);
        followed.map(Constraint::JsonSchema).map_err(|reason| check::cannot(&reason))
    }

    /// As the worker reads it, under one of llguidance's tags for grammars.
    pub fn encode(&self) -> Grammar {
        let (kind, source) = match self {
            Constraint::JsonSchema(schema) => ("json_schema", schema.to_string()),
            Constraint::Regex(regex) => ("regex", regex.clone()),
            Constraint::Choice(texts) => ("lark", choice(texts)),
            Constraint::Lark(lark) => ("lark", lark.clone()),
        };
        let digest = Sha256::new().chain_update(kind).chain_update([0]).chain_update(&source);
        let (digest, source) = (digest.finalize().to_vec(), source.into_bytes());
        Grammar { digest, kind: kind.into(), source }
    }
}

/// Each text as a string of the grammar, quoted as in JSON.
fn choice(texts: &[String]) -> String {
    let quoted = texts.iter().map(|text| Value::from(text.as_str()).to_string());
    format!("start: {}", quoted.collect::<Vec<_>>().join(" | "))
}
