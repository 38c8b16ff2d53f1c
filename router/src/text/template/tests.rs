//! Renderings compared with Python's, and the limits.

use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};

use serde_json::json;

use super::*;

/// The moment at which `make_templates.py` stops its clock: 2024-07-26 09:05:07.
fn clock() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_721_984_707)
}

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/templates");

fn fixture(name: &str) -> Json {
    let file = PathBuf::from(FIXTURES).join(name).with_extension("json");
    serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
}

fn compile(source: &str, special_tokens: &Json) -> Result<ChatTemplates, TextError> {
    let special_tokens = special_tokens.as_object().cloned().unwrap_or_default();
    let text = source.to_owned();
    let source = Source { name: DEFAULT, file: "chat_template.jinja".to_owned(), text };
    ChatTemplates::new(vec![source], Globals { special_tokens, kwargs: Map::new() }, clock)
}

fn templates(source: &str, special_tokens: &Json) -> ChatTemplates {
    compile(source, special_tokens).unwrap()
}

fn render(templates: &ChatTemplates, case: &Json) -> Result<String, TemplateError> {
    let none = Map::new();
    templates.render(&ChatPrompt {
        messages: case["messages"].as_array().unwrap(),
        tools: case.get("tools"),
        add_generation_prompt: case["add_generation_prompt"].as_bool().unwrap_or(false),
        continue_final_message: case["continue_final_message"].as_bool().unwrap_or(false),
        kwargs: case["kwargs"].as_object().unwrap_or(&none),
    })
}

/// What differs from Python, or `None`.
fn difference(result: Result<String, TemplateError>, case: &Json) -> Option<String> {
    match (result, case["expected"].as_str(), case["raises"].as_str()) {
        (Ok(text), Some(expected), _) if text == expected => None,
        (Err(TemplateError::Raised(text)), _, Some(raised)) if text == raised => None,
        (Err(TemplateError::Failed(_)), None, None) => None,
        (Ok(text), Some(expected), _) => Some(format!("{text:?} is not {expected:?}")),
        (result, expected, raised) => Some(format!("{result:?}, not {expected:?} {raised:?}")),
    }
}

#[test]
fn conversations_render_as_in_python() {
    let conversations = fixture("conversations");
    let mut num_templates = 0;
    for file in std::fs::read_dir(FIXTURES).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "jinja") {
            continue;
        }
        num_templates += 1;
        let source = std::fs::read_to_string(&path).unwrap();
        let name = path.file_stem().unwrap().to_str().unwrap();
        let fixture = fixture(name);
        let templates = templates(&source, &fixture["special_tokens"]);
        for case in fixture["cases"].as_array().unwrap() {
            let conversation = case["conversation"].as_str().unwrap();
            let rendered = render(&templates, &conversations[conversation]);
            let difference = difference(rendered, case);
            assert_eq!(difference, None, "{name}, {conversation}, {:?}", templates.forms);
        }
    }
    assert!(num_templates >= 22, "{num_templates} templates");
}

#[test]
fn expressions_mean_what_they_mean_in_python() {
    let fixture = fixture("expressions");
    let mut differences = Vec::new();
    for case in fixture["cases"].as_array().unwrap() {
        let source = case["template"].as_str().unwrap();
        let prompt = json!({ "messages": fixture["messages"], "kwargs": fixture["context"] });
        // What cannot be compiled fails, here as in Python.
        let result = match compile(source, &Json::Null) {
            Ok(templates) => render(&templates, &prompt),
            Err(error) => Err(TemplateError::Failed(error.to_string())),
        };
        if let Some(difference) = difference(result, case) {
            differences.push(format!("{source:?}\n  {difference}"));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

/// A template that prints roles and contents, and nothing else.
const PLAIN: &str = "{% for m in messages %}[{{ m.role }}]{{ m.content + '' }}[end]{% endfor %}";

fn messages(messages: &Json) -> Json {
    json!({ "messages": messages })
}

#[test]
fn parts_are_joined_for_a_template_that_reads_text_only() {
    let parts = json!([{ "role": "user", "content": [
        { "type": "text", "text": "One." }, { "type": "text", "text": "Two." },
    ]}]);
    for (source, expected) in [
        (PLAIN, "[user]One.\nTwo.[end]"),
        // Prints anything, and would print the list as Python shows it.
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "One.\nTwo."),
        // Leaves out what is not a string.
        ("{% for m in messages if m.content is string %}{{ m.content }}{% endfor %}", "One.\nTwo."),
        // Reads parts by itself.
        (
            "{% for m in messages %}{% for p in m.content %}<{{ p.text }}>{% endfor %}{% endfor %}",
            "<One.><Two.>",
        ),
    ] {
        let text = render(&templates(source, &Json::Null), &messages(&parts)).unwrap();
        assert_eq!(text, expected, "{source}");
    }
}

#[test]
fn text_becomes_a_part_for_a_template_that_reads_parts_only() {
    let source = "{% for m in messages %}{{ m.content[0].text }}{% endfor %}";
    let text = messages(&json!([{ "role": "user", "content": "Hi" }]));
    assert_eq!(render(&templates(source, &Json::Null), &text).unwrap(), "Hi");
}

#[test]
fn arguments_of_tool_calls_come_in_the_form_that_a_template_reads() {
    let calls = |body: &str| {
        format!(
            "{{% for m in messages %}}{{% for c in m.tool_calls or [] %}}{{% set a = \
             c.function.arguments %}}{body};{{% endfor %}}{{% endfor %}}"
        )
    };
    let call = |arguments: Json| json!({ "function": { "name": "f", "arguments": arguments } });
    let given = ["{\"b\":1,\"a\":[2]}".into(), json!({ "b": 1 }), "".into(), Json::Null];
    let given: Vec<Json> = given.into_iter().map(call).collect();
    let chat = messages(&json!([{ "role": "assistant", "content": null, "tool_calls": given }]));
    for (body, expected) in [
        ("{{ a | tojson }}", "{\"b\": 1, \"a\": [2]};{\"b\": 1};{};{};"),
        ("{{ a if a is string else a | tojson }}", "{\"b\": 1, \"a\": [2]};{\"b\": 1};{};{};"),
        ("{{ '<' + a + '>' }}", "<{\"b\":1,\"a\":[2]}>;<{\"b\": 1}>;<{}>;<{}>;"),
        ("{{ a }}", "{\"b\":1,\"a\":[2]};{\"b\": 1};{};{};"),
        ("{% for k in a %}{{ k }}={{ a[k] }} {% endfor %}", "b=1 a=[2] ;b=1 ;;;"),
    ] {
        let text = render(&templates(&calls(body), &Json::Null), &chat).unwrap();
        assert_eq!(text, expected, "{body}");
    }
    // What is no object stays as it is.
    let odd = [call("not json".into()), call("[1]".into())];
    let chat = messages(&json!([{ "role": "assistant", "content": null, "tool_calls": odd }]));
    let text = render(&templates(&calls("{{ a | tojson }}"), &Json::Null), &chat).unwrap();
    assert_eq!(text, "\"not json\";\"[1]\";");
}

#[test]
fn the_last_message_can_be_continued() {
    let trimming = "{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}[end]{% endfor %}";
    let dropping = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}";
    for (source, content, expected) in [
        (PLAIN, json!("Once "), Ok("[user]Hi[end][assistant]Once ")),
        (PLAIN, json!([{ "type": "text", "text": "Once" }]), Ok("[user]Hi[end][assistant]Once")),
        (trimming, json!(" Once "), Ok("[user]Hi[end][assistant]Once")),
        (dropping, json!("Once"), Err("the chat template leaves out a part of the last message")),
        (PLAIN, Json::Null, Err("the last message has no text")),
    ] {
        let chat = json!({
            "messages": [
                { "role": "user", "content": "Hi" },
                { "role": "assistant", "content": content },
            ],
            "continue_final_message": true,
        });
        let result = render(&templates(source, &Json::Null), &chat);
        let result = result.map_err(|error| error.to_string());
        let expected = expected
            .map(str::to_owned)
            .map_err(|reason| format!("continue_final_message: {reason}"));
        assert_eq!(result, expected, "{source}");
    }
    let both = json!({
        "messages": [], "continue_final_message": true, "add_generation_prompt": true
    });
    let result = render(&templates(PLAIN, &Json::Null), &both);
    assert!(matches!(result, Err(TemplateError::CannotContinue(_))), "{result:?}");
}

#[test]
fn a_client_can_pass_variables_but_not_replace_the_conversation() {
    let source = "{{ bos_token }}{{ mood }}{{ messages | length }}{{ tools is none }}";
    let templates = templates(source, &json!({ "bos_token": "<s>" }));
    let case = json!({ "messages": [], "kwargs": { "mood": "!", "messages": [1], "tools": [1] } });
    assert_eq!(render(&templates, &case).unwrap(), "<s>!0True");
}

#[test]
fn a_template_that_does_not_compile_is_named_with_its_line() {
    let error = compile("a\n{% if %}", &Json::Null).err().unwrap().to_string();
    let expected = "chat_template.jinja is not usable: the chat template does not compile: line 2: \
                    syntax error: ";
    assert!(error.starts_with(expected), "{error}");
}

#[test]
fn a_template_that_never_ends_is_stopped() {
    for (source, limit) in [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "steps"),
        ("{% for a in range(99) %}{{ 'x' * 999999 }}{% endfor %}", "bytes"),
    ] {
        let result = render(&templates(source, &Json::Null), &json!({ "messages": [] }));
        let text = result.unwrap_err().to_string();
        assert!(text.ends_with(limit), "{source} {text}");
    }
}

#[test]
fn a_recursion_without_an_end_is_an_error() {
    let deep_value = "{% set ns = namespace(x=1) %}{% for i in range(500) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x | tojson }}";
    for source in ["{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", deep_value] {
        let result = render(&templates(source, &Json::Null), &json!({ "messages": [] }));
        assert!(matches!(result, Err(TemplateError::Failed(_))), "{source} {result:?}");
    }
}
