//! Several cache groups, and blocks that a window passes.

use millstream_proto::NO_BLOCK;

use super::*;

const FULL: Option<u32> = None;

/// Groups of so many blocks of four tokens each, with these windows.
fn groups(max_batch_tokens: u32, groups: &[(u32, Option<u32>)]) -> Limits {
    let group = |&(num_blocks, window): &(u32, Option<u32>)| GroupLimits { num_blocks, window };
    let groups = groups.iter().map(group).collect();
    Limits { groups, max_model_len: 1000, ..limits(max_batch_tokens, 1) }
}

/// How many blocks each group has handed out.
fn used(harness: &Harness) -> Vec<usize> {
    let groups = harness.scheduler.groups.iter();
    groups.map(|group| group.blocks.num_blocks() - group.blocks.num_free()).collect()
}

/// The new blocks of a step in a group.
fn new_blocks(step: &Step, group: u32) -> Vec<u32> {
    let blocks = step.new_block_group.iter().zip(&step.new_block);
    blocks.filter(|(of, _)| **of == group).map(|(_, block)| *block).collect()
}

#[test]
fn a_sequence_has_a_table_in_each_group_and_frees_them_all() {
    let limits = groups(64, &[(16, FULL), (16, Some(6)), (16, Some(100))]);
    let mut harness = Harness::new(limits, vec![prompt(1, 9)]);
    let step = harness.schedule().unwrap();
    assert_eq!([0, 1, 2].map(|group| new_blocks(&step, group).len()), [3; 3]);
    assert_eq!(used(&harness), [3; 3]);
    let stats = harness.scheduler.stats();
    assert_eq!((stats.used_blocks, stats.num_blocks), (9, 48));
    assert!(harness.scheduler.abort(SequenceId(1)));
    assert_eq!(used(&harness), [0; 3]);
}

#[test]
fn the_fullest_group_is_the_usage() {
    let limits = groups(64, &[(16, FULL), (6, Some(6))]);
    let mut harness = Harness::new(limits, vec![prompt(1, 9)]);
    harness.schedule();
    assert!((harness.scheduler.stats().cache_usage - 0.5).abs() < 1e-9);
}

#[test]
fn a_window_passes_blocks_once_outputs_confirm_that_it_has() {
    // Position 8 sees 3 to 8 and position 9 sees 4 to 9: then the first block is behind.
    let limits = groups(64, &[(16, FULL), (16, Some(6))]);
    let mut harness = Harness::new(limits, vec![prompt(1, 8)]);
    let mut freed = Vec::new();
    for _ in 0..4 {
        harness.send();
        freed.push(harness.scheduler.stats().window_frees);
        if harness.scheduler.in_flight.len() == 2 {
            harness.answer();
        }
    }
    // The steps compute 0 to 7, 8, 9 and 10. At the fourth, the second one is confirmed.
    assert_eq!(freed, [0, 0, 0, 1]);
    assert_eq!(used(&harness), [3, 2]);
}

#[test]
fn what_was_not_run_still_finds_its_window() {
    let limits = groups(64, &[(16, FULL), (16, Some(6))]);
    let mut harness = Harness::new(limits, vec![prompt(1, 8)]);
    harness.send();
    harness.answer();
    assert_eq!([harness.send(), harness.send()], ["1 8+1", "1 ...+1"]);
    let mut output = harness.output();
    (output.row_count, output.tokens) = (vec![0], vec![]);
    harness.answer_with(&output);
    harness.send();
    assert_eq!(harness.scheduler.stats().window_frees, 0, "position 8 is owed again");
    harness.answer();
    harness.send();
    assert_eq!(harness.scheduler.stats().window_frees, 1);
}

#[test]
fn a_long_prompt_needs_no_more_than_its_window_and_its_chunks() {
    // Two chunks of 8 and a window of 6: 21 positions, so at most 7 blocks.
    let limits = groups(8, &[(32, FULL), (7, Some(6))]);
    let mut harness = Harness::new(limits, vec![prompt(1, 100)]);
    let mut steps = 0;
    while harness.scheduler.stats().generated_tokens == 0 {
        harness.send();
        assert!(used(&harness)[1] <= 7, "{:?}", used(&harness));
        if harness.scheduler.in_flight.len() == 2 {
            harness.answer();
        }
        steps += 1;
    }
    assert!(steps <= 15, "{steps}");
    assert!(used(&harness)[0] >= 25);
}

#[test]
fn a_chunk_ends_where_the_blocks_of_a_window_end() {
    let limits = groups(64, &[(32, FULL), (4, Some(5))]);
    let lines = "1 0+16\n1 16+12\n1 28+12\n1 40+12\n1 52+8";
    check(limits, vec![prompt(1, 60)], lines);
}

#[test]
fn a_sequence_alone_waits_for_what_it_has_in_flight() {
    let limits = groups(64, &[(32, FULL), (4, Some(5))]);
    let mut harness = Harness::new(limits, vec![prompt(1, 60)]);
    assert_eq!([harness.send(), harness.send()], ["1 0+16", ""]);
    harness.answer();
    assert_eq!([harness.send(), harness.send()], ["1 16+12", ""]);
    assert_eq!(harness.scheduler.stats().preemptions, 0);
}

#[test]
fn a_window_of_one_needs_two_blocks_for_ever() {
    let limits = Limits { max_model_len: 300, ..groups(4, &[(2, Some(1))]) };
    let (id, mut request) = prompt(1, 50);
    request.max_tokens = 100;
    let mut harness = Harness::new(limits, vec![(id, request)]);
    while harness.scheduler.num_unfinished() > 0 {
        if harness.send().is_empty() {
            harness.answer();
        }
    }
    assert_eq!(harness.scheduler.stats().generated_tokens, 100);
    assert_eq!(harness.scheduler.stats().preemptions, 0);
    assert_eq!(used(&harness), [0]);
}

#[test]
fn the_youngest_is_preempted_when_a_window_has_no_block() {
    let limits = Limits { prefix_caching: false, ..groups(16, &[(64, FULL), (5, Some(8))]) };
    let mut harness = Harness::new(limits, vec![prompt(1, 4), prompt(2, 4)]);
    let lines: Vec<String> = (0..9).map(|_| harness.step()).collect();
    assert_eq!(lines[0], "1 0+4, 2 0+4");
    assert!(lines.iter().any(|line| line.starts_with("!2, 1 ")), "{lines:?}");
}

/// A first sequence of 21 tokens has ended; what the second one, `tokens`, then computes.
fn hit_after(limits: Limits, disturb: impl Fn(&mut Harness), tokens: Vec<u32>) -> (String, Step) {
    let mut harness = Harness::new(limits, vec![(1, request((0..21).collect()))]);
    harness.step();
    harness.scheduler.abort(SequenceId(1));
    harness.schedule();
    harness.answer();
    disturb(&mut harness);
    harness.scheduler.add(SequenceId(2), request(tokens), NOW);
    let step = harness.schedule().unwrap();
    let row = format!("{}+{}", step.row_start[0], step.row_len[0]);
    (row, step)
}

/// Nobody finds the block of this place in a group any more.
fn forget(harness: &mut Harness, group: usize, place: usize) {
    let root = BlockKey::root(None, "", b"");
    let tokens: Vec<u32> = (0..21).collect();
    let (mut key, mut chunk) = (root, &tokens[..0]);
    for tokens in tokens.chunks(4).take(place + 1) {
        (key, chunk) = (key.child(tokens), tokens);
    }
    let blocks = &mut harness.scheduler.groups[group].blocks;
    let block = blocks.find(key, chunk).expect("the block is indexed");
    assert!(blocks.unindex(block));
}

#[test]
fn a_hit_takes_from_a_window_what_its_first_row_sees() {
    let limits = groups(64, &[(32, FULL), (32, Some(6))]);
    let (row, step) = hit_after(limits, |_| (), (0..22).collect());
    // Position 20 sees positions 15 to 20: the blocks at places 3 and 4 are needed.
    assert_eq!(row, "20+2");
    let window = new_blocks(&step, 1);
    assert_eq!(window[..3], [NO_BLOCK; 3]);
    assert!(window.len() == 6 && window[3..].iter().all(|&block| block != NO_BLOCK));
    assert!(!new_blocks(&step, 0).contains(&NO_BLOCK));
}

#[test]
fn a_hit_ends_where_all_groups_have_what_they_need() {
    let full_and_window = || groups(64, &[(32, FULL), (32, Some(6))]);
    let windows = || groups(64, &[(32, Some(6)), (32, Some(2))]);
    type Missing = &'static [(usize, usize)];
    let cases: [(Limits, Missing, &str); 8] = [
        (full_and_window(), &[], "20+2"),
        (full_and_window(), &[(0, 3)], "12+10"),
        // Without place 4, the hit ends before it; without place 3, that is missed by 20, too.
        (full_and_window(), &[(1, 4)], "16+6"),
        (full_and_window(), &[(1, 3)], "12+10"),
        (full_and_window(), &[(1, 0)], "20+2"),
        (full_and_window(), &[(1, 4), (1, 2)], "8+14"),
        // The second window needs place 4 only, but what it misses moves the first one's need.
        (windows(), &[(1, 4), (0, 3)], "12+10"),
        (windows(), &[(1, 0), (1, 1), (1, 2), (1, 3), (1, 4), (0, 2)], "0+22"),
    ];
    for (limits, missing, row) in cases {
        let disturb = |harness: &mut Harness| {
            missing.iter().for_each(|&(group, place)| forget(harness, group, place));
        };
        assert_eq!(hit_after(limits, disturb, (0..22).collect()).0, row, "{missing:?}");
    }
}

#[test]
fn a_hit_leaves_the_last_token_in_every_group() {
    let limits = groups(64, &[(32, Some(6))]);
    assert_eq!(hit_after(limits, |_| (), (0..20).collect()).0, "16+4");
}

#[test]
fn what_a_window_has_passed_can_be_hit_until_it_is_handed_out() {
    let limits = groups(64, &[(32, Some(5))]);
    let mut harness = Harness::new(limits, vec![(1, request((0..8).collect()))]);
    for _ in 0..12 {
        harness.step();
    }
    assert!(harness.scheduler.stats().window_frees >= 3);
    harness.scheduler.add(SequenceId(2), request((0..10).collect()), NOW);
    assert!(harness.send().ends_with("2 8+2"));
}

#[test]
fn a_broken_row_takes_out_what_its_window_has_passed() {
    let limits = groups(64, &[(32, Some(5))]);
    let mut harness = Harness::new(limits, vec![(1, request((0..8).collect()))]);
    for _ in 0..12 {
        harness.step();
    }
    harness.send();
    let error = RowError { row: 0, kind: Kind::Numeric.into(), ..Default::default() };
    let mut output = harness.output();
    (output.row_count, output.tokens, output.row_error) = (vec![0], vec![], vec![error]);
    harness.answer_with(&output);
    harness.scheduler.add(SequenceId(2), request((0..10).collect()), NOW);
    assert_eq!(harness.send(), "2 0+10");
}

#[test]
fn admission_counts_the_blocks_of_every_group() {
    // The prompts need three blocks each; the second group has room for one of them.
    let limits = groups(64, &[(32, FULL), (5, Some(100))]);
    let requests = vec![prompt(1, 9), prompt(2, 9)];
    check(limits, requests, "1 0+9");
}
