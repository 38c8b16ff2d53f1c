//! Embedding: `out[t,:] = scale * table[ids[t],:]`, widened to f32; scale is 1 unless it is given.
//!
//! table `[V, hidden]` f32|f16|bf16, contiguous; ids below V; out `[T, hidden]` f32.

mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(test)]
mod reference;

use candle_core::Tensor;

use crate::Result;
use crate::linear::{LinearWeight, Matrix};
use crate::view::{self, Locked};

/// Where the rows come from, `[V, hidden]`.
#[derive(Clone, Copy, Debug)]
pub enum Table<'a> {
    /// As it was stored.
    Stored(&'a Tensor),
    /// The weight of a product as well: one copy in memory serves both.
    Packed(&'a LinearWeight),
}

/// The rows of `table` named by `ids`; gives `[T, hidden]` f32.
pub fn embedding(table: Table<'_>, ids: &[u32]) -> Result<Tensor> {
    let hidden = match table {
        Table::Stored(table) => view::dims(table, "table", ["V", "hidden"])?[1],
        Table::Packed(table) => table.in_features(),
    };
    let out = view::empty(&[ids.len(), hidden])?;
    embedding_into(table, ids, None, &out)?;
    Ok(out)
}

/// [`embedding`], multiplied by `scale` and written to `out` `[T, hidden]` f32, contiguous.
pub fn embedding_into(
    table: Table<'_>,
    ids: &[u32],
    scale: Option<f32>,
    out: &Tensor,
) -> Result<()> {
    let table = match table {
        Table::Stored(table) => table,
        Table::Packed(weight) => match weight.matrix() {
            Matrix::Dense(table) => table,
            Matrix::Packed(packed) => {
                return packed_into(weight, ids, scale, out, |id, to| packed.row(id, to));
            }
            // The rows are what it has kept of them.
            Matrix::Quantized(quantized) => {
                return packed_into(weight, ids, scale, out, |id, to| quantized.row(id, to));
            }
        },
    };
    let [vocabulary, hidden] = view::dims(table, "table", ["V", "hidden"])?;
    check([vocabulary, hidden], ids, out)?;
    let table = Locked::new(table, "table")?;
    let elements = table.floats()?;
    view::write(out, "out", &[Some(&table)], |out| {
        cpu::embedding(elements, ids, hidden, out);
        cpu::scale(out, scale);
    })
}

/// The rows of `weight` named by `ids`, which `read` writes.
fn packed_into(
    weight: &LinearWeight,
    ids: &[u32],
    scale: Option<f32>,
    out: &Tensor,
    read: impl Fn(usize, &mut [f32]) + Sync,
) -> Result<()> {
    let hidden = weight.in_features();
    check([weight.out_features(), hidden], ids, out)?;
    view::write(out, "out", &[], |out| {
        cpu::embedding_packed(ids, hidden, read, out);
        cpu::scale(out, scale);
    })
}

fn check([vocabulary, hidden]: [usize; 2], ids: &[u32], out: &Tensor) -> Result<()> {
    view::indices("ids", ids, vocabulary)?;
    view::shape(out, "out", &[ids.len(), hidden])
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;
    use crate::testing::{DTYPES, assert_error, random_tensor, values};

    #[test]
    fn embedding_gives_the_rows_of_the_ids_exactly() {
        for dtype in DTYPES {
            for hidden in [1, 7, 33, 257] {
                let table = random_tensor(1, &[71, hidden], dtype);
                for ids in [&[][..], &[70], &[3, 0, 3, 10, 70, 1, 32]] {
                    let out = embedding(Table::Stored(&table), ids).unwrap();
                    assert_eq!(out.dims(), [ids.len(), hidden]);
                    let expected = reference::embedding(&values(&table), ids, hidden);
                    assert_eq!(values(&out), expected, "hidden {hidden}, {dtype:?}");
                    let packed = LinearWeight::pack(&table).unwrap();
                    let out = embedding(Table::Packed(&packed), ids).unwrap();
                    assert_eq!(out.dims(), [ids.len(), hidden]);
                    assert_eq!(values(&out), expected, "packed, hidden {hidden}, {dtype:?}");
                }
            }
        }
    }

    #[test]
    fn wrong_arguments_are_named() {
        let table = random_tensor(1, &[11, 6], DType::F32);
        let message = "ids[1]: expected an index below 11, found 11";
        assert_error(embedding(Table::Stored(&table), &[3, 11]), message);
        for dtype in DTYPES {
            let packed = LinearWeight::pack(&table.to_dtype(dtype).unwrap()).unwrap();
            assert_error(embedding(Table::Packed(&packed), &[3, 11]), message);
        }
        assert_error(
            embedding(Table::Stored(&table.narrow(1, 0, 3).unwrap()), &[0]),
            "table: expected a contiguous tensor, found shape [11, 3] with strides [6, 1]",
        );
        assert_error(
            embedding(Table::Stored(&table.to_dtype(DType::I64).unwrap()), &[0]),
            "table: expected dtype f32, f16 or bf16, found I64",
        );
        assert_error(
            embedding(Table::Stored(&table.flatten_all().unwrap()), &[0]),
            "table: expected shape [V, hidden], found [66]",
        );
    }
}
