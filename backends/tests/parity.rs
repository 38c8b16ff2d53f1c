//! Parity with Hugging Face Transformers: the logits of every token of a prompt, against those
//! that `tests/fixtures/make_parity.py` stored, however the prompt is cut into steps.

mod fixture;

use fixture::expected::{expected, largest_difference};
use fixture::{Row, Runner, directory, load, load_up_to, load_with, prompt};
use millstream_backends::candle::{LoadOptions, Quantization, WeightDtype};

/// Largest difference allowed for weights in f32. Both sides round at every operation, in
/// different orders: a few dozen roundings of 6e-8 on values around 1 to 10.
const F32: f32 = 5e-5;
/// The same where K and V are stored as bf16, and where the processor multiplies bf16 with bf16,
/// so that activations are rounded to it before each product. The reference does neither: each
/// carries 8 bits then, an error of 2^-9 that the layers pass on.
const BF16: f32 = 0.08;

/// The same for a model whose attention is sharper, so that it passes more of that error on.
const SHARP_BF16: f32 = 0.3;

/// Checkpoint, `--dtype`, and the largest difference allowed.
const CASES: &[(&str, Option<WeightDtype>, f32)] = &[
    ("cohere", None, F32),
    ("cohere-qk-norm", None, F32),
    ("cohere2", None, F32),
    ("gemma2", None, F32),
    ("gemma3-softcap", None, F32),
    ("gemma3-text", None, F32),
    ("gemma3-vision", None, F32),
    ("glm", None, F32),
    ("glm4", None, F32),
    ("glm4-moe", None, F32),
    ("glm4-moe-fused", None, F32),
    ("gpt-oss", None, F32),
    ("gpt-oss-mxfp4", None, SHARP_BF16),
    ("gpt-oss-mxfp4", Some(WeightDtype::F32), F32),
    ("granite", None, F32),
    ("llama-biases", None, F32),
    ("llama-yarn", None, F32),
    ("llama3-scaling", None, F32),
    ("ministral3", None, F32),
    ("mistral", None, F32),
    ("mistral3-vision", None, F32),
    ("mistral3-vision-new", None, F32),
    ("mixtral", None, F32),
    ("olmo2", None, F32),
    ("olmo3", None, F32),
    ("phi3", None, F32),
    ("phi3-longrope", None, F32),
    ("qwen2", None, F32),
    ("qwen2-window", None, F32),
    ("qwen2_5-vl", None, F32),
    ("qwen3", None, F32),
    ("qwen3-bf16", None, BF16),
    ("qwen3-bf16", Some(WeightDtype::F32), F32),
    ("qwen3-moe", None, F32),
    ("qwen3-moe-fused", None, F32),
    ("qwen3-vl", None, F32),
    ("qwen3-yarn", None, F32),
    ("smollm3", None, F32),
];

/// Runs the prompt as sequence 0 through these steps, beside sequences 1 and 2, on every case.
fn check(steps: &[Vec<Row>]) {
    let mut wrong = Vec::new();
    for &(case, dtype, tolerance) in CASES {
        let want = expected(case, "expected.safetensors");
        let prompts = vec![want.ids.clone(), prompt(40, 1), prompt(60, 2)];
        let mut runner = Runner::new(load(case, dtype), prompts);
        steps.iter().for_each(|rows| runner.step(rows));
        let error = largest_difference(&runner, &want);
        println!("{case}: largest difference {error:.1e}, allowed {tolerance:.1e}");
        if error > tolerance {
            wrong.push(format!("{case}: {error} exceeds {tolerance}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_fixture_is_checked() {
    let entries = std::fs::read_dir(directory("")).expect("the fixtures");
    for name in entries.map(|entry| entry.expect("a fixture").file_name()) {
        assert!(CASES.iter().any(|(case, ..)| name == *case), "{name:?} is not");
    }
}

#[test]
fn a_prompt_computed_whole_has_the_logits_of_transformers() {
    check(&[vec![(0, 45)]]);
}

#[test]
fn a_prompt_computed_in_chunks_has_the_logits_of_transformers() {
    check(&[vec![(0, 7)], vec![(0, 9)], vec![(0, 16)], vec![(0, 1)], vec![(0, 12)]]);
}

#[test]
fn tokens_decoded_over_the_paged_cache_have_the_logits_of_transformers() {
    let prefill = [vec![(0, 20)]];
    let decode = (20..45).map(|_| vec![(0, 1)]);
    check(&prefill.into_iter().chain(decode).collect::<Vec<_>>());
}

#[test]
fn a_prompt_batched_with_others_has_the_logits_of_transformers() {
    let prefill = [vec![(1, 30), (0, 11), (2, 5)], vec![(2, 40), (1, 1), (0, 20)]];
    let decode = (31..45).map(|i| match i % 2 {
        0 => vec![(0, 1), (2, 1)],
        _ => vec![(1, 1), (0, 1)],
    });
    check(&prefill.into_iter().chain(decode).collect::<Vec<_>>());
}

#[test]
fn a_prompt_that_finds_its_beginning_in_the_cache_has_the_logits_of_transformers() {
    for &(case, dtype, tolerance) in CASES {
        let want = expected(case, "expected.safetensors");
        let mut runner = Runner::new(load(case, dtype), vec![want.ids.clone(), want.ids.clone()]);
        runner.step(&[(1, 45)]);
        runner.share(1, 0, 2);
        runner.step(&[(0, 13)]);
        let error = largest_difference(&runner, &want);
        assert!(error <= tolerance, "{case}: {error} exceeds {tolerance}");
    }
}

/// The factors for short texts are those of a server that takes no long ones.
#[test]
fn a_model_stretched_pair_by_pair_is_the_short_one_where_no_text_is_long() {
    let want = expected("phi3-longrope", "expected-short.safetensors");
    let model = load_up_to("phi3-longrope", None, Some(32));
    let mut runner = Runner::new(model, vec![want.ids.clone()]);
    runner.step(&[(0, want.ids.len())]);
    let error = largest_difference(&runner, &want);
    assert!(error <= F32, "{error} exceeds {F32}");
}

/// Checkpoints that between them store matrices in every way: tied and not, fused, stacked experts,
/// columns before rows, MXFP4.
const QUANTIZED: [&str; 8] = [
    "glm4-moe-fused",
    "gpt-oss",
    "gpt-oss-mxfp4",
    "llama3-scaling",
    "llama-biases",
    "phi3",
    "qwen3",
    "qwen3-moe",
];

/// The error of logits of quantised weights, in parts of the distance of logits from their mean:
/// root mean squares of both.
fn quantized_error(case: &str, to: Quantization) -> f64 {
    let want = expected(case, "expected.safetensors");
    let options = LoadOptions { quantize: Some(to), ..LoadOptions::default() };
    let mut runner = Runner::new(load_with(case, &options), vec![want.ids.clone()]);
    runner.step(&[(0, want.ids.len())]);
    let (mut error, mut spread) = (0.0, 0.0);
    for (got, want) in runner.logits(0).iter().zip(&want.logits) {
        let mean = want.iter().sum::<f32>() / want.len() as f32;
        error += got.iter().zip(want).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
        spread += want.iter().map(|b| f64::from(b - mean).powi(2)).sum::<f64>();
    }
    (error / spread).sqrt()
}

/// A weight of 8 bits is wrong by some 0.6 % of the weights' deviation, one of 4 bits by 8 %, and an
/// activation, which has 8 bits, by 0.6 %. These models pass on four times as much: they are
/// random, and what is random has no direction that it is sure of.
#[test]
fn quantised_weights_give_logits_within_the_error_of_their_format() {
    let mut wrong = Vec::new();
    for (to, tolerance) in [(Quantization::Int8, 0.08), (Quantization::Int4, 0.6)] {
        for case in QUANTIZED {
            let error = quantized_error(case, to);
            println!("{case} in {to:?}: relative error {error:.4}, allowed {tolerance}");
            // What is not a number is not between these.
            if !(1e-4..tolerance).contains(&error) {
                wrong.push(format!("{case} in {to:?}: {error} exceeds {tolerance}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
