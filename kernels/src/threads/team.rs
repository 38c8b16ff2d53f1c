//! A caller and its helpers.
//!
//! A step of a model is hundreds of jobs of some ten or a hundred microseconds each. So a helper
//! that has nothing to do looks out for the next job for a while before it sleeps, and within a
//! step a job is handed out in about a microsecond, without a call of the system.
//!
//! One word ([`Shared::state`]) says how things stand: the number of the present job, whether it is
//! open, and how many helpers are in it. A helper joins an open job by adding itself, takes pieces
//! as long as there are any ([`Shares`]), and leaves. The caller takes pieces as well; when none is
//! left it closes the job and waits for those who are in it. A helper that the system did not run
//! in the meantime finds the job closed: nobody waited for it.
//!
//! Invariants:
//! - the job is written while it is closed and nobody is in it, by who holds `caller`;
//! - the job is read by who holds `caller` or is counted in the word, so what it borrows is alive.
#![allow(unsafe_code)] // The job borrows from its caller, across threads.

use std::any::Any;
use std::cell::UnsafeCell;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use super::affinity;
use super::shares::{MAX_PIECES, Shares};

/// How long a helper looks out for a job before it sleeps: longer than what a step computes on one
/// thread between two jobs.
const LOOK_OUT: Duration = Duration::from_micros(50);

/// Between two looks at the clock.
const LOOKS: u32 = 64;

/// A helper in the job.
const MEMBER: u64 = 1;
/// The job is open.
const OPEN: u64 = 1 << 16;
/// The next job.
const NUMBER: u64 = 1 << 17;

/// The helpers of whoever calls [`Team::run`].
pub(super) struct Team {
    shared: Arc<Shared>,
    num_helpers: usize,
}

struct Shared {
    /// Number, [`OPEN`], members.
    state: AtomicU64,
    job: UnsafeCell<Job>,
    /// The caller's is the first.
    shares: Shares,
    /// Held by whoever has a job.
    caller: Mutex<()>,
    /// How many helpers sleep, or are about to.
    sleepers: AtomicUsize,
    asleep: Mutex<()>,
    wake: Condvar,
    /// Of the first piece that panicked.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// `piece` is called with each number below `pieces`.
#[derive(Clone, Copy)]
struct Job {
    /// Its lifetime is that of the call of [`Team::run`] that wrote it.
    piece: *const (dyn Fn(usize) + Sync),
    pieces: usize,
    number: u64,
}

// SAFETY: `job` is the one field that is not `Sync` by itself; the invariants above say who writes
// and who reads it when, and `state` orders the two. What it points at is `Sync`.
unsafe impl Sync for Shared {}
// SAFETY: the pointer is only followed while what it points at is alive, on whatever thread.
unsafe impl Send for Shared {}

impl Team {
    /// The caller and `count - 1` helpers.
    pub(super) fn new(count: usize, pinned: bool) -> io::Result<Self> {
        let team = Self::of(count);
        for helper in 1..count {
            let shared = team.shared.clone();
            let body = move || {
                if pinned {
                    // Where it cannot be, it runs wherever the system puts it.
                    let _ = affinity::pin(helper);
                }
                shared.help(helper);
            };
            thread::Builder::new().name(format!("compute-{helper}")).spawn(body)?;
        }
        Ok(team)
    }

    /// No helpers.
    pub(super) fn alone() -> Self {
        Self::of(1)
    }

    /// For `count` threads, of which the caller alone is there.
    fn of(count: usize) -> Self {
        let shared = Shared {
            state: AtomicU64::new(0),
            job: UnsafeCell::new(Job { piece: &|_| {}, pieces: 0, number: 0 }),
            shares: Shares::new(count),
            caller: Mutex::new(()),
            sleepers: AtomicUsize::new(0),
            asleep: Mutex::new(()),
            wake: Condvar::new(),
            panic: Mutex::new(None),
        };
        Self { shared: Arc::new(shared), num_helpers: count - 1 }
    }

    /// Threads, the caller counted in.
    pub(super) fn count(&self) -> usize {
        1 + self.num_helpers
    }

    /// See [`super::run`]. A panic of a piece goes on here, once nobody is in the job any more.
    pub(super) fn run(&self, pieces: usize, piece: &(dyn Fn(usize) + Sync)) {
        let caller = match self.shared.caller.try_lock() {
            Ok(caller) => Some(caller),
            // A piece panicked while it was held; what it guards is as it was.
            Err(TryLockError::Poisoned(caller)) => Some(caller.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        };
        if caller.is_none() || self.num_helpers == 0 || !(2..MAX_PIECES).contains(&pieces) {
            return (0..pieces).for_each(piece);
        }
        // SAFETY: only the lifetime changes: the job is closed, and left by all, before this
        // function returns or unwinds, which is as long as `piece` is borrowed.
        let piece: *const (dyn Fn(usize) + Sync) =
            unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), _>(piece) };
        let number = (self.shared.number() + 1) % (u64::MAX / NUMBER);
        let job = Job { piece, pieces, number };
        self.shared.open(job);
        let closed_at_the_end = Close(&self.shared);
        self.shared.take_pieces(job, 0);
        drop(closed_at_the_end);
        let panic = self.shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

/// Closes the job and waits until nobody is in it, also when the caller's own piece panics.
struct Close<'a>(&'a Shared);

impl Drop for Close<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            // No piece is begun any more.
            self.0.shares.abandon(self.0.number());
        }
        self.0.state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut looks = 0;
        while !self.0.state.load(Ordering::Acquire).is_multiple_of(OPEN) {
            look_again(&mut looks);
        }
    }
}

/// Lets a moment pass, and after some of them whoever else wants this processor.
fn look_again(looks: &mut u32) {
    *looks += 1;
    if (*looks).is_multiple_of(LOOKS) {
        thread::yield_now();
    } else {
        std::hint::spin_loop();
    }
}

impl Shared {
    /// That of the present job, which does not change while the caller lock is held.
    fn number(&self) -> u64 {
        self.state.load(Ordering::Relaxed) / NUMBER
    }

    /// Hands out a job. The caller lock is held, and the job before is closed.
    fn open(&self, job: Job) {
        // SAFETY: the job is closed, nobody is in it, and nobody else has the caller lock.
        unsafe { *self.job.get() = job };
        // In one order with `sleepers`: either a helper that goes to sleep sees this job, or this
        // thread sees that it sleeps.
        self.state.store((job.number * NUMBER) | OPEN, Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            drop(self.asleep.lock().unwrap_or_else(PoisonError::into_inner));
            self.wake.notify_all();
        }
    }

    /// What thread `own` does for a job, of which it is the caller or a member.
    fn take_pieces(&self, job: Job, own: usize) {
        self.shares.take(job.number, job.pieces, own, |piece| {
            // SAFETY: this thread is the caller or is counted in the word: the job is alive.
            unsafe { (*job.piece)(piece) };
        });
    }

    /// What helper `own` does, for as long as the process lives.
    fn help(&self, own: usize) {
        let mut done = 0;
        loop {
            let state = self.next_job(done);
            done = state / NUMBER;
            let joined = state + MEMBER;
            if self
                .state
                .compare_exchange(state, joined, Ordering::AcqRel, Ordering::Relaxed)
                .is_err()
            {
                // Others joined or the job was closed in the same moment.
                done = done.wrapping_sub(1);
                continue;
            }
            // SAFETY: this thread is counted in the word, and joined after the job was written.
            let job = unsafe { *self.job.get() };
            let outcome = catch_unwind(AssertUnwindSafe(|| self.take_pieces(job, own)));
            if let Err(panic) = outcome {
                let mut first = self.panic.lock().unwrap_or_else(PoisonError::into_inner);
                first.get_or_insert(panic);
            }
            self.state.fetch_sub(MEMBER, Ordering::Release);
        }
    }

    /// The word once an open job other than number `done` is in it.
    fn next_job(&self, done: u64) -> u64 {
        let is_new = |state: u64| state & OPEN != 0 && state / NUMBER != done;
        let (mut looks, begin) = (0, Instant::now());
        loop {
            let state = self.state.load(Ordering::Acquire);
            if is_new(state) {
                return state;
            }
            look_again(&mut looks);
            if looks.is_multiple_of(LOOKS) && begin.elapsed() > LOOK_OUT {
                break;
            }
        }
        let mut asleep = self.asleep.lock().unwrap_or_else(PoisonError::into_inner);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let state = loop {
            let state = self.state.load(Ordering::SeqCst);
            if is_new(state) {
                break state;
            }
            asleep = self.wake.wait(asleep).unwrap_or_else(PoisonError::into_inner);
        };
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
        state
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    /// How often each of so many pieces ran.
    fn counts(team: &Team, pieces: usize) -> Vec<u32> {
        let counts: Vec<AtomicU32> = (0..pieces).map(|_| AtomicU32::new(0)).collect();
        team.run(pieces, &|i| {
            counts[i].fetch_add(1, Ordering::Relaxed);
        });
        counts.into_iter().map(AtomicU32::into_inner).collect()
    }

    #[test]
    fn every_piece_of_every_job_runs_once() {
        for count in [1, 2, 3, 8] {
            let team = Team::new(count, false).unwrap();
            for job in 0..3000 {
                let pieces = job % 37;
                assert_eq!(counts(&team, pieces), vec![1; pieces], "job {job} of {count} threads");
            }
        }
    }

    #[test]
    fn helpers_that_sleep_are_woken() {
        let team = Team::new(3, false).unwrap();
        for _ in 0..20 {
            while team.shared.sleepers.load(Ordering::SeqCst) < 2 {
                thread::yield_now();
            }
            // A piece that ends only once another thread has begun one.
            let begun = AtomicU32::new(0);
            team.run(2, &|_| {
                begun.fetch_add(1, Ordering::SeqCst);
                while begun.load(Ordering::SeqCst) < 2 {
                    thread::yield_now();
                }
            });
        }
    }

    #[test]
    fn a_job_within_a_job_or_beside_one_is_done_by_its_own_thread() {
        let team = Team::new(3, false).unwrap();
        let inner = AtomicU32::new(0);
        team.run(8, &|_| {
            let outer = thread::current().id();
            team.run(5, &|_| {
                assert_eq!(thread::current().id(), outer);
                inner.fetch_add(1, Ordering::Relaxed);
            });
        });
        assert_eq!(inner.into_inner(), 40);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..200).for_each(|_| assert_eq!(counts(&team, 9), [1; 9])));
            }
        });
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_team_goes_on() {
        let team = Team::new(3, false).unwrap();
        for broken in 0..12 {
            let run = || {
                team.run(12, &|i| assert_ne!(i, broken, "piece {i}"));
            };
            let panic = catch_unwind(AssertUnwindSafe(run)).unwrap_err();
            let text = panic.downcast::<String>().unwrap();
            assert!(text.contains(&format!("piece {broken}")), "{text}");
            assert_eq!(counts(&team, 12), [1; 12]);
        }
    }
}
