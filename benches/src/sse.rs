//! Server-sent events, as bytes: where one ends, and the little that is asked of each.
//!
//! One `data:` line is one event, as in every OpenAI-compatible stream; comments and other fields
//! are passed over. An event that is cut by the network is put together again.

use memchr::{memchr, memmem};

/// Cuts a stream of bytes into events.
#[derive(Debug, Default)]
pub(crate) struct EventScanner {
    /// The beginning of a line whose end has not come yet.
    partial: Vec<u8>,
}

impl EventScanner {
    /// Takes the next bytes, and hands the payload of each event that they complete to `on_event`.
    pub(crate) fn feed(&mut self, mut bytes: &[u8], mut on_event: impl FnMut(&[u8])) {
        while let Some(end) = memchr(b'\n', bytes) {
            let (line, rest) = (&bytes[..end], &bytes[end + 1..]);
            bytes = rest;
            if self.partial.is_empty() {
                on_line(line, &mut on_event);
            } else {
                self.partial.extend_from_slice(line);
                on_line(&self.partial, &mut on_event);
                self.partial.clear();
            }
        }
        self.partial.extend_from_slice(bytes);
    }
}

fn on_line(line: &[u8], on_event: &mut impl FnMut(&[u8])) {
    if let Some(payload) = line.strip_prefix(b"data:") {
        on_event(payload.trim_ascii());
    }
}

/// What an event is to the load tester.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Payload {
    /// Brings text: at least one token has been generated.
    Text,
    /// Brings something else: a role, a finish reason, the usage.
    Other,
    /// The stream failed on the server's side.
    Error,
    /// The end.
    Done,
}

/// Looks at an event without parsing it.
pub(crate) fn classify(payload: &[u8]) -> Payload {
    if payload == b"[DONE]" {
        Payload::Done
    } else if payload.starts_with(b"{\"error\"") {
        Payload::Error
    } else if has_text(payload, b"\"content\":") || has_text(payload, b"\"text\":") {
        Payload::Text
    } else {
        Payload::Other
    }
}

/// True if `key` is followed by a string that is not empty.
fn has_text(payload: &[u8], key: &[u8]) -> bool {
    let Some(at) = memmem::find(payload, key) else { return false };
    let value = payload[at + key.len()..].trim_ascii_start();
    value.starts_with(b"\"") && !value.starts_with(b"\"\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str =
        ": waiting\n\ndata: {\"a\":1}\r\n\r\nevent: x\ndata:{\"b\":\"\\n\"}\n\ndata: [DONE]\n\n";
    const EVENTS: [&str; 3] = ["{\"a\":1}", "{\"b\":\"\\n\"}", "[DONE]"];

    fn events(pieces: &[&[u8]]) -> Vec<String> {
        let mut scanner = EventScanner::default();
        let mut events = Vec::new();
        for piece in pieces {
            scanner.feed(piece, |event| {
                events.push(String::from_utf8(event.to_vec()).unwrap());
            });
        }
        events
    }

    #[test]
    fn events_are_the_same_wherever_the_network_cuts_the_stream() {
        let bytes = STREAM.as_bytes();
        for first in 0..bytes.len() {
            for second in first..bytes.len() {
                let pieces = [&bytes[..first], &bytes[first..second], &bytes[second..]];
                assert_eq!(events(&pieces), EVENTS, "cut at {first} and {second}");
            }
        }
    }

    #[test]
    fn an_event_is_known_by_its_first_bytes_or_its_text() {
        let cases = [
            (r#"{"choices":[{"delta":{"role":"assistant","content":""}}]}"#, Payload::Other),
            (r#"{"choices":[{"delta":{"content":"a"}}]}"#, Payload::Text),
            (r#"{"choices": [{"delta": {"content": "\""}}]}"#, Payload::Text),
            (r#"{"choices":[{"text":"a","index":0}]}"#, Payload::Text),
            (r#"{"choices":[{"text":"","finish_reason":"stop"}]}"#, Payload::Other),
            (r#"{"choices":[],"usage":{"completion_tokens":5}}"#, Payload::Other),
            (r#"{"error":{"message":"text"}}"#, Payload::Error),
            ("[DONE]", Payload::Done),
        ];
        for (payload, expected) in cases {
            assert_eq!(classify(payload.as_bytes()), expected, "{payload}");
        }
    }
}
