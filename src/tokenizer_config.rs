//! A tokenizer configuration of the operator's, in the place of the model's own.

use std::path::Path;

use anyhow::Context;
use serde_json::Value;

/// What stands in for `tokenizer_config.json`.
pub(crate) struct TokenizerConfig {
    bytes: Vec<u8>,
    has_template: bool,
}

impl TokenizerConfig {
    /// Reads the file that TOKENIZER_CONFIG_PATH names.
    pub(crate) fn read(path: &Path) -> anyhow::Result<TokenizerConfig> {
        let told = || format!("TOKENIZER_CONFIG_PATH ({}) is not usable", path.display());
        let bytes = std::fs::read(path).with_context(told)?;
        let config: Value = serde_json::from_slice(&bytes).with_context(told)?;
        let has_template = config.get("chat_template").is_some_and(|template| !template.is_null());
        Ok(TokenizerConfig { bytes, has_template })
    }

    /// What the model's file of this name is to be taken for; `None` leaves it as it is.
    ///
    /// Templates in files of their own would win over one in the configuration, so they are
    /// absent where it has one.
    pub(crate) fn file(&self, name: &str) -> Option<Option<Vec<u8>>> {
        if name == "tokenizer_config.json" {
            return Some(Some(self.bytes.clone()));
        }
        let is_template =
            name.starts_with("chat_template.") || name.starts_with("additional_chat_templates/");
        (is_template && self.has_template).then_some(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> anyhow::Result<TokenizerConfig> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, text).unwrap();
        TokenizerConfig::read(&path)
    }

    #[test]
    fn it_stands_in_for_the_models_and_its_template_for_all_others() {
        const TEMPLATES: [&str; 2] =
            ["chat_template.jinja", "additional_chat_templates/tool_use.jinja"];
        let plain = config("{}").unwrap();
        assert_eq!(plain.file("tokenizer_config.json"), Some(Some(b"{}".to_vec())));
        let with_template = config(r#"{"chat_template": "x"}"#).unwrap();
        for name in TEMPLATES {
            assert_eq!(plain.file(name), None);
            assert_eq!(with_template.file(name), Some(None));
        }
        assert_eq!(with_template.file("tokenizer.json"), None);
    }

    #[test]
    fn one_that_cannot_be_read_is_named() {
        let errors = [
            TokenizerConfig::read(Path::new("/absent")).err().unwrap(),
            config("{").err().unwrap(),
        ];
        for error in errors {
            assert!(format!("{error:#}").starts_with("TOKENIZER_CONFIG_PATH (/"), "{error:#}");
        }
    }
}
