//! GGUF files through the real path: the fixtures of `parity.rs`, written as GGUF by the rules of
//! llama.cpp's converter, have the logits of Transformers; tokenizers that are written as metadata
//! give the same ids as before.

#[path = "fixture/convert.rs"]
#[allow(dead_code, reason = "what other tests do with a fixture, this one does not")]
mod convert;
#[allow(dead_code, reason = "what other tests do with a fixture, this one does not")]
mod fixture;
#[path = "fixture/writer.rs"]
mod writer;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use convert::{as_f32, convert};
use fixture::expected::{expected, largest_difference};
use fixture::{Runner, directory, prompt};
use millstream_backends::candle::{self, CandleModel, LoadOptions, WeightDtype};
use millstream_backends::gguf::Gguf;
use millstream_backends::{ModelSource, Progress};
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;
use tokenizers::Tokenizer;
use writer::{Meta, Writer};

/// As in `parity.rs`.
const F32: f32 = 5e-5;

/// Fixtures, and their architecture in files.
const CASES: [(&str, &str); 16] = [
    ("cohere2", "cohere2"),
    ("gemma2", "gemma2"),
    ("gemma3-text", "gemma3"),
    ("glm4", "glm4"),
    ("granite", "granite"),
    ("llama-biases", "llama"),
    ("llama-yarn", "llama"),
    ("llama3-scaling", "llama"),
    ("mixtral", "llama"),
    ("olmo2", "olmo2"),
    ("olmo3", "olmo2"),
    ("phi3", "phi3"),
    ("phi3-longrope", "phi3"),
    ("qwen2", "qwen2"),
    ("qwen3", "qwen3"),
    ("qwen3-moe", "qwen3moe"),
];

/// The file, as a source.
fn source(file: &Writer) -> (tempfile::TempDir, ModelSource) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("model.gguf");
    std::fs::write(&path, file.bytes()).expect("a file");
    let source = ModelSource::gguf(&path).unwrap_or_else(|error| panic!("{error}"));
    (directory, source)
}

fn load(source: &ModelSource, dtype: Option<WeightDtype>) -> CandleModel {
    let options = LoadOptions { dtype, kv_cache_memory: Some(16 << 20), ..LoadOptions::default() };
    candle::load(source, &options, &Progress::default()).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn a_checkpoint_written_as_gguf_has_the_logits_of_transformers() {
    let mut wrong = Vec::new();
    for (case, architecture) in CASES {
        let want = expected(case, "expected.safetensors");
        let (_directory, source) = source(&convert(&directory(case), architecture, &as_f32));
        let model = load(&source, None);
        let mut runner = Runner::new(model, vec![want.ids.clone()]);
        runner.step(&[(0, 20)]);
        runner.step(&[(0, want.ids.len() - 20)]);
        let error = largest_difference(&runner, &want);
        println!("{case}: largest difference {error:.1e}, allowed {F32:.1e}");
        if error > F32 {
            wrong.push(format!("{case}: {error} exceeds {F32}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Stores every matrix in a type, whose number and name in candle these are, but for those whose
/// name holds `except`, which are in 6 bits.
fn quantized(
    kind: (u32, GgmlDType),
    except: &'static str,
) -> impl Fn(&str, &[usize], &[f32]) -> (u32, Vec<u8>) {
    move |name, shape, values| {
        let (id, dtype) = match except {
            "" => kind,
            except if name.contains(except) => (14, GgmlDType::Q6K),
            _ => kind,
        };
        let tensor = Tensor::from_slice(values, shape, &Device::Cpu).expect("a tensor");
        let stored = QTensor::quantize(&tensor, dtype).expect("whole blocks");
        (id, stored.data().expect("bytes").into_owned())
    }
}

/// Logits of a prompt, one after the other.
fn logits(source: &ModelSource, dtype: Option<WeightDtype>) -> Vec<f32> {
    let mut runner = Runner::new(load(source, dtype), vec![prompt(40, 1)]);
    runner.step(&[(0, 40)]);
    runner.logits(0).concat()
}

/// The root of the mean square of the differences, as a share of that of what was wanted.
fn distance(got: &[f32], want: &[f32]) -> f32 {
    let squares = |values: &mut dyn Iterator<Item = f32>| values.map(|x| x * x).sum::<f32>();
    let differences = squares(&mut got.iter().zip(want).map(|(got, want)| got - want));
    (differences / squares(&mut want.iter().copied())).sqrt()
}

/// A file's blocks are served as they are, or in 8 bits, by activations in 8 bits: as good as the
/// numbers that they stand for, but for the rounding of those.
#[test]
fn blocks_are_served_as_the_numbers_that_they_stand_for() {
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/../src/demo/model");
    let whole = logits(&source(&convert(Path::new(demo), "llama", &as_f32)).1, None);
    let mut wrong = Vec::new();
    for (name, kind, except, lost) in [
        ("Q8_0", (8, GgmlDType::Q8_0), "", 0.02),
        ("Q6_K", (14, GgmlDType::Q6K), "", 0.05),
        ("Q5_K", (13, GgmlDType::Q5K), "", 0.1),
        ("Q5_1", (7, GgmlDType::Q5_1), "", 0.1),
        ("Q5_0", (6, GgmlDType::Q5_0), "", 0.1),
        ("Q4_K", (12, GgmlDType::Q4K), "", 0.2),
        ("Q4_K_M", (12, GgmlDType::Q4K), "attn_v", 0.2),
        ("Q4_1", (3, GgmlDType::Q4_1), "", 0.2),
        ("Q4_0", (2, GgmlDType::Q4_0), "", 0.25),
        ("Q3_K", (11, GgmlDType::Q3K), "", 0.5),
        ("Q2_K", (10, GgmlDType::Q2K), "", 1.0),
    ] {
        let store = quantized(kind, except);
        let (_directory, source) = source(&convert(Path::new(demo), "llama", &store));
        let unpacked = logits(&source, Some(WeightDtype::F32));
        let served = distance(&logits(&source, None), &unpacked);
        let format = distance(&unpacked, &whole);
        println!("{name}: serving loses {served:.4}, the format {format:.4}");
        if !(served <= 0.03 && format <= lost) {
            wrong.push(format!("{name}: {served} exceeds 0.03, or {format} exceeds {lost}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Special tokens of the fixtures' tokenizers.
const SPECIAL: [(&str, &str); 3] = [("bos", "<s>"), ("eos", "</s>"), ("unknown", "<unk>")];

fn read_fixture(name: &str) -> Value {
    let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/tokenizers");
    let path = Path::new(fixtures).join(name).with_extension("json");
    serde_json::from_slice(&std::fs::read(path).expect("the fixture")).expect("JSON")
}

fn ids(list: &Value) -> Vec<u32> {
    list.as_array().expect("a list").iter().map(|id| id.as_u64().expect("an id") as u32).collect()
}

#[test]
fn a_tokenizer_written_as_metadata_gives_the_same_ids_and_texts() {
    let kinds = [
        ("deepseek", Some("deepseek-v3")),
        ("digits", Some("command-r")),
        ("gemma", None),
        ("gpt2", Some("gpt-2")),
        ("gpt_oss", Some("gpt-4o")),
        ("llama2", None),
        ("llama3", Some("llama-bpe")),
        ("qwen2", Some("qwen2")),
        ("tekken", Some("tekken")),
    ];
    let texts = read_fixture("texts");
    let texts: Vec<&str> = texts.as_array().unwrap().iter().map(|t| t.as_str().unwrap()).collect();
    for (kind, pre) in kinds {
        let fixture = read_fixture(kind);
        let (_directory, source) = vocabulary(&fixture["tokenizer"], pre);
        let json = source.read("tokenizer.json").unwrap().expect("a tokenizer");
        let tokenizer = Tokenizer::from_bytes(&json).unwrap_or_else(|error| panic!("{error}"));
        let decode = |ids: &[u32], skip| tokenizer.decode(ids, skip).unwrap();
        let cases = fixture["texts"].as_array().unwrap();
        for (case, text) in cases.iter().zip(&texts) {
            let got = tokenizer.encode(*text, false).unwrap().get_ids().to_vec();
            assert_eq!(got, ids(&case[0]), "{kind} {text:?}");
        }
        for (want, text) in fixture["with_special"].as_array().unwrap().iter().zip(&texts) {
            let got = tokenizer.encode(*text, true).unwrap().get_ids().to_vec();
            // Where BOS is meant by the name of the words, a file cannot say less.
            assert_eq!(got, ids(want), "{kind} {text:?}");
        }
        let sequences = fixture["sequences"].as_array().unwrap();
        let alone = std::iter::repeat(&"");
        for (case, text) in cases.iter().chain(sequences).zip(texts.iter().chain(alone)) {
            let decoded = case[1].as_str().unwrap_or(text);
            let skipped = case[2].as_str().unwrap_or(decoded);
            let ids = ids(&case[0]);
            assert_eq!(decode(&ids, false), decoded, "{kind} {ids:?}");
            assert_eq!(decode(&ids, true), skipped, "{kind} {ids:?}");
        }
    }
}

/// A file that has a tokenizer and no model.
fn vocabulary(tokenizer: &Value, pre: Option<&str>) -> (tempfile::TempDir, ModelSource) {
    let mut file = Writer::default();
    file.key("general.architecture", &Meta::Text("llama"));
    convert::tokenizer(&mut file, tokenizer, pre, &SPECIAL);
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("vocab.gguf");
    std::fs::write(&path, file.bytes()).expect("a file");
    let gguf = Gguf::open(&path).unwrap_or_else(|error| panic!("{error}"));
    (directory, ModelSource::Gguf(Arc::new(gguf)))
}
