//! The engine against the mock worker, from a seed.
//!
//! A [`World`] is an engine core, a worker that may die at any moment, the wire between them with
//! what is still on it, and clients who know what their texts must be. [`random`] drives it by
//! chance, [`directed`] along chosen paths. After every action the scheduler's integrity is
//! checked, and every token is compared with the undisturbed text the moment it arrives.
//!
//! The world sees only the engine's public face, plus its integrity check.

mod directed;
mod random;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use millstream_backends::executor::Executor;
use millstream_backends::mock::{Deferred, MockConfig, MockGroup, MockModel, reference_text};
use millstream_backends::{Immediate, Pipeline};
use millstream_proto::{CONTINUE, NO_BLOCK, Step, StepOutput};

use super::core::{EngineConfig, EngineCore, Input};
use super::scheduler::planted::PlantedBug;
use super::{Command, Event, FinishReason, NewSequence, SequenceId};

type Checked<T = ()> = Result<T, String>;

/// A request, and what must come of it.
struct Client {
    request: NewSequence,
    /// The undisturbed text, up to its end.
    expected: Vec<u32>,
    expected_finish: FinishReason,
    received: Vec<u32>,
    /// The prompt's tokens that were reported.
    scored: Vec<u32>,
    finish: Option<FinishReason>,
    was_aborted: bool,
    /// It may end with an error, because workers are made to die of it.
    may_fail: bool,
}

/// How the worker runs its steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// One at a time.
    OneByOne,
    /// Two at a time: it may begin a step before the one ahead of it is finished. A worker that
    /// runs one at a time runs the same steps beside it, and must give the same outputs.
    Overlapping,
}

/// A step that the worker has begun.
struct Begun {
    /// Rows that it does not run.
    skipped: Vec<usize>,
    /// What a worker that runs one step at a time makes of it.
    expected: Option<StepOutput>,
}

/// The worker's end of the wire, as the steps sent describe it.
#[derive(Default)]
struct Slots {
    occupied: BTreeSet<u32>,
}

struct World {
    config: MockConfig,
    core: EngineCore,
    executor: Executor<Box<dyn Pipeline>>,
    /// Runs the same steps one at a time.
    one_by_one: Option<Executor<Immediate<MockModel>>>,
    slots: Slots,
    is_alive: bool,
    epoch: u64,
    now: Duration,
    /// Steps that the worker has not begun.
    sent: VecDeque<Step>,
    /// Steps that the worker has not finished.
    begun: VecDeque<Begun>,
    /// Outputs that the engine has not read.
    answered: VecDeque<StepOutput>,
    /// Outputs of workers that died before they were read.
    stale: Vec<StepOutput>,
    clients: BTreeMap<u64, Client>,
    num_left: usize,
    deaths_in_flight: u64,
    /// Rows that the worker did not run.
    rows_not_run: u64,
    /// Steps that were begun while another was in flight.
    overlaps: u64,
    /// Places of prefix hits that lay behind a window.
    places_behind_windows: u64,
}

impl World {
    fn new(
        config: MockConfig,
        engine: EngineConfig,
        kind: Kind,
        planted: Option<PlantedBug>,
    ) -> Self {
        let mut core = EngineCore::new(engine);
        core.scheduler().planted = planted;
        let mock = || MockModel::new(config.clone());
        let one_by_one = (kind == Kind::Overlapping).then(|| Executor::new(Immediate::new(mock())));
        let pipeline: Box<dyn Pipeline> = match kind {
            Kind::OneByOne => Box::new(Immediate::new(mock())),
            Kind::Overlapping => Box::new(Deferred::new(mock(), 0)),
        };
        World {
            executor: Executor::new(pipeline),
            one_by_one,
            config,
            core,
            slots: Slots::default(),
            is_alive: false,
            epoch: 0,
            now: Duration::ZERO,
            sent: VecDeque::new(),
            begun: VecDeque::new(),
            answered: VecDeque::new(),
            stale: Vec::new(),
            clients: BTreeMap::new(),
            num_left: 0,
            deaths_in_flight: 0,
            rows_not_run: 0,
            overlaps: 0,
            places_behind_windows: 0,
        }
    }

    fn submit(&mut self, id: u64, request: NewSequence) -> Checked {
        let (expected, expected_finish) = self.undisturbed(&request);
        self.clients.insert(
            id,
            Client {
                request: request.clone(),
                expected,
                expected_finish,
                received: Vec::new(),
                scored: Vec::new(),
                finish: None,
                was_aborted: false,
                may_fail: false,
            },
        );
        self.input(Input::Command(Command::Add(SequenceId(id), Box::new(request))))
    }

    fn abort(&mut self, id: u64) -> Checked {
        let client = self.clients.get_mut(&id).expect("clients are aborted that exist");
        client.was_aborted |= client.finish.is_none();
        self.input(Input::Command(Command::Abort(SequenceId(id))))
    }

    fn connect(&mut self) -> Checked {
        self.epoch += 1;
        self.is_alive = true;
        self.executor.reset(self.epoch);
        if let Some(one_by_one) = &mut self.one_by_one {
            one_by_one.reset(self.epoch);
        }
        self.slots = Slots::default();
        let info = Arc::new(self.executor.info().clone());
        self.input(Input::Connected { epoch: self.epoch, info })
    }

    /// The worker dies with everything on the wire; what it had answered may still turn up.
    fn kill(&mut self, is_planned: bool) -> Checked {
        self.is_alive = false;
        if self.num_in_flight() > 0 {
            self.deaths_in_flight += 1;
        }
        // Whatever it was still computing may have been answered, too.
        while self.execute()? {}
        self.stale.extend(self.answered.drain(..));
        self.input(Input::Lost { is_planned })
    }

    /// Sends the next step, if there is one.
    fn send(&mut self) -> Checked<bool> {
        let Some(step) = self.core.next_step(self.now) else { return Ok(false) };
        self.check()?;
        self.slots.follow(&step)?;
        let absent = step.new_block.iter().filter(|&&block| block == NO_BLOCK).count();
        self.places_behind_windows += absent as u64;
        self.sent.push_back(step);
        if self.num_in_flight() > 2 {
            return Err("more than two steps are in flight".to_owned());
        }
        Ok(true)
    }

    /// Steps whose outputs the engine has not read.
    fn num_in_flight(&self) -> usize {
        self.sent.len() + self.begun.len() + self.answered.len()
    }

    /// The worker begins a step and finishes one, if there are any.
    fn execute(&mut self) -> Checked<bool> {
        Ok(self.begin()? | self.finish()?)
    }

    /// The worker begins a step, if there is one and it may.
    fn begin(&mut self) -> Checked<bool> {
        self.begin_without(|_| false)
    }

    /// The worker begins a step, if there is one and it may, but for those rows that `skips`
    /// chooses. Only a row that continues where its sequence is can be skipped without telling the
    /// worker: the next row of the sequence computes what this one left.
    fn begin_without(&mut self, mut skips: impl FnMut(usize) -> bool) -> Checked<bool> {
        if self.executor.in_flight() == self.executor.depth() {
            return Ok(false);
        }
        let Some(mut step) = self.sent.pop_front() else { return Ok(false) };
        let is_decode = |&row: &usize| step.row_start[row] == CONTINUE && step.row_sample[row] == 1;
        let skipped: Vec<usize> =
            (0..step.row_slot.len()).filter(is_decode).filter(|&row| skips(row)).collect();
        for &row in skipped.iter().rev() {
            step.row_slot.remove(row);
            step.row_start.remove(row);
            step.row_len.remove(row);
            step.row_sample.remove(row);
        }
        self.overlaps += u64::from(self.executor.in_flight() > 0);
        let expected = self.one_by_one.as_mut().map(|worker| worker.execute(step.clone()));
        self.executor.begin(step);
        self.begun.push_back(Begun { skipped, expected });
        Ok(true)
    }

    /// The worker finishes the earliest step in flight, if there is one.
    fn finish(&mut self) -> Checked<bool> {
        let Some(Begun { skipped, expected }) = self.begun.pop_front() else { return Ok(false) };
        let mut output = comparable(self.executor.finish());
        if let Some(expected) = expected.map(comparable).filter(|expected| *expected != output) {
            return Err(format!("one step at a time gives {expected:?}, not {output:?}"));
        }
        for &row in &skipped {
            output.row_count.insert(row, 0);
            let scored = output.prompt_logprobs.iter_mut().flat_map(|packed| &mut packed.index);
            scored.filter(|index| **index >= row as u32).for_each(|index| *index += 1);
        }
        self.rows_not_run += skipped.len() as u64;
        if let Some(error) = output.row_error.first() {
            return Err(format!("the worker reports: {}", error.message));
        }
        self.answered.push_back(output);
        Ok(true)
    }

    /// The engine reads an output, if there is one.
    fn deliver(&mut self) -> Checked<bool> {
        let Some(output) = self.answered.pop_front() else { return Ok(false) };
        self.input(Input::Output(output))?;
        Ok(true)
    }

    fn input(&mut self, input: Input) -> Checked {
        let events = self.core.handle(input, self.now);
        for event in events {
            self.receive(event)?;
        }
        self.num_left += self.core.take_left();
        if let Some(fault) = self.core.take_fault() {
            return Err(fault.to_string());
        }
        self.check()
    }

    fn check(&mut self) -> Checked {
        self.core.scheduler().check_integrity()
    }

    fn receive(&mut self, event: Event) -> Checked {
        let id = event.id;
        let client = self.clients.get_mut(&id.0).ok_or("an event for nobody")?;
        if client.was_aborted || client.finish.is_some() {
            return Err(format!("{id:?} has ended and receives {event:?}"));
        }
        let is_first = client.received.is_empty() && event.cached_tokens.is_some();
        if !is_first && event.cached_tokens.is_some() {
            return Err(format!("{id:?} hears of its cached tokens twice"));
        }
        // The mock's likeliest token is the one that stands there.
        client.scored.extend(event.prompt_logprobs.iter().map(|scored| scored.top[0].0));
        client.received.extend(&event.tokens);
        let scores = client.request.prompt_logprobs.then(|| &client.request.prompt[1..]);
        let all = scores.unwrap_or_default();
        if !all.starts_with(&client.scored) || (!client.received.is_empty() && client.scored != all)
        {
            return Err(format!("{id:?} has scores of {:?}, not of {all:?}", client.scored));
        }
        if !client.expected.starts_with(&client.received) {
            let (received, expected) = (&client.received, &client.expected);
            return Err(format!("{id:?} received {received:?}, undisturbed it is {expected:?}"));
        }
        let Some(finish) = event.finish else { return Ok(()) };
        let is_fenced = client.may_fail && matches!(finish, FinishReason::Error(_));
        let is_whole = client.received == client.expected && finish == client.expected_finish;
        client.finish = Some(finish);
        match is_whole || is_fenced {
            true => Ok(()),
            false => Err(format!("{id:?} ended early: {:?}", client.finish)),
        }
    }

    /// Ids of the clients that still wait for something.
    fn unfinished(&self) -> Vec<u64> {
        let is_open = |client: &Client| client.finish.is_none() && !client.was_aborted;
        self.clients.iter().filter(|(_, client)| is_open(client)).map(|(id, _)| *id).collect()
    }

    /// Nothing is left: all clients ended, all steps were read, all blocks and slots are free.
    fn check_end(&mut self) -> Checked {
        loop {
            let has_moved = self.send()? | self.execute()? | self.deliver()?;
            if !has_moved {
                break;
            }
        }
        let stats = self.core.stats();
        if !self.unfinished().is_empty() || self.core.num_unfinished() != 0 {
            return Err(format!("{:?} never finished", self.unfinished()));
        }
        if stats.used_blocks != 0 || stats.running != 0 || stats.waiting != 0 {
            return Err(format!("everything ended and this is left: {stats:?}"));
        }
        if self.is_alive && !self.slots.occupied.is_empty() {
            return Err(format!("the worker still holds slots {:?}", self.slots.occupied));
        }
        if self.num_left != self.clients.len() {
            return Err(format!("{} of {} sequences left", self.num_left, self.clients.len()));
        }
        Ok(())
    }

    /// What a request yields where nothing goes wrong, and how it ends.
    fn undisturbed(&self, request: &NewSequence) -> (Vec<u32>, FinishReason) {
        let NewSequence { prompt, seed, choice, .. } = request;
        let room = self.config.max_model_len as usize - prompt.len();
        let max_tokens = room.min(request.max_tokens as usize);
        let mut text = reference_text(&self.config, prompt, *seed, *choice, max_tokens);
        match text.iter().position(|token| request.stop_token_ids.contains(token)) {
            Some(stop) => {
                text.truncate(stop + 1);
                let token = text[stop];
                (text, FinishReason::StopToken(token))
            }
            None => (text, FinishReason::Length),
        }
    }
}

impl Slots {
    fn follow(&mut self, step: &Step) -> Checked {
        for slot in &step.release {
            if !self.occupied.remove(slot) {
                return Err(format!("slot {slot} is released and empty"));
            }
        }
        for add in &step.add {
            if !self.occupied.insert(add.slot) {
                return Err(format!("slot {} is added to and occupied", add.slot));
            }
        }
        Ok(())
    }
}

/// Without what differs from run to run.
fn comparable(output: StepOutput) -> StepOutput {
    StepOutput { timings: None, free_memory_bytes: 0, ..output }
}

fn request(prompt: &[u32], max_tokens: u32) -> NewSequence {
    NewSequence {
        prompt: prompt.into(),
        sampling: Default::default(),
        max_tokens,
        stop_token_ids: Arc::new([]),
        seed: 7,
        choice: 0,
        cache_salt: None,
        prompt_logprobs: false,
        grammar: None,
    }
}

fn engine_config() -> EngineConfig {
    EngineConfig {
        max_prefill_tokens: None,
        max_batch_size: 64,
        prefix_caching: true,
        resume_timeout: Duration::from_secs(60),
        step_timeout: Duration::from_secs(10),
    }
}
