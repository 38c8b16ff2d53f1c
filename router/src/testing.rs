//! The rig of this crate's tests: a text model whose tokens are bytes, and an engine that says
//! what the test tells it to.

use std::sync::Arc;
use std::time::Duration;

use millstream_proto::WorkerInfo;
use serde_json::{Map, Value, json};

use crate::engine::core::EngineConfig;
use crate::engine::run::EventSink;
use crate::engine::{
    Command, EngineInbox, EngineState, Event, FinishReason, NewSequence, SequenceId, TokenLogprobs,
};
use crate::text::TextModel;

/// Ends a text; every other token is the byte of its id.
pub(crate) const EOS: u32 = 256;
pub(crate) const VOCAB_SIZE: u32 = 257;
pub(crate) const MAX_MODEL_LEN: u32 = 512;

/// Tokens are bytes, the template is readable, and the checkpoint recommends a temperature
/// and a length.
pub(crate) fn text_model() -> Arc<TextModel> {
    let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}\
                    {% if add_generation_prompt %}assistant: {% endif %}";
    text_model_with(template, &[])
}

/// The same with another template, and with special tokens from [`VOCAB_SIZE`] on.
pub(crate) fn text_model_with(template: &str, special: &[&str]) -> Arc<TextModel> {
    let tokenizer = byte_tokenizer(special).to_string();
    let config = json!({"chat_template": template, "eos_token": "<eos>"}).to_string();
    let generation =
        json!({"temperature": 0.5, "top_k": 40, "max_new_tokens": 300, "eos_token_id": EOS})
            .to_string();
    let read = |name: &str| {
        let file = match name {
            "tokenizer.json" => Some(&tokenizer),
            "tokenizer_config.json" => Some(&config),
            "generation_config.json" => Some(&generation),
            _ => None,
        };
        Ok(file.map(|file| file.clone().into_bytes()))
    };
    Arc::new(TextModel::load(&read).unwrap())
}

fn byte_tokenizer(special: &[&str]) -> Value {
    // The characters that byte-level tokenizers write for bytes that are not printable.
    let mut next = 256;
    let mut vocab = Map::new();
    for byte in 0..=255_u32 {
        let printable = matches!(byte, 33..=126 | 161..=172 | 174..=255);
        let shown = if printable { byte } else { next };
        next += u32::from(!printable);
        vocab.insert(char::from_u32(shown).unwrap().to_string(), byte.into());
    }
    let special = ["<eos>"].iter().chain(special).zip(EOS..);
    let added = special.map(|(content, id)| {
        vocab.insert((*content).into(), id.into());
        json!({
            "id": id, "content": content, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true,
        })
    });
    let added: Vec<Value> = added.collect();
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": {
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false,
        },
        "post_processor": null,
        "decoder": {
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false,
        },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": false, "vocab": vocab, "merges": [],
        },
    })
}

pub(crate) fn worker_info() -> WorkerInfo {
    WorkerInfo {
        fingerprint: "sha256:0123456789abcdef".into(),
        max_model_len: MAX_MODEL_LEN,
        vocab_size: VOCAB_SIZE,
        block_size: 16,
        max_slots: 64,
        max_batch_tokens: 512,
        timed_prefill_tokens: 512,
        eos_token_ids: vec![EOS],
        ..WorkerInfo::default()
    }
}

pub(crate) fn engine_config() -> EngineConfig {
    EngineConfig {
        max_prefill_tokens: None,
        max_batch_size: 64,
        prefix_caching: true,
        resume_timeout: Duration::from_secs(60),
        step_timeout: Duration::from_secs(60),
    }
}

/// The tokens of a text.
pub(crate) fn tokens(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

/// An engine in the hands of the test.
pub(crate) struct ScriptedEngine {
    inbox: EngineInbox,
    sink: EventSink,
}

impl ScriptedEngine {
    /// Ready from the start.
    pub(crate) fn new(inbox: EngineInbox, sink: EventSink) -> ScriptedEngine {
        inbox.state.send_replace(EngineState::Ready(Arc::new(worker_info())));
        ScriptedEngine { inbox, sink }
    }

    pub(crate) fn set_state(&self, state: EngineState) {
        self.inbox.state.send_replace(state);
    }

    pub(crate) async fn command(&mut self) -> Command {
        self.inbox.commands.recv().await.expect("somebody still holds the engine")
    }

    /// The next command, which must be a new sequence.
    pub(crate) async fn added(&mut self) -> (SequenceId, NewSequence) {
        match self.command().await {
            Command::Add(id, sequence) => (id, *sequence),
            Command::Abort(id) => panic!("expected a sequence, {id:?} was aborted"),
        }
    }

    /// The next command, which must be an abort; its place is given back.
    pub(crate) async fn aborted(&mut self) -> SequenceId {
        match self.command().await {
            Command::Abort(id) => {
                self.inbox.leave();
                id
            }
            Command::Add(id, _) => panic!("expected an abort, {id:?} was added"),
        }
    }

    /// Waits for the end of the commands; true if none came before it.
    pub(crate) async fn is_closed(&mut self) -> bool {
        self.inbox.commands.recv().await.is_none()
    }

    /// One event per entry, in one step.
    pub(crate) fn step(&mut self, events: Vec<Event>) {
        let ended = events.iter().filter(|event| event.finish.is_some()).count();
        (0..ended).for_each(|_| self.inbox.leave());
        (self.sink)(events);
    }

    /// One step per token of `text`, then the end.
    pub(crate) fn say(&mut self, id: SequenceId, text: &str, finish: Option<FinishReason>) {
        for token in tokens(text) {
            self.step(vec![event(id, vec![token], None)]);
        }
        if finish.is_some() {
            let last = if let Some(FinishReason::StopToken(token)) = finish {
                vec![token]
            } else {
                vec![]
            };
            self.step(vec![event(id, last, finish)]);
        }
    }

    /// Answers everybody by itself: `answer` gives the text of a sequence, which is cut at its
    /// `max_tokens` and otherwise ends with the stop token.
    pub(crate) async fn answer_all(mut self, answer: impl Fn(&NewSequence) -> String) {
        while let Some(command) = self.inbox.commands.recv().await {
            let Command::Add(id, sequence) = command else { continue };
            let mut answer = tokens(&answer(&sequence));
            answer.push(EOS);
            answer.truncate(sequence.max_tokens as usize);
            let last = answer.len() - 1;
            if sequence.prompt_logprobs {
                // In two chunks.
                let top = sequence.sampling.top_logprobs;
                let scores: Vec<_> =
                    sequence.prompt[1..].iter().map(|&token| logprobs(token, top)).collect();
                for chunk in [&scores[..scores.len() / 2], &scores[scores.len() / 2..]] {
                    let prompt_logprobs = chunk.to_vec();
                    self.step(vec![Event { prompt_logprobs, ..event(id, Vec::new(), None) }]);
                }
            }
            for (i, token) in answer.into_iter().enumerate() {
                let finish = if sequence.stop_token_ids.contains(&token) {
                    Some(FinishReason::StopToken(token))
                } else {
                    (i == last).then_some(FinishReason::Length)
                };
                let mut event = event(id, vec![token], finish);
                event.cached_tokens = (i == 0).then_some(2);
                if sequence.sampling.logprobs {
                    event.logprobs = vec![logprobs(token, sequence.sampling.top_logprobs)];
                }
                let has_ended = event.finish.is_some();
                self.step(vec![event]);
                if has_ended {
                    break;
                }
            }
        }
    }
}

pub(crate) fn event(id: SequenceId, tokens: Vec<u32>, finish: Option<FinishReason>) -> Event {
    Event {
        id,
        tokens,
        logprobs: Vec::new(),
        prompt_logprobs: Vec::new(),
        cached_tokens: None,
        waited: None,
        finish,
    }
}

/// The token itself and the ones after it, each half as likely.
pub(crate) fn logprobs(token: u32, top: u32) -> TokenLogprobs {
    let top = (0..top).map(|i| ((token + i) % 256, -0.5 - i as f32)).collect();
    TokenLogprobs { logprob: -0.5, top }
}
