//! The form in which a template reads what clients write in several.
//!
//! A template is asked: a form that it cannot read makes it fail, or comes out as Python would
//! show it, or not at all.

use serde_json::{Map, Value as Json, json};

use super::{ChatPrompt, ChatTemplates};

/// What a template reads.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Forms {
    pub(super) content: ContentForm,
    pub(super) arguments: ArgumentsForm,
}

/// How a template can read the content of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum ContentForm {
    /// A string or a list of parts.
    #[default]
    Any,
    /// A string only.
    Text,
    /// A list of parts only.
    Parts,
}

/// How a template can read the arguments of a tool call.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum ArgumentsForm {
    /// An object, as most templates do, and as Transformers asks for.
    #[default]
    Object,
    /// The JSON text that the API carries, which the template joins to other strings.
    Text,
}

/// A word that no template says; as long as the ids that some of them insist on.
const PROBE: &str = "a5f3c81e0";

impl ChatTemplates {
    /// Asks the template for its forms.
    pub(super) fn probe_forms(&mut self) {
        self.forms.content = content(self);
        if !reads_arguments(self) {
            // What renders as text alone is text; what renders in neither form stays an object.
            self.forms.arguments = ArgumentsForm::Text;
            if !reads_arguments(self) {
                self.forms.arguments = ArgumentsForm::Object;
            }
        }
    }
}

fn content(templates: &ChatTemplates) -> ContentForm {
    let reads = |content: Json| {
        let text = render(templates, &[json!({ "role": "user", "content": content })]);
        text.is_some_and(|text| text.contains(PROBE) && !is_quoted(&text))
    };
    match (reads(PROBE.into()), reads(json!([{ "type": "text", "text": PROBE }]))) {
        (true, false) => ContentForm::Text,
        (false, true) => ContentForm::Parts,
        // A template that reads neither wants more than one message of a user.
        _ => ContentForm::Any,
    }
}

/// Whether the arguments of a call come out, and not as Python would show them.
fn reads_arguments(templates: &ChatTemplates) -> bool {
    const KEY: &str = "b6e4d92f";
    let arguments = json!({ KEY: 1 });
    let call = json!({ "id": PROBE, "type": "function",
        "function": { "name": "f", "arguments": arguments } });
    let messages = [
        json!({ "role": "user", "content": "a" }),
        json!({ "role": "assistant", "content": "", "tool_calls": [call] }),
        json!({ "role": "tool", "content": "b", "name": "f", "tool_call_id": PROBE }),
    ];
    let text = render(templates, &messages);
    text.is_some_and(|text| text.contains(KEY) && !text.contains(&format!("'{KEY}'")))
}

fn render(templates: &ChatTemplates, messages: &[Json]) -> Option<String> {
    let prompt = ChatPrompt {
        messages,
        tools: None,
        add_generation_prompt: true,
        continue_final_message: false,
        kwargs: &Map::new(),
    };
    templates.render(&prompt).ok()
}

/// Whether the probe stands in quotes, as inside of a list that is shown.
fn is_quoted(text: &str) -> bool {
    ["'", "\""].iter().any(|quote| text.contains(&format!("{quote}{PROBE}{quote}")))
}
