//! Embedding on the GPU. An id that is no row of the table gives a row of zeros.

use candle_core::DType;

use crate::Result;
use crate::cuda::{Arg, Array, Gpu, Launch, Module, check, module};

static MODULE: Module = module!("embedding");

/// Elements of a row that a block writes.
const CHUNK: usize = 256 * 4 * 4;

/// Where the rows come from.
#[derive(Clone, Copy, Debug)]
pub struct Table<'a> {
    /// `[V, hidden]` f32|f16|bf16.
    pub rows: &'a Array,
    /// Elements of a row.
    pub hidden: usize,
}

/// The rows of `table` named by `ids` `[T]` u32, widened, multiplied by `scale` and written to
/// `out` `[T, hidden]` f32.
#[allow(unsafe_code)]
pub fn embedding(
    gpu: &Gpu,
    table: &Table<'_>,
    ids: &Array,
    scale: Option<f32>,
    out: &Array,
) -> Result<()> {
    let Table { rows, hidden } = *table;
    let (tokens, suffix) = (ids.len(), check::suffix(rows, "table")?);
    let vocabulary = rows.len().checked_div(hidden).unwrap_or(0);
    check::shape(rows, "table", rows.dtype(), &[vocabulary, hidden])?;
    check::shape(ids, "ids", DType::U32, &[tokens])?;
    check::shape(out, "out", DType::F32, &[tokens, hidden])?;
    if hidden.is_multiple_of(4) {
        check::aligned(rows, "table")?;
        check::aligned(out, "out")?;
    }
    let grid = [check::count("ids", tokens)? as u32, hidden.div_ceil(CHUNK) as u32, 1];
    let args: [Arg; 6] = [
        rows.into(),
        ids.into(),
        scale.unwrap_or(1.0).into(),
        out.into(),
        (check::count("table", vocabulary)? as u32).into(),
        check::count("hidden", hidden)?.into(),
    ];
    let launch = Launch { grid, block: 256, shared: 0 };
    // SAFETY: the arguments are the kernel's; the lengths were checked, and the kernel reads no row
    // that the table does not have.
    unsafe { gpu.launch(&MODULE, &format!("embedding_{suffix}"), launch, &args)? };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::reference;
    use super::*;
    use crate::cuda::testing::{gpu, upload};
    use crate::testing::{DTYPES, assert_error, random_tensor, values};

    #[test]
    fn rows_are_those_of_the_ids_and_zeros_where_there_is_no_such_row() {
        let Some(gpu) = gpu() else { return };
        for dtype in DTYPES {
            for hidden in [1, 7, 33, 64, 1000, 4096, 5000] {
                let table = values(&random_tensor(1, &[71, hidden], dtype));
                let rows = upload(&gpu, &table, dtype);
                for (ids, scale) in
                    [(&[][..], None), (&[70], Some(0.3)), (&[3, 0, u32::MAX, 10, 71, 3], None)]
                {
                    // What has no row of its own is looked up in one that is 0.
                    let known = ids.iter().map(|&id| id.min(71)).collect::<Vec<_>>();
                    let padded = [&table[..], &vec![0.0; hidden]].concat();
                    let expected = reference::embedding(&padded, &known, hidden);
                    let expected = expected.iter().map(|x| scale.unwrap_or(1.0) * x);

                    let out = gpu.upload(&vec![7.0_f32; ids.len() * hidden]).unwrap();
                    let (table, ids) = (Table { rows: &rows, hidden }, gpu.upload(ids).unwrap());
                    embedding(&gpu, &table, &ids, scale, &out).unwrap();
                    let found = gpu.download::<f32>(&out).unwrap();
                    assert_eq!(found, expected.collect::<Vec<_>>(), "hidden {hidden}, {dtype:?}");
                }
            }
        }
    }

    #[test]
    fn wrong_arguments_are_named() {
        let Some(gpu) = gpu() else { return };
        let [rows, out, ids] = [(DType::BF16, 40), (DType::F32, 16), (DType::U32, 2)]
            .map(|(d, n)| gpu.zeros(d, n).unwrap());
        let run = |rows: &Array, hidden, out: &Array| {
            embedding(&gpu, &Table { rows, hidden }, &ids, None, out)
        };
        assert_error(run(&ids, 8, &out), "table: expected dtype f32, f16 or bf16, found U32");
        assert_error(run(&rows, 7, &out), "table: expected shape [5, 7], found [40]");
        assert_error(run(&rows, 8, &out.slice(0..8)), "out: expected shape [2, 8], found [8]");
        assert_error(run(&rows, 8, &rows.slice(0..16)), "out: expected dtype f32, found BF16");
        let odd = gpu.zeros(DType::F32, 17).unwrap();
        let error = run(&rows, 8, &odd.slice(1..17)).unwrap_err().to_string();
        let begin = "out: expected memory that begins at a multiple of 16 bytes, found 0x";
        assert!(error.starts_with(begin), "{error}");
    }
}
