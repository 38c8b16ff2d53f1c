//! How long something takes on the device, and what that is of the time it must take.

use std::time::Instant;

use candle_core::DType;
use half::bf16;
use millstream_kernels::KernelError;
use millstream_kernels::cuda::{Array, Event, Gpu};
use millstream_kernels::linear::cuda::{Linear, Weight};
use serde_json::json;

/// A kernel's or the driver's refusal ends the bench.
pub(crate) type Result<T = (), E = KernelError> = std::result::Result<T, E>;

/// What is read is rotated over so many bytes: several times what any GPU's caches hold, because
/// between two uses in a model all other layers pass through them.
const ROTATED: usize = 256 << 20;

/// Recordings that are timed; their median counts.
const RUNS: usize = 11;

/// How long a recording should take, so that beginning and end of it do not show.
const RECORDED_US: f64 = 2000.0;

/// How fast the device copies and multiplies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peaks {
    /// Bytes read and written, per microsecond.
    copy: f64,
    /// Operations per microsecond.
    product: f64,
}

/// What a call must do at least.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Work {
    pub(crate) bytes: f64,
    pub(crate) flops: f64,
}

impl Peaks {
    /// Prints what something took, and the share of it that it must take.
    pub(crate) fn row(&self, part: &str, (name, shape): (&str, &str), us: f64, work: Work) {
        let (moved, multiplied) = (work.bytes / self.copy, work.flops / self.product);
        let (least, of) =
            if moved >= multiplied { (moved, "copy") } else { (multiplied, "product") };
        let rate = |amount: f64, unit: f64| (amount > 0.0).then(|| amount / us / unit);
        let is_bound = least > 0.0 && least.is_finite();
        let row = json!({
            "part": part,
            "name": name,
            "shape": shape,
            "us": us,
            "gb_per_s": rate(work.bytes, 1e3),
            "tflop_per_s": rate(work.flops, 1e6),
            "fraction": is_bound.then_some(least / us),
            "of": is_bound.then_some(of),
        });
        println!("{row}");
    }
}

/// A device whose speed is known.
pub(crate) struct Bench {
    pub(crate) gpu: Gpu,
    pub(crate) products: Linear,
    pub(crate) small: bool,
    peaks: Peaks,
    /// bf16 between -1 and 1: a chip that multiplies zeros is faster than it is.
    noise: Array,
}

impl Bench {
    /// Measures the device's peaks, and prints them.
    pub(crate) fn new(gpu: Gpu, small: bool) -> Result<Self> {
        let mut state = 1_u32;
        let random = (0..if small { 1 << 16 } else { 1 << 25 }).map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            bf16::from_f32((state >> 8) as f32 / (1 << 23) as f32 - 1.0)
        });
        let noise = gpu.upload(&random.collect::<Vec<_>>())?;
        let products = Linear::new(&gpu)?;
        // Until they are measured nothing is a fraction of them.
        let peaks = Peaks { copy: f64::INFINITY, product: f64::INFINITY };
        let mut bench = Bench { gpu, products, small, peaks, noise };

        let len = bench.size(1 << 29, 1 << 12);
        let (from, to) = (bench.random(len)?, bench.random(len)?);
        let us = bench.time(1, |_| Ok(bench.gpu.copy(&from, &to)?))?;
        let bytes = 4.0 * len as f64;
        let shape = format!("{} MiB", (2 * len) >> 20);
        bench.peaks.row("peaks", ("copy", &shape), us, Work { bytes, ..Work::default() });
        let copy = bytes / us;
        drop((from, to));

        let side = bench.size(8192, 128);
        let (x, out) = (bench.random(side * side)?, bench.random(side * side)?);
        let elements = bench.random(side * side)?;
        let w = Weight { elements, out_features: side, in_features: side };
        let us = bench.time(1, |_| bench.products.linear(&x, &w, &out))?;
        let flops = 2.0 * (side as f64).powi(3);
        let shape = format!("bf16 {side}^3");
        bench.peaks.row("peaks", ("product", &shape), us, Work { flops, ..Work::default() });
        bench.peaks = Peaks { copy, product: flops / us };
        Ok(bench)
    }

    /// Frees the device's memory.
    pub(crate) fn finish(self) -> Peaks {
        self.peaks
    }

    /// A size, or a small one.
    pub(crate) fn size(&self, size: usize, small: usize) -> usize {
        if self.small { small } else { size }
    }

    /// These sizes; the first two alone where all is small.
    pub(crate) fn sizes<'a, T>(&self, sizes: &'a [T]) -> &'a [T] {
        if self.small { &sizes[..2] } else { sizes }
    }

    /// `len` numbers between -1 and 1, in bf16.
    pub(crate) fn random(&self, len: usize) -> Result<Array> {
        let array = self.gpu.uninitialized(DType::BF16, len)?;
        for start in (0..len).step_by(self.noise.len()) {
            let end = len.min(start + self.noise.len());
            self.gpu.copy(&self.noise.slice(0..end - start), &array.slice(start..end))?;
        }
        Ok(array)
    }

    /// How often something of so many bytes has to be there, so that no cache holds it when its
    /// turn comes again.
    pub(crate) fn copies(&self, bytes: usize) -> usize {
        if self.small { 2 } else { ROTATED.div_ceil(bytes.max(1)).clamp(1, 64) }
    }

    /// Microseconds of `call` on the device; it is given its number, for what is rotated over
    /// `copies`.
    pub(crate) fn time(&self, copies: usize, call: impl Fn(usize) -> Result) -> Result<f64> {
        let (begin, end) = (Event::timed(&self.gpu)?, Event::timed(&self.gpu)?);
        // Loads the kernels, which cannot be done while recording.
        call(0)?;
        self.gpu.wait()?;
        let start = Instant::now();
        call(1)?;
        self.gpu.wait()?;
        let once = start.elapsed().as_secs_f64() * 1e6;
        let calls = if self.small { 1 } else { ((RECORDED_US / once) as usize).clamp(1, 64) };
        let calls = calls.max(copies);
        let graph = self.gpu.record(|| (0..calls).try_for_each(&call))?;
        let mut runs = Vec::with_capacity(RUNS);
        for run in 0..if self.small { 2 } else { RUNS + 1 } {
            begin.record()?;
            graph.launch()?;
            end.record()?;
            end.wait()?;
            // The first one warms up.
            if run > 0 {
                runs.push(f64::from(end.ms_since(&begin)?) * 1e3 / calls as f64);
            }
        }
        runs.sort_by(f64::total_cmp);
        Ok(runs[runs.len() / 2])
    }

    /// Measures a kernel, and prints a row of it.
    pub(crate) fn kernel(
        &self,
        title: (&str, &str),
        work: Work,
        copies: usize,
        call: impl Fn(usize) -> Result,
    ) -> Result {
        let us = self.time(copies, call)?;
        self.peaks.row("kernels", title, us, work);
        Ok(())
    }
}

/// Work that is all moving.
pub(crate) fn bytes(bytes: usize) -> Work {
    Work { bytes: bytes as f64, flops: 0.0 }
}
