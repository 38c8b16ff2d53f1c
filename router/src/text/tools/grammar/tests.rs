//! Grammars on a real matcher, token by token.

use std::sync::Arc;

use llguidance::toktrie::{ApproximateTokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::json;

use super::*;
use crate::text::reasoning::after_reasoning;
use crate::text::{AnswerReader, Part, Parts};

/// Markers that are single tokens, ids from 256.
const SPECIAL: &[&str] = &[
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "[TOOL_CALLS]",
    "[ARGS]",
    "<|python_tag|>",
    "<|start|>",
    "<|channel|>",
    "<|constrain|>",
    "<|message|>",
    "<|end|>",
];

/// How a vocabulary has the markers.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Vocabulary {
    /// Bytes alone.
    Bytes,
    /// As tokens that no text can hold.
    Special,
    /// As tokens like any other.
    Plain,
}

const ALL: [Vocabulary; 3] = [Vocabulary::Bytes, Vocabulary::Special, Vocabulary::Plain];

impl Vocabulary {
    fn token_id(self, marker: &str) -> Option<u32> {
        let at = SPECIAL.iter().position(|special| *special == marker);
        at.filter(|_| self != Vocabulary::Bytes).map(|at| 256 + at as u32)
    }

    fn tokens(self, text: &str) -> Vec<u32> {
        let mut tokens = Vec::new();
        let mut rest = text;
        while let Some(first) = rest.bytes().next() {
            let marker = SPECIAL.iter().find(|marker| rest.starts_with(**marker));
            let id = marker.and_then(|marker| Some((self.token_id(marker)?, marker.len())));
            let (id, length) = id.unwrap_or((first.into(), 1));
            tokens.push(id);
            rest = std::str::from_utf8(&rest.as_bytes()[length..]).expect("texts are ASCII");
        }
        tokens
    }

    fn factory(self) -> ParserFactory {
        let mut words: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
        for marker in SPECIAL {
            let prefix: &[u8] = if self == Vocabulary::Special { b"\xff" } else { b"" };
            words.push([prefix, marker.as_bytes()].concat());
        }
        words.push(b"\xff<eos>".to_vec());
        let info = TokRxInfo::new(words.len() as u32, words.len() as u32 - 1);
        let env = ApproximateTokEnv::new(TokTrie::from(&info, &words));
        let mut factory = ParserFactory::new_simple(&(Arc::new(env) as _)).unwrap();
        factory.quiet();
        factory
    }

    /// Whether the grammar takes every token of the text in turn, and then an end.
    fn accepts(self, constraint: &Constraint, text: &str) -> bool {
        let Constraint::Lark(lark) = constraint else { panic!("{constraint:?} is no grammar") };
        let grammar = llguidance::api::TopLevelGrammar::from_lark(lark.clone());
        let mut matcher = Matcher::new(self.factory().create_parser(grammar));
        if let Some(error) = matcher.get_error() {
            panic!("{error}\n{lark}");
        }
        for token in self.tokens(text) {
            if matcher.is_stopped() || !matcher.compute_mask().unwrap().is_allowed(token) {
                return false;
            }
            matcher.consume_token(token).unwrap();
        }
        matcher.is_accepting().unwrap()
    }
}

fn tools() -> Vec<Tool> {
    let parameters = json!({
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "unit": {"enum": ["c", "f"]},
        },
        "required": ["city"],
        "additionalProperties": false,
    });
    let weather = Tool::new("weather".into(), parameters.as_object().cloned(), true);
    vec![weather, Tool::new("now".into(), None, false)]
}

struct Case<'a> {
    tools: ToolFormat,
    reasoning: Option<ReasoningFormat>,
    opening: Opening,
    required: bool,
    parallel: bool,
    accepted: &'a [&'a str],
    refused: &'a [&'a str],
}

/// Whether the reader finds calls in an answer, and nothing else but reasoning.
fn is_calls(formats: AnswerFormats, opening: Opening, text: &str) -> bool {
    let mut parts = Parts::default();
    let mut reader = AnswerReader::new(formats, opening, &tools().into());
    reader.push(text, &mut parts);
    reader.finish(&mut parts);
    let parts: Vec<Part> = parts.drain().collect();
    let has_content = parts.iter().any(|part| matches!(part, Part::Content(_)));
    !has_content && parts.iter().any(|part| matches!(part, Part::Call(_)))
}

fn check(case: &Case<'_>, vocabularies: &[Vocabulary]) {
    let offered = tools();
    for vocabulary in vocabularies {
        let rules = CallRules { tools: &offered, required: case.required, parallel: case.parallel };
        let formats = AnswerFormats { tools: Some(case.tools), reasoning: case.reasoning };
        let token_id = |marker: &str| vocabulary.token_id(marker);
        let grammar = call_grammar(formats, case.opening, rules, None, &token_id);
        for text in case.accepted {
            assert!(vocabulary.accepts(&grammar, text), "{vocabulary:?} refuses {text:?}");
            assert!(!case.required || is_calls(formats, case.opening, text), "{text:?}");
        }
        for text in case.refused {
            assert!(!vocabulary.accepts(&grammar, text), "{vocabulary:?} accepts {text:?}");
        }
    }
}

const HERMES: &str =
    "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"a\"}}\n</tool_call>";
const HERMES_NOW: &str = "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>";

#[test]
fn required_hermes_calls_follow_the_schemas() {
    let two = format!("{HERMES}\n{HERMES_NOW}");
    let case = Case {
        tools: ToolFormat::Hermes,
        reasoning: None,
        opening: Opening::Before,
        required: true,
        parallel: true,
        accepted: &[HERMES, HERMES_NOW, &two],
        refused: &[
            "",
            "Hello",
            "<tool_call>\n{\"name\": \"other\", \"arguments\": {}}\n</tool_call>",
            "<tool_call>\n{\"name\": \"weather\", \"arguments\": {}}\n</tool_call>",
            "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": 1}}\n</tool_call>",
            "<tool_call>\n{\"name\": \"now\", \"arguments\": {\"a\": 1}}\n</tool_call>",
            "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n",
        ],
    };
    check(&case, &ALL);
    check(&Case { parallel: false, accepted: &[HERMES], refused: &[&two], ..case }, &ALL);
}

#[test]
fn an_answer_may_be_text_with_calls_where_they_are_not_required() {
    let mixed = format!("I <b>look</b>.\n{HERMES}\n{HERMES_NOW} so");
    let wrong = format!("I look.\n{}", HERMES.replace("\"a\"", "5"));
    let case = Case {
        tools: ToolFormat::Hermes,
        reasoning: None,
        opening: Opening::Before,
        required: false,
        parallel: true,
        accepted: &["", "Hello <tool\n", HERMES, &mixed],
        refused: &[&wrong, "a <tool_call>", "a <tool_call>\nb</tool_call>"],
    };
    check(&case, &ALL);
}

#[test]
fn thoughts_come_before_the_calls() {
    let inside = format!("Hm, {{ < \n</think>\n\n{HERMES}");
    let opened = format!("<think>\n{inside}");
    let case = Case {
        tools: ToolFormat::Hermes,
        reasoning: Some(ReasoningFormat::Think),
        opening: Opening::Inside,
        required: true,
        parallel: false,
        accepted: &[&inside],
        refused: &[HERMES, "Hm</think>\n\nNo"],
    };
    check(&case, &ALL);
    let refused = &[&inside[..]];
    check(&Case { opening: Opening::Before, accepted: &[&opened, HERMES], refused, ..case }, &ALL);
    let refused = &[&inside[..], &opened];
    check(&Case { opening: Opening::Closed, accepted: &[HERMES], refused, ..case }, &ALL);
}

#[test]
fn qwen3_coder_calls_follow_the_schemas() {
    let call =
        |body: &str| format!("<tool_call>\n<function=weather>\n{body}</function>\n</tool_call>");
    let city = "<parameter=city>\na <b>\n\"c\"\n</parameter>\n";
    let days = "<parameter=days>\n3\n</parameter>\n";
    let unit = "<parameter=unit>\nc\n</parameter>\n";
    let case = Case {
        tools: ToolFormat::Qwen3Coder,
        reasoning: None,
        opening: Opening::Before,
        required: true,
        parallel: true,
        accepted: &[
            &call(city),
            &call(&format!("{city}{days}")),
            &call(&format!("{city}{unit}")),
            "<tool_call>\n<function=now>\n</function>\n</tool_call>",
        ],
        refused: &[
            &call(""),
            &call(&format!("{city}{}", days.replace('3', "three"))),
            &call(&format!("{city}{}", unit.replace("\nc", "\nk"))),
            "<tool_call>\n<function=other>\n</function>\n</tool_call>",
        ],
    };
    check(&case, &ALL);
}

#[test]
fn a_llama_answer_is_a_call_or_does_not_begin_like_one() {
    let call = r#"{"name": "weather", "parameters": {"city": "a", "days": 2}}"#;
    let tagged = format!("<|python_tag|>{call}");
    let case = Case {
        tools: ToolFormat::Llama3Json,
        reasoning: None,
        opening: Opening::Before,
        required: false,
        parallel: true,
        accepted: &["Hello {\"a\": 1}", "", call, &tagged],
        refused: &["{\"a\": 1}", r#"{"name": "weather", "parameters": {}}"#],
    };
    check(&case, &ALL);
    check(&Case { required: true, accepted: &[call], refused: &["Hello"], ..case }, &ALL);
}

#[test]
fn mistral_calls_have_the_form_that_the_vocabulary_has_markers_for() {
    let list = r#"[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "a"}}, {"name": "now", "arguments": {}}]"#;
    let named = r#"[TOOL_CALLS]weather[ARGS]{"city": "a"}[TOOL_CALLS]now[ARGS]{}"#;
    let case = Case {
        tools: ToolFormat::Mistral,
        reasoning: None,
        opening: Opening::Before,
        required: true,
        parallel: true,
        accepted: &[list],
        refused: &["Hello", named],
    };
    check(&case, &[Vocabulary::Bytes]);
    let case = Case { accepted: &[named], refused: &["Hello", list], ..case };
    check(&case, &[Vocabulary::Special, Vocabulary::Plain]);
    let text = format!("Well. {named}");
    let case = Case { required: false, accepted: &["Hello", &text], refused: &[], ..case };
    check(&case, &[Vocabulary::Special, Vocabulary::Plain]);
}

#[test]
fn harmony_calls_come_after_any_analysis() {
    let call =
        "<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{\"city\": \"a\"}";
    let before = " to=functions.now<|channel|>commentary json<|message|>{}";
    let thought = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant";
    let last = "<|channel|>final<|message|>Hello.";
    let with = |end: &str| format!("{thought}{end}");
    let case = Case {
        tools: ToolFormat::Harmony,
        reasoning: Some(ReasoningFormat::Harmony),
        opening: Opening::Before,
        required: true,
        parallel: true,
        accepted: &[call, before, &with(call), &with(&with(before))],
        refused: &[last, &with(last), &call.replace("city", "town"), &call.replace("weather", "x")],
    };
    check(&case, &ALL);
    let case = Case { required: false, accepted: &[last, &with(last), call], refused: &[], ..case };
    check(&case, &ALL);
}

#[test]
fn any_constraint_can_begin_behind_the_reasoning() {
    let constraints = [
        (Constraint::json_schema(&json!({"type": "integer"})).unwrap(), "12", "x"),
        (Constraint::Regex("a/b|c\\/d".into()), "c/d", "cd"),
        (Constraint::Choice(vec!["yes".into(), "n\"o".into()]), "n\"o", "no"),
        // The rules of either grammar may have the names of the other.
        (Constraint::Lark("start: r0 T1\nr0: \"a\"\nT1: /b+/ // }".into()), "abb", "a"),
    ];
    for vocabulary in ALL {
        let token_id = |marker: &str| vocabulary.token_id(marker);
        for (constraint, right, wrong) in &constraints {
            for (format, opening, before) in [
                (ReasoningFormat::Think, Opening::Inside, "Hm.\n</think>\n\n"),
                (ReasoningFormat::Think, Opening::Before, "<think>\nHm.\n</think>\n\n"),
                (ReasoningFormat::Think, Opening::Before, ""),
                (
                    ReasoningFormat::Harmony,
                    Opening::Before,
                    "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final\
                     <|message|>",
                ),
            ] {
                let grammar = after_reasoning(constraint, format, opening, &token_id);
                let accepts = |text: &str| vocabulary.accepts(&grammar, &format!("{before}{text}"));
                assert!(accepts(right), "{vocabulary:?} {format:?} {opening:?} {right}");
                assert!(!accepts(wrong), "{vocabulary:?} {format:?} {opening:?} {wrong}");
                assert!(!accepts(""), "{vocabulary:?} {format:?} {opening:?}");
            }
        }
        let (constraint, ..) = &constraints[0];
        let same = after_reasoning(constraint, ReasoningFormat::Think, Opening::Closed, &token_id);
        assert_eq!(same, *constraint);
    }
}

#[test]
fn a_schema_beyond_grammars_is_an_error_only_where_it_is_strict() {
    let schema = json!({"type": "array", "items": {"type": "integer"}, "uniqueItems": true});
    let parameters = json!({"properties": {"a": schema}, "required": ["a"]});
    for strict in [false, true] {
        let tool = Tool::new("f".into(), parameters.as_object().cloned(), strict);
        let rules = CallRules { tools: &[tool], required: true, parallel: true };
        let formats = AnswerFormats { tools: Some(ToolFormat::Hermes), reasoning: None };
        let grammar = call_grammar(formats, Opening::Before, rules, None, &|_| None);
        let Constraint::Lark(lark) = grammar else { panic!("{grammar:?} is no grammar") };
        let grammar = llguidance::api::TopLevelGrammar::from_lark(lark);
        let parser = Vocabulary::Bytes.factory().create_parser(grammar);
        assert_eq!(parser.is_err(), strict);
    }
}

#[test]
fn content_beside_calls_can_be_constrained_too() {
    let offered = tools();
    let rules = CallRules { tools: &offered, required: false, parallel: true };
    let formats = AnswerFormats { tools: Some(ToolFormat::Hermes), reasoning: None };
    let content = Constraint::json_schema(&json!({"type": "integer"})).unwrap();
    let grammar = call_grammar(formats, Opening::Before, rules, Some(&content), &|_| None);
    for (text, expected) in [("12", true), (HERMES, true), ("x", false)] {
        assert_eq!(Vocabulary::Bytes.accepts(&grammar, text), expected, "{text}");
    }
}
