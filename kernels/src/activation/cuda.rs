//! Gated activation on the GPU, with the bias of the projection before it.

use candle_core::DType;

use super::Activation;
use crate::cuda::{Arg, Array, Gpu, Launch, Module, check, module};
use crate::{KernelError, Result};

static MODULE: Module = module!("activation");

const MAX_THREADS: usize = 256;

/// What is gated, and how.
#[derive(Clone, Copy, Debug)]
pub struct Gated<'a> {
    /// `[T, 2I]` f32|f16|bf16, gate first.
    pub gate_up: &'a Array,
    /// `I`.
    pub half: usize,
    /// What is added to `gate_up` first.
    pub bias: Option<Bias<'a>>,
    /// The function.
    pub act: Activation,
}

/// What is added to each row.
#[derive(Clone, Copy, Debug)]
pub enum Bias<'a> {
    /// `[2I]` f32, to all rows.
    One(&'a Array),
    /// A row of its own for each.
    Rows {
        /// `[E, 2I]` f32.
        values: &'a Array,
        /// `[T]` u32: whose row of `values`. Where it is not below `E`, row t is padding, and row t
        /// of what is gated is not written.
        row: &'a Array,
    },
}

/// Writes `act(gate) * up`, or what `act` puts in its place, to `out` `[T, I]` of `gate_up`'s type.
#[allow(unsafe_code)]
pub fn gated(gpu: &Gpu, gated: &Gated<'_>, out: &Array) -> Result<()> {
    let Gated { gate_up, half, bias, act } = *gated;
    let (dtype, suffix) = (gate_up.dtype(), check::suffix(gate_up, "gate_up")?);
    if half == 0 {
        let (argument, rule) = ("half", "above 0".to_owned());
        return Err(KernelError::Value { argument, rule, found: half.to_string() });
    }
    let tokens = out.len() / half;
    check::shape(out, "out", dtype, &[tokens, half])?;
    check::shape(gate_up, "gate_up", dtype, &[tokens, 2 * half])?;
    act.check()?;
    let (kind, alpha, limit) = parameters(act);
    let (bias, bias_row, bias_rows) = match bias {
        None => (None, None, 0),
        Some(Bias::One(values)) => {
            check::shape(values, "bias", DType::F32, &[2 * half])?;
            (Some(values), None, 1)
        }
        Some(Bias::Rows { values, row }) => {
            let experts = values.len() / (2 * half);
            check::shape(values, "bias", DType::F32, &[experts, 2 * half])?;
            check::shape(row, "row", DType::U32, &[tokens])?;
            (Some(values), Some(row), experts)
        }
    };
    let vector = 16 / dtype.size_in_bytes();
    // An odd row goes element by element, by as many threads.
    let vectors = half.div_ceil(vector);
    if half.is_multiple_of(vector) {
        check::aligned(gate_up, "gate_up")?;
        check::aligned(out, "out")?;
        bias.map_or(Ok(()), |bias| check::aligned(bias, "bias"))?;
    }
    let parts = vectors.div_ceil(MAX_THREADS);
    let launch = Launch {
        grid: [check::count("out", tokens)? as u32, parts as u32, 1],
        block: vectors.div_ceil(parts).next_multiple_of(32) as u32,
        shared: 0,
    };
    let args: [Arg; 9] = [
        gate_up.into(),
        bias.into(),
        bias_row.into(),
        (check::count("bias", bias_rows)? as u32).into(),
        out.into(),
        check::count("half", half)?.into(),
        kind.into(),
        alpha.into(),
        limit.into(),
    ];
    // SAFETY: the arguments are the kernel's, the lengths were checked, and the kernel reads no row
    // that the bias does not have.
    unsafe { gpu.launch(&MODULE, &format!("activation_{suffix}"), launch, &args)? };
    Ok(())
}

/// As the kernel takes it: which, its steepness, its bound.
fn parameters(act: Activation) -> (i32, f32, f32) {
    match act {
        Activation::Silu => (0, 0.0, 0.0),
        Activation::GeluTanh => (1, 0.0, 0.0),
        Activation::ClampedSwish { alpha, limit } => (2, alpha, limit),
    }
}

#[cfg(test)]
mod tests {
    use super::super::reference;
    use super::super::tests::ALL;
    use super::*;
    use crate::cuda::testing::{close, download, gpu, upload};
    use crate::testing::{DTYPES, assert_close, assert_error, random, random_tensor, values};

    #[test]
    fn gated_is_its_formula_with_and_without_bias() {
        let Some(gpu) = gpu() else { return };
        for dtype in DTYPES {
            for (tokens, half) in [(1, 1), (7, 7), (3, 33), (5, 16), (33, 24), (2, 4096), (0, 8)] {
                let x = (random_tensor(1, &[tokens, 2 * half], dtype) * 12.0).unwrap();
                let (x, biases) = (values(&x), random(2, 3 * 2 * half));
                let gate_up = upload(&gpu, &x, dtype);
                let bias_rows = gpu.upload(&biases).unwrap();
                let experts = (0..tokens).map(|t| t * 2 % 3).collect::<Vec<_>>();
                let row = experts.iter().map(|&e| e as u32).collect::<Vec<_>>();
                let row = gpu.upload(&row).unwrap();
                for (bias, of) in [
                    (None, None),
                    (Some(Bias::One(&bias_rows.slice(0..2 * half))), Some(vec![0; tokens])),
                    (Some(Bias::Rows { values: &bias_rows, row: &row }), Some(experts.clone())),
                ] {
                    let mut sums = x.clone();
                    for (t, sums) in sums.chunks_exact_mut(2 * half).enumerate() {
                        let Some(of) = &of else { break };
                        let bias = &biases[of[t] * 2 * half..][..2 * half];
                        sums.iter_mut().zip(bias).for_each(|(x, bias)| *x += bias);
                    }
                    for act in ALL {
                        let out = gpu.zeros(dtype, tokens * half).unwrap();
                        gated(&gpu, &Gated { gate_up: &gate_up, half, bias, act }, &out).unwrap();
                        let expected = reference::gated(&sums, half, act);
                        let case = format!("{act:?}, {tokens} x {half}, {dtype:?}");
                        close(&download(&gpu, &out), &expected, dtype, &case);
                    }
                }
            }
        }
    }

    #[test]
    fn far_from_zero_the_gate_is_open_or_shut_and_nan_stays() {
        let Some(gpu) = gpu() else { return };
        let x = [[1e4f32, -1e4, 1e30, -1e30, f32::NAN], [1.0; 5]].concat();
        let gate_up = gpu.upload(&x).unwrap();
        for act in ALL {
            let out = gpu.zeros(DType::F32, 5).unwrap();
            let call = Gated { gate_up: &gate_up, half: 5, bias: None, act };
            gated(&gpu, &call, &out).unwrap();
            let open = match act {
                Activation::ClampedSwish { .. } => [14.0, 0.0, 14.0, 0.0],
                _ => [1e4, 0.0, 1e30, 0.0],
            };
            let out = download(&gpu, &out);
            assert_close(&out[..4], &open, 1e-5, &format!("{act:?}"));
            assert!(out[4].is_nan(), "{act:?}");
        }
    }

    #[test]
    fn a_row_of_padding_is_not_written() {
        let Some(gpu) = gpu() else { return };
        let (gate_up, out) =
            (gpu.upload(&[2.0_f32; 16]).unwrap(), gpu.upload(&[7.0_f32; 8]).unwrap());
        let values = gpu.zeros(DType::F32, 8).unwrap();
        let row = gpu.upload(&[u32::MAX, 0]).unwrap();
        let bias = Some(Bias::Rows { values: &values, row: &row });
        let call = Gated { gate_up: &gate_up, half: 4, bias, act: Activation::Silu };
        gated(&gpu, &call, &out).unwrap();
        let out = download(&gpu, &out);
        assert_eq!(out[..4], [7.0; 4]);
        close(&out[4..], &[4.0 / (1.0 + (-2.0_f32).exp()); 4], DType::F32, "the other row");
    }

    #[test]
    fn wrong_arguments_are_named() {
        let Some(gpu) = gpu() else { return };
        let x = gpu.zeros(DType::BF16, 32).unwrap();
        let floats = gpu.zeros(DType::F32, 8).unwrap();
        let call = Gated { gate_up: &x, half: 8, bias: None, act: Activation::Silu };
        let run = |call: &Gated<'_>, len| gated(&gpu, call, &x.slice(0..len));
        assert_error(run(&call, 15), "out: expected shape [1, 8], found [15]");
        assert_error(run(&call, 8), "gate_up: expected shape [1, 16], found [32]");
        assert_error(gated(&gpu, &call, &floats), "out: expected dtype bf16, found F32");
        let short = Gated { bias: Some(Bias::One(&floats)), ..call };
        assert_error(run(&short, 16), "bias: expected shape [16], found [8]");
        let act = Activation::ClampedSwish { alpha: 1.0, limit: 0.0 };
        assert_error(run(&Gated { act, ..call }, 16), "limit: expected above 0, found 0");
    }
}
