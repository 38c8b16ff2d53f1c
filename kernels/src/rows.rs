//! Some rows of a matrix, for what only they are needed for.

use candle_core::Tensor;

use crate::view;
use crate::{KernelError, Result};

/// Moves rows `rows` `[R]`, in rising order, of `x` `[T, N]` f32, contiguous, to its beginning, and
/// gives them: `[R, N]`, in the memory of `x`. The rows behind them hold whatever they held.
pub fn keep_rows(x: &Tensor, rows: &[u32]) -> Result<Tensor> {
    let [tokens, len] = view::dims(x, "x", ["T", "N"])?;
    view::indices("rows", rows, tokens)?;
    if let Some(pair) = rows.windows(2).find(|pair| pair[0] >= pair[1]) {
        let (argument, rule) = ("rows", "numbers in rising order".to_owned());
        return Err(KernelError::Value { argument, rule, found: format!("{pair:?}") });
    }
    view::write(x, "x", &[], |x: &mut [f32]| {
        for (to, &from) in rows.iter().enumerate() {
            let from = from as usize * len;
            x.copy_within(from..from + len, to * len);
        }
    })?;
    Ok(x.narrow(0, 0, rows.len())?)
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;
    use crate::testing::{assert_error, random_tensor};

    #[test]
    fn rows_that_are_kept_come_first_and_as_they_were() {
        for rows in [&[][..], &[0], &[6], &[0, 1, 2], &[1, 2, 5], &[0, 1, 2, 3, 4, 5, 6]] {
            let x = random_tensor(1, &[7, 33], DType::F32);
            let before = x.to_vec2::<f32>().unwrap();
            let kept = keep_rows(&x, rows).unwrap();
            assert_eq!(kept.dims(), [rows.len(), 33]);
            let expected: Vec<_> = rows.iter().map(|&row| before[row as usize].clone()).collect();
            assert_eq!(kept.to_vec2::<f32>().unwrap(), expected);
            assert_eq!(x.narrow(0, 0, rows.len()).unwrap().to_vec2::<f32>().unwrap(), expected);
        }
    }

    #[test]
    fn wrong_arguments_are_named() {
        let x = random_tensor(1, &[7, 33], DType::F32);
        assert_error(keep_rows(&x, &[7]), "rows[0]: expected an index below 7, found 7");
        let message = "rows: expected numbers in rising order, found [2, 2]";
        assert_error(keep_rows(&x, &[0, 2, 2]), message);
    }
}
