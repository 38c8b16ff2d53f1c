//! Threads that compile grammars and work out masks.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, available_parallelism};

/// More threads than this have never had work at once.
const MAX_THREADS: usize = 8;

type Job = Box<dyn FnOnce() + Send>;

/// Runs jobs, each on one of a few threads, in the order in which they were given. The threads end
/// when the pool is dropped.
pub(super) struct Pool(Sender<Job>);

impl Pool {
    /// One thread for two processors: the others are the forward pass's.
    pub(super) fn start() -> std::io::Result<Self> {
        let count = available_parallelism().map_or(1, |count| count.get() / 2);
        let (sender, jobs) = channel();
        let jobs = Arc::new(Mutex::new(jobs));
        for index in 0..count.clamp(1, MAX_THREADS) {
            let jobs = jobs.clone();
            Builder::new().name(format!("grammar-{index}")).spawn(move || run(&jobs))?;
        }
        Ok(Pool(sender))
    }

    /// Queues a job, which must not panic.
    pub(super) fn run(&self, job: impl FnOnce() + Send + 'static) {
        // The threads live as long as this sender.
        self.0.send(Box::new(job)).ok();
    }
}

fn run(jobs: &Mutex<Receiver<Job>>) {
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        match job {
            Ok(job) => job(),
            Err(_) => return,
        }
    }
}

/// What `work` gives; a panic in it is a failure like another. Grammars are input, and the library
/// that reads them asserts where it should refuse.
pub(super) fn catch<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err("the grammar's reader failed".into()))
}
