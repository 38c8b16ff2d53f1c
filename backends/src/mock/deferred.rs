//! A model as a device that runs by itself: two batches in flight, of which nothing is known before
//! they are finished.
//!
//! It computes a batch only when somebody waits for it, so whoever relies on a result too early has
//! none. Like a device it remembers, for each slot, the token that it sampled there last, and puts
//! it where a batch has [`Batch::UNKNOWN`].

use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use millstream_proto::WorkerInfo;

use crate::batch::{Batch, BatchRow};
use crate::grammar::Grammars;
use crate::model::{Model, SampledToken};
use crate::pipeline::{Computed, Pipeline};
use crate::slots::Sequence;

/// A [`Model`] as a pipeline of depth 2.
#[derive(Debug)]
pub struct Deferred<M> {
    model: M,
    /// Earliest first.
    in_flight: VecDeque<Vec<Row>>,
    /// The positions of the batch that was begun and is not to be sampled yet.
    begun: Option<Vec<u32>>,
    /// By slot: the serial of the sequence that sampled last, and its token.
    sampled: HashMap<u32, (u64, u32)>,
    num_polls: u32,
    /// How often it was asked for the earliest batch.
    polled: Cell<u32>,
}

/// A row of a batch, as its sequence was when it was to be sampled.
#[derive(Debug)]
struct Row {
    slot: u32,
    sequence: Sequence,
    start: usize,
    len: usize,
    sample: bool,
}

impl<M: Model> Deferred<M> {
    /// Batches of `model`, each of which is done once it was asked for so many times.
    pub fn new(model: M, num_polls: u32) -> Self {
        Deferred {
            model,
            in_flight: VecDeque::new(),
            begun: None,
            sampled: HashMap::new(),
            num_polls,
            polled: Cell::new(0),
        }
    }

    /// Puts the token in place that the row's sequence lacks. Where that was never sampled, the
    /// row is computed in vain, from any token.
    fn complete(&self, row: &mut Row) {
        let serial = row.sequence.serial;
        let sampled = self.sampled.get(&row.slot).filter(|(of, _)| *of == serial);
        let token = sampled.map_or(0, |(_, token)| *token);
        row.sequence.tokens.resize(row.sequence.tokens.len().max(row.start + row.len), token);
    }
}

impl<M: Model> Pipeline for Deferred<M> {
    fn info(&self) -> &WorkerInfo {
        self.model.info()
    }

    fn grammars(&self) -> Option<&Grammars> {
        self.model.grammars()
    }

    fn reset(&mut self) {
        self.in_flight.clear();
        self.begun = None;
        self.sampled.clear();
        self.polled.set(0);
        self.model.reset();
    }

    fn depth(&self) -> usize {
        2
    }

    fn begin(&mut self, batch: &Batch<'_>) {
        assert!(self.begun.is_none(), "a batch is sampled before the next is begun");
        assert!(self.in_flight.len() < self.depth(), "no more batches than the depth");
        self.begun = Some(batch.positions.clone());
    }

    fn sample(&mut self, batch: &Batch<'_>) {
        let begun = self.begun.take();
        assert_eq!(begun.as_ref(), Some(&batch.positions), "the rows of the batch begun last");
        let rows = batch.rows.iter().map(|row| Row {
            slot: row.slot,
            sequence: row.sequence.clone(),
            start: row.start,
            len: row.len,
            sample: row.sample,
        });
        self.in_flight.push_back(rows.collect());
    }

    fn is_done(&self) -> bool {
        self.polled.set(self.polled.get() + 1);
        self.polled.get() > self.num_polls
    }

    fn finish(&mut self) -> Computed {
        self.polled.set(0);
        let mut rows = self.in_flight.pop_front().expect("a batch is in flight");
        rows.iter_mut().for_each(|row| self.complete(row));
        let batch = Batch::new(rows.iter().map(Row::of_batch).collect());
        let begun = Instant::now();
        let results = self.model.forward(&batch);
        for (row, result) in rows.iter().zip(&results) {
            if let Ok(Some(SampledToken { token, .. })) = result {
                self.sampled.insert(row.slot, (row.sequence.serial, *token));
            }
        }
        Computed {
            results,
            prompt_logprobs: self.model.take_prompt_logprobs(),
            forward_time: begun.elapsed(),
            sample_time: Duration::ZERO,
        }
    }
}

impl Row {
    fn of_batch(&self) -> BatchRow<'_> {
        let Row { slot, ref sequence, start, len, sample } = *self;
        BatchRow { slot, sequence, start, len, sample }
    }
}
