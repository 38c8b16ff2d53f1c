//! Random weights, for trying a model's shape without its checkpoint.
//!
//! Element `i` of a tensor is a function of the tensor's name and `i`, so the weights are the same
//! in every run and on every machine, in whatever order and on however many threads they are made.
//!
//! Billions of them have to be made in seconds: a tensor draws a pool of numbers, and its pieces
//! are copied from places in the pool that are drawn too.

use super::element::Element;
use super::names;
use millstream_kernels::threads;

/// Half the width of the uniform distribution: about what models are initialised with.
const SPREAD: f32 = 0.035;
/// Numbers drawn per tensor.
const POOL: usize = 1 << 16;
/// Elements copied together; a fraction of the pool, so that pieces differ.
const PIECE: usize = 1 << 10;
/// Pieces that a thread takes at a time.
const SHARE: usize = 64;

/// Fills `out` with the values of tensor `name`: around one for a norm, around zero otherwise.
pub(crate) fn fill<T: Element>(name: &str, out: &mut [T]) {
    let seed = name.bytes().fold(0, |hash, byte| splitmix(hash ^ u64::from(byte)));
    let pool: Vec<T> = pool(seed, if names::is_norm(name) { 1.0 } else { 0.0 });
    threads::for_chunks(out, SHARE * PIECE, |share, out| {
        for (index, piece) in (share * SHARE..).zip(out.chunks_mut(PIECE)) {
            let place = splitmix(seed ^ index as u64) as usize % (POOL - PIECE + 1);
            piece.copy_from_slice(&pool[place..place + piece.len()]);
        }
    });
}

fn pool<T: Element>(seed: u64, center: f32) -> Vec<T> {
    let uniform = |i: u64| {
        let bits = splitmix(seed.wrapping_add(i)) >> 40;
        bits as f32 / (1 << 23) as f32 - 1.0
    };
    (0..POOL as u64).map(|i| T::from_f32(center + SPREAD * uniform(i))).collect()
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
        fill(name, &mut out);
        out
    }

    #[test]
    fn weights_depend_on_the_name_and_on_nothing_else() {
        let weights = values("a.weight", 100_000);
        assert_eq!(weights, values("a.weight", 100_000));
        assert_eq!(weights[..70_000], values("a.weight", 70_000));
        assert_ne!(weights, values("b.weight", 100_000));
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
