//! Messages as templates expect them, where clients write them in another way.

use serde_json::{Value as Json, json as object};

use super::forms::{ArgumentsForm, ContentForm, Forms};
use super::{TemplateError, json, plain};

/// Marks the end of the message to continue, as in Transformers: a template may trim the blank.
const CONTINUE_TAG: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

/// The names under which clients and templates pass a message's reasoning.
const REASONING_FIELDS: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// A copy of `message` with its reasoning under the names that templates read, and with its
/// content and the arguments of its tool calls in the forms that the template can read.
pub(super) fn prepare(message: &Json, forms: Forms) -> Json {
    let mut message = message.clone();
    let Some(object) = message.as_object_mut() else { return message };
    let reasoning = REASONING_FIELDS
        .iter()
        .find_map(|field| object.get(*field).filter(|value| !value.is_null()).cloned());
    if let Some(reasoning) = reasoning {
        object.entry("thinking").or_insert_with(|| reasoning.clone());
        object.insert("reasoning_content".to_owned(), reasoning);
    }
    let calls = object.get_mut("tool_calls").and_then(Json::as_array_mut);
    for call in calls.into_iter().flatten() {
        if let Some(arguments) = call.pointer_mut("/function/arguments") {
            prepare_arguments(arguments, forms.arguments);
        }
    }
    if let Some(content) = object.get_mut("content") {
        match (forms.content, &*content) {
            (ContentForm::Text, Json::Array(parts)) => {
                if let Some(text) = joined(parts) {
                    *content = text.into();
                }
            }
            (ContentForm::Parts, Json::String(text)) => {
                *content = object!([{ "type": "text", "text": text }]);
            }
            _ => {}
        }
    }
    message
}

/// The API carries arguments as the text of a JSON object, and some clients as the object.
fn prepare_arguments(arguments: &mut Json, form: ArgumentsForm) {
    match (form, &*arguments) {
        // No arguments at all, as some clients write it.
        (_, Json::Null) => *arguments = object!({}),
        (_, Json::String(text)) if text.trim().is_empty() => *arguments = object!({}),
        (ArgumentsForm::Object, Json::String(text)) => {
            let parsed = serde_json::from_str::<Json>(text).ok();
            if let Some(parsed) = parsed.filter(Json::is_object) {
                *arguments = parsed;
            }
        }
        _ => {}
    }
    if form == ArgumentsForm::Text && arguments.is_object() {
        // Deeper than any request can be, an object stays one, and the template fails with it.
        if let Ok(text) = json::dumps(&plain(arguments), &json::Style::default()) {
            *arguments = text.into();
        }
    }
}

/// The text of parts that are all text, one part a line: words must not grow together.
fn joined(parts: &[Json]) -> Option<String> {
    let texts: Option<Vec<&str>> = parts.iter().map(|part| part["text"].as_str()).collect();
    texts.map(|texts| texts.join("\n"))
}

/// Puts the tag behind the last text of the last message; returns that text.
pub(super) fn tag_final_message(messages: &mut [Json]) -> Result<String, TemplateError> {
    let content = messages
        .last_mut()
        .and_then(|message| message.get_mut("content"))
        .ok_or(TemplateError::CannotContinue("the last message has no content"))?;
    let text = match content {
        Json::Array(parts) => {
            parts.iter_mut().rev().find_map(|part| part.get_mut("text").filter(|t| t.is_string()))
        }
        text => Some(text),
    };
    match text {
        Some(Json::String(text)) => {
            let before = text.clone();
            text.push_str(CONTINUE_TAG);
            Ok(before)
        }
        _ => Err(TemplateError::CannotContinue("the last message has no text")),
    }
}

/// Ends a prompt where [`tag_final_message`] put its tag.
pub(super) fn cut_at_tag(prompt: &mut String, last_text: &str) -> Result<(), TemplateError> {
    let tag = prompt.rfind(CONTINUE_TAG.trim_end()).filter(|_| prompt.contains(last_text.trim()));
    let Some(tag) = tag else {
        return Err(TemplateError::CannotContinue(
            "the chat template leaves out a part of the last message",
        ));
    };
    // Where the template has trimmed the tag's blank, it has trimmed the message's as well.
    let trimmed = !prompt[tag..].starts_with(CONTINUE_TAG);
    prompt.truncate(tag);
    if trimmed {
        prompt.truncate(prompt.trim_end().len());
    }
    Ok(())
}
