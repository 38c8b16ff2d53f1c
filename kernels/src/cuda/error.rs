//! What can go wrong with a GPU, each in one line that says what to do where something can be done.

use std::ffi::c_int;

use cudarc::driver::result::DriverError;
use cudarc::driver::sys::CUresult;

/// Something that a GPU, its driver or its libraries did not do.
#[derive(Debug, thiserror::Error)]
pub enum CudaError {
    /// There is no driver.
    #[error("no CUDA driver is installed: libcuda.so.1 was not found")]
    NoDriver,
    /// The driver does not know the version of CUDA that the kernels are made for.
    #[error(
        "the CUDA driver is too old: it supports CUDA {}.{}, and {}.{} is needed; install driver \
         580 or later",
        found / 1000, found % 1000 / 10, needed / 1000, needed % 1000 / 10
    )]
    DriverTooOld {
        /// `CUDA_VERSION` of the driver.
        found: c_int,
        /// `CUDA_VERSION` of the kernels.
        needed: c_int,
    },
    /// The driver shows no such GPU to this process.
    #[error("there is no GPU {ordinal}: the driver shows {count} to this process")]
    NoDevice {
        /// What was asked for.
        ordinal: usize,
        /// How many there are.
        count: usize,
    },
    /// The GPU is of a generation that the kernels are not compiled for.
    #[error(
        "{name} has compute capability {major}.{minor}; the kernels need 8.0 or later (A100, \
         RTX 30, L4, H100 and newer)"
    )]
    TooOld {
        /// As its maker calls it.
        name: String,
        /// Of its compute capability.
        major: u32,
        /// Of its compute capability.
        minor: u32,
    },
    /// A library of CUDA's toolkit is missing.
    #[error("{library} was not found; install CUDA {} or set LD_LIBRARY_PATH", super::CUDA_VERSION / 1000)]
    MissingLibrary {
        /// Its file name.
        library: &'static str,
    },
    /// The device's memory does not suffice.
    #[error(
        "the GPU is full: {requested_mib} MiB were asked for, {free_mib} MiB of {total_mib} MiB \
         are free"
    )]
    OutOfMemory {
        /// What was asked for.
        requested_mib: u64,
        /// What nobody uses.
        free_mib: u64,
        /// All of it.
        total_mib: u64,
    },
    /// What cuBLAS says.
    #[error("{call} failed: {status}")]
    Blas {
        /// The function of cuBLAS.
        call: &'static str,
        /// The status's name.
        status: String,
    },
    /// Anything else that the driver says.
    #[error("{call} failed: {name} ({description})")]
    Driver {
        /// The function of the driver.
        call: &'static str,
        /// The error's name.
        name: String,
        /// The error in words.
        description: String,
    },
}

impl CudaError {
    /// An error that `call` gave.
    pub(super) fn driver(call: &'static str, error: DriverError) -> Self {
        // An error that the driver has no words for still has a number.
        let number = || format!("error {}", error.0 as u32);
        let text = |text: Result<&std::ffi::CStr, DriverError>| {
            text.map_or_else(|_| number(), |text| text.to_string_lossy().into_owned())
        };
        let (name, description) = (text(error.error_name()), text(error.error_string()));
        CudaError::Driver { call, name, description }
    }
}

/// The result of the driver's function `call`.
pub(super) fn check<T>(call: &'static str, result: Result<T, DriverError>) -> Result<T, CudaError> {
    result.map_err(|error| CudaError::driver(call, error))
}

/// Whether the driver says that its memory does not suffice.
pub(super) fn is_out_of_memory(error: DriverError) -> bool {
    error.0 == CUresult::CUDA_ERROR_OUT_OF_MEMORY
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_that_is_too_old_is_named_with_what_to_install() {
        let error = CudaError::DriverTooOld { found: 12_040, needed: 13_000 };
        assert_eq!(
            error.to_string(),
            "the CUDA driver is too old: it supports CUDA 12.4, and 13.0 is needed; install \
             driver 580 or later"
        );
    }
}
