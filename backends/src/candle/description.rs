//! What is known of a model before its weights are read, and what is told of it afterwards: the same
//! wherever it computes.

use super::cache::{self, CachePlan};
use super::decoder::Decoder;
use super::spec::{self, ModelSpec};
use super::vocabulary::Vocabulary;
use super::weights::keep::Keep;
use super::weights::{Loaded, Weights};
use super::{LoadOptions, Quantization, families};
use crate::grammar::Grammars;
use crate::{LoadError, ModelSource, Progress};
use candle_core::DType;
use millstream_proto::{CacheGroup, WorkerInfo};
use sha2::{Digest, Sha256};

/// What the files beside the weights say.
pub(super) struct Description {
    pub(super) spec: ModelSpec,
    /// The longest sequence that may be served.
    pub(super) max_model_len: usize,
    /// Ids below this are tokens.
    pub(super) vocab_size: usize,
    pub(super) eos_token_ids: Vec<u32>,
    /// `None` for a checkpoint without a tokenizer.
    pub(super) grammars: Option<Grammars>,
    /// The dtype that the configuration states, if it does.
    pub(super) stated_dtype: Option<String>,
}

impl Description {
    /// Reads it; a tokenizer is read for grammars while the weights are loaded.
    pub(super) fn read(source: &ModelSource, options: &LoadOptions) -> Result<Self, LoadError> {
        let config = read_config(source)?;
        let mut spec = families::parse(&config)?;
        let max_model_len = cache::max_model_len(&spec, options)?;
        spec.settle(max_model_len);
        let Vocabulary { size: vocab_size, eos_token_ids } = Vocabulary::read(source, &spec)?;
        let grammars = read_grammars(source, vocab_size)?;
        let stated_dtype = families::stated_dtype(&config)?;
        Ok(Self { spec, max_model_len, vocab_size, eos_token_ids, grammars, stated_dtype })
    }

    /// Reads the weights, keeps them as `keep` says for the dtype that they are computed in, and
    /// composes the model of them.
    pub(super) fn load<K: Keep>(
        &mut self,
        source: &ModelSource,
        options: &LoadOptions,
        progress: &Progress,
        keep: impl FnOnce(DType) -> Result<K, LoadError>,
    ) -> Result<(Decoder<K>, Loaded), LoadError> {
        let stated_dtype = self.stated_dtype.as_deref();
        let mut weights = Weights::open(source, stated_dtype, options, progress, keep)?;
        let spec = &mut self.spec;
        let names = weights.names(spec.layout, spec.layers.len());
        spec.head.tied |= spec.layout.tied_unless_stored && !weights.has(&names.head());
        let decoder = Decoder::load(spec, &mut weights, self.max_model_len)?;
        let loaded = weights.finish(&names, spec.head.tied)?;
        Ok((decoder, loaded))
    }

    /// What a worker tells of the model, with these weights and a cache of `plan`; how many tokens a
    /// step takes in good time is still to be measured.
    pub(super) fn info(
        &self,
        plan: &CachePlan,
        loaded: &Loaded,
        options: &LoadOptions,
    ) -> WorkerInfo {
        let (spec, vocab_size) = (&self.spec, self.vocab_size);
        let precision = precision(loaded, options.quantize);
        WorkerInfo {
            fingerprint: fingerprint(spec, &precision, vocab_size, loaded),
            build: env!("CARGO_PKG_VERSION").into(),
            max_model_len: plan.max_model_len as u32,
            vocab_size: vocab_size as u32,
            block_size: plan.block_size as u32,
            max_slots: options.max_slots.max(1),
            max_batch_tokens: options.max_batch_tokens.max(1),
            timed_prefill_tokens: 0,
            cache_groups: cache_groups(plan),
            eos_token_ids: self.eos_token_ids.clone(),
            has_unblocked_state: false,
            rank: 0,
            world: 1,
            dtype: precision,
            num_parameters: loaded.num_parameters,
            no_grammars: self.grammars.as_ref().map_or_else(no_tokenizer, Grammars::problem),
        }
    }
}

fn read_config(source: &ModelSource) -> Result<Vec<u8>, LoadError> {
    let file = "config.json";
    match source.read(file) {
        Ok(Some(json)) => Ok(json.into_owned()),
        Ok(None) => Err(LoadError::Missing { file: file.into(), model: source.name() }),
        Err(error) => Err(LoadError::Read { file: file.into(), source: error }),
    }
}

fn no_tokenizer() -> String {
    "the model has no tokenizer.json".to_owned()
}

/// Begins to read the vocabulary for grammars, which ends while the weights are read.
fn read_grammars(source: &ModelSource, vocab_size: usize) -> Result<Option<Grammars>, LoadError> {
    let file = "tokenizer.json";
    let read = |source| LoadError::Read { file: file.into(), source };
    let Some(tokenizer) = source.read(file).map_err(read)? else { return Ok(None) };
    Grammars::new(tokenizer, vocab_size).map(Some).map_err(read)
}

/// Digest of what decides a text. How a checkpoint is cut into files does not.
fn fingerprint(spec: &ModelSpec, precision: &str, vocab_size: usize, loaded: &Loaded) -> String {
    let mut digest = Sha256::new();
    digest.update(format!("millstream 1\n{spec:?}\n{precision}\n{vocab_size}\n"));
    digest.update(loaded.digest);
    digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn cache_groups(plan: &CachePlan) -> Vec<CacheGroup> {
    let group = |(group, &num_blocks): (&spec::CacheGroup, &usize)| CacheGroup {
        num_layers: group.layers.len() as u32,
        bytes_per_token: plan.bytes_per_token(group),
        window: group.window.unwrap_or(0),
        num_blocks: num_blocks as u32,
    };
    plan.groups.iter().zip(&plan.num_blocks).map(group).collect()
}

/// What the weights are computed in, in words.
fn precision(loaded: &Loaded, quantize: Option<Quantization>) -> String {
    let dtype = match loaded.dtype {
        DType::F32 => "f32",
        DType::F16 => "f16",
        _ => "bf16",
    };
    match quantize {
        None if loaded.keeps_blocks => format!("{dtype} beside blocks as stored"),
        None => dtype.to_owned(),
        Some(Quantization::Int8) => format!("{dtype} weights in int8"),
        Some(Quantization::Int4) => format!("{dtype} weights in int4"),
    }
}
