//! The weights of a model, handed out tensor by tensor to whoever builds it.
//!
//! Whoever builds the model asks for every tensor by name with the shape that follows from the
//! spec, and ends with `finish`. So a checkpoint is accepted exactly when it has all that the
//! model needs, in the right shapes, and nothing that the model would silently leave out.
//!
//! A matrix that is multiplied goes from the file into the form that products read, row by row
//! ([`rows`]), several of them stacked into one where one multiplication will read them; which form
//! that is, and where it lies, is the matter of [`keep`]. Vectors (norms, biases) come in f32.
//!
//! This module knows files and names. It does not know what is computed from the weights.

mod checkpoint;
pub(crate) mod dummy;
pub(crate) mod element;
mod experts;
pub(crate) mod file;
pub(crate) mod keep;
pub(crate) mod layer;
mod mxfp4;
pub(crate) mod names;
mod packing;
pub(crate) mod rows;
mod safetensors;

#[cfg(test)]
pub(crate) use safetensors::fuzz::allocated;

use super::spec::Layout;
use super::{LoadFormat, LoadOptions, device_error};
use crate::{LoadError, ModelSource, Progress};
use candle_core::{DType, Device, Tensor};
use checkpoint::{Checkpoint, Entry, Format};
use half::{bf16, f16};
use keep::{Host, Keep};
use names::Names;
use rows::{Order, Part, Piece, Rows, Stored};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;

/// Of each tensor, this many bytes at either end enter the digest.
const DIGEST_SAMPLE: usize = 4096;

/// The weights that are still to be taken, and a record of those that were. `keep` has the others.
#[derive(Debug)]
pub(crate) struct Weights<K = Host> {
    pub(crate) keep: K,
    /// `None` for random weights.
    checkpoint: Option<Checkpoint>,
    dtype: DType,
    progress: Progress,
    taken: BTreeSet<String>,
    taken_bytes: u64,
    total_bytes: u64,
    num_parameters: u64,
    digest: Sha256,
}

/// What is left of `Weights` once the model is built.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// Over the name, stored dtype, shape, and first and last 4 KiB of every tensor, in the order
    /// in which they were taken. Not over every byte: that would read an 8B checkpoint twice. Two
    /// checkpoints that differ only in the middle of their tensors, with every end equal, are
    /// taken for one; training does not produce such a pair.
    pub(crate) digest: [u8; 32],
    /// Elements of all tensors.
    pub(crate) num_parameters: u64,
    /// Bytes that were read of files; 0 for random weights.
    pub(crate) num_bytes: u64,
    /// See [`Weights::dtype`].
    pub(crate) dtype: DType,
    /// Whether matrices are served as a file has them, in blocks.
    pub(crate) keeps_blocks: bool,
}

/// What a matrix is for, which decides how it may be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// One of the many that a model mostly consists of.
    Body,
    /// Gives logits. Small differences between them decide a text, so it keeps 8 bits where the
    /// others are quantised to 4.
    Head,
    /// Chooses experts: small, and an error in it is another expert. Never quantised.
    Router,
}

impl<K: Keep> Weights<K> {
    /// Opens the weights of a model and settles the dtype they are computed in: the one asked
    /// for, or the one that most of the checkpoint is stored in, or, for random weights, the one
    /// that the configuration states (f32 if it states none). They are kept by what `keep` makes of
    /// that.
    pub(crate) fn open(
        source: &ModelSource,
        stated_dtype: Option<&str>,
        options: &LoadOptions,
        progress: &Progress,
        keep: impl FnOnce(DType) -> Result<K, LoadError>,
    ) -> Result<Self, LoadError> {
        let checkpoint = match options.load_format {
            LoadFormat::Auto => Some(Checkpoint::open(source)?),
            LoadFormat::Dummy => None,
        };
        let dtype = match (options.dtype, &checkpoint) {
            (Some(dtype), _) => dtype.into(),
            (None, Some(checkpoint)) => checkpoint.most_common_dtype(),
            (None, None) => match stated_dtype {
                Some("bfloat16") => DType::BF16,
                Some("float16") => DType::F16,
                _ => DType::F32,
            },
        };
        let total_bytes = checkpoint.as_ref().map_or(0, Checkpoint::num_bytes);
        Ok(Self {
            keep: keep(dtype)?,
            checkpoint,
            dtype,
            progress: progress.clone(),
            taken: BTreeSet::new(),
            taken_bytes: 0,
            total_bytes,
            num_parameters: 0,
            digest: Sha256::new(),
        })
    }

    /// What this checkpoint calls the tensors of a model.
    pub(crate) fn names(&self, layout: Layout, num_layers: usize) -> Names {
        Names::new(layout, num_layers, |name| self.has(name))
    }

    /// Whether the checkpoint has a tensor of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.checkpoint.as_ref().is_some_and(|all| all.tensors.contains_key(name))
    }

    /// What tables, matrices that are not quantised, and the cache, are computed in.
    pub(crate) fn dtype(&self) -> DType {
        self.dtype
    }

    /// The matrix that these parts are, stacked: `[sum of rows, columns]`, to be multiplied with.
    pub(crate) fn matrix(
        &mut self,
        parts: &[Part],
        columns: usize,
        role: Role,
    ) -> Result<K::Matrix, LoadError> {
        let rows = self.rows(parts, columns)?;
        let matrix = self.keep.matrix(&rows, role);
        self.took(rows);
        matrix
    }

    /// A matrix of `[rows, columns]` for each expert, of the parts that it has.
    pub(crate) fn experts(
        &mut self,
        parts: &[Vec<Part>],
        shape: [usize; 2],
    ) -> Result<K::Experts, LoadError> {
        let mut experts = self.keep.experts(parts.len(), shape)?;
        for parts in parts {
            let rows = self.rows(parts, shape[1])?;
            self.keep.expert(&mut experts, &rows)?;
            self.took(rows);
        }
        Ok(experts)
    }

    /// A tensor of `[rows, columns]` whose rows are looked up, in `dtype`.
    pub(crate) fn table(
        &mut self,
        name: String,
        [rows, columns]: [usize; 2],
    ) -> Result<K::Table, LoadError> {
        let rows = self.rows(&[Part::whole(name, rows)], columns)?;
        let table = self.keep.table(&rows);
        self.took(rows);
        table
    }

    /// Tensors of `[len]` each, one after the other.
    pub(crate) fn vector(&mut self, parts: &[(String, usize)]) -> Result<Vec<f32>, LoadError> {
        let mut values = Vec::new();
        for (name, len) in parts {
            values.extend(self.floats(name, &[*len])?);
        }
        Ok(values)
    }

    /// The elements of a tensor in f32.
    pub(crate) fn floats(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>, LoadError> {
        let stored = self.stored(name, shape)?;
        let len = shape.iter().product();
        // One row of all, unless the order of its elements is that of a matrix's rows.
        let (rows, columns) = if stored.reorders() { (len, 1) } else { (1, len) };
        let whole = Piece { stored, first: 0, step: 1, rows };
        let rows = Rows { columns, pieces: vec![whole] };
        let values = rows.dense();
        self.took(rows);
        Ok(values)
    }

    /// Where the rows of these parts are, one after the other.
    fn rows(&mut self, parts: &[Part], columns: usize) -> Result<Rows, LoadError> {
        let mut pieces = Vec::with_capacity(parts.len());
        for part in parts {
            let stored = match part.stack {
                None => self.stored(&part.name, &[part.rows, columns])?,
                Some(stack) => match stack.order {
                    Order::Rows => {
                        self.stored(&part.name, &[stack.matrices, stack.rows, columns])?
                    }
                    Order::Columns => {
                        let shape = [stack.matrices, columns, stack.rows];
                        self.stored(&part.name, &shape)?.by_columns(stack.rows)
                    }
                    Order::Mxfp4 => {
                        self.mxfp4(&part.name, [stack.matrices, stack.rows, columns])?
                    }
                },
            };
            let Part { first, step, rows, .. } = *part;
            pieces.push(Piece { stored, first, step, rows });
        }
        Ok(Rows { columns, pieces })
    }

    /// Where a tensor of this shape is, whose elements are floats.
    fn stored(&mut self, name: &str, shape: &[usize]) -> Result<Stored, LoadError> {
        let Some(checkpoint) = &self.checkpoint else {
            if self.taken.insert(name.to_owned()) {
                self.digest.update(format!("random {name} {shape:?}\n"));
            }
            return Ok(Stored::Random(dummy::Pool::new(name, self.dtype)));
        };
        let entry = checkpoint.get(name)?;
        check_shape(name, entry, shape)?;
        let span = entry.span.clone();
        let stored = match &entry.format {
            Format::Float(dtype) => Stored::Rows { span, dtype: *dtype },
            Format::Gguf { kind, rows, plus_one } => {
                Stored::Gguf { span, kind: *kind, rows: *rows, plus_one: *plus_one }
            }
            Format::Bytes | Format::Other(_) => {
                return Err(checkpoint.invalid(format!(
                    "tensor `{name}` is stored as {}; f32, f16 and bf16 are supported",
                    entry.format.name()
                )));
            }
        };
        note(&mut self.taken, &mut self.digest, name, entry);
        Ok(stored)
    }

    /// Where a tensor of `[matrices, rows, columns]` in MXFP4 is, which is stored as two.
    fn mxfp4(&mut self, name: &str, shape: [usize; 3]) -> Result<Stored, LoadError> {
        let Some(checkpoint) = &self.checkpoint else {
            return Err(LoadError::MissingTensor { name: name.into() });
        };
        let [matrices, rows, columns] = shape;
        let per_row = columns / mxfp4::BLOCK;
        let mut bytes = |name: String, shape: &[usize]| {
            let entry = checkpoint.get(&name)?;
            check_shape(&name, entry, shape)?;
            if entry.format != Format::Bytes {
                let found = entry.format.name();
                let rule = format!("tensor `{name}` is stored as {found}, not as bytes");
                return Err(checkpoint.invalid(rule));
            }
            note(&mut self.taken, &mut self.digest, &name, entry);
            Ok(entry.span.clone())
        };
        let blocks =
            bytes(format!("{name}_blocks"), &[matrices, rows, per_row, mxfp4::BLOCK_BYTES])?;
        let scales = bytes(format!("{name}_scales"), &[matrices, rows, per_row])?;
        Ok(Stored::Mxfp4 { blocks, scales })
    }

    /// Notes that these rows were read.
    fn took(&mut self, rows: Rows) {
        self.num_parameters += (rows.count() * rows.columns) as u64;
        self.taken_bytes += rows.num_bytes() as u64;
        rows.finish();
        if self.checkpoint.is_none() {
            return self.progress.begin("making random weights");
        }
        self.progress.set(self.keep.verb(), self.taken_bytes, self.total_bytes);
    }

    /// Ends the taking. A tensor that nobody asked for is refused by name, unless it only repeats
    /// what the configuration says.
    pub(crate) fn finish(self, names: &Names, tied: bool) -> Result<Loaded, LoadError> {
        let entries = self.checkpoint.iter().flat_map(|checkpoint| &checkpoint.tensors);
        let (ignored, surplus): (Vec<&String>, Vec<&String>) = entries
            .map(|(name, _)| name)
            .filter(|name| !self.taken.contains(*name))
            .partition(|name| names.may_stay_unread(name, tied));
        if let (Some(name), Some(checkpoint)) = (surplus.first(), &self.checkpoint) {
            let more = surplus.len() - 1;
            return Err(checkpoint.invalid(format!(
                "tensor `{name}` (and {more} more) has no place in the model that config.json \
                 describes"
            )));
        }
        for name in ignored {
            tracing::debug!(name, "tensor left unread");
        }
        Ok(Loaded {
            keeps_blocks: self.keep.serves_blocks() && self.has_blocks(),
            digest: self.digest.finalize().into(),
            num_parameters: self.num_parameters,
            num_bytes: self.taken_bytes,
            dtype: self.dtype,
        })
    }

    /// Whether the checkpoint has matrices in blocks.
    fn has_blocks(&self) -> bool {
        let in_blocks = |entry: &Entry| match &entry.format {
            Format::Gguf { kind, .. } => kind.grouping().is_some(),
            Format::Float(_) | Format::Bytes | Format::Other(_) => false,
        };
        self.checkpoint.as_ref().is_some_and(|all| all.tensors.values().any(in_blocks))
    }
}

/// The rows as a tensor of this dtype.
fn dense(rows: &Rows, dtype: DType) -> Result<Tensor, LoadError> {
    let shape = (rows.count(), rows.columns);
    let tensor = match dtype {
        DType::F32 => Tensor::from_vec(rows.dense::<f32>(), shape, &Device::Cpu),
        DType::F16 => Tensor::from_vec(rows.dense::<f16>(), shape, &Device::Cpu),
        _ => Tensor::from_vec(rows.dense::<bf16>(), shape, &Device::Cpu),
    };
    tensor.map_err(device_error)
}

/// Refuses a tensor of another shape, before memory is allocated for it.
fn check_shape(name: &str, entry: &Entry, expected: &[usize]) -> Result<(), LoadError> {
    if entry.shape != expected {
        let (expected, found) = (expected.to_vec(), entry.shape.clone());
        return Err(LoadError::Shape { name: name.into(), expected, found });
    }
    Ok(())
}

/// Notes that a tensor is taken, before it is read: what the digest looks at is then in memory
/// once, and is given back with the rest.
fn note(taken: &mut BTreeSet<String>, digest: &mut Sha256, name: &str, entry: &Entry) {
    if !taken.insert(name.to_owned()) {
        return;
    }
    let bytes = entry.span.bytes();
    digest.update(format!("{name} {} {:?}\n", entry.format.name(), entry.shape));
    digest.update(&bytes[..bytes.len().min(DIGEST_SAMPLE)]);
    digest.update(&bytes[bytes.len().saturating_sub(DIGEST_SAMPLE)..]);
}

#[cfg(test)]
mod tests {
    use super::super::WeightDtype;
    use super::*;
    use half::bf16;

    /// A checkpoint of two bf16 matrices, an f32 vector and a surplus tensor.
    fn source(surplus: &str) -> (tempfile::TempDir, ModelSource) {
        use ::safetensors::tensor::{Dtype, TensorView, serialize};
        let halves: Vec<u8> =
            (0..12).flat_map(|i| bf16::from_f32(i as f32).to_le_bytes()).collect();
        let floats: Vec<u8> = (0..3).flat_map(|i| (i as f32 + 0.1).to_le_bytes()).collect();
        let view =
            |dtype, shape: &[usize], bytes| TensorView::new(dtype, shape.to_vec(), bytes).unwrap();
        let tensors = [
            ("q", view(Dtype::BF16, &[2, 3], &halves[..12])),
            ("k", view(Dtype::BF16, &[2, 3], &halves[12..])),
            ("n", view(Dtype::F32, &[3], &floats)),
            (surplus, view(Dtype::F32, &[3], &floats)),
        ];
        let directory = tempfile::tempdir().unwrap();
        let bytes = serialize(tensors, None).unwrap();
        std::fs::write(directory.path().join("model.safetensors"), bytes).unwrap();
        let source = ModelSource::Directory(directory.path().to_owned());
        (directory, source)
    }

    fn open(source: &ModelSource, dtype: Option<WeightDtype>) -> Weights {
        let options = LoadOptions { dtype, ..LoadOptions::default() };
        let keep = |dtype| Ok(Host { dtype, unpacks: false, quantize: None });
        Weights::open(source, None, &options, &Progress::default(), keep).unwrap()
    }

    /// A matrix of these whole tensors, as it is before it is packed.
    fn matrix(weights: &mut Weights, parts: &[(&str, usize)]) -> Result<Tensor, LoadError> {
        let whole = |&(name, rows): &(&str, usize)| Part::whole(name.to_owned(), rows);
        let rows = weights.rows(&parts.iter().map(whole).collect::<Vec<_>>(), 3)?;
        let dense = dense(&rows, weights.dtype);
        weights.took(rows);
        dense
    }

    fn finish(weights: Weights, tied: bool) -> Result<Loaded, LoadError> {
        let names = weights.names(Layout::default(), 1);
        weights.finish(&names, tied)
    }

    fn take_all(weights: &mut Weights) -> (Tensor, Vec<f32>) {
        let matrix = matrix(weights, &[("k", 2), ("q", 2)]).unwrap();
        (matrix, weights.vector(&[("n".to_owned(), 3)]).unwrap())
    }

    #[test]
    fn parts_are_stacked_and_the_dtype_is_kept_or_converted() {
        let (_directory, source) = source("rotary_emb.inv_freq");
        let wanted = [None, Some(WeightDtype::F32), Some(WeightDtype::F16)];
        for (dtype, got) in wanted.into_iter().zip([DType::BF16, DType::F32, DType::F16]) {
            let mut weights = open(&source, dtype);
            let (matrix, vector) = take_all(&mut weights);
            assert_eq!(matrix.dtype(), got);
            let rows = matrix.to_dtype(DType::F32).unwrap().to_vec2::<f32>().unwrap();
            let want: Vec<Vec<f32>> =
                [[6., 7., 8.], [9., 10., 11.], [0., 1., 2.], [3., 4., 5.]].map(Vec::from).to_vec();
            assert_eq!(rows, want);
            assert_eq!(vector, [0.1, 1.1, 2.1]);
            assert_eq!(weights.progress.to_string(), "loading weights: 75 %");
            assert_eq!(finish(weights, false).unwrap().num_parameters, 15);
        }
    }

    #[test]
    fn missing_misshapen_and_surplus_tensors_are_refused_by_name() {
        let (_directory, source) = source("lm_head.weight");
        let mut weights = open(&source, None);
        let error = matrix(&mut weights, &[("q", 2), ("v", 2)]).unwrap_err();
        assert_eq!(error.to_string(), "tensor `v` is missing from the checkpoint");
        let error = matrix(&mut weights, &[("q", 3)]).unwrap_err();
        let want = "tensor `q`: expected shape [3, 3], checkpoint has [2, 3]";
        assert_eq!(error.to_string(), want);
        take_all(&mut weights);
        let error = finish(weights, false).unwrap_err().to_string();
        assert!(error.contains("tensor `lm_head.weight` (and 0 more) has no place"), "{error}");

        let mut weights = open(&source, None);
        take_all(&mut weights);
        finish(weights, true).expect("a tied model may carry a copy of the table");
    }

    #[test]
    fn the_digest_sees_values_and_not_the_computed_dtype() {
        let digest = |source: &ModelSource, dtype| {
            let mut weights = open(source, dtype);
            take_all(&mut weights);
            finish(weights, true).unwrap().digest
        };
        let (directory, source) = source("lm_head.weight");
        let before = digest(&source, None);
        assert_eq!(before, digest(&source, Some(WeightDtype::F32)));
        let path = directory.path().join("model.safetensors");
        let mut bytes = std::fs::read(&path).unwrap();
        let data = bytes.len() - 48;
        bytes[data..].iter_mut().for_each(|byte| *byte ^= 1);
        std::fs::write(&path, bytes).unwrap();
        assert_ne!(before, digest(&source, None));
    }
}
