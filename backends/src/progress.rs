//! How far loading has come: written by the engine thread, read by whoever asks for `Info`.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// A shared line of progress. Clones show the same line.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<Mutex<State>>);

#[derive(Clone, Debug, Default)]
struct State {
    what: String,
    percent: Option<u8>,
}

impl Progress {
    /// Says what is being done, and nothing of how far it has come.
    pub fn begin(&self, what: &str) {
        self.write(State { what: what.to_owned(), percent: None });
    }

    /// Says what is being done and how much of it is: `done` of `total`, in any unit.
    pub fn set(&self, what: &str, done: u64, total: u64) {
        let percent = (u128::from(done) * 100).checked_div(u128::from(total)).unwrap_or(100);
        self.write(State { what: what.to_owned(), percent: Some(percent.min(100) as u8) });
    }

    fn write(&self, state: State) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match state {
            State { what, .. } if what.is_empty() => f.write_str("starting"),
            State { what, percent: None } => f.write_str(&what),
            State { what, percent: Some(percent) } => write!(f, "{what}: {percent} %"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_reads_as_one_line() {
        let progress = Progress::default();
        let seen_by_others = progress.clone();
        assert_eq!(seen_by_others.to_string(), "starting");
        progress.begin("reading config.json");
        assert_eq!(seen_by_others.to_string(), "reading config.json");
        progress.set("loading weights", 43, 100);
        assert_eq!(seen_by_others.to_string(), "loading weights: 43 %");
        progress.set("loading weights", 0, 0);
        assert_eq!(seen_by_others.to_string(), "loading weights: 100 %");
    }
}
