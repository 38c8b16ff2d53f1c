//! The weights of a model, handed out tensor by tensor to whoever builds it.
//!
//! Whoever builds the model asks for every tensor by name with the shape that follows from the
//! spec, and ends with `finish`. So a checkpoint is accepted exactly when it has all that the
//! model needs, in the right shapes, and nothing that the model would silently leave out.
//!
//! Matrices come in the dtype that the model computes in, several of them stacked into one where
//! one multiplication will read them; vectors (norms, biases) come in f32.
//!
//! This module knows files and names. It does not know what is computed from the weights.

mod dummy;
pub(crate) mod element;
mod experts;
pub(crate) mod layer;
mod mxfp4;
pub(crate) mod names;
mod safetensors;

use super::spec::Layout;
use super::{LoadFormat, LoadOptions, device_error};
use crate::{LoadError, ModelSource, Progress};
use ::safetensors::tensor::Dtype;
use candle_core::{DType, Device, Tensor};
use element::Element;
use names::Names;
use safetensors::{Checkpoint, Entry};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;

/// Of each tensor, this many bytes at either end enter the digest.
const DIGEST_SAMPLE: usize = 4096;

/// The weights that are still to be taken, and a record of those that were.
#[derive(Debug)]
pub(crate) struct Weights {
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
}

/// One of the tensors that are stacked into one: its name and its rows.
pub(crate) type Part = (String, usize);

impl Weights {
    /// Opens the weights of a model and settles the dtype they are computed in: the one asked
    /// for, or the one that most of the checkpoint is stored in, or, for random weights, the one
    /// that the configuration states (f32 if it states none).
    pub(crate) fn open(
        source: &ModelSource,
        stated_dtype: Option<&str>,
        options: &LoadOptions,
        progress: &Progress,
    ) -> Result<Self, LoadError> {
        let checkpoint = match options.load_format {
            LoadFormat::Auto => Some(Checkpoint::open(source)?),
            LoadFormat::Dummy => None,
        };
        let dtype = match (options.dtype, &checkpoint) {
            (Some(dtype), _) => dtype.into(),
            (None, Some(checkpoint)) => most_common_dtype(checkpoint),
            (None, None) => match stated_dtype {
                Some("bfloat16") => DType::BF16,
                Some("float16") => DType::F16,
                _ => DType::F32,
            },
        };
        let entries = checkpoint.iter().flat_map(Checkpoint::iter);
        let total_bytes = entries.map(|(_, entry)| entry.bytes().len() as u64).sum();
        Ok(Self {
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
        self.checkpoint.as_ref().is_some_and(|all| all.get(name).is_some())
    }

    /// What matrices, and the cache, are computed in.
    pub(crate) fn dtype(&self) -> DType {
        self.dtype
    }

    /// Tensors of `[rows, columns]` each, stacked: `[sum of rows, columns]` in `dtype`.
    pub(crate) fn matrix(&mut self, parts: &[Part], columns: usize) -> Result<Tensor, LoadError> {
        match self.dtype {
            DType::F32 => self.take::<f32>(parts, Some(columns)),
            DType::F16 => self.take::<half::f16>(parts, Some(columns)),
            _ => self.take::<half::bf16>(parts, Some(columns)),
        }
    }

    /// Tensors of `[rows]` each, one after the other: `[sum of rows]` in f32.
    pub(crate) fn vector(&mut self, parts: &[Part]) -> Result<Tensor, LoadError> {
        self.take::<f32>(parts, None)
    }

    /// A tensor of `[E, rows, columns]`, as `E` matrices in `dtype`.
    pub(crate) fn matrices(
        &mut self,
        name: &str,
        shape: [usize; 3],
    ) -> Result<Vec<Tensor>, LoadError> {
        self.check(name, &shape)?;
        let [experts, rows, columns] = shape;
        let one = |weights: &mut Self, expert: usize| match weights.dtype {
            DType::F32 => weights.slice::<f32>(name, expert, [rows, columns]),
            DType::F16 => weights.slice::<half::f16>(name, expert, [rows, columns]),
            _ => weights.slice::<half::bf16>(name, expert, [rows, columns]),
        };
        (0..experts).map(|expert| one(self, expert)).collect()
    }

    /// A tensor of `[E, len]`, in f32.
    pub(crate) fn vectors(&mut self, name: &str, shape: [usize; 2]) -> Result<Tensor, LoadError> {
        self.check(name, &shape)?;
        self.slice::<f32>(name, 0, shape)
    }

    /// The matrix of this shape that lies `index` matrices into a tensor.
    fn slice<T: Element>(
        &mut self,
        name: &str,
        index: usize,
        [rows, columns]: [usize; 2],
    ) -> Result<Tensor, LoadError> {
        let mut out = T::zeros(rows * columns);
        self.fill(name, index * rows * columns, &mut out)?;
        Tensor::from_vec(out, (rows, columns), &Device::Cpu).map_err(device_error)
    }

    /// A tensor of `[E, rows, columns]` in MXFP4, in two parts, as `E` matrices in `dtype`.
    pub(crate) fn mxfp4(
        &mut self,
        name: &str,
        [experts, rows, columns]: [usize; 3],
    ) -> Result<Vec<Tensor>, LoadError> {
        let per_row = columns / mxfp4::BLOCK;
        let (blocks, scales) = (format!("{name}_blocks"), format!("{name}_scales"));
        self.check(&blocks, &[experts, rows, per_row, mxfp4::BLOCK_BYTES])?;
        self.check(&scales, &[experts, rows, per_row])?;
        let unpacked = (0..experts).map(|expert| match self.dtype {
            DType::F32 => self.unpacked::<f32>([&blocks, &scales], expert, [rows, columns]),
            DType::F16 => self.unpacked::<half::f16>([&blocks, &scales], expert, [rows, columns]),
            _ => self.unpacked::<half::bf16>([&blocks, &scales], expert, [rows, columns]),
        });
        let unpacked = unpacked.collect::<Result<_, _>>()?;
        for (name, bytes) in [(&blocks, mxfp4::BLOCK_BYTES), (&scales, 1)] {
            self.took(name, experts * rows * per_row * bytes);
        }
        self.num_parameters += (experts * rows * columns) as u64;
        Ok(unpacked)
    }

    fn unpacked<T: Element>(
        &self,
        names: [&str; 2],
        expert: usize,
        [rows, columns]: [usize; 2],
    ) -> Result<Tensor, LoadError> {
        let bytes = |name: &str, per_block: usize| {
            let missing = || LoadError::MissingTensor { name: name.into() };
            let entry =
                self.checkpoint.as_ref().and_then(|all| all.get(name)).ok_or_else(missing)?;
            if entry.dtype != Dtype::U8 {
                let rule = format!("tensor `{name}` is stored as {:?}, not as bytes", entry.dtype);
                return Err(in_checkpoint(rule));
            }
            let len = rows * columns / mxfp4::BLOCK * per_block;
            Ok(&entry.bytes()[expert * len..][..len])
        };
        let mut out = T::zeros(rows * columns);
        mxfp4::unpack(bytes(names[0], mxfp4::BLOCK_BYTES)?, bytes(names[1], 1)?, &mut out);
        Tensor::from_vec(out, (rows, columns), &Device::Cpu).map_err(device_error)
    }

    fn take<T: Element>(
        &mut self,
        parts: &[Part],
        columns: Option<usize>,
    ) -> Result<Tensor, LoadError> {
        let row = columns.unwrap_or(1);
        for (name, rows) in parts {
            let shape: Vec<usize> = [*rows].into_iter().chain(columns).collect();
            self.check(name, &shape)?;
        }
        let rows: usize = parts.iter().map(|(_, rows)| rows).sum();
        let mut out = T::zeros(rows * row);
        let mut rest = out.as_mut_slice();
        for (name, rows) in parts {
            let (part, after) = rest.split_at_mut(rows * row);
            self.fill(name, 0, part)?;
            rest = after;
        }
        let tensor = match columns {
            Some(columns) => Tensor::from_vec(out, (rows, columns), &Device::Cpu),
            None => Tensor::from_vec(out, rows, &Device::Cpu),
        };
        tensor.map_err(device_error)
    }

    /// Refuses a tensor that is missing or of another shape, before memory is allocated for it.
    fn check(&self, name: &str, expected: &[usize]) -> Result<(), LoadError> {
        let Some(checkpoint) = &self.checkpoint else { return Ok(()) };
        let Some(entry) = checkpoint.get(name) else {
            return Err(LoadError::MissingTensor { name: name.into() });
        };
        if entry.shape != expected {
            let (expected, found) = (expected.to_vec(), entry.shape.clone());
            return Err(LoadError::Shape { name: name.into(), expected, found });
        }
        Ok(())
    }

    /// Fills `out` with the elements of a tensor from `first` on.
    fn fill<T: Element>(
        &mut self,
        name: &str,
        first: usize,
        out: &mut [T],
    ) -> Result<(), LoadError> {
        self.num_parameters += out.len() as u64;
        let Some(checkpoint) = &self.checkpoint else {
            self.progress.begin("making random weights");
            self.digest.update(format!("random {name} {first} {}\n", out.len()));
            dummy::fill(&if first == 0 { name.to_owned() } else { format!("{name}.{first}") }, out);
            return Ok(());
        };
        let Some(entry) = checkpoint.get(name) else {
            return Err(LoadError::MissingTensor { name: name.into() });
        };
        let Some(stored) = element::computed_dtype(entry.dtype) else {
            let stored: Dtype = entry.dtype;
            return Err(in_checkpoint(format!(
                "tensor `{name}` is stored as {stored:?}; f32, f16 and bf16 are supported"
            )));
        };
        let size = stored.size_in_bytes();
        let range = first * size..(first + out.len()) * size;
        let num_bytes = range.len();
        element::convert(&entry.bytes()[range], stored, out);
        self.took(name, num_bytes);
        Ok(())
    }

    /// Notes that so many bytes of a tensor of the checkpoint were read.
    fn took(&mut self, name: &str, num_bytes: usize) {
        let entry = self.checkpoint.as_ref().and_then(|checkpoint| checkpoint.get(name));
        let is_new = self.taken.insert(name.to_owned());
        if let Some(entry) = entry.filter(|_| is_new) {
            update_digest(&mut self.digest, name, entry);
        }
        self.taken_bytes += num_bytes as u64;
        self.progress.set("loading weights", self.taken_bytes, self.total_bytes);
    }

    /// Ends the taking. A tensor that nobody asked for is refused by name, unless it only repeats
    /// what the configuration says.
    pub(crate) fn finish(self, names: &Names, tied: bool) -> Result<Loaded, LoadError> {
        let entries = self.checkpoint.iter().flat_map(Checkpoint::iter);
        let (ignored, surplus): (Vec<&String>, Vec<&String>) = entries
            .map(|(name, _)| name)
            .filter(|name| !self.taken.contains(*name))
            .partition(|name| names.may_stay_unread(name, tied));
        if let Some(name) = surplus.first() {
            let more = surplus.len() - 1;
            return Err(in_checkpoint(format!(
                "tensor `{name}` (and {more} more) has no place in the model that config.json \
                 describes"
            )));
        }
        for name in ignored {
            tracing::debug!(name, "tensor left unread");
        }
        let digest = self.digest.finalize().into();
        Ok(Loaded { digest, num_parameters: self.num_parameters })
    }
}

/// The computed dtype that holds most elements of a checkpoint.
fn most_common_dtype(checkpoint: &Checkpoint) -> DType {
    let elements = |dtype: DType| -> usize {
        let of_dtype = |entry: &&Entry| element::computed_dtype(entry.dtype) == Some(dtype);
        let entries = checkpoint.iter().map(|(_, entry)| entry);
        entries.filter(of_dtype).map(|entry| entry.shape.iter().product::<usize>()).sum()
    };
    let dtypes = [DType::F16, DType::BF16, DType::F32];
    dtypes.into_iter().max_by_key(|dtype| elements(*dtype)).unwrap_or(DType::F32)
}

fn update_digest(digest: &mut Sha256, name: &str, entry: &Entry) {
    let bytes = entry.bytes();
    digest.update(format!("{name} {:?} {:?}\n", entry.dtype, entry.shape));
    digest.update(&bytes[..bytes.len().min(DIGEST_SAMPLE)]);
    digest.update(&bytes[bytes.len().saturating_sub(DIGEST_SAMPLE)..]);
}

fn in_checkpoint(reason: String) -> LoadError {
    LoadError::Invalid { file: "*.safetensors".into(), reason }
}

#[cfg(test)]
mod tests {
    use super::super::WeightDtype;
    use super::*;
    use half::bf16;

    /// A checkpoint of two bf16 matrices, an f32 vector and a surplus tensor.
    fn source(surplus: &str) -> (tempfile::TempDir, ModelSource) {
        use ::safetensors::tensor::{TensorView, serialize};
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
        Weights::open(source, None, &options, &Progress::default()).unwrap()
    }

    fn part(name: &str, rows: usize) -> Part {
        (name.to_owned(), rows)
    }

    fn finish(weights: Weights, tied: bool) -> Result<Loaded, LoadError> {
        let names = weights.names(Layout::default(), 1);
        weights.finish(&names, tied)
    }

    fn take_all(weights: &mut Weights) -> (Tensor, Tensor) {
        let matrix = weights.matrix(&[part("k", 2), part("q", 2)], 3).unwrap();
        (matrix, weights.vector(&[part("n", 3)]).unwrap())
    }

    #[test]
    fn parts_are_stacked_and_the_dtype_is_kept_or_converted() {
        let (_directory, source) = source("rotary_emb.inv_freq");
        let wanted = [None, Some(WeightDtype::F32), Some(WeightDtype::F16)];
        for (dtype, got) in wanted.into_iter().zip([DType::BF16, DType::F32, DType::F16]) {
            let mut weights = open(&source, dtype);
            let (matrix, vector) = take_all(&mut weights);
            assert_eq!((matrix.dtype(), vector.dtype()), (got, DType::F32));
            let rows = matrix.to_dtype(DType::F32).unwrap().to_vec2::<f32>().unwrap();
            let want: Vec<Vec<f32>> =
                [[6., 7., 8.], [9., 10., 11.], [0., 1., 2.], [3., 4., 5.]].map(Vec::from).to_vec();
            assert_eq!(rows, want);
            assert_eq!(vector.to_vec1::<f32>().unwrap(), [0.1, 1.1, 2.1]);
            assert_eq!(weights.progress.to_string(), "loading weights: 75 %");
            assert_eq!(finish(weights, false).unwrap().num_parameters, 15);
        }
    }

    #[test]
    fn missing_misshapen_and_surplus_tensors_are_refused_by_name() {
        let (_directory, source) = source("lm_head.weight");
        let mut weights = open(&source, None);
        let error = weights.matrix(&[part("q", 2), part("v", 2)], 3).unwrap_err();
        assert_eq!(error.to_string(), "tensor `v` is missing from the checkpoint");
        let error = weights.matrix(&[part("q", 3)], 2).unwrap_err();
        let want = "tensor `q`: expected shape [3, 2], checkpoint has [2, 3]";
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
