//! A checkpoint: tensors by name, each with its shape, how it is stored, and its bytes.

use super::file::Span;
use super::safetensors;
use crate::{LoadError, ModelSource};
use candle_core::DType;
use std::collections::BTreeMap;

/// The tensors of a checkpoint, by name.
#[derive(Debug)]
pub(crate) struct Checkpoint {
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
    /// Bytes that mean something together with another tensor.
    Bytes,
    /// Something else, by its name.
    Other(String),
}

impl Checkpoint {
    /// Opens the checkpoint and checks every header.
    pub(crate) fn open(source: &ModelSource) -> Result<Self, LoadError> {
        Ok(Self { tensors: safetensors::open(source)? })
    }

    pub(crate) fn get(&self, name: &str) -> Result<&Entry, LoadError> {
        self.tensors.get(name).ok_or_else(|| LoadError::MissingTensor { name: name.into() })
    }

    /// Bytes of all tensors.
    pub(crate) fn num_bytes(&self) -> u64 {
        self.tensors.values().map(|entry| entry.span.bytes().len() as u64).sum()
    }

    /// The computed dtype that holds most elements.
    pub(crate) fn most_common_dtype(&self) -> DType {
        let elements = |dtype: DType| -> usize {
            let of_dtype = |entry: &&Entry| entry.format == Format::Float(dtype);
            let entries = self.tensors.values().filter(of_dtype);
            entries.map(|entry| entry.shape.iter().product::<usize>()).sum()
        };
        let dtypes = [DType::F16, DType::BF16, DType::F32];
        dtypes.into_iter().max_by_key(|dtype| elements(*dtype)).unwrap_or(DType::F32)
    }
}

impl Format {
    /// Its name in files.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Float(dtype) => format!("{dtype:?}"),
            Self::Bytes => "U8".into(),
            Self::Other(name) => name.clone(),
        }
    }
}
