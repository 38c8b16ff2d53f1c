//! The bytes of each token, as llguidance wants them: a trie that all masks are read off.

use std::sync::Arc;

use llguidance::token_bytes_from_tokenizer_json;
use llguidance::toktrie::{ApproximateTokEnv, SimpleVob, TokEnv, TokRxInfo, TokTrie};
use serde_json::Value;

/// What stands for the end of the text in the trie. A sequence ends by any of its own stop tokens,
/// so none of them can; special tokens begin with a byte that is in no text.
const END_OF_TEXT: &[u8] = b"\xff<|the end of the text|>";

/// The tokens below `vocab_size` of a `tokenizer.json`, and after them one that ends the text.
pub(super) fn read(tokenizer: &[u8], vocab_size: usize) -> Result<TokEnv, String> {
    let json: Value = serde_json::from_slice(tokenizer)
        .map_err(|error| format!("tokenizer.json cannot be read: {error}"))?;
    let mut words = token_bytes_from_tokenizer_json(&json)
        .map_err(|error| format!("grammars do not work with this tokenizer: {error}"))?;
    words.resize(vocab_size, Vec::new());
    words.push(END_OF_TEXT.to_vec());
    let info = TokRxInfo::new(words.len() as u32, vocab_size as u32);
    Ok(Arc::new(ApproximateTokEnv::new(TokTrie::from(&info, &words))))
}

/// Where the end of the text stands in a mask.
pub(super) fn end_of_text(mask: &SimpleVob) -> usize {
    mask.len() - 1
}
