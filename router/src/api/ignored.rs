//! Fields of a request that are not known here: accepted, and named in a header of the answer.
//!
//! Clients of every server send fields that only some servers know. A request is not refused for
//! one, but who meant something by it can see that it was ignored.

use axum::http::{HeaderName, HeaderValue};
use axum::response::Response;

use super::fields::Fields;

pub(super) static IGNORED_FIELDS: HeaderName = HeaderName::from_static("x-ignored-fields");

/// Names that the header has at most, and characters of each.
const MAX_NAMES: usize = 16;
const MAX_NAME: usize = 64;

/// Fields that tell the server something about the request, not about its answer: to ignore one
/// of them takes nothing from the client.
const WITHOUT_EFFECT: &[&str] = &[
    // Who asks, and how the client keeps its books.
    "user",
    "safety_identifier",
    "metadata",
    "request_id",
    // What a provider stores and bills.
    "store",
    "service_tier",
    // Hints for a cache that needs none.
    "prompt_cache_key",
    "prompt_cache_retention",
    // Text that the client expects, to have it sooner.
    "prediction",
];

/// The names of fields, where any of them may have been meant to have an effect.
pub(super) struct Ignored(Option<HeaderValue>);

impl Ignored {
    /// What is left of a request that has been read.
    pub(super) fn of(fields: &Fields) -> Ignored {
        Ignored(header_value(fields.ignored()))
    }

    /// Adds the header.
    pub(super) fn name_in(self, mut answer: Response) -> Response {
        if let Some(names) = self.0 {
            answer.headers_mut().insert(IGNORED_FIELDS.clone(), names);
        }
        answer
    }
}

fn header_value(fields: impl Iterator<Item = String>) -> Option<HeaderValue> {
    let mut names: Vec<String> = Vec::new();
    let meant = |field: &String| !field.is_empty() && !WITHOUT_EFFECT.contains(&field.as_str());
    for field in fields.filter(meant) {
        // A client chooses these names: as they are they could hold anything.
        let name: String = field.chars().take(MAX_NAME).map(harmless).collect();
        if names.len() < MAX_NAMES && !names.contains(&name) {
            names.push(name);
        }
    }
    HeaderValue::from_str(&names.join(",")).ok().filter(|names| !names.is_empty())
}

/// What cannot end a name, or a header, is kept.
fn harmless(character: char) -> char {
    let is_harmless = character.is_ascii_alphanumeric() || "_.-".contains(character);
    if is_harmless { character } else { '_' }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(fields: &[&str]) -> Option<String> {
        let fields = fields.iter().map(|field| (*field).to_owned());
        header_value(fields).map(|value| value.to_str().unwrap().to_owned())
    }

    #[test]
    fn the_header_names_what_may_have_been_meant_in_harmless_characters() {
        let many: Vec<String> = (0..20).map(|i| format!("f{i}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let cases: [(&[&str], Option<&str>); 7] = [
            (&[], None),
            (&["user", "metadata", ""], None),
            (&["user", "verbosity", "top_a"], Some("verbosity,top_a")),
            (&["a,b\r\nx: y", "caf\u{e9}"], Some("a_b__x__y,caf_")),
            (&["parameters.top_a"], Some("parameters.top_a")),
            (&["top_a", "seeds", "top_a"], Some("top_a,seeds")),
            (&many, Some("f0,f1,f2,f3,f4,f5,f6,f7,f8,f9,f10,f11,f12,f13,f14,f15")),
        ];
        for (fields, expected) in cases {
            assert_eq!(value(fields).as_deref(), expected, "{fields:?}");
        }
        assert_eq!(value(&[&"x".repeat(100)]), Some("x".repeat(MAX_NAME)));
    }
}
