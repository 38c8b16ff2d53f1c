//! Who computes which piece of a job.
//!
//! Each thread has a share, neighbouring pieces, which it takes from the first to the last: what
//! lies behind them in memory is read as one run. Who has done its own share, or finds that another
//! thread has not come, takes what is left of the others'. So pieces may be small, and all threads
//! end within one of them.

use std::sync::atomic::{AtomicU64, Ordering};

/// Of a word: the next piece; the number of the job is above it.
const PIECE_BITS: u32 = 24;

/// A job has fewer pieces.
pub(super) const MAX_PIECES: usize = 1 << PIECE_BITS;

/// The shares of all threads in the present job.
pub(super) struct Shares(Box<[Share]>);

/// The job that was last taken from, and the next piece of it. Of another job nothing has been taken
/// yet: so nobody has to write to all shares when one begins.
///
/// It has a line of the cache for itself, and the neighbour that processors fetch with it.
#[derive(Default)]
#[repr(align(128))]
struct Share(AtomicU64);

impl Shares {
    /// For so many threads.
    pub(super) fn new(threads: usize) -> Self {
        Self((0..threads).map(|_| Share::default()).collect())
    }

    /// Calls `f` with pieces of job number `job`, which has `pieces`, until none is left: first with
    /// those of thread `own`. Each comes once, whichever threads call this for the job.
    pub(super) fn take(&self, job: u64, pieces: usize, own: usize, f: impl Fn(usize)) {
        let count = self.0.len();
        for owner in (own..count).chain(0..own) {
            let [start, end] = [owner, owner + 1].map(|thread| pieces * thread / count);
            while let Some(piece) = self.0[owner].take(job, start, end) {
                f(piece);
            }
        }
    }

    /// Leaves nothing of job number `job`.
    pub(super) fn abandon(&self, job: u64) {
        for share in &self.0 {
            share.0.store(word(job, MAX_PIECES - 1), Ordering::Relaxed);
        }
    }
}

/// What a share holds once the pieces before `next` have been taken.
fn word(job: u64, next: usize) -> u64 {
    (job << PIECE_BITS) | next as u64
}

impl Share {
    /// The first piece of `start..end` that is left.
    fn take(&self, job: u64, start: usize, end: usize) -> Option<usize> {
        let mut found = self.0.load(Ordering::Relaxed);
        loop {
            let is_present = found >> PIECE_BITS == word(job, 0) >> PIECE_BITS;
            let next = if is_present { found as usize % MAX_PIECES } else { start };
            if next >= end {
                return None;
            }
            // What a piece reads was written before the job began, and the team orders that; here
            // it only matters that nobody else takes the same one.
            let (success, failure) = (Ordering::Relaxed, Ordering::Relaxed);
            match self.0.compare_exchange_weak(found, word(job, next + 1), success, failure) {
                Ok(_) => return Some(next),
                Err(now) => found = now,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    fn taken(shares: &Shares, job: u64, pieces: usize, own: usize) -> Vec<usize> {
        let all = RefCell::new(Vec::new());
        shares.take(job, pieces, own, |piece| all.borrow_mut().push(piece));
        all.into_inner()
    }

    #[test]
    fn a_thread_takes_its_own_pieces_first_and_then_those_of_the_others() {
        let shares = Shares::new(3);
        assert_eq!(taken(&shares, 1, 7, 1), [2, 3, 4, 5, 6, 0, 1]);
        assert!(taken(&shares, 1, 7, 0).is_empty());
        assert_eq!(taken(&shares, 2, 2, 2), [1, 0]);
        assert!(taken(&shares, 3, 0, 0).is_empty());
        // The numbers of jobs have more bits than a word has for them.
        assert_eq!(taken(&shares, 3 + (1 << 47), 3, 0), [0, 1, 2]);
    }

    #[test]
    fn what_others_have_taken_is_left_out() {
        let shares = Shares::new(2);
        let all = RefCell::new(Vec::new());
        shares.take(1, 6, 0, |piece| {
            all.borrow_mut().push(piece);
            if piece == 1 {
                all.borrow_mut().extend(taken(&shares, 1, 6, 1));
            }
        });
        assert_eq!(all.into_inner(), [0, 1, 3, 4, 5, 2]);
    }

    #[test]
    fn nothing_is_left_of_a_job_that_was_abandoned() {
        let shares = Shares::new(2);
        shares.abandon(1);
        assert!(taken(&shares, 1, 10, 0).is_empty());
        assert_eq!(taken(&shares, 2, 3, 1), [1, 2, 0]);
    }
}
