//! Checkpoints that are as large as one likes: the shape of a Qwen3 configuration in bf16, with
//! weights that no model was trained to. Written piece by piece, so that who writes one does not
//! need the memory that is then measured.

use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

/// Writes config.json and model.safetensors to `directory`; gives the bytes of the weights.
pub(crate) fn write(directory: &Path, config: &Value) -> io::Result<u64> {
    std::fs::write(directory.join("config.json"), config.to_string())?;
    let mut header = Map::new();
    let mut end = 0;
    for (name, shape) in tensors(config) {
        let start = end;
        end += 2 * shape.iter().product::<u64>();
        let tensor = json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, end]});
        header.insert(name, tensor);
    }
    let header = Value::Object(header).to_string();
    let mut file = BufWriter::new(File::create(directory.join("model.safetensors"))?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    // From -0.03 to 0.03, in no order that matters.
    let value = |i: u32| ((i.wrapping_mul(2_654_435_761) >> 16) as f32 / 65536.0 - 0.5) * 0.06;
    let piece: Vec<u8> =
        (0..1 << 19).flat_map(|i| ((value(i).to_bits() >> 16) as u16).to_le_bytes()).collect();
    let mut left = end as usize;
    while left > 0 {
        let len = left.min(piece.len());
        file.write_all(&piece[..len])?;
        left -= len;
    }
    file.flush()?;
    Ok(end)
}

/// The tensors of such a model, by name, with their shapes.
fn tensors(config: &Value) -> Vec<(String, Vec<u64>)> {
    let number = |key: &str| config[key].as_u64().unwrap_or_else(|| panic!("{key} is a number"));
    let (hidden, inter) = (number("hidden_size"), number("intermediate_size"));
    let head = number("head_dim");
    let (q, kv) = (number("num_attention_heads") * head, number("num_key_value_heads") * head);
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_owned(), vec![number("vocab_size"), hidden]),
        ("model.norm.weight".to_owned(), vec![hidden]),
    ];
    for layer in 0..number("num_hidden_layers") {
        let mut add = |part: &str, shape: &[u64]| {
            tensors.push((format!("model.layers.{layer}.{part}.weight"), shape.to_vec()));
        };
        add("input_layernorm", &[hidden]);
        add("self_attn.q_proj", &[q, hidden]);
        add("self_attn.k_proj", &[kv, hidden]);
        add("self_attn.v_proj", &[kv, hidden]);
        add("self_attn.o_proj", &[hidden, q]);
        add("self_attn.q_norm", &[head]);
        add("self_attn.k_norm", &[head]);
        add("post_attention_layernorm", &[hidden]);
        add("mlp.gate_proj", &[inter, hidden]);
        add("mlp.up_proj", &[inter, hidden]);
        add("mlp.down_proj", &[hidden, inter]);
    }
    if config["tie_word_embeddings"] != json!(true) {
        tensors.push(("lm_head.weight".to_owned(), vec![number("vocab_size"), hidden]));
    }
    tensors
}

/// The most memory that this process has had, in bytes, where the system says.
pub(crate) fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}
