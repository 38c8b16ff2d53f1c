//! Samplers for all threads that compute.

use crate::Sampler;
use candle_core::Tensor;
use millstream_kernels::logits::for_each_row;
use millstream_kernels::{KernelError, threads};
use std::sync::{Mutex, OnceLock};

/// One for each thread that computes, and the threads take turns.
pub(super) struct Samplers(Vec<Mutex<Sampler>>);

impl Samplers {
    /// Samplers of ids below `vocab_size`.
    pub(super) fn new(vocab_size: usize) -> Self {
        Samplers((0..threads::count()).map(|_| Mutex::new(Sampler::new(vocab_size))).collect())
    }

    /// Gives `draw` a sampler and each row of `logits` `[count, V]` with its index, on all threads;
    /// the results in the order of rows. What `draw` gives must depend on nothing but its row.
    pub(super) fn each_row<T: Send + Sync>(
        &self,
        count: usize,
        logits: &Tensor,
        draw: impl Fn(&mut Sampler, usize, &mut [f32]) -> T + Sync,
    ) -> Result<Vec<T>, KernelError> {
        let drawn: Vec<OnceLock<T>> = (0..count).map(|_| OnceLock::new()).collect();
        for_each_row(logits, |index, logits| {
            let free = self.0.iter().find_map(|sampler| sampler.try_lock().ok());
            // As many threads as samplers come here, so one of them is free.
            let mut sampler = free.unwrap_or_else(|| unreachable!("a sampler for each thread"));
            let result = draw(&mut sampler, index, logits);
            drawn[index].get_or_init(|| result);
        })?;
        let result = |drawn: OnceLock<T>| {
            drawn.into_inner().unwrap_or_else(|| unreachable!("each row is drawn from once"))
        };
        Ok(drawn.into_iter().map(result).collect())
    }
}
