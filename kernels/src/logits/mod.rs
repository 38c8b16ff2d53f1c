//! What becomes of the logits of a head: a factor, a bound, and who reads them.

#[cfg(feature = "cuda")]
pub mod cuda;

use candle_core::Tensor;

use crate::Result;
use crate::parallel;
use crate::view;

/// `cap * tanh(scale * logits / cap)`, in place; what is not given is left out. logits `[R, V]` f32,
/// contiguous.
pub fn bend(logits: &Tensor, scale: Option<f32>, cap: Option<f32>) -> Result<()> {
    if scale.is_none() && cap.is_none() {
        return Ok(());
    }
    let [_, vocabulary] = view::dims(logits, "logits", ["R", "V"])?;
    view::write(logits, "logits", &[], |logits: &mut [f32]| {
        // A tanh takes some 10 nanoseconds.
        let nanoseconds = logits.len() * if cap.is_some() { 10 } else { 1 };
        parallel::for_rows(logits, vocabulary, nanoseconds, |_, logits| {
            for logit in logits {
                *logit *= scale.unwrap_or(1.0);
                if let Some(cap) = cap {
                    *logit = cap * (*logit / cap).tanh();
                }
            }
        });
    })
}

/// Calls `f` with the number of a row and the row itself, for each row of `logits` `[R, V]` f32,
/// contiguous, on all threads. What `f` writes stays.
pub fn for_each_row(logits: &Tensor, f: impl Fn(usize, &mut [f32]) + Sync) -> Result<()> {
    let [rows, vocabulary] = view::dims(logits, "logits", ["R", "V"])?;
    view::write(logits, "logits", &[], |logits: &mut [f32]| {
        // Each of them is looked at once, at least.
        parallel::for_rows(logits, vocabulary, rows * vocabulary, |first, logits| {
            for (row, logits) in logits.chunks_exact_mut(vocabulary).enumerate() {
                f(first + row, logits);
            }
        });
    })
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;
    use crate::testing::{assert_close, random_tensor, values};

    #[test]
    fn logits_are_scaled_and_then_bent() {
        let x = random_tensor(1, &[3, 700], DType::F32);
        for (scale, cap) in
            [(None, None), (Some(3.0), None), (None, Some(0.5)), (Some(4.0), Some(2.0))]
        {
            let logits = x.copy().unwrap();
            bend(&logits, scale, cap).unwrap();
            let expected = values(&x).into_iter().map(|x| {
                let scaled = x * scale.unwrap_or(1.0);
                cap.map_or(scaled, |cap: f32| cap * (scaled / cap).tanh())
            });
            let expected: Vec<f32> = expected.collect();
            assert_close(&values(&logits), &expected, 1e-6, "logits");
        }
    }

    #[test]
    fn each_row_is_seen_once_and_may_be_changed() {
        for rows in [0, 1, 9] {
            let logits = random_tensor(1, &[rows, 5000], DType::F32);
            for_each_row(&logits, |row, logits| {
                assert_eq!(logits.len(), 5000);
                logits[row] = 7.0 + row as f32;
            })
            .unwrap();
            let found = logits.to_vec2::<f32>().unwrap();
            assert!(found.iter().enumerate().all(|(row, x)| x[row] == 7.0 + row as f32));
        }
    }
}
