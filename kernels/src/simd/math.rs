//! Elementary functions of one f32, without branches: a loop over them becomes vector code where
//! it is inlined into a [`super::Task`], and gives the same bits whether it does or not.

use super::Simd;

/// `a * b + c`, rounded once where the level has an instruction for that.
#[inline(always)]
pub(crate) fn fma<S: Simd>(a: f32, b: f32, c: f32) -> f32 {
    if S::FUSED { a.mul_add(b, c) } else { a * b + c }
}

/// Adding 1.5 * 2^23 leaves no bits behind the point: the sum's mantissa is the whole number.
pub(crate) const ROUND: f32 = 12_582_912.0;

/// ln 2 in two parts, of which the first has so few bits that a whole number times it is exact;
/// both below 0.
const MINUS_LN_2: [f32; 2] = [-0.693_359_4, 2.121_944_4e-4];

/// `(e^r - 1 - r) / r^2` for r in `[-ln 2 / 2, ln 2 / 2]`, from the highest power on (Cephes).
const POLYNOMIAL: [f32; 6] =
    [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 5e-1];

/// The nearest integer of `x`, which is below 2^22 in size; ties to even.
#[inline(always)]
pub(crate) fn nearest(x: f32) -> i32 {
    (x + ROUND).to_bits().wrapping_sub(ROUND.to_bits()) as i32
}

/// `e^x` to 2 units in the last place; 0 and infinity where it leaves f32; NaN of NaN.
///
/// `e^x = 2^n * e^r` with `r = x - n ln 2` in `[-ln 2 / 2, ln 2 / 2]`, and a polynomial for `e^r`.
#[inline(always)]
pub(crate) fn exp<S: Simd>(x: f32) -> f32 {
    // Beyond these the result is infinity or 0. Comparisons that let NaN pass.
    let x = if x > 89.0 { 89.0 } else { x };
    let x = if x < -104.0 { -104.0 } else { x };
    let n = fma::<S>(x, std::f32::consts::LOG2_E, ROUND) - ROUND;
    let r = fma::<S>(n, MINUS_LN_2[0], x);
    let r = fma::<S>(n, MINUS_LN_2[1], r);
    let mut p = POLYNOMIAL[0];
    for coefficient in &POLYNOMIAL[1..] {
        p = fma::<S>(p, r, *coefficient);
    }
    scale(fma::<S>(p, r * r, r) + 1.0, n)
}

/// [`exp`] of each lane, to the same bits.
#[inline(always)]
pub(crate) fn exp_lanes<S: Simd>(s: S, x: S::V) -> S::V {
    let x = s.max(s.splat(-104.0), s.min(s.splat(89.0), x));
    let rounded = s.fma(x, s.splat(std::f32::consts::LOG2_E), s.splat(ROUND));
    let n = s.fma(rounded, s.splat(1.0), s.splat(-ROUND));
    let r = s.fma(n, s.splat(MINUS_LN_2[0]), x);
    let r = s.fma(n, s.splat(MINUS_LN_2[1]), r);
    let mut p = s.splat(POLYNOMIAL[0]);
    for coefficient in &POLYNOMIAL[1..] {
        p = s.fma(p, r, s.splat(*coefficient));
    }
    let square = s.fma(r, r, s.splat(0.0));
    s.scale(s.fma(s.fma(p, square, r), s.splat(1.0), s.splat(1.0)), n)
}

/// `a * 2^n`, for whole n from -150 to 129: in two halves, as n can be one beyond the largest
/// exponent.
#[inline(always)]
pub(crate) fn scale(a: f32, n: f32) -> f32 {
    let n = nearest(n);
    let half = n >> 1;
    a * power_of_two(half) * power_of_two(n.wrapping_sub(half))
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
    use crate::simd::{LANES, Level, Task, at_every_level};

    struct ExpLanes<'a>(&'a [f32]);

    impl Task for ExpLanes<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            for x in self.0.as_chunks::<LANES>().0 {
                let mut lanes = [0.0; LANES];
                s.store(exp_lanes(s, s.load(x)), &mut lanes);
                for (x, lane) in x.iter().zip(lanes) {
                    let one = exp::<S>(*x);
                    let same = one.to_bits() == lane.to_bits() || one.is_nan() && lane.is_nan();
                    assert!(same, "exp({x}) = {one}, as a lane {lane}");
                }
            }
        }
    }

    #[test]
    fn exp_of_a_vector_has_the_bits_of_exp() {
        at_every_level(|| {
            let mut x: Vec<f32> = (-106_000..90_000).map(|i| i as f32 * 1e-3 + 1e-4).collect();
            x.extend([f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 1e30, -1e30, 0.0, -0.0, 88.8]);
            x.resize(x.len().next_multiple_of(LANES), 1.0);
            Level::current().run(ExpLanes(&x));
        });
    }

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
