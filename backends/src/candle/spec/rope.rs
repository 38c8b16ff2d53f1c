//! Positions: how a rotation's frequencies follow from a few numbers.
//!
//! Formulas are those of Transformers' `modeling_rope_utils`, which are those of the papers:
//! llama3 from Llama 3.1, yarn from arXiv 2309.00071, the factors per pair (LongRoPE) from
//! arXiv 2402.13753.

use millstream_kernels::rope::RopeStyle;
use std::f64::consts::TAU;

/// Rotary positions: pairs of the first `dims` values of a head turn by `position * inv_freq`.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Values per head that rotate; even, at most the head size.
    pub dims: usize,
    /// Base of the frequencies.
    pub theta: f64,
    /// Which values make a pair.
    pub style: RopeStyle,
    /// How the frequencies are stretched to longer texts.
    pub scaling: RopeScaling,
}

/// How the frequencies of a `Rope` are stretched.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// As trained.
    None,
    /// All of them divided by `factor`.
    Linear {
        /// Stretch.
        factor: f64,
    },
    /// Wavelengths that fit `original_max_positions` `high` times stay; those that fit it less
    /// than `low` times are divided by `factor`; between the two it is interpolated.
    Llama3 {
        /// Stretch of the slow frequencies.
        factor: f64,
        /// Turns within the original context below which a frequency is slow.
        low: f64,
        /// Turns within the original context above which a frequency is fast.
        high: f64,
        /// Context of the model before it was stretched, in tokens.
        original_max_positions: f64,
    },
    /// As Llama3, but interpolated over the pair's index instead of its wavelength.
    Yarn {
        /// Stretch of the slow frequencies.
        factor: f64,
        /// Context of the model before it was stretched, in tokens.
        original_max_positions: f64,
        /// Turns within the original context from which on a frequency stays.
        fast: f64,
        /// Turns within the original context up to which a frequency is divided.
        slow: f64,
        /// The two bounds are rounded outwards to whole pairs.
        truncate: bool,
        /// On cosines and sines.
        attention_factor: f64,
    },
    /// Each frequency divided by a factor of its own, out of two lists;
    /// [`ModelSpec::settle`](super::ModelSpec::settle) chooses.
    Long {
        /// For texts within the original context, `dims / 2` of them.
        short: Vec<f64>,
        /// For longer texts.
        long: Vec<f64>,
        /// Context of the model before it was stretched, in tokens.
        original_max_positions: usize,
        /// On cosines and sines.
        attention_factor: f64,
    },
    /// Each frequency divided by a factor of its own.
    PerPair {
        /// `dims / 2` of them.
        factors: Vec<f64>,
        /// On cosines and sines.
        attention_factor: f64,
    },
}

/// `q *= 1 + beta * ln(1 + floor(position / original_max_positions))`: sharper scores for texts
/// longer than the original context.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PositionScale {
    /// Growth.
    pub beta: f64,
    /// Context of the model before it was stretched, in tokens.
    pub original_max_positions: f64,
}

impl PositionScale {
    /// The factor at a position.
    pub fn at(&self, position: u32) -> f32 {
        let times = (f64::from(position) / self.original_max_positions).floor();
        (1.0 + self.beta * (1.0 + times).ln()) as f32
    }
}

impl Rope {
    /// Radians per position of each pair, `dims / 2` of them, fastest first.
    pub fn inv_freq(&self) -> Vec<f64> {
        let base = |i: usize| self.theta.powf(-2.0 * i as f64 / self.dims as f64);
        (0..self.dims / 2).map(|i| self.stretched(i, base(i))).collect()
    }

    /// Factor on cosines and sines.
    pub fn attention_factor(&self) -> f64 {
        match &self.scaling {
            RopeScaling::None | RopeScaling::Linear { .. } | RopeScaling::Llama3 { .. } => 1.0,
            RopeScaling::Yarn { attention_factor, .. }
            | RopeScaling::Long { attention_factor, .. }
            | RopeScaling::PerPair { attention_factor, .. } => *attention_factor,
        }
    }

    /// The stretched frequency of pair `i`, in radians per position.
    fn stretched(&self, i: usize, inv_freq: f64) -> f64 {
        match &self.scaling {
            RopeScaling::None => inv_freq,
            RopeScaling::Linear { factor } => inv_freq / factor,
            RopeScaling::Llama3 { factor, low, high, original_max_positions } => {
                let turns = original_max_positions * inv_freq / TAU;
                // 0 for slow frequencies, 1 for fast ones.
                let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                inv_freq * (kept + (1.0 - kept) / factor)
            }
            RopeScaling::Yarn { factor, .. } => {
                let (first, last) = self.yarn_bounds();
                let slow = ((i as f64 - first) / (last - first)).clamp(0.0, 1.0);
                inv_freq * (1.0 - slow + slow / factor)
            }
            RopeScaling::Long { short: factors, .. } | RopeScaling::PerPair { factors, .. } => {
                inv_freq / factors[i]
            }
        }
    }

    /// Yarn's last pair that stays, and its first pair that is divided by the whole factor.
    fn yarn_bounds(&self) -> (f64, f64) {
        let RopeScaling::Yarn { original_max_positions, fast, slow, truncate, .. } = &self.scaling
        else {
            unreachable!("asked of yarn only")
        };
        let dims = self.dims as f64;
        // The pair that turns this often within the original context.
        let pair = |turns: f64| {
            dims * (original_max_positions / (turns * TAU)).ln() / (2.0 * self.theta.ln())
        };
        let (mut first, mut last) = (pair(*fast), pair(*slow));
        if *truncate {
            (first, last) = (first.floor(), last.ceil());
        }
        (first, last) = (first.max(0.0), last.min(dims - 1.0));
        if first == last {
            last += 0.001;
        }
        (first, last)
    }
}

impl RopeScaling {
    /// Chooses between factors for short and for long texts, once for all texts: were it chosen by
    /// the length of a text, its keys in the cache would turn wrong as it grows.
    pub(super) fn settle(&mut self, max_model_len: usize) {
        if let Self::Long { short, long, original_max_positions, attention_factor } = self {
            let is_long = max_model_len > *original_max_positions;
            let factors = std::mem::take(if is_long { long } else { short });
            *self = Self::PerPair { factors, attention_factor: *attention_factor };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rope(scaling: RopeScaling) -> Rope {
        Rope { dims: 8, theta: 10_000.0, style: RopeStyle::Half, scaling }
    }

    #[test]
    fn linear_scaling_divides_every_frequency() {
        let plain = rope(RopeScaling::None).inv_freq();
        assert_eq!(plain.len(), 4);
        assert!((plain[1] - 0.1).abs() < 1e-12, "{plain:?}");
        let scaled = rope(RopeScaling::Linear { factor: 4.0 }).inv_freq();
        for (p, s) in plain.iter().zip(&scaled) {
            assert!((p / 4.0 - s).abs() < 1e-15);
        }
    }

    /// The formula of the reference, by wavelengths, against ours, by turns.
    #[test]
    fn llama3_scaling_keeps_fast_frequencies_divides_slow_ones_and_blends_between() {
        let (factor, low, high, original) = (8.0, 1.0, 4.0, 32.0);
        let scaling = RopeScaling::Llama3 { factor, low, high, original_max_positions: original };
        let plain = Rope { dims: 64, ..rope(RopeScaling::None) }.inv_freq();
        let scaled = Rope { dims: 64, ..rope(scaling) }.inv_freq();
        let mut bands = [0; 3];
        for (&p, &s) in plain.iter().zip(&scaled) {
            let wavelength = TAU / p;
            let (band, want) = if wavelength < original / high {
                (0, p)
            } else if wavelength > original / low {
                (1, p / factor)
            } else {
                let smooth = (original / wavelength - low) / (high - low);
                (2, (1.0 - smooth) * p / factor + smooth * p)
            };
            bands[band] += 1;
            assert!((s / want - 1.0).abs() < 1e-12, "{p}: {s} against {want}");
        }
        assert!(bands.iter().all(|&n| n > 0), "{bands:?}");
    }

    #[test]
    fn factors_for_long_texts_are_chosen_once_by_the_longest_text_served() {
        let long = RopeScaling::Long {
            short: vec![1.0; 4],
            long: vec![1.0, 2.0, 4.0, 8.0],
            original_max_positions: 64,
            attention_factor: 1.5,
        };
        let plain = rope(RopeScaling::None).inv_freq();
        for (max_model_len, last) in [(64, 1.0), (65, 8.0)] {
            let mut rope = rope(long.clone());
            rope.scaling.settle(max_model_len);
            assert_eq!(rope.inv_freq()[3], plain[3] / last, "{max_model_len}");
            assert_eq!(rope.attention_factor(), 1.5);
        }
    }

    #[test]
    fn queries_grow_with_every_original_context_that_lies_behind_them() {
        let scale = PositionScale { beta: 0.1, original_max_positions: 32.0 };
        assert_eq!((scale.at(0), scale.at(31)), (1.0, 1.0));
        assert!((scale.at(32) - (1.0 + 0.1 * 2f32.ln())).abs() < 1e-6);
        assert!((scale.at(97) - (1.0 + 0.1 * 4f32.ln())).abs() < 1e-6);
    }
}
