//! Vectors of sixteen f32, in the widest instructions that the processor has.
//!
//! A computation is written once, generic over [`Simd`], as a [`Task`]; [`Level::run`] compiles it
//! for each instruction set and picks one. Everything that a task calls has to be inlined into it,
//! or it would be compiled for the oldest processor: hence `#[inline(always)]`, and threads are
//! started outside of tasks, never inside.
//!
//! Every level has sixteen lanes and adds them up in the same order ([`Simd::sum`]), so all
//! processors with fused multiply-add give the same bits.

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
pub(crate) mod bytes;
pub(crate) mod groups;
pub(crate) mod math;
pub(crate) mod memory;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon_bf16;
#[cfg(target_arch = "aarch64")]
mod neon_bytes;
pub(crate) mod pairs;
mod portable;
#[cfg(target_arch = "x86_64")]
pub(crate) mod x86;
#[cfg(target_arch = "x86_64")]
pub(crate) mod x86_bf16;
#[cfg(target_arch = "x86_64")]
mod x86_bytes;

use half::{bf16, f16};

use self::pairs::Pairs;
#[cfg(test)]
use self::pairs::Units;
use portable::Portable;

/// Lanes of a vector.
pub(crate) const LANES: usize = 16;

/// Operations on vectors of [`LANES`] f32. A value of an implementing type is the proof that the
/// processor has its instructions.
pub(crate) trait Simd: Copy {
    /// Sixteen f32.
    type V: Copy;
    /// Whether there are registers for a block of sixteen accumulators and its operands.
    const WIDE: bool;
    /// Whether [`Simd::fma`] rounds once.
    const FUSED: bool;

    fn splat(self, x: f32) -> Self::V;
    fn load(self, x: &[f32; LANES]) -> Self::V;
    fn load_f16(self, x: &[f16; LANES]) -> Self::V;
    fn load_bf16(self, x: &[bf16; LANES]) -> Self::V;
    /// The first of each pair, and the second, widened.
    fn load_pairs(self, x: &Pairs) -> [Self::V; 2];
    fn store(self, v: Self::V, to: &mut [f32; LANES]);
    /// Begins to bring what lies at `address`, which may be anything, into the caches.
    fn prefetch(self, address: *const u8);
    /// The same, but into the second-level cache only.
    fn prefetch_far(self, address: *const u8);
    /// `a * b + c`.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;

    /// `if a < b { a } else { b }`, in each lane.
    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        self.zip(a, b, |a, b| if a < b { a } else { b })
    }

    /// `if a > b { a } else { b }`, in each lane.
    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        self.zip(a, b, |a, b| if a > b { a } else { b })
    }

    /// The largest lane, of lanes none of which is NaN.
    #[inline(always)]
    fn largest(self, v: Self::V) -> f32 {
        let mut lanes = [0.0; LANES];
        self.store(v, &mut lanes);
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                lanes[i] = if lanes[i + half] > lanes[i] { lanes[i + half] } else { lanes[i] };
            }
        }
        lanes[0]
    }

    /// `a * 2^n`, for whole n from -150 to 129; `a` is from 0.5 to 2.
    #[inline(always)]
    fn scale(self, a: Self::V, n: Self::V) -> Self::V {
        self.zip(a, n, math::scale)
    }

    /// `f` of each lane.
    #[inline(always)]
    fn zip(self, a: Self::V, b: Self::V, f: impl Fn(f32, f32) -> f32) -> Self::V {
        let (mut x, mut y) = ([0.0; LANES], [0.0; LANES]);
        self.store(a, &mut x);
        self.store(b, &mut y);
        for i in 0..LANES {
            x[i] = f(x[i], y[i]);
        }
        self.load(&x)
    }

    /// The lanes of each vector added up in the order of [`sum`].
    #[inline(always)]
    fn sum16(self, v: [Self::V; LANES]) -> [f32; LANES] {
        v.map(|v| self.sum(v))
    }

    /// The lanes added up in the order of [`sum`].
    #[inline(always)]
    fn sum(self, v: Self::V) -> f32 {
        let mut lanes = [0.0; LANES];
        self.store(v, &mut lanes);
        sum(lanes)
    }
}

/// The one order in which lanes are added up: lane i meets `i ^ 2`, then `i ^ 1`, `i ^ 8`,
/// `i ^ 4`, because that is what sixteen transposed sums at once cost least in.
#[inline(always)]
fn sum(v: [f32; LANES]) -> f32 {
    let group = |i: usize| (v[i] + v[i + 2]) + (v[i + 1] + v[i + 3]);
    (group(0) + group(8)) + (group(4) + group(12))
}

/// A computation that is compiled once for each instruction set. `run` and all it calls must be
/// `#[inline(always)]`.
pub(crate) trait Task {
    /// What it computes.
    type Output;
    /// Computes it.
    fn run<S: Simd>(self, s: S) -> Self::Output;
}

/// An instruction set that this processor has.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Level {
    Portable(Portable),
    #[cfg(target_arch = "aarch64")]
    Neon(neon::Neon),
    #[cfg(target_arch = "x86_64")]
    Avx2(x86::Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(x86::Avx512),
}

impl Level {
    /// The best one: the same in every call, but where a test has chosen another.
    pub(crate) fn current() -> Self {
        #[cfg(test)]
        if let Some(Units::Widened(level)) = FORCED.get() {
            return level;
        }
        Self::best()
    }

    fn best() -> Self {
        #[cfg(target_arch = "aarch64")]
        if let Some(neon) = neon::Neon::detect() {
            return Self::Neon(neon);
        }
        #[cfg(target_arch = "x86_64")]
        {
            if let Some(avx512) = x86::Avx512::detect() {
                return Self::Avx512(avx512);
            }
            if let Some(avx2) = x86::Avx2::detect() {
                return Self::Avx2(avx2);
            }
        }
        Self::Portable(Portable)
    }

    /// Runs `task` in these instructions.
    pub(crate) fn run<T: Task>(self, task: T) -> T::Output {
        match self {
            Self::Portable(portable) => task.run(portable),
            #[cfg(target_arch = "aarch64")]
            Self::Neon(neon) => neon.run(task),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(avx2) => avx2.run(task),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(avx512) => avx512.run(task),
        }
    }
}

/// The instructions in which this process computes, in words.
pub fn instruction_set() -> &'static str {
    match Level::current() {
        Level::Portable(_) => "portable",
        #[cfg(target_arch = "aarch64")]
        Level::Neon(_) => "NEON",
        #[cfg(target_arch = "x86_64")]
        Level::Avx2(_) => "AVX2, FMA, F16C",
        #[cfg(target_arch = "x86_64")]
        Level::Avx512(_) => "AVX-512 F, AVX2, FMA, F16C",
    }
}

#[cfg(test)]
thread_local! {
    static FORCED: std::cell::Cell<Option<Units>> = const { std::cell::Cell::new(None) };
}

/// Runs `test` once for each instruction set that this processor has.
#[cfg(test)]
pub(crate) fn at_every_level(test: impl Fn()) {
    for level in every_level() {
        FORCED.set(Some(Units::Widened(level)));
        test();
        FORCED.set(None);
    }
}

/// Runs `test` once for each instruction set, and once for each kind of units for products with
/// bf16 weights, that this processor has.
#[cfg(test)]
pub(crate) fn with_all_units(test: impl Fn()) {
    for units in Units::all() {
        FORCED.set(Some(units));
        test();
        FORCED.set(None);
    }
}

#[cfg(test)]
fn every_level() -> Vec<Level> {
    let levels = [
        Some(Level::Portable(Portable)),
        #[cfg(target_arch = "aarch64")]
        neon::Neon::detect().map(Level::Neon),
        #[cfg(target_arch = "x86_64")]
        x86::Avx2::detect().map(Level::Avx2),
        #[cfg(target_arch = "x86_64")]
        x86::Avx512::detect().map(Level::Avx512),
    ];
    levels.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Everything<'a> {
        x: &'a [f32; LANES],
        y: &'a [f32; LANES],
    }

    /// One vector per operation.
    impl Task for Everything<'_> {
        type Output = Vec<[f32; LANES]>;

        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Self::Output {
            let (x, y) = (s.load(self.x), s.load(self.y));
            let halves = s.load_f16(&self.x.map(f16::from_f32));
            let brains = s.load_bf16(&self.x.map(bf16::from_f32));
            let each = std::array::from_fn(|i| s.fma(x, s.splat(i as f32 - 3.3), s.splat(0.0)));
            let outputs = [s.splat(0.5), x, halves, brains, s.fma(x, y, y)];
            let mut stored = outputs
                .map(|v| {
                    let mut to = [0.0; LANES];
                    s.store(v, &mut to);
                    to
                })
                .to_vec();
            stored.push(s.sum16(each));
            stored.push(each.map(|v| s.sum(v)));
            stored
        }
    }

    fn inputs() -> ([f32; LANES], [f32; LANES]) {
        let x = std::array::from_fn(|i| (i as f32 - 7.3) * 1.37f32.powi(i as i32));
        (x, std::array::from_fn(|i| 3.1 / (i as f32 + 0.7)))
    }

    #[test]
    fn every_level_computes_what_scalars_do() {
        let (x, y) = inputs();
        for level in every_level() {
            let out = level.run(Everything { x: &x, y: &y });
            let fused = !matches!(level, Level::Portable(_)) || Portable::FUSED;
            assert_eq!(out[0], [0.5; LANES]);
            assert_eq!(out[1], x);
            assert_eq!(out[2], x.map(|x| f16::from_f32(x).to_f32()));
            assert_eq!(out[3], x.map(|x| bf16::from_f32(x).to_f32()));
            for i in 0..LANES {
                let sum = if fused { x[i].mul_add(y[i], y[i]) } else { x[i] * y[i] + y[i] };
                assert_eq!(out[4][i], sum, "{level:?}");
            }
        }
    }

    #[test]
    fn lanes_are_added_up_in_one_order_at_every_level() {
        let (x, y) = inputs();
        for level in every_level() {
            let out = level.run(Everything { x: &x, y: &y });
            let expected = std::array::from_fn(|i| sum(x.map(|x| x * (i as f32 - 3.3))));
            assert_eq!(out[5], expected, "{level:?}: sixteen at once");
            assert_eq!(out[6], expected, "{level:?}: one by one");
        }
    }

    #[test]
    fn every_half_is_widened_exactly_at_every_level() {
        struct Widen([f16; LANES]);
        impl Task for Widen {
            type Output = [f32; LANES];
            #[inline(always)]
            fn run<S: Simd>(self, s: S) -> [f32; LANES] {
                let mut out = [0.0; LANES];
                s.store(s.load_f16(&self.0), &mut out);
                out
            }
        }
        for level in every_level() {
            for start in (0..=u16::MAX).step_by(LANES) {
                let x = std::array::from_fn(|i| f16::from_bits(start + i as u16));
                let out = level.run(Widen(x));
                for (x, out) in x.into_iter().zip(out) {
                    let same = out.to_bits() == x.to_f32().to_bits();
                    assert!(same || x.is_nan() && out.is_nan(), "{level:?}: {x:?} became {out}");
                }
            }
        }
    }
}
