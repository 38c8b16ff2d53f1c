//! A model as the executor drives it: batches are begun, and finished later in the same order.
//!
//! On a device that runs by itself two batches are under way: it computes one while the host
//! prepares the next and reads what came of the one before. A [`Model`] computes on the host, one
//! batch at a time; [`Immediate`] makes a pipeline of it.

use std::time::{Duration, Instant};

use millstream_proto::WorkerInfo;

use crate::batch::Batch;
use crate::grammar::Grammars;
use crate::model::{Model, RowResult, SampledLogprobs};

/// A model whose batches overlap: the device computes one while the host prepares the next.
///
/// Each batch is begun, sampled and finished, in this order, and batches in the order of their
/// steps. A batch is *in flight* from [`begin`](Self::begin) to [`finish`](Self::finish).
///
/// While an earlier batch is in flight, what a row says of its sequence lacks the token that the
/// sequence has there: it is [`Batch::UNKNOWN`] in the batch's ids, and not yet counted in
/// [`Sequence::counts`](crate::Sequence::counts). The device has it: it is the token sampled last
/// for the same slot and [`Sequence::serial`](crate::Sequence::serial). If that token ended the
/// text, or its row failed, the later row is computed in vain, from whatever the device holds
/// there: its result is discarded, and it must not harm its neighbours.
pub trait Pipeline: Send {
    /// What this model serves, and the limits it was built for.
    fn info(&self) -> &WorkerInfo;

    /// What constrains its sequences; `None` if it cannot be constrained.
    fn grammars(&self) -> Option<&Grammars> {
        None
    }

    /// Forgets all but the weights: a new epoch begins. What is in flight is given up.
    fn reset(&mut self);

    /// Batches that may be in flight: 1 or 2.
    fn depth(&self) -> usize;

    /// Gives the forward pass of a batch to the device.
    fn begin(&mut self, batch: &Batch<'_>);

    /// Gives the sampling of the batch that was begun last to the device. The batch has the same
    /// rows as when it was begun; tokens that were unknown then may be known, because earlier
    /// batches were finished in between. No token of a row that is to obey a grammar is unknown, so
    /// its mask is the one for the token to sample, or being worked out.
    fn sample(&mut self, batch: &Batch<'_>);

    /// Whether the earliest batch in flight is computed, so that [`finish`](Self::finish) does not
    /// wait.
    fn is_done(&self) -> bool;

    /// Waits for the earliest batch in flight, and gives what it came to.
    fn finish(&mut self) -> Computed;

    /// Does one piece of what there is time for while no sequence is under way, such as preparing
    /// for batches to come. Returns whether there was anything to do.
    fn idle(&mut self) -> bool {
        false
    }
}

impl<P: Pipeline + ?Sized> Pipeline for Box<P> {
    fn info(&self) -> &WorkerInfo {
        (**self).info()
    }

    fn grammars(&self) -> Option<&Grammars> {
        (**self).grammars()
    }

    fn reset(&mut self) {
        (**self).reset();
    }

    fn depth(&self) -> usize {
        (**self).depth()
    }

    fn begin(&mut self, batch: &Batch<'_>) {
        (**self).begin(batch);
    }

    fn sample(&mut self, batch: &Batch<'_>) {
        (**self).sample(batch);
    }

    fn is_done(&self) -> bool {
        (**self).is_done()
    }

    fn finish(&mut self) -> Computed {
        (**self).finish()
    }

    fn idle(&mut self) -> bool {
        (**self).idle()
    }
}

/// What a batch came to.
#[derive(Debug, Default)]
pub struct Computed {
    /// One per row, in order: `None` for a row that does not sample.
    pub results: Vec<RowResult>,
    /// The log-probabilities that rows report of their prompts, as
    /// [`Model::take_prompt_logprobs`] gives them.
    pub prompt_logprobs: Vec<(u32, SampledLogprobs)>,
    /// How long the forward pass took, without the sampling.
    pub forward_time: Duration,
    /// How long the sampling took.
    pub sample_time: Duration,
}

/// A [`Model`] as a pipeline, which has computed a batch as soon as it is to be sampled.
#[derive(Debug)]
pub struct Immediate<M> {
    model: M,
    /// What the batch in flight came to.
    computed: Option<Computed>,
}

impl<M: Model> Immediate<M> {
    /// The pipeline of `model`.
    pub fn new(model: M) -> Self {
        Immediate { model, computed: None }
    }
}

impl<M: Model> Pipeline for Immediate<M> {
    fn info(&self) -> &WorkerInfo {
        self.model.info()
    }

    fn grammars(&self) -> Option<&Grammars> {
        self.model.grammars()
    }

    fn reset(&mut self) {
        self.computed = None;
        self.model.reset();
    }

    fn depth(&self) -> usize {
        1
    }

    fn begin(&mut self, _: &Batch<'_>) {}

    fn sample(&mut self, batch: &Batch<'_>) {
        assert!(self.computed.is_none(), "a model computes one batch at a time");
        let begun = Instant::now();
        let results = self.model.forward(batch);
        let (took, sample_time) = (begun.elapsed(), self.model.sample_time());
        self.computed = Some(Computed {
            results,
            prompt_logprobs: self.model.take_prompt_logprobs(),
            forward_time: took.saturating_sub(sample_time),
            sample_time,
        });
    }

    fn is_done(&self) -> bool {
        self.computed.is_some()
    }

    fn finish(&mut self) -> Computed {
        self.computed.take().expect("a batch is in flight")
    }

    fn idle(&mut self) -> bool {
        self.model.idle()
    }
}
