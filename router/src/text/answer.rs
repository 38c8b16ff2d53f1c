//! An answer's text to its parts: reasoning, tool calls and content.

use std::sync::Arc;

use super::reasoning::{Opening, ReasoningFormat, Think, after_reasoning};
use super::tools::{
    CallRules, Harmony, Parts, Tool, ToolFormat, ToolParser, call_grammar, harmony,
};
use super::{Constraint, TextModel};

/// The formats in which a model's answers are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AnswerFormats {
    /// How it writes tool calls.
    pub tools: Option<ToolFormat>,
    /// How it marks its reasoning.
    pub reasoning: Option<ReasoningFormat>,
}

impl AnswerFormats {
    /// Whether all text is content.
    pub fn is_plain(self) -> bool {
        self == AnswerFormats::default()
    }

    /// The format of calls that a grammar enforces: the model's own, or the plainest.
    pub fn enforced_tools(self) -> ToolFormat {
        match (self.tools, self.reasoning) {
            (Some(format), _) => format,
            (None, Some(ReasoningFormat::Harmony)) => ToolFormat::Harmony,
            (None, _) => ToolFormat::Hermes,
        }
    }

    fn is_harmony(self) -> bool {
        self.tools == Some(ToolFormat::Harmony) || self.reasoning == Some(ReasoningFormat::Harmony)
    }

    /// Where a rendered prompt leaves the model.
    pub fn opening(self, prompt: &str) -> Opening {
        if self.is_harmony() { harmony::opening(prompt) } else { Opening::of_tagged(prompt) }
    }

    /// The markers that may be single tokens.
    pub(super) fn markers(self) -> impl Iterator<Item = &'static str> {
        let tools = self.tools.map_or(&[][..], ToolFormat::markers);
        let reasoning = self.reasoning.map_or(&[][..], ReasoningFormat::markers);
        tools.iter().chain(reasoning).copied()
    }
}

/// Where a format of answers comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FormatChoice<T> {
    /// It is read off the chat template.
    #[default]
    Template,
    /// There is none.
    None,
    /// The operator names it.
    Given(T),
}

impl<T> FormatChoice<T> {
    /// The format, given what the template shows.
    pub(super) fn or_template(self, detected: Option<T>) -> Option<T> {
        match self {
            FormatChoice::Template => detected,
            FormatChoice::None => None,
            FormatChoice::Given(format) => Some(format),
        }
    }
}

impl TextModel {
    /// The formats of the model's answers.
    pub fn answer_formats(&self) -> AnswerFormats {
        self.formats
    }

    /// The tokens that mark parts of an answer. A reader must see them, special or not.
    pub fn marker_tokens(&self, formats: AnswerFormats) -> Arc<[u32]> {
        formats.markers().filter_map(|marker| self.tokenizer.token_id(marker)).collect()
    }

    /// What an answer must satisfy that may reason and then holds calls, or, unless they are
    /// required, content: any text, or what `content` accepts.
    pub fn call_constraint(
        &self,
        formats: AnswerFormats,
        opening: Opening,
        rules: CallRules<'_>,
        content: Option<&Constraint>,
    ) -> Constraint {
        let token_id = |marker: &str| self.tokenizer.token_id(marker);
        call_grammar(formats, opening, rules, content, &token_id)
    }

    /// A constraint on an answer as a constraint on what follows the model's reasoning.
    pub fn after_reasoning(&self, constraint: &Constraint, opening: Opening) -> Constraint {
        let token_id = |marker: &str| self.tokenizer.token_id(marker);
        match self.formats.reasoning {
            Some(format) => after_reasoning(constraint, format, opening, &token_id),
            None => constraint.clone(),
        }
    }
}

/// Reads the text of one answer, in pieces cut anywhere.
pub struct AnswerReader(Form);

enum Form {
    Harmony(Harmony),
    Tagged { think: Option<Think>, tools: Option<ToolParser> },
}

impl AnswerReader {
    /// For an answer to a prompt that ends like this, and that offered these tools.
    pub fn new(formats: AnswerFormats, opening: Opening, tools: &Arc<[Tool]>) -> AnswerReader {
        if formats.is_harmony() {
            let tools = formats.tools.map(|_| Arc::clone(tools));
            let harmony = Harmony::new(opening, tools, formats.reasoning.is_some());
            return AnswerReader(Form::Harmony(harmony));
        }
        let think = formats.reasoning.map(|_| Think::new(opening));
        let tools = formats.tools.and_then(|format| ToolParser::new(format, Arc::clone(tools)));
        AnswerReader(Form::Tagged { think, tools })
    }

    /// Takes a piece of text, and appends what is certain.
    pub fn push(&mut self, text: &str, out: &mut Parts) {
        match &mut self.0 {
            Form::Harmony(harmony) => harmony.push(text, out),
            Form::Tagged { think: Some(think), tools } => {
                let text = think.push(text, out);
                push_content(tools, &text, out);
            }
            Form::Tagged { think: None, tools } => push_content(tools, text, out),
        }
    }

    /// The text is over: appends what was held back.
    pub fn finish(&mut self, out: &mut Parts) {
        match &mut self.0 {
            Form::Harmony(harmony) => harmony.finish(out),
            Form::Tagged { think, tools } => {
                if let Some(think) = think {
                    let text = think.finish(out);
                    push_content(tools, &text, out);
                }
                if let Some(tools) = tools {
                    tools.finish(out);
                }
            }
        }
    }
}

fn push_content(tools: &mut Option<ToolParser>, text: &str, out: &mut Parts) {
    match tools {
        Some(tools) => tools.push(text, out),
        None => out.content(text),
    }
}
