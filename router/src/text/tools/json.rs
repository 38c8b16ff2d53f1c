//! A call that is a JSON object, read while it is written.
//!
//! Usually the name comes first and the arguments second: then the arguments are sent as they
//! come. An object in another order is read to its end first.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::{Parts, Tool};

/// Where a text stands that is a JSON object, or should be. Knows strings and brackets alone.
#[derive(Clone, Copy, Default)]
struct Scan {
    depth: u32,
    in_string: bool,
    escaped: bool,
}

/// Where a scan ended, in bytes.
enum Scanned {
    /// At the end of the text.
    Open,
    /// Behind the bracket that led back to the asked depth.
    Closed(usize),
    /// Before a character that cannot stand there.
    Broken(usize),
}

impl Scan {
    /// Reads until a bracket closes down to `depth`.
    fn run(&mut self, text: &str, depth: u32) -> Scanned {
        for (at, c) in text.char_indices() {
            if self.in_string {
                self.in_string = self.escaped || c != '"';
                self.escaped = !self.escaped && c == '\\';
                continue;
            }
            match c {
                '{' => self.depth += 1,
                _ if self.depth == 0 && !c.is_whitespace() => return Scanned::Broken(at),
                '[' => self.depth += 1,
                '}' | ']' => {
                    self.depth -= 1;
                    if self.depth == depth {
                        return Scanned::Closed(at + 1);
                    }
                }
                '"' => self.in_string = true,
                ':' | ',' | '+' | '-' | '.' => {}
                _ if c.is_ascii_alphanumeric() || c.is_whitespace() => {}
                _ => return Scanned::Broken(at),
            }
        }
        Scanned::Open
    }
}

/// What became of the text that was pushed.
pub(super) enum Progress {
    /// It is part of the call.
    More,
    /// The call is over; what follows it.
    Ended(String),
    /// It was no call; all that was not sent.
    Malformed(String),
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    /// Before the arguments.
    Header,
    /// Inside the arguments, which close down to this depth.
    Arguments(u32),
    /// Behind the arguments, in the call's object.
    Rest,
    /// In an object that has another order.
    Whole,
}

/// The reader of one call.
pub(super) struct JsonCall {
    state: State,
    scan: Scan,
    /// Text that is neither sent nor dropped.
    held: String,
    /// How much of it was scanned.
    num_scanned: usize,
    /// The only tools that may be called; then the name must come first as well.
    known: Option<Arc<[Tool]>>,
}

impl JsonCall {
    /// For `{"name": .., "arguments": {..}}`, or with `parameters` for arguments.
    pub(super) fn object() -> JsonCall {
        Self::new(State::Header, None)
    }

    /// For an object that is a call only if it begins as one, and of one of these tools.
    pub(super) fn object_of(tools: Arc<[Tool]>) -> JsonCall {
        Self::new(State::Header, Some(tools))
    }

    /// For the arguments of a call whose name is sent.
    pub(super) fn arguments() -> JsonCall {
        Self::new(State::Arguments(0), None)
    }

    fn new(state: State, known: Option<Arc<[Tool]>>) -> JsonCall {
        JsonCall { state, scan: Scan::default(), held: String::new(), num_scanned: 0, known }
    }

    pub(super) fn push(&mut self, text: &str, out: &mut Parts) -> Progress {
        self.held.push_str(text);
        if self.state == State::Header {
            match Header::read(&self.held) {
                Ok(Header { name, arguments }) if self.is_known(name) => {
                    out.call(name);
                    self.held.drain(..arguments);
                    self.scan.depth = 1;
                    self.state = State::Arguments(1);
                }
                Err(Miss::Incomplete) => return Progress::More,
                _ if self.known.is_some() => {
                    return Progress::Malformed(std::mem::take(&mut self.held));
                }
                _ => self.state = State::Whole,
            }
        }
        if let State::Arguments(depth) = self.state {
            match self.scan.run(&self.held, depth) {
                Scanned::Open => {
                    out.arguments(&std::mem::take(&mut self.held));
                    return Progress::More;
                }
                Scanned::Closed(end) => {
                    let rest = self.held.split_off(end);
                    out.arguments(&std::mem::replace(&mut self.held, rest));
                    self.state = State::Rest;
                }
                Scanned::Broken(at) => {
                    let rest = self.held.split_off(at);
                    out.arguments(&std::mem::take(&mut self.held));
                    return Progress::Ended(rest);
                }
            }
            if depth == 0 {
                return Progress::Ended(std::mem::take(&mut self.held));
            }
        }
        self.read_to_the_end(out)
    }

    fn read_to_the_end(&mut self, out: &mut Parts) -> Progress {
        let scanned = self.scan.run(&self.held[self.num_scanned..], 0);
        let is_sent = self.state == State::Rest;
        match scanned {
            Scanned::Open if is_sent => {
                self.held.clear();
                Progress::More
            }
            Scanned::Open => {
                self.num_scanned = self.held.len();
                Progress::More
            }
            Scanned::Closed(at) | Scanned::Broken(at) if is_sent => {
                Progress::Ended(self.held.split_off(at))
            }
            Scanned::Closed(at) => {
                let end = self.num_scanned + at;
                match whole_call(&self.held[..end]) {
                    Some((name, arguments)) => {
                        out.call(&name);
                        out.arguments(&arguments);
                        Progress::Ended(self.held.split_off(end))
                    }
                    None => Progress::Malformed(std::mem::take(&mut self.held)),
                }
            }
            Scanned::Broken(_) => Progress::Malformed(std::mem::take(&mut self.held)),
        }
    }

    /// The text that was not sent, at the end of the answer.
    pub(super) fn finish(&mut self) -> Option<String> {
        let is_pending = matches!(self.state, State::Header | State::Whole);
        is_pending.then(|| std::mem::take(&mut self.held))
    }

    fn is_known(&self, name: &str) -> bool {
        let known = self.known.as_ref();
        known.is_none_or(|tools| tools.iter().any(|tool| tool.name == name))
    }
}

/// The beginning of a call up to its arguments.
struct Header<'a> {
    name: &'a str,
    /// Where the arguments begin.
    arguments: usize,
}

/// Why a text is no header.
enum Miss {
    /// It may still become one.
    Incomplete,
    Other,
}

impl Header<'_> {
    /// Reads `{"name": "..", "arguments": {`. Llama may write `"type": "function"` first.
    fn read(text: &str) -> Result<Header<'_>, Miss> {
        let (first, rest) = key(token(text, "{")?, &["\"name\"", "\"type\""])?;
        let rest = if first == "\"type\"" {
            let rest = token(token(rest, "\"function\"")?, ",")?;
            key(rest, &["\"name\""])?.1
        } else {
            rest
        };
        let rest = token(rest, "\"")?;
        let Some(end) = rest.find(['"', '\\']) else {
            // Nobody waits for the end of a name that is none.
            let may_end = rest.len() <= Tool::MAX_NAME;
            return Err(if may_end { Miss::Incomplete } else { Miss::Other });
        };
        let (name, rest) = rest.split_at(end);
        if name.is_empty() || rest.starts_with('\\') {
            return Err(Miss::Other);
        }
        let (_, rest) = key(token(&rest[1..], ",")?, &["\"arguments\"", "\"parameters\""])?;
        token(rest, "{")?;
        Ok(Header { name, arguments: text.len() - rest.trim_start().len() })
    }
}

/// What follows `expected`, with white space before it.
fn token<'a>(text: &'a str, expected: &str) -> Result<&'a str, Miss> {
    let text = text.trim_start();
    match text.strip_prefix(expected) {
        Some(rest) => Ok(rest),
        None if expected.starts_with(text) => Err(Miss::Incomplete),
        None => Err(Miss::Other),
    }
}

/// Which of `keys` comes next, and what follows its colon.
fn key<'a, 'k>(text: &'a str, keys: &[&'k str]) -> Result<(&'k str, &'a str), Miss> {
    let mut miss = Miss::Other;
    for key in keys {
        match token(text, key) {
            Ok(rest) => return Ok((key, token(rest, ":")?)),
            Err(Miss::Incomplete) => miss = Miss::Incomplete,
            Err(Miss::Other) => {}
        }
    }
    Err(miss)
}

/// Name and arguments of a call in any order. The arguments may be JSON in a string, or absent.
fn whole_call(text: &str) -> Option<(String, String)> {
    let mut call: Map<String, Value> = serde_json::from_str(text).ok()?;
    let name = call.get("name")?.as_str().filter(|name| !name.is_empty())?.to_owned();
    let arguments = ["arguments", "parameters"].iter().find_map(|key| call.swap_remove(*key));
    let arguments = match arguments {
        None | Some(Value::Null) => "{}".to_owned(),
        Some(Value::Object(arguments)) => Value::Object(arguments).to_string(),
        Some(Value::String(text)) => {
            serde_json::from_str::<Map<String, Value>>(&text).ok()?;
            text
        }
        Some(_) => return None,
    };
    Some((name, arguments))
}
