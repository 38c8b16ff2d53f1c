//! Kernels by name: loaded when they are first launched.

use std::collections::HashMap;
use std::ffi::{CString, c_void};

use cudarc::driver::{result, sys};

use super::error::{CudaError, check};
use super::{Array, Gpu};

/// Dynamic shared memory that a kernel may have without being allowed more.
const SHARED_WITHOUT_ASKING: u32 = 48 << 10;

/// The kernels of one file, as machine code for every generation that is supported.
#[derive(Debug)]
pub struct Module {
    /// The file's name, without its ending.
    pub name: &'static str,
    /// What the compiler made of it.
    pub image: &'static [u8],
}

/// The kernels of the file `$name.cu`.
macro_rules! module {
    ($name:literal) => {
        $crate::cuda::Module {
            name: $name,
            image: include_bytes!(concat!(env!("OUT_DIR"), "/", $name, ".fatbin")),
        }
    };
}
pub(crate) use module;

/// How many threads run a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Blocks. Where one of the numbers is 0, nothing is launched.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: u32,
    /// Dynamic shared memory of a block, in bytes.
    pub shared: u32,
}

/// An argument of a kernel.
#[derive(Clone, Copy, Debug)]
pub enum Arg {
    /// An address in the device's memory; 0 for none.
    Pointer(u64),
    /// `unsigned`.
    U32(u32),
    /// `int`.
    I32(i32),
    /// 64 bits.
    U64(u64),
    /// `float`.
    F32(f32),
}

impl From<&Array> for Arg {
    fn from(array: &Array) -> Self {
        Arg::Pointer(array.address())
    }
}

impl From<Option<&Array>> for Arg {
    fn from(array: Option<&Array>) -> Self {
        Arg::Pointer(array.map_or(0, Array::address))
    }
}

macro_rules! from_number {
    ($($number:ty: $arg:ident),*) => {$(
        impl From<$number> for Arg {
            fn from(number: $number) -> Self {
                Arg::$arg(number)
            }
        }
    )*};
}
from_number!(u32: U32, i32: I32, u64: U64, f32: F32);

impl Arg {
    /// Its bytes, as the first of a word: devices are little-endian, as their hosts are.
    fn word(self) -> u64 {
        match self {
            Arg::Pointer(word) | Arg::U64(word) => word,
            Arg::U32(word) => u64::from(word),
            Arg::I32(word) => u64::from(word as u32),
            Arg::F32(word) => u64::from(word.to_bits()),
        }
    }
}

/// What is loaded so far.
#[derive(Debug, Default)]
pub(super) struct Functions {
    /// By the module's name.
    modules: HashMap<&'static str, Loaded>,
}

#[derive(Debug)]
struct Loaded {
    module: sys::CUmodule,
    functions: HashMap<String, Function>,
}

#[derive(Clone, Copy, Debug)]
struct Function {
    function: sys::CUfunction,
    /// The most dynamic shared memory that it is allowed, in bytes.
    shared: u32,
}

#[allow(unsafe_code)]
impl Functions {
    /// A kernel that may have `shared` bytes of dynamic shared memory.
    fn get(
        &mut self,
        module: &'static Module,
        kernel: &str,
        shared: u32,
    ) -> Result<sys::CUfunction, CudaError> {
        let loaded = match self.modules.get_mut(module.name) {
            Some(loaded) => loaded,
            None => {
                // SAFETY: the image is what the compiler wrote, and carries its own length.
                let loaded = unsafe { result::module::load_data(module.image.as_ptr().cast()) };
                let loaded = check("cuModuleLoadData", loaded)?;
                let loaded = Loaded { module: loaded, functions: HashMap::new() };
                self.modules.entry(module.name).or_insert(loaded)
            }
        };
        let function = match loaded.functions.get_mut(kernel) {
            Some(function) => function,
            None => {
                let name = CString::new(kernel).expect("a kernel's name has no zero byte");
                // SAFETY: the module is never unloaded.
                let function = unsafe { result::module::get_function(loaded.module, name) };
                let function = check("cuModuleGetFunction", function)?;
                let function = Function { function, shared: SHARED_WITHOUT_ASKING };
                loaded.functions.entry(kernel.to_owned()).or_insert(function)
            }
        };
        if shared > function.shared {
            let most = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function's module is never unloaded.
            let allowed = unsafe {
                result::function::set_function_attribute(function.function, most, shared as i32)
            };
            check("cuFuncSetAttribute", allowed)?;
            function.shared = shared;
        }
        Ok(function.function)
    }
}

#[allow(unsafe_code)]
impl Gpu {
    /// Gives a kernel to the stream.
    ///
    /// # Safety
    ///
    /// The arguments are of the number and the types that the kernel has, and what it reads and
    /// writes with them lies within arrays of this device that somebody keeps alive.
    pub(crate) unsafe fn launch(
        &self,
        module: &'static Module,
        kernel: &str,
        launch: Launch,
        args: &[Arg],
    ) -> Result<(), CudaError> {
        if launch.grid.contains(&0) {
            return Ok(());
        }
        let function = self.function(module, kernel, launch.shared)?;
        /// No kernel has more arguments.
        const MOST: usize = 40;
        assert!(args.len() <= MOST, "{} arguments", args.len());
        let mut words = [0_u64; MOST];
        let mut pointers = [std::ptr::null_mut::<c_void>(); MOST];
        for ((arg, word), pointer) in args.iter().zip(&mut words).zip(&mut pointers) {
            *word = arg.word();
            *pointer = std::ptr::from_mut(word).cast();
        }
        let ([x, y, z], shared) = (launch.grid, launch.shared);
        let pointers = &mut pointers[..args.len()];
        // SAFETY: the caller's; the driver copies the arguments before it returns.
        let launched = unsafe {
            let (grid, block) = ((x, y, z), (launch.block, 1, 1));
            result::launch_kernel(function, grid, block, shared, self.0.stream, pointers)
        };
        check("cuLaunchKernel", launched)
    }

    /// How many blocks of a kernel run on a multiprocessor at once.
    pub(crate) fn occupancy(
        &self,
        module: &'static Module,
        kernel: &str,
        block: u32,
        shared: u32,
    ) -> Result<u32, CudaError> {
        let function = self.function(module, kernel, shared)?;
        // SAFETY: the function's module is never unloaded.
        let blocks = unsafe {
            let (block, shared) = (block as i32, shared as usize);
            result::occupancy::max_active_block_per_multiprocessor(function, block, shared)
        };
        check("cuOccupancyMaxActiveBlocksPerMultiprocessor", blocks).map(|blocks| blocks as u32)
    }

    fn function(
        &self,
        module: &'static Module,
        kernel: &str,
        shared: u32,
    ) -> Result<sys::CUfunction, CudaError> {
        // A thread that panicked here left nothing half done that matters.
        let mut functions =
            self.0.functions.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        functions.get(module, kernel, shared)
    }
}
