//! Answers in every format, however they are cut.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;

use super::*;
use crate::text::{AnswerFormats, AnswerReader, Opening, ReasoningFormat};

fn content(text: &str) -> Vec<Part> {
    vec![Part::Content(text.to_owned())]
}

fn reasoning(text: &str) -> Vec<Part> {
    vec![Part::Reasoning(text.to_owned())]
}

fn call(name: &str, arguments: &str) -> Vec<Part> {
    vec![Part::Call(name.to_owned()), Part::Arguments(arguments.to_owned())]
}

fn tools() -> Arc<[Tool]> {
    let parameters = json!({
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "hourly": {"type": "boolean"},
            "tags": {"type": "array", "items": {"type": "string"}},
            "near": {"anyOf": [{"type": "object"}, {"type": "null"}]},
            "note": {},
        },
        "required": ["city"],
    });
    let weather = parameters.as_object().cloned();
    [Tool::new("weather".into(), weather, false), Tool::new("now".into(), None, false)].into()
}

fn read(formats: AnswerFormats, opening: Opening, pieces: &[&str]) -> Vec<Part> {
    let mut reader = AnswerReader::new(formats, opening, &tools());
    let mut parts = Parts::default();
    pieces.iter().for_each(|piece| reader.push(piece, &mut parts));
    reader.finish(&mut parts);
    parts.drain().collect()
}

/// Reads `text` whole, cut in two at every place, and a character at a time.
fn check_from(formats: AnswerFormats, opening: Opening, text: &str, expected: &[Vec<Part>]) {
    let expected = expected.concat();
    assert_eq!(read(formats, opening, &[text]), expected, "{text:?}");
    let borders: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
    for at in &borders {
        let (begin, end) = text.split_at(*at);
        assert_eq!(read(formats, opening, &[begin, end]), expected, "{begin:?} {end:?}");
    }
    let ends = borders.iter().skip(1).copied().chain([text.len()]);
    let each: Vec<&str> = borders.iter().zip(ends).map(|(begin, end)| &text[*begin..end]).collect();
    assert_eq!(read(formats, opening, &each), expected, "{text:?} by character");
}

fn check(format: ToolFormat, cases: &[(&str, &[Vec<Part>])]) {
    let formats = AnswerFormats { tools: Some(format), reasoning: None };
    for (text, expected) in cases {
        check_from(formats, Opening::Before, text, expected);
    }
}

const UNICODE: &str = r#"{"city": "Zürich \"北\" 👩‍🚀 \u00e9 } ] </tool_call>"}"#;

#[test]
fn hermes_calls_are_read() {
    let unicode =
        format!("<tool_call>\n{{\"name\": \"weather\", \"arguments\": {UNICODE}}}\n</tool_call>");
    check(
        ToolFormat::Hermes,
        &[
            ("", &[]),
            ("Hello, 世界.\n", &[content("Hello, 世界.\n")]),
            ("a < b <tool> <tool_cal", &[content("a < b <tool> <tool_cal")]),
            (
                "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>",
                &[call("now", "{}")],
            ),
            (
                "I look.\n\n<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>\n\
                 <tool_call>{\"name\":\"weather\",\"arguments\":{\"city\":\"a\",\"near\":{\"x\":[1]}}}\
                 </tool_call>\n",
                &[
                    content("I look."),
                    call("now", "{}"),
                    call("weather", r#"{"city":"a","near":{"x":[1]}}"#),
                ],
            ),
            (unicode.as_str(), &[call("weather", UNICODE)]),
            // Another order, arguments in a string, no arguments.
            (
                r#"<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call> and"#,
                &[call("f", r#"{"a":1}"#), content(" and")],
            ),
            (
                r#"<tool_call>{"name": "f", "arguments": "{\"a\": 1}"}</tool_call>"#,
                &[call("f", r#"{"a": 1}"#)],
            ),
            (r#"<tool_call>{"name": "f"}</tool_call>"#, &[call("f", "{}")]),
            // What is no call stays as it is.
            (
                "see\n<tool_call>now()</tool_call>.",
                &[content("see\n<tool_call>now()</tool_call>.")],
            ),
            (
                r#"<tool_call>{"nom": "f"}</tool_call>"#,
                &[content(r#"<tool_call>{"nom": "f"}</tool_call>"#)],
            ),
            (
                r#"<tool_call>x<tool_call>{"name": "f", "arguments": {}}</tool_call>"#,
                &[content("<tool_call>x"), call("f", "{}")],
            ),
            // Cut off in the name, in the arguments, behind them; brackets and tags forgotten.
            ("<tool_call>\n{\"name\": \"wea", &[content("<tool_call>\n{\"name\": \"wea")]),
            (
                r#"<tool_call>{"name": "weather", "arguments": {"city": "Par"#,
                &[call("weather", r#"{"city": "Par"#)],
            ),
            (r#"<tool_call>{"name": "f", "arguments": {}}</tool"#, &[call("f", "{}")]),
            (
                r#"<tool_call>{"name": "f", "arguments": {"a": 1}</tool_call>"#,
                &[call("f", r#"{"a": 1}"#)],
            ),
            (
                r#"<tool_call>{"name": "f", "arguments": {"a": 1</tool_call>"#,
                &[call("f", r#"{"a": 1"#)],
            ),
            (
                r#"<tool_call>{"name": "f", "arguments": {}} so be it"#,
                &[call("f", "{}"), content(" so be it")],
            ),
        ],
    );
}

#[test]
fn qwen3_coder_calls_are_read() {
    let one = "<tool_call>\n<function=weather>\n<parameter=city>\nPa\"ris\n東\n</parameter>\n\
               <parameter=days>\n3\n</parameter>\n<parameter=hourly>\nTrue\n</parameter>\n\
               <parameter=tags>\n[\"a\", \"b\"]\n</parameter>\n<parameter=near>\nnull\n</parameter>\n\
               <parameter=note>\n7\n</parameter>\n</function>\n</tool_call>";
    let arguments = r#"{"city": "Pa\"ris\n東", "days": 3, "hourly": true, "tags": ["a","b"], "near": null, "note": "7"}"#;
    let two = format!("Two:\n{one}\n<tool_call>\n<function=now>\n</function>\n</tool_call>");
    check(
        ToolFormat::Qwen3Coder,
        &[
            ("a <b> <function", &[content("a <b> <function")]),
            (one, &[call("weather", arguments)]),
            (&two, &[content("Two:"), call("weather", arguments), call("now", "{}")]),
            // A value of another type than the schema's, an unknown tool, no outer tag.
            (
                "<function=f>\n<parameter=x>\n1\n</parameter>\n</function>",
                &[call("f", r#"{"x": "1"}"#)],
            ),
            (
                "<tool_call><function=weather><parameter=days>many</parameter></function></tool_call> ok",
                &[call("weather", r#"{"days": "many"}"#), content(" ok")],
            ),
            // The end of a value is forgotten.
            (
                "<tool_call>\n<function=weather>\n<parameter=city>\nParis\n<parameter=days>\n1\n\
                 </function>\n</tool_call>",
                &[call("weather", r#"{"city": "Paris", "days": 1}"#)],
            ),
            // What is no call, and what is cut off.
            ("x\n<tool_call>\nno", &[content("x\n<tool_call>\nno")]),
            ("x <function=a b\n>", &[content("x <function=a b\n>")]),
            ("<tool_call>\n<function=wea", &[content("<tool_call>\n<function=wea")]),
            (
                "<tool_call>\n<function=weather>\n<parameter=city>\nPar",
                &[call("weather", r#"{"city": "Par""#)],
            ),
        ],
    );
}

#[test]
fn llama_calls_are_read_where_they_are_the_answer() {
    check(
        ToolFormat::Llama3Json,
        &[
            ("Hi {\"name\": 1}", &[content("Hi {\"name\": 1}")]),
            (
                "\n{\"name\": \"weather\", \"parameters\": {\"city\": \"É\"}}",
                &[call("weather", "{\"city\": \"É\"}")],
            ),
            (r#"<|python_tag|>{"name": "now", "parameters": {}}"#, &[call("now", "{}")]),
            (
                r#"{"type": "function", "name": "now", "parameters": {}}; {"name": "now", "arguments": {"a":1}}"#,
                &[call("now", "{}"), call("now", r#"{"a":1}"#)],
            ),
            (
                r#"Let me see. <|python_tag|>{"name": "now", "parameters": {}}"#,
                &[content("Let me see."), call("now", "{}")],
            ),
            // Answers in JSON, and calls of what was not offered.
            (r#"{"name": "Ada", "born": 1815}"#, &[content(r#"{"name": "Ada", "born": 1815}"#)]),
            (
                r#"{"name": "rm", "parameters": {}}"#,
                &[content(r#"{"name": "rm", "parameters": {}}"#)],
            ),
            (" {\"na", &[content(" {\"na")]),
            ("<|python_tag|>import os", &[content("<|python_tag|>import os")]),
            (r#"{"name": "now", "parameters": {"a": "b"#, &[call("now", r#"{"a": "b"#)]),
            (r#"{"name": "now", "parameters": {}} done"#, &[call("now", "{}"), content(" done")]),
        ],
    );
}

#[test]
fn mistral_calls_are_read_in_both_forms() {
    check(
        ToolFormat::Mistral,
        &[
            ("[TOOL] [TOOL_CALL", &[content("[TOOL] [TOOL_CALL")]),
            (
                r#"[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "ü"}, "id": "a23456789"}, {"name": "now", "arguments": {}}]"#,
                &[call("weather", r#"{"city": "ü"}"#), call("now", "{}")],
            ),
            (
                r#"Well.[TOOL_CALLS]weather[ARGS]{"city": "[TOOL_CALLS]"}[TOOL_CALLS]now[ARGS]{}"#,
                &[
                    content("Well."),
                    call("weather", r#"{"city": "[TOOL_CALLS]"}"#),
                    call("now", "{}"),
                ],
            ),
            ("[TOOL_CALLS]now[CALL_ID]x1[ARGS]{}", &[call("now", "{}")]),
            ("[TOOL_CALLS]now{\"a\": 1}", &[call("now", "{\"a\": 1}")]),
            // What is no call, and what is cut off.
            ("[TOOL_CALLS] so so", &[content("[TOOL_CALLS] so so")]),
            ("[TOOL_CALLS][1]", &[content("[TOOL_CALLS][1]")]),
            ("[TOOL_CALLS]now[ARG", &[content("[TOOL_CALLS]now[ARG")]),
            ("[TOOL_CALLS]now[ARGS]{\"a\": [", &[call("now", "{\"a\": [")]),
            (
                r#"[TOOL_CALLS][{"name": "now", "arguments": {}}, 5]"#,
                &[call("now", "{}"), content(", 5]")],
            ),
        ],
    );
}

#[test]
fn harmony_messages_become_parts() {
    let formats = AnswerFormats {
        tools: Some(ToolFormat::Harmony),
        reasoning: Some(ReasoningFormat::Harmony),
    };
    let cases: &[(&str, &[Vec<Part>])] = &[
        ("<|channel|>final<|message|>Hé <|b> x<|return|>", &[content("Hé <|b> x")]),
        (
            "<|channel|>analysis<|message|>We think.<|end|><|start|>assistant<|channel|>analysis\
             <|message|>More.<|end|><|start|>assistant<|channel|>final<|message|>Yes",
            &[reasoning("We think.\nMore."), content("Yes")],
        ),
        (
            "<|channel|>analysis<|message|>Look.<|end|><|start|>assistant<|channel|>commentary \
             to=functions.weather <|constrain|>json<|message|>{\"city\": \"東\"}<|call|>",
            &[reasoning("Look."), call("weather", "{\"city\": \"東\"}")],
        ),
        (
            "<|channel|>commentary<|message|>First.<|end|><|start|>assistant to=functions.now\
             <|channel|>commentary json<|message|>{}",
            &[content("First."), call("now", "{}")],
        ),
        (
            "<|channel|>commentary to=now<|message|>{}<|call|><|start|>assistant<|channel|>\
             analysis to=python<|message|>1",
            &[call("now", "{}"), reasoning("1")],
        ),
        // An end is forgotten; no header at all; cut off in a header and in a message.
        (
            "<|channel|>analysis<|message|>a<|channel|>final<|message|>b",
            &[reasoning("a"), content("b")],
        ),
        ("plain", &[content("plain")]),
        ("<|channel|>analy", &[]),
        ("<|channel|>analysis<|message|>so<|e", &[reasoning("so<|e")]),
    ];
    for (text, expected) in cases {
        check_from(formats, Opening::Before, text, expected);
    }
    check_from(formats, Opening::Closed, " and on<|return|>", &[content(" and on")]);
    let text = "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>commentary \
                to=functions.f<|message|>{}";
    let only = |tools, reasoning| AnswerFormats { tools, reasoning };
    let no_tools = only(None, Some(ReasoningFormat::Harmony));
    check_from(no_tools, Opening::Before, text, &[reasoning("a"), content("{}")]);
    let no_reasoning = only(Some(ToolFormat::Harmony), None);
    check_from(no_reasoning, Opening::Before, text, &[content("a"), call("f", "{}")]);
}

#[test]
fn thoughts_are_split_off_before_calls_are_looked_for() {
    let alone = AnswerFormats { tools: None, reasoning: Some(ReasoningFormat::Think) };
    let both = AnswerFormats { tools: Some(ToolFormat::Hermes), ..alone };
    let inside: &[(&str, &[Vec<Part>])] = &[
        ("\nHm,\n\nyes.\n</think>\n\nNo.\n", &[reasoning("Hm,\n\nyes."), content("No.\n")]),
        ("never <b> closed </thin\n", &[reasoning("never <b> closed </thin")]),
        ("\n\n</think>\n\nA", &[content("A")]),
        ("</think>", &[]),
    ];
    for (text, expected) in inside {
        check_from(alone, Opening::Inside, text, expected);
        check_from(both, Opening::Inside, text, expected);
        let opened = format!("\n<think>{text}");
        check_from(alone, Opening::Before, &opened, expected);
        check_from(both, Opening::Closed, &opened, expected);
    }
    for text in ["a <think>b</think>", "</think>a", " <thin", "\n<thinking>"] {
        check_from(alone, Opening::Before, text, &[content(text)]);
    }
    check_from(
        both,
        Opening::Inside,
        "a <tool_call>?</think>\n\n<tool_call>{\"name\": \"now\", \"arguments\": {}}</tool_call>",
        &[reasoning("a <tool_call>?"), call("now", "{}")],
    );
}

#[test]
fn calls_are_enforced_in_the_form_that_the_reader_expects() {
    let formats = |tools, reasoning| AnswerFormats { tools, reasoning }.enforced_tools();
    assert_eq!(formats(None, None), ToolFormat::Hermes);
    assert_eq!(formats(None, Some(ReasoningFormat::Think)), ToolFormat::Hermes);
    assert_eq!(formats(None, Some(ReasoningFormat::Harmony)), ToolFormat::Harmony);
    assert_eq!(formats(Some(ToolFormat::Mistral), None), ToolFormat::Mistral);
}

#[test]
fn the_end_of_a_prompt_tells_where_an_answer_begins() {
    let think = AnswerFormats { tools: None, reasoning: Some(ReasoningFormat::Think) };
    let harmony = AnswerFormats { tools: Some(ToolFormat::Harmony), reasoning: None };
    for (formats, prompt, expected) in [
        (think, "<|im_start|>assistant\n<think>\n", Opening::Inside),
        (think, "<|im_start|>assistant\n<think>\n\n</think>\n\n", Opening::Closed),
        (think, "what is <think>?<|im_end|>\n<|im_start|>assistant\n", Opening::Before),
        (harmony, "<|message|>hi<|end|><|start|>assistant", Opening::Before),
        (harmony, "user: hi\n", Opening::Before),
        (harmony, "<|start|>assistant<|channel|>final<|message|>We", Opening::Closed),
    ] {
        assert_eq!(formats.opening(prompt), expected, "{prompt:?}");
    }
}

/// Fragments that answers are made of, in and out of place.
const FRAGMENTS: &[&str] = &[
    "<tool_call>",
    "</tool_call>",
    "<function=",
    "<function=weather>",
    "</function>",
    "<parameter=city>",
    "</parameter>",
    "[TOOL_CALLS]",
    "[TOOL_CALLS]now[ARGS]",
    "[ARGS]",
    "<|python_tag|>",
    "<think>",
    "</think>",
    "<|start|>assistant",
    "<|channel|>analysis",
    "<|channel|>final<|message|>",
    "<|channel|>commentary to=functions.now",
    "<|constrain|>json",
    "<|message|>",
    "<|end|>",
    "<|call|>",
    "{\"name\": \"weather\", \"arguments\": {",
    "{\"name\": \"now\", \"parameters\": {",
    "\"type\": \"function\", ",
    "\"name\": \"now\"",
    "{}",
    "{\"city\": \"é\"}",
    "[",
    "]",
    "{",
    "}",
    "\"",
    "\\",
    ":",
    ",",
    ";",
    ">",
    "1",
    "a",
    "世",
    " ",
    "\n",
    "<",
    "<|",
];

#[test]
fn random_answers_read_the_same_however_they_are_cut() {
    let mut random = StdRng::seed_from_u64(5);
    let tools = [
        None,
        Some(ToolFormat::Hermes),
        Some(ToolFormat::Qwen3Coder),
        Some(ToolFormat::Llama3Json),
        Some(ToolFormat::Mistral),
        Some(ToolFormat::Harmony),
    ];
    let reasonings = [None, Some(ReasoningFormat::Think), Some(ReasoningFormat::Harmony)];
    let openings = [Opening::Inside, Opening::Before, Opening::Closed];
    let mut num_calls = 0;
    for _ in 0..30_000 {
        let formats = AnswerFormats {
            tools: tools[random.random_range(0..tools.len())],
            reasoning: reasonings[random.random_range(0..reasonings.len())],
        };
        let opening = openings[random.random_range(0..openings.len())];
        let length = random.random_range(0..14);
        let fragments = (0..length).map(|_| FRAGMENTS[random.random_range(0..FRAGMENTS.len())]);
        let text: String = fragments.collect();
        let whole = read(formats, opening, &[&text]);
        num_calls += whole.iter().filter(|part| matches!(part, Part::Call(_))).count();
        let mut pieces = Vec::new();
        let mut begin = 0;
        for (at, _) in text.char_indices() {
            if random.random_range(0..3) == 0 {
                pieces.push(&text[begin..at]);
                begin = at;
            }
        }
        pieces.push(&text[begin..]);
        assert_eq!(read(formats, opening, &pieces), whole, "{formats:?} {opening:?} {pieces:?}");
    }
    assert!(num_calls > 500, "{num_calls} calls");
}

/// The templates of `tests/fixtures/templates`, which have the shapes of real ones. Some have
/// other words for the markers: those show nothing that we know.
#[test]
fn a_template_shows_the_formats() {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/templates");
    use ReasoningFormat as R;
    use ToolFormat as T;
    let known = |name: &str| match name {
        "harmony" => (Some(T::Harmony), Some(R::Harmony)),
        "mistral" | "mistral_small" => (Some(T::Mistral), None),
        "llama3" | "llama4" => (Some(T::Llama3Json), None),
        "qwen3" => (Some(T::Hermes), Some(R::Think)),
        "deepseek" | "deepseek_r1" | "glm4" | "granite" | "olmo3" | "smollm3" => {
            (None, Some(R::Think))
        }
        _ => (None, None),
    };
    // As Qwen3-Coder's, GLM-4.5's and Granite 3's write them.
    for (source, expected) in [
        ("<tool_call>\n<function=' + call.name + '>\n<parameter=", Some(T::Qwen3Coder)),
        ("<tool_call>{{ call.name }}<arg_key>{{ arguments }}", None),
        ("<|tool_call|>{{ call.arguments }}", None),
    ] {
        assert_eq!(T::of_template(source), expected, "{source}");
    }
    let mut num_seen = 0;
    for file in std::fs::read_dir(directory).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "jinja") {
            continue;
        }
        num_seen += 1;
        let source = std::fs::read_to_string(&path).unwrap();
        let name = path.file_stem().unwrap().to_str().unwrap();
        let formats = (T::of_template(&source), R::of_template(&source));
        assert_eq!(formats, known(name), "{name}");
    }
    assert!(num_seen >= 20, "{num_seen} templates");
}
