//! The messages of a conversation, from OpenAI's form to the one that chat templates read.
//!
//! Contents become strings. The arguments of tool calls are checked to be JSON objects and stay as
//! the client wrote them: which form a template reads is known where it is rendered. What a
//! template cannot see is refused by name.

use serde_json::{Map, Value};

use super::error::ApiError;
use super::fields::{Fields, must_be, quoted};

const ROLES: &[&str] = &["system", "developer", "user", "assistant", "tool"];

/// Keys that a template may read beside role, content and tool calls; all strings.
const TEXT_KEYS: &[&str] = &["name", "tool_call_id", "reasoning_content", "reasoning"];

/// Reads `messages`: at least one, each with a role and a content.
pub(crate) fn read_messages(fields: &mut Fields) -> Result<Vec<Value>, ApiError> {
    let messages = match fields.value("messages") {
        None => return Err(ApiError::field("messages", "must be given")),
        Some(Value::Array(messages)) if !messages.is_empty() => messages,
        Some(Value::Array(_)) => {
            return Err(ApiError::field("messages", "must hold at least one message"));
        }
        Some(other) => return Err(must_be("messages", "a list of messages", &other)),
    };
    let read = |(i, message)| read_message(&format!("messages[{i}]"), message);
    messages.into_iter().enumerate().map(read).collect()
}

fn read_message(at: &str, message: Value) -> Result<Value, ApiError> {
    let mut given = match message {
        Value::Object(given) => given,
        other => return Err(must_be(at, "an object", &other)),
    };
    let mut message = Map::new();
    let role = match given.swap_remove("role") {
        Some(Value::String(role)) if ROLES.contains(&role.as_str()) => role,
        Some(other) => {
            return Err(must_be(&format!("{at}.role"), &format!("one of {}", list(ROLES)), &other));
        }
        None => return Err(ApiError::field(format!("{at}.role"), "must be given")),
    };
    let tool_calls = given.swap_remove("tool_calls").filter(|calls| !calls.is_null());
    let content = given.swap_remove("content").filter(|content| !content.is_null());
    let content = match content {
        Some(content) => read_content(&format!("{at}.content"), content)?,
        // An answer may consist of tool calls alone.
        None if role == "assistant" && tool_calls.is_some() => String::new(),
        None => return Err(ApiError::field(format!("{at}.content"), "must be given")),
    };
    if let Some(call) = given.get("function_call").filter(|call| !call.is_null()) {
        return Err(must_be(&format!("{at}.function_call"), "given as tool_calls", call));
    }
    message.insert("role".into(), Value::String(role));
    message.insert("content".into(), Value::String(content));
    for key in TEXT_KEYS {
        match given.swap_remove(*key) {
            None | Some(Value::Null) => {}
            Some(Value::String(text)) => {
                message.insert((*key).into(), Value::String(text));
            }
            Some(other) => return Err(must_be(&format!("{at}.{key}"), "a string", &other)),
        }
    }
    if let Some(calls) = tool_calls {
        let calls = read_tool_calls(&format!("{at}.tool_calls"), calls)?;
        message.insert("tool_calls".into(), calls);
    }
    Ok(Value::Object(message))
}

/// A string, or the text of text parts one after the other.
fn read_content(at: &str, content: Value) -> Result<String, ApiError> {
    let parts = match content {
        Value::String(text) => return Ok(text),
        Value::Array(parts) => parts,
        other => return Err(must_be(at, "a string or a list of parts", &other)),
    };
    let mut text = String::new();
    for (i, part) in parts.iter().enumerate() {
        let at = format!("{at}[{i}]");
        match part.get("type").and_then(Value::as_str) {
            Some("text") => match part.get("text") {
                Some(Value::String(part)) => text.push_str(part),
                Some(other) => return Err(must_be(&format!("{at}.text"), "a string", other)),
                None => return Err(ApiError::field(format!("{at}.text"), "must be given")),
            },
            Some(other) => {
                let rule = format!("is {}, and this model reads parts of type text", quoted(other));
                return Err(ApiError::field(format!("{at}.type"), rule));
            }
            None => return Err(must_be(&at, "an object with a type", part)),
        }
    }
    Ok(text)
}

fn read_tool_calls(at: &str, calls: Value) -> Result<Value, ApiError> {
    let Value::Array(mut calls) = calls else {
        return Err(must_be(at, "a list of tool calls", &calls));
    };
    for (i, call) in calls.iter_mut().enumerate() {
        let at = format!("{at}[{i}].function");
        let Some(function) = call.get_mut("function").and_then(Value::as_object_mut) else {
            return Err(ApiError::field(at, "must be an object with a name and arguments"));
        };
        match function.get("name") {
            Some(Value::String(_)) => {}
            Some(other) => return Err(must_be(&format!("{at}.name"), "a string", other)),
            None => return Err(ApiError::field(format!("{at}.name"), "must be given")),
        }
        let arguments = function.entry("arguments").or_insert(Value::Null);
        if !is_arguments(arguments) {
            let at = format!("{at}.arguments");
            return Err(must_be(&at, "a JSON object as a string", arguments));
        }
    }
    Ok(Value::Array(calls))
}

/// Whether these are a call's arguments: an object, as text or as it is, or nothing.
fn is_arguments(arguments: &Value) -> bool {
    match arguments {
        Value::Null | Value::Object(_) => true,
        Value::String(text) if text.trim().is_empty() => true,
        Value::String(text) => serde_json::from_str(text).is_ok_and(|json: Value| json.is_object()),
        _ => false,
    }
}

fn list(names: &[&str]) -> String {
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(messages: &[Value]) -> Result<Vec<Value>, ApiError> {
        let body = json!({"messages": messages}).to_string();
        read_messages(&mut Fields::parse(body.as_bytes()).unwrap())
    }

    #[test]
    fn contents_become_strings_and_arguments_stay_as_they_are() {
        let call = |arguments: Value| json!({"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}});
        let cases = [
            (json!({"role": "user", "content": "a"}), json!({"role": "user", "content": "a"})),
            (
                json!({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}),
                json!({"role": "user", "content": "ab"}),
            ),
            (
                json!({"role": "assistant", "content": null, "tool_calls": [call(json!("{\"x\": 1}"))]}),
                json!({"role": "assistant", "content": "", "tool_calls": [call(json!("{\"x\": 1}"))]}),
            ),
            (
                json!({"role": "assistant", "tool_calls": [call(json!({"x": 1})), call(json!("")), call(json!(null))], "audio": null}),
                json!({"role": "assistant", "content": "", "tool_calls": [call(json!({"x": 1})), call(json!("")), call(json!(null))]}),
            ),
            (
                json!({"role": "tool", "content": "4", "tool_call_id": "c", "name": null}),
                json!({"role": "tool", "content": "4", "tool_call_id": "c"}),
            ),
        ];
        for (given, expected) in cases {
            assert_eq!(read(&[given]).unwrap(), [expected]);
        }
    }
}
