//! A model on a GPU behind [`Pipeline`]: batches are begun and sampled without waiting, and finished
//! when their outcomes have arrived.
//!
//! A device or a kernel that refuses a checked batch is a bug or a broken device, not a row's
//! failure: it panics, and the worker is started again.
//!
//! Invariants:
//! - everything is in the order of one stream, so the block of words, the activations and the
//!   logits serve one batch after the other;
//! - what the host writes is written only after the device has read what was there before
//!   ([`Outgoing`]);
//! - at most two batches are in flight, each with a [`Return`] of its own.

use super::keep::Device;
use super::layers::{Engine, LayerCache};
use super::recordings::{Recorded, Recordings};
use super::returns::{Flight, Return};
use super::sampler;
use super::slots::Told;
use super::step::{Layout, Pass, Shape, Tables};
use super::workspace::Limits;
use crate::candle::decoder::Decoder;
use crate::grammar::Grammars;
use crate::pipeline::{Computed, Pipeline};
use crate::{Batch, Sequence};
use millstream_kernels::KernelError;
use millstream_kernels::cuda::{Array, CudaError, Outgoing};
use millstream_kernels::sampling::{
    self, Draw, FINDINGS_LEN, Lists, OUTCOME_WORDS, Row, Score, TEXT_WORDS, Text,
};
use millstream_kernels::step as words;
use millstream_proto::WorkerInfo;
use std::collections::VecDeque;
use std::ops::Range;

type Result<T, E = KernelError> = std::result::Result<T, E>;

/// Blocks that are told with a step; more go ahead of it.
pub(super) const MAX_UPDATES: usize = 4096;

/// A loaded model with its cache.
pub struct CudaModel {
    pub(super) info: WorkerInfo,
    pub(super) decoder: Decoder<Device>,
    pub(super) on: Engine,
    pub(super) cache: Vec<LayerCache>,
    pub(super) block_size: usize,
    pub(super) limits: Limits,
    pub(super) tables: Tables,
    pub(super) told: Told,
    pub(super) uploads: Uploads,
    pub(super) draws: Draws,
    pub(super) recordings: Recordings,
    /// `None` for a checkpoint without a tokenizer.
    pub(super) grammars: Option<Grammars>,
    pub(super) returns: [Return; 2],
    /// The return that the next batch takes.
    pub(super) turn: usize,
    pub(super) flights: VecDeque<Flight>,
    /// The batch that was begun and is not sampled yet.
    pub(super) begun: Option<Begun>,
}

/// What the host sends.
pub(super) struct Uploads {
    /// u32, for the largest step.
    pub(super) packed: Array,
    /// Two of them, so that one is filled while the other leaves.
    pub(super) packing: [Outgoing; 2],
    pub(super) turn: usize,
    /// `[max_slots, V / 32]` u32.
    pub(super) masks: Array,
    pub(super) masking: [Outgoing; 2],
    pub(super) masking_turn: usize,
}

/// What is drawn from, and into.
pub(super) struct Draws {
    /// Ids below this may be drawn.
    pub(super) vocab_size: usize,
    /// `[max_slots, V]` u32.
    pub(super) counts: Array,
    /// `[max_slots]` u32.
    pub(super) last_token: Array,
    /// i64, scratch for as many rows as sample.
    pub(super) findings: Array,
    /// u32, for as many rows as sample and prompt tokens as are scored in a step.
    pub(super) outcomes: Array,
    pub(super) lists: Lists,
}

/// A batch whose forward pass was given to the device: what of it is in the block of words.
#[derive(Debug)]
pub(super) struct Begun {
    /// Which return it has.
    back: usize,
    tokens: usize,
    /// Its rows that sample, padding counted in.
    sampled: usize,
    sampling: Range<usize>,
    lists: Range<usize>,
    /// Predictors, tokens and numbers of alternatives of scored prompt tokens.
    scoring: [Range<usize>; 3],
    /// The logits of the rows that sample.
    logits: Array,
}

/// What of a batch goes behind the sections of its shape.
struct Extras {
    updates: Range<usize>,
    lists: Range<usize>,
    scoring: [Range<usize>; 3],
    len: usize,
}

impl Extras {
    fn new(begin: usize, updates: usize, lists: usize, scored: usize) -> Self {
        let mut len = begin;
        let mut take = |count: usize| {
            let begin = len;
            len += count.next_multiple_of(4);
            begin..begin + count
        };
        let (updates, lists) = (take(2 * updates), take(lists));
        let scoring = [(); 3].map(|()| take(scored));
        Extras { updates, lists, scoring, len }
    }
}

/// A prompt's token that a row reports.
struct Scored {
    row: u32,
    /// Index of the token that predicts it.
    predictor: u32,
    token: u32,
    num_top: u32,
}

impl CudaModel {
    /// The forward pass, up to the logits of the rows that sample.
    fn start(&mut self, batch: &Batch<'_>) -> Result<()> {
        let back = self.turn;
        self.turn = 1 - self.turn;
        let scored = scored(batch);
        let updates = self.tell(batch)?;
        let rows = sampler::rows(batch, &mut self.draws.lists);
        let shape = Shape::of(batch);
        let size = if shape.is_decode() { self.recordings.size(shape.tokens) } else { None };
        if let Some(size) = size {
            self.record_if_it_has_run(size)?;
        }
        let (layout, pass) = self.place(shape, size)?;
        let extras =
            Extras::new(layout.len(), updates.len(), self.draws.lists.words().len(), scored.len());
        self.returns[back].begun.record()?;
        self.send(batch, &layout, &extras, (&rows, &updates, &scored))?;
        let updates = self.uploads.packed.slice(extras.updates.clone());
        words::scatter(&self.on.gpu, &self.tables.all, &updates)?;
        let logits = self.forward(&pass, size)?;
        self.returns[back].computed.record()?;
        self.begun = Some(Begun {
            back,
            tokens: pass.tokens,
            sampled: logits.len() / self.on.vocab,
            sampling: layout.sampling(),
            lists: extras.lists,
            scoring: extras.scoring,
            logits,
        });
        self.flights.push_back(Flight::of(batch, scored.iter().map(|it| it.row).collect()));
        Ok(())
    }

    /// Where the words of a batch go: those of a size that is recorded, or of its own shape.
    fn place(&mut self, shape: Shape, size: Option<usize>) -> Result<(Layout, Pass)> {
        let packed = &self.uploads.packed;
        if let Some(size) = size {
            let Recorded { layout, pass, .. } = self.recordings.get(size, packed, &self.tables)?;
            return Ok((layout.clone(), pass.clone()));
        }
        let layout = Layout::new(shape, self.tables.groups.len());
        let pass = Pass::new(&layout, packed, &self.tables)?;
        Ok((layout, pass))
    }

    /// Tells the device what is new in the batch's slots, but for the last blocks, which are given
    /// back and go with the batch.
    fn tell(&mut self, batch: &Batch<'_>) -> Result<Vec<[u32; 2]>> {
        let news = self.told.news(batch);
        for (slot, sequence) in news.texts {
            self.count(slot, sequence)?;
        }
        let mut blocks = &news.blocks[..];
        while blocks.len() > MAX_UPDATES {
            let (now, later) = blocks.split_at(MAX_UPDATES);
            let sent = self.uploads.send(2 * now.len(), |words| {
                words.iter_mut().zip(now.as_flattened()).for_each(|(to, word)| *to = *word);
            })?;
            words::scatter(&self.on.gpu, &self.tables.all, &sent)?;
            blocks = later;
        }
        Ok(blocks.to_vec())
    }

    /// Counts the tokens of a sequence that is new in its slot.
    fn count(&mut self, slot: u32, sequence: &Sequence) -> Result<()> {
        let mut lists = Lists::default();
        let tokens = lists.tokens(&sequence.tokens);
        let text = Text { slot, tokens, prompt_len: sequence.prompt_len as u32 };
        let sent = self.uploads.send(TEXT_WORDS + lists.words().len(), |words| {
            let all = text.words().into_iter().chain(lists.words().iter().copied());
            words.iter_mut().zip(all).for_each(|(to, word)| *to = word);
        })?;
        let (text, tokens) = (sent.slice(0..TEXT_WORDS), sent.slice(TEXT_WORDS..sent.len()));
        let Draws { counts, vocab_size, .. } = &self.draws;
        sampling::reset_counts(&self.on.gpu, counts, *vocab_size, &text, &tokens)
    }

    /// Fills the block of words and sends it.
    fn send(
        &mut self,
        batch: &Batch<'_>,
        layout: &Layout,
        extras: &Extras,
        (rows, updates, scored): (&[Row], &[[u32; 2]], &[Scored]),
    ) -> Result<()> {
        let (block_size, lists) = (self.block_size, self.draws.lists.words());
        self.uploads.send(extras.len, |words| {
            layout.fill(words, Some(batch), block_size);
            write_rows(&mut words[layout.sampling()], rows);
            words[extras.updates.clone()].copy_from_slice(updates.as_flattened());
            words[extras.lists.clone()].copy_from_slice(lists);
            let columns: [fn(&Scored) -> u32; 3] =
                [|it| it.predictor, |it| it.token, |it| it.num_top];
            for (section, column) in extras.scoring.iter().zip(columns) {
                let values = scored.iter().map(column);
                words[section.clone()].iter_mut().zip(values).for_each(|(to, word)| *to = word);
            }
        })?;
        Ok(())
    }

    /// Gives the pass to the device, recorded if it is; the logits of the rows that sample.
    fn forward(&mut self, pass: &Pass, size: Option<usize>) -> Result<Array> {
        let recorded =
            size.map(|size| self.recordings.get(size, &self.uploads.packed, &self.tables));
        if let Some(recorded) = recorded.transpose()? {
            if let Some(graph) = &recorded.graph {
                graph.launch()?;
                return Ok(self.on.space.logits.slice(0..pass.last.len() * self.on.vocab));
            }
            recorded.has_run = true;
        }
        self.compute(pass)
    }

    /// Every launch of a pass.
    pub(super) fn compute(&self, pass: &Pass) -> Result<Array> {
        words::resolve(&self.on.gpu, &pass.ids, &self.draws.last_token)?;
        self.decoder.run(&self.on, pass, &self.cache)?;
        self.decoder.logits_of(&self.on, pass.tokens, &pass.last)
    }

    /// Records the passes of a size that has run before.
    fn record_if_it_has_run(&mut self, size: usize) -> Result<()> {
        let recorded = self.recordings.get(size, &self.uploads.packed, &self.tables)?;
        if recorded.graph.is_some() || !recorded.has_run {
            return Ok(());
        }
        let pass = recorded.pass.clone();
        let graph = self.on.gpu.record(|| self.compute(&pass).map(drop))?;
        let recorded = self.recordings.get(size, &self.uploads.packed, &self.tables)?;
        recorded.graph = Some(graph);
        Ok(())
    }

    /// Runs the passes of a size on nothing but padding, and records them.
    pub(super) fn prepare(&mut self, size: usize) -> Result<()> {
        self.run(Shape::decode(size), Some(size))?;
        self.record_if_it_has_run(size)
    }

    /// Runs a step of this shape on nothing but padding.
    pub(super) fn run_padding(&mut self, shape: Shape) -> Result<()> {
        self.run(shape, None)
    }

    fn run(&mut self, shape: Shape, size: Option<usize>) -> Result<()> {
        let (layout, pass) = self.place(shape, size)?;
        let block_size = self.block_size;
        self.uploads.send(layout.len(), |words| layout.fill(words, None, block_size))?;
        self.forward(&pass, size).map(drop)
    }

    /// Draws tokens, scores prompts, and has the outcomes sent back.
    fn draw(&mut self, batch: &Batch<'_>) -> Result<()> {
        let Some(begun) = self.begun.take() else {
            panic!("a batch is begun before it is sampled")
        };
        let masks = self.mask(batch)?;
        let Draws { vocab_size, counts, last_token, findings, outcomes, .. } = &self.draws;
        let packed = &self.uploads.packed;
        let of = |rows: Range<usize>| {
            outcomes.slice(rows.start * OUTCOME_WORDS..rows.end * OUTCOME_WORDS)
        };
        let draw = Draw {
            vocab_size: *vocab_size,
            logits: &begun.logits,
            rows: &packed.slice(begun.sampling.clone()),
            lists: &packed.slice(begun.lists.clone()),
            masks: &masks,
            counts,
            last_token,
            findings: &findings.slice(0..begun.sampled * FINDINGS_LEN),
            outcomes: &of(0..begun.sampled),
        };
        sampling::draw(&self.on.gpu, &draw)?;
        // Padding is drawn for in vain, and what is scored overwrites its outcomes.
        let flight = self.flights.back().expect("what was begun is in flight");
        let (first, all) = (flight.sampled, flight.outcomes());
        let [predictors, tokens, num_top] =
            begun.scoring.each_ref().map(|section| packed.slice(section.clone()));
        for begin in (0..predictors.len()).step_by(self.rows_at_once()) {
            let part = begin..predictors.len().min(begin + self.rows_at_once());
            let rows = predictors.slice(part.clone());
            let logits = self.decoder.logits_of(&self.on, begun.tokens, &rows)?;
            let score = Score {
                vocab_size: *vocab_size,
                logits: &logits,
                tokens: &tokens.slice(part.clone()),
                num_top: &num_top.slice(part.clone()),
                outcomes: &of(first + part.start..first + part.end),
            };
            sampling::score(&self.on.gpu, &score)?;
        }
        let outcomes = of(0..all);
        self.returns[begun.back].receive(&outcomes)?;
        Ok(())
    }

    /// Computes the batch, and gives the logits of some of its tokens, `[tokens][V]` with `V` as wide
    /// as the head: for those who compare. It waits for the device.
    pub fn logits(&mut self, batch: &Batch<'_>, tokens: &[u32]) -> Result<Vec<Vec<f32>>> {
        self.start(batch)?;
        self.flights.pop_back();
        let Some(begun) = self.begun.take() else { unreachable!("it was just begun") };
        let mut all = Vec::with_capacity(tokens.len());
        for tokens in tokens.chunks(self.rows_at_once()) {
            let rows = self.on.gpu.upload(tokens)?;
            let logits = self.decoder.logits_of(&self.on, begun.tokens, &rows)?;
            let logits = self.on.gpu.download::<f32>(&logits)?;
            all.extend(logits.chunks(self.on.vocab).map(<[f32]>::to_vec));
        }
        Ok(all)
    }

    /// Rows whose logits there is room for.
    fn rows_at_once(&self) -> usize {
        self.on.space.logits.len() / self.on.vocab
    }

    /// Sends the masks of the constrained rows; waits for those that are being worked out.
    fn mask(&mut self, batch: &Batch<'_>) -> Result<Array> {
        let words = self.draws.vocab_size.div_ceil(32);
        let count = sampler::constrained(batch).count();
        if count == 0 {
            return Ok(self.uploads.masks.slice(0..0));
        }
        let Uploads { masks, masking, masking_turn, .. } = &mut self.uploads;
        let outgoing = &mut masking[*masking_turn];
        *masking_turn = 1 - *masking_turn;
        let flight = self.flights.back_mut().expect("what was begun is in flight");
        let memory = outgoing.fill_as::<u32>(count * words)?;
        for ((number, row, grammar), mask) in
            sampler::constrained(batch).zip(memory.chunks_exact_mut(words))
        {
            if let Err(failure) = sampler::write_mask(row, grammar, mask) {
                // The row is drawn for in vain.
                mask.fill(u32::MAX);
                flight.failed.push((number, failure));
            }
        }
        let masks = masks.slice(0..count * words);
        outgoing.send(&masks)?;
        Ok(masks)
    }
}

impl Uploads {
    /// Sends so many words, which `fill` writes, to the beginning of the block.
    fn send(&mut self, len: usize, fill: impl FnOnce(&mut [u32])) -> Result<Array, CudaError> {
        let outgoing = &mut self.packing[self.turn];
        self.turn = 1 - self.turn;
        fill(outgoing.fill_as::<u32>(len)?);
        let packed = self.packed.slice(0..len);
        outgoing.send(&packed)?;
        Ok(packed)
    }
}

/// Writes how rows sample, and padding behind them.
fn write_rows(section: &mut [u32], rows: &[Row]) {
    let rows = rows.iter().chain(std::iter::repeat(&Row::PADDING));
    for (words, row) in section.chunks_exact_mut(sampling::ROW_WORDS).zip(rows) {
        words.copy_from_slice(&row.words());
    }
}

/// The prompt tokens that the rows of a batch report, in the order of rows and positions.
fn scored(batch: &Batch<'_>) -> Vec<Scored> {
    let rows = (0..).zip(&batch.rows).zip(&batch.cu_seqlens);
    rows.flat_map(|((row, it), first)| {
        let num_top = sampler::num_top(it.sequence.sampling.logprobs.unwrap_or(0));
        it.reported().map(move |position| Scored {
            row,
            predictor: first + (position - 1 - it.start) as u32,
            token: it.sequence.tokens[position],
            num_top,
        })
    })
    .collect()
}

/// What a device or a kernel refuses of a checked batch is no row's failure.
fn done<T, E: std::fmt::Display>(result: Result<T, E>) -> T {
    result.unwrap_or_else(|error| panic!("the device refused a checked batch: {error}"))
}

impl Pipeline for CudaModel {
    fn info(&self) -> &WorkerInfo {
        &self.info
    }

    fn grammars(&self) -> Option<&Grammars> {
        self.grammars.as_ref()
    }

    fn reset(&mut self) {
        done(self.on.gpu.wait());
        self.flights.clear();
        self.begun = None;
        self.told.clear();
    }

    fn depth(&self) -> usize {
        self.returns.len()
    }

    fn begin(&mut self, batch: &Batch<'_>) {
        let result = self.start(batch);
        done(result);
    }

    fn sample(&mut self, batch: &Batch<'_>) {
        let result = self.draw(batch);
        done(result);
    }

    fn is_done(&self) -> bool {
        self.flights.is_empty() || done(self.earliest().done.is_reached())
    }

    fn finish(&mut self) -> Computed {
        let flight = self.flights.pop_front().expect("a batch that is finished is in flight");
        done(self.returns[(self.turn + self.flights.len() + 1) % 2].read(flight))
    }

    fn idle(&mut self) -> bool {
        let Some(size) = self.recordings.next_small() else { return false };
        done(self.prepare(size));
        true
    }
}

impl CudaModel {
    /// The return of the earliest batch in flight.
    fn earliest(&self) -> &Return {
        &self.returns[(self.turn + self.flights.len()) % 2]
    }
}
