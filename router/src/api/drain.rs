//! Shutting down without cutting anybody off: whether new work is taken, and how much is left.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;

/// Counts requests in flight, and knows whether the server drains.
pub(crate) struct Drain {
    draining: AtomicBool,
    num_in_flight: watch::Sender<usize>,
}

/// A request in flight, from its arrival to the end of its answer.
pub(crate) struct InFlight(Arc<Drain>);

impl Drain {
    pub(crate) fn new() -> Arc<Drain> {
        let num_in_flight = watch::Sender::new(0);
        Arc::new(Drain { draining: AtomicBool::new(false), num_in_flight })
    }

    pub(crate) fn begin(&self) {
        self.draining.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// Counts a request in; `None` while draining.
    pub(crate) fn enter(self: &Arc<Drain>) -> Option<InFlight> {
        // Counted first: whoever sees the flag down is seen by `idle`.
        self.num_in_flight.send_modify(|count| *count += 1);
        let in_flight = InFlight(self.clone());
        (!self.is_draining()).then_some(in_flight)
    }

    /// Waits until nothing is in flight.
    pub(crate) async fn idle(&self) {
        let mut count = self.num_in_flight.subscribe();
        count.wait_for(|count| *count == 0).await.expect("the sender is borrowed here");
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.num_in_flight.send_modify(|count| *count -= 1);
    }
}
