use super::super::{LoadFormat, Quantization, WeightDtype};
use super::*;
use crate::{BatchRow, Sequence};
use candle_core::Device;
use millstream_kernels::kv_cache;
use millstream_proto::CacheGroup;
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
    Sequence { prompt_len: len, tokens, block_tables: vec![blocks.to_vec()], ..Sequence::default() }
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
fn a_cache_is_made_ready_while_there_is_nothing_to_compute_and_holds_what_it_held() {
    let mut model = load("qwen3", &options()).unwrap();
    let prompt = sequence(21, &[4, 2]);
    let batch = |start| Batch::new(vec![row(&prompt, start, true)]);
    let expected = model.forward(&batch(0));
    assert!(model.idle(), "no block is ready that was not used");
    while model.idle() {}
    // Reads what the first pass left in the cache.
    assert_eq!(model.forward(&batch(20)), expected);
    assert!(!model.idle(), "blocks that were ready were used");
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
fn a_prompt_is_scored_by_its_own_logits_however_it_is_cut() {
    let mut model = load("qwen3", &options()).unwrap();
    let mut prompt = sequence(41, &[4, 2, 5]);
    prompt.prompt_logprobs_from = Some(3);
    prompt.sampling.logprobs = Some(2);
    let whole = Batch::new(vec![row(&prompt, 0, false)]);
    let logits = model.logits(&whole, &(0..40).collect::<Vec<_>>()).unwrap();
    let logits = logits.to_vec2::<f32>().unwrap();
    let expected = |position: usize| {
        let logits = &logits[position - 1][..80];
        let sum: f64 = logits.iter().map(|logit| f64::from(*logit).exp()).sum();
        f64::from(logits[prompt.tokens[position] as usize]) - sum.ln()
    };
    for cuts in [vec![0, 41], vec![0, 1, 2, 3, 40, 41], vec![0, 16, 33, 41]] {
        let mut scored = Vec::new();
        for cut in cuts.windows(2) {
            let (start, len) = (cut[0], cut[1] - cut[0]);
            let part = BatchRow { slot: 0, sequence: &prompt, start, len, sample: len == 8 };
            let other = sequence(3, &[1]);
            let rows = vec![row(&other, 0, true), part];
            assert!(model.forward(&Batch::new(rows)).iter().all(Result::is_ok));
            scored.extend(model.take_prompt_logprobs());
        }
        assert_eq!(scored.len(), 38, "{cuts:?}");
        for (position, (index, SampledLogprobs { logprob, top })) in (3..).zip(&scored) {
            assert_eq!((*index, top.len()), (1, 2));
            assert!((f64::from(*logprob) - expected(position)).abs() < 1e-4, "{position}");
        }
    }
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
    assert!((64..=8192).contains(&info.timed_prefill_tokens), "{}", info.timed_prefill_tokens);
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
        ("config.json", include_bytes!("../../../../tests/fixtures/parity/qwen3/config.json")),
        (
            "generation_config.json",
            include_bytes!("../../../../tests/fixtures/parity/qwen3/generation_config.json"),
        ),
        (
            "model.safetensors",
            include_bytes!("../../../../tests/fixtures/parity/qwen3/model.safetensors"),
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
