//! Embedding: `out[t,:] = table[ids[t],:]`, widened to f32.
//!
//! table `[V, hidden]` f32|f16|bf16, contiguous; ids below V; out `[T, hidden]` f32.

mod cpu;
#[cfg(test)]
mod reference;

use candle_core::{Device, Tensor};

use crate::linear::{LinearWeight, Matrix};
use crate::view::{self, Locked};
use crate::{KernelError, Result};

/// The rows of `table` `[V, hidden]` named by `ids`; gives `[T, hidden]` f32.
pub fn embedding(table: &Tensor, ids: &[u32]) -> Result<Tensor> {
    let [vocabulary, hidden] = view::dims(table, "table", ["V", "hidden"])?;
    view::indices("ids", ids, vocabulary)?;
    match table.device() {
        Device::Cpu => {
            let table = Locked::new(table, "table")?;
            view::tensor(cpu::embedding(table.floats()?, ids, hidden), &[ids.len(), hidden])
        }
        device => Err(KernelError::device("table", device)),
    }
}

/// [`embedding`] where the table is also the weight of a product, `[V, hidden]`: one copy in
/// memory serves both.
pub fn embedding_packed(table: &LinearWeight, ids: &[u32]) -> Result<Tensor> {
    match table.matrix() {
        Matrix::Dense(table) => embedding(table, ids),
        Matrix::Packed(packed) => {
            view::indices("ids", ids, table.out_features())?;
            let hidden = table.in_features();
            view::tensor(cpu::embedding_packed(packed, ids, hidden), &[ids.len(), hidden])
        }
    }
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
                    let out = embedding(&table, ids).unwrap();
                    assert_eq!(out.dims(), [ids.len(), hidden]);
                    let expected = reference::embedding(&values(&table), ids, hidden);
                    assert_eq!(values(&out), expected, "hidden {hidden}, {dtype:?}");
                    let packed = LinearWeight::pack(&table).unwrap();
                    let out = embedding_packed(&packed, ids).unwrap();
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
        assert_error(embedding(&table, &[3, 11]), message);
        for dtype in DTYPES {
            let packed = LinearWeight::pack(&table.to_dtype(dtype).unwrap()).unwrap();
            assert_error(embedding_packed(&packed, &[3, 11]), message);
        }
        assert_error(
            embedding(&table.narrow(1, 0, 3).unwrap(), &[0]),
            "table: expected a contiguous tensor, found shape [11, 3] with strides [6, 1]",
        );
        assert_error(
            embedding(&table.to_dtype(DType::I64).unwrap(), &[0]),
            "table: expected dtype f32, f16 or bf16, found I64",
        );
        assert_error(
            embedding(&table.flatten_all().unwrap(), &[0]),
            "table: expected shape [V, hidden], found [66]",
        );
    }
}
