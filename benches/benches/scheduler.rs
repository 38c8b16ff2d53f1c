//! What one step costs the router beside the worker's computing: reading the output of a step,
//! planning the next, and putting it on the wire, for 512 running decodes and two steps in flight.
//!
//! Prints medians and 99th percentiles in microseconds. The outputs are made up outside of the
//! timed parts; dropping the events, which in the server another thread does, is outside as well.

use std::sync::Arc;
use std::time::{Duration, Instant};

use millstream_proto::{Step, StepOutput};
use millstream_router::engine::scheduler::{GroupLimits, Limits, Scheduler};
use millstream_router::engine::{NewSequence, SamplingParams, SequenceId};
use prost::Message;

const NUM_SEQUENCES: u32 = 512;
const BLOCK_SIZE: u32 = 16;
const MAX_PROMPT_LEN: u32 = 64;
const NUM_STEPS: usize = 2000;
const NUM_WARM_UP_STEPS: usize = 100;

fn main() {
    let mut scheduler = Scheduler::new(Limits {
        max_batch_tokens: NUM_SEQUENCES * MAX_PROMPT_LEN,
        max_prefill_tokens: NUM_SEQUENCES * MAX_PROMPT_LEN,
        max_slots: NUM_SEQUENCES,
        block_size: BLOCK_SIZE,
        groups: vec![GroupLimits { num_blocks: 1 << 17, window: None }],
        max_model_len: 4096,
        prefix_caching: true,
    });
    for id in 0..NUM_SEQUENCES {
        scheduler.add(SequenceId(id.into()), request(id), Duration::ZERO);
    }
    let mut in_flight = vec![];
    while let Some(step) = scheduler.schedule(Duration::ZERO) {
        in_flight.insert(0, step);
    }
    let mut buffer = Vec::new();
    let [mut updates, mut schedules, mut encodes, mut totals] = [(); 4].map(|()| Vec::new());
    for number in 0..NUM_STEPS + NUM_WARM_UP_STEPS {
        let output = output_of(&in_flight.pop().expect("two steps are in flight"), number as u32);
        buffer.clear();
        let begun = Instant::now();
        let events = scheduler.update(&output, Duration::ZERO).expect("the output fits");
        let updated = Instant::now();
        let step = scheduler.schedule(Duration::ZERO).expect("decodes stand in every step");
        let scheduled = Instant::now();
        step.encode(&mut buffer).expect("a vector grows");
        let encoded = Instant::now();
        assert_eq!((events.len(), step.row_slot.len()), (512, 512));
        in_flight.insert(0, step);
        if number >= NUM_WARM_UP_STEPS {
            updates.push(updated - begun);
            schedules.push(scheduled - updated);
            encodes.push(encoded - scheduled);
            totals.push(encoded - begun);
        }
    }
    println!("{NUM_SEQUENCES} running decodes, {NUM_STEPS} steps, {} bytes a step", buffer.len());
    println!("{:10} {:>10} {:>10}", "", "median us", "p99 us");
    for (name, mut times) in
        [("update", updates), ("schedule", schedules), ("encode", encodes), ("total", totals)]
    {
        times.sort_unstable();
        let at = |share: f64| times[(share * (times.len() - 1) as f64) as usize].as_nanos() as f64;
        println!("{name:10} {:10.1} {:10.1}", at(0.5) / 1e3, at(0.99) / 1e3);
    }
}

/// Lengths differ, so that every step completes about as many blocks as the next.
fn request(id: u32) -> NewSequence {
    let prompt_len = MAX_PROMPT_LEN - id % BLOCK_SIZE;
    NewSequence {
        prompt: (0..prompt_len).map(|token| token * NUM_SEQUENCES + id).collect(),
        sampling: SamplingParams::default(),
        max_tokens: 4000,
        stop_token_ids: Arc::new([2]),
        seed: id.into(),
        choice: 0,
        cache_salt: None,
        prompt_logprobs: false,
        grammar: None,
    }
}

/// One token for each row, never a stop token.
fn output_of(step: &Step, number: u32) -> StepOutput {
    let rows = step.row_slot.len() as u32;
    StepOutput {
        step: step.step,
        row_count: vec![1; rows as usize],
        tokens: (0..rows).map(|row| 1000 + row + number).collect(),
        ..StepOutput::default()
    }
}
