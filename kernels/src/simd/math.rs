//! Elementary functions of one f32, without branches: a loop over them becomes vector code where
//! it is inlined into a [`super::Task`], and gives the same bits whether it does or not.

use super::Simd;

/// `a * b + c`, rounded once where the level has an instruction for that.
#[inline(always)]
pub(crate) fn fma<S: Simd>(a: f32, b: f32, c: f32) -> f32 {
    if S::FUSED { a.mul_add(b, c) } else { a * b + c }
}

/// The nearest integer of `x`, which is below 2^22 in size; ties to even.
#[inline(always)]
pub(crate) fn nearest(x: f32) -> i32 {
    // Adding 1.5 * 2^23 leaves no bits behind the point.
    const ROUND: f32 = 12_582_912.0;
    (x + ROUND).to_bits().wrapping_sub(ROUND.to_bits()) as i32
}

/// `e^x` to 2 units in the last place; 0 and infinity where it leaves f32; NaN of NaN.
///
/// `e^x = 2^n * e^r` with `r = x - n ln 2` in `[-ln 2 / 2, ln 2 / 2]`, and a polynomial for `e^r`
/// (Cephes). `2^n` is applied in two halves, as n can be one beyond the largest exponent.
#[inline(always)]
pub(crate) fn exp<S: Simd>(x: f32) -> f32 {
    // Beyond these the result is infinity or 0. Comparisons that let NaN pass.
    let x = if x > 89.0 { 89.0 } else { x };
    let x = if x < -104.0 { -104.0 } else { x };
    // Adding 1.5 * 2^23 leaves no bits behind the point: the sum's mantissa is round(x / ln 2).
    const ROUND: f32 = 12_582_912.0;
    let rounded = fma::<S>(x, std::f32::consts::LOG2_E, ROUND);
    let n = rounded - ROUND;
    // ln 2 in two parts, of which the first has so few bits that n times it is exact.
    let r = fma::<S>(n, -0.693_359_4, x);
    let r = fma::<S>(n, 2.121_944_4e-4, r);
    let p = fma::<S>(1.987_569_1e-4, r, 1.398_199_9e-3);
    let p = fma::<S>(p, r, 8.333_452e-3);
    let p = fma::<S>(p, r, 4.166_579_6e-2);
    let p = fma::<S>(p, r, 1.666_666_5e-1);
    let p = fma::<S>(p, r, 5e-1);
    let e_r = fma::<S>(p, r * r, r) + 1.0;
    let n = rounded.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
    let half = n >> 1;
    e_r * power_of_two(half) * power_of_two(n.wrapping_sub(half))
}

/// `2^n` for n in `-126..=127`.
#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(crate) fn sigmoid<S: Simd>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<S>(-x))
}

/// `1 / (1 + e^-x)`, times x.
#[inline(always)]
pub(crate) fn silu<S: Simd>(x: f32) -> f32 {
    x / (1.0 + exp::<S>(-x))
}

/// `1 / (1 + e^(-alpha x))`, times x.
#[inline(always)]
pub(crate) fn swish<S: Simd>(x: f32, alpha: f32) -> f32 {
    x / (1.0 + exp::<S>(-alpha * x))
}

/// `x/2 * (1 + tanh(y))` with `y = sqrt(2/pi) * (x + 0.044715 x^3)`, as `x / (1 + e^-2y)`.
#[inline(always)]
pub(crate) fn gelu_tanh<S: Simd>(x: f32) -> f32 {
    let y = 0.797_884_6 * x * fma::<S>(0.044_715 * x, x, 1.0);
    x / (1.0 + exp::<S>(-2.0 * y))
}

/// `tanh(x)`, to some 1e-7 absolutely.
#[inline(always)]
pub(crate) fn tanh<S: Simd>(x: f32) -> f32 {
    1.0 - 2.0 / (exp::<S>(2.0 * x) + 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Level, Task, at_every_level};

    struct Exp(Vec<f32>);

    impl Task for Exp {
        type Output = Vec<f32>;
        #[inline(always)]
        fn run<S: Simd>(self, _: S) -> Vec<f32> {
            self.0.iter().map(|&x| exp::<S>(x)).collect()
        }
    }

    fn of(x: &[f32]) -> Vec<f32> {
        Level::current().run(Exp(x.to_vec()))
    }

    #[test]
    fn exp_is_right_to_two_units_in_the_last_place() {
        at_every_level(|| {
            let x: Vec<f32> = (-86_000..88_000).map(|i| i as f32 * 1e-3 + 1e-4).collect();
            for (x, y) in x.iter().zip(of(&x)) {
                let exact = f64::from(*x).exp();
                let error = (f64::from(y) - exact).abs() / exact;
                assert!(error < 2.0 * f64::from(f32::EPSILON), "exp({x}) = {y}, off by {error:e}");
            }
        });
    }

    #[test]
    fn exp_leaves_f32_as_infinity_zero_or_nan() {
        at_every_level(|| {
            let x = [f32::INFINITY, 1e30, 89.0, 88.8, -105.0, -1e30, f32::NEG_INFINITY, 0.0, -0.0];
            let inf = f32::INFINITY;
            assert_eq!(of(&x), [inf, inf, inf, inf, 0.0, 0.0, 0.0, 1.0, 1.0]);
            assert!(of(&[f32::NAN])[0].is_nan());
            assert!(of(&[88.7])[0].is_finite() && of(&[-100.0])[0] > 0.0, "subnormals too");
        });
    }
}
