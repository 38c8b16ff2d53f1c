//! How far a download has come: counted by the downloads, told to whoever looks.
//!
//! On a terminal it is one line that is drawn again and again; elsewhere, a line of the log now
//! and then. `GET /ready` shows the same numbers.

use std::convert::Infallible;
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tokio::time::{MissedTickBehavior, interval_at};
use tracing::info;

use super::error::size;

const DRAW_EVERY: Duration = Duration::from_millis(200);
const LOG_EVERY: Duration = Duration::from_secs(10);
/// Characters between the brackets of the bar.
const BAR_WIDTH: usize = 18;
/// Empties the line of the cursor.
const CLEAR: &str = "\x1b[2K";

/// A shared count of bytes. Clones show the same numbers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Meter(Arc<Counters>);

#[derive(Debug, Default)]
struct Counters {
    total: AtomicU64,
    /// Of the total, what is on the disk.
    there: AtomicU64,
    /// What came over the network; part of it may have come in vain.
    arrived: AtomicU64,
}

/// How progress is shown.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Display {
    Bar,
    Log,
}

impl Display {
    /// A bar for people at a terminal, unless they want none.
    pub(super) fn choose(wants_bars: bool) -> Display {
        if wants_bars && io::stderr().is_terminal() { Display::Bar } else { Display::Log }
    }
}

impl Meter {
    pub(super) fn add_total(&self, bytes: u64) {
        self.0.total.fetch_add(bytes, Relaxed);
    }

    /// Bytes that need not be downloaded.
    pub(super) fn add_there(&self, bytes: u64) {
        self.0.there.fetch_add(bytes, Relaxed);
    }

    pub(super) fn add_arrived(&self, bytes: u64) {
        self.0.arrived.fetch_add(bytes, Relaxed);
        self.add_there(bytes);
    }

    /// Bytes that have to be downloaded again.
    pub(super) fn take_back(&self, bytes: u64) {
        self.0.there.fetch_sub(bytes, Relaxed);
    }

    fn there(&self) -> u64 {
        self.0.there.load(Relaxed)
    }

    fn total(&self) -> u64 {
        self.0.total.load(Relaxed)
    }

    /// Shows the progress until it is dropped.
    pub(super) async fn show(&self, display: Display) -> Infallible {
        let every = match display {
            Display::Bar => DRAW_EVERY,
            Display::Log => LOG_EVERY,
        };
        let mut ticks = interval_at(tokio::time::Instant::now() + every, every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let _clear = if display == Display::Bar { Some(ClearAtEnd) } else { None };
        let mut rate = Rate::new();
        loop {
            ticks.tick().await;
            let per_second = rate.update(self.0.arrived.load(Relaxed), Instant::now());
            match display {
                // Nobody has to see it. The cursor waits at the beginning of the line, so what is
                // logged meanwhile is written over the bar.
                Display::Bar => {
                    let bar = bar(self.there(), self.total(), per_second);
                    let _ = write!(io::stderr(), "{CLEAR}{bar}\r");
                }
                Display::Log => {
                    let rate = format!("{}/s", size(per_second));
                    info!(rate, "{self}");
                }
            }
        }
    }
}

impl fmt::Display for Meter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.total() {
            0 => f.write_str("asking the hub for the model"),
            total => {
                let percent = percent(self.there(), total);
                write!(f, "downloading the model: {percent} % of {}", size(total))
            }
        }
    }
}

/// Removes the bar, however its drawing ends.
struct ClearAtEnd;

impl Drop for ClearAtEnd {
    fn drop(&mut self) {
        let _ = write!(io::stderr(), "{CLEAR}");
    }
}

/// Bytes per second, smoothed over a few seconds.
struct Rate {
    last: (u64, Instant),
    per_second: Option<f64>,
}

impl Rate {
    fn new() -> Rate {
        Rate { last: (0, Instant::now()), per_second: None }
    }

    fn update(&mut self, arrived: u64, now: Instant) -> u64 {
        let (arrived_before, before) = self.last;
        let seconds = now.duration_since(before).as_secs_f64();
        if seconds > 0.0 {
            let present = (arrived.saturating_sub(arrived_before)) as f64 / seconds;
            let weight = 1.0 - (-seconds / 3.0).exp();
            let smoothed = self.per_second.map_or(present, |old| old + weight * (present - old));
            self.per_second = Some(smoothed);
            self.last = (arrived, now);
        }
        self.per_second.unwrap_or(0.0) as u64
    }
}

fn percent(there: u64, total: u64) -> u64 {
    (u128::from(there.min(total)) * 100 / u128::from(total.max(1))) as u64
}

fn bar(there: u64, total: u64, per_second: u64) -> String {
    if total == 0 {
        return "asking the hub".to_owned();
    }
    let percent = percent(there, total);
    let full = BAR_WIDTH * percent as usize / 100;
    let left = total.saturating_sub(there).checked_div(per_second).map(time).unwrap_or_default();
    format!(
        "{percent:>3} % [{:<BAR_WIDTH$}] {} of {}, {}/s{left}",
        "#".repeat(full),
        size(there),
        size(total),
        size(per_second)
    )
}

fn time(seconds: u64) -> String {
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!(", {seconds} s left"),
        (0, minutes, seconds) => format!(", {minutes}:{seconds:02} min left"),
        (hours @ ..=99, minutes, _) => format!(", {hours}:{minutes:02} h left"),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_reads_as_one_line_that_never_passes_the_whole() {
        let meter = Meter::default();
        assert_eq!(meter.to_string(), "asking the hub for the model");
        meter.add_total(2_000_000_000);
        meter.add_there(500_000_000);
        meter.add_arrived(700_000_000);
        assert_eq!(meter.to_string(), "downloading the model: 60 % of 2.0 GB");
        meter.take_back(1_200_000_000);
        assert_eq!(meter.to_string(), "downloading the model: 0 % of 2.0 GB");
        meter.add_arrived(3_000_000_000);
        assert_eq!(meter.to_string(), "downloading the model: 100 % of 2.0 GB");
    }

    #[test]
    fn the_bar_fits_a_line_of_80_characters() {
        let half = bar(1_500_000_000, 3_000_000_000, 100_000_000);
        assert_eq!(half, " 50 % [#########         ] 1.5 GB of 3.0 GB, 100.0 MB/s, 15 s left");
        for (there, total, rate) in [(0, 0, 0), (0, 1, 0), (999_999_999, 999_999_999_999, 1)] {
            assert!(bar(there, total, rate).len() < 80, "{}", bar(there, total, rate));
        }
        let longest = bar(123_456_789_012, 999_900_000_000, 999_900_000);
        assert!(longest.len() < 80, "{longest}");
    }

    #[test]
    fn the_rate_follows_what_arrives() {
        let mut rate = Rate::new();
        let start = rate.last.1;
        let second = Duration::from_secs(1);
        assert_eq!(rate.update(1000, start + second), 1000);
        let slower = rate.update(1000, start + 2 * second);
        assert!((500..1000).contains(&slower), "{slower}");
        let steady = (3..60).map(|i| rate.update((i - 2) * 500 + 1000, start + second * i as u32));
        assert!(steady.last().unwrap().abs_diff(500) < 5);
    }
}
