//! Two steps in flight: what comes of them is what comes of one at a time.

use millstream_proto::Grammar;

use super::*;
use crate::grammar::Grammars;
use crate::mock::Deferred;
use crate::{Batch, Sampler};

/// More often than any test asks whether a step is done.
const NEVER: u32 = u32::MAX;

fn overlapping<M: Model>(model: M) -> Executor<Deferred<M>> {
    let mut executor = Executor::new(Deferred::new(model, NEVER));
    executor.reset(1);
    executor
}

/// Runs the steps one at a time, and with as many in flight as may be: the outputs must be equal.
fn check<M: Model>(model: impl Fn() -> M, steps: &[Plan]) -> Vec<StepOutput> {
    let mut executor = Executor::new(Immediate::new(model()));
    executor.reset(1);
    let one_by_one: Vec<_> = steps.iter().map(|step| step.clone().run(&mut executor)).collect();
    let (mut executor, mut outputs) = (overlapping(model()), Vec::new());
    for step in steps {
        if executor.in_flight() == executor.depth() {
            outputs.push(executor.finish());
        }
        executor.begin(step.0.clone());
    }
    while executor.in_flight() > 0 {
        outputs.push(executor.finish());
    }
    let comparable =
        |output: &StepOutput| StepOutput { timings: None, free_memory_bytes: 0, ..output.clone() };
    let [one_by_one, overlapped] =
        [&one_by_one, &outputs].map(|outputs| outputs.iter().map(comparable).collect::<Vec<_>>());
    assert_eq!(one_by_one, overlapped);
    outputs
}

fn mock() -> MockModel {
    MockModel::new(config())
}

fn tokens(outputs: &[StepOutput]) -> Vec<u32> {
    outputs.iter().flat_map(|output| output.tokens.clone()).collect()
}

fn counts(outputs: &[StepOutput]) -> Vec<&[u32]> {
    outputs.iter().map(|output| &output.row_count[..]).collect()
}

/// A prompt of three tokens in slot 0, and room for five more.
fn first() -> Plan {
    plan().add(0, prompt(3)).blocks(0, &[0, 1]).row(0, 0, 3, 1)
}

fn decode() -> Plan {
    plan().row(0, CONTINUE, 1, 1)
}

#[test]
fn a_decode_that_is_begun_before_its_token_is_known_goes_on_with_the_text() {
    let mut executor = overlapping(mock());
    executor.begin(first().0);
    executor.begin(decode().0);
    assert_eq!((executor.in_flight(), executor.is_done()), (2, false));
    assert_eq!([executor.finish().tokens, executor.finish().tokens].concat(), text(3, 2));

    let prompt_in_chunks = [
        plan().add(2, prompt(10)).blocks(2, &[5, 1]).row(2, 0, 6, 0),
        plan().blocks(2, &[8]).row(2, 6, 4, 1),
    ];
    let decodes = [plan().row(2, CONTINUE, 1, 1), plan().row(2, 11, 1, 1)];
    let outputs = check(mock, &[prompt_in_chunks, decodes].concat());
    assert_eq!(tokens(&outputs), text(10, 3));
}

#[test]
fn after_a_stop_token_the_row_in_flight_and_all_later_ones_return_nothing() {
    let stop = text(3, 2)[1];
    let first = first().with(|step| step.add[0].stop_token_ids = vec![stop]);
    let outputs = check(mock, &[first, decode(), decode(), decode()]);
    assert_eq!(counts(&outputs), [[1], [1], [0], [0]]);
    assert!(outputs.iter().all(|output| output.row_error.is_empty()));
}

/// The mock, whose first row breaks in one forward pass.
struct BrokenOnce {
    mock: MockModel,
    /// Passes before it.
    left: u32,
}

impl Model for BrokenOnce {
    fn info(&self) -> &WorkerInfo {
        self.mock.info()
    }

    fn reset(&mut self) {
        self.mock.reset();
    }

    fn forward(&mut self, batch: &Batch<'_>) -> Vec<RowResult> {
        let mut results = self.mock.forward(batch);
        if self.left == 0 {
            results[0] = Err(RowFailure::numeric("the logits hold NaN"));
        }
        self.left = self.left.wrapping_sub(1);
        results
    }
}

#[test]
fn after_a_failure_the_row_in_flight_fails_too_and_its_neighbour_goes_on() {
    let first = first().add(1, prompt(4)).blocks(1, &[2, 3]).row(1, 0, 4, 1);
    let next = || decode().row(1, CONTINUE, 1, 1);
    let broken = || BrokenOnce { mock: mock(), left: 1 };
    let outputs = check(broken, &[first, next(), next(), next()]);
    assert_eq!(counts(&outputs), [[1, 1], [0, 1], [0, 1], [0, 1]]);
    for output in &outputs[1..] {
        assert_eq!((output.row_error[0].row, output.row_error[0].kind()), (0, Kind::Numeric));
        assert_eq!(output.row_error.len(), 1);
    }
    assert_eq!(
        outputs.iter().map(|output| *output.tokens.last().unwrap()).collect::<Vec<_>>(),
        text(4, 4)
    );
}

#[test]
fn a_slot_that_is_given_away_with_rows_in_flight_keeps_the_sequences_apart() {
    let again = || plan().release(0).add(0, prompt(2)).blocks(0, &[5]).row(0, 0, 2, 1);
    let outputs = check(mock, &[first(), again(), decode(), decode()]);
    assert_eq!(tokens(&outputs), [text(3, 1), text(2, 3)].concat());
    let outputs = check(mock, &[first(), decode(), again(), again(), again(), decode()]);
    let expected = [text(3, 2), text(2, 1), text(2, 1), text(2, 2)].concat();
    assert_eq!(tokens(&outputs), expected);
    let chunk = plan().add(0, prompt(6)).blocks(0, &[0, 1]).row(0, 0, 3, 0);
    assert_eq!(tokens(&check(mock, &[chunk, again(), decode()])), text(2, 2));
}

#[test]
fn a_sequence_that_ended_reports_nothing_also_after_its_release() {
    let stop = text(3, 1)[0];
    let first = first().with(|step| step.add[0].stop_token_ids = vec![stop]);
    let again = plan().release(0).add(0, prompt(2)).blocks(0, &[5]).row(0, 0, 2, 1);
    let outputs = check(mock, &[first, decode(), again, decode()]);
    assert_eq!(counts(&outputs), [[1], [0], [1], [1]]);
    assert_eq!(tokens(&outputs), [vec![stop], text(2, 2)].concat());

    let broken = || BrokenOnce { mock: mock(), left: 0 };
    let outputs = check(broken, &[self::first(), decode(), plan().release(0), plan().release(0)]);
    assert_eq!(outputs[0].row_error, outputs[1].row_error);
}

#[test]
fn a_contradiction_fails_its_own_step_and_those_after_it() {
    let outputs = check(mock, &[first(), plan().row(0, 2, 1, 1), decode()]);
    assert_eq!(counts(&outputs), [[1], [0], [0]]);
    assert_eq!(tokens(&outputs), text(3, 1));
    assert!(outputs[0].row_error.is_empty());
    assert_eq!(outputs[1].row_error, outputs[2].row_error);
    // One token is promised, not two.
    let outputs = check(mock, &[first(), plan().row(0, CONTINUE, 2, 1)]);
    let message = &outputs[1].row_error[0].message;
    assert!(message.contains("row 3+2 is beyond the 4 tokens known"), "{message}");
}

#[test]
fn a_step_without_rows_is_answered_in_its_turn() {
    let mut executor = overlapping(mock());
    executor.begin(first().with(|step| step.step = 1).0);
    executor.begin(plan().release(0).with(|step| step.step = 2).0);
    assert!(!executor.is_done());
    assert_eq!((executor.finish().step, executor.is_done()), (1, true));
    let output = executor.finish();
    assert_eq!((output.step, output.row_count.len(), executor.in_flight()), (2, 0, 0));
}

#[test]
fn a_new_epoch_gives_up_what_is_in_flight() {
    let mut executor = overlapping(mock());
    executor.begin(first().0);
    executor.begin(decode().0);
    executor.reset(2);
    assert_eq!((executor.in_flight(), executor.is_done()), (0, false));
    executor.begin(first().with(|step| step.epoch = 2).0);
    executor.begin(decode().with(|step| step.epoch = 2).0);
    let outputs = [executor.finish(), executor.finish()];
    assert_eq!((tokens(&outputs), outputs[0].epoch), (text(3, 2), 2));
}

/// The mock, which draws what is constrained from logits that prefer small ids.
struct Obedient {
    mock: MockModel,
    grammars: Grammars,
    sampler: Sampler,
}

impl Obedient {
    fn new() -> Self {
        const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../src/demo/model/tokenizer.json");
        let config = MockConfig { vocab_size: 1780, ..config() };
        let size = config.vocab_size as usize;
        Obedient {
            mock: MockModel::new(config),
            grammars: Grammars::new(std::fs::read(DEMO).unwrap().into(), size).unwrap(),
            sampler: Sampler::new(size),
        }
    }
}

impl Model for Obedient {
    fn info(&self) -> &WorkerInfo {
        self.mock.info()
    }

    fn reset(&mut self) {
        self.mock.reset();
    }

    fn grammars(&self) -> Option<&Grammars> {
        Some(&self.grammars)
    }

    fn forward(&mut self, batch: &Batch<'_>) -> Vec<RowResult> {
        let mut results = self.mock.forward(batch);
        for (row, result) in batch.rows.iter().zip(&mut results) {
            if row.sample && row.sequence.grammar.is_some() {
                let mut logits: Vec<f32> = (0..1780).map(|id| -(id as f32)).collect();
                *result = self.sampler.sample(&mut logits, row.sequence, row.end()).map(Some);
            }
        }
        results
    }
}

/// Its slot 0 must satisfy a grammar, its slot 1 need not.
fn constrained() -> Plan {
    let step = first().add(1, prompt(4)).blocks(1, &[2, 3]).row(1, 0, 4, 1);
    let grammar = Grammar { digest: vec![1], kind: "regex".into(), source: "(ab){3}".into() };
    step.with(|step| {
        step.add[0].grammar_digest = grammar.digest.clone();
        step.add[0].sampling = Some(Sampling { top_p: 1.0, ..Sampling::default() });
        step.grammars.push(grammar);
    })
}

#[test]
fn a_row_that_obeys_a_grammar_waits_for_the_token_before() {
    let mut executor = overlapping(Obedient::new());
    executor.begin(constrained().with(|step| step.step = 1).0);
    assert!(!executor.is_done(), "the first token needs none before");
    executor.begin(decode().row(1, CONTINUE, 1, 1).with(|step| step.step = 2).0);
    assert!(executor.is_done() && executor.in_flight() == 2);
    assert_eq!(executor.finish().step, 1);
    assert!(!executor.is_done() && executor.in_flight() == 1);
    // Only the neighbour goes on: nothing is waited for.
    executor.begin(plan().row(1, CONTINUE, 1, 1).with(|step| step.step = 3).0);
    assert!(!executor.is_done());
    assert_eq!([executor.finish().step, executor.finish().step], [2, 3]);
}

#[test]
fn a_text_that_obeys_a_grammar_is_the_same_with_two_steps_in_flight() {
    let next = || decode().row(1, CONTINUE, 1, 1);
    let outputs = check(Obedient::new, &[constrained(), next(), next(), next()]);
    assert!(outputs.iter().all(|output| output.row_count == [1, 1]));
    let unconstrained: Vec<u32> = outputs.iter().map(|output| output.tokens[1]).collect();
    let config = MockConfig { vocab_size: 1780, ..config() };
    assert_eq!(unconstrained, reference_text(&config, &prompt(4), 7, 0, 4));
}
