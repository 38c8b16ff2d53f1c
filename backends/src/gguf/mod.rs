//! GGUF: a model in one file, as llama.cpp and what is built on it have them.
//!
//! A file is served as if it were a directory in Hugging Face layout: [`Gguf::file`] makes
//! config.json, tokenizer.json and the rest from the file's metadata, and its tensors have the
//! names and shapes of a checkpoint. So nothing else in the program knows the format: the families
//! read a configuration, the router reads a tokenizer.
//!
//! `header` checks the file and says what lies where; `keys` reads its metadata and notes what was
//! read; `architectures` says what is supported; `config` and `tokenizer` make the files; `types`
//! and `blocks` are how numbers are stored.
//!
//! Files are input. What is not understood and would change the mathematics is refused by name.

mod architectures;
pub(crate) mod blocks;
mod config;
#[cfg(test)]
mod fuzz;
mod header;
mod keys;
#[cfg(test)]
mod tests;
mod tokenizer;
mod types;

use crate::LoadError;
use crate::candle::weights::file::File;
use architectures::{Architecture, Part};
use header::Header;
use keys::Keys;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokenizer::Tokenizer;
pub(crate) use types::TensorType;

/// A GGUF file whose header is checked.
pub struct Gguf {
    path: PathBuf,
    bytes: Arc<File>,
    header: Header,
}

impl std::fmt::Debug for Gguf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gguf").field("path", &self.path).finish_non_exhaustive()
    }
}

/// A tensor of a checkpoint, as a file stores it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct StoredTensor {
    pub(crate) kind: TensorType,
    pub(crate) shape: Vec<usize>,
    /// Its bytes in the file, row by row.
    pub(crate) range: Range<usize>,
    pub(crate) rows: RowOrder,
    /// Its elements have one added.
    pub(crate) plus_one: bool,
}

/// Where row n of a tensor is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RowOrder {
    /// At n.
    AsIs,
    /// In heads of so many rows, of which those of the first half alternate with those of the
    /// second.
    Alternating(usize),
}

impl RowOrder {
    /// Where row `n` is stored.
    pub(crate) fn stored(self, n: usize) -> usize {
        match self {
            Self::AsIs => n,
            Self::Alternating(head_dim) => {
                let (head, row) = (n / head_dim, n % head_dim);
                let (half, pair) = (row / (head_dim / 2), row % (head_dim / 2));
                head * head_dim + 2 * pair + half
            }
        }
    }
}

impl Gguf {
    /// Maps a file and checks its header.
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        let name = || path.display().to_string();
        let mapped = fs::File::open(path).and_then(|file| File::map(&file));
        let file = mapped.map_err(|source| LoadError::Read { file: name(), source })?;
        let header = header::read(file.bytes());
        let header = header.map_err(|reason| LoadError::Invalid { file: name(), reason })?;
        let gguf = Self { path: path.to_owned(), bytes: Arc::new(file), header };
        gguf.keys().only("split.count", &[0.0, 1.0]).map_err(|reason| {
            gguf.invalid(format!("{reason}; join the parts with `llama-gguf-split --merge`"))
        })?;
        Ok(gguf)
    }

    /// Where the file lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The whole of one file of the directory that this file stands for; `None` for one that there
    /// is not.
    pub fn file(&self, name: &str) -> Result<Option<Vec<u8>>, LoadError> {
        let made = self.make(name).map_err(|reason| self.invalid(reason))?;
        Ok(made.map(|json| json.to_string().into_bytes()))
    }

    fn make(&self, name: &str) -> Result<Option<serde_json::Value>, String> {
        let keys = self.keys();
        let tokenizer = || match keys.has("tokenizer.ggml.model") {
            true => Tokenizer::read(&keys).map(Some),
            false => Ok(None),
        };
        match name {
            "config.json" => self.config(&keys).map(Some),
            "tokenizer.json" => tokenizer()?.map(|tokenizer| tokenizer.json()).transpose(),
            "tokenizer_config.json" => Ok(tokenizer()?.map(|tokenizer| tokenizer.config())),
            "generation_config.json" => {
                let ends = tokenizer()?.map(|tokenizer| tokenizer.eos_token_ids());
                config::generation_config(&keys, &ends.unwrap_or_default()).map(Some)
            }
            _ => Ok(None),
        }
    }

    fn config(&self, keys: &Keys<'_>) -> Result<serde_json::Value, String> {
        config::config(keys, architecture(keys)?)
    }

    /// The tensors, as a checkpoint calls and cuts them.
    pub(crate) fn tensors(&self) -> Result<Vec<(String, StoredTensor)>, LoadError> {
        self.renamed().map_err(|reason| self.invalid(reason))
    }

    fn renamed(&self) -> Result<Vec<(String, StoredTensor)>, String> {
        let keys = self.keys();
        let architecture = architecture(&keys)?;
        let head_dim = self.config(&keys)?["head_dim"].as_u64().unwrap_or(0) as usize;
        let mut tensors = Vec::new();
        let others = |name: &&String| !config::IN_CONFIG.contains(&name.as_str());
        for name in self.header.tensors.keys().filter(others) {
            let tensor = &self.header.tensors[name];
            let (renamed, part) = architecture.rename(name);
            let mut stored = StoredTensor {
                kind: tensor.kind,
                shape: tensor.shape.clone(),
                range: tensor.range.clone(),
                rows: RowOrder::AsIs,
                plus_one: part == Part::Norm && architecture.norms_plus_one,
            };
            if part == Part::Heads && architecture.adjacent_pairs {
                let rows = stored.shape.first().copied().unwrap_or(0);
                if head_dim < 2 || !head_dim.is_multiple_of(2) || !rows.is_multiple_of(head_dim) {
                    return Err(format!("tensor `{name}`: {rows} rows are no heads of {head_dim}"));
                }
                stored.rows = RowOrder::Alternating(head_dim);
            }
            match part {
                Part::Experts => tensors.extend(experts(&renamed, &stored)),
                _ => tensors.push((renamed, stored)),
            }
        }
        Ok(tensors)
    }

    /// The whole file.
    pub(crate) fn bytes(&self) -> &Arc<File> {
        &self.bytes
    }

    fn keys(&self) -> Keys<'_> {
        Keys::new(&self.header, self.bytes.bytes())
    }

    fn invalid(&self, reason: String) -> LoadError {
        LoadError::Invalid { file: self.path.display().to_string(), reason }
    }
}

fn architecture(keys: &Keys<'_>) -> Result<&'static Architecture, String> {
    let key = "general.architecture";
    Architecture::of(keys.string(key)?.ok_or_else(|| format!("`{key}` is missing"))?)
}

/// The matrices of a tensor that holds one for each expert.
fn experts(name: &str, all: &StoredTensor) -> Vec<(String, StoredTensor)> {
    let Some((&count, shape)) = all.shape.split_first() else { return Vec::new() };
    let len = all.range.len().checked_div(count).unwrap_or(0);
    let one = |expert: usize| {
        let start = all.range.start + expert * len;
        let tensor =
            StoredTensor { shape: shape.to_vec(), range: start..start + len, ..all.clone() };
        (name.replace('#', &expert.to_string()), tensor)
    };
    (0..count).map(one).collect()
}
