//! Budget, chunks, admission, preemption, slots.

use super::*;

#[test]
fn a_long_prompt_is_paid_in_chunks_after_the_decodes() {
    check(limits(8, 16), vec![prompt(1, 4), prompt(2, 10)], "1 0+4, 2 0+4\n1 4+1, 2 4+6");
}

#[test]
fn one_prompt_takes_at_most_half_of_the_budget_while_others_wait() {
    let requests = vec![prompt(1, 20), prompt(2, 20), prompt(3, 20)];
    check(limits(8, 32), requests, "1 0+4, 2 0+4\n1 4+4, 2 4+4");
}

#[test]
fn a_prompt_that_ends_in_the_step_takes_more_than_half() {
    check(limits(8, 32), vec![prompt(1, 6), prompt(2, 20)], "1 0+6, 2 0+2\n1 6+1, 2 2+7");
}

#[test]
fn decodes_take_nothing_from_the_prompts() {
    let limits = Limits { max_prefill_tokens: 6, ..limits(8, 32) };
    let requests = vec![prompt(1, 3), prompt(2, 3), prompt(3, 20)];
    check(limits.clone(), requests, "1 0+3, 2 0+3\n1 3+1, 2 3+1, 3 0+6\n1 4+1, 2 4+1, 3 6+6");
    // Unless the worker computes no more in a step.
    let limits = Limits { max_batch_tokens: 7, ..limits };
    let requests = vec![prompt(1, 3), prompt(2, 3), prompt(3, 20)];
    check(limits, requests, "1 0+3, 2 0+3\n1 3+1, 2 3+1, 3 0+5");
}

#[test]
fn what_nobody_else_can_use_goes_to_the_oldest_prompt() {
    check(limits(8, 32), vec![prompt(1, 20), prompt(2, 2)], "1 0+6, 2 0+2\n2 2+1, 1 6+7");
}

#[test]
fn a_prompt_alone_takes_the_whole_budget() {
    check(limits(8, 32), vec![prompt(1, 20)], "1 0+8\n1 8+8\n1 16+4\n1 20+1");
}

#[test]
fn nothing_is_scheduled_beyond_max_tokens() {
    let (id, mut request) = prompt(1, 3);
    request.max_tokens = 2;
    let mut harness = Harness::new(limits(8, 32), vec![(id, request)]);
    assert_eq!([(); 3].map(|()| harness.step()), ["1 0+3", "1 3+1", ""]);
}

#[test]
fn nothing_is_scheduled_beyond_max_tokens_with_two_steps_in_flight() {
    let (id, mut request) = prompt(1, 3);
    request.max_tokens = 2;
    let mut harness = Harness::new(limits(8, 32), vec![(id, request)]);
    assert_eq!([harness.send(), harness.send()], ["1 0+3", "1 ...+1"]);
    harness.answer();
    assert_eq!(harness.send(), "");
    let events = harness.answer();
    assert_eq!(events[0].finish, Some(FinishReason::Length));
}

#[test]
fn two_steps_are_in_flight_and_decodes_stand_in_both() {
    let mut harness = Harness::new(limits(8, 32), vec![prompt(1, 2), prompt(2, 2)]);
    assert_eq!(harness.send(), "1 0+2, 2 0+2");
    assert_eq!(harness.send(), "1 ...+1, 2 ...+1");
    assert_eq!(harness.send(), "", "two are in flight");
    for _ in 0..5 {
        harness.answer();
        assert_eq!(harness.send(), "1 ...+1, 2 ...+1");
    }
}

#[test]
fn where_steps_take_long_what_comes_meanwhile_stands_in_the_next_one() {
    let at = Duration::from_millis;
    let mut harness = Harness::new(limits(8, 32), vec![prompt(1, 2)]);
    let send = |harness: &mut Harness, ms| {
        harness.scheduler.schedule(at(ms)).map(|step| step.row_slot.len())
    };
    assert_eq!([send(&mut harness, 0), send(&mut harness, 0)], [Some(1), Some(1)]);
    for ms in [150, 300] {
        let output = harness.output();
        harness.scheduler.update(&output, at(ms)).unwrap();
        assert_eq!(send(&mut harness, ms), (ms == 300).then_some(1), "one is in flight at {ms}");
    }
    let (id, request) = prompt(2, 2);
    harness.scheduler.add(SequenceId(id), request, at(310));
    assert_eq!(send(&mut harness, 310), None);
    let output = harness.output();
    harness.scheduler.update(&output, at(390)).unwrap();
    // That one took 90 ms: two may be in flight again.
    assert_eq!([send(&mut harness, 390), send(&mut harness, 390)], [Some(2), Some(2)]);
    assert_eq!(send(&mut harness, 390), None);
}

#[test]
fn the_youngest_is_preempted_and_comes_back_with_its_tokens() {
    let expected = "1 0+4, 2 0+4\n1 4+1, 2 4+1\n1 5+1, 2 5+1\n1 6+1, 2 6+1\n1 7+1, 2 7+1\n\
                    !2, 1 8+1\n1 9+1";
    let limits = Limits { prefix_caching: false, ..limits(16, 4) };
    check(limits, vec![prompt(1, 4), prompt(2, 4)], expected);
}

#[test]
fn admission_leaves_a_free_block_per_running_sequence() {
    // Five blocks: one is taken by each of the first two, and one must stay free for each.
    let requests = vec![prompt(1, 4), prompt(2, 4), prompt(3, 4), prompt(4, 4)];
    check(limits(64, 5), requests, "1 0+4, 2 0+4, 3 0+4");
    let requests = vec![prompt(1, 4), prompt(2, 4), prompt(3, 8), prompt(4, 4)];
    check(limits(64, 5), requests, "1 0+4, 2 0+4");
}

#[test]
fn no_more_sequences_run_than_a_step_has_tokens() {
    let requests = (1..=4).map(|id| prompt(id, 1)).collect();
    check(limits(3, 64), requests, "1 0+1, 2 0+1, 3 0+1\n1 1+1, 2 1+1, 3 1+1");
}

#[test]
fn an_abort_alone_sends_its_release_within_two_steps_in_flight() {
    let mut harness = Harness::new(limits(8, 16), vec![prompt(1, 4)]);
    harness.send();
    harness.send();
    assert!(harness.scheduler.abort(SequenceId(1)));
    assert!(!harness.scheduler.abort(SequenceId(1)));
    assert_eq!(harness.scheduler.stats().used_blocks, 0, "blocks are free at once");
    assert!(harness.schedule().is_none(), "two are in flight");
    assert!(harness.answer().is_empty());
    let step = harness.schedule().unwrap();
    assert_eq!((step.release, step.row_slot), (vec![0], vec![]));
    assert!(harness.answer().is_empty() && harness.answer().is_empty());
    assert!(harness.schedule().is_none());
    assert_eq!(harness.scheduler.stats().overruns, 2);
}

#[test]
fn a_slot_is_released_and_taken_in_the_same_step() {
    let limits = Limits { max_slots: 1, ..limits(8, 16) };
    let mut harness = Harness::new(limits, vec![prompt(1, 4), prompt(2, 4)]);
    harness.step();
    harness.scheduler.abort(SequenceId(1));
    let step = harness.schedule().unwrap();
    assert_eq!((step.release, step.add[0].slot, step.row_slot), (vec![0], 0, vec![0]));
}

#[test]
fn a_prompt_that_leaves_no_room_ends_with_an_error() {
    for len in [0, 16, 17] {
        let mut harness = Harness::new(limits(8, 4), vec![prompt(1, len)]);
        let events = harness.scheduler.take_pending();
        assert!(matches!(events[0].finish, Some(FinishReason::Error(_))), "length {len}");
        assert_eq!(harness.scheduler.num_unfinished(), 0);
    }
}

#[test]
fn a_sequence_that_outgrows_the_cache_alone_ends_with_an_error() {
    let limits = Limits { max_model_len: 100, ..limits(8, 2) };
    let mut harness = Harness::new(limits.clone(), vec![prompt(1, 8)]);
    harness.step();
    let step = harness.schedule().unwrap();
    assert_eq!((step.release, step.row_slot), (vec![0], vec![]));
    let events = harness.answer();
    assert!(matches!(events[0].finish, Some(FinishReason::Error(_))));
    let mut harness = Harness::new(limits, vec![prompt(1, 9)]);
    assert!(harness.schedule().is_none());
    assert_eq!(harness.scheduler.take_pending().len(), 1);
}
