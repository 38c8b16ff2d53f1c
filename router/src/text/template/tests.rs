//! Renderings compared with Python's, and the limits.

use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};

use serde_json::json;

use super::*;

/// The moment at which `make_templates.py` stops its clock: 2024-07-26 09:05:07.
fn clock() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_721_984_707)
}

fn fixture(name: &str) -> Json {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/templates");
    let file = PathBuf::from(directory).join(name).with_extension("json");
    serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
}

fn templates(source: &str, special_tokens: &Json) -> ChatTemplates {
    let special_tokens = special_tokens.as_object().cloned().unwrap_or_default();
    ChatTemplates::new(vec![(DEFAULT.to_owned(), source.to_owned())], special_tokens, clock)
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
        (Err(TemplateError::Failed(_) | TemplateError::Unusable(_)), None, None) => None,
        (Ok(text), Some(expected), _) => Some(format!("{text:?} is not {expected:?}")),
        (result, expected, raised) => Some(format!("{result:?}, not {expected:?} {raised:?}")),
    }
}

#[test]
fn conversations_render_as_in_python() {
    for name in ["chatml", "llama3", "qwen3", "mistral", "gemma", "deepseek", "harmony", "marked"] {
        let fixture = fixture(name);
        let templates =
            templates(fixture["template"].as_str().unwrap(), &fixture["special_tokens"]);
        for (index, case) in fixture["cases"].as_array().unwrap().iter().enumerate() {
            let difference = difference(render(&templates, case), case);
            assert_eq!(difference, None, "{name}, case {index}");
        }
    }
}

#[test]
fn expressions_mean_what_they_mean_in_python() {
    let fixture = fixture("expressions");
    let mut differences = Vec::new();
    for case in fixture["cases"].as_array().unwrap() {
        let source = case["template"].as_str().unwrap();
        let prompt = json!({ "messages": fixture["messages"], "kwargs": fixture["context"] });
        let result = render(&templates(source, &Json::Null), &prompt);
        if let Some(difference) = difference(result, case) {
            differences.push(format!("{source}\n  {difference}"));
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
fn arguments_of_tool_calls_are_objects_to_a_template() {
    let source = "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ c.function.arguments | tojson }};{% endfor %}{% endfor %}";
    let call = |arguments: &str| json!({ "function": { "name": "f", "arguments": arguments } });
    let calls = [call("{\"b\":1,\"a\":[2]}"), call("not json"), call("[1]")];
    let chat = messages(&json!([{ "role": "assistant", "content": null, "tool_calls": calls }]));
    let text = render(&templates(source, &Json::Null), &chat).unwrap();
    assert_eq!(text, "{\"b\": 1, \"a\": [2]};\"not json\";\"[1]\";");
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
fn a_template_is_found_wherever_a_checkpoint_keeps_it() {
    let named = |list: &[(&str, &str)]| -> Json {
        let entry = |(name, source): &(&str, &str)| json!({ "name": name, "template": source });
        json!({ "chat_template": list.iter().map(entry).collect::<Vec<_>>() })
    };
    let text = |source: &str| json!({ "chat_template": source });
    let lists = named(&[("default", "D"), ("tool_use", "T")]);
    for (file, tool_use, json, expected) in [
        (Some("F"), None, vec![text("C")], Some(["F", "F"])),
        (Some("F"), Some("U"), vec![text("C")], Some(["F", "U"])),
        (None, Some("U"), vec![text("C"), text("L")], Some(["C", "C"])),
        (None, None, vec![Json::Null, text("L")], Some(["L", "L"])),
        (None, None, vec![lists], Some(["D", "T"])),
        (None, None, vec![named(&[("chat", "O")])], Some(["O", "O"])),
        (None, None, vec![json!({ "chat_template": [] })], None),
        (None, None, vec![Json::Null, json!({})], None),
    ] {
        let context = format!("{file:?} {tool_use:?} {json:?}");
        let [default, tool_use] = [file, tool_use].map(|source| source.map(str::to_owned));
        let loaded = ChatTemplates::load(TemplateFiles { default, tool_use, json }, Map::new());
        let texts = loaded.unwrap().map(|templates| {
            [json!({ "messages": [] }), json!({ "messages": [], "tools": [{}] })]
                .map(|case| render(&templates, &case).unwrap())
        });
        assert_eq!(texts, expected.map(|texts| texts.map(str::to_owned)), "{context}");
    }
    for wrong in [json!(7), json!([{ "name": "default" }])] {
        let json = vec![json!({ "chat_template": wrong })];
        let files = TemplateFiles { default: None, tool_use: None, json };
        assert!(ChatTemplates::load(files, Map::new()).is_err(), "{wrong}");
    }
}

#[test]
fn special_tokens_are_read_from_both_files_in_both_spellings() {
    let map = json!({ "bos_token": "<s>", "eos_token": { "content": "</s>", "lstrip": false } });
    let config = json!({ "eos_token": "<end>", "pad_token": null, "add_bos_token": true });
    let tokens = special_tokens(&map, &config);
    assert_eq!(Json::Object(tokens), json!({ "bos_token": "<s>", "eos_token": "<end>" }));
}

#[test]
fn a_client_can_pass_variables_but_not_replace_the_conversation() {
    let source = "{{ bos_token }}{{ mood }}{{ messages | length }}{{ tools is none }}";
    let templates = templates(source, &json!({ "bos_token": "<s>" }));
    let case = json!({ "messages": [], "kwargs": { "mood": "!", "messages": [1], "tools": [1] } });
    assert_eq!(render(&templates, &case).unwrap(), "<s>!0True");
}

#[test]
fn a_template_that_does_not_compile_says_so_when_it_is_used() {
    let error = render(&templates("a\n{% if %}", &Json::Null), &json!({ "messages": [] }));
    let text = error.unwrap_err().to_string();
    assert!(text.starts_with("the model's chat template is not usable: syntax error"), "{text}");
    assert!(text.ends_with("(line 2)"), "{text}");
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
