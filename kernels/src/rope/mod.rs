//! Rotary positions: each pair `(a, b)` of a head is turned by the angle
//! `position * inv_freq[i]`: `a' = a * cos - b * sin`, `b' = b * cos + a * sin`.
//!
//! Pair i of the first `dims = 2 * len(inv_freq)` elements is `(i, i + dims/2)` in the style
//! `Half` (Llama as published by Hugging Face, Qwen, ..) and `(2i, 2i + 1)` in the style
//! `Interleaved` (GPT-J, Llama as published by Meta, ..). Elements from `dims` on stay as they are.
//!
//! x `[T, H, D]` f32, strided in T or not; out `[T, H, D]` f32, contiguous.

pub(crate) mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(test)]
mod reference;

use candle_core::{Device, Tensor};

use crate::view::{self, Locked};
use crate::{KernelError, Result};

/// Cosines and sines of every angle, `[max_pos, dims/2]`, computed in f64 and rounded once.
#[derive(Clone, Debug)]
pub struct RopeTable {
    /// `[max_pos, half]`, both.
    cos: Vec<f32>,
    sin: Vec<f32>,
    /// `dims/2`: pairs per head.
    half: usize,
    max_pos: usize,
}

/// Which elements of a head form a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeStyle {
    /// Element i with element `i + dims/2`.
    Half,
    /// Element 2i with element `2i + 1`.
    Interleaved,
}

impl RopeTable {
    /// The table for positions below `max_pos`; `inv_freq` in radians per position. Cosines and
    /// sines are multiplied by `attention_factor` (1 unless the scaling of a model says otherwise).
    pub fn new(inv_freq: &[f64], attention_factor: f64, max_pos: usize) -> Self {
        let angles = (0..max_pos).flat_map(|pos| inv_freq.iter().map(move |f| pos as f64 * f));
        let (cos, sin) = angles
            .map(|angle| angle.sin_cos())
            .map(|(sin, cos)| ((cos * attention_factor) as f32, (sin * attention_factor) as f32))
            .unzip();
        Self { cos, sin, half: inv_freq.len(), max_pos }
    }

    /// How many elements at the head's front are turned.
    pub fn dims(&self) -> usize {
        2 * self.half
    }

    /// One past the largest position.
    pub fn max_pos(&self) -> usize {
        self.max_pos
    }

    /// Cosines and sines of one position, `[half]` each.
    fn at(&self, position: u32) -> (&[f32], &[f32]) {
        let start = position as usize * self.half;
        (&self.cos[start..][..self.half], &self.sin[start..][..self.half])
    }
}

/// Turns the heads of `x` `[T, H, D]` f32, token t by `positions[t]`; gives `[T, H, D]` f32.
pub fn rope(x: &Tensor, table: &RopeTable, style: RopeStyle, positions: &[u32]) -> Result<Tensor> {
    let [tokens, heads, head_size] = view::dims(x, "x", ["T", "H", "D"])?;
    view::len("positions", tokens, positions.len())?;
    view::indices("positions", positions, table.max_pos)?;
    if table.dims() > head_size {
        let expected = format!("T, H, D >= {}", table.dims());
        return Err(KernelError::Shape { argument: "x", expected, found: x.dims().to_vec() });
    }
    match x.device() {
        Device::Cpu => {
            let x = Locked::new(x, "x")?;
            let out = cpu::rope(x.rows()?, table, style, positions, head_size);
            view::tensor(out, &[tokens, heads, head_size])
        }
        device => Err(KernelError::device("x", device)),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;
    use crate::simd::at_every_level;
    use crate::testing::{assert_close, assert_error, bits, random_tensor, strided, values};

    const STYLES: [RopeStyle; 2] = [RopeStyle::Half, RopeStyle::Interleaved];

    fn frequencies(half: usize) -> Vec<f64> {
        (0..half).map(|i| 10_000f64.powf(-(i as f64) / half as f64)).collect()
    }

    #[test]
    fn rope_is_its_formula_in_both_styles_and_for_part_of_a_head() {
        at_every_level(|| {
            for style in STYLES {
                for (head_size, half) in [(2, 1), (7, 3), (33, 16), (64, 32), (80, 20)] {
                    let positions: Vec<u32> = (0..33).map(|t| t * 7919 % 500).collect();
                    let inv_freq = frequencies(half);
                    let table = RopeTable::new(&inv_freq, 1.0, 500);
                    let x = random_tensor(1, &[33, 3, head_size], DType::F32);
                    let out = rope(&x, &table, style, &positions).unwrap();
                    assert_eq!(out.dims(), x.dims());
                    let expected =
                        reference::rope(&values(&x), &inv_freq, style, &positions, head_size);
                    let case = format!("{style:?}, {half} pairs of {head_size}");
                    assert_close(&values(&out), &expected, 1e-6, &case);
                }
            }
        });
    }

    #[test]
    fn the_attention_factor_scales_what_is_turned() {
        let x = random_tensor(1, &[1, 1, 8], DType::F32);
        let plain = RopeTable::new(&frequencies(3), 1.0, 10);
        let scaled = RopeTable::new(&frequencies(3), 2.0, 10);
        for style in STYLES {
            let plain = values(&rope(&x, &plain, style, &[9]).unwrap());
            let scaled = values(&rope(&x, &scaled, style, &[9]).unwrap());
            let doubled: Vec<f32> = plain[..6].iter().map(|x| 2.0 * x).collect();
            assert_eq!(scaled[..6], doubled);
            assert_eq!(scaled[6..], plain[6..]);
        }
    }

    #[test]
    fn a_token_has_the_same_bits_in_every_batch_and_layout() {
        let table = RopeTable::new(&frequencies(20), 1.0, 1000);
        let x = random_tensor(1, &[700, 4, 40], DType::F32);
        let positions: Vec<u32> = (0..700).rev().collect();
        at_every_level(|| {
            for style in STYLES {
                let all = rope(&x, &table, style, &positions).unwrap();
                let out = rope(&strided(&x), &table, style, &positions).unwrap();
                assert_eq!(bits(&out), bits(&all));
                for (start, len) in [(0, 1), (699, 1), (13, 2), (100, 33)] {
                    let part = x.narrow(0, start, len).unwrap();
                    let part = rope(&part, &table, style, &positions[start..][..len]).unwrap();
                    assert_eq!(bits(&part), bits(&all.narrow(0, start, len).unwrap()));
                }
            }
        });
    }

    #[test]
    fn wrong_arguments_are_named() {
        let table = RopeTable::new(&frequencies(4), 1.0, 10);
        let x = random_tensor(1, &[2, 3, 8], DType::F32);
        let half = RopeStyle::Half;
        assert_error(
            rope(&x, &table, half, &[0, 10]),
            "positions[1]: expected an index below 10, found 10",
        );
        assert_error(rope(&x, &table, half, &[0]), "positions: expected 2 entries, found 1");
        assert_error(
            rope(&x.narrow(2, 0, 7).unwrap(), &table, half, &[0, 1]),
            "x: expected shape [T, H, D >= 8], found [2, 3, 7]",
        );
        assert_error(
            rope(&x.transpose(1, 2).unwrap(), &table, half, &[0, 1]),
            "x: expected shape [T, H, D >= 8], found [2, 8, 3]",
        );
        let square = random_tensor(1, &[2, 8, 8], DType::F32).transpose(1, 2).unwrap();
        assert_error(
            rope(&square, &table, half, &[0, 1]),
            "x: expected rows that are contiguous, found shape [2, 8, 8] with strides [64, 1, 8]",
        );
    }
}
