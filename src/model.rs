//! Which model the command line means, and what follows from it for both processes.

use std::path::Path;

use anyhow::bail;
use millstream_backends::ModelSource;

use crate::args::ModelArgs;
use crate::demo;

/// The files of the model; an error if there cannot be any.
pub(crate) fn source(args: &ModelArgs) -> anyhow::Result<ModelSource> {
    let Some(model_id) = &args.model_id else {
        return Ok(ModelSource::Embedded(&demo::FILES));
    };
    let directory = Path::new(model_id);
    if !directory.is_dir() {
        let what = if directory.exists() { "is not a directory" } else { "does not exist" };
        bail!(
            "model `{model_id}` {what}; --model-id takes a local directory with config.json and \
             the weights as *.safetensors"
        );
    }
    if !directory.join("config.json").is_file() {
        bail!("model `{model_id}` has no config.json; is it a directory in Hugging Face layout?");
    }
    Ok(ModelSource::Directory(directory.to_owned()))
}

/// The name under which the model is served, unless the user gives another.
pub(crate) fn name(args: &ModelArgs) -> String {
    match (&args.mock, &args.model_id) {
        (Some(_), _) => "mock".to_owned(),
        (None, Some(model_id)) => model_id.clone(),
        (None, None) => demo::NAME.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        model: ModelArgs,
    }

    fn args(model_id: &Path) -> ModelArgs {
        Cli::parse_from(["x", "--model-id", model_id.to_str().unwrap()]).model
    }

    #[test]
    fn a_model_is_a_directory_that_holds_a_config() {
        let dir = tempfile::tempdir().unwrap();
        let error = |path: &Path| source(&args(path)).unwrap_err().to_string();
        assert!(error(&dir.path().join("absent")).contains("does not exist"));
        assert!(error(dir.path()).contains("no config.json"));
        let config = dir.path().join("config.json");
        std::fs::write(&config, "{}").unwrap();
        assert!(error(&config).contains("is not a directory"));
        assert!(matches!(source(&args(dir.path())), Ok(ModelSource::Directory(_))));
    }

    #[test]
    fn the_embedded_demo_has_all_that_a_model_needs() {
        let source = ModelSource::Embedded(&demo::FILES);
        for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
            let bytes = source.read(name).unwrap().expect(name);
            serde_json::from_slice::<serde_json::Value>(&bytes).expect(name);
        }
        let size: usize = demo::FILES.iter().map(|(_, bytes)| bytes.len()).sum();
        assert!(size <= 8_000_000, "{size} bytes");
    }
}
