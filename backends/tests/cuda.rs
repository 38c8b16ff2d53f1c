//! The decoder on a GPU against Hugging Face Transformers and against the decoder on the processor.
//! Where there is no GPU each test says so and proves nothing.
#![cfg(feature = "cuda")]

mod fixture;

use fixture::expected::{expected, largest_difference};
use fixture::{Compute, Row, Runner, directory, prompt};
use millstream_backends::candle::cuda::{self, CudaModel};
use millstream_backends::candle::{self, LoadFormat, LoadOptions, WeightDtype};
use millstream_backends::{Batch, Executor, Immediate, ModelSource, Pipeline, Progress};
use millstream_proto::{AddSequence, CONTINUE, Sampling, Step, StepOutput, WorkerInfo};

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
fn a_prompt_that_finds_its_beginning_in_the_cache_has_the_logits_of_transformers() {
    for case in ["gemma3-text", "qwen3"] {
        let Some(model) = load(case, None) else { return };
        let want = expected(case, "expected.safetensors");
        let mut runner = Runner::new(model, vec![want.ids.clone(), want.ids.clone()]);
        runner.step(&[(1, 45)]);
        runner.share(1, 0, 2);
        runner.step(&[(0, 13)]);
        let error = largest_difference(&runner, &want);
        assert!(error <= F32, "{case}: {error} exceeds {F32}");
    }
}

#[test]
fn halves_have_the_logits_of_transformers_to_their_precision() {
    let steps = [vec![(0, 20)], vec![(0, 1)], vec![(0, 24)]];
    check(&["llama-biases", "qwen3", "mixtral"], Some(WeightDtype::F16), F16, &steps);
    // In bf16 a small model's choice of experts is another one now and then.
    check(&["llama-biases", "qwen3", "olmo2"], Some(WeightDtype::Bf16), BF16, &steps);
}

/// Sequences as they are added: greedy, and drawn with everything that changes what is drawn.
fn added() -> Vec<AddSequence> {
    let sampling = |temperature: f32| Sampling {
        temperature,
        top_p: 1.0,
        logprobs: true,
        top_logprobs: 3,
        ..Sampling::default()
    };
    let kinds = [
        sampling(0.0),
        Sampling { top_p: 0.9, top_k: 30, ..sampling(1.3) },
        Sampling {
            repetition_penalty: 1.4,
            presence_penalty: 0.5,
            frequency_penalty: 0.4,
            min_p: 0.02,
            ..sampling(0.8)
        },
        Sampling {
            bias_token: vec![3, 5, 7],
            bias: vec![4.0, f32::NEG_INFINITY, 1.0],
            typical_p: 0.9,
            min_tokens: 4,
            ..sampling(2.0)
        },
    ];
    (0..)
        .zip(kinds)
        .map(|(slot, sampling)| {
            let tokens = prompt(9 + 12 * slot as usize, slot as usize);
            AddSequence {
                slot,
                prompt_len: tokens.len() as u32,
                tokens,
                sampling: Some(sampling),
                seed: 1000 + u64::from(slot),
                choice: slot,
                stop_token_ids: vec![1, 2],
                prompt_logprobs_from: (slot == 2).then_some(1),
                ..AddSequence::default()
            }
        })
        .collect()
}

/// Steps that run them: prompts in chunks beside decodes, and then tokens one by one.
fn steps(groups: u32, decodes: u64) -> Vec<Step> {
    let added = added();
    let (mut steps, mut blocks) = (Vec::new(), 0..);
    let mut computed: Vec<u32> = vec![0; added.len()];
    for number in 0..3 + decodes {
        let mut step = Step { epoch: 1, step: number + 1, ..Step::default() };
        if number == 0 {
            step.add.clone_from(&added);
            for slot in 0..added.len() as u32 {
                for _ in 0..6 {
                    let block = blocks.next().unwrap_or(0);
                    for group in 0..groups {
                        step.new_block_slot.push(slot);
                        step.new_block_group.push(group);
                        step.new_block.push(block);
                    }
                }
            }
        }
        for (slot, add) in added.iter().enumerate() {
            let left = add.prompt_len.saturating_sub(computed[slot]);
            let len = if left > 0 { left.min(17) } else { 1 };
            step.row_slot.push(slot as u32);
            step.row_start.push(if number == 0 { 0 } else { CONTINUE });
            step.row_len.push(len);
            computed[slot] += len;
            step.row_sample.push(u32::from(computed[slot] >= add.prompt_len));
        }
        steps.push(step);
    }
    steps
}

/// What steps come to, with at most `in_flight` begun and not finished.
fn outputs<P: Pipeline>(model: P, in_flight: usize, decodes: u64) -> Vec<StepOutput> {
    let mut executor = Executor::new(model);
    executor.reset(1);
    let groups = executor.info().cache_groups.len() as u32;
    let mut outputs = Vec::new();
    for step in steps(groups, decodes) {
        executor.begin(step);
        while executor.in_flight() >= in_flight {
            outputs.push(executor.finish());
        }
    }
    while executor.in_flight() > 0 {
        outputs.push(executor.finish());
    }
    outputs
}

#[track_caller]
fn assert_alike(found: &[StepOutput], expected: &[StepOutput]) {
    assert_eq!(found.len(), expected.len());
    let close = |a: &[f32], b: &[f32]| {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-3)
    };
    for (found, expected) in found.iter().zip(expected) {
        let step = expected.step;
        assert_eq!(found.row_error, expected.row_error, "step {step}");
        assert_eq!(found.row_count, expected.row_count, "step {step}");
        assert_eq!(found.tokens, expected.tokens, "step {step}");
        for (found, expected) in [
            (&found.logprobs, &expected.logprobs),
            (&found.prompt_logprobs, &expected.prompt_logprobs),
        ] {
            let (found, expected) =
                (found.clone().unwrap_or_default(), expected.clone().unwrap_or_default());
            assert_eq!(found.index, expected.index, "step {step}");
            assert_eq!(found.top_token, expected.top_token, "step {step}");
            assert!(
                close(&found.logprob, &expected.logprob),
                "step {step}: {found:?} {expected:?}"
            );
            assert!(close(&found.top_logprob, &expected.top_logprob), "step {step}");
        }
    }
}

#[test]
fn what_is_drawn_on_the_gpu_is_what_the_processor_draws() {
    for case in ["qwen3", "gemma3-text", "qwen3-moe"] {
        let Some(model) = load(case, None) else { return };
        let expected = outputs(Immediate::new(fixture::load(case, None)), 1, 24);
        assert!(expected.iter().map(|output| output.tokens.len()).sum::<usize>() > 40);
        assert_alike(&outputs(model, 1, 24), &expected);
        let Some(model) = load(case, None) else { return };
        assert_alike(&outputs(model, 2, 24), &expected);
    }
}

#[test]
fn recorded_steps_draw_what_the_others_draw() {
    let Some(mut model) = load("qwen3", None) else { return };
    while model.idle() {}
    let expected = outputs(Immediate::new(fixture::load("qwen3", None)), 1, 24);
    assert_alike(&outputs(model, 2, 24), &expected);
}

/// A model of random weights whose head size the tensor cores' kernels take.
fn shape(directory: &std::path::Path, family: &str, head_dim: usize) -> ModelSource {
    let experts = match family {
        "qwen3_moe" => {
            r#", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64,
               "norm_topk_prob": true, "decoder_sparse_step": 1, "mlp_only_layers": []"#
        }
        _ => "",
    };
    let config = format!(
        r#"{{"model_type": "{family}", "hidden_size": 128, "intermediate_size": 192,
             "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
             "head_dim": {head_dim}, "vocab_size": 320, "max_position_embeddings": 1024,
             "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": false,
             "hidden_act": "silu", "torch_dtype": "bfloat16", "attention_bias": false{experts}}}"#
    );
    std::fs::write(directory.join("config.json"), config).expect("a file");
    ModelSource::Directory(directory.to_owned())
}

/// How far the logits of sequence 0 are from each other: root mean squares of the difference, in
/// parts of the deviation of logits.
fn relative_difference(found: &[Vec<f32>], expected: &[Vec<f32>]) -> f64 {
    let (mut error, mut spread) = (0.0, 0.0);
    for (found, expected) in found.iter().zip(expected) {
        let mean = expected.iter().sum::<f32>() / expected.len() as f32;
        error += found.iter().zip(expected).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
        spread += expected.iter().map(|b| f64::from(b - mean).powi(2)).sum::<f64>();
    }
    (error / spread).sqrt()
}

/// Both round activations to bf16, 8 bits, at other places; two layers pass that on.
#[test]
fn tensor_cores_give_the_logits_of_the_processor() {
    const LEN: usize = 300;
    for (family, head_dim) in [("qwen3", 64), ("qwen3", 128), ("qwen3_moe", 128)] {
        let directory = tempfile::tempdir().expect("a directory");
        let source = shape(directory.path(), family, head_dim);
        let options = LoadOptions {
            load_format: LoadFormat::Dummy,
            kv_cache_memory: Some(64 << 20),
            max_slots: 64,
            max_batch_tokens: 320,
            ..LoadOptions::default()
        };
        let progress = Progress::default();
        let host = candle::load(&source, &options, &progress).expect("the model is loaded");
        let gpu = match cuda::load(0, &source, &options, &progress) {
            Ok(gpu) => gpu,
            Err(error) => return println!("skipped: {error}"),
        };
        let prompts = || vec![prompt(LEN, 1), prompt(40, 2)];
        let mut host = Runner::new(host, prompts());
        host.step(&[(0, LEN)]);
        let mut gpu = Runner::new(gpu, prompts());
        for len in [1, 130, 100] {
            gpu.step(&[(1, 3), (0, len)]);
        }
        while gpu.logits(0).len() < LEN {
            gpu.step(&[(0, 1)]);
        }
        let error = relative_difference(gpu.logits(0), host.logits(0));
        println!("{family}, heads of {head_dim}: relative difference {error:.4}");
        assert!(error < 0.03, "{family}, {head_dim}: {error}");
    }
}

/// Checkpoints of `tests/gpu/parity.py`, whose sizes the tensor cores' kernels take, against
/// Transformers, which computed in f32 of the same weights.
///
/// Of the differences by token, in parts of the deviation of the logits, the median is bounded. An
/// activation that is rounded to n bits is wrong by `2^-n / sqrt(3)` on average, which is 0.0023 in
/// bf16; a layer's output carries some eight of those, and the roundings of four layers add up as
/// the root of their number: 0.0023 * sqrt(8 * 4) = 0.013. Twice that is allowed, and an eighth of
/// it in f16, which has three bits more. A wrong index or rule is wrong by 0.1 and more.
///
/// The worst token may have four times as much; no router is near a tie.
#[test]
fn checkpoints_made_beside_have_the_logits_of_transformers() {
    let Some(made) = std::env::var_os("MILLSTREAM_PARITY") else {
        return println!("skipped: MILLSTREAM_PARITY does not say where checkpoints were made");
    };
    let entries = std::fs::read_dir(&made).expect("MILLSTREAM_PARITY is a directory");
    let mut cases: Vec<_> = entries.map(|entry| entry.expect("a checkpoint").path()).collect();
    cases.retain(|case| case.join("expected.safetensors").is_file());
    cases.sort();
    assert!(!cases.is_empty(), "no checkpoint in {}", made.display());
    let mut wrong = Vec::new();
    for case in cases.iter().map(|case| case.to_str().expect("a name")) {
        for (dtype, tolerance) in [(WeightDtype::Bf16, 0.026), (WeightDtype::F16, 0.0033)] {
            let Some(found) = differences(case, dtype) else { return };
            for (how, median, worst) in found {
                println!("{case}, {dtype:?}, {how}: median {median:.5}, worst {worst:.5}");
                if !(median <= tolerance && worst <= 4.0 * tolerance) {
                    wrong.push(format!("{case}, {dtype:?}, {how}: {median} {worst}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The median and the largest of the differences by token, whichever way the prompt is computed.
fn differences(case: &str, dtype: WeightDtype) -> Option<[(&'static str, f64, f64); 3]> {
    let options = LoadOptions {
        dtype: Some(dtype),
        kv_cache_memory: Some(128 << 20),
        max_slots: 64,
        max_batch_tokens: 512,
        ..LoadOptions::default()
    };
    let source = ModelSource::Directory(case.into());
    let model = match cuda::load(0, &source, &options, &Progress::default()) {
        Ok(model) => model,
        Err(error) if millstream_kernels::cuda::Gpu::open(0).is_err() => {
            println!("skipped: {error}");
            return None;
        }
        Err(error) => panic!("{case}: {error}"),
    };
    let want = expected(case, "expected.safetensors");
    let len = want.ids.len();
    let prompts = || vec![want.ids.clone(), prompt(80, 1)];
    let (half, rest) = (len / 2, len - 1 - len / 2);
    let decoded = (half..len).map(|_| vec![(0, 1)]);
    let ways = [
        ("whole", vec![vec![(0, len)]]),
        ("in chunks", vec![vec![(1, 50), (0, 1)], vec![(0, half), (1, 1)], vec![(0, rest)]]),
        ("decoded", std::iter::once(vec![(0, half)]).chain(decoded).collect()),
    ];
    let mut runner = Runner::new(model, prompts());
    Some(ways.map(|(how, steps)| {
        runner.start(prompts());
        steps.iter().for_each(|rows| runner.step(rows));
        let tokens = runner.logits(0).chunks(1).zip(want.logits.chunks(1));
        let difference = |(got, want)| match relative_difference(got, want) {
            nan if nan.is_nan() => f64::INFINITY,
            difference => difference,
        };
        let mut all: Vec<f64> = tokens.map(difference).collect();
        assert_eq!(all.len(), len, "every token is computed once");
        all.sort_by(f64::total_cmp);
        (how, all[len / 2], all[len - 1])
    }))
}
