//! How much of a GPU's memory the cache may take.

use super::cuda_error;
use crate::LoadError;
use crate::candle::LoadOptions;
use millstream_kernels::cuda::Gpu;

/// What is left to the driver, which takes memory for itself now and then: a recording more, a kernel
/// that is loaded late.
const RESERVE: u64 = 256 << 20;

/// Recordings that are made later, each of some hundred launches, share this.
const RECORDINGS: u64 = 256 << 20;

/// Bytes that the cache may take: what the user says, or what is free, now that all else has its
/// memory and the largest step has run, less a reserve.
pub(super) fn budget(gpu: &Gpu, options: &LoadOptions) -> Result<u64, LoadError> {
    if let Some(bytes) = options.kv_cache_memory {
        return Ok(bytes);
    }
    let (free, total) = gpu.free_memory().map_err(cuda_error)?;
    Ok(left(free, total, options.device_memory_fraction))
}

/// What is left of `total` bytes, of which `free` are free and a share of `fraction` may be used.
fn left(free: u64, total: u64, fraction: f64) -> u64 {
    // Small devices exist in tests alone, and must not be all reserve.
    let reserve = (RESERVE + RECORDINGS).min(total / 16);
    let kept_back = ((1.0 - fraction).clamp(0.0, 1.0) * total as f64) as u64;
    free.saturating_sub(reserve.max(kept_back))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_gets_what_is_free_but_for_a_reserve_and_what_is_kept_back() {
        const GIB: u64 = 1 << 30;
        assert_eq!(left(100 * GIB, 140 * GIB, 1.0), 100 * GIB - (GIB / 2));
        assert_eq!(left(100 * GIB, 140 * GIB, 0.75), 65 * GIB);
        assert_eq!(left(GIB, 140 * GIB, 0.5), 0);
        assert_eq!(left(GIB, GIB, 1.0), GIB - GIB / 16);
    }
}
