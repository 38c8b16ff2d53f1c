//! Where the time of a forward pass goes: a stopwatch that is read at the end of each part.
//!
//! One thread leads a pass from part to part, so what went by since the last reading belongs to
//! the part that has just ended. A clock that is off reads no time: a part costs a branch then.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// A part of a forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The table's rows.
    Embedding,
    /// Norms of the residual stream, and what is added to it.
    Norms,
    /// The projection to queries, keys and values.
    Qkv,
    /// Norms and rotation of queries and keys, and writing keys and values to the cache.
    Rotation,
    /// Attending.
    Attention,
    /// The projection of what was attended to.
    Output,
    /// The feed-forward block: projections, activation, experts.
    Mlp,
    /// The last norm, and the logits.
    Head,
    /// Drawing tokens.
    Sampling,
    /// Laying the batch out.
    Rest,
}

impl Part {
    /// Every part, in the order of a pass.
    pub const ALL: [Part; 10] = [
        Part::Embedding,
        Part::Norms,
        Part::Qkv,
        Part::Rotation,
        Part::Attention,
        Part::Output,
        Part::Mlp,
        Part::Head,
        Part::Sampling,
        Part::Rest,
    ];
}

/// The stopwatch; off until it is started.
#[derive(Debug, Default)]
pub(super) struct Clock {
    /// When it was started; `None` while it is off.
    zero: Option<Instant>,
    /// The last reading, in nanoseconds since `zero`.
    last_ns: AtomicU64,
    /// Nanoseconds of each part, in the order of `Part::ALL`.
    parts_ns: [AtomicU64; Part::ALL.len()],
}

impl Clock {
    /// Starts it, from nothing.
    pub(super) fn start(&mut self) {
        *self = Self { zero: Some(Instant::now()), ..Self::default() };
    }

    /// A pass begins: what went by before belongs to no part.
    pub(super) fn begin(&self) {
        if let Some(zero) = self.zero {
            self.last_ns.store(zero.elapsed().as_nanos() as u64, Relaxed);
        }
    }

    /// `part` has just ended.
    pub(super) fn lap(&self, part: Part) {
        if let Some(zero) = self.zero {
            let now_ns = zero.elapsed().as_nanos() as u64;
            let part_ns = now_ns - self.last_ns.swap(now_ns, Relaxed);
            self.parts_ns[part as usize].fetch_add(part_ns, Relaxed);
        }
    }

    /// What each part took since the start, all passes together.
    pub(super) fn parts(&self) -> [(Part, Duration); Part::ALL.len()] {
        Part::ALL
            .map(|part| (part, Duration::from_nanos(self.parts_ns[part as usize].load(Relaxed))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_passes_add_up_to_the_time_within_them() {
        let mut clock = Clock::default();
        clock.start();
        let begin = Instant::now();
        for _ in 0..2 {
            clock.begin();
            Part::ALL.into_iter().for_each(|part| clock.lap(part));
        }
        let all: Duration = clock.parts().into_iter().map(|(_, time)| time).sum();
        assert!(all > Duration::ZERO && all <= begin.elapsed(), "{all:?}");
    }

    #[test]
    fn a_clock_that_is_off_has_seen_nothing() {
        let clock = Clock::default();
        clock.begin();
        clock.lap(Part::Mlp);
        assert!(clock.parts().into_iter().all(|(_, time)| time.is_zero()));
    }

    #[test]
    fn parts_stand_in_the_order_of_their_numbers() {
        for (number, part) in Part::ALL.into_iter().enumerate() {
            assert_eq!(part as usize, number);
        }
    }
}
