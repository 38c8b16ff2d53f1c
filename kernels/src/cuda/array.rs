//! The device's memory: typed views that keep it alive.

use std::ops::Range;
use std::sync::Arc;

use candle_core::DType;
use cudarc::driver::{result, sys};
use half::{bf16, f16};

use super::error::{CudaError, check, is_out_of_memory};
use super::{Gpu, Inner};

/// A number that the host and the device both have, as the same bytes.
pub trait Plain: Copy + Default + private::Sealed {
    /// What it is called.
    const DTYPE: DType;
}

mod private {
    pub trait Sealed {}
}

macro_rules! plain {
    ($($number:ty: $dtype:ident),*) => {$(
        impl private::Sealed for $number {}
        impl Plain for $number {
            const DTYPE: DType = DType::$dtype;
        }
    )*};
}

plain!(f32: F32, f16: F16, bf16: BF16, u32: U32, u8: U8, i64: I64);

/// `len` numbers in a device's memory. A clone and a slice are views of the same memory.
#[derive(Clone, Debug)]
pub struct Array {
    memory: Arc<Memory>,
    /// Bytes from the memory's beginning.
    start: usize,
    len: usize,
    dtype: DType,
}

/// Memory that was taken from the device; it goes back when nobody looks at it any more.
#[derive(Debug)]
struct Memory {
    gpu: Arc<Inner>,
    address: sys::CUdeviceptr,
}

impl Array {
    /// How many numbers it has.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What its numbers are.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// How many bytes they take.
    pub fn num_bytes(&self) -> usize {
        self.len * self.dtype.size_in_bytes()
    }

    /// Where it begins in the device's memory.
    pub fn address(&self) -> u64 {
        self.memory.address + self.start as u64
    }

    /// The numbers of `range`.
    ///
    /// # Panics
    ///
    /// Where the array does not have them.
    #[must_use]
    pub fn slice(&self, range: Range<usize>) -> Array {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        let start = self.start + range.start * self.dtype.size_in_bytes();
        Array { memory: self.memory.clone(), start, len: range.len(), dtype: self.dtype }
    }

    /// The same bytes as numbers of another type.
    ///
    /// # Panics
    ///
    /// Where they are no whole number of those, or do not lie as those must.
    #[must_use]
    pub fn cast(&self, dtype: DType) -> Array {
        let (bytes, size) = (self.num_bytes(), dtype.size_in_bytes());
        assert!(
            bytes.is_multiple_of(size) && self.address().is_multiple_of(size as u64),
            "{bytes} bytes at {:#x} as {dtype:?}",
            self.address()
        );
        Array { len: bytes / size, dtype, ..self.clone() }
    }

    /// Whether it begins where 16 bytes can be read at once.
    pub(crate) fn is_aligned(&self) -> bool {
        self.address().is_multiple_of(16)
    }
}

#[allow(unsafe_code)]
impl Gpu {
    /// Takes memory for `len` numbers; what it holds is undefined until it is written.
    pub fn uninitialized(&self, dtype: DType, len: usize) -> Result<Array, CudaError> {
        self.0.bind()?;
        // The driver has no memory of nothing.
        let bytes = (len * dtype.size_in_bytes()).max(1);
        // SAFETY: the context is current; the memory is freed by `Memory` alone.
        let address = unsafe { result::malloc_sync(bytes) };
        let address = match address {
            Ok(address) => address,
            Err(error) if is_out_of_memory(error) => {
                let (free, total) = self.free_memory()?;
                let mib = |bytes: u64| bytes >> 20;
                return Err(CudaError::OutOfMemory {
                    requested_mib: (bytes as u64).div_ceil(1 << 20),
                    free_mib: mib(free),
                    total_mib: mib(total),
                });
            }
            Err(error) => return Err(CudaError::driver("cuMemAlloc", error)),
        };
        let memory = Arc::new(Memory { gpu: self.0.clone(), address });
        Ok(Array { memory, start: 0, len, dtype })
    }

    /// Takes memory for `len` numbers that are 0.
    pub fn zeros(&self, dtype: DType, len: usize) -> Result<Array, CudaError> {
        let array = self.uninitialized(dtype, len)?;
        self.clear(&array)?;
        Ok(array)
    }

    /// Makes all numbers 0, in the order of the stream.
    pub fn clear(&self, array: &Array) -> Result<(), CudaError> {
        // SAFETY: the array has that many bytes, and lives until the stream has done this: freeing
        // memory waits for the device.
        unsafe {
            let done =
                result::memset_d8_async(array.address(), 0, array.num_bytes(), self.0.stream);
            check("cuMemsetD8Async", done)
        }
    }

    /// Takes memory and fills it; waits until that is done.
    pub fn upload<E: Plain>(&self, values: &[E]) -> Result<Array, CudaError> {
        let array = self.uninitialized(E::DTYPE, values.len())?;
        // SAFETY: the array has room for the values, which stay where they are until the wait.
        unsafe {
            let done = result::memcpy_htod_async(array.address(), values, self.0.stream);
            check("cuMemcpyHtoDAsync", done)?;
        }
        self.wait()?;
        Ok(array)
    }

    /// The numbers of an array of this type; waits for everything before.
    ///
    /// # Panics
    ///
    /// Where they are of another type.
    pub fn download<E: Plain>(&self, array: &Array) -> Result<Vec<E>, CudaError> {
        assert_eq!(array.dtype(), E::DTYPE, "the type of what is downloaded");
        let mut values = vec![E::default(); array.len()];
        // SAFETY: both have that many numbers, and stay where they are until the wait.
        unsafe {
            let done = result::memcpy_dtoh_async(&mut values, array.address(), self.0.stream);
            check("cuMemcpyDtoHAsync", done)?;
        }
        self.wait()?;
        Ok(values)
    }

    /// Copies `from` over `to`, of as many bytes, in the order of the stream.
    ///
    /// # Panics
    ///
    /// Where they do not have equally many bytes.
    pub fn copy(&self, from: &Array, to: &Array) -> Result<(), CudaError> {
        assert_eq!(from.num_bytes(), to.num_bytes(), "bytes that are copied");
        // SAFETY: both have that many bytes, and memory is not freed before the device is done.
        unsafe {
            let (to, bytes) = (to.address(), from.num_bytes());
            let done = result::memcpy_dtod_async(to, from.address(), bytes, self.0.stream);
            check("cuMemcpyDtoDAsync", done)
        }
    }
}

#[allow(unsafe_code)]
impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: it was taken once and nobody looks at it any more; the driver waits for what the
        // device still does with it. A device that has failed has freed it already.
        unsafe {
            let _ = self.gpu.bind();
            let _ = result::free_sync(self.address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::gpu;
    use super::*;

    #[test]
    fn views_are_of_the_same_memory() {
        let Some(gpu) = gpu() else { return };
        let all = gpu.upload(&[1_u32, 2, 3, 4, 5]).unwrap();
        let middle = all.slice(1..4);
        gpu.clear(&middle.slice(0..1)).unwrap();
        assert_eq!(gpu.download::<u32>(&middle).unwrap(), [0, 3, 4]);
        gpu.copy(&all.slice(0..1), &all.slice(4..5)).unwrap();
        drop(all);
        assert_eq!(gpu.download::<u32>(&middle).unwrap(), [0, 3, 4]);
        assert_eq!(gpu.download::<u8>(&middle.cast(DType::U8)).unwrap()[4], 3);
    }

    #[test]
    fn memory_that_the_device_does_not_have_is_one_clear_line() {
        let Some(gpu) = gpu() else { return };
        let error = gpu.uninitialized(DType::U8, 1 << 50).unwrap_err().to_string();
        let begin = "the GPU is full: 1073741824 MiB were asked for, ";
        assert!(error.starts_with(begin) && error.ends_with(" MiB are free"), "{error}");
    }

    #[test]
    fn nothing_can_be_taken_and_read() {
        let Some(gpu) = gpu() else { return };
        let nothing = gpu.upload::<f32>(&[]).unwrap();
        assert!(nothing.is_empty() && gpu.download::<f32>(&nothing).unwrap().is_empty());
    }
}
