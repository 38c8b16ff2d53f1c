//! Grammars of answers that hold tool calls: what their formats share.

use serde_json::{Map, Value, json};

use super::{CallRules, Tool, ToolFormat, harmony, hermes, llama3_json, mistral, qwen3_coder};
use crate::text::constraint::ESCAPES;
use crate::text::lark::{Lark, TokenId, nested, quoted};
use crate::text::reasoning::{self, Opening, ReasoningFormat};
use crate::text::{AnswerFormats, Constraint};

/// The grammar of an answer that may reason first, and then holds calls, or, unless they are
/// required, text: any text, or where there is a `content`, a text that satisfies it.
pub(in crate::text) fn call_grammar(
    formats: AnswerFormats,
    opening: Opening,
    rules: CallRules<'_>,
    content: Option<&Constraint>,
    token_id: &TokenId<'_>,
) -> Constraint {
    let mut lark = Lark::new(token_id);
    let calls = Calls { rules, content: content.map(nested) };
    let answer = match formats.enforced_tools() {
        ToolFormat::Hermes => hermes::calls(&mut lark, &calls),
        ToolFormat::Qwen3Coder => qwen3_coder::calls(&mut lark, &calls),
        ToolFormat::Llama3Json => llama3_json::calls(&mut lark, &calls),
        ToolFormat::Mistral => mistral::calls(&mut lark, &calls),
        ToolFormat::Harmony => harmony::calls(&mut lark, &calls),
    };
    let thought = match formats.reasoning {
        Some(ReasoningFormat::Think) => reasoning::thought(&mut lark, opening),
        Some(ReasoningFormat::Harmony) | None => String::new(),
    };
    lark.into_constraint(&format!("{thought} ({answer})"))
}

/// What the grammar of a format is made for.
pub(super) struct Calls<'a> {
    rules: CallRules<'a>,
    /// What text must be where it is not free.
    content: Option<String>,
}

impl Calls<'_> {
    pub(super) fn parallel(&self) -> bool {
        self.rules.parallel
    }

    /// A call of any of the tools, given what a call of one is.
    pub(super) fn any_tool(
        &self,
        lark: &mut Lark<'_>,
        mut one: impl FnMut(&mut Lark<'_>, &Tool) -> String,
    ) -> String {
        let calls: Vec<String> = self.rules.tools.iter().map(|tool| one(lark, tool)).collect();
        lark.rule(&calls.join(" | "))
    }

    /// Calls that are `body` behind the marker `open`, with `separator` between them.
    pub(super) fn marked(
        &self,
        lark: &mut Lark<'_>,
        open: &str,
        body: &str,
        separator: &str,
    ) -> String {
        if !self.rules.parallel {
            return self.marked_once(lark, open, body);
        }
        let body = lark.rule(body);
        let call = format!("{} {body}", lark.marker(open));
        let calls = format!("{call} ({separator} {call})*");
        let text = format!("({} {body})* {}", lark.until(open), lark.without(open));
        self.or_content(&calls, &text)
    }

    /// The same where the marker comes once.
    pub(super) fn marked_once(&self, lark: &mut Lark<'_>, open: &str, body: &str) -> String {
        let body = lark.rule(body);
        let calls = format!("{} {body}", lark.marker(open));
        let text = format!("{} {body} | {}", lark.until(open), lark.without(open));
        self.or_content(&calls, &text)
    }

    /// `calls` alone where they are required. Else `text`, which may hold calls, or `calls` or
    /// what is asked of the content.
    pub(super) fn or_content(&self, calls: &str, text: &str) -> String {
        match &self.content {
            _ if self.rules.required => calls.to_owned(),
            Some(content) => format!("{calls} | {content}"),
            None => format!("{calls} | {text}"),
        }
    }

    /// What the content of an answer must be, `text` where it is free; `None` where it has none.
    pub(super) fn content_or(&self, text: &str) -> Option<String> {
        let content = self.content.clone().unwrap_or_else(|| text.to_owned());
        (!self.rules.required).then_some(content)
    }
}

/// `{"name": .., "arguments": {..}}` of one tool, as an expression; `key` is for the arguments.
pub(super) fn json_call(tool: &Tool, key: &str) -> String {
    let head = quoted(&format!("{{\"name\": \"{}\", \"{key}\": ", tool.name));
    format!("{head} {} \"}}\"", arguments(tool))
}

/// The arguments of one tool, as an expression.
pub(super) fn arguments(tool: &Tool) -> String {
    json_schema(Value::Object(tool.parameters.clone()), tool.strict)
}

/// A schema as an expression. White space is what models write between items, and no more: where
/// any is allowed, a model can write it forever. What cannot be enforced is an error only if the
/// client insists on the schema.
pub(super) fn json_schema(schema: Value, strict: bool) -> String {
    let mut schema = match schema {
        Value::Object(schema) => schema,
        // True and false are schemas too.
        other => Map::from_iter([("allOf".to_owned(), json!([other]))]),
    };
    let options = json!({
        "whitespace_flexible": false, "item_separator": ", ?", "key_separator": ": ?",
        "lenient": !strict, "json_allowed_escapes": ESCAPES,
    });
    schema.insert("x-guidance".to_owned(), options);
    format!("%json {}", Value::Object(schema))
}

#[cfg(test)]
mod tests;
