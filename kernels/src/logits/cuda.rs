//! Bending logits on the GPU.

use candle_core::DType;

use crate::cuda::{Arg, Array, Gpu, Launch, Module, check, module};
use crate::{KernelError, Result};

static MODULE: Module = module!("logits");

const THREADS: usize = 256;
/// Elements of a thread.
const OWNED: usize = 2 * 4;

/// `cap * tanh(scale * logits / cap)`, in place; what is not given is left out. logits `[R, V]` f32;
/// cap above 0.
#[allow(unsafe_code)]
pub fn bend(gpu: &Gpu, logits: &Array, scale: Option<f32>, cap: Option<f32>) -> Result<()> {
    if let Some(cap) = cap.filter(|cap| cap.is_nan() || *cap <= 0.0) {
        let (argument, rule) = ("cap", "above 0".to_owned());
        return Err(KernelError::Value { argument, rule, found: cap.to_string() });
    }
    check::shape(logits, "logits", DType::F32, &[logits.len()])?;
    check::aligned(logits, "logits")?;
    if scale.is_none() && cap.is_none() {
        return Ok(());
    }
    let blocks = check::count("logits", logits.len().div_ceil(THREADS * OWNED))?;
    let args: [Arg; 4] = [
        logits.into(),
        (logits.len() as u64).into(),
        scale.unwrap_or(1.0).into(),
        cap.unwrap_or(0.0).into(),
    ];
    let launch = Launch { grid: [blocks as u32, 1, 1], block: THREADS as u32, shared: 0 };
    // SAFETY: the arguments are the kernel's, and it touches as many elements as there are.
    unsafe { gpu.launch(&MODULE, "logits_bend", launch, &args)? };
    Ok(())
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;
    use crate::cuda::testing::gpu;
    use crate::testing::{assert_close, assert_error, random, values};

    #[test]
    fn logits_are_bent_as_on_the_cpu_and_nan_stays() {
        let Some(gpu) = gpu() else { return };
        for len in [0, 1, 7, 4097, 3 * 700] {
            for (scale, cap) in
                [(None, None), (Some(3.0), None), (None, Some(0.5)), (Some(40.0), Some(2.0))]
            {
                let x = random(1, len + 1);
                let cpu = Tensor::from_slice(&x[..len], (1, len), &Device::Cpu).unwrap();
                super::super::bend(&cpu, scale, cap).unwrap();
                let x = gpu.upload(&x).unwrap();
                bend(&gpu, &x.slice(0..len), scale, cap).unwrap();
                let found = gpu.download::<f32>(&x).unwrap();
                assert_close(&found[..len], &values(&cpu), 1e-6, "logits");
                assert_eq!(found[len], random(1, len + 1)[len], "what lies behind them");
            }
        }
        let x = gpu.upload(&[f32::NAN, f32::INFINITY, -1e30]).unwrap();
        bend(&gpu, &x, Some(2.0), Some(30.0)).unwrap();
        let found = gpu.download::<f32>(&x).unwrap();
        assert!(found[0].is_nan() && found[1..] == [30.0, -30.0], "{found:?}");
    }

    #[test]
    fn wrong_arguments_are_named() {
        let Some(gpu) = gpu() else { return };
        let x = gpu.zeros(DType::F32, 8).unwrap();
        assert_error(bend(&gpu, &x, None, Some(0.0)), "cap: expected above 0, found 0");
        let halves = gpu.zeros(DType::F16, 8).unwrap();
        assert_error(bend(&gpu, &halves, Some(2.0), None), "logits: expected dtype f32, found F16");
    }
}
