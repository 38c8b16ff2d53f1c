//! Tokens, ends, and outputs that are not what was planned.

use super::*;

#[test]
fn a_prompt_and_its_output_end_at_the_model_length() {
    let limits = Limits { max_model_len: 5, ..limits(8, 32) };
    let mut harness = Harness::new(limits, vec![prompt(1, 3)]);
    harness.step();
    harness.send();
    assert_eq!(harness.answer()[0].finish, Some(FinishReason::Length));
}

#[test]
fn a_late_token_of_a_preempted_sequence_counts_before_it_is_added_again() {
    let (id, mut first) = prompt(1, 4);
    first.max_tokens = 6;
    let limits = Limits { prefix_caching: false, ..limits(16, 4) };
    let mut harness = Harness::new(limits, vec![(id, first), prompt(2, 4)]);
    for _ in 0..4 {
        harness.step();
    }
    assert_eq!(harness.send(), "1 7+1, 2 7+1");
    assert_eq!(harness.send(), "!2, 1 ...+1");
    let events = harness.answer();
    let tokens: Vec<_> = events.iter().map(|event| (event.id.0, event.tokens.len())).collect();
    assert_eq!(tokens, [(1, 1), (2, 1)]);
    harness.answer();
    assert_eq!(harness.send(), "2 0+9");
}

#[test]
fn a_stop_token_ends_a_sequence_and_is_its_last() {
    let (id, mut first) = prompt(1, 4);
    first.stop_token_ids = Arc::new([3]);
    let mut harness = Harness::new(limits(8, 16), vec![(id, first)]);
    harness.step();
    harness.step();
    harness.send();
    let events = harness.answer();
    assert_eq!(events[0].tokens, [3]);
    assert_eq!(events[0].finish, Some(FinishReason::StopToken(3)));
    assert_eq!(harness.scheduler.num_unfinished(), 0);
}

#[test]
fn a_row_that_was_not_run_is_owed_again() {
    let mut harness = Harness::new(limits(16, 64), vec![prompt(1, 5)]);
    harness.send();
    let mut output = harness.output();
    (output.row_count, output.tokens) = (vec![0], vec![]);
    assert!(harness.answer_with(&output).is_empty());
    assert_eq!(harness.step(), "1 0+5");
    assert_eq!(harness.send(), "1 5+1");
    assert_eq!(harness.send(), "1 ...+1");
    let mut output = harness.output();
    (output.row_count, output.tokens) = (vec![0], vec![]);
    harness.answer_with(&output);
    assert_eq!(harness.send(), "1 ...+1");
    assert_eq!(harness.answer()[0].tokens.len(), 1);
}

#[test]
fn outputs_that_contradict_their_plan_are_refused_and_change_nothing() {
    let mut harness = Harness::new(limits(16, 64), vec![prompt(1, 2), prompt(2, 2)]);
    assert!(harness.scheduler.update(&StepOutput::default(), NOW).is_err());
    harness.send();
    let good = harness.output();
    let error = RowError { row: 2, ..Default::default() };
    let logprobs = Logprobs { index: vec![0], ..Default::default() };
    let cases = [
        StepOutput { row_count: vec![1], ..good.clone() },
        StepOutput { row_count: vec![2, 0], ..good.clone() },
        StepOutput { tokens: vec![1], ..good.clone() },
        StepOutput { row_error: vec![error], ..good.clone() },
        StepOutput { logprobs: Some(logprobs), ..good.clone() },
    ];
    for (case, output) in cases.iter().enumerate() {
        assert!(harness.scheduler.update(output, NOW).is_err(), "case {case}");
        harness.scheduler.check_integrity().unwrap();
    }
    assert_eq!(harness.answer_with(&good).len(), 2);
}

#[test]
fn log_probabilities_reach_those_who_asked() {
    let (id, mut second) = prompt(2, 2);
    second.sampling.logprobs = true;
    let mut harness = Harness::new(limits(16, 64), vec![prompt(1, 2), (id, second)]);
    harness.send();
    let mut output = harness.output();
    output.logprobs = Some(Logprobs {
        index: vec![0, 1],
        logprob: vec![-0.5, -1.0],
        top_count: vec![1, 2],
        top_token: vec![9, 7, 8],
        top_logprob: vec![-9.0, -7.0, -8.0],
    });
    let events = harness.answer_with(&output);
    assert!(events[0].logprobs.is_empty());
    let expected = TokenLogprobs { logprob: -1.0, top: vec![(7, -7.0), (8, -8.0)] };
    assert_eq!(events[1].logprobs, [expected]);
    harness.send();
    let missing = harness.answer();
    assert!(matches!(missing[1].finish, Some(FinishReason::Error(_))));
}

#[test]
fn the_first_event_says_how_long_a_sequence_waited_for_its_first_step() {
    let mut harness = Harness::new(limits(16, 16), vec![]);
    let seconds = Duration::from_secs;
    let (id, request) = prompt(1, 4);
    harness.scheduler.add(SequenceId(id), request, seconds(3));
    for (now, expected) in [(5, Some(seconds(2))), (9, None)] {
        harness.scheduler.schedule(seconds(now)).unwrap();
        assert_eq!(harness.answer()[0].waited, expected);
    }
}
