//! A GPU for tests, where there is one.

use super::Gpu;

/// The first GPU; where there is none, says once that the tests which need one are skipped.
pub(crate) fn gpu() -> Option<Gpu> {
    match Gpu::open(0) {
        Ok(gpu) => Some(gpu),
        Err(error) => {
            static SAID: std::sync::Once = std::sync::Once::new();
            SAID.call_once(|| println!("skipped: {error}"));
            None
        }
    }
}
