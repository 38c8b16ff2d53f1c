//! A GGUF file of the shape that a config.json describes, with the weights that
//! `--load-format dummy` makes of it: the same numbers in another container.
//!
//! Knows the Qwen3 family, whose tensors are stored alike on both sides. The vocabulary is made
//! up: the 256 byte tokens of byte-level BPE, then a word for each id.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, ensure};
use half::bf16;
use millstream_backends::candle;
use serde_json::Value;

/// What a tensor's data begins at a multiple of.
const ALIGNMENT: usize = 32;
/// Types of tensors.
const F32: u32 = 0;
const BF16: u32 = 30;
/// `general.file_type` of a file whose matrices are bf16.
const MOSTLY_BF16: u32 = 32;

/// The numbers of a model, by the names of config.json.
pub(crate) struct Shape {
    pub(crate) vocab: usize,
    pub(crate) hidden: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    inter: usize,
    max_positions: usize,
    rope_theta: f64,
    eps: f64,
    eos_id: usize,
    tied: bool,
}

impl Shape {
    /// Reads a config.json.
    pub(crate) fn read(config: &Path) -> anyhow::Result<Shape> {
        let json = std::fs::read(config).with_context(|| format!("{}", config.display()))?;
        let json: Value = serde_json::from_slice(&json)?;
        let family = &json["model_type"];
        ensure!(family == "qwen3", "model_type ({family}) must be \"qwen3\" to be written as GGUF");
        let float = |key| json[key].as_f64().with_context(|| format!("`{key}` is no number"));
        let int = |key| json[key].as_u64().with_context(|| format!("`{key}` is no whole number"));
        let int = |key| int(key).map(|int| int as usize);
        Ok(Shape {
            vocab: int("vocab_size")?,
            hidden: int("hidden_size")?,
            layers: int("num_hidden_layers")?,
            heads: int("num_attention_heads")?,
            kv_heads: int("num_key_value_heads")?,
            head_dim: int("head_dim")?,
            inter: int("intermediate_size")?,
            max_positions: int("max_position_embeddings")?,
            rope_theta: float("rope_theta")?,
            eps: float("rms_norm_eps")?,
            eos_id: int("eos_token_id")?,
            tied: json["tie_word_embeddings"] == true,
        })
    }

    /// Elements of the matrices of all layers.
    pub(crate) fn layer_weights(&self) -> usize {
        let attention = self.hidden * self.head_dim * 2 * (self.heads + self.kv_heads);
        self.layers * (attention + 3 * self.hidden * self.inter)
    }

    /// Elements of the head.
    pub(crate) fn head_weights(&self) -> usize {
        self.vocab * self.hidden
    }

    fn tensors(&self) -> Vec<Tensor> {
        let matrix = |gguf: &str, ours: &str, shape| Tensor::new(gguf, ours, shape);
        let vector = |gguf: &str, ours: &str, len| Tensor::new(gguf, ours, [1, len]);
        let (hidden, inter, head) = (self.hidden, self.inter, self.head_dim);
        let (q, kv) = (self.heads * head, self.kv_heads * head);
        let mut all = vec![
            matrix("token_embd", "model.embed_tokens", [self.vocab, hidden]),
            vector("output_norm", "model.norm", hidden),
        ];
        if !self.tied {
            all.push(matrix("output", "lm_head", [self.vocab, hidden]));
        }
        for layer in 0..self.layers {
            let tensors = [
                ("attn_norm", "input_layernorm", [1, hidden]),
                ("attn_q", "self_attn.q_proj", [q, hidden]),
                ("attn_k", "self_attn.k_proj", [kv, hidden]),
                ("attn_v", "self_attn.v_proj", [kv, hidden]),
                ("attn_output", "self_attn.o_proj", [hidden, q]),
                ("attn_q_norm", "self_attn.q_norm", [1, head]),
                ("attn_k_norm", "self_attn.k_norm", [1, head]),
                ("ffn_norm", "post_attention_layernorm", [1, hidden]),
                ("ffn_gate", "mlp.gate_proj", [inter, hidden]),
                ("ffn_up", "mlp.up_proj", [inter, hidden]),
                ("ffn_down", "mlp.down_proj", [hidden, inter]),
            ];
            all.extend(tensors.map(|(gguf, ours, shape)| {
                let (gguf, ours) = (format!("blk.{layer}.{gguf}"), ours);
                Tensor::new(&gguf, &format!("model.layers.{layer}.{ours}"), shape)
            }));
        }
        all
    }

    fn metadata(&self) -> Metadata {
        let mut metadata = Metadata::default();
        metadata.string("general.architecture", "qwen3");
        metadata.string("general.name", "random weights");
        metadata.u32("general.file_type", MOSTLY_BF16);
        for (key, value) in [
            ("block_count", self.layers),
            ("context_length", self.max_positions),
            ("embedding_length", self.hidden),
            ("feed_forward_length", self.inter),
            ("attention.head_count", self.heads),
            ("attention.head_count_kv", self.kv_heads),
            ("attention.key_length", self.head_dim),
            ("attention.value_length", self.head_dim),
        ] {
            metadata.u32(&format!("qwen3.{key}"), value as u32);
        }
        metadata.f32("qwen3.rope.freq_base", self.rope_theta as f32);
        metadata.f32("qwen3.attention.layer_norm_rms_epsilon", self.eps as f32);
        metadata.string("tokenizer.ggml.model", "gpt2");
        metadata.string("tokenizer.ggml.pre", "qwen2");
        metadata.strings("tokenizer.ggml.tokens", &vocabulary(self.vocab));
        // Every token is a normal one.
        metadata.i32s("tokenizer.ggml.token_type", &vec![1; self.vocab]);
        metadata.strings("tokenizer.ggml.merges", &["t 1".to_owned()]);
        metadata.u32("tokenizer.ggml.eos_token_id", self.eos_id as u32);
        metadata
    }
}

/// Writes the file.
pub(crate) fn write(shape: &Shape, path: &Path) -> anyhow::Result<()> {
    let (tensors, metadata) = (shape.tensors(), shape.metadata());
    let mut head = Vec::new();
    head.extend_from_slice(b"GGUF");
    head.extend_from_slice(&3u32.to_le_bytes());
    head.extend_from_slice(&(tensors.len() as u64).to_le_bytes());
    head.extend_from_slice(&metadata.count.to_le_bytes());
    head.extend_from_slice(&metadata.bytes);
    let mut offset = 0;
    for tensor in &tensors {
        string(&mut head, &tensor.name);
        // The dimension whose elements lie side by side comes first.
        let [rows, columns] = tensor.shape.map(|n| n as u64);
        let dimensions = if tensor.is_vector() { vec![columns] } else { vec![columns, rows] };
        head.extend_from_slice(&(dimensions.len() as u32).to_le_bytes());
        dimensions.iter().for_each(|n| head.extend_from_slice(&n.to_le_bytes()));
        head.extend_from_slice(&(if tensor.is_vector() { F32 } else { BF16 }).to_le_bytes());
        head.extend_from_slice(&(offset as u64).to_le_bytes());
        offset += tensor.num_bytes().next_multiple_of(ALIGNMENT);
    }
    head.resize(head.len().next_multiple_of(ALIGNMENT), 0);

    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    file.write_all(&head)?;
    for tensor in &tensors {
        tensor.write(&mut file)?;
        let padding = tensor.num_bytes().next_multiple_of(ALIGNMENT) - tensor.num_bytes();
        file.write_all(&vec![0; padding])?;
    }
    Ok(file.flush()?)
}

struct Tensor {
    name: String,
    /// Its name in a checkpoint of Transformers, which its weights follow from.
    checkpoint_name: String,
    /// Rows, columns; a vector has one row.
    shape: [usize; 2],
}

impl Tensor {
    fn new(name: &str, checkpoint_name: &str, shape: [usize; 2]) -> Tensor {
        Tensor {
            name: format!("{name}.weight"),
            checkpoint_name: format!("{checkpoint_name}.weight"),
            shape,
        }
    }

    fn is_vector(&self) -> bool {
        self.shape[0] == 1
    }

    fn num_bytes(&self) -> usize {
        self.shape[0] * self.shape[1] * if self.is_vector() { 4 } else { 2 }
    }

    fn write(&self, file: &mut impl Write) -> std::io::Result<()> {
        let len = self.shape[0] * self.shape[1];
        let mut values = vec![bf16::ZERO; len];
        candle::dummy_tensor(&self.checkpoint_name, &mut values);
        let mut values = values.iter();
        match self.is_vector() {
            true => values.try_for_each(|value| file.write_all(&value.to_f32().to_le_bytes())),
            false => values.try_for_each(|value| file.write_all(&value.to_le_bytes())),
        }
    }
}

/// Keys and values, as they stand in the file.
#[derive(Default)]
struct Metadata {
    count: u64,
    bytes: Vec<u8>,
}

impl Metadata {
    /// A key, and the number of its value's type.
    fn key(&mut self, key: &str, kind: u32) {
        self.count += 1;
        string(&mut self.bytes, key);
        self.bytes.extend_from_slice(&kind.to_le_bytes());
    }

    fn u32(&mut self, key: &str, value: u32) {
        self.key(key, 4);
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    fn f32(&mut self, key: &str, value: f32) {
        self.key(key, 6);
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    fn string(&mut self, key: &str, value: &str) {
        self.key(key, 8);
        string(&mut self.bytes, value);
    }

    fn i32s(&mut self, key: &str, values: &[i32]) {
        self.array(key, 5, values.len());
        values.iter().for_each(|value| self.bytes.extend_from_slice(&value.to_le_bytes()));
    }

    fn strings(&mut self, key: &str, values: &[String]) {
        self.array(key, 8, values.len());
        values.iter().for_each(|value| string(&mut self.bytes, value));
    }

    fn array(&mut self, key: &str, kind: u32, len: usize) {
        self.key(key, 9);
        self.bytes.extend_from_slice(&kind.to_le_bytes());
        self.bytes.extend_from_slice(&(len as u64).to_le_bytes());
    }
}

fn string(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend_from_slice(&(text.len() as u64).to_le_bytes());
    bytes.extend_from_slice(text.as_bytes());
}

/// The texts of tokens: each byte as byte-level BPE writes it, then ` t256`, ` t257` and so on.
fn vocabulary(size: usize) -> Vec<String> {
    let is_shown = |byte: &u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    // What cannot be shown is written as the characters from 256 on, in the order of the bytes.
    let hidden: Vec<u32> = (0..256).filter(|byte| !is_shown(byte)).collect();
    let character = |byte: u32| match hidden.binary_search(&byte) {
        Ok(place) => 256 + place as u32,
        Err(_) => byte,
    };
    let bytes = (0..256).filter_map(|byte| char::from_u32(character(byte))).map(String::from);
    bytes.chain((256..size).map(|id| format!("\u{120}t{id}"))).take(size).collect()
}
