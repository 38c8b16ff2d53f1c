//! A checkpoint: tensors by name, each with its shape, how it is stored, and its bytes.

use super::file::Span;
use super::safetensors;
use crate::gguf::{Gguf, RowOrder, StoredTensor, TensorType};
use crate::{LoadError, ModelSource};
use candle_core::DType;
use std::collections::BTreeMap;

/// The tensors of a checkpoint, by name.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    /// The file, or which files, for messages.
    pub(crate) file: String,
    pub(crate) tensors: BTreeMap<String, Entry>,
}

/// One tensor as stored.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) format: Format,
    pub(crate) shape: Vec<usize>,
    pub(crate) span: Span,
}

/// How the elements of a tensor are stored: row-major, little-endian.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// One of the three types that weights are computed in.
    Float(DType),
    /// As a GGUF file has them: plain or in blocks, the rows perhaps in another order, and perhaps
    /// one more than they are.
    Gguf { kind: TensorType, rows: RowOrder, plus_one: bool },
    /// Bytes that mean something together with another tensor.
    Bytes,
    /// Something else, by its name.
    Other(String),
}

impl Checkpoint {
    /// Opens the checkpoint and checks every header.
    pub(crate) fn open(source: &ModelSource) -> Result<Self, LoadError> {
        let (file, tensors) = match source {
            ModelSource::Gguf(gguf) => (source.name(), of_gguf(gguf)?),
            _ => ("*.safetensors".into(), safetensors::open(source)?),
        };
        Ok(Self { file, tensors })
    }

    /// An error of the file.
    pub(crate) fn invalid(&self, reason: String) -> LoadError {
        LoadError::Invalid { file: self.file.clone(), reason }
    }

    pub(crate) fn get(&self, name: &str) -> Result<&Entry, LoadError> {
        self.tensors.get(name).ok_or_else(|| LoadError::MissingTensor { name: name.into() })
    }

    /// Bytes of all tensors.
    pub(crate) fn num_bytes(&self) -> u64 {
        self.tensors.values().map(|entry| entry.span.bytes().len() as u64).sum()
    }

    /// The computed dtype that holds most elements. Blocks count as bf16, which is what they are
    /// unpacked to where they have to be.
    pub(crate) fn most_common_dtype(&self) -> DType {
        let elements = |dtype: DType| -> usize {
            let of_dtype = |entry: &&Entry| match &entry.format {
                Format::Float(stored) => *stored == dtype,
                Format::Gguf { kind, .. } => kind.computed() == dtype,
                Format::Bytes | Format::Other(_) => false,
            };
            let entries = self.tensors.values().filter(of_dtype);
            entries.map(|entry| entry.shape.iter().product::<usize>()).sum()
        };
        let dtypes = [DType::F16, DType::BF16, DType::F32];
        dtypes.into_iter().max_by_key(|dtype| elements(*dtype)).unwrap_or(DType::F32)
    }
}

/// The tensors of a GGUF file, under the names of a checkpoint.
fn of_gguf(gguf: &Gguf) -> Result<BTreeMap<String, Entry>, LoadError> {
    let entry = |(name, stored): (String, StoredTensor)| {
        let StoredTensor { kind, shape, range, rows, plus_one } = stored;
        let span = Span::new(gguf.bytes().clone(), range);
        (name, Entry { format: Format::Gguf { kind, rows, plus_one }, shape, span })
    };
    Ok(gguf.tensors()?.into_iter().map(entry).collect())
}

impl Format {
    /// Its name in files.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Float(dtype) => format!("{dtype:?}"),
            Self::Gguf { kind, .. } => kind.name().into(),
            Self::Bytes => "U8".into(),
            Self::Other(name) => name.clone(),
        }
    }
}
