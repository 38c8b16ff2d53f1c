//! The decoder on a GPU against Hugging Face Transformers and against the decoder on the processor.
//! Where there is no GPU each test says so and proves nothing.
#![cfg(feature = "cuda")]

mod fixture;

use fixture::expected::{expected, largest_difference};
use fixture::{Compute, Row, Runner, directory, prompt};
use millstream_backends::candle::cuda::{self, CudaModel};
use millstream_backends::candle::{LoadOptions, WeightDtype};
use millstream_backends::pipeline::Pipeline;
use millstream_backends::{Batch, ModelSource, Progress};
use millstream_proto::WorkerInfo;

/// Largest difference allowed in f32: sums run in other orders, and exponentials are those of the
/// device.
const F32: f32 = 2e-4;
/// The same in f16, in which activations are rounded to 11 bits between operations.
const F16: f32 = 0.05;
/// The same in bf16, where it is 8 bits.
const BF16: f32 = 0.3;

/// Checkpoints that between them have every kind of layer.
const CASES: [&str; 16] = [
    "cohere2",
    "gemma2",
    "gemma3-text",
    "glm4-moe",
    "gpt-oss",
    "granite",
    "llama-biases",
    "llama-yarn",
    "ministral3",
    "mixtral",
    "olmo2",
    "olmo3",
    "phi3-longrope",
    "qwen2-window",
    "qwen3",
    "qwen3-moe",
];

impl Compute for CudaModel {
    fn info(&self) -> &WorkerInfo {
        Pipeline::info(self)
    }

    fn logits(&mut self, batch: &Batch<'_>, tokens: &[u32]) -> Vec<Vec<f32>> {
        CudaModel::logits(self, batch, tokens).expect("the batch is computed")
    }
}

/// A fixture on the GPU; where there is none, says once that the test is skipped.
fn load(case: &str, dtype: Option<WeightDtype>) -> Option<CudaModel> {
    let options = LoadOptions {
        dtype,
        kv_cache_memory: Some(16 << 20),
        max_slots: 64,
        max_batch_tokens: 96,
        ..LoadOptions::default()
    };
    if let Err(error) = millstream_kernels::cuda::Gpu::open(0) {
        println!("skipped: {error}");
        return None;
    }
    let source = ModelSource::Directory(directory(case));
    let model = cuda::load(0, &source, &options, &Progress::default());
    Some(model.unwrap_or_else(|error| panic!("{case}: {error}")))
}

/// Runs the prompt as sequence 0 through these steps, beside sequences 1 and 2.
fn check(cases: &[&str], dtype: Option<WeightDtype>, tolerance: f32, steps: &[Vec<Row>]) {
    let mut wrong = Vec::new();
    for case in cases {
        let Some(model) = load(case, dtype) else { return };
        let want = expected(case, "expected.safetensors");
        let prompts = vec![want.ids.clone(), prompt(40, 1), prompt(60, 2)];
        let mut runner = Runner::new(model, prompts);
        steps.iter().for_each(|rows| runner.step(rows));
        let error = largest_difference(&runner, &want);
        println!("{case}: largest difference {error:.1e}, allowed {tolerance:.1e}");
        if error.is_nan() || error > tolerance {
            wrong.push(format!("{case}: {error} exceeds {tolerance}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_prompt_computed_whole_has_the_logits_of_transformers() {
    check(&CASES, None, F32, &[vec![(0, 45)]]);
}

#[test]
fn chunks_and_decodes_beside_others_have_the_logits_of_transformers() {
    let prefill = [vec![(1, 30), (0, 11), (2, 5)], vec![(2, 40), (1, 1), (0, 20)]];
    let decode = (31..45).map(|i| match i % 2 {
        0 => vec![(0, 1), (2, 1)],
        _ => vec![(1, 1), (0, 1)],
    });
    let steps: Vec<_> = prefill.into_iter().chain(decode).collect();
    check(&["gpt-oss", "gemma3-text", "qwen3", "qwen3-moe"], None, F32, &steps);
}

#[test]
fn halves_have_the_logits_of_transformers_to_their_precision() {
    let steps = [vec![(0, 20)], vec![(0, 1)], vec![(0, 24)]];
    let cases = ["llama-biases", "qwen3", "mixtral"];
    check(&cases, Some(WeightDtype::F16), F16, &steps);
    check(&cases, Some(WeightDtype::Bf16), BF16, &steps);
}
