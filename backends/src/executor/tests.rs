//! Steps against the mock: what the protocol allows runs, and what contradicts it fails its row.

mod overlap;

use millstream_proto::row_error::Kind;
use millstream_proto::{AddSequence, CONTINUE, NO_BLOCK, Sampling, Step, StepOutput};

use super::*;
use crate::mock::{MockConfig, MockGroup, MockModel, reference_text};
use crate::{Immediate, Model};

fn config() -> MockConfig {
    MockConfig {
        vocab_size: 500,
        block_size: 4,
        cache_groups: vec![MockGroup::full(16)],
        max_slots: 4,
        max_model_len: 24,
        max_batch_tokens: 16,
        ..MockConfig::default()
    }
}

fn executor() -> Executor<Immediate<MockModel>> {
    let mut executor = Executor::new(Immediate::new(MockModel::new(config())));
    executor.reset(1);
    executor
}

fn prompt(len: u32) -> Vec<u32> {
    (1..=len).collect()
}

/// The first `n` output tokens of `prompt(len)`.
fn text(len: u32, n: usize) -> Vec<u32> {
    reference_text(&config(), &prompt(len), 7, 0, n)
}

/// A step, piece by piece.
#[derive(Clone, Default)]
struct Plan(Step);

impl Plan {
    fn add(mut self, slot: u32, tokens: Vec<u32>) -> Self {
        let prompt_len = tokens.len() as u32;
        self.0.add.push(AddSequence { slot, prompt_len, tokens, seed: 7, ..Default::default() });
        self
    }

    fn release(mut self, slot: u32) -> Self {
        self.0.release.push(slot);
        self
    }

    fn blocks(self, slot: u32, blocks: &[u32]) -> Self {
        self.group_blocks(slot, 0, blocks)
    }

    fn group_blocks(mut self, slot: u32, group: u32, blocks: &[u32]) -> Self {
        for block in blocks {
            self.0.new_block_slot.push(slot);
            self.0.new_block_group.push(group);
            self.0.new_block.push(*block);
        }
        self
    }

    fn row(mut self, slot: u32, start: u32, len: u32, sample: u32) -> Self {
        self.0.row_slot.push(slot);
        self.0.row_start.push(start);
        self.0.row_len.push(len);
        self.0.row_sample.push(sample);
        self
    }

    /// Changes the message in a way that the other methods do not offer.
    fn with(mut self, change: impl FnOnce(&mut Step)) -> Self {
        change(&mut self.0);
        self
    }

    fn run(self, executor: &mut Executor<impl Pipeline>) -> StepOutput {
        executor.execute(self.0)
    }
}

fn plan() -> Plan {
    Plan::default()
}

/// Rows of an output that failed, all of them for a contradiction.
fn failed_rows(output: &StepOutput) -> Vec<u32> {
    assert!(output.row_error.iter().all(|error| error.kind() == Kind::Protocol));
    output.row_error.iter().map(|error| error.row).collect()
}

#[test]
fn a_prompt_in_chunks_and_its_decodes_are_the_reference_text() {
    let mut executor = executor();
    let mut tokens = Vec::new();
    let steps = [
        plan().add(2, prompt(10)).blocks(2, &[5, 1]).row(2, 0, 6, 0),
        plan().blocks(2, &[8]).row(2, 6, 4, 1),
        plan().row(2, CONTINUE, 1, 1),
        plan().row(2, 11, 1, 1),
    ];
    for (index, step) in steps.into_iter().enumerate() {
        let output = step.with(|step| step.step = index as u64).run(&mut executor);
        assert_eq!((output.step, output.row_error.len()), (index as u64, 0));
        assert_eq!(output.row_count, [u32::from(index > 0)]);
        tokens.extend(output.tokens);
    }
    assert_eq!(tokens, text(10, 3));
}

#[test]
fn a_prefix_hit_starts_where_its_first_row_says() {
    let mut executor = executor();
    plan().add(0, prompt(9)).blocks(0, &[0, 1, 2]).row(0, 0, 9, 1).run(&mut executor);
    let hit = plan().add(1, prompt(10)).blocks(1, &[0, 1, 3]).row(1, 8, 2, 1);
    assert_eq!(hit.run(&mut executor).tokens, text(10, 1));
    assert_eq!(plan().row(1, CONTINUE, 1, 1).run(&mut executor).tokens, text(10, 2)[1..]);
}

#[test]
fn a_resumption_goes_on_with_the_text() {
    let mut executor = executor();
    let resumed = [prompt(5), text(5, 2)].concat();
    let step = plan().add(0, resumed).with(|step| step.add[0].prompt_len = 5);
    let output = step.blocks(0, &[3, 4]).row(0, 0, 7, 1).run(&mut executor);
    assert_eq!(output.tokens, text(5, 3)[2..]);
}

#[test]
fn a_released_slot_may_be_added_to_in_the_same_step() {
    let mut executor = executor();
    plan().add(0, prompt(3)).blocks(0, &[0]).row(0, 0, 3, 1).run(&mut executor);
    let step = plan().release(0).add(0, prompt(2)).blocks(0, &[0]).row(0, 0, 2, 1);
    assert_eq!(step.run(&mut executor).tokens, text(2, 1));
}

#[test]
fn a_step_without_rows_is_answered() {
    let mut executor = executor();
    let output = plan().add(0, prompt(3)).run(&mut executor);
    assert!(output.row_count.is_empty() && output.timings.is_some());
    assert!(plan().release(0).run(&mut executor).row_error.is_empty());
}

#[test]
fn a_new_epoch_remembers_no_sequence() {
    let mut executor = executor();
    plan().add(0, prompt(3)).blocks(0, &[0]).row(0, 0, 3, 1).run(&mut executor);
    executor.reset(2);
    assert_eq!(executor.epoch(), 2);
    assert_eq!(failed_rows(&plan().row(0, CONTINUE, 1, 1).run(&mut executor)), [0]);
    let output = plan().add(0, prompt(3)).blocks(0, &[0]).row(0, 0, 3, 1).run(&mut executor);
    assert_eq!(output.tokens, text(3, 1));
}

#[test]
fn a_stop_token_ends_the_sequence_and_later_rows_return_nothing() {
    let stop = text(3, 2)[1];
    let mut executor = executor();
    let first = plan().add(0, prompt(3)).blocks(0, &[0, 1]).row(0, 0, 3, 1).with(|step| {
        step.add[0].stop_token_ids = vec![499, stop];
    });
    let steps = [first, plan().row(0, CONTINUE, 1, 1), plan().row(0, CONTINUE, 1, 1)];
    let outputs = steps.map(|step| step.run(&mut executor));
    assert_eq!(outputs.each_ref().map(|output| output.row_count[0]), [1, 1, 0]);
    assert!(outputs.iter().all(|output| output.row_error.is_empty()));
}

#[test]
fn a_prompt_in_chunks_is_reported_row_by_row() {
    let mut executor = executor();
    let step = plan().add(1, prompt(2)).blocks(1, &[3]).row(1, 0, 2, 1);
    let step = step.add(0, prompt(9)).blocks(0, &[0, 1, 2]).row(0, 0, 4, 0).with(|step| {
        step.add[1].prompt_logprobs_from = Some(2);
        step.add[1].sampling =
            Some(Sampling { logprobs: true, top_logprobs: 1, top_p: 1.0, ..Default::default() });
    });
    let outputs = [step, plan().row(0, 4, 5, 1)].map(|step| step.run(&mut executor));
    let reported = outputs.map(|output| {
        let packed = output.prompt_logprobs.unwrap();
        (packed.index, packed.top_token)
    });
    assert_eq!(reported[0], (vec![1; 3], prompt(9)[2..5].to_vec()));
    assert_eq!(reported[1], (vec![0; 4], prompt(9)[5..].to_vec()));
}

#[test]
fn a_grammar_that_cannot_be_followed_fails_its_sequence_alone() {
    let mut executor = executor();
    let step = plan().add(0, prompt(3)).blocks(0, &[0]).row(0, 0, 3, 1);
    let step = step.add(1, prompt(3)).blocks(1, &[1]).row(1, 0, 3, 1);
    let output = step.with(|step| step.add[0].grammar_digest = vec![1]).run(&mut executor);
    assert_eq!(output.row_count, [0, 1]);
    assert_eq!((output.row_error[0].row, output.row_error[0].kind()), (0, Kind::Grammar));
    assert_eq!(output.row_error.len(), 1);
}

#[test]
fn log_probabilities_point_at_the_tokens_that_asked_for_them() {
    let mut executor = executor();
    let step = plan().add(0, prompt(3)).blocks(0, &[0]).row(0, 0, 3, 1);
    let step = step.add(1, prompt(4)).blocks(1, &[1]).row(1, 0, 4, 1).with(|step| {
        let sampling =
            Sampling { logprobs: true, top_logprobs: 2, top_p: 1.0, ..Default::default() };
        step.add[1].sampling = Some(sampling);
    });
    let logprobs = step.run(&mut executor).logprobs.unwrap();
    assert_eq!((logprobs.index, logprobs.top_count), (vec![1], vec![2]));
    assert_eq!((logprobs.logprob.len(), logprobs.top_logprob.len()), (1, 2));
    assert_eq!(logprobs.top_token[0], text(4, 1)[0]);
}

#[test]
fn a_row_that_contradicts_what_is_known_fails_alone() {
    let added = || plan().add(0, prompt(6)).blocks(0, &[0, 1]);
    let cases = [
        ("slot 3 holds no sequence", plan().row(3, 0, 1, 0)),
        ("slot 99 holds no sequence", plan().add(99, prompt(1)).row(99, 0, 1, 0)),
        ("row_len is 0", added().row(0, 0, 0, 0)),
        ("beyond the 6 tokens", added().blocks(0, &[2]).row(0, 0, 9, 0)),
        ("beyond the 6 tokens", added().row(0, u32::MAX - 1, u32::MAX, 0)),
        ("samples before the last", added().row(0, 0, 5, 1)),
        (
            "needs 2 blocks, the table has 1",
            plan().add(0, prompt(6)).blocks(0, &[0]).row(0, 0, 6, 1),
        ),
        ("block 16 is beyond", added().blocks(0, &[16]).row(0, 0, 6, 1)),
        (
            "a place without a block in group 0, which sees all",
            added().blocks(0, &[NO_BLOCK]).row(0, 0, 6, 1),
        ),
        ("no cache group 1", added().row(0, 0, 6, 1).with(|step| step.new_block_group[1] = 1)),
        ("prompt_len is 0", added().row(0, 0, 6, 1).with(|step| step.add[0].prompt_len = 0)),
        ("prompt_len is 7", added().row(0, 0, 6, 1).with(|step| step.add[0].prompt_len = 7)),
        ("prompt_len is 0", plan().add(0, Vec::new()).row(0, 0, 1, 0)),
        ("token 500 is beyond", added().row(0, 0, 6, 1).with(|step| step.add[0].tokens[2] = 500)),
        ("exceed max_model_len (24)", plan().add(0, prompt(25)).row(0, 0, 1, 0)),
        (
            "exceeds max_batch_tokens by 4",
            plan().add(0, prompt(20)).blocks(0, &[0, 1, 2, 3, 4]).row(0, 0, 17, 0),
        ),
        (
            "1025 biases are more than 1024",
            added().row(0, 0, 6, 1).with(|step| {
                step.add[0].sampling = Some(Sampling {
                    bias: vec![0.5; 1025],
                    bias_token: vec![1; 1025],
                    ..Sampling::default()
                });
            }),
        ),
        (
            "257 stop tokens are more than 256",
            added().row(0, 0, 6, 1).with(|step| {
                step.add[0].stop_token_ids = vec![0; 257];
            }),
        ),
        ("adapters are not", added().row(0, 0, 6, 1).with(|step| step.add[0].adapter = "a".into())),
        (
            "nothing predicts the first token",
            added().row(0, 0, 6, 1).with(|step| step.add[0].prompt_logprobs_from = Some(0)),
        ),
        (
            "top_p",
            added().row(0, 0, 6, 1).with(|step| {
                step.add[0].sampling = Some(Sampling { top_p: 2.0, ..Default::default() })
            }),
        ),
        ("added to while occupied", added().add(0, prompt(1)).row(0, 0, 6, 1)),
    ];
    for (rule, step) in cases {
        let mut executor = executor();
        // A neighbour before it in the step, which must not notice.
        let mut beside = plan().add(1, prompt(3)).blocks(1, &[9]).row(1, 0, 3, 1).0;
        let own = step.0;
        beside.add.extend(own.add);
        beside.row_slot.extend(own.row_slot);
        beside.row_start.extend(own.row_start);
        beside.row_len.extend(own.row_len);
        beside.row_sample.extend(own.row_sample);
        beside.new_block_slot.extend(own.new_block_slot);
        beside.new_block_group.extend(own.new_block_group);
        beside.new_block.extend(own.new_block);
        let output = executor.execute(beside);
        assert_eq!(failed_rows(&output), [1], "{rule}");
        let message = &output.row_error[0].message;
        assert!(message.contains(rule), "{rule}: {message}");
        assert_eq!((output.row_count, output.tokens), (vec![1, 0], text(3, 1)), "{rule}");
    }
}

/// Two groups, the second of which sees five positions.
fn windowed() -> MockConfig {
    let window = MockGroup { num_blocks: 8, window: Some(5) };
    MockConfig { cache_groups: vec![MockGroup::full(16), window], ..config() }
}

/// A hit on the first eight tokens of `prompt(10)`, which an earlier step has computed; the second
/// group's table begins with these blocks.
fn windowed_hit(beginning: &[u32]) -> StepOutput {
    let mut executor = Executor::new(Immediate::new(MockModel::new(windowed())));
    let first = plan().add(0, prompt(10)).blocks(0, &[0, 1, 2]).group_blocks(0, 1, &[5, 6, 7]);
    assert!(first.row(0, 0, 10, 1).run(&mut executor).row_error.is_empty());
    let second = plan().add(1, prompt(10)).blocks(1, &[0, 1, 3]).group_blocks(1, 1, beginning);
    second.group_blocks(1, 1, &[3]).row(1, 8, 2, 1).run(&mut executor)
}

#[test]
fn a_hit_needs_no_blocks_behind_the_window_of_a_group() {
    let output = windowed_hit(&[NO_BLOCK, 6]);
    assert_eq!(output.tokens, reference_text(&windowed(), &prompt(10), 7, 0, 1));
}

#[test]
fn a_row_that_would_read_or_write_where_no_block_is_fails() {
    // Position 8 sees positions 4 to 8.
    let output = windowed_hit(&[5, NO_BLOCK]);
    assert_eq!(failed_rows(&output), [0]);
    let message = &output.row_error[0].message;
    assert!(
        message.contains("reads from position 4 on, group 1 has no block before 8"),
        "{message}"
    );
    let mut executor = Executor::new(Immediate::new(MockModel::new(windowed())));
    let step = plan().add(0, prompt(3)).blocks(0, &[0]).group_blocks(0, 1, &[NO_BLOCK]);
    assert_eq!(failed_rows(&step.row(0, 0, 3, 1).run(&mut executor)), [0]);
}

#[test]
fn a_failed_sequence_stays_failed_until_it_is_released() {
    let mut executor = executor();
    plan().add(0, prompt(3)).blocks(0, &[0]).row(0, 0, 3, 1).run(&mut executor);
    // A start that is not where the sequence is.
    let first = plan().row(0, 2, 1, 0).run(&mut executor);
    let second = plan().row(0, CONTINUE, 1, 1).run(&mut executor);
    assert_eq!((failed_rows(&first), failed_rows(&second)), (vec![0], vec![0]));
    assert_eq!(first.row_error[0].message, second.row_error[0].message);
    let step = plan().release(0).add(0, prompt(3)).blocks(0, &[0]).row(0, 0, 3, 1);
    assert_eq!(step.run(&mut executor).tokens, text(3, 1));
}

#[test]
fn a_second_row_of_a_sequence_in_one_step_fails() {
    let mut executor = executor();
    let output = plan()
        .add(0, prompt(4))
        .blocks(0, &[0])
        .row(0, 0, 2, 0)
        .row(0, CONTINUE, 2, 1)
        .run(&mut executor);
    assert_eq!(failed_rows(&output), [1]);
}

#[test]
fn columns_of_unequal_lengths_fail_every_row() {
    let step = || plan().add(0, prompt(4)).blocks(0, &[0]).row(0, 0, 4, 1);
    let step = || step().add(1, prompt(4)).blocks(1, &[1]).row(1, 0, 4, 1);
    let broken: [fn(&mut Step); 5] = [
        |step| step.row_start.push(0),
        |step| step.row_len.truncate(1),
        |step| step.row_sample.clear(),
        |step| step.new_block_group.truncate(1),
        |step| step.new_block_slot.truncate(1),
    ];
    for change in broken {
        let mut executor = executor();
        let output = step().with(change).run(&mut executor);
        assert_eq!((failed_rows(&output), output.row_count), (vec![0, 1], vec![0, 0]));
    }
}

#[test]
fn releasing_an_empty_slot_harms_nobody() {
    let mut executor = executor();
    let step = plan().release(2).release(77).blocks(3, &[1]);
    let output = step.add(0, prompt(3)).blocks(0, &[0]).row(0, 0, 3, 1).run(&mut executor);
    assert_eq!(output.tokens, text(3, 1));
}

/// A model whose rows come to something else, and that has more to do whenever it is let.
#[derive(Debug)]
struct Altered {
    model: MockModel,
    alter: fn(&mut [RowResult]),
}

impl Altered {
    fn executor(alter: fn(&mut [RowResult])) -> Executor<Immediate<Self>> {
        Executor::new(Immediate::new(Self { model: MockModel::new(config()), alter }))
    }
}

impl Model for Altered {
    fn info(&self) -> &WorkerInfo {
        self.model.info()
    }

    fn reset(&mut self) {
        self.model.reset();
    }

    fn forward(&mut self, batch: &crate::Batch<'_>) -> Vec<RowResult> {
        let mut results = self.model.forward(batch);
        (self.alter)(&mut results);
        results
    }

    fn idle(&mut self) -> bool {
        true
    }
}

#[test]
fn nothing_else_is_done_while_a_sequence_is_under_way() {
    let mut executor = Altered::executor(|_| {});
    assert!(executor.idle());
    let step = plan().add(0, prompt(3)).blocks(0, &[0]).row(0, 0, 3, 1);
    step.add(3, prompt(3)).run(&mut executor);
    assert!(!executor.idle(), "its next step is about to come");
    plan().release(0).run(&mut executor);
    assert!(!executor.idle(), "another has not begun yet");
    plan().release(3).run(&mut executor);
    assert!(executor.idle());
    plan().add(0, prompt(3)).run(&mut executor);
    executor.reset(2);
    assert!(executor.idle());
}

#[test]
fn a_row_that_breaks_in_the_model_ends_its_sequence_alone() {
    let mut executor = Altered::executor(|results| {
        results[0] = Err(RowFailure::numeric("the logits hold NaN"));
    });
    let step = plan().add(0, prompt(3)).blocks(0, &[0]).row(0, 0, 3, 1);
    let output = executor.execute(step.add(1, prompt(3)).blocks(1, &[1]).row(1, 0, 3, 1).0);
    assert_eq!(output.row_count, [0, 1]);
    assert_eq!((output.row_error[0].row, output.row_error[0].kind()), (0, Kind::Numeric));
    // The broken sequence computes nothing more: its neighbour is now the model's first row.
    let output = executor.execute(plan().row(0, CONTINUE, 1, 1).row(1, CONTINUE, 1, 1).0);
    assert_eq!(output.row_count, [0, 0]);
    assert_eq!(output.row_error.len(), 2);
}
