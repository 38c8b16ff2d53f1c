//! Sampling on the GPU: from logits to tokens, by the rules of the worker's sampler, which stand
//! with its processor version, and to the same tokens: every number that decides is computed with
//! the same bits, and sums are of whole numbers. Log-probabilities agree to 1e-5.
//!
//! [`draw`] gives one token per row, [`score`] the log-probability of a given token per row; what
//! they find lies in the device's memory until somebody copies it, as words that [`outcome`] reads.
//! What penalties count lies there too, per slot: [`reset_counts`] counts the tokens of sequences
//! that are new in their slots, [`draw`] every token that it draws.
//!
//! In shapes: `R` rows, `V` vocabulary, `S` slots. Tokens are below `V`, which is below 2^24.
//! Nothing here takes memory or waits.

#[cfg(test)]
mod tests;

use candle_core::DType;

use crate::cuda::{Arg, Array, Gpu, Launch, Module, check, module};
use crate::{KernelError, Result};

static SAMPLING: Module = module!("sampling");

/// In place of a slot, of a number of log-probabilities or of a mask: there is none.
pub const NONE: u32 = u32::MAX;

/// The most log-probabilities that a row may ask for, beside that of its token.
pub const MAX_TOP: usize = 20;

/// Words of what is found for a row.
pub const OUTCOME_WORDS: usize = 4 + 2 * MAX_TOP;

/// Numbers of 64 bits that a row has for what its blocks leave for each other.
pub const FINDINGS_LEN: usize = 2 * MAX_PARTS + 2048;

/// The most blocks that share a row.
const MAX_PARTS: usize = 32;

/// Words of [`Row::words`].
pub const ROW_WORDS: usize = 19;

/// Words of [`Text::words`].
pub const TEXT_WORDS: usize = 4;

/// A part of [`Lists`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// Its first word.
    pub first: u32,
    /// Its entries.
    pub count: u32,
}

/// How the token of one row is drawn. Numbers are as the worker's checked sampling parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Row {
    /// Below S, and in no other row; [`NONE`] for padding, for which nothing is done.
    pub slot: u32,
    /// The absolute position that the token will take.
    pub position: u32,
    /// With `choice` and `position`, what randomness is a function of.
    pub seed: u64,
    /// Which of a request's choices it is.
    pub choice: u32,
    /// 0 takes the likeliest token.
    pub temperature: f32,
    /// 0 keeps all.
    pub top_k: u32,
    /// 1 keeps all.
    pub top_p: f32,
    /// 0 keeps all.
    pub min_p: f32,
    /// 1 keeps all.
    pub typical_p: f32,
    /// 1 is off.
    pub repetition_penalty: f32,
    /// 0 is off.
    pub presence_penalty: f32,
    /// 0 is off.
    pub frequency_penalty: f32,
    /// How many of the likeliest tokens to report, at most [`MAX_TOP`]; [`NONE`] for no
    /// log-probabilities at all.
    pub num_top: u32,
    /// [`Lists::biases`].
    pub biases: Span,
    /// [`Lists::tokens`] that cannot be drawn.
    pub bans: Span,
    /// Which of the masks says what may follow; [`NONE`] if all may.
    pub mask: u32,
}

impl Row {
    /// A row of no sequence, as a launch has them that is larger than its step.
    pub const PADDING: Row = Row {
        slot: NONE,
        position: 0,
        seed: 0,
        choice: 0,
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        typical_p: 1.0,
        repetition_penalty: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        num_top: NONE,
        biases: Span { first: 0, count: 0 },
        bans: Span { first: 0, count: 0 },
        mask: NONE,
    };

    /// As the kernel reads it.
    pub fn words(&self) -> [u32; ROW_WORDS] {
        [
            self.slot,
            self.position,
            self.seed as u32,
            (self.seed >> 32) as u32,
            self.choice,
            self.temperature.to_bits(),
            self.top_k,
            self.top_p.to_bits(),
            self.min_p.to_bits(),
            self.typical_p.to_bits(),
            self.repetition_penalty.to_bits(),
            self.presence_penalty.to_bits(),
            self.frequency_penalty.to_bits(),
            self.num_top,
            self.biases.first,
            self.biases.count,
            self.bans.first,
            self.bans.count,
            self.mask,
        ]
    }
}

/// What rows and texts list beside their numbers, as the words of one array.
#[derive(Clone, Debug, Default)]
pub struct Lists {
    words: Vec<u32>,
}

impl Lists {
    /// Lists of nothing, which keep the memory.
    pub fn clear(&mut self) {
        self.words.clear();
    }

    /// Adds tokens with what is added to their logits: -inf bans one, +inf and NaN are nobody's. A
    /// token may come several times; its biases are added in their order.
    pub fn biases(&mut self, biases: &[(u32, f32)]) -> Span {
        let mut sorted = biases.to_vec();
        // The biases of a token come to stand together, in their order.
        sorted.sort_by_key(|(token, _)| *token);
        // The third word is where the kernel keeps the logit.
        let words = sorted.iter().flat_map(|(token, bias)| [*token, bias.to_bits(), 0]);
        self.add(words, biases.len())
    }

    /// Adds tokens.
    pub fn tokens(&mut self, tokens: &[u32]) -> Span {
        self.add(tokens.iter().copied(), tokens.len())
    }

    /// What to copy to the device.
    pub fn words(&self) -> &[u32] {
        &self.words
    }

    fn add(&mut self, words: impl Iterator<Item = u32>, count: usize) -> Span {
        let first = self.words.len() as u32;
        self.words.extend(words);
        Span { first, count: count as u32 }
    }
}

/// Arguments of [`draw`].
#[derive(Clone, Copy, Debug)]
pub struct Draw<'a> {
    /// V.
    pub vocab_size: usize,
    /// `[R, width]` f32, where `width` is at least V; what lies behind V is not read. Scratch
    /// afterwards.
    pub logits: &'a Array,
    /// `[R, ROW_WORDS]` u32.
    pub rows: &'a Array,
    /// The words of [`Lists`] u32, which the rows point into. Of one draw: it writes there too.
    pub lists: &'a Array,
    /// `[M, V / 32 rounded up]` u32: a bit for each token that may follow, from the lowest on.
    pub masks: &'a Array,
    /// `[S, V]` u32, of slots whose rows have penalties: times in the output, and 2^31 for what
    /// is in the prompt. Tokens that are drawn for these rows are counted.
    pub counts: &'a Array,
    /// `[S]` u32: gets the tokens that are drawn, by slot.
    pub last_token: &'a Array,
    /// `[R, FINDINGS_LEN]` i64: scratch.
    pub findings: &'a Array,
    /// `[R, OUTCOME_WORDS]` u32: gets what [`outcome`] reads, but for padding.
    pub outcomes: &'a Array,
}

/// Draws a token for each row.
#[allow(unsafe_code)]
pub fn draw(gpu: &Gpu, draw: &Draw<'_>) -> Result<()> {
    let vocabulary = check_vocabulary(draw.vocab_size)?;
    let num_rows = draw.rows.len() / ROW_WORDS;
    check::shape(draw.rows, "rows", DType::U32, &[num_rows, ROW_WORDS])?;
    let width = check_logits(draw.logits, num_rows, draw.vocab_size)?;
    check::shape(draw.lists, "lists", DType::U32, &[draw.lists.len()])?;
    let mask_words = draw.vocab_size.div_ceil(32);
    let num_masks = draw.masks.len() / mask_words;
    check::shape(draw.masks, "masks", DType::U32, &[num_masks, mask_words])?;
    let num_slots = draw.last_token.len();
    check::shape(draw.last_token, "last_token", DType::U32, &[num_slots])?;
    check::shape(draw.counts, "counts", DType::U32, &[num_slots, draw.vocab_size])?;
    check::shape(draw.outcomes, "outcomes", DType::U32, &[num_rows, OUTCOME_WORDS])?;
    check::shape(draw.findings, "findings", DType::I64, &[num_rows, FINDINGS_LEN])?;
    let block = threads(vocabulary);
    let parts = parts(gpu, num_rows, draw.vocab_size);
    let by_parts = Launch { grid: [parts, num_rows as u32, 1], block, shared: 0 };
    let logits: [Arg; 4] = [draw.logits.into(), width.into(), vocabulary.into(), draw.rows.into()];
    let [lists, masks, counts, findings, last_token, outcomes] =
        [draw.lists, draw.masks, draw.counts, draw.findings, draw.last_token, draw.outcomes]
            .map(Arg::from);
    let look = [&logits[..], &[lists, masks, counts, findings]].concat();
    let weigh = [&logits[..], &[masks, counts, findings]].concat();
    let args = [&logits[..], &[lists, masks, counts, findings, parts.into(), last_token, outcomes]]
        .concat();
    // SAFETY: the arguments are those of the kernels, and the arrays are as large as was checked;
    // that rows name slots, lists and masks that exist is the contract of `Row`.
    unsafe {
        gpu.launch(&SAMPLING, "sampling_look", by_parts, &look)?;
        gpu.launch(&SAMPLING, "sampling_weigh", by_parts, &weigh)?;
        gpu.launch(&SAMPLING, "sampling_draw", one_block_a_row(num_rows, vocabulary), &args)?;
    }
    Ok(())
}

/// Arguments of [`score`].
#[derive(Clone, Copy, Debug)]
pub struct Score<'a> {
    /// V.
    pub vocab_size: usize,
    /// As for [`Draw`], but read only.
    pub logits: &'a Array,
    /// `[R]` u32; [`NONE`] for padding, for which nothing is done.
    pub tokens: &'a Array,
    /// `[R]` u32: how many of the likeliest tokens to report, at most [`MAX_TOP`].
    pub num_top: &'a Array,
    /// As for [`Draw`].
    pub outcomes: &'a Array,
}

/// Gives the log-probability of each row's token.
#[allow(unsafe_code)]
pub fn score(gpu: &Gpu, score: &Score<'_>) -> Result<()> {
    let vocabulary = check_vocabulary(score.vocab_size)?;
    let num_rows = score.tokens.len();
    check::shape(score.tokens, "tokens", DType::U32, &[num_rows])?;
    check::shape(score.num_top, "num_top", DType::U32, &[num_rows])?;
    let width = check_logits(score.logits, num_rows, score.vocab_size)?;
    check::shape(score.outcomes, "outcomes", DType::U32, &[num_rows, OUTCOME_WORDS])?;
    let args: [Arg; 6] = [
        score.logits.into(),
        width.into(),
        vocabulary.into(),
        score.tokens.into(),
        score.num_top.into(),
        score.outcomes.into(),
    ];
    // SAFETY: the arguments are those of the kernel, and the arrays are as large as was checked.
    unsafe {
        gpu.launch(&SAMPLING, "sampling_score", one_block_a_row(num_rows, vocabulary), &args)?
    };
    Ok(())
}

/// The tokens of a sequence that is new in its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Text {
    /// Below S, and of no other text; [`NONE`] for padding, for which nothing is done.
    pub slot: u32,
    /// All that are known, as [`Lists::tokens`].
    pub tokens: Span,
    /// How many of them are the prompt.
    pub prompt_len: u32,
}

impl Text {
    /// As the kernel reads it.
    pub fn words(&self) -> [u32; TEXT_WORDS] {
        [self.slot, self.tokens.first, self.prompt_len, self.tokens.count]
    }
}

/// Counts, for the slot of each of `texts` `[n, TEXT_WORDS]` u32, what its text has, and nothing
/// else. `counts` is as for [`Draw`], `lists` the words of [`Lists`] u32.
#[allow(unsafe_code)]
pub fn reset_counts(
    gpu: &Gpu,
    counts: &Array,
    vocab_size: usize,
    texts: &Array,
    lists: &Array,
) -> Result<()> {
    /// A text has many tokens, and its slot more counts.
    const THREADS: u32 = 1024;
    let vocabulary = check_vocabulary(vocab_size)?;
    check::shape(counts, "counts", DType::U32, &[counts.len() / vocab_size, vocab_size])?;
    let num_texts = texts.len() / TEXT_WORDS;
    check::shape(texts, "texts", DType::U32, &[num_texts, TEXT_WORDS])?;
    check::shape(lists, "lists", DType::U32, &[lists.len()])?;
    let launch = Launch { grid: [num_texts as u32, 1, 1], block: THREADS, shared: 0 };
    let args: [Arg; 4] = [counts.into(), vocabulary.into(), texts.into(), lists.into()];
    // SAFETY: the arguments are those of the kernel, and the arrays are as large as was checked;
    // that texts name slots and tokens that exist is the contract of `Text`.
    unsafe { gpu.launch(&SAMPLING, "sampling_counts_reset", launch, &args)? };
    Ok(())
}

/// What was found for a row.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The token that was drawn, or whose log-probability was asked for.
    pub token: u32,
    /// Its log-probability before bias, bans, penalties and temperature; 0 if not asked for.
    pub logprob: f32,
    /// The likeliest tokens that were asked for, the likeliest first, with the same.
    pub top: Vec<(u32, f32)>,
}

/// Why a row has no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The logits hold NaN or infinity.
    NoNumber,
    /// No token can be drawn: every logit is -inf, by itself or by bias, bans and mask.
    NoToken,
}

/// Reads the [`OUTCOME_WORDS`] words of a row that is no padding.
pub fn outcome(words: &[u32]) -> std::result::Result<Outcome, Failure> {
    let [token, failure, logprob, num_top] = [0, 1, 2, 3].map(|at| words[at]);
    match failure {
        0 => {}
        1 => return Err(Failure::NoNumber),
        2 => return Err(Failure::NoToken),
        _ => panic!("a row that no kernel has written"),
    }
    let (ids, logprobs) = words[4..OUTCOME_WORDS].split_at(MAX_TOP);
    let top = ids.iter().zip(logprobs).take(num_top as usize);
    let top = top.map(|(id, logprob)| (*id, f32::from_bits(*logprob))).collect();
    Ok(Outcome { token, logprob: f32::from_bits(logprob), top })
}

fn check_vocabulary(vocab_size: usize) -> Result<i32> {
    match vocab_size {
        1..0x100_0000 => Ok(vocab_size as i32),
        _ => Err(KernelError::Value {
            argument: "vocab_size",
            rule: "1 token at least and fewer than 2^24".into(),
            found: vocab_size.to_string(),
        }),
    }
}

/// The width of a row of `logits`, which are for that many rows.
fn check_logits(logits: &Array, num_rows: usize, vocab_size: usize) -> Result<i32> {
    let width = logits.len().checked_div(num_rows).unwrap_or(vocab_size);
    check::shape(logits, "logits", DType::F32, &[num_rows, width])?;
    if width < vocab_size {
        let (argument, rule) = ("logits", format!("rows of {vocab_size} at least"));
        return Err(KernelError::Value { argument, rule, found: width.to_string() });
    }
    check::count("logits", width)
}

/// A block has at most as many threads as leave each the registers that f64 takes, and two warps at
/// least.
fn threads(vocab_size: i32) -> u32 {
    (vocab_size as u32).div_ceil(8).next_power_of_two().clamp(64, 512)
}

fn one_block_a_row(num_rows: usize, vocab_size: i32) -> Launch {
    Launch { grid: [num_rows as u32, 1, 1], block: threads(vocab_size), shared: 0 }
}

/// Into how many parts rows are cut: with four blocks for each multiprocessor, all end at about the
/// same time; and a part has a token for each thread at least.
fn parts(gpu: &Gpu, num_rows: usize, vocab_size: usize) -> u32 {
    let parts = (4 * gpu.multiprocessors() as usize).div_ceil(num_rows.max(1));
    parts.min(vocab_size.div_ceil(512)).min(MAX_PARTS) as u32
}
