//! The threads that compute: one team for the process, which shares out one job at a time.
//!
//! The thread that has a job is part of the team: it works on its own job, and the others help.
//! A job that begins within another, or while another thread has one, is done by its own thread
//! alone, so nobody ever waits for a team.
//!
//! How many threads there are decides how soon a job is done and nothing else.
#![allow(unsafe_code)] // Chunks own different parts of one slice, which the compiler cannot see.

mod affinity;
mod shares;
mod team;

use std::sync::OnceLock;

use crate::parallel::Disjoint;
use team::Team;

static TEAM: OnceLock<Team> = OnceLock::new();

/// Why the team was not started as asked.
#[derive(Debug, thiserror::Error)]
pub enum ThreadsError {
    /// Something has been computed already, or the team was started before.
    #[error("the compute threads run already")]
    Running,
    /// The system refused a thread, or its place.
    #[error("cannot start {count} compute threads: {source}")]
    Start {
        /// The threads asked for.
        count: usize,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Starts the team: `count` threads, the caller of each job counted in, at least 1. With `pinned`,
/// each of the others stays on a processor of its own; [`pin_caller`] does the same for a caller.
///
/// Whoever computes without having called this gets a thread for each processor.
pub fn start(count: usize, pinned: bool) -> Result<(), ThreadsError> {
    let count = count.max(1);
    let team = Team::new(count, pinned).map_err(|source| ThreadsError::Start { count, source })?;
    TEAM.set(team).map_err(|_| ThreadsError::Running)
}

/// Keeps the calling thread on the processor that a team with `pinned` leaves to its caller.
/// Does nothing where the system has no such call.
pub fn pin_caller() -> std::io::Result<()> {
    affinity::pin(0)
}

/// How many threads the team has, the caller counted in.
pub fn count() -> usize {
    team().count()
}

/// Calls `piece` once with each number below `pieces`, on all threads: each has neighbouring numbers
/// in rising order, and then takes what is left of the others'.
pub fn run(pieces: usize, piece: impl Fn(usize) + Sync) {
    team().run(pieces, &piece);
}

/// Calls `f` with each chunk of `out` and its number, on all threads: chunks have `len` elements,
/// at least 1, and the last one what is left.
pub fn for_chunks<T: Send>(out: &mut [T], len: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    let end = out.len();
    let all = Disjoint::new(out);
    run(end.div_ceil(len), |i| {
        // SAFETY: each chunk comes once, and chunks have different elements.
        f(i, unsafe { all.part(i * len..end.min((i + 1) * len)) });
    });
}

fn team() -> &'static Team {
    TEAM.get_or_init(|| {
        let count = std::thread::available_parallelism().map_or(1, usize::from);
        // A team of the caller alone needs nothing of the system.
        Team::new(count, false).unwrap_or_else(|_| Team::alone())
    })
}
