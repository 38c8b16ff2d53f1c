//! Chosen paths: every kill point of one workload, a full house, a request that kills workers.

use super::*;
use crate::engine::scheduler::Stats;

/// Room for about two of the workload's four sequences, so that they preempt one another.
fn small_config() -> MockConfig {
    MockConfig {
        vocab_size: 50,
        block_size: 4,
        cache_groups: vec![MockGroup::full(14)],
        max_slots: 4,
        max_model_len: 40,
        max_batch_tokens: 8,
        eos_every: Some(30),
        ..MockConfig::default()
    }
}

/// Shared beginnings, several chunks, several lengths.
fn workload() -> Vec<NewSequence> {
    let shared: Vec<u32> = (1..=10).collect();
    let prompt = |tail: &[u32]| -> Vec<u32> { shared.iter().chain(tail).copied().collect() };
    vec![
        request(&prompt(&[1, 2, 3]), 20),
        request(&prompt(&[1, 2, 3]), 17),
        request(&prompt(&[4]), 14),
        NewSequence { stop_token_ids: Arc::new([0]), ..request(&[5], 12) },
    ]
}

/// Runs the workload in lockstep, both steps always in flight, and kills the worker after as many
/// actions as given. Returns how many actions there were before, and the world at the end.
fn run_workload(
    config: &MockConfig,
    kind: Kind,
    kill_at: Option<usize>,
) -> Checked<(usize, World)> {
    let mut world = World::new(config.clone(), engine_config(), kind, None);
    world.connect()?;
    for (id, request) in workload().into_iter().enumerate() {
        world.submit(id as u64, request)?;
    }
    let actions: &[fn(&mut World) -> Checked<bool>] = match kind {
        Kind::OneByOne => &[World::send, World::send, World::execute, World::deliver],
        Kind::Overlapping => {
            &[World::send, World::send, World::begin, World::begin, World::finish, World::deliver]
        }
    };
    let mut num_actions = 0;
    while !world.unfinished().is_empty() {
        for action in actions {
            if Some(num_actions) == kill_at {
                world.kill(false)?;
                world.connect()?;
                world.send()?;
                for output in std::mem::take(&mut world.stale) {
                    world.input(Input::Output(output))?;
                }
            }
            action(&mut world)?;
            num_actions += 1;
        }
    }
    world.check_end()?;
    Ok((num_actions, world))
}

/// Kills the worker at each point of the workload. Returns the figures of the undisturbed run.
fn kill_everywhere(config: &MockConfig, kind: Kind) -> Stats {
    let (num_actions, world) = run_workload(config, kind, None).unwrap();
    let stats = world.core.stats();
    assert!(stats.preemptions > 0 && stats.cached_tokens > 0 && num_actions > 100, "{stats:?}");
    assert_eq!(world.overlaps > 0, kind == Kind::Overlapping);
    let (mut in_flight, mut late) = (0, 0);
    for kill_at in 0..num_actions {
        let (_, world) = run_workload(config, kind, Some(kill_at))
            .unwrap_or_else(|rule| panic!("killed before action {kill_at}: {rule}"));
        in_flight += world.deaths_in_flight;
        late += world.core.stats().ignored_outputs;
    }
    assert!(in_flight > 0 && late > 0, "{in_flight} deaths in flight, {late} late outputs");
    stats
}

#[test]
fn for_every_kill_point_the_texts_are_the_undisturbed_texts() {
    kill_everywhere(&small_config(), Kind::OneByOne);
    kill_everywhere(&small_config(), Kind::Overlapping);
}

#[test]
fn for_every_kill_point_the_texts_with_windows_are_the_undisturbed_texts() {
    let window = MockGroup { num_blocks: 10, window: Some(7) };
    let cache_groups = vec![MockGroup::full(14), window];
    let config = MockConfig { cache_groups, ..small_config() };
    for kind in [Kind::OneByOne, Kind::Overlapping] {
        assert!(kill_everywhere(&config, kind).window_frees > 0);
    }
}

#[test]
fn with_two_steps_in_flight_eight_running_sequences_stand_in_every_step() {
    let config = MockConfig { vocab_size: 50, max_batch_tokens: 64, ..MockConfig::default() };
    let mut world = World::new(config, engine_config(), Kind::OneByOne, None);
    world.connect().unwrap();
    for id in 0..8 {
        let prompt: Vec<u32> = (0..5).map(|token| token + id as u32).collect();
        world.submit(id, request(&prompt, 100)).unwrap();
    }
    let mut num_steps = 0;
    while !world.unfinished().is_empty() {
        while world.send().unwrap() {
            let step = world.sent.back().unwrap();
            num_steps += 1;
            assert_eq!(step.row_slot.len(), 8, "step {num_steps}");
        }
        assert!(world.sent.len() + world.answered.len() == 2 || num_steps == 100);
        world.execute().unwrap();
        world.deliver().unwrap();
    }
    // One step for the prompts, which samples, and one for each further token.
    assert_eq!(num_steps, 100);
    world.check_end().unwrap();
}

/// A worker that dies whenever it runs the sequence of this prompt.
const POISON: u32 = 49;

#[test]
fn a_request_that_keeps_killing_workers_is_fenced_and_the_others_finish() {
    let config = MockConfig { cache_groups: vec![MockGroup::full(64)], ..small_config() };
    let mut world = World::new(config, engine_config(), Kind::OneByOne, None);
    world.connect().unwrap();
    for id in 0..4 {
        let first = if id == 2 { POISON } else { id as u32 };
        world.submit(id, request(&[first, 1, 2], 24)).unwrap();
    }
    world.clients.get_mut(&2).unwrap().may_fail = true;
    let (mut poisoned, mut deaths) = (None, 0);
    while !world.unfinished().is_empty() {
        world.send().unwrap();
        let Some(step) = world.sent.front() else {
            world.deliver().unwrap();
            continue;
        };
        let added = step.add.iter().find(|add| add.tokens[0] == POISON).map(|add| add.slot);
        poisoned = added.or(poisoned.filter(|slot| !step.release.contains(slot)));
        if poisoned.is_some_and(|slot| step.row_slot.contains(&slot)) {
            deaths += 1;
            poisoned = None;
            world.kill(false).unwrap();
            world.connect().unwrap();
            continue;
        }
        world.execute().unwrap();
        world.deliver().unwrap();
    }
    assert_eq!(deaths, 3);
    assert!(matches!(world.clients[&2].finish, Some(FinishReason::Error(_))));
    assert_eq!(world.core.stats().fenced, 1);
    world.check_end().unwrap();
}

#[test]
fn an_abort_frees_the_worker_within_one_step_when_nothing_else_runs() {
    let mut world = World::new(small_config(), engine_config(), Kind::OneByOne, None);
    world.connect().unwrap();
    world.submit(0, request(&[1, 2, 3], 20)).unwrap();
    world.send().unwrap();
    world.execute().unwrap();
    world.deliver().unwrap();
    world.abort(0).unwrap();
    assert!(world.send().unwrap());
    assert!(world.slots.occupied.is_empty());
    world.check_end().unwrap();
}
