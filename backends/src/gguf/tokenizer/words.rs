//! How byte-level tokenizers cut a text into words, by the name that files have for it.
//!
//! The expressions are those of the families' own tokenizers. A file names the way of cutting and
//! leaves everything else of its family's tokenizer unsaid; what belongs to a name is beside it.

use serde_json::{Value, json};

/// A way of cutting.
pub(super) struct Words {
    /// `tokenizer.ggml.pre` in files.
    names: &'static [&'static str],
    cut: Cut,
    /// A word that is a token is that token, whatever merges say.
    pub(super) ignore_merges: bool,
    /// A text begins with BOS unless the file says other.
    pub(super) add_bos: bool,
    /// Characters are composed first.
    pub(super) composes: bool,
}

enum Cut {
    /// GPT-2's own words.
    Gpt2,
    /// Each digit by itself, then GPT-2's words.
    Digits,
    /// Expressions, one after the other: what one finds is not cut further by itself.
    By(&'static [&'static str]),
}

/// tiktoken's cl100k, with digits in groups of up to three.
const CL100K: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
    r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
/// The same with single digits.
const QWEN2: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
    r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
/// tiktoken's o200k.
const O200K: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
/// The same with single digits and without contractions.
const TEKKEN: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
    r"|\p{N}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const DEEPSEEK3: &[&str] = &[
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    concat!(
        r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"##,
        r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*",
        r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
];
const DEEPSEEK_CODER: &[&str] =
    &[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+", r"\p{N}"];
/// What files mean that name nothing: they are older than the names.
const UNNAMED: &[&str] = &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"];

const fn words(names: &'static [&'static str], cut: Cut) -> Words {
    Words { names, cut, ignore_merges: false, add_bos: false, composes: false }
}

const WORDS: &[Words] = &[
    words(&["default"], Cut::By(UNNAMED)),
    words(&["gpt-2", "phi-2", "mpt", "olmo", "gigachat", "exaone4"], Cut::Gpt2),
    words(&["starcoder", "refact", "smollm", "codeshell", "exaone"], Cut::Digits),
    Words { composes: true, ..words(&["command-r"], Cut::Digits) },
    Words {
        ignore_merges: true,
        add_bos: true,
        ..words(&["llama-bpe", "llama3", "llama-v3", "falcon3", "midm-2.0"], Cut::By(&[CL100K]))
    },
    words(&["dbrx", "smaug-bpe", "chatglm-bpe"], Cut::By(&[CL100K])),
    Words { ignore_merges: true, ..words(&["glm4"], Cut::By(&[CL100K])) },
    Words { composes: true, ..words(&["qwen2"], Cut::By(&[QWEN2])) },
    words(&["deepseek-r1-qwen", "megrez", "stablelm2", "hunyuan"], Cut::By(&[QWEN2])),
    words(&["gpt-4o", "llama4"], Cut::By(&[O200K])),
    Words { ignore_merges: true, add_bos: true, ..words(&["tekken"], Cut::By(&[TEKKEN])) },
    words(&["deepseek-v3"], Cut::By(DEEPSEEK3)),
    words(&["deepseek-coder"], Cut::By(DEEPSEEK_CODER)),
];

impl Words {
    /// The way of this name.
    pub(super) fn of(name: &str) -> Result<&'static Self, String> {
        WORDS.iter().find(|known| known.names.contains(&name)).ok_or_else(|| {
            let mut known: Vec<&str> =
                WORDS.iter().flat_map(|known| known.names.iter().copied()).collect();
            known.sort_unstable();
            let known = known.join(", ");
            let what = format!("`tokenizer.ggml.pre` is `{name}`, which is not supported");
            format!("{what} (supported: {known})")
        })
    }

    /// The `pre_tokenizer` of a tokenizer.json, which ends with bytes.
    pub(super) fn pre_tokenizer(&self) -> Value {
        let bytes = |use_regex: bool| {
            json!({
                "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                "use_regex": use_regex,
            })
        };
        let split = |expression: &&str| {
            json!({
                "type": "Split", "pattern": { "Regex": expression }, "behavior": "Isolated",
                "invert": false,
            })
        };
        let steps: Vec<Value> = match self.cut {
            Cut::Gpt2 => return bytes(true),
            Cut::Digits => {
                vec![json!({ "type": "Digits", "individual_digits": true }), bytes(true)]
            }
            Cut::By(expressions) => expressions.iter().map(split).chain([bytes(false)]).collect(),
        };
        json!({ "type": "Sequence", "pretokenizers": steps })
    }
}
