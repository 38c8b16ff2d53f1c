//! Marks in the stream that the host can wait for.

use std::sync::Arc;

use cudarc::driver::{result, sys};

use super::error::{CudaError, check};
use super::{Gpu, Inner};

/// A mark in the stream, moved by [`Event::record`].
#[derive(Debug)]
pub struct Event {
    gpu: Arc<Inner>,
    event: sys::CUevent,
}

// SAFETY: it is a number that the driver looks up, and the driver is thread-safe.
#[allow(unsafe_code)]
unsafe impl Send for Event {}

#[allow(unsafe_code)]
impl Event {
    /// A mark at nothing: it has been reached. Who waits for it sleeps, and takes no processor from
    /// others.
    pub fn new(gpu: &Gpu) -> Result<Self, CudaError> {
        use sys::CUevent_flags::{CU_EVENT_BLOCKING_SYNC, CU_EVENT_DISABLE_TIMING};
        Self::with(gpu, CU_EVENT_BLOCKING_SYNC as u32 | CU_EVENT_DISABLE_TIMING as u32)
    }

    /// A mark that remembers when it was reached.
    pub fn timed(gpu: &Gpu) -> Result<Self, CudaError> {
        Self::with(gpu, sys::CUevent_flags::CU_EVENT_BLOCKING_SYNC as u32)
    }

    fn with(gpu: &Gpu, flags: u32) -> Result<Self, CudaError> {
        let mut event = std::ptr::null_mut();
        // SAFETY: the driver writes a handle there.
        unsafe { check("cuEventCreate", sys::cuEventCreate(&raw mut event, flags).result())? };
        Ok(Event { gpu: gpu.0.clone(), event })
    }

    /// Moves it behind everything that was given to the stream so far.
    pub fn record(&self) -> Result<(), CudaError> {
        // SAFETY: both live as long as `self`.
        unsafe { check("cuEventRecord", result::event::record(self.event, self.gpu.stream)) }
    }

    /// Whether the device has reached it.
    pub fn is_reached(&self) -> Result<bool, CudaError> {
        // SAFETY: the event lives as long as `self`.
        match unsafe { result::event::query(self.event) } {
            Ok(()) => Ok(true),
            Err(error) if error.0 == sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            Err(error) => Err(CudaError::driver("cuEventQuery", error)),
        }
    }

    /// Waits until the device has reached it.
    pub fn wait(&self) -> Result<(), CudaError> {
        // SAFETY: the event lives as long as `self`.
        unsafe { check("cuEventSynchronize", result::event::synchronize(self.event)) }
    }

    /// Milliseconds from `earlier` to this one; both are timed and reached.
    pub fn ms_since(&self, earlier: &Event) -> Result<f32, CudaError> {
        // SAFETY: both live as long as their owners.
        unsafe { check("cuEventElapsedTime", result::event::elapsed(earlier.event, self.event)) }
    }
}

#[allow(unsafe_code)]
impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: it is destroyed once; the driver keeps what is still marked.
        unsafe {
            let _ = self.gpu.bind();
            let _ = result::event::destroy(self.event);
        }
    }
}
