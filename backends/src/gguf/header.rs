//! The header of a GGUF file: what it says of itself, and which bytes are which tensor.
//!
//! `GGUF`, a version, two counts; so many pairs of key and value; so many tensors, each a name, a
//! shape, a type and an offset; then, aligned, the data. Numbers are little-endian. Versions 2 and
//! 3 are alike; version 1 had other lengths, and files for other processors swap their bytes.
//!
//! What a [`Header`] holds true: every key stands once; every text and list lies in the file; every
//! tensor has a type that can be read, whole blocks in each row, and bytes of its own within the
//! file. Each breach names the key or the tensor, the rule and the values.
//!
//! Texts and lists stay where they are: a header keeps their places. So what reading allocates is
//! bounded by the number of keys and tensors that the file really holds, whatever its counts say.

use super::types::TensorType;
use std::collections::BTreeMap;
use std::ops::Range;

const MAGIC: &[u8] = b"GGUF";

/// The longest key that the format allows, in bytes.
const MAX_KEY: u64 = 65_535;
/// The longest name of a tensor, in bytes; the format's own limit is 64.
const MAX_NAME: u64 = 256;
/// The format's own limit.
const MAX_DIMENSIONS: u32 = 4;
/// Bytes that the data's start, and every tensor's, is a multiple of, unless the file says other.
const ALIGNMENT: u64 = 32;
const ALIGNMENT_KEY: &str = "general.alignment";

/// What a file says of itself.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) metadata: BTreeMap<String, Value>,
    /// By name, as the file has it.
    pub(super) tensors: BTreeMap<String, Tensor>,
}

/// A value of the metadata.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Unsigned(u64),
    Signed(i64),
    F32(f32),
    F64(f64),
    Bool(bool),
    /// The text's place in the file. It need not be UTF-8.
    String(Range<usize>),
    Array(Array),
}

/// A list of the metadata.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Array {
    pub(super) kind: Kind,
    pub(super) len: usize,
    /// Its elements' place in the file.
    pub(super) range: Range<usize>,
}

/// The type of a value that is no list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    U64,
    I64,
    F64,
}

/// The number that stands for a list.
const ARRAY: u32 = 9;

impl Kind {
    fn of(id: u32) -> Option<Self> {
        Some(match id {
            0 => Self::U8,
            1 => Self::I8,
            2 => Self::U16,
            3 => Self::I16,
            4 => Self::U32,
            5 => Self::I32,
            6 => Self::F32,
            7 => Self::Bool,
            8 => Self::String,
            10 => Self::U64,
            11 => Self::I64,
            12 => Self::F64,
            _ => return None,
        })
    }

    /// Bytes of a value; `None` for texts, which differ.
    fn size(self) -> Option<u64> {
        match self {
            Self::U8 | Self::I8 | Self::Bool => Some(1),
            Self::U16 | Self::I16 => Some(2),
            Self::U32 | Self::I32 | Self::F32 => Some(4),
            Self::U64 | Self::I64 | Self::F64 => Some(8),
            Self::String => None,
        }
    }
}

/// One tensor of a file.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tensor {
    pub(super) kind: TensorType,
    /// The outermost dimension first; the file has it last.
    pub(super) shape: Vec<usize>,
    /// Its bytes in the file.
    pub(super) range: Range<usize>,
}

/// Reads the header of a whole file. The error says which rule is broken, by which values.
pub(super) fn read(file: &[u8]) -> Result<Header, String> {
    let mut reader = Reader { file, at: 0 };
    if !file.starts_with(MAGIC) {
        return Err("the file does not begin with `GGUF`".into());
    }
    reader.at = MAGIC.len();
    match reader.u32("the version")? {
        2 | 3 => {}
        version if matches!(version.swap_bytes(), 1..=3) => {
            return Err("the file is big-endian, which is not supported".into());
        }
        version => return Err(format!("version {version} is not supported (supported: 2, 3)")),
    }
    let num_tensors = reader.u64("the number of tensors")?;
    let num_keys = reader.u64("the number of keys")?;
    let metadata = reader.metadata(num_keys)?;
    let alignment = match metadata.get(ALIGNMENT_KEY) {
        None => ALIGNMENT,
        Some(&Value::Unsigned(n)) if n.is_power_of_two() && n <= 1 << 20 => n,
        Some(other) => {
            let rule = "must be a power of two of at most 2^20";
            return Err(format!("`{ALIGNMENT_KEY}` {rule}, not {}", display(other, file)));
        }
    };
    let mut listed = Vec::new();
    for _ in 0..num_tensors {
        listed.push(reader.tensor()?);
    }
    let data_start = (reader.at as u64).next_multiple_of(alignment);
    let tensors = place(listed, [data_start, alignment, file.len() as u64])?;
    Ok(Header { metadata, tensors })
}

/// A tensor as it is listed: its offset counts from the data's start.
struct Listed {
    name: String,
    kind: TensorType,
    shape: Vec<usize>,
    offset: u64,
    num_bytes: u64,
}

/// Gives every tensor its bytes, which are its own and lie in the file.
fn place(
    mut listed: Vec<Listed>,
    [data_start, alignment, file_len]: [u64; 3],
) -> Result<BTreeMap<String, Tensor>, String> {
    listed.sort_by_key(|tensor| (tensor.offset, tensor.num_bytes));
    let mut tensors = BTreeMap::new();
    let (mut covered, mut previous) = (0, String::new());
    for Listed { name, kind, shape, offset, num_bytes } in listed {
        let fail = |rule: String| Err(format!("tensor `{name}`: {rule}"));
        if !offset.is_multiple_of(alignment) {
            return fail(format!("its offset ({offset}) is no multiple of {alignment}"));
        }
        if offset < covered {
            return fail(format!(
                "its offset ({offset}) is inside tensor `{previous}`, which ends at {covered}"
            ));
        }
        let end = data_start.checked_add(offset).and_then(|start| start.checked_add(num_bytes));
        let Some(end) = end.filter(|end| *end <= file_len) else {
            return fail(format!(
                "its {num_bytes} bytes at {offset} of the data exceed the file ({file_len} bytes): \
                 the file is truncated"
            ));
        };
        covered = offset + num_bytes;
        // What lies in the file can be addressed.
        let range = (end - num_bytes) as usize..end as usize;
        previous.clone_from(&name);
        if tensors.insert(name, Tensor { kind, shape, range }).is_some() {
            return Err(format!("tensor `{previous}` is listed twice"));
        }
    }
    Ok(tensors)
}

/// Walks through a file.
struct Reader<'a> {
    file: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// The place of the next so many bytes.
    fn take(&mut self, len: u64, what: &str) -> Result<Range<usize>, String> {
        let left = self.file.len() - self.at;
        if len > left as u64 {
            return Err(format!(
                "{what} ({len} bytes at {}) exceeds the file ({} bytes)",
                self.at,
                self.file.len()
            ));
        }
        let start = self.at;
        self.at += len as usize;
        Ok(start..self.at)
    }

    fn bytes<const N: usize>(&mut self, what: &str) -> Result<[u8; N], String> {
        let range = self.take(N as u64, what)?;
        let bytes = self.file[range].first_chunk();
        Ok(*bytes.unwrap_or_else(|| unreachable!("so many were taken")))
    }

    fn u32(&mut self, what: &str) -> Result<u32, String> {
        self.bytes(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64, String> {
        self.bytes(what).map(u64::from_le_bytes)
    }

    /// A text of at most `limit` bytes, as it stands.
    fn string(&mut self, limit: u64, what: &str) -> Result<Range<usize>, String> {
        let len = self.u64(what)?;
        if len > limit {
            return Err(format!("{what} has {len} bytes, which exceeds the limit of {limit}"));
        }
        self.take(len, what)
    }

    /// A name: a text that is UTF-8.
    fn name(&mut self, limit: u64, what: &str) -> Result<String, String> {
        let range = self.string(limit, what)?;
        match std::str::from_utf8(&self.file[range]) {
            Ok(name) if !name.is_empty() => Ok(name.to_owned()),
            Ok(_) => Err(format!("{what} at {} is empty", self.at)),
            Err(_) => Err(format!("{what} at {} is no UTF-8", self.at)),
        }
    }

    fn metadata(&mut self, num_keys: u64) -> Result<BTreeMap<String, Value>, String> {
        let mut metadata = BTreeMap::new();
        for _ in 0..num_keys {
            let key = self.name(MAX_KEY, "a key")?;
            let value = self.value(&key)?;
            if metadata.contains_key(&key) {
                return Err(format!("`{key}` is given twice"));
            }
            metadata.insert(key, value);
        }
        Ok(metadata)
    }

    fn value(&mut self, key: &str) -> Result<Value, String> {
        let what = format!("`{key}`");
        match self.u32(&what)? {
            ARRAY => self.array(&what).map(Value::Array),
            id => {
                let Some(kind) = Kind::of(id) else {
                    return Err(format!("{what} is of type {id}, which the format does not have"));
                };
                let start = self.at;
                self.skip(kind, 1, &what)?;
                Ok(scalar(kind, self.file, start..self.at))
            }
        }
    }

    fn array(&mut self, what: &str) -> Result<Array, String> {
        let id = self.u32(what)?;
        let Some(kind) = Kind::of(id) else {
            return Err(match id {
                ARRAY => format!("{what} is a list of lists, which is not supported"),
                _ => format!("{what} is a list of type {id}, which the format does not have"),
            });
        };
        let len = self.u64(what)?;
        let start = self.at;
        self.skip(kind, len, what)?;
        // No element is without bytes, so there are no more of them than the file has.
        Ok(Array { kind, len: len as usize, range: start..self.at })
    }

    /// Steps over so many values.
    fn skip(&mut self, kind: Kind, len: u64, what: &str) -> Result<(), String> {
        match kind.size() {
            Some(size) => {
                let Some(num_bytes) = len.checked_mul(size) else {
                    return Err(format!("{what} has {len} elements, which exceeds the file"));
                };
                self.take(num_bytes, what)?;
            }
            None => {
                for _ in 0..len {
                    self.string(u64::MAX, what)?;
                }
            }
        }
        Ok(())
    }

    fn tensor(&mut self) -> Result<Listed, String> {
        let name = self.name(MAX_NAME, "a tensor's name")?;
        let what = format!("tensor `{name}`");
        let num_dimensions = self.u32(&what)?;
        if num_dimensions > MAX_DIMENSIONS {
            let rule = format!("exceed the limit of {MAX_DIMENSIONS}");
            return Err(format!("{what}: its {num_dimensions} dimensions {rule}"));
        }
        let mut dimensions = Vec::with_capacity(num_dimensions as usize);
        for _ in 0..num_dimensions {
            dimensions.push(self.u64(&what)?);
        }
        let kind = TensorType::of(self.u32(&what)?).map_err(|rule| format!("{what} {rule}"))?;
        let offset = self.u64(&what)?;
        let row = dimensions.first().copied().unwrap_or(1);
        if !row.is_multiple_of(kind.block_len() as u64) {
            let blocks = format!("blocks of {} in {}", kind.block_len(), kind.name());
            return Err(format!("{what}: rows of {row} are no whole number of {blocks}"));
        }
        // No product of some of the dimensions exceeds what can be counted, not even where another
        // one is 0.
        let all = dimensions.iter().try_fold(1, |all: u64, d| all.checked_mul((*d).max(1)));
        let num_bytes = all.and_then(|all| {
            let is_empty = dimensions.contains(&0);
            let blocks = if is_empty { 0 } else { all / kind.block_len() as u64 };
            blocks.checked_mul(kind.block_bytes() as u64)
        });
        match num_bytes {
            Some(num_bytes) => {
                let shape = dimensions.iter().rev().map(|d| *d as usize).collect();
                Ok(Listed { name, kind, shape, offset, num_bytes })
            }
            None => Err(format!("{what}: shape {dimensions:?} does not fit in memory")),
        }
    }
}

/// The value of a kind whose bytes lie at `range`.
pub(super) fn scalar(kind: Kind, file: &[u8], range: Range<usize>) -> Value {
    fn fixed<const N: usize>(file: &[u8], range: Range<usize>) -> [u8; N] {
        let bytes = file[range].first_chunk();
        *bytes.unwrap_or_else(|| unreachable!("the range was taken by the kind's size"))
    }
    match kind {
        Kind::U8 => Value::Unsigned(u64::from(file[range.start])),
        Kind::I8 => Value::Signed(i64::from(i8::from_le_bytes(fixed(file, range)))),
        Kind::U16 => Value::Unsigned(u64::from(u16::from_le_bytes(fixed(file, range)))),
        Kind::I16 => Value::Signed(i64::from(i16::from_le_bytes(fixed(file, range)))),
        Kind::U32 => Value::Unsigned(u64::from(u32::from_le_bytes(fixed(file, range)))),
        Kind::I32 => Value::Signed(i64::from(i32::from_le_bytes(fixed(file, range)))),
        Kind::F32 => Value::F32(f32::from_le_bytes(fixed(file, range))),
        Kind::Bool => Value::Bool(file[range.start] != 0),
        // Behind its length.
        Kind::String => Value::String(range.start + size_of::<u64>()..range.end),
        Kind::U64 => Value::Unsigned(u64::from_le_bytes(fixed(file, range))),
        Kind::I64 => Value::Signed(i64::from_le_bytes(fixed(file, range))),
        Kind::F64 => Value::F64(f64::from_le_bytes(fixed(file, range))),
    }
}

impl Array {
    /// The elements, in order.
    pub(super) fn values<'a>(&'a self, file: &'a [u8]) -> impl Iterator<Item = Value> + 'a {
        let mut at = self.range.start;
        (0..self.len).map(move |_| {
            let size = self.kind.size().unwrap_or_else(|| {
                let length = scalar(Kind::U64, file, at..at + size_of::<u64>());
                let Value::Unsigned(length) = length else { unreachable!("lengths are unsigned") };
                size_of::<u64>() as u64 + length
            });
            let start = at;
            at += size as usize;
            scalar(self.kind, file, start..at)
        })
    }
}

/// A value in words, for messages: never longer than a line.
pub(super) fn display(value: &Value, file: &[u8]) -> String {
    const SHOWN: usize = 100;
    match value {
        Value::Unsigned(n) => n.to_string(),
        Value::Signed(n) => n.to_string(),
        Value::F32(n) => n.to_string(),
        Value::F64(n) => n.to_string(),
        Value::Bool(is) => is.to_string(),
        Value::String(range) => {
            let shown = range.start..range.end.min(range.start + SHOWN);
            format!("{:?}", String::from_utf8_lossy(&file[shown]))
        }
        Value::Array(array) => format!("a list of {}", array.len),
    }
}
