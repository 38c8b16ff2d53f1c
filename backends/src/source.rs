//! Where a model's files come from: a directory in Hugging Face layout, one GGUF file that stands
//! for such a directory, or the executable itself.
//!
//! A name is always that of a file within the model, never a way out of it: names also come from
//! a checkpoint's index, which is input.

use crate::LoadError;
use crate::gguf::Gguf;
use std::borrow::Cow;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

/// A model's files, by name.
#[derive(Clone, Debug)]
pub enum ModelSource {
    /// A directory in Hugging Face layout.
    Directory(PathBuf),
    /// A GGUF file, whose metadata says what the files would.
    Gguf(Arc<Gguf>),
    /// File names with their contents, linked into the executable.
    Embedded(&'static [(&'static str, &'static [u8])]),
}

impl ModelSource {
    /// A GGUF file. Its header is checked, and that its model is one that can be served.
    pub fn gguf(path: &Path) -> Result<Self, LoadError> {
        let gguf = Gguf::open(path)?;
        gguf.file("config.json")?;
        Ok(ModelSource::Gguf(Arc::new(gguf)))
    }

    /// The whole of one file, or `None` if the model has no such file.
    pub fn read(&self, name: &str) -> io::Result<Option<Cow<'static, [u8]>>> {
        match self {
            ModelSource::Directory(directory) => {
                match std::fs::read(directory.join(within_model(name)?)) {
                    Ok(bytes) => Ok(Some(Cow::Owned(bytes))),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                    Err(error) => Err(error),
                }
            }
            ModelSource::Gguf(gguf) => match gguf.file(name) {
                Ok(file) => Ok(file.map(Cow::Owned)),
                Err(error) => Err(io::Error::new(io::ErrorKind::InvalidData, error)),
            },
            ModelSource::Embedded(files) => Ok(files
                .iter()
                .find(|(file, _)| *file == name)
                .map(|(_, bytes)| Cow::Borrowed(*bytes))),
        }
    }

    /// Where a file lies on disk, for those who map it into memory; `None` if it does not lie there
    /// by itself.
    pub fn path(&self, name: &str) -> io::Result<Option<PathBuf>> {
        match self {
            ModelSource::Directory(directory) => Ok(Some(directory.join(within_model(name)?))),
            ModelSource::Gguf(_) | ModelSource::Embedded(_) => Ok(None),
        }
    }

    /// The model in words, for messages.
    pub fn name(&self) -> String {
        match self {
            ModelSource::Directory(directory) => directory.display().to_string(),
            ModelSource::Gguf(gguf) => gguf.path().display().to_string(),
            ModelSource::Embedded(_) => "the embedded model".to_owned(),
        }
    }
}

/// Refuses a name that leads out of the model's directory.
fn within_model(name: &str) -> io::Result<&Path> {
    let path = Path::new(name);
    let stays = path.components().all(|part| matches!(part, Component::Normal(_)));
    if stays && !name.is_empty() {
        return Ok(path);
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("`{name}` is not the name of a file within the model"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_its_bytes_and_a_missing_one_is_none() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("config.json"), b"{}").unwrap();
        let sources = [
            ModelSource::Directory(directory.path().to_owned()),
            ModelSource::Embedded(&[("config.json", b"{}")]),
        ];
        for source in sources {
            assert_eq!(source.read("config.json").unwrap().unwrap().as_ref(), b"{}");
            assert!(source.read("tokenizer.json").unwrap().is_none());
        }
    }

    #[test]
    fn a_name_that_leads_out_of_the_model_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let source = ModelSource::Directory(directory.path().join("model"));
        for name in ["../secret", "/etc/passwd", "a/../../b", ""] {
            assert_eq!(source.read(name).unwrap_err().kind(), io::ErrorKind::InvalidInput);
            assert!(source.path(name).is_err());
        }
    }
}
