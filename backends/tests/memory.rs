//! A model that is loaded takes the memory of its weights, and no more on the way.
//!
//! The only test of this executable: the system counts the memory of a process, not of a test.

mod checkpoint;

use millstream_backends::candle::{self, LoadOptions};
use millstream_backends::{Model, ModelSource, Progress};
use serde_json::json;

/// What loading may take beside the weights: the cache, the activations of the step that is timed,
/// stacks, tables of rotations.
const BESIDE: u64 = 8 << 20;

#[test]
fn loading_takes_the_memory_of_the_weights_once() {
    // 75 MB, a third of it in one matrix.
    let config = json!({
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_act": "silu",
        "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 2,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 128,
        "vocab_size": 12_000, "max_position_embeddings": 512, "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
    });
    let directory = tempfile::tempdir().expect("a temporary directory");
    let bytes = checkpoint::write(directory.path(), &config).expect("a checkpoint");
    let source = ModelSource::Directory(directory.path().to_owned());
    let options = LoadOptions {
        kv_cache_memory: Some(4 << 20),
        max_batch_tokens: 16,
        ..LoadOptions::default()
    };
    let Some(before) = checkpoint::peak_memory() else {
        return println!("skipped: this system does not say how much memory a process has had");
    };
    let model = candle::load(&source, &options, &Progress::default()).expect("it loads");
    let grown = checkpoint::peak_memory().expect("it was told before") - before;
    assert_eq!(2 * model.info().num_parameters, bytes);
    println!("{bytes} bytes of weights, {grown} bytes of memory");
    assert!(grown < bytes * 115 / 100 + BESIDE, "{grown} bytes for {bytes} of weights");
    assert!(grown > bytes / 2, "{grown} bytes cannot hold {bytes} of weights");
}
