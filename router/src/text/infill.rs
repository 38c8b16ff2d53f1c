//! Fill in the middle: a prompt of what stands before and after the text that is wanted.
//!
//! Models that were trained to it have three tokens, under names of their own, and read
//! `<prefix> before <suffix> after <middle>`; the answer is what belongs in between.

use super::tokenizer::TextTokenizer;

/// Names of the tokens that begin what stands before, what stands after, and what is wanted.
const NAMES: [[&str; 3]; 5] = [
    // Qwen 2.5 Coder, CodeGemma.
    ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"],
    // StarCoder, Granite Code.
    ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"],
    // SantaCoder.
    ["<fim-prefix>", "<fim-suffix>", "<fim-middle>"],
    // DeepSeek Coder: the hole lies between prefix and suffix.
    [
        "<\u{ff5c}fim\u{2581}begin\u{ff5c}>",
        "<\u{ff5c}fim\u{2581}hole\u{ff5c}>",
        "<\u{ff5c}fim\u{2581}end\u{ff5c}>",
    ],
    // GLM 4.5.
    ["<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"],
];

/// The three tokens of a vocabulary that has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Infill {
    prefix: u32,
    suffix: u32,
    middle: u32,
}

impl Infill {
    pub(super) fn find(tokenizer: &TextTokenizer) -> Option<Infill> {
        NAMES.iter().find_map(|names| {
            let [prefix, suffix, middle] = names.map(|name| tokenizer.token_id(name));
            Some(Infill { prefix: prefix?, suffix: suffix?, middle: middle? })
        })
    }

    /// The prompt, after what the tokenizer puts at the `beginning` of each text.
    pub(super) fn prompt(&self, beginning: &[u32], before: &[u32], after: &[u32]) -> Vec<u32> {
        [beginning, &[self.prefix], before, &[self.suffix], after, &[self.middle]].concat()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn tokenizer(names: &[&str]) -> TextTokenizer {
        let mut json: Value = serde_json::from_str(&super::super::testing::byte_level()).unwrap();
        let added = json["added_tokens"].as_array_mut().unwrap();
        for (id, name) in (900..).zip(names) {
            added.push(json!({
                "id": id, "content": name, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true,
            }));
        }
        TextTokenizer::from_json(json.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn a_vocabulary_with_all_three_tokens_can_fill_in() {
        for names in &NAMES {
            let tokenizer = tokenizer(names);
            let infill = Infill::find(&tokenizer).unwrap_or_else(|| panic!("{names:?}"));
            let [prefix, suffix, middle] = names.map(|name| tokenizer.token_id(name).unwrap());
            assert_eq!(infill.prompt(&[1], &[2, 3], &[4]), [1, prefix, 2, 3, suffix, 4, middle]);
            assert_eq!(infill.prompt(&[], &[], &[]), [prefix, suffix, middle]);
        }
        assert_eq!(Infill::find(&self::tokenizer(&NAMES[0][..2])), None);
    }
}
