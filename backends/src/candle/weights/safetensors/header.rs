//! The header of a safetensors file: which bytes are which tensor.
//!
//! `u64` little-endian length, that many bytes of JSON (blanks at its end), then the data. What a
//! [`Header`] holds true: every tensor's range lies in the file and has the length that follows
//! from its dtype and shape; together the ranges cover the data once, without overlap or hole;
//! no name stands for two tensors. These are the rules of the format, which the safetensors crate
//! checks too, but for the last; here each breach names the tensor, the rule and the values.
//!
//! The length is checked against the file before the JSON is read, and the JSON is read straight
//! into this form: what it allocates is bounded by the header's own length.

use safetensors::tensor::Dtype;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

/// The longest header that the format allows, in bytes.
const MAX_HEADER: u64 = 100_000_000;

/// More dimensions than any tensor library knows.
const MAX_DIMENSIONS: usize = 32;

/// The bytes before the JSON, which say how long it is.
const LENGTH_BYTES: usize = size_of::<u64>();

/// Free text about the file, which is not a tensor.
const METADATA: &str = "__metadata__";

/// One tensor of a file.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tensor {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    /// Its bytes in the file.
    pub(super) range: Range<usize>,
}

/// The tensors of a file by name.
pub(super) type Header = BTreeMap<String, Tensor>;

/// Reads the header of a whole file. The error says which rule is broken, by which values.
pub(super) fn read(file: &[u8]) -> Result<Header, String> {
    let Some((length, rest)) = file.split_first_chunk::<LENGTH_BYTES>() else {
        return Err(format!(
            "the file has {} bytes, less than the {LENGTH_BYTES} of a header's length",
            file.len()
        ));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER {
        return Err(format!("the header's length ({length}) exceeds the limit of {MAX_HEADER}"));
    }
    let json = usize::try_from(length).ok().and_then(|length| rest.get(..length));
    let Some(json) = json else {
        return Err(format!(
            "the header's length ({length}) exceeds what the file holds after it ({} bytes)",
            rest.len()
        ));
    };
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let listed = Listed.deserialize(&mut deserializer);
    let listed = listed.and_then(|listed| deserializer.end().map(|()| listed));
    let mut header = listed.map_err(|error| format!("the header is not valid: {error}"))?;
    check_layout(&header, rest.len() - json.len())?;
    let data_start = LENGTH_BYTES + json.len();
    for tensor in header.values_mut() {
        tensor.range = data_start + tensor.range.start..data_start + tensor.range.end;
    }
    Ok(header)
}

/// Checks that the tensors' ranges, which still count from the data's start, are `data_len`
/// bytes, one tensor after the other.
fn check_layout(header: &Header, data_len: usize) -> Result<(), String> {
    let mut in_order: Vec<(&String, &Tensor)> = header.iter().collect();
    in_order.sort_by_key(|(_, tensor)| (tensor.range.start, tensor.range.end));
    let mut covered = 0;
    let mut previous = "";
    for (name, tensor) in in_order {
        let Range { start, end } = tensor.range;
        let fail = |rule: String| Err(format!("tensor `{name}`: {rule}"));
        if end < start {
            return fail(format!("data_offsets end ({end}) before they begin ({start})"));
        }
        let Some(size) = num_bytes(tensor) else {
            return fail(format!(
                "shape {:?} of {} has no whole number of bytes that fits in memory",
                tensor.shape, tensor.dtype
            ));
        };
        if end - start != size {
            return fail(format!(
                "shape {:?} of {} takes {size} bytes, data_offsets hold {}",
                tensor.shape,
                tensor.dtype,
                end - start
            ));
        }
        if start < covered {
            return fail(format!(
                "data_offsets begin at {start}, inside tensor `{previous}` which ends at {covered}"
            ));
        }
        if start > covered {
            return fail(format!(
                "data_offsets begin at {start}, which leaves a hole of {} bytes before it",
                start - covered
            ));
        }
        if end > data_len {
            return fail(format!(
                "data_offsets end at {end}, the file's data at {data_len}: the file is truncated"
            ));
        }
        covered = end;
        previous = name;
    }
    if covered < data_len {
        let surplus = data_len - covered;
        return Err(format!("the last {surplus} bytes of the file belong to no tensor"));
    }
    Ok(())
}

/// The bytes of a tensor by its dtype and shape; `None` beyond what can be addressed, or where
/// elements smaller than a byte do not fill the last one.
fn num_bytes(tensor: &Tensor) -> Option<usize> {
    let product = |all: usize, dimension: &usize| all.checked_mul(*dimension);
    let bits = tensor.shape.iter().try_fold(1, product)?.checked_mul(tensor.dtype.bitsize())?;
    bits.is_multiple_of(8).then_some(bits / 8)
}

/// The JSON object of a header: names to tensors.
struct Listed;

impl<'de> DeserializeSeed<'de> for Listed {
    type Value = Header;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Header, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Listed {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let mut header = Header::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == METADATA {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            let tensor = map
                .next_value_seed(Entry)
                .map_err(|error| A::Error::custom(format!("tensor `{name}`: {error}")))?;
            if header.contains_key(&name) {
                return Err(A::Error::custom(format!("tensor `{name}` is listed twice")));
            }
            header.insert(name, tensor);
        }
        Ok(header)
    }
}

/// One tensor's object: `dtype`, `shape` and `data_offsets`, each exactly once.
struct Entry;

impl<'de> DeserializeSeed<'de> for Entry {
    type Value = Tensor;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Tensor, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Entry {
    type Value = Tensor;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with dtype, shape and data_offsets")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tensor, A::Error> {
        let (mut dtype, mut shape, mut offsets) = (None, None, None);
        while let Some(key) = map.next_key::<String>()? {
            let twice = match key.as_str() {
                "dtype" => dtype.replace(map.next_value::<Dtype>()?).is_some(),
                "shape" => shape.replace(map.next_value_seed(Shape)?).is_some(),
                "data_offsets" => offsets.replace(map.next_value::<(usize, usize)>()?).is_some(),
                _ => map.next_value::<IgnoredAny>().map(|_| false)?,
            };
            if twice {
                return Err(A::Error::custom(format!("`{key}` is given twice")));
            }
        }
        let dtype = dtype.ok_or_else(|| A::Error::missing_field("dtype"))?;
        let shape = shape.ok_or_else(|| A::Error::missing_field("shape"))?;
        let (start, end) = offsets.ok_or_else(|| A::Error::missing_field("data_offsets"))?;
        Ok(Tensor { dtype, shape, range: start..end })
    }
}

/// At most [`MAX_DIMENSIONS`] numbers.
struct Shape;

impl<'de> DeserializeSeed<'de> for Shape {
    type Value = Vec<usize>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<usize>, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Shape {
    type Value = Vec<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of dimensions")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut dimensions: A) -> Result<Vec<usize>, A::Error> {
        let mut shape = Vec::new();
        while let Some(dimension) = dimensions.next_element()? {
            if shape.len() == MAX_DIMENSIONS {
                let rule = format!("the shape has more than {MAX_DIMENSIONS} dimensions");
                return Err(A::Error::custom(rule));
            }
            shape.push(dimension);
        }
        Ok(shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of this header and so many bytes of data.
    fn file(header: &str, data_len: usize) -> Vec<u8> {
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.as_bytes());
        file.resize(file.len() + data_len, 0);
        file
    }

    /// A tensor's entry.
    fn tensor(name: &str, dtype: &str, shape: &str, start: u64, end: u64) -> String {
        format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{start},{end}]}}"#)
    }

    fn object(entries: &[String]) -> String {
        format!("{{{}}}", entries.join(","))
    }

    #[test]
    fn a_header_gives_every_tensor_its_bytes_in_any_order() {
        let header = object(&[
            r#""__metadata__":{"format":"pt"}"#.to_owned(),
            tensor("b", "BF16", "[2,1]", 12, 16),
            tensor("empty", "F32", "[0,7]", 12, 12),
            tensor("a", "F32", "[3]", 0, 12),
            tensor("scalar", "U8", "[]", 16, 17),
        ]) + "   ";
        let read = read(&file(&header, 17)).unwrap();
        let start = LENGTH_BYTES + header.len();
        let found: Vec<_> = read
            .iter()
            .map(|(name, t)| (name.as_str(), t.range.start - start, t.range.len()))
            .collect();
        assert_eq!(found, [("a", 0, 12), ("b", 12, 4), ("empty", 12, 0), ("scalar", 16, 1)]);
        assert_eq!((read["b"].dtype, read["b"].shape.as_slice()), (Dtype::BF16, &[2, 1][..]));
    }

    #[test]
    fn a_length_that_the_file_cannot_hold_is_refused_unread() {
        let lengths = [(u64::MAX, "exceeds the limit of 100000000"), (100_000_001, "the limit")];
        for (length, rule) in
            lengths.into_iter().chain([(3, "(3) exceeds what the file holds after it (2 b")])
        {
            let mut file = length.to_le_bytes().to_vec();
            file.extend(b"{}");
            let error = read(&file).unwrap_err();
            assert!(error.contains(rule), "{error}");
        }
        assert_eq!(
            read(b"1234567").unwrap_err(),
            "the file has 7 bytes, less than the 8 of a header's length"
        );
    }

    #[test]
    fn a_breach_names_its_tensor_its_rule_and_its_values() {
        let a = || tensor("a", "F32", "[3]", 0, 12);
        let one = |entry: String| object(&[entry]);
        let with_a = |entry: String| object(&[entry, a()]);
        let many = format!("[{}]", ["1"; 33].join(","));
        let deep = format!(r#"{{"a":{{"x":{}{}}}}}"#, "[".repeat(200), "]".repeat(200));
        for (header, data_len, rule) in [
            (
                one(a()),
                11,
                "tensor `a`: data_offsets end at 12, the file's data at 11: the file is truncated",
            ),
            (one(a()), 14, "the last 2 bytes of the file belong to no tensor"),
            (
                with_a(tensor("b", "F32", "[2]", 8, 16)),
                16,
                "tensor `b`: data_offsets begin at 8, inside tensor `a` which ends at 12",
            ),
            (
                with_a(tensor("b", "F32", "[1]", 16, 20)),
                20,
                "tensor `b`: data_offsets begin at 16, which leaves a hole of 4 bytes",
            ),
            (
                one(tensor("a", "F32", "[3]", 4, 16)),
                16,
                "tensor `a`: data_offsets begin at 4, which leaves a hole of 4 bytes",
            ),
            (
                one(tensor("a", "F32", "[3]", 12, 0)),
                12,
                "tensor `a`: data_offsets end (0) before they begin (12)",
            ),
            (
                one(tensor("a", "F16", "[3]", 0, 12)),
                12,
                "tensor `a`: shape [3] of F16 takes 6 bytes, data_offsets hold 12",
            ),
            (
                one(tensor("a", "F32", "[4294967296,4294967296,4]", 0, 0)),
                0,
                "tensor `a`: shape [4294967296, 4294967296, 4] of F32 has no whole number",
            ),
            (
                one(tensor("a", "F4", "[3]", 0, 2)),
                2,
                "tensor `a`: shape [3] of F4 has no whole number of bytes",
            ),
            (with_a(a()), 12, "tensor `a` is listed twice"),
            (one(tensor("a", "F33", "[3]", 0, 12)), 12, "tensor `a`: unknown variant `F33`"),
            (one(tensor("a", "F32", "[-3]", 0, 12)), 12, "tensor `a`: invalid value: integer `-3`"),
            (
                one(tensor("a", "F32", "[3.0]", 0, 12)),
                12,
                "tensor `a`: invalid type: floating point `3.0`",
            ),
            (
                one(tensor("a", "F32", &many, 0, 4)),
                4,
                "tensor `a`: the shape has more than 32 dimensions",
            ),
            (
                r#"{"a":{"dtype":"F32","shape":[3]}}"#.to_owned(),
                12,
                "tensor `a`: missing field `data_offsets`",
            ),
            (
                r#"{"a":{"dtype":"F32","dtype":"F32"}}"#.to_owned(),
                12,
                "tensor `a`: `dtype` is given twice",
            ),
            (
                r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,12,0]}}"#.to_owned(),
                12,
                "tensor `a`: ",
            ),
            (
                r#"{"a":3}"#.to_owned(),
                0,
                "tensor `a`: invalid type: integer `3`, expected an object with dtype",
            ),
            (
                "[]".to_owned(),
                0,
                "the header is not valid: invalid type: sequence, expected an object of tensors",
            ),
            ("{} {}".to_owned(), 0, "the header is not valid: trailing characters"),
            ("{".to_owned(), 0, "the header is not valid: EOF"),
            (deep, 0, "tensor `a`: missing field `dtype`"),
        ] {
            let error = read(&file(&header, data_len)).unwrap_err();
            assert!(error.contains(rule), "{header}: {error}");
        }
        let not_text = file("{\"\u{1}\":1}", 0);
        assert!(read(&not_text).unwrap_err().contains("control character"));
    }
}
