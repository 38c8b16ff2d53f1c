//! A real model behind [`Model`]: the decoder, its cache, and the sampler.
//!
//! A batch becomes one pass through the decoder; the rows that sample go through the head, and
//! each is sampled by itself, so a row whose logits are not numbers fails alone. A kernel that
//! refuses its arguments is a bug, not a row's failure: it panics, and the worker is restarted.

use super::cache::{self, CachePlan, KvCache};
use super::clock::{Clock, Part};
use super::decoder::Decoder;
use super::layers::{GroupPass, Pass};
use super::spec::{self, ModelSpec};
use super::startup::{Stage, Startup};
use super::vocabulary::Vocabulary;
use super::weights::{Loaded, Weights};
use super::workspace::Workspace;
use super::{LoadOptions, Quantization, device_error, families, timing};
use crate::{
    Batch, BatchRow, LoadError, Model, ModelSource, Progress, RowFailure, SampledToken, Sampler,
};
use candle_core::{DType, Tensor};
use millstream_kernels::logits::for_each_row;
use millstream_kernels::{KernelError, threads};
use millstream_proto::{CacheGroup, WorkerInfo};
use sha2::{Digest, Sha256};
use std::cell::RefCell;
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

/// A loaded model with its cache.
pub struct CandleModel {
    info: WorkerInfo,
    decoder: Decoder,
    cache: KvCache,
    plan: CachePlan,
    space: RefCell<Workspace>,
    /// One for each thread that computes, and the threads take turns.
    samplers: Vec<Mutex<Sampler>>,
    sample_time: Duration,
    clock: Clock,
}

impl CandleModel {
    /// See [`super::load`].
    pub(super) fn load(
        source: &ModelSource,
        options: &LoadOptions,
        progress: &Progress,
    ) -> Result<Self, LoadError> {
        let mut startup = Startup::begin();
        progress.begin("reading the configuration");
        let config = read_config(source)?;
        let mut spec = families::parse(&config)?;
        let max_model_len = cache::max_model_len(&spec, options)?;
        spec.settle(max_model_len);
        let Vocabulary { size: vocab_size, eos_token_ids } = Vocabulary::read(source, &spec)?;
        startup.end(Stage::Configuration);

        let stated_dtype = families::stated_dtype(&config)?;
        let mut weights = Weights::open(source, stated_dtype.as_deref(), options, progress)?;
        let names = weights.names(spec.layout, spec.layers.len());
        spec.head.tied |= spec.layout.tied_unless_stored && !weights.has(&names.head());
        let dtype = weights.dtype();
        let decoder = Decoder::load(&spec, &mut weights, max_model_len)?;
        let keeps_blocks = weights.keeps_blocks();
        let loaded = weights.finish(&names, spec.head.tied)?;
        startup.end(Stage::Weights);

        progress.begin("preparing the cache");
        let plan = CachePlan::new(&spec, dtype, options, cache::memory_budget(options))?;
        let precision = precision(dtype, options.quantize, keeps_blocks);
        let info = WorkerInfo {
            fingerprint: fingerprint(&spec, &precision, vocab_size, &loaded),
            build: env!("CARGO_PKG_VERSION").into(),
            max_model_len: plan.max_model_len as u32,
            vocab_size: vocab_size as u32,
            block_size: plan.block_size as u32,
            max_slots: options.max_slots.max(1),
            max_batch_tokens: options.max_batch_tokens.max(1),
            timed_batch_tokens: 0,
            cache_groups: cache_groups(&plan),
            eos_token_ids,
            has_unblocked_state: false,
            rank: 0,
            world: 1,
            dtype: precision,
            num_parameters: loaded.num_parameters,
        };
        let sampler = |_| Mutex::new(Sampler::new(vocab_size));
        let mut model = Self {
            info,
            decoder,
            cache: plan.allocate()?,
            plan,
            space: RefCell::default(),
            samplers: (0..threads::count()).map(sampler).collect(),
            sample_time: Duration::ZERO,
            clock: Clock::default(),
        };
        startup.end(Stage::Cache);
        progress.begin("timing a step");
        model.info.timed_batch_tokens = timing::batch_tokens(&model).map_err(device_error)?;
        startup.end(Stage::Timing);
        startup.tell(&loaded);
        Ok(model)
    }

    /// Computes the batch, and the logits of some of its tokens: `tokens` are indices into
    /// `batch.ids`, the result is `[tokens, V]` in f32 with `V` as wide as the head, which may be
    /// wider than the vocabulary. It is overwritten by the next call.
    pub fn logits(&self, batch: &Batch<'_>, tokens: &[u32]) -> Result<Tensor, KernelError> {
        let group = |index| GroupPass {
            block_tables: batch.block_tables(index),
            slot_mapping: batch.slot_mapping(index, self.plan.block_size),
        };
        let pass = Pass {
            positions: &batch.positions,
            cu_seqlens: &batch.cu_seqlens,
            context_lens: &batch.context_lens,
            groups: (0..self.plan.groups.len()).map(group).collect(),
            clock: &self.clock,
        };
        self.clock.lap(Part::Rest);
        let space = &mut *self.space.borrow_mut();
        let x = self.decoder.forward(&batch.ids, &pass, &self.cache, space)?; // [T,hidden]
        let logits = self.decoder.logits(&x, tokens, space)?; // [tokens,V]
        self.clock.lap(Part::Head);
        Ok(logits)
    }

    /// From now on, notes where the time of each `forward` goes.
    pub fn start_clock(&mut self) {
        self.clock.start();
    }

    /// Where the time of every `forward` since [`CandleModel::start_clock`] went.
    pub fn parts(&self) -> [(Part, Duration); Part::ALL.len()] {
        self.clock.parts()
    }

    /// Draws a token for each row from its logits, on all threads: a draw depends on nothing but
    /// its row.
    fn sample(&self, rows: &[&BatchRow<'_>], logits: &Tensor) -> Result<Vec<Sampled>, KernelError> {
        let (samplers, drawn) = (&self.samplers, rows.iter().map(|_| OnceLock::new()));
        let drawn: Vec<OnceLock<Sampled>> = drawn.collect();
        for_each_row(logits, |index, logits| {
            let free = samplers.iter().find_map(|sampler| sampler.try_lock().ok());
            // As many threads as samplers come here, so one of them is free.
            let mut sampler = free.unwrap_or_else(|| unreachable!("a sampler for each thread"));
            let row = rows[index];
            let token = sampler.sample(logits, row.sequence, row.end()).map(Some);
            drawn[index].get_or_init(|| token);
        })?;
        let token = |drawn: OnceLock<Sampled>| {
            drawn.into_inner().unwrap_or_else(|| unreachable!("each row is drawn from once"))
        };
        Ok(drawn.into_iter().map(token).collect())
    }

    /// What each row that samples comes to, one after the other.
    fn sampled(&mut self, batch: &Batch<'_>) -> Result<Vec<Sampled>, KernelError> {
        let rows = batch.rows.iter().zip(&batch.cu_seqlens[1..]).filter(|(row, _)| row.sample);
        let (rows, last): (Vec<_>, Vec<_>) = rows.map(|(row, end)| (row, end - 1)).unzip();
        let logits = self.logits(batch, &last)?; // [rows,V]
        let begin = Instant::now();
        let sampled = self.sample(&rows, &logits)?;
        self.sample_time = begin.elapsed();
        self.clock.lap(Part::Sampling);
        Ok(sampled)
    }
}

/// What a row that samples comes to.
type Sampled = Result<Option<SampledToken>, RowFailure>;

impl Model for CandleModel {
    fn info(&self) -> &WorkerInfo {
        &self.info
    }

    // All state is in the cache, and that is read through block tables only.
    fn reset(&mut self) {}

    fn forward(&mut self, batch: &Batch<'_>) -> Vec<Result<Option<SampledToken>, RowFailure>> {
        self.sample_time = Duration::ZERO;
        if batch.ids.is_empty() {
            return Vec::new();
        }
        self.clock.begin();
        let mut sampled = match self.sampled(batch) {
            Ok(sampled) => sampled.into_iter(),
            Err(error) => panic!("a kernel refused a checked batch: {error}"),
        };
        let one_per_row = batch.rows.iter().map(|row| match row.sample {
            true => sampled.next().unwrap_or_else(|| unreachable!("one per row that samples")),
            false => Ok(None),
        });
        one_per_row.collect()
    }

    fn sample_time(&self) -> Duration {
        self.sample_time
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
fn precision(dtype: DType, quantize: Option<Quantization>, keeps_blocks: bool) -> String {
    let dtype = match dtype {
        DType::F32 => "f32",
        DType::F16 => "f16",
        _ => "bf16",
    };
    match quantize {
        None if keeps_blocks => format!("{dtype} beside blocks as stored"),
        None => dtype.to_owned(),
        Some(Quantization::Int8) => format!("{dtype} weights in int8"),
        Some(Quantization::Int4) => format!("{dtype} weights in int4"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{LoadFormat, WeightDtype};
    use super::*;
    use crate::{BatchRow, Sequence};
    use candle_core::Device;
    use millstream_kernels::kv_cache;
    use millstream_proto::row_error::Kind;
    use std::path::PathBuf;

    fn fixture(case: &str) -> PathBuf {
        let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/parity");
        PathBuf::from(fixtures).join(case)
    }

    fn load(case: &str, options: &LoadOptions) -> Result<CandleModel, LoadError> {
        let source = ModelSource::Directory(fixture(case));
        CandleModel::load(&source, options, &Progress::default())
    }

    fn options() -> LoadOptions {
        LoadOptions { kv_cache_memory: Some(1 << 20), ..LoadOptions::default() }
    }

    fn quantized(to: Quantization) -> LoadOptions {
        LoadOptions { quantize: Some(to), ..options() }
    }

    fn sequence(len: usize, blocks: &[u32]) -> Sequence {
        let tokens = (0..len as u32).map(|i| i * 3 % 80).collect();
        Sequence {
            prompt_len: len,
            tokens,
            block_tables: vec![blocks.to_vec()],
            ..Sequence::default()
        }
    }

    fn row(sequence: &Sequence, start: usize, sample: bool) -> BatchRow<'_> {
        BatchRow { slot: 0, sequence, start, len: sequence.tokens.len() - start, sample }
    }

    /// Overwrites a cell of every layer's cache with NaN.
    fn poison(model: &CandleModel, cells: &[u32]) {
        for layer in &model.cache.layers {
            let group = &model.plan.groups[layer.group];
            let shape = (cells.len(), group.kv_heads, group.head_dim);
            let nan = Tensor::full(f32::NAN, shape, &Device::Cpu).unwrap();
            kv_cache::write(&layer.k, &layer.v, &nan, &nan, cells).unwrap();
        }
    }

    #[test]
    fn what_an_earlier_sequence_left_in_a_block_is_never_read() {
        for case in ["qwen3", "qwen3-bf16"] {
            let model = load(case, &options()).unwrap();
            let prompt = sequence(21, &[4, 2]);
            let batch = Batch::new(vec![row(&prompt, 0, true)]);
            let bits = |model: &CandleModel| -> Vec<u32> {
                let logits = model.logits(&batch, &[20]).unwrap().to_vec2::<f32>().unwrap();
                logits[0].iter().map(|logit| logit.to_bits()).collect()
            };
            let clean = bits(&model);
            poison(&model, &(0..6 * 16).collect::<Vec<_>>());
            assert_eq!(bits(&model), clean);
        }
    }

    #[test]
    fn a_row_that_is_not_a_number_fails_alone() {
        let mut model = load("llama-biases", &options()).unwrap();
        let (broken, whole, chunk) = (sequence(9, &[0]), sequence(20, &[1, 2]), sequence(5, &[3]));
        let alone = model.forward(&Batch::new(vec![row(&whole, 0, true)])).remove(0);
        model.forward(&Batch::new(vec![row(&broken, 0, false)]));
        poison(&model, &[3]);
        let rows = vec![row(&chunk, 0, false), row(&broken, 8, true), row(&whole, 0, true)];
        let results = model.forward(&Batch::new(rows));
        assert_eq!(results[0], Ok(None));
        assert_eq!(results[1].as_ref().unwrap_err().kind, Kind::Numeric);
        assert_eq!(results[2], alone);
    }

    #[test]
    fn a_batch_in_which_nothing_samples_has_no_tokens() {
        let mut model = load("qwen3", &options()).unwrap();
        let prompt = sequence(4, &[0]);
        assert_eq!(model.forward(&Batch::new(vec![row(&prompt, 0, false)])), [Ok(None)]);
        assert_eq!(model.forward(&Batch::new(Vec::new())), []);
    }

    #[test]
    fn the_info_says_what_was_loaded() {
        let model = load("llama3-scaling", &options()).unwrap();
        let info = model.info();
        assert_eq!((info.max_model_len, info.vocab_size, info.block_size), (128, 80, 16));
        assert_eq!((info.dtype.as_str(), info.num_parameters), ("f32", 26_784));
        assert_eq!(info.eos_token_ids, [2, 5]);
        assert!((64..=8192).contains(&info.timed_batch_tokens), "{}", info.timed_batch_tokens);
        // 2 layers, K and V, 2 heads of 16, 4 bytes: 1 MiB holds 128 blocks of 16 tokens.
        let group = CacheGroup { num_layers: 2, bytes_per_token: 512, window: 0, num_blocks: 128 };
        assert_eq!(info.cache_groups, [group]);
        let quantized = load("llama3-scaling", &quantized(Quantization::Int8)).unwrap();
        assert_eq!(quantized.info().dtype, "f32 weights in int8");
        assert_eq!(quantized.info().num_parameters, 26_784);
        assert_eq!(quantized.info().cache_groups, info.cache_groups, "the cache is not quantised");
    }

    #[test]
    fn the_fingerprint_tells_models_and_dtypes_apart_and_nothing_else() {
        let fingerprint =
            |case: &str, options: &LoadOptions| load(case, options).unwrap().info.fingerprint;
        let one = fingerprint("qwen3", &options());
        let roomy = LoadOptions { kv_cache_memory: Some(4 << 20), max_slots: 3, ..options() };
        assert_eq!(one, fingerprint("qwen3", &roomy));
        let half = LoadOptions { dtype: Some(WeightDtype::Bf16), ..options() };
        let others = [
            fingerprint("qwen3", &half),
            fingerprint("qwen3-bf16", &options()),
            fingerprint("qwen3", &LoadOptions { load_format: LoadFormat::Dummy, ..options() }),
            fingerprint("qwen3", &quantized(Quantization::Int8)),
            fingerprint("qwen3", &quantized(Quantization::Int4)),
        ];
        for (i, other) in others.iter().enumerate() {
            assert!(*other != one && !others[..i].contains(other), "{i}");
        }
    }

    #[test]
    fn an_embedded_model_is_the_same_model() {
        let embedded = ModelSource::Embedded(&[
            ("config.json", include_bytes!("../../../tests/fixtures/parity/qwen3/config.json")),
            (
                "generation_config.json",
                include_bytes!("../../../tests/fixtures/parity/qwen3/generation_config.json"),
            ),
            (
                "model.safetensors",
                include_bytes!("../../../tests/fixtures/parity/qwen3/model.safetensors"),
            ),
        ]);
        let embedded = CandleModel::load(&embedded, &options(), &Progress::default()).unwrap();
        let directory = load("qwen3", &options()).unwrap();
        assert_eq!(embedded.info.fingerprint, directory.info.fingerprint);
    }

    #[test]
    fn random_weights_need_nothing_but_the_configuration() {
        let directory = tempfile::tempdir().unwrap();
        let config = fixture("qwen3-bf16").join("config.json");
        std::fs::copy(config, directory.path().join("config.json")).unwrap();
        let source = ModelSource::Directory(directory.path().to_owned());
        let dummy = LoadOptions { load_format: LoadFormat::Dummy, ..options() };
        let mut model = CandleModel::load(&source, &dummy, &Progress::default()).unwrap();
        assert_eq!(model.info.dtype, "bf16");
        let prompt = sequence(21, &[4, 2]);
        let token = model.forward(&Batch::new(vec![row(&prompt, 0, true)])).remove(0);
        assert!(matches!(token, Ok(Some(_))), "{token:?}");
    }

    #[test]
    fn what_cannot_be_loaded_is_refused_in_words() {
        let tight = LoadOptions { kv_cache_memory: Some(60_000), ..options() };
        let long = LoadOptions { max_model_len: Some(129), ..options() };
        let cases = [
            ("llama3-scaling", tight, "lower --max-total-tokens"),
            ("llama3-scaling", long, "--max-total-tokens (129) must be between 1 and"),
            ("nowhere", options(), "`config.json` is missing from"),
        ];
        for (case, options, want) in cases {
            let error = load(case, &options).err().expect("an error").to_string();
            assert!(error.contains(want), "{error}");
        }
    }
}
