//! Workers that die, and who is suspected of it.

use super::*;

#[test]
fn after_a_loss_everything_waits_in_the_order_of_arrival_and_goes_on() {
    let limits = limits(8, 16);
    let mut harness = Harness::new(limits.clone(), vec![prompt(1, 4), prompt(2, 4), prompt(3, 4)]);
    harness.step();
    harness.send();
    assert!(harness.scheduler.lose_worker(false, NOW).is_empty());
    harness.scheduler.check_integrity().unwrap();
    assert_eq!(harness.scheduler.stats().waiting, 3);
    harness.scheduler.use_worker(limits, NOW);
    assert_eq!(harness.send(), "1 0+5, 2 0+3");
    assert_eq!(harness.scheduler.in_flight[0].step, 1, "steps are numbered per epoch");
}

#[test]
fn suspects_of_two_deaths_run_one_at_a_time_and_the_third_death_fences_the_one() {
    let limits = limits(16, 64);
    let mut harness = Harness::new(limits, vec![prompt(1, 2), prompt(2, 2)]);
    for _ in 0..2 {
        assert_eq!(harness.send(), "1 0+2, 2 0+2");
        assert!(harness.scheduler.lose_worker(false, NOW).is_empty());
    }
    harness.scheduler.add(SequenceId(3), prompt(3, 2).1, NOW);
    assert_eq!(harness.send(), "1 0+2, 3 0+2");
    let events = harness.scheduler.lose_worker(false, NOW);
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].id, SequenceId(1));
    assert_eq!(harness.scheduler.stats().fenced, 1);
    assert_eq!(harness.send(), "2 0+2, 3 0+2");
}

#[test]
fn a_suspect_that_ran_sixteen_tokens_makes_way_for_the_next() {
    let limits = limits(16, 64);
    let mut harness = Harness::new(limits, vec![prompt(1, 2), prompt(2, 2)]);
    for _ in 0..2 {
        harness.send();
        harness.scheduler.lose_worker(false, NOW);
    }
    for _ in 0..16 {
        assert!(!harness.step().contains("2 "));
    }
    assert!(harness.step().contains(", 2 0+2"));
}

#[test]
fn planned_moves_never_count() {
    let limits = limits(16, 64);
    let mut harness = Harness::new(limits, vec![prompt(1, 2), prompt(2, 2)]);
    for _ in 0..10 {
        assert_eq!(harness.send(), "1 0+2, 2 0+2");
        assert!(harness.scheduler.lose_worker(true, NOW).is_empty());
    }
}

#[test]
fn what_was_not_in_flight_at_a_death_is_no_suspect() {
    let limits = Limits { max_slots: 1, ..limits(16, 64) };
    let mut harness = Harness::new(limits, vec![prompt(1, 2), prompt(2, 2)]);
    for _ in 0..3 {
        harness.send();
        harness.scheduler.lose_worker(false, NOW);
    }
    for _ in 0..2 {
        assert_eq!(harness.send(), "2 0+2");
        assert!(harness.scheduler.lose_worker(false, NOW).is_empty());
    }
}
