//! How fast a checkpoint is loaded, and how much memory that takes at most.
//!
//! `cargo bench -p millstream-benches --bench load [-- CONFIG]`, where CONFIG is the config.json of
//! a Qwen3 model; without it, that of Qwen3-0.6B. Writes a checkpoint of that shape in bf16 to a
//! temporary directory, and loads it in processes of their own, each a few times: the system counts
//! the most memory that a process has had. The checkpoint was just written, so it is read from
//! memory; what a disk adds is the disk's.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use millstream_backends::candle::{self, LoadFormat, LoadOptions, Quantization, WeightDtype};
use millstream_backends::{Model, ModelSource, Progress};

#[path = "../../backends/tests/checkpoint/mod.rs"]
mod checkpoint;

const CONFIG: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/configs/qwen3-0.6b.json");
/// Says to a process that it is one of those that load, and what.
const CHILD: &str = "--load";
const TIMES: usize = 3;

fn main() {
    let arguments: Vec<String> = std::env::args().filter(|word| word != "--bench").collect();
    if let [_, child, directory, what] = arguments.as_slice()
        && child == CHILD
    {
        return load(Path::new(directory), what);
    }
    let config = arguments.get(1).map_or(CONFIG, String::as_str);
    let json = std::fs::read(config).expect("a configuration");
    let json = serde_json::from_slice(&json).expect("a configuration in JSON");
    let directory = tempfile::tempdir().expect("a temporary directory");
    let bytes = checkpoint::write(directory.path(), &json).expect("room for a checkpoint");
    println!("{config}: {:.2} GB of weights in bf16", bytes as f64 / 1e9);
    println!("{:12} {:>9} {:>9} {:>12}", "", "s", "GB/s", "peak memory");
    let this = std::env::current_exe().expect("this executable");
    for what in ["bfloat16", "float32", "int8", "int4", "dummy"] {
        for _ in 0..TIMES {
            let mut child = Command::new(&this);
            child.arg(CHILD).arg(directory.path()).arg(what);
            assert!(child.status().expect("a process").success(), "{what} is loaded");
        }
    }
}

/// Loads the checkpoint, and prints a line.
fn load(directory: &Path, what: &str) {
    let source = ModelSource::Directory(directory.to_owned());
    let mut options = LoadOptions {
        kv_cache_memory: Some(256 << 20),
        max_model_len: Some(1024),
        max_batch_tokens: 16,
        ..LoadOptions::default()
    };
    match what {
        "int8" => options.quantize = Some(Quantization::Int8),
        "int4" => options.quantize = Some(Quantization::Int4),
        "dummy" => options.load_format = LoadFormat::Dummy,
        dtype => options.dtype = Some(dtype.parse::<WeightDtype>().expect("a dtype")),
    }
    let begin = Instant::now();
    let model = candle::load(&source, &options, &Progress::default()).expect("it loads");
    let seconds = begin.elapsed().as_secs_f64();
    let read = 2 * model.info().num_parameters;
    let peak = checkpoint::peak_memory().unwrap_or_default();
    let (rate, peak) = (read as f64 / 1e9 / seconds, peak as f64 / 1e9);
    println!("{what:12} {seconds:9.2} {rate:9.2} {peak:9.2} GB");
}
