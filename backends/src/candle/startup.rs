//! Where the time from start to ready goes, told once a model is loaded.
//!
//! What bounds the loading of weights is judged by how busy the threads were: whoever waits for a
//! disk or a network computes nothing meanwhile.

use super::weights::Loaded;
use millstream_kernels::threads;
use std::fs;
use std::time::{Duration, Instant};
use tracing::info;

/// Below this share of all threads' time, reading is what the others wait for.
const BUSY: f64 = 0.5;

/// Ticks of /proc/self/stat, which Linux counts in hundredths of a second on every machine.
const TICK: Duration = Duration::from_millis(10);

/// The stages of a start, timed one after the other.
pub(super) struct Startup {
    begin: Instant,
    /// Ends of the stages so far, with the time that all threads had computed until then.
    stages: Vec<(Stage, Instant, Option<Duration>)>,
}

/// A stage of a start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// config.json, and what is read of the tokenizer.
    Configuration,
    /// From files into the form that products read.
    Weights,
    /// Claiming the KV cache.
    Cache,
    /// Timing a step.
    Timing,
}

impl Startup {
    pub(super) fn begin() -> Self {
        Self { begin: Instant::now(), stages: Vec::new() }
    }

    /// Notes that a stage is over.
    pub(super) fn end(&mut self, stage: Stage) {
        self.stages.push((stage, Instant::now(), processor_time()));
    }

    /// How long a stage took, and how much of that each thread was busy: from 0 to 1.
    fn took(&self, stage: Stage) -> (Duration, Option<f64>) {
        let Some(at) = self.stages.iter().position(|(ended, ..)| *ended == stage) else {
            return (Duration::ZERO, None);
        };
        let (_, end, computed) = self.stages[at];
        let Some((_, begin, before)) = at.checked_sub(1).map(|before| self.stages[before]) else {
            return (end - self.begin, None);
        };
        let took = end - begin;
        let busy = computed.zip(before).map(|(computed, before)| {
            let threads = threads::count() as f64;
            computed.saturating_sub(before).as_secs_f64() / (took.as_secs_f64() * threads)
        });
        (took, busy)
    }

    /// Tells it.
    pub(super) fn tell(&self, loaded: &Loaded) {
        let seconds = |stage| rounded(self.took(stage).0.as_secs_f64());
        let (weights, busy) = self.took(Stage::Weights);
        let gb = loaded.num_bytes as f64 / 1e9;
        info!(
            seconds = rounded(self.begin.elapsed().as_secs_f64()),
            configuration = seconds(Stage::Configuration),
            weights = seconds(Stage::Weights),
            cache = seconds(Stage::Cache),
            timing = seconds(Stage::Timing),
            weights_gb = rounded(gb),
            gb_per_second = rounded(gb / weights.as_secs_f64()),
            busy = busy.map(rounded),
            bound_by = bound_by(busy),
            "model loaded"
        );
    }
}

/// What weights waited for while they were loaded.
fn bound_by(busy: Option<f64>) -> Option<&'static str> {
    busy.map(|busy| if busy < BUSY { "storage" } else { "processor and memory" })
}

fn rounded(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

/// What all threads of this process have computed so far, where the system says.
fn processor_time() -> Option<Duration> {
    parse_stat(&fs::read_to_string("/proc/self/stat").ok()?)
}

/// User and system time of a line of /proc/PID/stat, whose second field is a name in parentheses
/// that may hold anything.
fn parse_stat(stat: &str) -> Option<Duration> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let ticks = after_name.split_whitespace().skip(11).take(2);
    let ticks: Vec<u32> = ticks.map(|ticks| ticks.parse().ok()).collect::<Option<_>>()?;
    (ticks.len() == 2).then(|| TICK * ticks.iter().sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_read_behind_a_name_that_may_hold_anything() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194560 900 0 0 0 150 25 0 0 20 0 4 0 99 1 2";
        assert_eq!(parse_stat(stat), Some(Duration::from_millis(1750)));
        for broken in ["", "7 (a) S 1", "7 (a) S 1 7 7 0 -1 4194560 900 0 0 0 x 25 0"] {
            assert_eq!(parse_stat(broken), None, "{broken}");
        }
    }

    #[test]
    fn threads_that_wait_are_bound_by_storage() {
        let cases =
            [(None, None), (Some(0.1), Some("storage")), (Some(0.9), Some("processor and memory"))];
        for (busy, want) in cases {
            assert_eq!(bound_by(busy), want);
        }
    }

    #[test]
    fn a_stage_lasts_from_the_end_of_the_one_before() {
        let mut startup = Startup::begin();
        let at = |ms| startup.begin + Duration::from_millis(ms);
        let stages = vec![
            (Stage::Configuration, at(20), Some(Duration::ZERO)),
            (Stage::Weights, at(70), Some(Duration::ZERO)),
        ];
        startup.stages = stages;
        assert_eq!(startup.took(Stage::Configuration), (Duration::from_millis(20), None));
        assert_eq!(startup.took(Stage::Weights), (Duration::from_millis(50), Some(0.0)));
        assert_eq!(startup.took(Stage::Cache), (Duration::ZERO, None));
    }
}
