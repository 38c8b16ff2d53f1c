//! A router's text model and a worker over a small random model, without what lies between them.

use std::path::Path;

use millstream_backends::candle::{self, CandleModel, LoadFormat, LoadOptions};
use millstream_backends::grammar::Grammars;
use millstream_backends::{Executor, Immediate, Model, ModelSource, Progress};
use millstream_proto::{AddSequence, CONTINUE, Grammar, Sampling, Step};
use millstream_router::text::TextModel;

const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../src/demo/model");
/// Begins a text of the demo model's tokenizer.
const BOS: u32 = 0;
/// Ends one.
pub(crate) const EOS: u32 = 1;
/// Longest output in tokens.
const MAX_TOKENS: usize = 400;
/// Sequences that run at once.
const SLOTS: u32 = 48;
const BLOCK_SIZE: u32 = 16;
/// Blocks that a sequence has from its beginning on.
const BLOCKS: u32 = (MAX_TOKENS as u32 + 1).div_ceil(BLOCK_SIZE);

/// The vocabulary of the demo model.
pub(crate) fn text_model() -> TextModel {
    let read = |name: &str| match std::fs::read(Path::new(DEMO).join(name)) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    };
    TextModel::load(&read).expect("the demo model's files")
}

/// A model with that vocabulary and random weights.
fn random_model() -> CandleModel {
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 1792,
        "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "hidden_act": "silu",
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 512,
        "tie_word_embeddings": true, "bos_token_id": BOS, "eos_token_id": EOS,
    });
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::write(directory.path().join("config.json"), config.to_string()).expect("written");
    let tokenizer = Path::new(DEMO).join("tokenizer.json");
    std::fs::copy(tokenizer, directory.path().join("tokenizer.json")).expect("copied");
    let options = LoadOptions {
        load_format: LoadFormat::Dummy,
        kv_cache_memory: Some(16 << 20),
        block_size: BLOCK_SIZE,
        max_slots: SLOTS,
        ..LoadOptions::default()
    };
    let source = ModelSource::Directory(directory.path().to_owned());
    candle::load(&source, &options, &Progress::default()).expect("a model")
}

/// A text to generate.
#[derive(Clone)]
pub(crate) struct Request {
    pub(crate) grammar: Grammar,
    pub(crate) seed: u64,
    /// Added to the logits of these tokens.
    pub(crate) bias: Vec<(u32, f32)>,
}

/// What it came to.
pub(crate) struct Output {
    pub(crate) tokens: Vec<u32>,
    /// The text ended, by the token that ends texts.
    pub(crate) finished: bool,
    pub(crate) error: Option<String>,
}

/// A worker that runs up to [`SLOTS`] sequences in each step.
pub(crate) struct Worker {
    executor: Executor<Immediate<CandleModel>>,
    grammars: Grammars,
}

impl Worker {
    pub(crate) fn new() -> Self {
        let model = random_model();
        assert!(model.info().cache_groups[0].num_blocks >= SLOTS * BLOCKS, "enough blocks");
        let grammars = model.grammars().expect("it has a tokenizer").clone();
        Worker { executor: Executor::new(Immediate::new(model)), grammars }
    }

    /// Why the text of these tokens is not in the grammar's language; `None` if it is.
    pub(crate) fn refusal(&self, grammar: &Grammar, tokens: &[u32]) -> Option<String> {
        let constrained = self.grammars.begin(grammar.clone(), Vec::new());
        let mut logits = vec![0.0; self.executor.info().vocab_size as usize];
        for (place, token) in tokens.iter().enumerate() {
            logits.fill(0.0);
            let masked = constrained.with_mask(|mask| mask.apply(&mut logits, &[EOS]));
            if let Err(failure) = masked {
                return Some(format!("before token {place}: {failure}"));
            }
            if logits[*token as usize] == f32::NEG_INFINITY {
                return Some(format!("token {place} is banned"));
            }
            constrained.advance(*token);
        }
        match constrained.with_mask(|mask| mask.may_end()) {
            Ok(true) => None,
            Ok(false) => Some("the text may not end here".into()),
            Err(failure) => Some(format!("behind the last token: {failure}")),
        }
    }

    /// Generates texts, as many at once as there are slots.
    pub(crate) fn generate(&mut self, requests: &[Request]) -> Vec<Output> {
        let epoch = self.executor.epoch() + 1;
        self.executor.reset(epoch);
        let output = || Output { tokens: Vec::new(), finished: false, error: None };
        let mut outputs: Vec<Output> = requests.iter().map(|_| output()).collect();
        let mut waiting = requests.iter().enumerate();
        // Which request runs in each slot.
        let mut running: Vec<Option<usize>> = vec![None; SLOTS as usize];
        let mut release = Vec::new();
        for number in 1.. {
            let mut step = Step { epoch, step: number, ..Step::default() };
            step.release = std::mem::take(&mut release);
            for (slot, running) in running.iter_mut().enumerate().filter(|(_, r)| r.is_none()) {
                let Some((index, request)) = waiting.next() else { break };
                *running = Some(index);
                add(&mut step, slot as u32, request);
            }
            let rows: Vec<(u32, usize)> = (0..).zip(&running).filter_map(row).collect();
            if rows.is_empty() {
                break;
            }
            for (slot, _) in &rows {
                step.row_slot.push(*slot);
                step.row_start.push(CONTINUE);
                step.row_len.push(1);
                step.row_sample.push(1);
            }
            let reply = self.executor.execute(step);
            for error in reply.row_error {
                outputs[rows[error.row as usize].1].error = Some(error.message);
            }
            let mut tokens = reply.tokens.into_iter();
            for ((slot, index), count) in rows.into_iter().zip(reply.row_count) {
                let output = &mut outputs[index];
                match tokens.next().filter(|_| count == 1) {
                    Some(EOS) => output.finished = true,
                    Some(token) => output.tokens.push(token),
                    None => {}
                }
                if count == 0 || output.finished || output.tokens.len() == MAX_TOKENS {
                    running[slot as usize] = None;
                    release.push(slot);
                }
            }
        }
        outputs
    }
}

fn row((slot, running): (u32, &Option<usize>)) -> Option<(u32, usize)> {
    running.map(|index| (slot, index))
}

fn add(step: &mut Step, slot: u32, request: &Request) {
    let (bias_token, bias) = request.bias.iter().copied().unzip();
    let sampling =
        Sampling { temperature: 1.0, top_p: 1.0, bias_token, bias, ..Sampling::default() };
    step.add.push(AddSequence {
        slot,
        prompt_len: 1,
        tokens: vec![BOS],
        sampling: Some(sampling),
        seed: request.seed,
        stop_token_ids: vec![EOS],
        grammar_digest: request.grammar.digest.clone(),
        ..AddSequence::default()
    });
    if step.grammars.iter().all(|grammar| grammar.digest != request.grammar.digest) {
        step.grammars.push(request.grammar.clone());
    }
    for block in slot * BLOCKS..(slot + 1) * BLOCKS {
        step.new_block_slot.push(slot);
        step.new_block_group.push(0);
        step.new_block.push(block);
    }
}
