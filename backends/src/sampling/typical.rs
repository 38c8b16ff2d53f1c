//! How typical a token is: how close its information is to what is expected.
//!
//! C. Meister, T. Pimentel, G. Wiher and R. Cotterell, "Locally Typical Sampling", TACL 2023: of
//! a distribution `p` with entropy `H`, those tokens are kept whose information `-ln p` is closest
//! to `H`. The most likely token need not be among them.
//!
//! With `x = (logit - max) / temperature` and `p = exp(x) / Z`, information is `ln Z - x` and `H`
//! is `ln Z - E[x]`: `Z` falls out of the difference, and a token's *deviation* is `|x - E[x]|`.
//! A token's *depth* is `-x` as a fixed-point number, so that the expectation is a sum of whole
//! numbers, exact in any order, as the weights are (see `weights.rs`).

/// One unit of `x`, as a depth.
const ONE: f64 = (1_u64 << 32) as f64;
/// Above every deviation: a token that has a weight has an `x` above `-40 ln 2`, so -28.
const MAX_DEVIATION: u64 = 28 << 32;
/// Ids are below 2^24, and go into the lowest bits of a key.
const ID_BITS: u32 = 24;

/// Ranks the tokens of one distribution.
#[derive(Clone, Copy)]
pub(super) struct Typicality {
    max: f32,
    beta: f64,
    /// The expected depth.
    mean: u64,
}

impl Typicality {
    /// Of the distribution that gives the token `id` the weight `weights[id]`, which is not 0 for
    /// all of them. `max` and `beta` are those of the weights.
    pub(super) fn of(logits: &[f32], weights: &[u64], max: f32, beta: f64) -> Self {
        let mut ranks = Typicality { max, beta, mean: 0 };
        let (mut total, mut sum) = (0_u64, 0_u128);
        for (logit, weight) in logits.iter().zip(weights).filter(|(_, weight)| **weight > 0) {
            total += weight;
            sum += u128::from(*weight) * u128::from(ranks.depth(*logit));
        }
        ranks.mean = (sum / u128::from(total)) as u64;
        ranks
    }

    /// A number that is larger the more typical a token with a weight is; the smaller id has the
    /// larger one among equals, and no two tokens have the same.
    pub(super) fn key(&self, logit: f32, id: u32) -> u64 {
        let deviation = self.depth(logit).abs_diff(self.mean);
        let lowest_bits = (1 << ID_BITS) - 1;
        (MAX_DEVIATION - deviation) << ID_BITS | u64::from(!id & lowest_bits)
    }

    fn depth(&self, logit: f32) -> u64 {
        ((f64::from(self.max) - f64::from(logit)) * self.beta * ONE) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::super::weights::weight;
    use super::*;

    #[test]
    fn a_key_ranks_by_the_distance_from_the_expected_information() {
        // Probabilities 1/2, 1/4, 1/8, 1/8: the entropy is 1.75 bits, so the deviations are
        // 0.75, 0.25, 1.25 and 1.25 bits.
        let logits = [0.5_f64, 0.25, 0.125, 0.125].map(|p| p.ln() as f32);
        for temperature in [1.0, 0.5, 3.0] {
            let (max, beta) = (logits[0] * temperature, 1.0 / f64::from(temperature));
            let logits = logits.map(|logit| logit * temperature);
            let weights = logits.map(|logit| weight(logit, max, beta));
            let ranks = Typicality::of(&logits, &weights, max, beta);
            let mut ids = [0_u32, 1, 2, 3];
            ids.sort_by_key(|id| std::cmp::Reverse(ranks.key(logits[*id as usize], *id)));
            assert_eq!(ids, [1, 0, 2, 3]);
            let bits = ranks.mean as f64 / ONE / std::f64::consts::LN_2;
            assert!((bits - 0.75).abs() < 1e-6, "{bits}");
        }
    }

    #[test]
    fn the_least_likely_token_with_a_weight_has_a_key() {
        // One token of full weight beside one of the lowest weight, 2^-40.
        let lowest = (-40.0 * std::f64::consts::LN_2) as f32 + 1e-6;
        let logits = [0.0, lowest];
        let weights = logits.map(|logit| weight(logit, 0.0, 1.0));
        assert_eq!(weights[1], 1);
        let ranks = Typicality::of(&logits, &weights, 0.0, 1.0);
        assert!(ranks.key(lowest, 1) < ranks.key(0.0, 0));
        // And the other way round: all the weight but one unit deep down.
        let ranks = Typicality::of(&logits, &[0, 1], 0.0, 1.0);
        assert!(ranks.key(lowest, 1) > ranks.key(0.0, 0));
    }
}
