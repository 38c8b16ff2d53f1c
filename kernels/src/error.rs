//! What can be wrong with the arguments of an operation.

use candle_core::{DType, Device};

/// An argument broke the contract of an operation, or candle failed beneath it.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// A tensor has the wrong rank or a wrong dimension.
    #[error("{argument}: expected shape [{expected}], found {found:?}")]
    Shape {
        /// The argument's name in the function's signature.
        argument: &'static str,
        /// The dimensions as numbers, or as letters where any number is right.
        expected: String,
        /// The dimensions of the tensor that was given.
        found: Vec<usize>,
    },
    /// A tensor has a dtype that the operation does not take.
    #[error("{argument}: expected dtype {expected}, found {found:?}")]
    DType {
        /// The argument's name in the function's signature.
        argument: &'static str,
        /// The dtypes that the operation takes.
        expected: &'static str,
        /// The dtype of the tensor that was given.
        found: DType,
    },
    /// A tensor's elements do not lie as the operation reads them.
    #[error("{argument}: expected {expected}, found shape {shape:?} with strides {strides:?}")]
    Layout {
        /// The argument's name in the function's signature.
        argument: &'static str,
        /// The layouts that the operation takes.
        expected: &'static str,
        /// The dimensions of the tensor that was given.
        shape: Vec<usize>,
        /// Its strides, in elements.
        strides: Vec<usize>,
    },
    /// A tensor lives where the operation has no implementation.
    #[error("{argument}: expected a tensor on the cpu, found one on {found}")]
    Device {
        /// The argument's name in the function's signature.
        argument: &'static str,
        /// The device of the tensor that was given.
        found: String,
    },
    /// An index points outside of what it indexes.
    #[error("{argument}[{at}]: expected an index below {limit}, found {found}")]
    Index {
        /// The argument's name in the function's signature.
        argument: &'static str,
        /// The position of the index in its list.
        at: usize,
        /// One past the largest valid index.
        limit: usize,
        /// The index that was given.
        found: usize,
    },
    /// A list or a number breaks a rule of the operation.
    #[error("{argument}: expected {rule}, found {found}")]
    Value {
        /// The argument's name in the function's signature.
        argument: &'static str,
        /// What has to hold.
        rule: String,
        /// What was given.
        found: String,
    },
    /// The GPU failed.
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Cuda(#[from] crate::cuda::CudaError),
    /// Candle itself failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

impl KernelError {
    /// `argument` lives on `device`, where the operation has no implementation.
    pub(crate) fn device(argument: &'static str, device: &Device) -> Self {
        Self::Device { argument, found: format!("{:?}", device.location()) }
    }
}
