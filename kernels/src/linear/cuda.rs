//! Linear on the GPU: `out[t,n] = sum_k x[t,k] * w[n,k]`, sums in f32.
//!
//! There are two ways, and T alone chooses between them:
//! - up to [`MAX_SKINNY`] tokens a kernel of ours, bound by reading w once. Here the bits of
//!   `out[t,n]` depend on row t of x, on row n of w, and on N and K: not on T, nor on the GPU;
//! - beyond that cuBLAS, which chooses the order of its sums by the shape.
//!
//! A shape goes to cuBLAS with few tokens too where the kernel has no room: on a GPU that does not
//! give a block 160 KiB of shared memory, or where N * K is so large that the sums of K's parts do
//! not fit in 32 MiB.
//!
//! Biases are added by what follows: [`crate::heads`], [`crate::residual`], [`crate::activation`].

use candle_core::DType;

use crate::cuda::{Arg, Array, Blas, CudaError, Gemm, Gpu, Launch, Module, check, module};
use crate::{KernelError, Result};

static MODULE: Module = module!("linear_skinny");

/// The most tokens that our own kernel multiplies.
pub const MAX_SKINNY: usize = 16;

/// Threads of a block of `linear_skinny`, and its warps.
const SKINNY_THREADS: u32 = 512;
const SKINNY_WARPS: usize = 16;
/// Rows of w that a warp multiplies at once.
const TILE: usize = 16;
/// Elements of K that it multiplies at once.
const STEP: usize = 64;
/// The most steps of a part of K: x of 16 tokens is then 128 KiB of shared memory.
const MAX_STEPS: usize = 64;
/// Rows of w for a block of `linear_plain`, and its threads.
const PLAIN_ROWS: u32 = 8;
const PLAIN_THREADS: u32 = 256;

/// A weight matrix as its checkpoint has it.
#[derive(Clone, Debug)]
pub struct Weight {
    /// `[N, K]` f32|f16|bf16.
    pub elements: Array,
    /// `N`: the length of a row of the result.
    pub out_features: usize,
    /// `K`: the length of a row of the input.
    pub in_features: usize,
}

/// What products need beside their arguments; made once for a GPU.
#[derive(Debug)]
pub struct Linear {
    blas: Blas,
    /// For each tile, how many parts of K are summed; 0 between two products.
    counters: Array,
}

/// How `linear_skinny` cuts a matrix: by N and K alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cut {
    /// `N / 16`, rounded up.
    tiles: usize,
    /// Parts of K.
    slices: usize,
    /// Steps of the longest part.
    steps: usize,
    /// Warps that share the steps of a part.
    warps_per_tile: usize,
}

impl Cut {
    fn new(out_features: usize, in_features: usize) -> Self {
        let steps = in_features.div_ceil(STEP);
        let slices = steps.div_ceil(MAX_STEPS);
        // Each warp has two steps at least, where there are that many.
        let share = (steps / slices / 2).clamp(1, SKINNY_WARPS);
        let warps_per_tile =
            if share.is_power_of_two() { share } else { share.next_power_of_two() / 2 };
        let steps = steps.div_ceil(slices);
        Self { tiles: out_features.div_ceil(TILE), slices, steps, warps_per_tile }
    }

    /// Blocks that work side by side, each through tiles of one part of K.
    fn grid(&self, gpu: &Gpu) -> [u32; 3] {
        let all = self.tiles.div_ceil(SKINNY_WARPS / self.warps_per_tile);
        // One block fills a multiprocessor.
        let blocks = all.min((gpu.multiprocessors() as usize / self.slices).max(1));
        [blocks as u32, self.slices as u32, 1]
    }

    /// Bytes of shared memory: the sums of two passes, and x.
    fn shared(&self, room: usize) -> usize {
        (2 * SKINNY_WARPS * TILE * size_of::<f32>() + self.steps * STEP * 2) * room
    }

    /// The numbers that the parts of K leave for each other.
    fn partials(&self, room: usize) -> usize {
        if self.slices == 1 { 0 } else { self.tiles * self.slices * TILE * room }
    }
}

/// Tokens that the kernel has room for.
fn room(tokens: usize) -> usize {
    tokens.next_multiple_of(8)
}

impl Linear {
    /// Loads what products need on `gpu`.
    pub fn new(gpu: &Gpu) -> std::result::Result<Self, CudaError> {
        /// The sums of a matrix with more tiles and several parts of K would not have room.
        const MOST_TILES: usize = 1 << 15;
        Ok(Self { blas: Blas::new(gpu)?, counters: gpu.zeros(DType::U32, MOST_TILES)? })
    }

    /// Writes the product of `x` `[T, K]`, of w's type, to `out` `[T, N]`, of w's type or f32.
    ///
    /// It takes no memory and waits for nothing.
    pub fn linear(&self, x: &Array, w: &Weight, out: &Array) -> Result<()> {
        let (n, k, dtype) = (w.out_features, w.in_features, w.elements.dtype());
        check::suffix(&w.elements, "w")?;
        if n == 0 || k == 0 {
            let (argument, rule) = ("w", "rows and columns".to_owned());
            return Err(KernelError::Value { argument, rule, found: format!("[{n}, {k}]") });
        }
        check::shape(&w.elements, "w", dtype, &[n, k])?;
        let tokens = x.len() / k;
        check::shape(x, "x", dtype, &[tokens, k])?;
        let out_dtype = if out.dtype() == DType::F32 { DType::F32 } else { dtype };
        check::shape(out, "out", out_dtype, &[tokens, n])?;
        let shape = [check::count("x", tokens)?, check::count("w", n)?, check::count("w", k)?];
        let product = Gemm { x, w: &w.elements, out, shape };
        let aligned = x.is_aligned() && w.elements.is_aligned() && k.is_multiple_of(8);
        let cut = Cut::new(n, k);
        if tokens == 0 {
            Ok(())
        } else if tokens <= MAX_SKINNY && (dtype == DType::F32 || !aligned) {
            self.plain(product)
        } else if tokens <= MAX_SKINNY && self.has_room(cut) {
            self.skinny(product, cut)
        } else {
            self.gemm(product)
        }
    }

    /// Whether the kernel can work with such a cut. As for the most tokens, also for fewer: T must
    /// not decide.
    fn has_room(&self, cut: Cut) -> bool {
        cut.shared(MAX_SKINNY) <= self.gpu().shared_memory_per_block()
            && cut.partials(MAX_SKINNY) * size_of::<f32>() <= self.blas.workspace().num_bytes()
            && (cut.slices == 1 || cut.tiles <= self.counters.len())
    }

    #[allow(unsafe_code)]
    fn skinny(&self, product: Gemm<'_>, cut: Cut) -> Result<()> {
        let Gemm { x, w, out, shape: [tokens, n, k] } = product;
        let room = room(tokens as usize);
        let shared = cut.shared(room) as u32;
        let launch = Launch { grid: cut.grid(self.gpu()), block: SKINNY_THREADS, shared };
        let args = [
            x.into(),
            w.into(),
            out.into(),
            is_f32(out),
            self.blas.workspace().into(),
            (&self.counters).into(),
            tokens.into(),
            n.into(),
            k.into(),
            (cut.warps_per_tile as i32).into(),
        ];
        let name = format!("linear_skinny_{}_{room}", check::suffix(w, "w")?);
        // SAFETY: the arguments are the kernel's; `linear` has checked shapes, alignment and room,
        // and the counters are 0 before and after.
        unsafe { self.gpu().launch(&MODULE, &name, launch, &args)? };
        Ok(())
    }

    #[allow(unsafe_code)]
    fn plain(&self, product: Gemm<'_>) -> Result<()> {
        let Gemm { x, w, out, shape: [tokens, n, k] } = product;
        let grid = [(n as u32).div_ceil(PLAIN_ROWS), 1, 1];
        let launch = Launch { grid, block: PLAIN_THREADS, shared: 0 };
        let args = [x.into(), w.into(), out.into(), is_f32(out), tokens.into(), n.into(), k.into()];
        let name = format!("linear_plain_{}", check::suffix(w, "w")?);
        // SAFETY: the arguments are the kernel's, and `linear` has checked the shapes.
        unsafe { self.gpu().launch(&MODULE, &name, launch, &args)? };
        Ok(())
    }

    #[allow(unsafe_code)]
    fn gemm(&self, product: Gemm<'_>) -> Result<()> {
        // SAFETY: `linear` has checked the shapes.
        unsafe { self.blas.gemm(product)? };
        Ok(())
    }

    fn gpu(&self) -> &Gpu {
        self.blas.gpu()
    }
}

fn is_f32(out: &Array) -> Arg {
    i32::from(out.dtype() == DType::F32).into()
}

#[cfg(test)]
#[path = "cuda_tests.rs"]
mod tests;
