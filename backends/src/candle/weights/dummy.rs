//! Random weights, for trying a model's shape without its checkpoint.
//!
//! Element `i` of a tensor is a function of the tensor's name and `i`, so the weights are the same
//! in every run and on every machine, in whatever order and on however many threads they are made.
//!
//! Billions of them have to be made in seconds: a tensor draws a pool of numbers, and its pieces
//! are copied from places in the pool that are drawn too.

use super::element::{Element, convert};
use super::names;
use candle_core::DType;
use half::{bf16, f16};
use millstream_kernels::threads;

/// Half the width of the uniform distribution: about what models are initialised with.
const SPREAD: f32 = 0.035;
/// Numbers drawn per tensor.
const POOL: usize = 1 << 16;
/// Elements copied together; a fraction of the pool, so that pieces differ.
const PIECE: usize = 1 << 10;
/// Numbers that a thread draws at a time.
const SHARE: usize = 1 << 13;

/// The values of one tensor.
#[derive(Debug)]
pub(crate) struct Pool {
    seed: u64,
    /// Stored as `dtype`.
    bytes: Vec<u8>,
    dtype: DType,
}

impl Pool {
    /// The values of tensor `name`: around one for a norm, around zero otherwise.
    pub(crate) fn new(name: &str, dtype: DType) -> Self {
        let seed = name.bytes().fold(0, |hash, byte| splitmix(hash ^ u64::from(byte)));
        let center = if names::is_norm(name) { 1.0 } else { 0.0 };
        let mut values = vec![0.0; POOL];
        threads::for_chunks(&mut values, SHARE, |share, values| {
            for (i, value) in (share * SHARE..).zip(values) {
                let bits = splitmix(seed.wrapping_add(i as u64)) >> 40;
                *value = center + SPREAD * (bits as f32 / (1 << 23) as f32 - 1.0);
            }
        });
        let values = values.into_iter();
        let bytes = match dtype {
            DType::F32 => values.flat_map(f32::to_le_bytes).collect(),
            DType::F16 => values.flat_map(|x| f16::from_f32(x).to_le_bytes()).collect(),
            _ => values.flat_map(|x| bf16::from_f32(x).to_le_bytes()).collect(),
        };
        Self { seed, bytes, dtype }
    }

    /// Fills `to` with the elements from `first` on.
    pub(crate) fn read<T: Element>(&self, first: usize, to: &mut [T]) {
        let size = self.dtype.size_in_bytes();
        let (mut at, mut rest) = (first, to);
        while !rest.is_empty() {
            let within = at % PIECE;
            let (piece, after) = rest.split_at_mut((PIECE - within).min(rest.len()));
            let draw = splitmix(self.seed ^ (at / PIECE) as u64) as usize;
            let place = draw % (POOL - PIECE + 1) + within;
            let bytes = &self.bytes[place * size..(place + piece.len()) * size];
            convert(bytes, self.dtype, piece);
            at += piece.len();
            rest = after;
        }
    }
}

fn splitmix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(name: &str, n: usize) -> Vec<f32> {
        let mut out = vec![0f32; n];
        Pool::new(name, DType::F32).read(0, &mut out);
        out
    }

    #[test]
    fn weights_depend_on_the_name_and_on_nothing_else() {
        let weights = values("a.weight", 100_000);
        assert_eq!(weights, values("a.weight", 100_000));
        assert_eq!(weights[..70_000], values("a.weight", 70_000));
        assert_ne!(weights, values("b.weight", 100_000));
        let mut middle = vec![0f32; 5000];
        Pool::new("a.weight", DType::F32).read(12_345, &mut middle);
        assert_eq!(middle, weights[12_345..17_345]);
    }

    #[test]
    fn weights_spread_around_zero_and_norms_around_one() {
        for (name, center) in [("q_proj.weight", 0.0), ("input_layernorm.weight", 1.0)] {
            let weights = values(name, 100_000);
            let n = weights.len() as f32;
            let mean = weights.iter().sum::<f32>() / n;
            let std = (weights.iter().map(|w| (w - mean).powi(2)).sum::<f32>() / n).sqrt();
            assert!((mean - center).abs() < 1e-3, "{name}: mean {mean}");
            assert!((std - 0.0202).abs() < 1e-3, "{name}: std {std}");
        }
    }
}
