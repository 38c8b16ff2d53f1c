//! Grouping: one row per token and expert, those of an expert side by side, and back.
//!
//! ```text
//! gather:   y[r,:]   = x[token(r),:]
//! combine:  out[t,:] = sum_k weights[t,k] * y[row(t,k),:]      k = 0..top_k, in this order, in f32
//! ```
//!
//! Rows are ordered by expert, those of one expert by token.
//!
//! x `[T, hidden]` f32, y `[T * top_k, hidden]` f32, rows of both may be strided;
//! weights `[T * top_k]`; out `[T, hidden]` f32.

mod cpu;
#[cfg(test)]
mod reference;

use candle_core::{Device, Tensor};

use super::Routes;
use crate::view::{self, Locked};
use crate::{KernelError, Result};

/// Which rows go to which expert, made once for the tokens of a layer.
#[derive(Clone, Debug)]
pub struct Grouping {
    /// `[T * top_k]`: the token of each row; below T.
    pub(super) tokens: Vec<u32>,
    /// `[T * top_k]`: the row of each token's k-th expert; each row once.
    pub(super) rows: Vec<u32>,
    /// `[E]`: the rows of expert e end before `ends[e]`, and begin where those of e-1 end.
    ends: Vec<u32>,
    top_k: usize,
}

impl Grouping {
    /// Orders the rows of `routes` by their experts, of which there are `num_experts`.
    pub fn new(routes: &Routes, num_experts: usize) -> Result<Self> {
        let (experts, top_k) = (&routes.experts, routes.top_k);
        if top_k == 0 || !experts.len().is_multiple_of(top_k) {
            let rule = format!("a multiple of top_k ({top_k}) entries");
            let found = experts.len().to_string();
            return Err(KernelError::Value { argument: "routes.experts", rule, found });
        }
        view::indices("routes.experts", experts, num_experts)?;
        // Where the next row of each expert goes; at last, where its rows end.
        let mut ends = vec![0; num_experts];
        for &expert in experts {
            ends[expert as usize] += 1;
        }
        let mut before = 0;
        for end in &mut ends {
            (*end, before) = (before, before + *end);
        }
        let (mut tokens, mut rows) = (vec![0; experts.len()], vec![0; experts.len()]);
        for (i, &expert) in experts.iter().enumerate() {
            let next = &mut ends[expert as usize];
            (rows[i], tokens[*next as usize]) = (*next, (i / top_k) as u32);
            *next += 1;
        }
        Ok(Self { tokens, rows, ends, top_k })
    }

    /// `[E]`: where the rows of each expert end, as [`crate::linear::grouped_linear`] wants it.
    pub fn ends(&self) -> &[u32] {
        &self.ends
    }
}

/// The rows of `x` `[T, hidden]`, once for each expert of a token; gives `[T * top_k, hidden]`.
pub fn gather(x: &Tensor, grouping: &Grouping) -> Result<Tensor> {
    let [_, hidden] = view::dims(x, "x", ["T", "hidden"])?;
    view::shape(x, "x", &[grouping.tokens.len() / grouping.top_k, hidden])?;
    match x.device() {
        Device::Cpu => {
            let x = Locked::new(x, "x")?;
            let out = cpu::gather(x.rows()?, &grouping.tokens);
            view::tensor(out, &[grouping.tokens.len(), hidden])
        }
        device => Err(KernelError::device("x", device)),
    }
}

/// The weighted sum of each token's rows of `y` `[T * top_k, hidden]`; `weights` are those of the
/// routes that `grouping` was made of; gives `[T, hidden]`.
pub fn combine(y: &Tensor, grouping: &Grouping, weights: &[f32]) -> Result<Tensor> {
    let [_, hidden] = view::dims(y, "y", ["T * top_k", "hidden"])?;
    view::shape(y, "y", &[grouping.rows.len(), hidden])?;
    view::len("weights", grouping.rows.len(), weights.len())?;
    match y.device() {
        Device::Cpu => {
            let y = Locked::new(y, "y")?;
            let out = cpu::combine(y.rows()?, &grouping.rows, weights, grouping.top_k);
            view::tensor(out, &[grouping.rows.len() / grouping.top_k, hidden])
        }
        device => Err(KernelError::device("y", device)),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;
    use crate::testing::{
        assert_close, assert_error, bits, random, random_tensor, strided, values,
    };

    fn routes(experts: &[u32], top_k: usize) -> Routes {
        Routes { experts: experts.to_vec(), weights: random(1, experts.len()), top_k }
    }

    #[test]
    fn rows_are_ordered_by_expert_and_then_by_token() {
        let grouping = Grouping::new(&routes(&[3, 0, 0, 4, 4, 3, 0, 3], 2), 6).unwrap();
        assert_eq!(grouping.ends(), [3, 3, 3, 6, 8, 8]);
        assert_eq!(grouping.tokens, [0, 1, 3, 0, 2, 3, 1, 2]);
        assert_eq!(grouping.rows, [3, 0, 1, 6, 7, 4, 2, 5]);
    }

    #[test]
    fn gather_and_combine_are_their_formulas_in_odd_sizes() {
        for (tokens, top_k) in [(0, 1), (1, 1), (1, 8), (7, 3), (33, 2), (500, 5)] {
            let ids = random(2, tokens * top_k);
            let ids: Vec<u32> = ids.iter().map(|x| ((x + 1.0) * 5.49) as u32).collect();
            let routes = routes(&ids, top_k);
            let grouping = Grouping::new(&routes, 11).unwrap();
            for hidden in [1, 7, 33, 257] {
                let case = format!("{tokens} x {top_k}, {hidden}");
                let x = random_tensor(3, &[tokens, hidden], DType::F32);
                let y = gather(&x, &grouping).unwrap();
                assert_eq!(y.dims(), [tokens * top_k, hidden]);
                assert_eq!(values(&y), reference::gather(&values(&x), hidden, &routes), "{case}");
                // Each row differs, so that a mistaken one shows.
                let y = random_tensor(4, &[tokens * top_k, hidden], DType::F32);
                let out = combine(&y, &grouping, &routes.weights).unwrap();
                assert_eq!(out.dims(), [tokens, hidden]);
                let expected = reference::combine(&values(&y), hidden, &routes);
                assert_close(&values(&out), &expected, 1e-6, &case);
                if tokens > 0 {
                    assert_eq!(values(&gather(&strided(&x), &grouping).unwrap()), {
                        reference::gather(&values(&x), hidden, &routes)
                    });
                    let again = combine(&strided(&y), &grouping, &routes.weights).unwrap();
                    assert_eq!(bits(&again), bits(&out), "{case}, strided");
                }
            }
        }
    }

    #[test]
    fn wrong_arguments_are_named() {
        assert_error(
            Grouping::new(&routes(&[0, 1, 2], 2), 3),
            "routes.experts: expected a multiple of top_k (2) entries, found 3",
        );
        assert_error(
            Grouping::new(&routes(&[0, 3], 2), 3),
            "routes.experts[1]: expected an index below 3, found 3",
        );
        assert_error(
            Grouping::new(&routes(&[], 0), 3),
            "routes.experts: expected a multiple of top_k (0) entries, found 0",
        );
        let grouping = Grouping::new(&routes(&[0, 1, 2, 0], 2), 3).unwrap();
        let x = |shape: &[usize]| random_tensor(1, shape, DType::F32);
        assert_error(gather(&x(&[3, 5]), &grouping), "x: expected shape [2, 5], found [3, 5]");
        assert_error(gather(&x(&[2]), &grouping), "x: expected shape [T, hidden], found [2]");
        let weights = [1.0; 4];
        assert_error(
            combine(&x(&[2, 5]), &grouping, &weights),
            "y: expected shape [4, 5], found [2, 5]",
        );
        assert_error(
            combine(&x(&[4, 5]), &grouping, &weights[1..]),
            "weights: expected 4 entries, found 3",
        );
        assert_error(
            combine(&x(&[4, 5]).to_dtype(DType::F16).unwrap(), &grouping, &weights),
            "y: expected dtype f32, found F16",
        );
    }
}
