//! One sequence as the scheduler sees it: its tokens, its debt, its blocks.
//!
//! A sequence is owed `num_tokens + num_promised - num_computed` positions, where a promised token
//! is one that a step in flight will sample. Prompt, chunk, prefix hit, decode, preemption and
//! resumption are nothing but values of that difference.
//!
//! A sequence *runs* exactly when it has a slot; everything that depends on the worker (tables,
//! `num_computed`, `num_promised`, `num_unconfirmed`) is empty otherwise. Its tokens outlive any
//! worker.
//!
//! This module does not know other sequences, steps or the order in which sequences run.

use std::collections::HashMap;
use std::time::Duration;

use millstream_proto::AddSequence;

use super::blocks::BlockKey;
use super::groups::BlockTable;
use super::suspects::Suspicion;
use super::{Event, FinishReason, Grammar, NewSequence, SequenceId, TokenLogprobs};

/// A sequence that has not ended.
pub(super) struct Sequence {
    pub(super) id: SequenceId,
    /// Place in the order of arrival, which decides who runs first and who is preempted.
    pub(super) arrival: u64,
    pub(super) added_at: Duration,
    pub(super) request: NewSequence,
    /// Prompt and everything received.
    pub(super) tokens: Vec<u32>,
    /// Prompt and output together end here at the latest.
    pub(super) max_len: usize,
    /// The worker's name for it while it runs.
    pub(super) slot: Option<u32>,
    /// Its blocks, per cache group.
    pub(super) tables: Vec<BlockTable>,
    /// Positions that the tables of all groups reach.
    pub(super) room: usize,
    /// Positions that steps already sent compute.
    pub(super) num_computed: usize,
    /// Those of them that rows in flight compute.
    pub(super) num_unconfirmed: usize,
    /// Tokens that steps in flight will sample.
    pub(super) num_promised: usize,
    /// Leading places of the tables that have been offered to the prefix index.
    pub(super) num_indexed: usize,
    /// Rows in flight whose output still counts, of this run or of one that was preempted.
    pub(super) num_in_flight: usize,
    /// Which run this is: a row in flight of an earlier one brings tokens and pays no debt.
    pub(super) run: u32,
    /// Prompt tokens found in the prefix cache at the first admission.
    pub(super) cached_tokens: Option<u32>,
    /// From its arrival to its first admission.
    pub(super) waited: Duration,
    /// Tokens of the prompt whose log-probabilities have been reported, the first one counted in:
    /// nothing predicts it.
    pub(super) num_scored: usize,
    /// The first token that this run reports.
    pub(super) scored_from: usize,
    pub(super) suspicion: Suspicion,
    has_reported: bool,
    /// Keys of the leading blocks, the root first; a text only grows, so they stay true.
    keys: Vec<BlockKey>,
}

impl Sequence {
    pub(super) fn new(id: SequenceId, arrival: u64, request: NewSequence, now: Duration) -> Self {
        let root = BlockKey::root(request.cache_salt.as_deref(), "", b"");
        Self {
            id,
            arrival,
            added_at: now,
            tokens: request.prompt.to_vec(),
            max_len: request.prompt.len() + request.max_tokens as usize,
            request,
            slot: None,
            tables: Vec::new(),
            room: 0,
            num_computed: 0,
            num_unconfirmed: 0,
            num_promised: 0,
            num_indexed: 0,
            num_in_flight: 0,
            run: 0,
            cached_tokens: None,
            waited: Duration::ZERO,
            num_scored: 1,
            scored_from: 1,
            suspicion: Suspicion::default(),
            has_reported: false,
            keys: vec![root],
        }
    }

    pub(super) fn prompt_len(&self) -> usize {
        self.request.prompt.len()
    }

    pub(super) fn num_output(&self) -> usize {
        self.tokens.len() - self.prompt_len()
    }

    /// Positions that are computed whatever becomes of the rows in flight: none of a row that was
    /// not run lies before it, so nothing that is still to be computed does.
    pub(super) fn num_confirmed(&self) -> usize {
        self.num_computed - self.num_unconfirmed
    }

    /// Positions that no step sent so far computes.
    pub(super) fn debt(&self) -> usize {
        self.tokens.len() + self.num_promised - self.num_computed
    }

    /// Whether another token may be sampled once those in flight have been.
    pub(super) fn may_sample(&self) -> bool {
        self.tokens.len() + self.num_promised < self.max_len
    }

    /// Whether it is owed more than its next token, and where that begins is known.
    pub(super) fn has_unpaid_prompt(&self) -> bool {
        self.num_promised == 0 && self.debt() > 1
    }

    /// Key of a block whose tokens are all known.
    pub(super) fn key(&mut self, block: usize, block_size: usize) -> BlockKey {
        while self.keys.len() < block + 2 {
            let start = (self.keys.len() - 1) * block_size;
            let parent = self.keys[self.keys.len() - 1];
            self.keys.push(parent.child(&self.tokens[start..start + block_size]));
        }
        self.keys[block + 1]
    }

    /// The tokens of a block that are known.
    pub(super) fn block_tokens(&self, block: usize, block_size: usize) -> &[u32] {
        &self.tokens[block * block_size..(block + 1) * block_size]
    }

    /// Takes in one token; tells whether it was the last.
    pub(super) fn receive(&mut self, token: u32) -> Option<FinishReason> {
        self.tokens.push(token);
        self.suspicion.receive(1);
        if self.request.stop_token_ids.contains(&token) {
            return Some(FinishReason::StopToken(token));
        }
        (self.tokens.len() >= self.max_len).then_some(FinishReason::Length)
    }

    /// Forgets everything that depends on the worker; returns its slot and its blocks.
    pub(super) fn stop_running(&mut self) -> Option<(u32, Vec<BlockTable>)> {
        let slot = self.slot.take()?;
        self.room = 0;
        self.num_computed = 0;
        self.num_unconfirmed = 0;
        self.num_promised = 0;
        self.num_indexed = 0;
        self.run += 1;
        Some((slot, std::mem::take(&mut self.tables)))
    }

    /// Whether log-probabilities of the prompt are still to come.
    pub(super) fn is_scored(&self) -> bool {
        self.request.prompt_logprobs && self.num_scored < self.prompt_len()
    }

    /// Positions that may be taken from the cache: those whose predictions nobody needs.
    pub(super) fn max_cached(&self) -> usize {
        if self.is_scored() { self.num_scored - 1 } else { self.tokens.len() - 1 }
    }

    /// Takes in what a row reports of the prompt, from token `first` on; gives what is new of it: a
    /// row in flight of the run before may have reported a part.
    pub(super) fn score(
        &mut self,
        first: usize,
        mut reported: Vec<TokenLogprobs>,
    ) -> Vec<TokenLogprobs> {
        if !self.is_scored() || first > self.num_scored {
            return Vec::new();
        }
        reported.drain(..reported.len().min(self.num_scored - first));
        reported.truncate(self.prompt_len() - self.num_scored);
        self.num_scored += reported.len();
        reported
    }

    /// What its output must satisfy.
    pub(super) fn grammar(&self) -> Option<&Grammar> {
        self.request.grammar.as_deref()
    }

    /// The message that makes the worker know this sequence; its grammar goes beside it.
    pub(super) fn to_add(&self, slot: u32) -> AddSequence {
        AddSequence {
            slot,
            prompt_len: self.prompt_len() as u32,
            tokens: self.tokens.clone(),
            sampling: Some(self.request.sampling.clone()),
            seed: self.request.seed,
            choice: self.request.choice,
            stop_token_ids: self.request.stop_token_ids.to_vec(),
            grammar_digest: self.grammar().map_or_else(Vec::new, |grammar| grammar.digest.clone()),
            adapter: String::new(),
            prompt_logprobs_from: self.is_scored().then_some(self.num_scored as u32),
        }
    }

    /// An event of this sequence, without log-probabilities.
    pub(super) fn event(&mut self, tokens: Vec<u32>, finish: Option<FinishReason>) -> Event {
        let is_first = !std::mem::replace(&mut self.has_reported, true);
        Event {
            id: self.id,
            tokens,
            logprobs: Vec::new(),
            prompt_logprobs: Vec::new(),
            cached_tokens: is_first.then(|| self.cached_tokens.unwrap_or(0)),
            waited: is_first.then_some(self.waited),
            finish,
        }
    }
}

/// All sequences that have not ended, under small dense indices that rows and queues use.
///
/// An index is reused once its sequence has ended, so whoever keeps one beyond the present call
/// keeps the id beside it.
#[derive(Default)]
pub(super) struct Sequences {
    entries: Vec<Option<Sequence>>,
    vacant: Vec<u32>,
    by_id: HashMap<SequenceId, u32>,
}

impl Sequences {
    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    pub(super) fn index_of(&self, id: SequenceId) -> Option<u32> {
        self.by_id.get(&id).copied()
    }

    pub(super) fn insert(&mut self, sequence: Sequence) -> u32 {
        let index = self.vacant.pop().unwrap_or_else(|| {
            self.entries.push(None);
            self.entries.len() as u32 - 1
        });
        let known = self.by_id.insert(sequence.id, index);
        assert!(known.is_none(), "a sequence id is used once, {:?} twice", sequence.id);
        self.entries[index as usize] = Some(sequence);
        index
    }

    pub(super) fn remove(&mut self, index: u32) -> Sequence {
        let sequence = self.entries[index as usize].take().expect("the index of a live sequence");
        self.by_id.remove(&sequence.id);
        self.vacant.push(index);
        sequence
    }

    pub(super) fn is_live(&self, index: u32) -> bool {
        self.entries[index as usize].is_some()
    }

    pub(super) fn get(&self, index: u32) -> &Sequence {
        self.entries[index as usize].as_ref().expect("the index of a live sequence")
    }

    pub(super) fn get_mut(&mut self, index: u32) -> &mut Sequence {
        self.entries[index as usize].as_mut().expect("the index of a live sequence")
    }

    /// The sequence of that index, if it still is the one of that id.
    pub(super) fn find_mut(&mut self, index: u32, id: SequenceId) -> Option<&mut Sequence> {
        self.entries[index as usize].as_mut().filter(|sequence| sequence.id == id)
    }

    /// In the order of indices, which is arbitrary but always the same.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Sequence)> {
        self.entries.iter().enumerate().filter_map(|(i, e)| e.as_ref().map(|e| (i as u32, e)))
    }
}
