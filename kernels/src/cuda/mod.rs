//! A GPU: its memory, its one stream, and the kernels that run on it.
//!
//! The driver is loaded when a [`Gpu`] is opened, so a program that holds this module starts where
//! there is none, and says so in one line. Kernels are compiled with the crate (`build.rs`) and
//! loaded when they are first launched.
//!
//! What holds for all of it:
//! - everything is in the order of one stream: a copy or a launch sees what came before it, and
//!   nothing here waits for the device but what says so;
//! - a [`Gpu`] belongs to the thread that opened it: another thread may hold and drop what is made
//!   of it, and gets errors from everything else;
//! - memory is an [`Array`], which its views keep alive. Taking or freeing memory stops the device,
//!   so a step does neither.

mod array;
mod blas;
pub(crate) mod check;
mod error;
mod event;
mod graph;
mod launch;
mod transfer;

#[cfg(test)]
pub(crate) mod testing;

pub use array::{Array, Plain};
pub use blas::Blas;
pub use error::CudaError;
pub use event::Event;
pub use graph::Graph;
pub use launch::{Arg, Launch, Module};
pub use transfer::{Incoming, Outgoing};

pub(crate) use blas::Gemm;
pub(crate) use launch::module;

use std::ffi::c_int;
use std::sync::{Arc, Mutex};

use cudarc::driver::{result, sys};

use error::check;
use launch::Functions;

/// `CUDA_VERSION` of the kernels: what their machine code and the bindings are made for.
const CUDA_VERSION: c_int = 13_000;

/// The oldest generation that the kernels are compiled for: compute capability 8.0, Ampere.
const OLDEST: (c_int, c_int) = (8, 0);

/// One GPU with one stream. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Gpu(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    properties: Properties,
    functions: Mutex<Functions>,
}

/// What a GPU is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Properties {
    /// As its maker calls it.
    pub name: String,
    /// Its generation, as major and minor number.
    pub compute_capability: (u32, u32),
    /// How many blocks, at least, run at once.
    pub multiprocessors: u32,
    /// The most shared memory that a block may ask for, in bytes.
    pub shared_memory_per_block: u32,
    /// Of the device's memory, in bytes.
    pub memory: u64,
    /// The driver's `CUDA_VERSION`: 13000 for 13.0.
    pub driver_version: u32,
}

// SAFETY: the handles are numbers that the driver looks up, and the driver is thread-safe; what is
// mutable is behind a lock.
#[allow(unsafe_code)]
unsafe impl Send for Inner {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl Sync for Inner {}

#[allow(unsafe_code)]
impl Gpu {
    /// Opens GPU `ordinal`, counted as the driver counts them (`CUDA_VISIBLE_DEVICES` chooses among
    /// them), for this thread.
    ///
    /// Whatever keeps a kernel from running is an error here: no driver, one that is too old, no
    /// GPU, one of a generation that the kernels are not compiled for.
    pub fn open(ordinal: usize) -> Result<Self, CudaError> {
        // SAFETY: it only tries to load the library, which has no state before `cuInit`.
        if !unsafe { sys::is_culib_present() } {
            return Err(CudaError::NoDriver);
        }
        check("cuInit", result::init())?;
        let driver_version = driver_version()?;
        if driver_version < CUDA_VERSION {
            return Err(CudaError::DriverTooOld { found: driver_version, needed: CUDA_VERSION });
        }
        let count = check("cuDeviceGetCount", result::device::get_count())?;
        if ordinal >= count as usize {
            return Err(CudaError::NoDevice { ordinal, count: count as usize });
        }
        let device = check("cuDeviceGet", result::device::get(ordinal as c_int))?;
        let properties = Properties::of(device, driver_version)?;
        let (major, minor) = properties.compute_capability;
        if (major as c_int, minor as c_int) < OLDEST {
            let name = properties.name;
            return Err(CudaError::TooOld { name, major, minor });
        }
        // SAFETY: `device` was just given by the driver. The context is released in `drop`.
        let context =
            unsafe { check("cuDevicePrimaryCtxRetain", result::primary_ctx::retain(device))? };
        // SAFETY: the context is retained.
        unsafe { check("cuCtxSetCurrent", result::ctx::set_current(context))? };
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking);
        let stream = check("cuStreamCreate", stream)?;
        let functions = Mutex::default();
        Ok(Gpu(Arc::new(Inner { device, context, stream, properties, functions })))
    }

    /// What it is.
    pub fn properties(&self) -> &Properties {
        &self.0.properties
    }

    /// How many multiprocessors it has.
    pub fn multiprocessors(&self) -> u32 {
        self.0.properties.multiprocessors
    }

    /// The most shared memory that a block may ask for, in bytes.
    pub fn shared_memory_per_block(&self) -> usize {
        self.0.properties.shared_memory_per_block as usize
    }

    /// Bytes of the device's memory that nobody uses, and all bytes.
    pub fn free_memory(&self) -> Result<(u64, u64), CudaError> {
        self.0.bind()?;
        let (free, total) = check("cuMemGetInfo", result::mem_get_info())?;
        Ok((free as u64, total as u64))
    }

    /// Waits until the device has done everything that it was given. Never part of a step.
    pub fn wait(&self) -> Result<(), CudaError> {
        // SAFETY: the stream lives as long as `self`.
        unsafe { check("cuStreamSynchronize", result::stream::synchronize(self.0.stream)) }
    }

    /// Its stream, for libraries that run on it.
    pub(crate) fn stream(&self) -> sys::CUstream {
        self.0.stream
    }
}

#[allow(unsafe_code)]
impl Inner {
    /// Makes the device that of this thread.
    fn bind(&self) -> Result<(), CudaError> {
        // SAFETY: the context is retained as long as `self` lives.
        unsafe { check("cuCtxSetCurrent", result::ctx::set_current(self.context)) }
    }
}

#[allow(unsafe_code)]
impl Drop for Inner {
    fn drop(&mut self) {
        // Nothing can be done about a device that fails now; the process is about to end.
        // SAFETY: nobody else holds the stream, its work is over, and the context goes last.
        unsafe {
            let _ = self.bind();
            let _ = result::stream::synchronize(self.stream);
            let _ = result::stream::destroy(self.stream);
            let _ = result::primary_ctx::release(self.device);
        }
    }
}

#[allow(unsafe_code)]
fn driver_version() -> Result<c_int, CudaError> {
    let mut version = 0;
    // SAFETY: the driver writes one number there.
    unsafe { check("cuDriverGetVersion", sys::cuDriverGetVersion(&raw mut version).result())? };
    Ok(version)
}

#[allow(unsafe_code)]
impl Properties {
    fn of(device: sys::CUdevice, driver_version: c_int) -> Result<Self, CudaError> {
        use sys::CUdevice_attribute as Attribute;
        let attribute = |attribute| {
            // SAFETY: the device was given by the driver.
            let value = unsafe { result::device::get_attribute(device, attribute) };
            check("cuDeviceGetAttribute", value).map(|value| value as u32)
        };
        // SAFETY: as above.
        let memory = unsafe { check("cuDeviceTotalMem", result::device::total_mem(device))? };
        Ok(Properties {
            name: check("cuDeviceGetName", result::device::get_name(device))?,
            compute_capability: (
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ),
            multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            shared_memory_per_block: attribute(
                Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
            )?,
            memory: memory as u64,
            driver_version: driver_version as u32,
        })
    }
}
