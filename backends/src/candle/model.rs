//! A real model behind [`Model`]: the decoder, its cache, and the sampler.
//!
//! A batch becomes one pass through the decoder; the rows that sample go through the head, and
//! each is sampled by itself, so a row whose logits are not numbers fails alone. A kernel that
//! refuses its arguments is a bug, not a row's failure: it panics, and the worker is restarted.

use super::ahead::Ahead;
use super::cache::{self, CachePlan, KvCache};
use super::clock::{Clock, Part};
use super::decoder::Decoder;
use super::description::Description;
use super::layers::{GroupPass, Pass};
use super::samplers::Samplers;
use super::startup::{Stage, Startup};
use super::weights::keep::Host;
use super::workspace::Workspace;
use super::{LoadOptions, device_error, timing};
use crate::grammar::Grammars;
use crate::{
    Batch, BatchRow, LoadError, Model, ModelSource, Progress, RowFailure, SampledLogprobs,
    SampledToken,
};
use candle_core::Tensor;
use millstream_kernels::KernelError;
use millstream_proto::WorkerInfo;
use std::cell::RefCell;
use std::time::{Duration, Instant};

/// Tokens of prompts whose logits are computed at once.
const PROMPT_SLICE: usize = 32;

/// A loaded model with its cache.
pub struct CandleModel {
    info: WorkerInfo,
    decoder: Decoder<Host>,
    cache: KvCache,
    plan: CachePlan,
    ahead: Ahead,
    space: RefCell<Workspace>,
    samplers: Samplers,
    /// `None` for a checkpoint without a tokenizer.
    grammars: Option<Grammars>,
    sample_time: Duration,
    /// Of the last forward pass.
    prompt_logprobs: Vec<(u32, SampledLogprobs)>,
    clock: Clock,
}

impl CandleModel {
    /// See [`super::load`].
    pub(super) fn load(
        source: &ModelSource,
        options: &LoadOptions,
        progress: &Progress,
    ) -> Result<Self, LoadError> {
        let mut startup = Startup::begin();
        progress.begin("reading the configuration");
        let mut description = Description::read(source, options)?;
        startup.end(Stage::Configuration);

        let (unpacks, quantize) = (options.dtype.is_some(), options.quantize);
        let keep = |dtype| Ok(Host { dtype, unpacks, quantize });
        let (decoder, loaded) = description.load(source, options, progress, keep)?;
        startup.end(Stage::Weights);

        progress.begin("preparing the cache");
        let budget = cache::memory_budget(options);
        let plan = CachePlan::new(&description.spec, loaded.dtype, options, budget)?;
        let info = description.info(&plan, &loaded, options);
        let cache = plan.allocate()?;
        let mut model = Self {
            info,
            decoder,
            ahead: Ahead::new(&cache),
            cache,
            plan,
            space: RefCell::default(),
            samplers: Samplers::new(description.vocab_size),
            grammars: description.grammars,
            sample_time: Duration::ZERO,
            prompt_logprobs: Vec::new(),
            clock: Clock::default(),
        };
        startup.end(Stage::Cache);
        progress.begin("timing a step");
        let last = |batch: &Batch<'_>| batch.ids.len() as u32 - 1;
        let compute = |batch: &Batch<'_>| model.logits(batch, &[last(batch)]).map(drop);
        let timed = timing::prefill_tokens(&model.info, compute).map_err(device_error)?;
        model.info.timed_prefill_tokens = timed;
        startup.end(Stage::Timing);
        startup.tell(&loaded);
        Ok(model)
    }

    /// Computes the batch, and the logits of some of its tokens: `tokens` are indices into
    /// `batch.ids`, the result is `[tokens, V]` in f32 with `V` as wide as the head, which may be
    /// wider than the vocabulary. It is overwritten by the next call.
    pub fn logits(&self, batch: &Batch<'_>, tokens: &[u32]) -> Result<Tensor, KernelError> {
        let space = &mut *self.space.borrow_mut();
        let stream = self.residual_stream(batch, tokens.to_vec(), space)?;
        self.head(&stream, tokens, space)
    }

    /// What the layers make of some tokens of the batch.
    fn residual_stream(
        &self,
        batch: &Batch<'_>,
        mut tokens: Vec<u32>,
        space: &mut Workspace,
    ) -> Result<Stream, KernelError> {
        tokens.sort_unstable();
        tokens.dedup();
        let group = |index| GroupPass {
            block_tables: batch.block_tables(index),
            slot_mapping: batch.slot_mapping(index, self.plan.block_size),
        };
        let pass = Pass {
            positions: &batch.positions,
            cu_seqlens: &batch.cu_seqlens,
            context_lens: &batch.context_lens,
            groups: (0..self.plan.groups.len()).map(group).collect(),
            clock: &self.clock,
        };
        self.clock.lap(Part::Rest);
        let x = self.decoder.forward((&batch.ids, &tokens), &pass, &self.cache, space)?;
        Ok(Stream { x, tokens })
    }

    /// The logits of some tokens, `[tokens, V]`, which are the workspace's.
    fn head(
        &self,
        stream: &Stream,
        tokens: &[u32],
        space: &mut Workspace,
    ) -> Result<Tensor, KernelError> {
        let logits = self.decoder.logits(&stream.x, &stream.rows(tokens), space)?; // [tokens,V]
        self.clock.lap(Part::Head);
        Ok(logits)
    }

    /// From now on, notes where the time of each `forward` goes.
    pub fn start_clock(&mut self) {
        self.clock.start();
    }

    /// Where the time of every `forward` since [`CandleModel::start_clock`] went.
    pub fn parts(&self) -> [(Part, Duration); Part::ALL.len()] {
        self.clock.parts()
    }

    /// What each row that samples comes to, one after the other; and what the rows report of their
    /// prompts.
    fn sampled(&mut self, batch: &Batch<'_>) -> Result<Computed, KernelError> {
        let rows = batch.rows.iter().zip(&batch.cu_seqlens[1..]).filter(|(row, _)| row.sample);
        let (rows, last): (Vec<_>, Vec<_>) = rows.map(|(row, end)| (row, end - 1)).unzip();
        let asked = asked_of_prompts(batch);
        let space = &mut *self.space.borrow_mut();
        let predictors = asked.iter().map(|asked| asked.predictor);
        let tokens = last.iter().copied().chain(predictors).collect();
        let stream = self.residual_stream(batch, tokens, space)?;
        let logits = self.head(&stream, &last, space)?; // [rows,V]
        let begin = Instant::now();
        let sampled = self.samplers.each_row(rows.len(), &logits, |sampler, index, logits| {
            let row: &BatchRow<'_> = rows[index];
            sampler.sample(logits, row.sequence, row.end()).map(Some)
        })?;
        let sample_time = begin.elapsed();
        self.clock.lap(Part::Sampling);
        let reported = self.reported(batch, &asked, &stream, space)?;
        Ok(Computed { sampled, reported, sample_time })
    }

    /// What the rows report of their prompts, slice by slice: the logits of a whole prompt would
    /// take more memory than the model.
    fn reported(
        &self,
        batch: &Batch<'_>,
        asked: &[AskedOfPrompt],
        stream: &Stream,
        space: &mut Workspace,
    ) -> Result<Vec<(u32, Scored)>, KernelError> {
        let mut reported = Vec::with_capacity(asked.len());
        for slice in asked.chunks(PROMPT_SLICE) {
            let predictors: Vec<u32> = slice.iter().map(|asked| asked.predictor).collect();
            let logits = self.head(stream, &predictors, space)?; // [slice,V]
            let scored =
                self.samplers.each_row(slice.len(), &logits, |sampler, index, logits| {
                    let AskedOfPrompt { row, follower, .. } = slice[index];
                    let sampling = &batch.rows[row as usize].sequence.sampling;
                    sampler.score(logits, follower, sampling.logprobs.unwrap_or(0))
                })?;
            reported.extend(slice.iter().map(|asked| asked.row).zip(scored));
            self.clock.lap(Part::Sampling);
        }
        Ok(reported)
    }
}

/// The residual stream after the last layer.
struct Stream {
    /// `[R, hidden]`, which is the workspace's.
    x: Tensor,
    /// `[R]` the tokens that it is of, as indices into the batch's ids, rising.
    tokens: Vec<u32>,
}

impl Stream {
    /// Where some of its tokens are.
    fn rows(&self, tokens: &[u32]) -> Vec<u32> {
        let row = |token| self.tokens.partition_point(|&known| known < token) as u32;
        tokens.iter().map(|&token| row(token)).collect()
    }
}

/// A token of a prompt whose log-probability a row reports.
#[derive(Clone, Copy)]
struct AskedOfPrompt {
    row: u32,
    /// The token before it, as an index into the batch's ids.
    predictor: u32,
    /// Its id.
    follower: u32,
}

/// All of a batch, in the order of rows and positions.
fn asked_of_prompts(batch: &Batch<'_>) -> Vec<AskedOfPrompt> {
    let rows = (0..).zip(&batch.rows).zip(&batch.cu_seqlens);
    let asked = rows.flat_map(|((row, it), first)| {
        it.reported().map(move |position| AskedOfPrompt {
            row,
            predictor: first + (position - 1 - it.start) as u32,
            follower: it.sequence.tokens[position],
        })
    });
    asked.collect()
}

/// What a batch comes to.
struct Computed {
    /// Of each row that samples.
    sampled: Vec<Sampled>,
    /// With the rows that they are of.
    reported: Vec<(u32, Scored)>,
    sample_time: Duration,
}

/// A prompt's token as a row reports it.
type Scored = Result<SampledLogprobs, RowFailure>;

/// What a row that samples comes to.
type Sampled = Result<Option<SampledToken>, RowFailure>;

impl Model for CandleModel {
    fn info(&self) -> &WorkerInfo {
        &self.info
    }

    // All state is in the cache, and that is read through block tables only.
    fn reset(&mut self) {}

    fn forward(&mut self, batch: &Batch<'_>) -> Vec<Result<Option<SampledToken>, RowFailure>> {
        self.sample_time = Duration::ZERO;
        self.prompt_logprobs.clear();
        if batch.ids.is_empty() {
            return Vec::new();
        }
        self.ahead.used(batch, self.plan.block_size);
        self.clock.begin();
        let Computed { sampled, reported, sample_time } = match self.sampled(batch) {
            Ok(computed) => computed,
            Err(error) => panic!("a kernel refused a checked batch: {error}"),
        };
        self.sample_time = sample_time;
        let mut sampled = sampled.into_iter();
        let one_per_row = batch.rows.iter().map(|row| match row.sample {
            true => sampled.next().unwrap_or_else(|| unreachable!("one per row that samples")),
            false => Ok(None),
        });
        let mut results: Vec<_> = one_per_row.collect();
        for (row, scored) in reported {
            match scored {
                Ok(logprobs) => self.prompt_logprobs.push((row, logprobs)),
                Err(failure) => results[row as usize] = Err(failure),
            }
        }
        results
    }

    fn take_prompt_logprobs(&mut self) -> Vec<(u32, SampledLogprobs)> {
        std::mem::take(&mut self.prompt_logprobs)
    }

    fn grammars(&self) -> Option<&Grammars> {
        self.grammars.as_ref()
    }

    fn sample_time(&self) -> Duration {
        self.sample_time
    }

    fn idle(&mut self) -> bool {
        match self.ahead.prepare() {
            Ok(prepared) => prepared,
            Err(error) => panic!("a kernel refused the cache: {error}"),
        }
    }
}

#[cfg(test)]
mod tests;
