//! A step that is like the one before it takes no memory for what its layers compute: all that they
//! allocate is a list of a few dimensions, which candle makes for each tensor that is written.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use millstream_backends::candle::{self, CandleModel, LoadFormat, LoadOptions, WeightDtype};
use millstream_backends::{Batch, BatchRow, Model, ModelSource, Progress, Sequence};

/// The system's allocator, counted.
struct Counting;

static COUNT: AtomicUsize = AtomicUsize::new(0);
static BYTES: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on as it is.
#[allow(unsafe_code)] // An allocator is unsafe to implement.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Relaxed);
        BYTES.fetch_add(layout.size(), Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Tensors that a layer writes.
const WRITES: usize = 13;
/// Bytes of candle's list for each.
const LIST: usize = 64;

/// A model of so many layers, with random weights.
fn model(layers: usize, dtype: WeightDtype) -> CandleModel {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/parity/qwen3");
    let config = std::fs::read(fixtures.join("config.json")).expect("a configuration");
    let mut config: serde_json::Value = serde_json::from_slice(&config).expect("JSON");
    config["num_hidden_layers"] = layers.into();
    config["layer_types"] = vec!["full_attention"; layers].into();
    let directory = tempfile::tempdir().expect("a temporary directory");
    std::fs::write(directory.path().join("config.json"), config.to_string())
        .expect("it is written");
    let options = LoadOptions {
        load_format: LoadFormat::Dummy,
        dtype: Some(dtype),
        kv_cache_memory: Some(4 << 20),
        ..LoadOptions::default()
    };
    let source = ModelSource::Directory(directory.path().to_owned());
    candle::load(&source, &options, &Progress::default()).expect("it loads")
}

/// How many allocations a decode step makes once it is warm, and how many bytes they take.
fn allocated(model: &mut CandleModel, rows: u32) -> (usize, usize) {
    let mut sequences: Vec<_> = (0..rows)
        .map(|index| Sequence {
            prompt_len: 4,
            tokens: vec![index + 1; 4],
            block_tables: vec![vec![index]],
            ..Sequence::default()
        })
        .collect();
    let mut step = || {
        let row = |(slot, sequence)| {
            let sequence: &Sequence = sequence;
            let len = if sequence.tokens.len() == 4 { 4 } else { 1 };
            let start = sequence.tokens.len() - len;
            BatchRow { slot: slot as u32, sequence, start, len, sample: true }
        };
        let batch = Batch::new(sequences.iter().enumerate().map(row).collect());
        let before = (COUNT.load(Relaxed), BYTES.load(Relaxed));
        let sampled = model.forward(&batch);
        let after = (COUNT.load(Relaxed), BYTES.load(Relaxed));
        assert!(sampled.iter().all(Result::is_ok));
        sequences.iter_mut().for_each(|sequence| sequence.tokens.push(3));
        (after.0 - before.0, after.1 - before.1)
    };
    for _ in 0..4 {
        step();
    }
    step()
}

#[test]
fn a_warm_step_takes_no_memory_for_what_its_layers_compute() {
    for dtype in [WeightDtype::Bf16, WeightDtype::F32] {
        for rows in [1, 20] {
            let few = allocated(&mut model(2, dtype), rows);
            let many = allocated(&mut model(9, dtype), rows);
            let per_layer = ((many.0 - few.0) / 7, (many.1 - few.1) / 7);
            println!("{dtype:?}, {rows} rows: {few:?}, and {per_layer:?} for each layer more");
            assert!(per_layer.0 <= WRITES && per_layer.1 <= WRITES * LIST, "{per_layer:?}");
        }
    }
}
