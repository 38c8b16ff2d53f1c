//! Rows that are planned before those ahead of them are finished.

use super::*;
use millstream_proto::{CONTINUE, CacheGroup};

fn slots() -> Slots {
    let info = WorkerInfo {
        max_model_len: 16,
        vocab_size: 100,
        block_size: 16,
        max_slots: 1,
        max_batch_tokens: 16,
        cache_groups: vec![CacheGroup { num_blocks: 1, ..CacheGroup::default() }],
        ..WorkerInfo::default()
    };
    Slots::new(&info, None)
}

/// Three tokens in slot 0, in place of what is there, and the row that samples the fourth.
fn first(slots: &mut Slots) -> PlannedRow {
    let add = AddSequence { prompt_len: 3, tokens: vec![5, 6, 7], ..AddSequence::default() };
    let release = slots.get(0).map(|_| 0).into_iter().collect();
    let new_block = vec![0];
    planned(slots, Step { release, add: vec![add], new_block, ..row(3) })
}

/// One more row of slot 0, which samples.
fn row(len: u32) -> Step {
    Step {
        row_slot: vec![0],
        row_start: vec![CONTINUE],
        row_len: vec![len],
        row_sample: vec![1],
        ..Step::default()
    }
}

fn planned(slots: &mut Slots, mut step: Step) -> PlannedRow {
    step.new_block_slot = vec![0; step.new_block.len()];
    step.new_block_group = vec![0; step.new_block.len()];
    let plans = slots.apply(step);
    let [RowPlan::Run(row)] = plans[..] else { panic!("{plans:?}") };
    row
}

fn sampled(token: u32) -> RowResult {
    Ok(Some(SampledToken { token, logprobs: None }))
}

fn ids(slots: &Slots, row: PlannedRow) -> Vec<u32> {
    slots.batch(&[RowPlan::Run(row)]).ids
}

#[test]
fn a_row_may_end_at_a_promised_token_which_is_unknown_until_it_is_sampled() {
    let mut slots = slots();
    let one = first(&mut slots);
    let two = planned(&mut slots, row(1));
    assert_eq!((two.start, two.len, ids(&slots, two)), (3, 1, vec![Batch::UNKNOWN]));
    assert_eq!(slots.get(0).map(|it| (it.num_promised, it.num_computed)), Some((2, 4)));
    slots.finish(one, sampled(9)).unwrap();
    assert_eq!(ids(&slots, two), [9]);
    slots.finish(two, sampled(8)).unwrap();
    let sequence = slots.get(0).unwrap();
    assert_eq!((sequence.num_promised, &sequence.tokens[..]), (0, &[5, 6, 7, 9, 8][..]));
}

#[test]
fn a_row_lies_within_what_is_known_and_promised() {
    for (promise, len, rule) in [
        (1, 2, "row 3+2 is beyond the 4 tokens known"),
        (0, 1, "row 3+1 is beyond the 3 tokens known"),
    ] {
        let mut slots = slots();
        let add = AddSequence { prompt_len: 3, tokens: vec![5, 6, 7], ..AddSequence::default() };
        let row_sample = vec![promise];
        planned(&mut slots, Step { add: vec![add], new_block: vec![0], row_sample, ..row(3) });
        let plans = slots.apply(row(len));
        let [RowPlan::Failed(failure)] = &plans[..] else { panic!("{plans:?}") };
        assert!(failure.message.contains(rule), "{rule}: {failure}");
    }
}

#[test]
fn what_comes_of_a_released_sequence_is_not_its_successors() {
    let mut slots = slots();
    let one = first(&mut slots);
    let two = first(&mut slots);
    assert_ne!(one.serial, two.serial);
    assert_eq!(slots.finish(one, sampled(9)), sampled(9));
    assert!(slots.released.is_empty(), "nothing of it is in flight");
    assert_eq!(slots.get(0).unwrap().tokens, [5, 6, 7]);
    slots.finish(two, sampled(8)).unwrap();
    assert_eq!(slots.get(0).unwrap().tokens, [5, 6, 7, 8]);
}

#[test]
fn rows_after_an_end_report_nothing_and_rows_after_a_failure_repeat_it() {
    for (result, later) in
        [(sampled(9), Ok(None)), (Err(RowFailure::numeric("a")), Err(RowFailure::numeric("a")))]
    {
        let mut slots = slots();
        let one = first(&mut slots);
        slots.entries[0].as_mut().unwrap().sequence.stop_token_ids = vec![9];
        let two = planned(&mut slots, row(1));
        assert_eq!(slots.finish(one, result.clone()), result);
        assert_eq!(slots.finish(two, sampled(8)), later);
        let plan = later.map_or_else(RowPlan::Failed, |_| RowPlan::Ended);
        assert_eq!(slots.apply(row(1)), [plan]);
    }
}

#[test]
fn a_failure_found_while_planning_leaves_the_rows_before_it_as_they_are() {
    let mut slots = slots();
    let one = first(&mut slots);
    assert!(matches!(slots.apply(row(2))[..], [RowPlan::Failed(_)]));
    assert_eq!(slots.finish(one, sampled(9)), sampled(9));
    assert_eq!(slots.get(0).unwrap().num_promised, 0);
}
