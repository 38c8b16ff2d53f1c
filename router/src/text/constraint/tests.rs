use serde_json::json;

use super::*;

fn checker() -> Checker {
    Checker::new(vec!["<tool_call>".into(), "<|end|>".into()])
}

#[test]
fn what_can_be_followed_is_accepted_once_and_again() {
    let checker = checker();
    for constraint in [
        Constraint::JsonSchema(json!({"type": "object", "properties": {"a": {"type": "integer"}}})),
        Constraint::JsonSchema(json!(true)),
        Constraint::JsonSchema(json!({})),
        Constraint::Regex(r"\d{3}-\d{4}".into()),
        Constraint::Regex(String::new()),
        Constraint::Choice(vec!["a \"b\"\n".into(), "é".into()]),
        Constraint::Lark("start: <tool_call> %json {\"type\": \"object\"} <|end|>".into()),
    ] {
        let grammar =
            checker.accept(&constraint).unwrap_or_else(|why| panic!("{constraint:?}: {why}"));
        assert_eq!(checker.accept(&constraint), Ok(grammar));
    }
}

#[test]
fn what_cannot_be_followed_is_refused_in_one_line() {
    let checker = checker();
    for (constraint, part) in [
        (Constraint::JsonSchema(json!({"type": "thing"})), "thing"),
        (Constraint::JsonSchema(json!({"not": {"type": "string"}})), "not"),
        (Constraint::JsonSchema(json!({"$ref": "https://example.com/a.json"})), "ref"),
        (Constraint::JsonSchema(json!(false)), ""),
        (Constraint::JsonSchema(json!([1])), ""),
        (Constraint::Regex("(".into()), ""),
        (Constraint::Regex(r"(a)\1".into()), ""),
        (Constraint::Lark("start: <|unknown|>".into()), "unknown"),
        (Constraint::Lark("start: other".into()), "other"),
        (Constraint::Lark("start: start".into()), ""),
        (Constraint::Lark(format!("start: \"{}\"", "a".repeat(300_000))), "262144"),
    ] {
        let reason = checker.accept(&constraint).err().unwrap_or_else(|| panic!("{constraint:?}"));
        assert!(reason.contains(part) && !reason.contains('\n'), "{constraint:?}: {reason}");
        assert!(reason.len() < 600, "{reason}");
    }
}

#[test]
fn different_constraints_have_different_digests() {
    let text = "ab".to_owned();
    let digests = [
        Constraint::Regex(text.clone()).encode().unwrap().digest,
        Constraint::Lark(text.clone()).encode().unwrap().digest,
        Constraint::Choice(vec![text]).encode().unwrap().digest,
    ];
    assert!(digests[0] != digests[1] && digests[1] != digests[2] && digests[0] != digests[2]);
}
