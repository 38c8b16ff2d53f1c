//! Weights of tokens as whole numbers, so that sums of them are exact in any order.
//!
//! The weight of a token is `exp((logit - max) / temperature)`, in `0..=1`, as a fixed-point number
//! of 40 bits. The sum over any vocabulary below 2^24 tokens fits a `u64`, and does not depend on
//! the order of adding: which tokens a mass of `top_p` covers, and which one a draw picks, is the
//! same on every machine, however the work is cut. What is lost are tokens less likely than the
//! best one by a factor of 2^40: these are never drawn.

use std::f64::consts::{LN_2, LOG2_E};

/// The weight of the most likely token.
pub(super) const ONE: u64 = 1 << 40;

/// The weight of a token whose logit is `logit`, where `max` is the largest one. `beta` is the
/// inverse of the temperature, which is a number above 0.
pub(super) fn weight(logit: f32, max: f32, beta: f64) -> u64 {
    (exp((f64::from(logit) - f64::from(max)) * beta) * ONE as f64) as u64
}

/// `exp(x)` for `x <= 0`, with a relative error below 2^-41; 0 below -40, where nothing of it is
/// left in a weight, nor in a sum that the likeliest token makes at least 1.
///
/// `exp(x) = 2^n exp(r)` with `n` the nearest whole number to `x / ln 2`, so `|r| <= ln 2 / 2`, and
/// the Taylor series of `exp(r)` up to `r^10`. Only additions and multiplications, so that it
/// vectorises and that every machine gets the same bits, which it would not from its C library.
pub(super) fn exp(x: f64) -> f64 {
    /// 1.5 * 2^52: a number added to this is rounded to a whole one, which then stands in the
    /// lowest bits.
    const ROUNDER: f64 = 6_755_399_441_055_744.0;
    /// 1/k! for k = 9, 8, .. 0.
    const COEFFICIENTS: [f64; 10] = [
        1.0 / 362_880.0,
        1.0 / 40_320.0,
        1.0 / 5_040.0,
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        1.0 / 2.0,
        1.0,
        1.0,
    ];
    let rounded = x * LOG2_E + ROUNDER;
    let r = x - (rounded - ROUNDER) * LN_2;
    let series =
        COEFFICIENTS.iter().fold(1.0 / 3_628_800.0, |sum, coefficient| sum * r + coefficient);
    // 2^n: n moves into the exponent, which for 2^0 is that of 1.
    let power = f64::from_bits((rounded.to_bits() << 52).wrapping_add(1.0_f64.to_bits()));
    if x < -40.0 { 0.0 } else { series * power }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_that_of_the_reals_to_the_stated_error() {
        for step in 0..=400_000 {
            let x = f64::from(step) * -1e-4;
            let error = (exp(x) / x.exp() - 1.0).abs();
            assert!(error < 0.5_f64.powi(41), "exp({x}) is off by {error:e}");
        }
        assert_eq!((exp(0.0), exp(-40.1), exp(f64::NEG_INFINITY)), (1.0, 0.0, 0.0));
    }

    #[test]
    fn the_weight_of_a_likelier_token_is_never_smaller() {
        // Neighbouring numbers, around every place where another power of two begins.
        for power in 0..58 {
            let border = (-(f64::from(power) + 0.5) * LN_2) as f32;
            let logits = (0..2_000).map(|step| f32::from_bits(border.to_bits() - 1_000 + step));
            let weights = logits.map(|logit| weight(logit, 0.0, 1.0));
            assert!(weights.is_sorted_by(|likelier, other| likelier >= other));
        }
        let weights = (0..3_000_000).map(|step| weight(step as f32 * -1e-5, 0.0, 1.0));
        assert!(weights.is_sorted_by(|likelier, other| likelier >= other));
    }

    #[test]
    fn odd_temperatures_and_logits_have_weights() {
        let cases = [
            (0.0, 0.0, 1.0, ONE),
            (f32::NEG_INFINITY, 0.0, 1.0, 0),
            (5.0, 5.0, f32::MIN_POSITIVE, ONE),
            (4.0, 5.0, f32::MIN_POSITIVE, 0),
            (4.0, 5.0, f32::from_bits(1), 0),
            (f32::MIN, f32::MAX, 1.0, 0),
            (f32::NEG_INFINITY, 0.0, f32::MAX, 0),
        ];
        for (logit, max, temperature, expected) in cases {
            let beta = 1.0 / f64::from(temperature);
            assert_eq!(weight(logit, max, beta), expected, "{logit} {max} {temperature}");
        }
    }
}
