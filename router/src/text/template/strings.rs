//! What Python's methods do to a string, where Rust's do something else.

/// Which ends of a string lose characters.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Ends {
    Both,
    Left,
    Right,
}

/// `str.isspace` of one character: Unicode's white space, and four separators of ASCII.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// Without `chars` at its ends; without blanks where no `chars` are given.
pub(super) fn strip<'a>(text: &'a str, chars: Option<&str>, ends: Ends) -> &'a str {
    let goes = |c: char| match chars {
        Some(chars) => chars.contains(c),
        None => is_space(c),
    };
    match ends {
        Ends::Both => text.trim_matches(goes),
        Ends::Left => text.trim_start_matches(goes),
        Ends::Right => text.trim_end_matches(goes),
    }
}

/// Upper case behind everything that is not a letter, lower case behind letters.
pub(super) fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut in_word = false;
    for c in text.chars() {
        if in_word {
            out.extend(c.to_lowercase());
        } else {
            out.extend(c.to_uppercase());
        }
        in_word = c.is_alphabetic();
    }
    out
}

/// Each letter in its other case.
pub(super) fn swap_case(text: &str) -> String {
    let swap = |c: char| -> String {
        if c.is_lowercase() { c.to_uppercase().collect() } else { c.to_lowercase().collect() }
    };
    text.chars().map(swap).collect()
}

/// `split()` at runs of blanks, none of them kept; the last part keeps the blanks on its far
/// side, which only `max` leaves there.
pub(super) fn split_blanks(text: &str, from_right: bool, max: usize) -> Vec<&str> {
    let mut parts = Vec::new();
    let trimmed = |text, ends| strip(text, None, ends);
    let mut rest = trimmed(text, if from_right { Ends::Right } else { Ends::Left });
    while !rest.is_empty() && parts.len() < max {
        let (word, after) = if from_right {
            let (after, word) = rest.rsplit_once(is_space).unwrap_or(("", rest));
            (word, trimmed(after, Ends::Right))
        } else {
            let (word, after) = rest.split_once(is_space).unwrap_or((rest, ""));
            (word, trimmed(after, Ends::Left))
        };
        parts.push(word);
        rest = after;
    }
    if !rest.is_empty() {
        parts.push(rest);
    }
    if from_right {
        parts.reverse();
    }
    parts
}

/// The lines of a text, by every line end that Python knows.
pub(super) fn split_lines(text: &str, keep_ends: bool) -> Vec<&str> {
    let ends = |c: char| matches!(c, '\n'..='\r' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}');
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(end) = rest.find(ends) {
        let width = if rest[end..].starts_with("\r\n") {
            2
        } else {
            rest[end..].chars().next().map_or(1, char::len_utf8)
        };
        lines.push(&rest[..if keep_ends { end + width } else { end }]);
        rest = &rest[end + width..];
    }
    if !rest.is_empty() {
        lines.push(rest);
    }
    lines
}

/// `text[start:end]` by characters, and how many characters stand before it; `None` where
/// `start` is behind the end of the text.
pub(super) fn window(text: &str, start: Option<i64>, end: Option<i64>) -> Option<(&str, usize)> {
    let num_chars = text.chars().count();
    let clamp = |index: i64| {
        let from_end = usize::try_from(index.unsigned_abs()).unwrap_or(usize::MAX);
        if index < 0 { num_chars.saturating_sub(from_end) } else { from_end }
    };
    let start = clamp(start.unwrap_or(0));
    let end = end.map_or(num_chars, clamp).min(num_chars);
    if start > num_chars {
        return None;
    }
    let byte = |index: usize| text.char_indices().nth(index).map_or(text.len(), |(at, _)| at);
    // Where the end comes first there is nothing, not even an empty string.
    (start <= end).then(|| (&text[byte(start)..byte(end)], start))
}
