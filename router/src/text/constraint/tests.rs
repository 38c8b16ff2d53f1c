use serde_json::json;

use super::*;

fn schema(schema: &Value) -> Result<Constraint, String> {
    Constraint::json_schema(schema)
}

fn checker() -> Checker {
    Checker::new(vec!["<tool_call>".into(), "<|end|>".into()], 1000)
}

#[test]
fn what_can_be_followed_is_accepted_once_and_again() {
    let checker = checker();
    for constraint in [
        schema(&json!({"type": "object", "properties": {"a": {"type": "integer"}}})).unwrap(),
        schema(&json!(true)).unwrap(),
        schema(&json!({})).unwrap(),
        Constraint::Regex(r"\d{3}-\d{4}".into()),
        Constraint::Regex(String::new()),
        Constraint::Choice(vec!["a \"b\"\n".into(), "é".into()]),
        Constraint::Lark("start: <[999]>".into()),
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
        (schema(&json!({"type": "thing"})), "thing"),
        (schema(&json!({"not": {"type": "string"}})), "not"),
        (schema(&json!({"$ref": "https://example.com/a.json"})), "ref"),
        (schema(&json!(false)), ""),
        (schema(&json!([1])), ""),
        (Ok(Constraint::Regex("(".into())), ""),
        (Ok(Constraint::Regex(r"(a)\1".into())), ""),
        (Ok(Constraint::Lark("start: <|unknown|>".into())), "unknown"),
        (Ok(Constraint::Lark("start: <[5000]>".into())), "5000"),
        (Ok(Constraint::Lark("start: other".into())), "other"),
        (Ok(Constraint::Lark("start: start".into())), ""),
        (Ok(Constraint::Lark(format!("start: \"{}\"", "a".repeat(300_000)))), "262144"),
    ] {
        let accepted = constraint.clone().and_then(|constraint| checker.accept(&constraint));
        let reason = accepted.err().unwrap_or_else(|| panic!("{constraint:?}"));
        assert!(reason.contains(part) && !reason.contains('\n'), "{constraint:?}: {reason}");
        assert!(reason.len() < 600, "{reason}");
    }
}

#[test]
fn different_constraints_have_different_digests() {
    let text = "ab".to_owned();
    let digests = [
        Constraint::Regex(text.clone()).encode().digest,
        Constraint::Lark(text.clone()).encode().digest,
        Constraint::Choice(vec![text]).encode().digest,
    ];
    assert!(digests[0] != digests[1] && digests[1] != digests[2] && digests[0] != digests[2]);
}
