//! A GGUF file: the demo model, written as one, answers as the demo model does.

#[path = "../../backends/tests/fixture/convert.rs"]
#[allow(dead_code, reason = "what other tests do with a fixture, this one does not")]
mod convert;
#[path = "../../backends/tests/fixture/writer.rs"]
#[allow(dead_code, reason = "what other tests do with a fixture, this one does not")]
mod writer;

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;
use writer::Meta;

use crate::common::{Server, chat};

/// The demo model as one file, in the precision of its checkpoint, in a directory of its own.
fn demo() -> (TempDir, PathBuf) {
    let demo = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src/demo/model"));
    let json = |name: &str| -> Value {
        serde_json::from_slice(&std::fs::read(demo.join(name)).unwrap()).unwrap()
    };
    let mut file = convert::convert(demo, "llama", &convert::as_bf16);
    let special = [("bos", "<|begin|>"), ("eos", "<|end|>"), ("padding", "<|end|>")];
    convert::tokenizer(&mut file, &json("tokenizer.json"), Some("gpt-2"), &special);
    let config = json("tokenizer_config.json");
    let template = config["chat_template"].as_str().unwrap();
    file.key("tokenizer.chat_template", &Meta::Text(template));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("demo.gguf");
    std::fs::write(&path, file.bytes()).unwrap();
    (directory, path)
}

#[test]
fn a_file_and_its_directory_answer_as_the_checkpoint_does() {
    let (directory, path) = demo();
    let ask = |flags: &[&str]| {
        let server = Server::start(flags);
        ["Tell me a story about a fox and a red kite.", "What is 2 + 3?"].map(|question| {
            let answer = server.chat(&chat(question, json!({ "max_tokens": 100 })));
            (answer["choices"][0].clone(), answer["usage"].clone())
        })
    };
    let checkpoint = ask(&[]);
    // A token that the file names ends a text.
    assert_eq!(checkpoint[1].0["finish_reason"], "stop");
    for model in [path.as_path(), directory.path()] {
        assert_eq!(ask(&["--model-id", model.to_str().unwrap()]), checkpoint);
    }
}
