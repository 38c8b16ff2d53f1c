//! Models on a GPU: the decoder of `super`, with its weights, its cache and its sampling on the
//! device.
//!
//! The host says what a step is in one block of words (`step`), and reads what was drawn. All else
//! stays on the device: weights (`keep`), activations (`workspace`), block tables and what slots
//! sampled last. Two steps are in flight (`model`); those that only decode are recorded once and
//! given to the device as one (`recordings`).

mod keep;
mod layers;
mod load;
mod memory;
mod model;
mod recordings;
mod returns;
mod sampler;
mod slots;
mod step;
#[cfg(test)]
mod tests;
mod workspace;

pub use model::CudaModel;

use super::LoadOptions;
use crate::{LoadError, ModelSource, Progress};
use millstream_kernels::KernelError;
use millstream_kernels::cuda::CudaError;

/// Loads a model on GPU `ordinal`: the configuration, the weights, a cache of what memory is left.
///
/// Must be called on the thread that will run its steps. Everything that the files or the device
/// could be wrong in is an error here, and nothing of it later.
pub fn load(
    ordinal: usize,
    source: &ModelSource,
    options: &LoadOptions,
    progress: &Progress,
) -> Result<CudaModel, LoadError> {
    load::load(ordinal, source, options, progress)
}

/// An error of the device while loading.
fn cuda_error(error: CudaError) -> LoadError {
    match error {
        CudaError::OutOfMemory { requested_mib, free_mib, total_mib } => {
            LoadError::DeviceMemory { requested_mib, free_mib, total_mib }
        }
        error => LoadError::Device(error.to_string()),
    }
}

/// An error of a kernel while loading.
fn kernel_error(error: KernelError) -> LoadError {
    match error {
        KernelError::Cuda(error) => cuda_error(error),
        error => LoadError::Device(error.to_string()),
    }
}
