//! Encoding and rendering, away from the async threads.
//!
//! At most `workers` tasks run at a time; the others wait without holding a thread, and a waiter
//! that is dropped leaves the queue. A task that has begun runs to its end. A panic inside a task
//! is that task's error.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::TextModel;

/// Runs work on a [`TextModel`] on the blocking threads.
#[derive(Clone)]
pub struct EncoderPool {
    model: Arc<TextModel>,
    permits: Arc<Semaphore>,
}

/// Why a task has no result.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// The task panicked.
    #[error("encoding failed inside the server: {0}")]
    Panicked(String),
    /// The runtime is shutting down.
    #[error("the server is shutting down")]
    Closed,
}

impl EncoderPool {
    /// At most `workers` tasks at a time; at least one.
    pub fn new(model: Arc<TextModel>, workers: usize) -> Self {
        EncoderPool { model, permits: Arc::new(Semaphore::new(workers.max(1))) }
    }

    /// Runs `task` when there is room. Must be called on a tokio runtime.
    pub async fn run<T, F>(&self, task: F) -> Result<T, PoolError>
    where
        T: Send + 'static,
        F: FnOnce(&TextModel) -> T + Send + 'static,
    {
        // The permit travels with the task: a caller that leaves does not make room for another
        // task while its own still computes.
        let permit =
            Arc::clone(&self.permits).acquire_owned().await.map_err(|_| PoolError::Closed)?;
        let model = Arc::clone(&self.model);
        let work = tokio::task::spawn_blocking(move || {
            let result = task(&model);
            drop(permit);
            result
        });
        work.await.map_err(|error| match error.try_into_panic() {
            Ok(panic) => PoolError::Panicked(panic_text(&*panic)),
            Err(_) => PoolError::Closed,
        })
    }
}

/// What a panic said.
pub(super) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    if let Some(text) = panic.downcast_ref::<&str>() {
        (*text).to_owned()
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text.clone()
    } else {
        "a panic without a message".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc;
    use std::task::{Context, Waker};

    use super::*;

    fn pool(workers: usize) -> EncoderPool {
        EncoderPool::new(Arc::new(TextModel::bytes_fallback()), workers)
    }

    /// Polls once, without a reason to be polled again.
    fn poll(future: std::pin::Pin<&mut impl Future>) -> bool {
        future.poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[tokio::test]
    async fn a_task_sees_the_model_and_returns_its_result() {
        let ids = pool(2).run(|model| model.encode("hi", true).unwrap()).await.unwrap();
        assert_eq!(ids, [104, 105]);
    }

    #[tokio::test]
    async fn a_task_beyond_the_limit_begins_when_another_ends() {
        let pool = pool(1);
        let events = Arc::new(Mutex::new(Vec::new()));
        let (release, released) = mpsc::channel::<()>();
        let log = Arc::clone(&events);
        let mut first = pin!(pool.run(move |_| {
            released.recv().unwrap();
            log.lock().unwrap().push("first ends");
        }));
        assert!(!poll(first.as_mut()));
        let log = Arc::clone(&events);
        let mut second = pin!(pool.run(move |_| log.lock().unwrap().push("second begins")));
        assert!(!poll(second.as_mut()));
        // Were the second task in the threads' queue already, it would come before this one.
        tokio::task::spawn_blocking(|| ()).await.unwrap();
        release.send(()).unwrap();
        first.await.unwrap();
        second.await.unwrap();
        assert_eq!(*events.lock().unwrap(), ["first ends", "second begins"]);
    }

    #[tokio::test]
    async fn a_waiter_that_is_dropped_never_runs_and_leaves_its_place() {
        let pool = pool(1);
        let (release, released) = mpsc::channel::<()>();
        let mut first = pin!(pool.run(move |_| released.recv().unwrap()));
        assert!(!poll(first.as_mut()));
        let ran = Arc::new(AtomicBool::new(false));
        {
            let ran = Arc::clone(&ran);
            let mut waiter = pin!(pool.run(move |_| ran.store(true, Ordering::SeqCst)));
            assert!(!poll(waiter.as_mut()));
        }
        release.send(()).unwrap();
        first.await.unwrap();
        pool.run(|_| ()).await.unwrap();
        assert!(!ran.load(Ordering::SeqCst));
    }

    #[tokio::test]
    async fn a_panic_is_the_error_of_its_task_alone() {
        let pool = pool(1);
        let error = pool.run::<(), _>(|_| panic!("token {}", 7)).await.unwrap_err();
        assert_eq!(error.to_string(), "encoding failed inside the server: token 7");
        assert_eq!(pool.run(|_| 1).await.unwrap(), 1);
    }
}
