//! The schemas of `tests/fixtures/schemas`, with documents that are known to satisfy them or not.

use serde::Deserialize;
use serde_json::Value;

const DIRECTORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/schemas");

/// A schema and what is known of it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Case {
    /// The file in which it stands.
    #[serde(skip)]
    pub(crate) file: String,
    /// Unique.
    pub(crate) name: String,
    pub(crate) schema: Value,
    /// Part of the reason why the schema is refused, if it is.
    pub(crate) refused: Option<String>,
    /// Documents that satisfy the schema, their properties in its order.
    #[serde(default)]
    pub(crate) valid: Vec<Value>,
    /// Documents that violate the schema, each in one way.
    #[serde(default)]
    pub(crate) invalid: Vec<Value>,
    /// Documents of the one kind as they are written, where that is the point.
    #[serde(default)]
    pub(crate) valid_texts: Vec<String>,
    /// The same of the other kind.
    #[serde(default)]
    pub(crate) invalid_texts: Vec<String>,
}

/// All of them, by file and place in it.
pub(crate) fn cases() -> Vec<Case> {
    let files = std::fs::read_dir(DIRECTORY).expect("the directory of schemas");
    let mut paths: Vec<_> = files.map(|file| file.expect("a file").path()).collect();
    paths.sort();
    let mut cases = Vec::new();
    for path in paths {
        let bytes = std::fs::read(&path).expect("a file");
        let read: Vec<Case> = serde_json::from_slice(&bytes)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let file = path.file_stem().expect("a name").to_string_lossy();
        cases.extend(read.into_iter().map(|case| Case { file: file.to_string(), ..case }));
    }
    let mut names: Vec<&str> = cases.iter().map(|case| case.name.as_str()).collect();
    names.sort_unstable();
    names.windows(2).for_each(|pair| assert_ne!(pair[0], pair[1], "names are unique"));
    cases
}

/// A document in the ways in which JSON is usually written: without white space, as Python's
/// `json.dumps` writes it, and indented by two spaces.
pub(crate) fn writings(document: &Value) -> [String; 3] {
    let mut spaced = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut spaced, Spaced);
    serde::Serialize::serialize(document, &mut serializer).expect("written");
    [
        document.to_string(),
        String::from_utf8(spaced).expect("JSON is text"),
        serde_json::to_string_pretty(document).expect("written"),
    ]
}

/// A space behind each comma and each colon.
struct Spaced;

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
    ) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}
