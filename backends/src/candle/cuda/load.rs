//! From files to a model on a GPU: weights, activations for the largest step, and a cache of what
//! is left.

use super::keep::Device;
use super::layers::{Engine, LayerCache};
use super::model::{CudaModel, Draws, MAX_UPDATES, Uploads};
use super::recordings::Recordings;
use super::returns::Return;
use super::sampler::MAX_LIST_WORDS;
use super::slots::Told;
use super::step::{Layout, Shape, Tables};
use super::workspace::{Limits, Workspace, max_items};
use super::{cuda_error, kernel_error, memory};
use crate::candle::cache::CachePlan;
use crate::candle::decoder::Decoder;
use crate::candle::description::Description;
use crate::candle::spec::{CacheGroup, Mixer, ModelSpec};
use crate::candle::startup::{Stage, Startup};
use crate::candle::{LoadOptions, timing};
use crate::pipeline::Pipeline;
use crate::{Batch, LoadError, ModelSource, Progress};
use candle_core::DType;
use millstream_kernels::KernelError;
use millstream_kernels::cuda::{Gpu, Outgoing};
use millstream_kernels::linear::cuda::Linear;
use millstream_kernels::paged_attention::cuda::{Plan, TILE_QUERIES, takes};
use millstream_kernels::sampling::{FINDINGS_LEN, Lists, OUTCOME_WORDS};
use std::collections::VecDeque;
use tracing::info;

/// See [`super::load`].
pub(super) fn load(
    ordinal: usize,
    source: &ModelSource,
    options: &LoadOptions,
    progress: &Progress,
) -> Result<CudaModel, LoadError> {
    let mut startup = Startup::begin();
    if options.quantize.is_some() {
        let reason = "--quantize is for the processor, and this worker computes on a GPU: leave it \
                      out, or take --device cpu";
        return Err(LoadError::Device(reason.into()));
    }
    progress.begin("opening the GPU");
    let gpu = Gpu::open(ordinal).map_err(cuda_error)?;
    let properties = gpu.properties();
    info!(gpu = properties.name, memory_mib = properties.memory >> 20, "GPU opened");
    // Before anything that takes long: a library may be missing.
    let products = Linear::new(&gpu).map_err(cuda_error)?;
    progress.begin("reading the configuration");
    let mut description = Description::read(source, options)?;
    startup.end(Stage::Configuration);

    let keep = |dtype| Device::new(&gpu, dtype);
    let (decoder, loaded) = description.load(source, options, progress, keep)?;
    let dtype = loaded.dtype;
    gpu.wait().map_err(cuda_error)?;
    startup.end(Stage::Weights);

    progress.begin("preparing the cache");
    let mut model = Builder { gpu: &gpu, description: &description, dtype, options }
        .build(decoder, products)?;
    warm_up(&mut model).map_err(kernel_error)?;
    let budget = memory::budget(&gpu, options)?;
    let plan = CachePlan::new(&description.spec, dtype, options, budget)?;
    model.cache = allocate(&gpu, &plan)?;
    model.recordings.clear();
    model.info = description.info(&plan, &loaded, options);
    model.grammars = description.grammars;
    model.prepare(model.recordings.largest()).map_err(kernel_error)?;
    startup.end(Stage::Cache);

    progress.begin("timing a step");
    let info = model.info.clone();
    let timed = timing::prefill_tokens(&info, |batch: &Batch<'_>| {
        model.begin(batch);
        model.sample(batch);
        model.finish();
        Ok::<_, LoadError>(())
    })?;
    model.info.timed_prefill_tokens = timed;
    model.reset();
    startup.end(Stage::Timing);
    startup.tell(&loaded);
    Ok(model)
}

/// Runs the largest steps on nothing but padding: so whatever the kernels and the libraries take of
/// the device's memory they have taken before the cache is sized. What was recorded is forgotten,
/// because the cache moves.
fn warm_up(model: &mut CudaModel) -> Result<(), KernelError> {
    model.run_padding(largest_step(model.limits))?;
    model.prepare(model.recordings.largest())?;
    model.on.gpu.wait()?;
    Ok(())
}

/// A step of as much of everything as a step may have.
fn largest_step(limits: Limits) -> Shape {
    let Limits { tokens, rows } = limits;
    let decoding = rows.min(tokens);
    let tiles = tokens / TILE_QUERIES + rows;
    Shape { tokens, decoding, chunks: rows, tiles, sampled: decoding }
}

/// The memory of a cache, which holds anything.
fn allocate(gpu: &Gpu, plan: &CachePlan) -> Result<Vec<LayerCache>, LoadError> {
    let blocks = |index: usize| plan.num_blocks[index];
    caches(gpu, &plan.groups, plan.dtype, plan.block_size, blocks)
}

/// As many blocks for each layer as `blocks` says of its group.
fn caches(
    gpu: &Gpu,
    groups: &[CacheGroup],
    dtype: DType,
    block_size: usize,
    blocks: impl Fn(usize) -> usize,
) -> Result<Vec<LayerCache>, LoadError> {
    let mut layers = Vec::new();
    for (index, group) in groups.iter().enumerate() {
        let len = blocks(index) * group.kv_heads * block_size * group.head_dim;
        for &layer in &group.layers {
            let take = || gpu.uninitialized(dtype, len).map_err(cuda_error);
            layers.push((layer, LayerCache { group: index, k: take()?, v: take()?, block_size }));
        }
    }
    layers.sort_by_key(|(layer, _)| *layer);
    Ok(layers.into_iter().map(|(_, cache)| cache).collect())
}

/// What a model is built of.
struct Builder<'a> {
    gpu: &'a Gpu,
    description: &'a Description,
    dtype: DType,
    options: &'a LoadOptions,
}

impl Builder<'_> {
    /// The model with a cache of one block.
    fn build(&self, decoder: Decoder<Device>, products: Linear) -> Result<CudaModel, LoadError> {
        let Builder { gpu, description, dtype, options } = *self;
        let (spec, vocab_size) = (&description.spec, description.vocab_size);
        let limits = Limits {
            tokens: options.max_batch_tokens.max(1) as usize,
            rows: options.max_slots.max(1) as usize,
        };
        let groups = spec.cache_groups();
        let block_size = options.block_size as usize;
        if block_size == 0 || !block_size.is_multiple_of(16) {
            return Err(LoadError::BlockSize { block_size, multiple_of: 16 });
        }
        let max_blocks = description.max_model_len.div_ceil(block_size);
        let on = Engine {
            gpu: gpu.clone(),
            products,
            space: Workspace::new(gpu, spec, dtype, limits)?,
            hidden: spec.hidden,
            vocab: spec.vocab,
        };
        let uploads = self.uploads(limits, groups.len())?;
        let outcomes = limits.rows + limits.tokens;
        let back = || Return::new(gpu, outcomes).map_err(cuda_error);
        let take = |len| gpu.zeros(DType::U32, len).map_err(cuda_error);
        Ok(CudaModel {
            info: Default::default(),
            decoder,
            on,
            cache: caches(gpu, &groups, dtype, block_size, |_| 1)?,
            block_size,
            limits,
            tables: Tables {
                all: take(groups.len() * limits.rows * max_blocks)?,
                max_slots: limits.rows,
                max_blocks,
                plans: self.plans(limits, &groups)?,
                groups: groups.clone(),
            },
            told: Told::new(limits.rows, max_blocks, groups.len()),
            uploads,
            draws: Draws {
                vocab_size,
                counts: take(limits.rows * vocab_size)?,
                last_token: take(limits.rows)?,
                findings: gpu
                    .uninitialized(DType::I64, limits.rows * FINDINGS_LEN)
                    .map_err(cuda_error)?,
                outcomes: take(outcomes * OUTCOME_WORDS)?,
                lists: Lists::default(),
            },
            recordings: Recordings::new(limits.rows.min(limits.tokens)),
            grammars: None,
            returns: [back()?, back()?],
            turn: 0,
            flights: VecDeque::new(),
            begun: None,
        })
    }

    fn uploads(&self, limits: Limits, groups: usize) -> Result<Uploads, LoadError> {
        let Builder { gpu, description, .. } = *self;
        let sections = Layout::new(largest_step(limits), groups).len();
        let extras = 2 * MAX_UPDATES + limits.rows * MAX_LIST_WORDS + 3 * limits.tokens;
        // A sequence whose tokens are counted is sent by itself.
        let text = description.max_model_len + 16;
        let words = (sections + extras + 64).max(text);
        let mask_words = limits.rows * description.vocab_size.div_ceil(32);
        let take = |len| gpu.uninitialized(DType::U32, len).map_err(cuda_error);
        let out = |words: usize| Outgoing::new(gpu, words * size_of::<u32>()).map_err(cuda_error);
        Ok(Uploads {
            packed: take(words)?,
            packing: [out(words)?, out(words)?],
            turn: 0,
            masks: take(mask_words)?,
            masking: [out(mask_words)?, out(mask_words)?],
            masking_turn: 0,
        })
    }

    /// Memory of each group's plan, if any of the layers asks for one.
    fn plans(
        &self,
        limits: Limits,
        groups: &[CacheGroup],
    ) -> Result<Option<Vec<millstream_kernels::cuda::Array>>, LoadError> {
        if !uses_plans(&self.description.spec, self.dtype) {
            return Ok(None);
        }
        let len = Plan::len(limits.rows, max_items(limits.rows));
        let plan = |_| self.gpu.zeros(DType::U32, len).map_err(cuda_error);
        groups.iter().map(plan).collect::<Result<_, _>>().map(Some)
    }
}

fn uses_plans(spec: &ModelSpec, dtype: DType) -> bool {
    spec.layers.iter().any(|layer| {
        let Mixer::Attention(attention) = &layer.mixer;
        takes(dtype, attention.head_dim)
    })
}
