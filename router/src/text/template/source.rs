//! A template's text as minijinja must see it to print what Jinja2 prints.
//!
//! Three things differ: Jinja2 reads every kind of line end as `\n`; it keeps the line end behind
//! `{% raw %}`, where minijinja trims it as behind any block; and Transformers adds
//! `{% generation %}`, which marks the assistant's text for training and prints its body.

/// `source` with these differences written out.
pub(super) fn for_minijinja(source: &str) -> String {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut out = String::with_capacity(source.len());
    let mut rest = source.as_str();
    while let Some((begin, kind)) = next_opening(rest) {
        let (before, inside) = rest.split_at(begin);
        out.push_str(before);
        let (tag, after) = inside.split_at(tag_len(inside, kind));
        rest = after;
        match word(tag).filter(|_| kind == '%') {
            Some("raw") => {
                let (body, after) = rest.split_at(raw_len(rest));
                out.push_str(tag);
                if body.starts_with('\n') && !tag.ends_with("-%}") {
                    // One for minijinja to trim.
                    out.push('\n');
                }
                out.push_str(body);
                rest = after;
            }
            // A block of its own: what is set inside stays inside.
            Some("generation") => out.push_str(&tag.replacen("generation", "with", 1)),
            Some("endgeneration") => out.push_str(&tag.replacen("endgeneration", "endwith", 1)),
            _ => out.push_str(tag),
        }
    }
    out.push_str(rest);
    out
}

/// Where the next `{{`, `{%` or `{#` stands, and its second character.
fn next_opening(text: &str) -> Option<(usize, char)> {
    let bytes = text.as_bytes();
    let is_opening = |at: &usize| bytes[*at] == b'{' && matches!(bytes[at + 1], b'{' | b'%' | b'#');
    let at = (0..bytes.len().saturating_sub(1)).find(is_opening)?;
    Some((at, char::from(bytes[at + 1])))
}

/// The bytes of the tag that `text` begins with; all of them where it does not end. What looks
/// like an end inside a string or a pair of brackets is none.
fn tag_len(text: &str, kind: char) -> usize {
    if kind == '#' {
        return text.find("#}").map_or(text.len(), |end| end + 2);
    }
    let close = if kind == '%' { b'%' } else { b'}' };
    let bytes = text.as_bytes();
    let mut quote = None;
    let mut depth = 0_usize;
    let mut at = 2;
    while at < bytes.len() {
        match (quote, bytes[at]) {
            (Some(_), b'\\') => at += 1,
            (Some(open), byte) if byte == open => quote = None,
            (Some(_), _) => {}
            (None, byte @ (b'"' | b'\'')) => quote = Some(byte),
            (None, byte) if depth == 0 && byte == close && bytes.get(at + 1) == Some(&b'}') => {
                return at + 2;
            }
            (None, b'{' | b'[' | b'(') => depth += 1,
            (None, b'}' | b']' | b')') => depth = depth.saturating_sub(1),
            _ => {}
        }
        at += 1;
    }
    text.len()
}

/// The one word of a tag such as `{%- raw -%}`.
fn word(tag: &str) -> Option<&str> {
    let inside = tag.strip_prefix("{%")?.strip_suffix("%}")?;
    let inside = inside.strip_prefix(['-', '+']).unwrap_or(inside);
    let inside = inside.strip_suffix(['-', '+']).unwrap_or(inside);
    Some(inside.trim())
}

/// The bytes before `{% endraw %}`.
fn raw_len(text: &str) -> usize {
    let ends = |at: usize| {
        let tag = &text[at..];
        let end = tag.find("%}").map_or(tag.len(), |end| end + 2);
        word(&tag[..end]) == Some("endraw")
    };
    text.match_indices("{%").map(|(at, _)| at).find(|at| ends(*at)).unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_rewritten() {
        for (source, expected) in [
            ("a\r\nb\rc\n", "a\nb\nc\n"),
            ("{% raw %}\n{{ x }}{% endraw %}\n", "{% raw %}\n\n{{ x }}{% endraw %}\n"),
            ("{%- raw -%}\n{%-endraw-%}", "{%- raw -%}\n{%-endraw-%}"),
            ("{%- generation +%}a{%endgeneration%}", "{%- with +%}a{%endwith%}"),
            ("{% raw %} {% generation %}{% endraw %}", "{% raw %} {% generation %}{% endraw %}"),
            ("{# {% generation %} #}", "{# {% generation %} #}"),
            ("{{ '{% generation %}' }}", "{{ '{% generation %}' }}"),
            ("{{ {'a': {'b': \"}}\"}} }}{% generation %}", "{{ {'a': {'b': \"}}\"}} }}{% with %}"),
            ("{% if x == '%}' %}{% generation %}", "{% if x == '%}' %}{% with %}"),
            ("{{ 'it\\'s' }}{% generation %}", "{{ 'it\\'s' }}{% with %}"),
            ("{% set generation = 1 %}", "{% set generation = 1 %}"),
            ("{% raw %} unfinished", "{% raw %} unfinished"),
            ("{", "{"),
            ("{% 'unfinished %}ü", "{% 'unfinished %}ü"),
            ("{{ unfinished", "{{ unfinished"),
        ] {
            assert_eq!(for_minijinja(source), expected);
        }
    }
}
