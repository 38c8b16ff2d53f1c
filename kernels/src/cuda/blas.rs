//! cuBLAS: products of large matrices, on the GPU's stream, with memory that is taken once, so that
//! they can be recorded.

use std::ffi::{c_int, c_void};

use candle_core::DType;
use cudarc::cublas::result::{self, CublasError};
use cudarc::cublas::sys;

use super::error::CudaError;
use super::{Array, Gpu};

/// Bytes that cuBLAS may use for what it adds up: as many as it asks for itself on an H200.
const WORKSPACE: usize = 32 << 20;

/// cuBLAS on one GPU. Made once, because it loads its kernels then.
#[derive(Debug)]
pub struct Blas {
    handle: sys::cublasHandle_t,
    workspace: Array,
    /// Lives as long as the handle, which uses its stream.
    gpu: Gpu,
}

// SAFETY: the handle may be used by any thread, one at a time, and is used through its GPU's
// thread.
#[allow(unsafe_code)]
unsafe impl Send for Blas {}

/// `out[t, n] = sum_k x[t, k] * w[n, k]`, contiguous; x and w of one type, out of that or f32.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gemm<'a> {
    /// `[T, K]`.
    pub(crate) x: &'a Array,
    /// `[N, K]`.
    pub(crate) w: &'a Array,
    /// `[T, N]`.
    pub(crate) out: &'a Array,
    /// `T`, `N`, `K`; none of them 0.
    pub(crate) shape: [i32; 3],
}

#[allow(unsafe_code)]
impl Blas {
    /// Loads cuBLAS for `gpu`.
    pub fn new(gpu: &Gpu) -> Result<Self, CudaError> {
        // What follows panics where there is no such library.
        // SAFETY: it only tries to load the library.
        if !unsafe { sys::is_culib_present() } {
            return Err(CudaError::MissingLibrary { library: "libcublas.so.13" });
        }
        let workspace = gpu.uninitialized(DType::U8, WORKSPACE)?;
        let handle = check("cublasCreate", result::create_handle())?;
        let blas = Blas { handle, workspace, gpu: gpu.clone() };
        // cuBLAS may otherwise add up parts of a sum as halves.
        let exact = sys::cublasMath_t::CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION;
        // SAFETY: the handle was just made; stream and memory live as long as it. The memory is set
        // after the stream, which resets it.
        unsafe {
            let set = result::set_stream(handle, gpu.stream().cast());
            check("cublasSetStream", set)?;
            let memory = blas.workspace.address() as *mut c_void;
            let set = sys::cublasSetWorkspace_v2(handle, memory, WORKSPACE).result();
            check("cublasSetWorkspace", set)?;
            check("cublasSetMathMode", sys::cublasSetMathMode(handle, exact).result())?;
        }
        Ok(blas)
    }

    /// Its GPU.
    pub(crate) fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Memory that holds nothing between two products.
    pub(crate) fn workspace(&self) -> &Array {
        &self.workspace
    }

    /// Gives a product to the stream; its sums are in f32, of what is given as it is.
    ///
    /// # Safety
    ///
    /// The arrays have the shape that is said, in this GPU's memory.
    pub(crate) unsafe fn gemm(&self, gemm: Gemm<'_>) -> Result<(), CudaError> {
        let Gemm { x, w, out, shape: [t, n, k] } = gemm;
        let (one, zero) = (1_f32, 0_f32);
        let read = |array: &Array| array.address() as *const c_void;
        // cuBLAS counts along columns: what it sees is out^T = w x^T, of which w is transposed.
        // SAFETY: the caller's; the factors are read before the call returns.
        let done = unsafe {
            result::gemm_ex(
                self.handle,
                sys::cublasOperation_t::CUBLAS_OP_T,
                sys::cublasOperation_t::CUBLAS_OP_N,
                n,
                t,
                k,
                (&raw const one).cast(),
                read(w),
                data_type(w),
                k,
                read(x),
                data_type(x),
                k,
                (&raw const zero).cast(),
                out.address() as *mut c_void,
                data_type(out),
                n as c_int,
                sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        };
        check("cublasGemmEx", done)
    }
}

#[allow(unsafe_code)]
impl Drop for Blas {
    fn drop(&mut self) {
        // SAFETY: it is destroyed once, after what it was given is done, with its GPU current.
        unsafe {
            let _ = self.gpu.0.bind();
            let _ = self.gpu.wait();
            let _ = result::destroy_handle(self.handle);
        }
    }
}

fn data_type(array: &Array) -> sys::cudaDataType {
    match array.dtype() {
        DType::F16 => sys::cudaDataType::CUDA_R_16F,
        DType::BF16 => sys::cudaDataType::CUDA_R_16BF,
        DType::F32 => sys::cudaDataType::CUDA_R_32F,
        other => panic!("matrices hold f32, f16 or bf16, not {other:?}"),
    }
}

fn check<T>(call: &'static str, result: Result<T, CublasError>) -> Result<T, CudaError> {
    result.map_err(|error| CudaError::Blas { call, status: format!("{:?}", error.0) })
}
