//! What a file is read as, and what is refused in which words.

#[path = "../../tests/fixture/writer.rs"]
mod writer;

use super::*;
use serde_json::{Value, json};
use writer::{Meta, Writer};

/// The metadata of a small Qwen 3 with a byte-level tokenizer, and two of its tensors.
pub(super) fn tiny() -> Writer {
    let mut file = Writer::default();
    file.key("general.architecture", &Meta::Text("qwen3"));
    file.key("general.name", &Meta::Text("Tiny"));
    file.key("general.sampling.temp", &Meta::F32(0.6));
    file.key("general.sampling.top_k", &Meta::U32(20));
    for (key, value) in [
        ("embedding_length", 64),
        ("block_count", 2),
        ("context_length", 128),
        ("feed_forward_length", 96),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
        ("attention.key_length", 32),
        ("attention.value_length", 32),
    ] {
        file.key(&format!("qwen3.{key}"), &Meta::U32(value));
    }
    file.key("qwen3.attention.layer_norm_rms_epsilon", &Meta::F32(1e-6));
    file.key("qwen3.rope.freq_base", &Meta::F32(1e6));
    tokenizer(&mut file);
    file.tensor("token_embd.weight", &[6, 64], 8, vec![1; 6 * 68]);
    file.floats("blk.1.attn_q_norm.weight", &[32], &[1.0; 32]);
    file
}

fn tokenizer(file: &mut Writer) {
    let texts = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    file.key("tokenizer.ggml.model", &Meta::Text("gpt2"));
    file.key("tokenizer.ggml.pre", &Meta::Text("qwen2"));
    let tokens = texts(&["a", "b", "ab", "<|im_end|>", "<think>", "[PAD5]"]);
    file.key("tokenizer.ggml.tokens", &Meta::Texts(&tokens));
    file.key("tokenizer.ggml.token_type", &Meta::Ints(&[1, 1, 1, 3, 4, 4]));
    file.key("tokenizer.ggml.merges", &Meta::Texts(&texts(&["a b"])));
    file.key("tokenizer.ggml.eos_token_id", &Meta::U32(3));
    file.key("tokenizer.ggml.add_bos_token", &Meta::Bool(false));
    file.key("tokenizer.chat_template", &Meta::Text("{{ messages }}"));
}

fn open(file: &Writer) -> Result<Gguf, LoadError> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("m.gguf");
    std::fs::write(&path, file.bytes()).unwrap();
    Gguf::open(&path)
}

fn read(gguf: &Gguf, name: &str) -> Value {
    serde_json::from_slice(&gguf.file(name).unwrap().expect(name)).unwrap()
}

#[test]
fn metadata_read_as_the_files_of_a_directory() {
    let gguf = open(&tiny()).unwrap();
    let config = json!({
        "vocab_size": 6, "hidden_size": 64, "num_hidden_layers": 2,
        "max_position_embeddings": 128, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 32, "tie_word_embeddings": true, "intermediate_size": 96,
        "rms_norm_eps": 1e-6, "rope_theta": 1e6, "model_type": "qwen3",
    });
    assert_eq!(read(&gguf, "config.json"), config);
    let generation =
        json!({ "eos_token_id": [3], "temperature": 0.6, "top_k": 20, "do_sample": true });
    assert_eq!(read(&gguf, "generation_config.json"), generation);
    let tokenizer = json!({
        "eos_token": "<|im_end|>", "add_bos_token": false, "add_eos_token": false,
        "chat_template": "{{ messages }}",
    });
    assert_eq!(read(&gguf, "tokenizer_config.json"), tokenizer);
    let tokenizer = read(&gguf, "tokenizer.json");
    let vocab = json!({ "a": 0, "b": 1, "ab": 2, "<|im_end|>": 3, "<think>": 4 });
    assert_eq!(tokenizer["model"]["vocab"], vocab);
    assert_eq!(tokenizer["model"]["merges"], json!([["a", "b"]]));
    let added = tokenizer["added_tokens"].as_array().unwrap();
    let added: Vec<_> = added.iter().map(|token| (&token["id"], &token["special"])).collect();
    assert_eq!(added, [(&json!(3), &json!(true)), (&json!(4), &json!(false))]);
    assert!(gguf.file("model.safetensors").unwrap().is_none());
}

#[test]
fn tensors_have_the_names_and_shapes_of_a_checkpoint() {
    let gguf = open(&tiny()).unwrap();
    let tensors = gguf.tensors().unwrap();
    let found: Vec<_> =
        tensors.iter().map(|(name, t)| (name.as_str(), t.kind, t.shape.as_slice())).collect();
    let want: [(&str, TensorType, &[usize]); 2] = [
        ("model.layers.1.self_attn.q_norm.weight", TensorType::F32, &[32]),
        ("model.embed_tokens.weight", TensorType::Q8_0, &[6, 64]),
    ];
    assert_eq!(found, want);
    let ones = &gguf.bytes().bytes()[tensors[0].1.range.clone()];
    assert_eq!(ones, 1f32.to_le_bytes().repeat(32));
}

#[test]
fn rows_that_alternate_are_found_where_they_are() {
    let order = RowOrder::Alternating(6);
    let stored: Vec<usize> = (0..12).map(|n| order.stored(n)).collect();
    assert_eq!(stored, [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]);
}

/// What the making of `name` is refused with, after a key was added.
fn refusal(name: &str, key: &str, value: &Meta<'_>) -> String {
    let mut file = tiny();
    file.key(key, value);
    match open(&file).and_then(|gguf| gguf.file(name)) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("{key} is accepted"),
    }
}

#[test]
fn what_is_not_understood_is_refused_by_file_key_and_value() {
    let (config, tokenizer) = ("config.json", "tokenizer.json");
    for (name, key, value, want) in [
        (config, "qwen3.new_rule", Meta::F32(2.0), "m.gguf`: `qwen3.new_rule` is 2, which is not"),
        (config, "qwen3.rope.scaling.type", Meta::Text("dynamic"), "`qwen3.rope.scaling.type` is"),
        (config, "qwen3.rope.scaling.type", Meta::Text("yarn"), "rope.scaling.factor` is missing"),
        (config, "qwen3.attention.sliding_window", Meta::U32(7), "sliding_window` is 7, which"),
        (config, "qwen3.attention.causal", Meta::Bool(false), "attention.causal` is false"),
        (config, "qwen3.pooling_type", Meta::U32(2), "`qwen3.pooling_type` is 2, which is not"),
        (config, "qwen3.block_count", Meta::U32(2), "`qwen3.block_count` is given twice"),
        (config, "general.alignment", Meta::U32(24), "must be a power of two of at most 2^20, not"),
        (config, "split.count", Meta::U32(3), "`split.count` is 3, which is not supported; join"),
        (tokenizer, "tokenizer.ggml.new", Meta::Bool(true), "`tokenizer.ggml.new` is true, which"),
        (tokenizer, "tokenizer.ggml.bos_token_id", Meta::U32(9), "is 9, the file has 6 tokens"),
        (tokenizer, "tokenizer.ggml.add_eos_token", Meta::U32(1), "must be true or false, not 1"),
    ] {
        let error = refusal(name, key, &value);
        assert!(error.contains(want), "{error}");
    }
}

#[test]
fn architectures_and_tokenizers_that_are_not_known_are_named() {
    let with = |architecture: &str, model: &str, pre: &str| {
        let mut file = Writer::default();
        file.key("general.architecture", &Meta::Text(architecture));
        file.key("tokenizer.ggml.model", &Meta::Text(model));
        file.key("tokenizer.ggml.pre", &Meta::Text(pre));
        file.key("tokenizer.ggml.tokens", &Meta::Texts(&["a".to_owned()]));
        open(&file).unwrap()
    };
    let error = |gguf: &Gguf, name: &str| gguf.file(name).unwrap_err().to_string();
    let found = error(&with("mamba", "gpt2", "qwen2"), "config.json");
    assert!(found.contains("`general.architecture` is `mamba`, which is not supported"), "{found}");
    let found = error(&with("llama", "bert", "qwen2"), "tokenizer.json");
    assert!(found.contains("`tokenizer.ggml.model` is `bert`, which is not supported"), "{found}");
    let found = error(&with("llama", "gpt2", "kimi-k2"), "tokenizer.json");
    assert!(found.contains("`tokenizer.ggml.pre` is `kimi-k2`, which is not supported"), "{found}");
}

#[test]
fn a_broken_header_names_its_rule_and_its_values() {
    let whole = tiny().bytes();
    let with = |at: usize, bytes: &[u8]| {
        let mut file = whole.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        header::read(&file).unwrap_err()
    };
    let find = |text: &[u8]| whole.windows(text.len()).position(|bytes| bytes == text).unwrap();
    // Behind its name: the number of dimensions, two of them, the type, the offset.
    let embedding = find(b"token_embd.weight") + b"token_embd.weight".len();
    for (error, want) in [
        (header::read(b"GGML").unwrap_err(), "does not begin with `GGUF`"),
        (with(4, &1u32.to_le_bytes()), "version 1 is not supported (supported: 2, 3)"),
        (with(4, &3u32.to_be_bytes()), "the file is big-endian"),
        (with(8, &u64::MAX.to_le_bytes()), "a tensor's name"),
        (with(embedding, &5u32.to_le_bytes()), "its 5 dimensions exceed the limit of 4"),
        (with(embedding + 4, &63u64.to_le_bytes()), "rows of 63 are no whole number of blocks of"),
        (with(embedding + 12, &u64::MAX.to_le_bytes()), "does not fit in memory"),
        (with(embedding + 20, &23u32.to_le_bytes()), "`token_embd.weight` is stored as IQ4_XS"),
        (with(embedding + 24, &8u64.to_le_bytes()), "its offset (8) is no multiple of 32"),
        (with(embedding + 24, &4096u64.to_le_bytes()), "the file is truncated"),
        (with(embedding + 24, &416u64.to_le_bytes()), "is inside tensor `"),
        (header::read(&whole[..whole.len() - 128]).unwrap_err(), "the file is truncated"),
    ] {
        assert!(error.contains(want), "{error} should say {want}");
    }
}

fn fixture() -> Gguf {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/gguf/blocks.gguf");
    Gguf::open(Path::new(path)).unwrap()
}

#[test]
fn a_file_by_the_format_s_own_writer_has_every_kind_of_value() {
    let gguf = fixture();
    let keys = gguf.keys();
    for (key, want) in [
        ("every.u8", header::Value::Unsigned(200)),
        ("every.i8", header::Value::Signed(-100)),
        ("every.u16", header::Value::Unsigned(60_000)),
        ("every.i16", header::Value::Signed(-30_000)),
        ("every.u32", header::Value::Unsigned(4_000_000_000)),
        ("every.i32", header::Value::Signed(-2_000_000_000)),
        ("every.u64", header::Value::Unsigned((1 << 63) + 1)),
        ("every.i64", header::Value::Signed(-(1 << 62))),
        ("every.f64", header::Value::F64(0.1)),
        ("every.bool", header::Value::Bool(true)),
    ] {
        assert_eq!(gguf.header.metadata[key], want, "{key}");
    }
    // The decimal that was written, not its neighbour in 32 bits.
    assert_eq!(keys.float("every.f32").unwrap(), Some(1e-6));
    assert_eq!(keys.string("every.string").unwrap(), Some("größer"));
    assert_eq!(keys.strings("every.strings").unwrap().unwrap(), ["a", "", "你好"]);
    assert_eq!(keys.floats("every.i32s").unwrap().unwrap(), [1.0, -2.0, 3.0]);
    assert_eq!(keys.floats("every.f32s").unwrap().unwrap(), [0.5, -1.5]);
}

#[test]
fn blocks_are_the_numbers_that_the_format_s_own_reader_makes_of_them() {
    let gguf = fixture();
    let (mut num_kinds, file) = (0, gguf.bytes().bytes());
    for (name, tensor) in &gguf.header.tensors {
        let Some(want) = gguf.header.tensors.get(&format!("{name}.numbers")) else { continue };
        num_kinds += 1;
        assert_eq!((tensor.kind.name(), &tensor.shape), (name.as_str(), &want.shape));
        let mut numbers = vec![0f32; tensor.shape.iter().product()];
        blocks::dequantize(tensor.kind, &file[tensor.range.clone()], &mut numbers);
        let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        assert!(bytes == file[want.range.clone()], "{name}");
    }
    assert_eq!(num_kinds, 11);
}
