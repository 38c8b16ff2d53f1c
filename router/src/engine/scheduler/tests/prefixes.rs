//! Which blocks are found by whom, and which must not be.

use super::*;

#[test]
fn a_preempted_sequence_finds_its_own_blocks_again() {
    let (id, mut first) = prompt(1, 4);
    first.max_tokens = 7;
    let mut harness = Harness::new(limits(16, 4), vec![(id, first), prompt(2, 4)]);
    let lines: Vec<_> = (0..8).map(|_| harness.step()).collect();
    assert_eq!(lines[5..], ["!2, 1 8+1", "1 9+1", "2 4+5"]);
    assert_eq!(harness.scheduler.stats().preemptions, 1);
}

#[test]
fn the_next_turn_hits_prompt_and_generated_blocks() {
    let (id, mut first) = prompt(1, 6);
    first.max_tokens = 4;
    let mut harness = Harness::new(limits(16, 16), vec![(id, first.clone())]);
    let output: Vec<u32> = (0..4)
        .flat_map(|_| {
            harness.send();
            harness.answer().into_iter().flat_map(|event| event.tokens)
        })
        .collect();
    let next: Vec<u32> = first.prompt.iter().chain(&output).copied().chain([7, 8, 9]).collect();
    harness.scheduler.add(SequenceId(2), request(next), NOW);
    assert_eq!(harness.send(), "2 8+5");
    assert_eq!(harness.answer()[0].cached_tokens, Some(8));
    assert_eq!(harness.scheduler.stats().cached_tokens, 8);
}

#[test]
fn a_hit_leaves_at_least_the_last_token() {
    let tokens: Vec<u32> = (0..8).collect();
    let mut harness = Harness::new(limits(16, 16), vec![(1, request(tokens.clone()))]);
    harness.send();
    harness.scheduler.add(SequenceId(2), request(tokens), NOW);
    assert_eq!(harness.send(), "1 ...+1, 2 4+4");
}

#[test]
fn equal_prompts_in_one_step_do_not_hit_each_other() {
    let tokens: Vec<u32> = (0..9).collect();
    let requests = [1, 2].map(|id| (id, request(tokens.clone()))).to_vec();
    check(limits(32, 16), requests, "1 0+9, 2 0+9");
}

#[test]
fn a_chunk_in_flight_can_be_hit_as_far_as_it_reaches() {
    let tokens: Vec<u32> = (0..12).collect();
    let mut harness = Harness::new(limits(10, 16), vec![(1, request(tokens.clone()))]);
    assert_eq!(harness.send(), "1 0+10");
    harness.scheduler.add(SequenceId(2), request(tokens), NOW);
    assert_eq!(harness.send(), "1 10+2, 2 8+4");
}

#[test]
fn salts_keep_prefixes_apart() {
    let salted = |salt: Option<&str>| NewSequence {
        cache_salt: salt.map(Arc::from),
        ..request((0..9).collect())
    };
    let mut harness = Harness::new(limits(64, 64), vec![(1, salted(Some("a")))]);
    harness.step();
    for (id, salt) in [(2, None), (3, Some("b")), (4, Some("a"))] {
        harness.scheduler.add(SequenceId(id), salted(salt), NOW);
    }
    assert_eq!(harness.send(), "1 9+1, 2 0+9, 3 0+9, 4 8+1");
}

#[test]
fn without_prefix_caching_nothing_is_hit() {
    let tokens: Vec<u32> = (0..9).collect();
    let limits = Limits { prefix_caching: false, ..limits(64, 64) };
    let mut harness = Harness::new(limits, vec![(1, request(tokens.clone()))]);
    harness.step();
    harness.scheduler.add(SequenceId(2), request(tokens), NOW);
    assert_eq!(harness.send(), "1 9+1, 2 0+9");
}

#[test]
fn the_block_that_a_stop_token_completes_is_not_indexed() {
    // The row that would compute the stop token is in flight when it is sampled, but the worker
    // knows that the text is over.
    let (id, mut first) = prompt(1, 7);
    first.stop_token_ids = Arc::new([1]);
    let mut harness = Harness::new(limits(16, 16), vec![(id, first.clone())]);
    harness.send();
    harness.send();
    harness.answer();
    let next: Vec<u32> = first.prompt.iter().copied().chain([1, 2]).collect();
    harness.scheduler.add(SequenceId(2), request(next), NOW);
    assert_eq!(harness.send(), "2 4+5");
}

#[test]
fn a_broken_row_ends_alone_and_takes_its_blocks_out() {
    let tokens: Vec<u32> = (0..9).collect();
    let requests = vec![(1, request(tokens.clone())), prompt(2, 4)];
    let mut harness = Harness::new(limits(64, 64), requests);
    harness.send();
    // The third hits what the broken row was to compute: it begins again.
    harness.scheduler.add(SequenceId(3), request(tokens.clone()), NOW);
    assert_eq!(harness.send(), "1 ...+1, 2 ...+1, 3 8+1");
    let mut output = harness.output();
    output.row_count[0] = 0;
    output.tokens.remove(0);
    let error = RowError { row: 0, kind: Kind::Numeric.into(), message: "NaN".to_owned() };
    output.row_error.push(error);
    let events = harness.answer_with(&output);
    assert_eq!((events[0].id.0, events[1].id.0), (1, 2));
    let Some(FinishReason::Error(reason)) = &events[0].finish else { panic!("no error") };
    assert_eq!(reason, "the model produced no usable numbers for this request: NaN");
    assert_eq!(harness.send(), "2 ...+1, 3 0+9");
    assert!(harness.answer().iter().all(|event| event.id.0 == 2));
    assert_eq!(harness.scheduler.stats().overruns, 2);
}

#[test]
fn a_row_may_break_beside_one_that_ends() {
    let (id, mut first) = prompt(1, 4);
    first.max_tokens = 1;
    let mut harness = Harness::new(limits(64, 64), vec![(id, first), prompt(2, 9)]);
    harness.send();
    let mut output = harness.output();
    (output.row_count, output.tokens) = (vec![1, 0], vec![7]);
    output.row_error.push(RowError { row: 1, ..Default::default() });
    let events = harness.answer_with(&output);
    assert_eq!(events[0].finish, Some(FinishReason::Length));
    assert!(matches!(events[1].finish, Some(FinishReason::Error(_))));
}

#[test]
fn what_a_sequence_that_is_gone_computed_from_a_broken_row_is_not_found() {
    let tokens: Vec<u32> = (0..13).collect();
    let short = || request(tokens[..9].to_vec());
    let mut harness = Harness::new(limits(64, 64), vec![(1, short())]);
    harness.send();
    harness.scheduler.add(SequenceId(2), request(tokens.clone()), NOW);
    assert_eq!(harness.send(), "1 ...+1, 2 8+5");
    assert!(harness.scheduler.abort(SequenceId(2)));
    let mut output = harness.output();
    (output.row_count, output.tokens) = (vec![0], vec![]);
    output.row_error.push(RowError::default());
    harness.answer_with(&output);
    harness.answer();
    // Another one computes the beginning anew; the third block would follow it.
    harness.scheduler.add(SequenceId(3), short(), NOW);
    assert_eq!(harness.step(), "3 0+9");
    harness.scheduler.add(SequenceId(4), request(tokens), NOW);
    assert_eq!(harness.step(), "3 9+1, 4 8+5");
}

#[test]
fn what_hit_a_block_that_was_not_run_begins_again() {
    let tokens: Vec<u32> = (0..9).collect();
    let mut harness = Harness::new(limits(64, 64), vec![(1, request(tokens.clone()))]);
    harness.send();
    harness.scheduler.add(SequenceId(2), request(tokens), NOW);
    assert_eq!(harness.send(), "1 ...+1, 2 8+1");
    let mut output = harness.output();
    (output.row_count, output.tokens) = (vec![0], vec![]);
    harness.answer_with(&output);
    // The second step continues the first sequence where it is, and reads nonsense for the second.
    assert_eq!(harness.send(), "2 0+9");
}

/// What becomes of a broken row's blocks when its sequence is gone before the row is read.
#[track_caller]
fn check_gone(make_it_go: fn(&mut Harness), expected: &str) {
    let tokens: Vec<u32> = (0..9).collect();
    let mut harness = Harness::new(limits(64, 64), vec![(1, request(tokens.clone()))]);
    harness.send();
    harness.scheduler.add(SequenceId(2), request(tokens.clone()), NOW);
    assert_eq!(harness.send(), "1 ...+1, 2 8+1");
    make_it_go(&mut harness);
    let error = RowError { row: 0, ..Default::default() };
    let broken =
        StepOutput { row_count: vec![0], row_error: vec![error], step: 1, ..Default::default() };
    harness.answer_with(&broken);
    harness.scheduler.add(SequenceId(3), request(tokens), NOW);
    assert_eq!(harness.send(), expected);
}

#[test]
fn a_broken_row_takes_its_blocks_out_though_its_sequence_was_aborted() {
    check_gone(|_| (), "2 0+9, 3 0+9");
    check_gone(|harness| assert!(harness.scheduler.abort(SequenceId(1))), "2 0+9, 3 0+9");
}
