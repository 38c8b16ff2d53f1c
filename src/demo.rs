//! The demo model, part of the executable: what is served where no other model is named.
//!
//! `src/demo/README.md` says what it can do and how it was trained.

/// Name under which the demo is served.
pub(crate) const NAME: &str = "millstream-demo";

/// Something that it answers well.
pub(crate) const QUESTION: &str = "Tell me a story about a fox and a red kite.";

/// Its files in Hugging Face layout, names and contents.
pub(crate) static FILES: [(&str, &[u8]); 5] = [
    ("config.json", include_bytes!("demo/model/config.json")),
    ("generation_config.json", include_bytes!("demo/model/generation_config.json")),
    ("model.safetensors", include_bytes!("demo/model/model.safetensors")),
    ("tokenizer.json", include_bytes!("demo/model/tokenizer.json")),
    ("tokenizer_config.json", include_bytes!("demo/model/tokenizer_config.json")),
];
