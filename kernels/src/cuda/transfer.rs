//! Copies between host and device that nobody waits for: through pinned memory, which the device
//! reads and writes by itself, and which the host touches only when it is done.

use std::sync::Arc;

use cudarc::driver::{result, sys};

use super::error::{CudaError, check};
use super::{Array, Event, Gpu, Inner, Plain};

/// Pinned memory.
#[derive(Debug)]
struct Pinned {
    gpu: Arc<Inner>,
    memory: *mut u8,
    len: usize,
}

// SAFETY: it is memory, and owned by this alone.
#[allow(unsafe_code)]
unsafe impl Send for Pinned {}
// SAFETY: as above; it is changed through `&mut` alone.
#[allow(unsafe_code)]
unsafe impl Sync for Pinned {}

#[allow(unsafe_code)]
impl Pinned {
    /// `len` bytes of 0. `flags` as in `cuMemHostAlloc`.
    fn new(gpu: &Gpu, len: usize, flags: u32) -> Result<Self, CudaError> {
        gpu.0.bind()?;
        let len = len.max(1);
        // SAFETY: the context is current; the memory is written before it is read.
        let memory = unsafe { check("cuMemHostAlloc", result::malloc_host(len, flags))? };
        let memory = memory.cast::<u8>();
        // SAFETY: it was just allocated with that many bytes.
        unsafe { memory.write_bytes(0, len) };
        Ok(Pinned { gpu: gpu.0.clone(), memory, len })
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: the memory has that many bytes, all of them written; `Incoming` and `Outgoing`
        // see to it that the device does not write meanwhile.
        unsafe { std::slice::from_raw_parts(self.memory, self.len) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; and nobody else has it.
        unsafe { std::slice::from_raw_parts_mut(self.memory, self.len) }
    }
}

#[allow(unsafe_code)]
impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: it was allocated once; the driver waits for copies that are under way.
        unsafe {
            let _ = self.gpu.bind();
            let _ = result::stream::synchronize(self.gpu.stream);
            let _ = result::free_host(self.memory.cast());
        }
    }
}

/// Memory that is filled by the host and sent to the device.
#[derive(Debug)]
pub struct Outgoing {
    memory: Pinned,
    sent: Event,
}

#[allow(unsafe_code)]
impl Outgoing {
    /// Room for `num_bytes`.
    pub fn new(gpu: &Gpu, num_bytes: usize) -> Result<Self, CudaError> {
        // Written once and read by the device: it need not pass the processor's caches.
        let memory = Pinned::new(gpu, num_bytes, sys::CU_MEMHOSTALLOC_WRITECOMBINED)?;
        Ok(Outgoing { memory, sent: Event::new(gpu)? })
    }

    /// The memory, to be filled and not to be read; waits until what was sent last has left it.
    pub fn fill(&mut self) -> Result<&mut [u8], CudaError> {
        self.sent.wait()?;
        Ok(self.memory.bytes_mut())
    }

    /// [`Outgoing::fill`] with its first `len` numbers.
    ///
    /// # Panics
    ///
    /// Where it has fewer.
    pub fn fill_as<E: Plain>(&mut self, len: usize) -> Result<&mut [E], CudaError> {
        let bytes = &mut self.fill()?[..len * size_of::<E>()];
        // SAFETY: pinned memory begins at a page, so numbers of any type lie in it as they must;
        // there are `len` of them, and any bytes are such a number.
        Ok(unsafe { std::slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), len) })
    }

    /// Sends as many of its first bytes as `to` has, in the order of the stream.
    ///
    /// # Panics
    ///
    /// Where it has fewer.
    pub fn send(&mut self, to: &Array) -> Result<(), CudaError> {
        let bytes = &self.memory.bytes()[..to.num_bytes()];
        // SAFETY: `fill` waits for the event that is recorded here, dropping waits for the stream.
        unsafe {
            let sent = result::memcpy_htod_async(to.address(), bytes, self.memory.gpu.stream);
            check("cuMemcpyHtoDAsync", sent)?;
        }
        self.sent.record()
    }
}

/// Memory that the device fills.
#[derive(Debug)]
pub struct Incoming {
    memory: Pinned,
    arrived: Event,
}

#[allow(unsafe_code)]
impl Incoming {
    /// Room for `num_bytes`.
    pub fn new(gpu: &Gpu, num_bytes: usize) -> Result<Self, CudaError> {
        Ok(Incoming { memory: Pinned::new(gpu, num_bytes, 0)?, arrived: Event::new(gpu)? })
    }

    /// Has `from` copied to its beginning, in the order of the stream.
    ///
    /// # Panics
    ///
    /// Where there is no room for it.
    pub fn receive(&mut self, from: &Array) -> Result<(), CudaError> {
        let (address, stream) = (from.address(), self.memory.gpu.stream);
        let bytes = &mut self.memory.bytes_mut()[..from.num_bytes()];
        // SAFETY: `wait` waits for the event that is recorded here before it lends the memory out,
        // dropping waits for the stream.
        unsafe { check("cuMemcpyDtoHAsync", result::memcpy_dtoh_async(bytes, address, stream))? };
        self.arrived.record()
    }

    /// Whether what was asked for last has arrived.
    pub fn has_arrived(&self) -> Result<bool, CudaError> {
        self.arrived.is_reached()
    }

    /// Waits until what was asked for last has arrived, and gives all of the memory.
    pub fn wait(&self) -> Result<&[u8], CudaError> {
        self.arrived.wait()?;
        Ok(self.memory.bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::gpu;
    use super::*;
    use candle_core::DType;

    #[test]
    fn what_is_sent_twice_in_a_row_arrives_twice() {
        let Some(gpu) = gpu() else { return };
        let mut out = Outgoing::new(&gpu, 4).unwrap();
        let mut back = [0; 2].map(|_| Incoming::new(&gpu, 4).unwrap());
        let array = gpu.uninitialized(DType::U8, 4).unwrap();
        for (round, back) in (1..).zip(&mut back) {
            out.fill().unwrap().copy_from_slice(&[round; 4]);
            out.send(&array).unwrap();
            back.receive(&array).unwrap();
        }
        assert_eq!(back[0].wait().unwrap(), [1; 4]);
        assert_eq!(back[1].wait().unwrap(), [2; 4]);
    }
}
