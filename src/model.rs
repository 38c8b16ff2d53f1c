//! Which model the command line means, and what follows from it for both processes.
//!
//! A model is a directory, or a GGUF file that stands for one; a directory may hold just such a file.
//!
//! A name of the hub is resolved once, by `serve`, before anything else needs the model: from then
//! on there is a directory, and its files are those of one commit. So a worker that is started
//! again, however much later, loads the weights that the router's tokenizer belongs to, asks no
//! server for them and needs no token, and `--worker-start-timeout` is about loading alone.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use millstream_backends::ModelSource;

use crate::args::{LoadFormat, ModelArgs};
use crate::demo;
use crate::hub::{Order, RepoId, Revision};

/// The branch that is meant where none is named.
const DEFAULT_REVISION: &str = "main";

/// What has to be downloaded before the model is in a directory, if anything.
///
/// A directory that exists is always the model: a name of the hub may also be a path.
pub(crate) fn download(args: &ModelArgs, revision: Option<&str>) -> anyhow::Result<Option<Order>> {
    let Some(model_id) = args.model_id.as_deref().filter(|_| args.mock.is_none()) else {
        return Ok(None);
    };
    if Path::new(model_id).exists() {
        return Ok(None);
    }
    let weights = args.load_format != LoadFormat::Dummy;
    Ok(Some(Order { weights, ..order(model_id, revision)? }))
}

/// All that a server needs of a model of the hub.
pub(crate) fn order(model_id: &str, revision: Option<&str>) -> anyhow::Result<Order> {
    if is_path(model_id) {
        bail!("model `{model_id}` does not exist: such a path is no name of a model on the hub");
    }
    Ok(Order {
        repo: RepoId::parse(model_id)?,
        // A variable that is set to nothing names none.
        revision: Revision::parse(revision.filter(|r| !r.is_empty()).unwrap_or(DEFAULT_REVISION))?,
        weights: true,
    })
}

/// The same arguments, for a model that is now in `directory`.
pub(crate) fn downloaded(args: &ModelArgs, directory: &Path) -> anyhow::Result<ModelArgs> {
    let directory = directory.to_str().with_context(|| {
        format!("the cache {} is no UTF-8; set HF_HUB_CACHE to one that is", directory.display())
    })?;
    Ok(ModelArgs { model_id: Some(directory.to_owned()), ..args.clone() })
}

/// True for what can only be meant as a path.
fn is_path(model_id: &str) -> bool {
    model_id.starts_with(['/', '.', '~'])
        || model_id.ends_with('/')
        || has_extension(Path::new(model_id), "gguf")
}

/// The files of the model; an error if there cannot be any.
pub(crate) fn source(args: &ModelArgs) -> anyhow::Result<ModelSource> {
    let Some(model_id) = &args.model_id else {
        return Ok(ModelSource::Embedded(&demo::FILES));
    };
    let path = Path::new(model_id);
    if has_extension(path, "gguf") && path.is_file() {
        return Ok(ModelSource::gguf(path)?);
    }
    if !path.is_dir() {
        let what = match path.exists() {
            true => "is neither a directory nor a file named *.gguf",
            false => "does not exist",
        };
        bail!(
            "model `{model_id}` {what}; a local model is a GGUF file, or a directory with \
             config.json and the weights as *.safetensors"
        );
    }
    // Weights in both forms are those of a checkpoint, with a copy.
    let ggufs = match files_of(path, "safetensors")?.is_empty() {
        true => files_of(path, "gguf")?,
        false => Vec::new(),
    };
    match ggufs.as_slice() {
        [] if path.join("config.json").is_file() => Ok(ModelSource::Directory(path.to_owned())),
        [] => {
            bail!(
                "model `{model_id}` has no config.json; is it a directory in Hugging Face layout?"
            )
        }
        [only] => Ok(ModelSource::gguf(only)?),
        [first, ..] => bail!(
            "model `{model_id}` has several GGUF files; name one of them, {} for example",
            first.display()
        ),
    }
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found.eq_ignore_ascii_case(extension))
}

/// The files of a directory that end so, by name.
fn files_of(directory: &Path, extension: &str) -> anyhow::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(directory)
        .with_context(|| format!("cannot read {}", directory.display()))?;
    let paths = entries.map(|entry| entry.map(|entry| entry.path()));
    let mut files: Vec<PathBuf> = paths.collect::<Result<_, _>>()?;
    files.retain(|path| has_extension(path, extension));
    files.sort();
    Ok(files)
}

/// The name under which the model is served, unless the user gives another.
pub(crate) fn name(args: &ModelArgs) -> String {
    match (&args.mock, &args.model_id) {
        (Some(_), _) => "mock".to_owned(),
        (None, Some(model_id)) => model_id.clone(),
        (None, None) => demo::NAME.to_owned(),
    }
}

/// The commit of a model that is in the hub's cache.
pub(crate) fn commit(args: &ModelArgs) -> Option<String> {
    let directory = Path::new(args.model_id.as_deref()?);
    let name = directory.file_name()?.to_str()?;
    let is_commit = name.len() == 40 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    let is_cached = directory.parent()?.ends_with("snapshots");
    (is_commit && is_cached).then(|| name.to_owned())
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
        assert!(error(&config).contains("is neither a directory nor a file named *.gguf"));
        assert!(matches!(source(&args(dir.path())), Ok(ModelSource::Directory(_))));
    }

    #[test]
    fn a_model_is_a_gguf_file_or_a_directory_of_one() {
        let dir = tempfile::tempdir().unwrap();
        let error = |path: &Path| source(&args(path)).unwrap_err().to_string();
        let file = dir.path().join("a.gguf");
        std::fs::write(&file, b"GGML").unwrap();
        // Both are read as what they are not.
        for path in [&file, dir.path()] {
            let error = error(path);
            assert!(error.contains("a.gguf`: the file does not begin with `GGUF`"), "{error}");
        }
        std::fs::write(dir.path().join("B.GGUF"), b"GGML").unwrap();
        assert!(error(dir.path()).contains("has several GGUF files; name one of them"));
        for file in ["config.json", "model.safetensors"] {
            std::fs::write(dir.path().join(file), "{}").unwrap();
        }
        assert!(matches!(source(&args(dir.path())), Ok(ModelSource::Directory(_))));
    }

    #[test]
    fn a_model_of_the_hub_has_a_commit_and_another_has_none() {
        let sha = "0123456789abcdef0123456789abcdef01234567";
        let cached = format!("/data/hub/models--a--b/snapshots/{sha}");
        assert_eq!(commit(&args(Path::new(&cached))).as_deref(), Some(sha));
        for path in [format!("/models/{sha}"), "/data/snapshots/main".into(), "/".into()] {
            assert_eq!(commit(&args(Path::new(&path))), None, "{path}");
        }
    }

    #[test]
    fn a_name_is_downloaded_unless_it_is_a_path_here() {
        let dir = tempfile::tempdir().unwrap();
        let wanted = |id: &str, flags: &[&str]| {
            let words = ["x", "--model-id", id].into_iter().chain(flags.iter().copied());
            download(&Cli::parse_from(words).model, None)
        };
        assert!(wanted(dir.path().to_str().unwrap(), &[]).unwrap().is_none());
        let order = wanted("acme/tiny", &[]).unwrap().unwrap();
        assert_eq!((order.repo.to_string(), order.weights), ("acme/tiny".to_owned(), true));
        assert_eq!(order.revision.to_string(), "main");
        assert!(!wanted("acme/tiny", &["--load-format", "dummy"]).unwrap().unwrap().weights);
        let absent = dir.path().join("absent");
        for (id, named) in [
            (absent.to_str().unwrap(), "does not exist"),
            ("./absent", "does not exist"),
            ("~/absent", "does not exist"),
            ("absent/", "does not exist"),
            ("acme/absent.gguf", "does not exist"),
            ("a/b/c", "org/name"),
            ("a b", "neither a directory nor"),
        ] {
            let error = wanted(id, &[]).unwrap_err().to_string();
            assert!(error.contains(id) && error.contains(named), "{error}");
        }
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
