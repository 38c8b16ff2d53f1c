//! Real models: a checkpoint becomes a [`CandleModel`], one decoder over a paged cache.
//!
//! `families` reads config.json into a [`spec::ModelSpec`]; `weights` hands out the checkpoint's
//! tensors; `decoder` is the two together, ready to compute; `cache` is the paged memory, sized
//! by what is free; `model` puts them behind [`crate::Model`].
//!
//! `candle` gives tensors; every computation is an op of `millstream_kernels`. On a GPU, `cuda` has
//! the same decoder with everything on the device.

mod ahead;
mod asked;
mod cache;
mod clock;
#[cfg(feature = "cuda")]
pub mod cuda;
mod decoder;
mod description;
mod families;
mod layers;
mod memory;
mod model;
mod moe;
mod samplers;
pub mod spec;
mod startup;
mod timing;
mod vocabulary;
pub(crate) mod weights;
mod workspace;

pub use clock::Part;
pub use millstream_kernels::linear::Quantization;
pub use model::CandleModel;

use crate::{LoadError, ModelSource, Progress};
use candle_core::DType;
use std::fmt;
use std::str::FromStr;

/// Loads a model: the configuration, the weights, a cache of what memory is left.
///
/// `progress` says how far it is. Everything that the files could be wrong in is an error here,
/// and nothing of it later.
pub fn load(
    source: &ModelSource,
    options: &LoadOptions,
    progress: &Progress,
) -> Result<CandleModel, LoadError> {
    CandleModel::load(source, options, progress)
}

/// Fills `out` with what [`LoadFormat::Dummy`] gives tensor `name` of a bf16 model, for those who
/// compare this engine with another on the same weights.
pub fn dummy_tensor(name: &str, out: &mut [half::bf16]) {
    weights::dummy::Pool::new(name, DType::BF16).read(0, out);
}

/// What the user decides about a model; the default decides nothing.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Where the weights come from.
    pub load_format: LoadFormat,
    /// Precision of the weights and of the cache, to which a file's blocks are unpacked too; `None`
    /// keeps that of the checkpoint, and its blocks.
    pub dtype: Option<WeightDtype>,
    /// What the weights are quantised to while they are loaded, the head to 8 bits either way;
    /// tables of embeddings, the choice of experts and the cache stay in `dtype`.
    pub quantize: Option<Quantization>,
    /// Bytes of KV cache; `None` takes half of the memory that is free once the weights are in, on a
    /// GPU what is free once the largest step has run.
    pub kv_cache_memory: Option<u64>,
    /// The share of a GPU's memory that is used at most, weights and all; above 0, up to 1.
    pub device_memory_fraction: f64,
    /// Tokens per block of the cache, a multiple of 16.
    pub block_size: u32,
    /// Sequences that may run at once, at least 1.
    pub max_slots: u32,
    /// Tokens that a step may carry at most, at least 1.
    pub max_batch_tokens: u32,
    /// Longest sequence in tokens; `None` takes what the model was made for.
    pub max_model_len: Option<u32>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            load_format: LoadFormat::Auto,
            dtype: None,
            quantize: None,
            kv_cache_memory: None,
            device_memory_fraction: 1.0,
            block_size: 16,
            max_slots: 256,
            max_batch_tokens: 8192,
            max_model_len: None,
        }
    }
}

/// Where the weights come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadFormat {
    /// The model's safetensors.
    Auto,
    /// Random weights of the shapes that config.json describes.
    Dummy,
}

/// Precision of weights and cache. Activations are f32 on the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightDtype {
    /// 32 bits.
    F32,
    /// 16 bits, with the range of f32.
    Bf16,
    /// 16 bits, with a range of 65,504.
    F16,
}

impl From<WeightDtype> for DType {
    fn from(dtype: WeightDtype) -> Self {
        match dtype {
            WeightDtype::F32 => DType::F32,
            WeightDtype::Bf16 => DType::BF16,
            WeightDtype::F16 => DType::F16,
        }
    }
}

impl FromStr for LoadFormat {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "auto" | "safetensors" => Ok(Self::Auto),
            "dummy" => Ok(Self::Dummy),
            _ => Err(format!("`{name}` is not a load format (auto, safetensors, dummy)")),
        }
    }
}

impl FromStr for WeightDtype {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "f32" | "float32" => Ok(Self::F32),
            "bf16" | "bfloat16" => Ok(Self::Bf16),
            "f16" | "float16" => Ok(Self::F16),
            _ => Err(format!("`{name}` is not a dtype (float32, bfloat16, float16)")),
        }
    }
}

/// An error of the tensor library or of a kernel while loading.
fn device_error(error: impl fmt::Display) -> LoadError {
    LoadError::Device(error.to_string())
}
