//! Checkpoints in safetensors: one file, or several with an index.
//!
//! A directory's files are mapped, not read: a tensor's pages come in when it is converted, and
//! nothing of the file stays in memory afterwards. An embedded model is read where it lies.
//!
//! Files are input. The header is parsed and checked (sizes, offsets, the file's length) before
//! anything is allocated; names in an index cannot lead out of the model's directory. Files that
//! can only be read by running what is in them (pickles) are refused.

use crate::{LoadError, ModelSource};
use safetensors::tensor::{Dtype, SafeTensors};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The tensors of a checkpoint, by name, with their bytes.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    tensors: BTreeMap<String, Entry>,
}

/// One tensor as stored.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    file: Arc<Bytes>,
    range: Range<usize>,
}

impl Entry {
    /// The elements, little-endian, row-major; not necessarily aligned.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.file.as_slice()[self.range.clone()]
    }
}

impl Checkpoint {
    /// Opens the checkpoint and checks every header.
    pub(crate) fn open(source: &ModelSource) -> Result<Self, LoadError> {
        if let Some(bytes) = open_file(source, SINGLE)? {
            let tensors = read_header(SINGLE, bytes)?.collect();
            return Ok(Self { tensors });
        }
        match source.read(INDEX).map_err(|error| cannot_read(INDEX, error))? {
            Some(index) => Self::open_shards(source, &index),
            None => Err(no_weights(source)),
        }
    }

    fn open_shards(source: &ModelSource, index: &[u8]) -> Result<Self, LoadError> {
        let weight_map = parse_index(index)?;
        let mut tensors = BTreeMap::new();
        let files: BTreeSet<&String> = weight_map.values().collect();
        for file in files {
            let Some(bytes) = open_file(source, file)? else {
                return Err(LoadError::Missing { file: file.clone(), model: source.name() });
            };
            // A tensor counts where the index says it is.
            let here = |(name, _): &(String, Entry)| weight_map.get(name) == Some(file);
            tensors.extend(read_header(file, bytes)?.filter(here));
        }
        match weight_map.keys().find(|name| !tensors.contains_key(*name)) {
            Some(name) => Err(invalid(INDEX, format!("tensor `{name}` is not where it says"))),
            None => Ok(Self { tensors }),
        }
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Entry> {
        self.tensors.get(name)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&String, &Entry)> {
        self.tensors.iter()
    }
}

/// A file's bytes, wherever they lie.
#[derive(Debug)]
enum Bytes {
    Mapped(memmap2::Mmap),
    Embedded(&'static [u8]),
}

impl Bytes {
    fn as_slice(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Embedded(bytes) => bytes,
        }
    }
}

/// A file of the model, or `None` if it has no such file.
fn open_file(source: &ModelSource, name: &str) -> Result<Option<Bytes>, LoadError> {
    let read = || match source {
        ModelSource::Embedded(files) => {
            let file = files.iter().find(|(file, _)| *file == name);
            Ok(file.map(|(_, bytes)| Bytes::Embedded(bytes)))
        }
        ModelSource::Directory(_) => match source.path(name)? {
            Some(path) => map(&File::open(path)?).map(Some),
            None => Ok(None),
        },
    };
    match read() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map_err(|error| cannot_read(name, error)),
    }
}

#[allow(unsafe_code, reason = "weights are larger than what may be read into memory twice")]
fn map(file: &File) -> io::Result<Bytes> {
    // SAFETY: the map is read-only and lives as long as `Bytes`. What it cannot rule out is that
    // another process truncates or rewrites the file while it is being loaded: the documented
    // limit of every memory-mapped checkpoint. All numbers read from it are bounds-checked.
    let map = unsafe { memmap2::Mmap::map(file) }?;
    #[cfg(unix)]
    // Read once, front to back. Only advice: a refusal changes nothing.
    let _ = map.advise(memmap2::Advice::Sequential);
    Ok(Bytes::Mapped(map))
}

/// The tensors that a file's header lists; the header agrees with itself and with the file.
fn read_header(
    file: &str,
    bytes: Bytes,
) -> Result<impl Iterator<Item = (String, Entry)> + use<>, LoadError> {
    let (header_len, metadata) = SafeTensors::read_metadata(bytes.as_slice())
        .map_err(|error| invalid(file, format!("not a whole safetensors file: {error}")))?;
    let data_start = header_len + size_of::<u64>();
    let bytes = Arc::new(bytes);
    let tensors = metadata.tensors().into_iter().map(|(name, info)| {
        let (begin, end) = info.data_offsets;
        let range = data_start + begin..data_start + end;
        let file = bytes.clone();
        (name, Entry { dtype: info.dtype, shape: info.shape.clone(), file, range })
    });
    let tensors: Vec<_> = tensors.collect();
    Ok(tensors.into_iter())
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
    let is_pickle = |name: &String| {
        [".bin", ".pt", ".pth", ".ckpt", ".pkl"].iter().any(|end| name.ends_with(end))
    };
    match names.filter(is_pickle).min() {
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

    fn open(path: &Path) -> Result<Checkpoint, LoadError> {
        Checkpoint::open(&ModelSource::Directory(path.to_owned()))
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
            // A second copy where the index does not say is not looked at.
            ("m-2.safetensors", &file(&[("b", 5), ("a", 1)])),
        ]);
        for directory in [single, sharded] {
            let checkpoint = open(directory.path()).unwrap();
            let found: Vec<_> =
                checkpoint.iter().map(|(n, e)| (n.as_str(), e.bytes().len())).collect();
            assert_eq!(found, [("a", 12), ("b", 20)]);
        }
    }

    #[test]
    fn broken_files_are_refused_with_the_file_and_the_rule() {
        let good = file(&[("a", 3)]);
        let mut longer = good.clone();
        longer.push(0);
        let mut huge_header = good.clone();
        huge_header[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        let overflow =
            br#"{"a":{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,0]}}"#;
        let mut overflowing = (overflow.len() as u64).to_le_bytes().to_vec();
        overflowing.extend(overflow);
        let escaping = index(&json!({"a": "../m.safetensors"}));
        let elsewhere = index(&json!({"a": "m.bin"}));
        let absent = index(&json!({"a": "m.safetensors"}));
        let misplaced = index(&json!({"a": "m.safetensors", "b": "m.safetensors"}));
        let cases: &[(&[File<'_>], &str)] = &[
            (&[(SINGLE, &good[..good.len() - 1])], "`model.safetensors`: not a whole safetensors"),
            (&[(SINGLE, &longer)], "`model.safetensors`: not a whole safetensors file"),
            (&[(SINGLE, &huge_header)], "`model.safetensors`: not a whole safetensors file"),
            (&[(SINGLE, &overflowing)], "`model.safetensors`: not a whole safetensors file"),
            (&[(SINGLE, b"")], "model.safetensors"),
            (&[(INDEX, b"{}")], "missing field `weight_map`"),
            (&[(INDEX, &escaping)], "is in `../m.safetensors`, which is not the name of a shard"),
            (&[(INDEX, &elsewhere)], "is in `m.bin`, which is not the name of a shard"),
            (&[(INDEX, &absent)], "`m.safetensors` is missing from"),
            (&[(INDEX, &misplaced), ("m.safetensors", &good)], "tensor `b` is not where it says"),
            (&[("pytorch_model.bin", b"")], "`pytorch_model.bin`: a pickle can run code"),
            (&[("consolidated.00.pth", b"")], "convert the weights to safetensors"),
            (&[], "`model.safetensors` is missing from"),
        ];
        for (files, want) in cases {
            let error = open(directory(files).path()).unwrap_err().to_string();
            assert!(error.contains(want), "{error} should say {want}");
        }
    }
}
