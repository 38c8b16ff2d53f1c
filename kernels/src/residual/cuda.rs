//! Residual on the GPU: what a half of a layer gave joins the stream, which stays f32, and the norm
//! of the stream is what the next half reads, in the type of its weights.

use candle_core::DType;

use crate::Result;
use crate::cuda::{Arg, Array, Gpu, Launch, Module, check, module};
use crate::norm::NormKind;

static MODULE: Module = module!("residual");

/// Elements that a thread reads at once.
const UNIT: usize = 4;

/// A norm with a weight and no bias.
#[derive(Clone, Copy, Debug)]
pub struct Norm<'a> {
    /// What it divides by.
    pub kind: NormKind,
    /// Added to the mean square, or to the variance.
    pub eps: f32,
    /// `[hidden]` f32.
    pub weight: &'a Array,
}

/// What joins the stream: `scale * post(y + bias)`.
#[derive(Clone, Copy, Debug)]
pub struct Given<'a> {
    /// `[T, hidden]` f32|f16|bf16.
    pub y: &'a Array,
    /// `[hidden]` f32.
    pub bias: Option<&'a Array>,
    /// The norm.
    pub post: Option<Norm<'a>>,
    /// The factor.
    pub scale: Option<f32>,
}

/// What is read of the stream.
#[derive(Clone, Copy, Debug)]
pub struct Normed<'a> {
    /// Its norm; rows as they are where there is none.
    pub pre: Option<Norm<'a>>,
    /// `[rows, hidden]` f32|f16|bf16, of y's type where there is a y.
    pub out: &'a Array,
}

/// Adds `given` to the stream `x` `[T, hidden]` f32, and then writes its rows as `normed` says, one
/// row of out for each.
pub fn residual(
    gpu: &Gpu,
    x: &Array,
    [tokens, hidden]: [usize; 2],
    given: Option<&Given<'_>>,
    normed: Option<&Normed<'_>>,
) -> Result<()> {
    run(gpu, &Call { x, tokens, hidden, given, normed, rows: None })
}

/// The norm of some rows of the stream `x` `[T, hidden]` f32: row i of out is that of row `rows[i]`
/// of `rows` `[R]` u32, and zeros where x has no such row.
pub fn norm_rows(
    gpu: &Gpu,
    x: &Array,
    [tokens, hidden]: [usize; 2],
    rows: &Array,
    normed: &Normed<'_>,
) -> Result<()> {
    run(gpu, &Call { x, tokens, hidden, given: None, normed: Some(normed), rows: Some(rows) })
}

struct Call<'a> {
    x: &'a Array,
    tokens: usize,
    hidden: usize,
    given: Option<&'a Given<'a>>,
    normed: Option<&'a Normed<'a>>,
    rows: Option<&'a Array>,
}

#[allow(unsafe_code)]
fn run(gpu: &Gpu, call: &Call<'_>) -> Result<()> {
    let &Call { x, tokens, hidden, given, normed, rows } = call;
    let Some((suffix, num_rows)) = checked(call)? else { return Ok(()) };
    let (y, bias) = (given.map(|given| given.y), given.and_then(|given| given.bias));
    let [post, pre] = [given.and_then(|given| given.post), normed.and_then(|normed| normed.pre)];
    let [post, pre] = [post, pre].map(|norm| {
        let is_layer = norm.is_some_and(|norm| norm.kind == NormKind::Layer);
        let (weight, eps) = norm.map_or((None, 0.0), |norm| (Some(norm.weight), norm.eps));
        (Arg::from(weight), Arg::from(eps), Arg::from(i32::from(is_layer)))
    });
    let args: [Arg; 14] = [
        x.into(),
        y.into(),
        bias.into(),
        post.0,
        post.1,
        post.2,
        given.and_then(|given| given.scale).unwrap_or(1.0).into(),
        pre.0,
        pre.1,
        pre.2,
        normed.map(|normed| normed.out).into(),
        rows.into(),
        (tokens as u32).into(),
        (hidden as i32).into(),
    ];
    let (held, threads) = match hidden / UNIT {
        units if !hidden.is_multiple_of(UNIT) || units > 4 * 1024 => ("any", hidden.min(512)),
        units if units <= 2 * 512 => ("2", units.div_ceil(2)),
        units => ("4", units.div_ceil(4)),
    };
    let block = threads.next_multiple_of(32) as u32;
    let launch = Launch { grid: [num_rows as u32, 1, 1], block, shared: 0 };
    // SAFETY: the arguments are the kernel's, the lengths were checked, and the kernel reads no row
    // that x does not have.
    unsafe { gpu.launch(&MODULE, &format!("residual_{held}_{suffix}"), launch, &args)? };
    Ok(())
}

/// The end of the kernel's name and how many rows it works on; none where there is nothing to do.
fn checked(call: &Call<'_>) -> Result<Option<(&'static str, usize)>> {
    let &Call { x, tokens, hidden, given, normed, rows } = call;
    check::count("tokens", tokens)?;
    check::count("hidden", hidden)?;
    check::shape(x, "x", DType::F32, &[tokens, hidden])?;
    let num_rows = rows.map_or(tokens, Array::len);
    check::count("rows", num_rows)?;
    if let Some(rows) = rows {
        check::shape(rows, "rows", DType::U32, &[num_rows])?;
    }
    let (typed, argument) = match (given, normed) {
        (Some(given), _) => (given.y, "y"),
        (None, Some(normed)) => (normed.out, "out"),
        (None, None) => return Ok(None),
    };
    let (dtype, suffix) = (typed.dtype(), check::suffix(typed, argument)?);
    let mut arrays = vec![(x, "x")];
    if let Some(given) = given {
        check::shape(given.y, "y", dtype, &[tokens, hidden])?;
        arrays.push((given.y, "y"));
    }
    if let Some(normed) = normed {
        check::shape(normed.out, "out", dtype, &[num_rows, hidden])?;
        arrays.push((normed.out, "out"));
    }
    let vectors = [
        (given.and_then(|given| given.bias), "bias"),
        (given.and_then(|given| given.post).map(|post| post.weight), "post"),
        (normed.and_then(|normed| normed.pre).map(|pre| pre.weight), "pre"),
    ];
    for (vector, argument) in vectors {
        let Some(vector) = vector else { continue };
        check::shape(vector, argument, DType::F32, &[hidden])?;
        arrays.push((vector, argument));
    }
    if hidden.is_multiple_of(UNIT) {
        arrays.iter().try_for_each(|(array, argument)| check::aligned(array, argument))?;
    }
    Ok((hidden > 0).then_some((suffix, num_rows)))
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::super as cpu;
    use super::*;
    use crate::cuda::testing::{close, download, gpu, upload};
    use crate::norm::{self, NormKind};
    use crate::testing::{DTYPES, assert_error, random_tensor, values};

    /// Which norms, bias and factor a case has.
    #[derive(Clone, Copy, Debug)]
    struct Case {
        shape: [usize; 2],
        dtype: DType,
        kind: NormKind,
        bias: bool,
        post: bool,
        scale: Option<f32>,
        pre: bool,
    }

    /// The GPU against the CPU.
    fn check(gpu: &Gpu, case: Case) {
        let Case { shape, dtype, kind, .. } = case;
        let hidden = shape[1];
        let x = (random_tensor(1, &shape, DType::F32) + 0.5).unwrap();
        let y = random_tensor(2, &shape, dtype).to_dtype(DType::F32).unwrap();
        let [bias, post, pre] = [3, 4, 5].map(|seed| random_tensor(seed, &[hidden], DType::F32));
        let floats = |x: &Tensor| upload(gpu, &values(x), DType::F32);

        let (stream, out) = (floats(&x), gpu.zeros(dtype, x.elem_count()).unwrap());
        let [of_bias, of_post, of_pre] = [&bias, &post, &pre].map(floats);
        let norm_of = |weight| Norm { kind, eps: 1e-5, weight };
        let given = Given {
            y: &upload(gpu, &values(&y), dtype),
            bias: case.bias.then_some(&of_bias),
            post: case.post.then_some(norm_of(&of_post)),
            scale: case.scale,
        };
        let normed = Normed { pre: case.pre.then_some(norm_of(&of_pre)), out: &out };
        residual(gpu, &stream, shape, Some(&given), Some(&normed)).unwrap();

        let y = if case.bias { y.broadcast_add(&bias).unwrap() } else { y };
        let norm_of = |weight| norm::Norm { kind, eps: 1e-5, weight };
        let given =
            cpu::Given { y: &y, post: case.post.then_some(norm_of(&post)), scale: case.scale };
        let expected = x.zeros_like().unwrap();
        cpu::residual(&x, Some(&given), case.pre.then_some((norm_of(&pre), &expected))).unwrap();
        let found = gpu.download::<f32>(&stream).unwrap();
        close(&found, &values(&x), DType::F32, &format!("x, {case:?}"));
        let expected = if case.pre { &expected } else { &x };
        close(&download(gpu, &out), &values(expected), dtype, &format!("out, {case:?}"));
    }

    #[test]
    fn one_pass_gives_what_the_cpu_gives() {
        let Some(gpu) = gpu() else { return };
        let sizes = [(1, 1), (3, 7), (2, 33), (5, 64), (2, 1000), (2, 4096), (1, 4100), (1, 16384)];
        for ((tokens, hidden), dtype) in sizes.into_iter().zip(DTYPES.into_iter().cycle()) {
            for kind in [NormKind::Rms, NormKind::Layer] {
                // Every number has as many bits as there are choices.
                for choice in 0..16 {
                    let has = |bit: usize| (choice >> bit) & 1 == 1;
                    let scale = has(2).then_some(0.3);
                    let (bias, post, pre) = (has(0), has(1), has(3));
                    let shape = [tokens, hidden];
                    check(&gpu, Case { shape, dtype, kind, bias, post, scale, pre });
                }
            }
        }
    }

    #[test]
    fn every_type_goes_through_every_kernel() {
        let Some(gpu) = gpu() else { return };
        for dtype in DTYPES {
            for shape in [[0, 8], [3, 36], [1, 5120], [2, 33], [1, 16388]] {
                let (bias, post, scale, pre) = (true, true, None, true);
                let kind = NormKind::Layer;
                check(&gpu, Case { shape, dtype, kind, bias, post, scale, pre });
            }
        }
    }

    #[test]
    fn without_anything_given_the_stream_stays() {
        let Some(gpu) = gpu() else { return };
        let x = random_tensor(1, &[3, 12], DType::F32);
        let (stream, out) = (gpu.upload(&values(&x)).unwrap(), gpu.zeros(DType::F16, 36).unwrap());
        let normed = Normed { pre: None, out: &out };
        residual(&gpu, &stream, [3, 12], None, Some(&normed)).unwrap();
        residual(&gpu, &stream, [3, 12], None, None).unwrap();
        assert_eq!(gpu.download::<f32>(&stream).unwrap(), values(&x));
        assert_eq!(download(&gpu, &out), values(&x.to_dtype(DType::F16).unwrap()));
    }

    #[test]
    fn chosen_rows_are_normalised_and_those_that_are_none_are_zeros() {
        let Some(gpu) = gpu() else { return };
        for hidden in [7, 64, 6144] {
            let x = random_tensor(1, &[5, hidden], DType::F32);
            let weight = random_tensor(2, &[hidden], DType::F32);
            let rows = [4, u32::MAX, 0, 5, 4];
            let padded = Tensor::cat(&[&x, &x.zeros_like().unwrap()], 0).unwrap();
            for (kind, dtype) in [NormKind::Rms, NormKind::Layer].into_iter().zip(DTYPES) {
                let expected =
                    Tensor::zeros((rows.len(), hidden), DType::F32, &Device::Cpu).unwrap();
                let known = rows.map(|row| row.min(5));
                let norm = norm::Norm { kind, eps: 1e-5, weight: &weight };
                norm::norm_rows(&padded, &known, &norm, &expected).unwrap();

                let [x, weight] = [&x, &weight].map(|x| gpu.upload(&values(x)).unwrap());
                let out = upload(&gpu, &vec![7.0; rows.len() * hidden], dtype);
                let pre = Some(Norm { kind, eps: 1e-5, weight: &weight });
                let normed = Normed { pre, out: &out };
                let rows = gpu.upload(&rows).unwrap();
                norm_rows(&gpu, &x, [5, hidden], &rows, &normed).unwrap();
                close(&download(&gpu, &out), &values(&expected), dtype, &format!("{kind:?}"));
            }
        }
    }

    #[test]
    fn a_row_has_the_same_bits_in_every_batch() {
        let Some(gpu) = gpu() else { return };
        let x = random_tensor(1, &[33, 100], DType::F32);
        let all = gpu.upload(&values(&x)).unwrap();
        let weight = gpu.upload(&values(&random_tensor(2, &[100], DType::F32))).unwrap();
        let pre = Some(Norm { kind: NormKind::Rms, eps: 1e-5, weight: &weight });
        let out = gpu.zeros(DType::F32, 3300).unwrap();
        residual(&gpu, &all, [33, 100], None, Some(&Normed { pre, out: &out })).unwrap();
        let one = gpu.zeros(DType::F32, 100).unwrap();
        let row = all.slice(3200..3300);
        residual(&gpu, &row, [1, 100], None, Some(&Normed { pre, out: &one })).unwrap();
        let [all, one] = [&out, &one].map(|array| gpu.download::<f32>(array).unwrap());
        assert_eq!(all[3200..], one);
    }

    #[test]
    fn wrong_arguments_are_named() {
        let Some(gpu) = gpu() else { return };
        let [x, y, short, rows] =
            [(DType::F32, 16), (DType::BF16, 16), (DType::F32, 7), (DType::U32, 3)]
                .map(|(dtype, len)| gpu.zeros(dtype, len).unwrap());
        let join = |given: &Given<'_>, out: &Array| {
            residual(&gpu, &x, [2, 8], Some(given), Some(&Normed { pre: None, out }))
        };
        let given = Given { y: &y, bias: None, post: None, scale: None };
        assert_error(join(&given, &x), "out: expected dtype bf16, found F32");
        assert_error(join(&given, &y.slice(0..8)), "out: expected shape [2, 8], found [8]");
        assert_error(
            join(&Given { y: &rows, ..given }, &x),
            "y: expected dtype f32, f16 or bf16, found U32",
        );
        let biased = Given { bias: Some(&short), ..given };
        assert_error(join(&biased, &y), "bias: expected shape [8], found [7]");
        let post = Some(Norm { kind: NormKind::Rms, eps: 0.0, weight: &short });
        assert_error(join(&Given { post, ..given }, &y), "post: expected shape [8], found [7]");
        let normed = Normed { pre: None, out: &y };
        assert_error(
            norm_rows(&gpu, &x, [2, 8], &rows, &normed),
            "out: expected shape [3, 8], found [16]",
        );
        assert_error(
            norm_rows(&gpu, &x, [2, 9], &rows, &normed),
            "x: expected shape [2, 9], found [16]",
        );
    }
}
