//! Checkpoints in safetensors: one file, or several with an index.
//!
//! Files are input. A header is checked against its file before anything is allocated
//! ([`header`]); names in an index cannot lead out of the model's directory; an index and its
//! shards list the same tensors. Files that can only be read by running what is in them (pickles)
//! are refused.

#[cfg(test)]
pub(super) mod fuzz;
mod header;

use super::checkpoint::{Entry, Format};
use super::file::{File, Span};
use crate::{LoadError, ModelSource};
use candle_core::DType;
use safetensors::tensor::Dtype;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The largest index that is read, in bytes: some ten times what a checkpoint of trillions of
/// parameters needs.
const MAX_INDEX: u64 = 100_000_000;

/// Opens the checkpoint and checks every header.
pub(super) fn open(source: &ModelSource) -> Result<BTreeMap<String, Entry>, LoadError> {
    if let Some(file) = File::open(source, SINGLE)? {
        return Ok(read_file(SINGLE, file)?.collect());
    }
    match read_index(source).map_err(|error| cannot_read(INDEX, error))? {
        Some(index) => open_shards(source, &index),
        None => Err(no_weights(source)),
    }
}

fn open_shards(source: &ModelSource, index: &[u8]) -> Result<BTreeMap<String, Entry>, LoadError> {
    let weight_map = parse_index(index)?;
    let mut shards: BTreeMap<&str, usize> = BTreeMap::new();
    for file in weight_map.values() {
        *shards.entry(file).or_default() += 1;
    }
    let mut tensors = BTreeMap::new();
    for (file, num_listed) in shards {
        let Some(bytes) = File::open(source, file)? else {
            return Err(LoadError::Missing { file: file.to_owned(), model: source.name() });
        };
        let before = tensors.len();
        for (name, entry) in read_file(file, bytes)? {
            match weight_map.get(&name) {
                Some(listed) if listed == file => tensors.insert(name, entry),
                listed => return Err(invalid(file, not_listed_here(&name, listed))),
            };
        }
        if tensors.len() - before < num_listed {
            let absent =
                |(name, shard): &(&String, &String)| *shard == file && !tensors.contains_key(*name);
            let name = weight_map.iter().find(absent).map_or("", |(name, _)| name);
            let reason = format!("tensor `{name}` is missing, which {INDEX} says it holds");
            return Err(invalid(file, reason));
        }
    }
    Ok(tensors)
}

/// The tensors of a file.
fn read_file(
    name: &str,
    file: File,
) -> Result<impl Iterator<Item = (String, Entry)> + use<>, LoadError> {
    let header = header::read(file.bytes()).map_err(|reason| invalid(name, reason))?;
    let data_start = header.values().map(|tensor| tensor.range.start).min();
    file.was_read(0..data_start.unwrap_or_default());
    let file = Arc::new(file);
    Ok(header.into_iter().map(move |(name, tensor)| {
        let header::Tensor { dtype, shape, range } = tensor;
        let span = Span::new(Arc::clone(&file), range);
        (name, Entry { format: format(dtype), shape, span })
    }))
}

fn format(dtype: Dtype) -> Format {
    match dtype {
        Dtype::F32 => Format::Float(DType::F32),
        Dtype::F16 => Format::Float(DType::F16),
        Dtype::BF16 => Format::Float(DType::BF16),
        Dtype::U8 => Format::Bytes,
        other => Format::Other(format!("{other:?}")),
    }
}

/// The index's bytes, or `None` if the model has no index.
fn read_index(source: &ModelSource) -> io::Result<Option<Cow<'static, [u8]>>> {
    if let Some(path) = source.path(INDEX)?
        && let Ok(metadata) = std::fs::metadata(path)
        && metadata.len() > MAX_INDEX
    {
        let reason = format!("its length ({}) exceeds the limit of {MAX_INDEX}", metadata.len());
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, reason));
    }
    source.read(INDEX)
}

/// Why a shard's tensor is not the one that the index lists, if it lists it at all.
fn not_listed_here(name: &str, listed: Option<&String>) -> String {
    match listed {
        Some(shard) => format!("holds tensor `{name}`, which {INDEX} places in `{shard}`"),
        None => format!("holds tensor `{name}`, which {INDEX} does not list"),
    }
}

/// `weight_map` of an index: tensor name to file name.
fn parse_index(index: &[u8]) -> Result<BTreeMap<String, String>, LoadError> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index: Index =
        serde_json::from_slice(index).map_err(|error| invalid(INDEX, error.to_string()))?;
    // Shards lie beside their index. Whatever else a name says, it is not a shard's.
    let stays = |file: &str| !file.contains(['/', '\\']) && file.ends_with(".safetensors");
    match index.weight_map.iter().find(|(_, file)| !stays(file)) {
        Some((name, file)) => {
            let reason =
                format!("tensor `{name}` is in `{file}`, which is not the name of a shard");
            Err(invalid(INDEX, reason))
        }
        None => Ok(index.weight_map),
    }
}

/// Why there is nothing to load, and what to do about it.
fn no_weights(source: &ModelSource) -> LoadError {
    let missing = LoadError::Missing { file: SINGLE.into(), model: source.name() };
    let ModelSource::Directory(directory) = source else { return missing };
    let Ok(files) = std::fs::read_dir(directory) else { return missing };
    let names = files.filter_map(|file| file.ok()?.file_name().into_string().ok());
    let is_weights = |name: &String| {
        [".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl"]
            .iter()
            .any(|end| name.ends_with(end))
    };
    match names.filter(is_weights).min() {
        Some(name) if name.ends_with(".safetensors") => invalid(
            SINGLE,
            format!(
                "missing, and so is {INDEX}; the model has `{name}`, which only they say how to \
                 read; use the checkpoint in the layout of Transformers"
            ),
        ),
        Some(name) => invalid(
            &name,
            "a pickle can run code when it is read, so it is refused; convert the weights to \
             safetensors"
                .into(),
        ),
        None => missing,
    }
}

fn invalid(file: &str, reason: String) -> LoadError {
    LoadError::Invalid { file: file.into(), reason }
}

fn cannot_read(file: &str, source: io::Error) -> LoadError {
    LoadError::Read { file: file.into(), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::path::Path;

    /// A file with these tensors, each of `n` f32 zeros.
    fn file(tensors: &[(&str, usize)]) -> Vec<u8> {
        let mut header = serde_json::Map::new();
        let mut offset = 0;
        for (name, n) in tensors {
            let end = offset + 4 * n;
            header.insert(
                (*name).into(),
                json!({"dtype": "F32", "shape": [n], "data_offsets": [offset, end]}),
            );
            offset = end;
        }
        let header = serde_json::Value::Object(header).to_string();
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.resize(bytes.len() + offset, 0);
        bytes
    }

    type File<'a> = (&'a str, &'a [u8]);

    fn directory(files: &[File<'_>]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            std::fs::write(directory.path().join(name), bytes).unwrap();
        }
        directory
    }

    fn open(path: &Path) -> Result<BTreeMap<String, Entry>, LoadError> {
        super::open(&ModelSource::Directory(path.to_owned()))
    }

    fn index(map: &serde_json::Value) -> Vec<u8> {
        json!({ "weight_map": map }).to_string().into_bytes()
    }

    #[test]
    fn a_single_file_and_its_shards_hold_the_same_tensors() {
        let map = index(&json!({"a": "m-1.safetensors", "b": "m-2.safetensors"}));
        let single = directory(&[(SINGLE, &file(&[("a", 3), ("b", 5)]))]);
        let sharded = directory(&[
            (INDEX, &map),
            ("m-1.safetensors", &file(&[("a", 3)])),
            ("m-2.safetensors", &file(&[("b", 5)])),
        ]);
        for directory in [single, sharded] {
            let checkpoint = open(directory.path()).unwrap();
            let found: Vec<_> =
                checkpoint.iter().map(|(n, e)| (n.as_str(), e.span.bytes().len())).collect();
            assert_eq!(found, [("a", 12), ("b", 20)]);
        }
    }

    #[test]
    fn broken_files_are_refused_with_the_file_and_the_rule() {
        let good = file(&[("a", 3)]);
        let shard = "m.safetensors";
        let both = file(&[("a", 3), ("b", 1)]);
        let placed = |map: serde_json::Value| index(&map);
        let escaping = placed(json!({"a": "../m.safetensors"}));
        let elsewhere = placed(json!({"a": "m.bin"}));
        let in_shard = placed(json!({"a": shard}));
        let in_two = placed(json!({"a": shard, "b": "n.safetensors"}));
        let missing = placed(json!({"a": shard, "b": shard}));
        let cases: &[(&[File<'_>], &str)] = &[
            (&[(SINGLE, &good[..good.len() - 1])], "`model.safetensors`: tensor `a`: data_offsets"),
            (&[(SINGLE, b"")], "`model.safetensors`: the file has 0 bytes"),
            (&[(INDEX, b"{}")], "missing field `weight_map`"),
            (&[(INDEX, &escaping)], "is in `../m.safetensors`, which is not the name of a shard"),
            (&[(INDEX, &elsewhere)], "is in `m.bin`, which is not the name of a shard"),
            (&[(INDEX, &in_shard)], "`m.safetensors` is missing from"),
            (
                &[(INDEX, &missing), (shard, &good)],
                "`m.safetensors`: tensor `b` is missing, which model.safetensors.index.json says",
            ),
            (
                &[(INDEX, &in_shard), (shard, &both)],
                "`m.safetensors`: holds tensor `b`, which model.safetensors.index.json does not",
            ),
            (
                &[(INDEX, &in_two), (shard, &both), ("n.safetensors", &good)],
                "`m.safetensors`: holds tensor `b`, which model.safetensors.index.json places in \
                 `n.safetensors`",
            ),
            (&[("pytorch_model.bin", b"")], "`pytorch_model.bin`: a pickle can run code"),
            (&[("consolidated.00.pth", b"")], "convert the weights to safetensors"),
            (&[("consolidated.safetensors", b"")], "the model has `consolidated.safetensors`"),
            (&[], "`model.safetensors` is missing from"),
        ];
        for (files, want) in cases {
            let error = open(directory(files).path()).unwrap_err().to_string();
            assert!(error.contains(want), "{error} should say {want}");
        }
    }

    #[test]
    fn an_index_that_no_checkpoint_needs_is_not_read() {
        let directory = directory(&[]);
        let index = std::fs::File::create(directory.path().join(INDEX)).unwrap();
        index.set_len(MAX_INDEX + 1).unwrap();
        let error = open(directory.path()).unwrap_err().to_string();
        assert!(error.contains("its length (100000001) exceeds the limit of"), "{error}");
    }
}
