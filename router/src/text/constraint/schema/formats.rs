//! Formats that llguidance reads more widely than a validator does.

use serde_json::{Value, json};

use super::Keywords;

/// A date is of its calendar: February has a 29th in leap years only.
const CALENDAR: &str = concat!(
    r"^(?:....-(?:0[13-9]|1[0-2])",
    r"|....-02-(?:[01].|2[0-8])",
    r"|(?:..(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)-02-29)",
);

/// What else the texts of a format satisfy. Seconds have no leap second, which is one in the last
/// minute of a day in UTC only. In the name of a host, hyphens stand alone, since two of them begin
/// encoded names; 64 letters of a mail address are those that its parts may have at most.
///
/// Beside a pattern of the schema's own, llguidance finds the lengths of names too dear to count.
fn besides(format: &str, has_pattern: bool) -> Vec<Value> {
    match format {
        "date" => vec![json!({"pattern": CALENDAR})],
        "date-time" => vec![json!({"pattern": CALENDAR}), json!({"pattern": "^.{17}[0-5]"})],
        "time" => vec![json!({"pattern": "^.{6}[0-5]"})],
        "hostname" if !has_pattern => vec![json!({"pattern": "^(?:-?[^-])*$", "maxLength": 253})],
        "email" if !has_pattern => {
            vec![json!({"pattern": "^[^@]*@(?:-?[^-])*$", "maxLength": 64})]
        }
        "email" => vec![json!({"pattern": "^[^@]*@(?:-?[^-])*$"})],
        _ => Vec::new(),
    }
}

/// Adds to a schema what its format asks for.
pub(super) fn narrow(keywords: &mut Keywords) {
    let Some(Value::String(format)) = keywords.get("format") else { return };
    let besides = besides(format, keywords.contains_key("pattern"));
    if besides.is_empty() {
        return;
    }
    if let Value::Array(all) = keywords.entry("allOf").or_insert_with(|| json!([])) {
        all.extend(besides);
    }
}
