//! When a worker that ended is started again, and when not.
//!
//! Pure arithmetic over what happened; it knows neither processes nor clocks.

use std::time::Duration;

/// The rules.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RestartPolicy {
    /// Pause before the second restart in a row; the first is immediate, each later one waits
    /// twice as long as the one before.
    pub(crate) first_pause: Duration,
    /// Longest pause.
    pub(crate) max_pause: Duration,
    /// A worker that served this long was healthy: its end begins a new row.
    pub(crate) healthy_after: Duration,
    /// This many restarts in a row that never became ready are the end.
    pub(crate) max_failed_starts: u32,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        RestartPolicy {
            first_pause: Duration::from_millis(500),
            max_pause: Duration::from_secs(30),
            healthy_after: Duration::from_secs(60),
            max_failed_starts: 5,
        }
    }
}

/// The ends of workers so far.
#[derive(Debug)]
pub(crate) struct Restarts {
    policy: RestartPolicy,
    /// Restarts since a worker was last healthy.
    num_in_row: u32,
    /// Restarts since a worker was last ready.
    num_failed_starts: u32,
}

impl Restarts {
    pub(crate) fn new(policy: RestartPolicy) -> Self {
        Restarts { policy, num_in_row: 0, num_failed_starts: 0 }
    }

    /// A worker ended after it had been ready for `ready_for`, or without ever having been.
    ///
    /// Returns the pause before the next start; nothing if there should be none.
    pub(crate) fn worker_ended(&mut self, ready_for: Option<Duration>) -> Option<Duration> {
        match ready_for {
            Some(ready_for) => {
                self.num_failed_starts = 0;
                if ready_for >= self.policy.healthy_after {
                    self.num_in_row = 0;
                }
            }
            None => self.num_failed_starts += 1,
        }
        if self.num_failed_starts >= self.policy.max_failed_starts {
            return None;
        }
        let pause = match self.num_in_row.checked_sub(1) {
            None => Duration::ZERO,
            // Beyond 2^16 every first pause that means anything has met the longest one.
            Some(doublings) => self.policy.first_pause * 2_u32.pow(doublings.min(16)),
        };
        self.num_in_row += 1;
        Some(pause.min(self.policy.max_pause))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIED_YOUNG: Option<Duration> = Some(Duration::from_secs(3));
    const DIED_OLD: Option<Duration> = Some(Duration::from_secs(61));
    const NEVER_READY: Option<Duration> = None;

    /// The pauses in milliseconds after each end; -1 is "do not start again".
    fn check(ends: &[Option<Duration>], pauses_ms: &[i64]) {
        let mut restarts = Restarts::new(RestartPolicy::default());
        let told = ends.iter().map(|end| match restarts.worker_ended(*end) {
            Some(pause) => pause.as_millis() as i64,
            None => -1,
        });
        assert_eq!(told.collect::<Vec<_>>(), pauses_ms);
    }

    #[test]
    fn the_first_restart_is_immediate_and_the_next_ones_wait_twice_as_long_each() {
        check(&[DIED_YOUNG; 10], &[0, 500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000, 30_000]);
    }

    #[test]
    fn a_minute_of_health_begins_a_new_row() {
        check(&[DIED_YOUNG, DIED_YOUNG, DIED_OLD, DIED_YOUNG], &[0, 500, 0, 500]);
    }

    #[test]
    fn five_restarts_in_a_row_that_never_became_ready_are_the_end() {
        check(
            &[DIED_YOUNG, NEVER_READY, NEVER_READY, NEVER_READY, NEVER_READY, NEVER_READY],
            &[0, 500, 1000, 2000, 4000, -1],
        );
    }

    #[test]
    fn a_worker_that_became_ready_forgives_the_failed_starts_before_it() {
        let mut ends = vec![NEVER_READY; 4];
        ends.push(DIED_YOUNG);
        ends.extend([NEVER_READY; 5]);
        check(&ends, &[0, 500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000, -1]);
    }

    #[test]
    fn ends_without_end_never_overflow_the_pause() {
        let mut restarts = Restarts::new(RestartPolicy::default());
        let pauses: Vec<_> = (0..200).map(|_| restarts.worker_ended(DIED_YOUNG)).collect();
        assert_eq!(pauses.last(), Some(&Some(Duration::from_secs(30))));
    }
}
