//! Quantised numbers: from a block's bytes to integers with scales, and to numbers.
//!
//! Every type is the same at heart: integers of a few bits, of which a group of 16 or 32 shares a
//! scale, and in some types a minimum: `x = scale * q + minimum`. What differs is where the bits
//! lie. Blocks of 256 (the `_K` types) store scales and minima of their groups in a few bits too,
//! as multiples of one number of 16 bits each.
//!
//! Numbers come out bit for bit as in the reference of the format, which multiplies in this order.

use super::types::TensorType;
use half::{bf16, f16};

/// The numbers of the largest block.
const MAX_BLOCK: usize = 256;
/// The numbers of the smallest group.
const MIN_GROUP: usize = 16;

/// A block with its bits in place.
pub(crate) struct Unpacked {
    /// As many as the type's block has.
    pub(crate) q: [i8; MAX_BLOCK],
    /// One for each group.
    pub(crate) scales: [f32; MAX_BLOCK / MIN_GROUP],
    /// One for each group; without meaning where the type has none.
    pub(crate) minima: [f32; MAX_BLOCK / MIN_GROUP],
}

/// How the integers of a type are shared out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grouping {
    /// Integers that share a scale.
    pub(crate) group: usize,
    /// A group has a minimum.
    pub(crate) has_minimum: bool,
}

impl TensorType {
    /// The groups of a quantised type; `None` for plain numbers.
    pub(crate) fn grouping(self) -> Option<Grouping> {
        let (group, has_minimum) = match self {
            Self::F32 | Self::F16 | Self::Bf16 => return None,
            Self::Q4_0 | Self::Q5_0 | Self::Q8_0 => (32, false),
            Self::Q4_1 | Self::Q5_1 | Self::Q4K | Self::Q5K => (32, true),
            Self::Q3K | Self::Q6K => (16, false),
            Self::Q2K => (16, true),
        };
        Some(Grouping { group, has_minimum })
    }
}

impl Unpacked {
    pub(crate) fn new() -> Self {
        let groups = [0.0; MAX_BLOCK / MIN_GROUP];
        Self { q: [0; MAX_BLOCK], scales: groups, minima: groups }
    }

    /// Unpacks the bytes of one block of a quantised type.
    pub(crate) fn unpack(&mut self, kind: TensorType, bytes: &[u8]) {
        match kind {
            TensorType::F32 | TensorType::F16 | TensorType::Bf16 => {
                unreachable!("plain numbers have no blocks")
            }
            TensorType::Q4_0 => self.nibbles(bytes, 4, false),
            TensorType::Q4_1 => self.nibbles(bytes, 4, true),
            TensorType::Q5_0 => self.nibbles(bytes, 5, false),
            TensorType::Q5_1 => self.nibbles(bytes, 5, true),
            TensorType::Q8_0 => self.bytes(bytes),
            TensorType::Q2K => self.two_bits(bytes),
            TensorType::Q3K => self.three_bits(bytes),
            TensorType::Q4K => self.four_bits(bytes),
            TensorType::Q5K => self.five_bits(bytes),
            TensorType::Q6K => self.six_bits(bytes),
        }
    }

    /// Q4_0, Q4_1, Q5_0, Q5_1: a scale, a minimum if there is one, the fifth bits if there are any,
    /// and nibbles, of which the low ones are the first half. Without a minimum the integers are
    /// about zero.
    fn nibbles(&mut self, bytes: &[u8], bits: u32, has_minimum: bool) {
        let mut fields = Fields(bytes);
        self.scales[0] = fields.half();
        if has_minimum {
            self.minima[0] = fields.half();
        }
        let high = if bits == 5 { u32::from_le_bytes(*fields.next()) } else { 0 };
        let zero = if has_minimum { 0 } else { 1 << (bits - 1) };
        let nibbles: &[u8; 16] = fields.next();
        for (j, byte) in nibbles.iter().enumerate() {
            let bit = |at: usize| ((high >> at & 1) << 4) as i8;
            self.q[j] = ((byte & 15) as i8 | bit(j)) - zero;
            self.q[j + 16] = ((byte >> 4) as i8 | bit(j + 16)) - zero;
        }
    }

    /// Q8_0: a scale and bytes.
    fn bytes(&mut self, bytes: &[u8]) {
        let mut fields = Fields(bytes);
        self.scales[0] = fields.half();
        let bytes: &[u8; 32] = fields.next();
        for (q, byte) in self.q.iter_mut().zip(bytes) {
            *q = *byte as i8;
        }
    }

    /// Q2_K: nibbles of scale and minimum for each 16, two bits of each number, the two multiples.
    fn two_bits(&mut self, bytes: &[u8]) {
        let mut fields = Fields(bytes);
        let (groups, low): (&[u8; 16], &[u8; 64]) = (fields.next(), fields.next());
        let (scale, minimum) = (fields.half(), fields.half());
        for (g, group) in groups.iter().enumerate() {
            self.scales[g] = scale * f32::from(group & 15);
            self.minima[g] = -(minimum * f32::from(group >> 4));
        }
        for (i, q) in self.q.iter_mut().enumerate() {
            *q = crumb(low, i) as i8;
        }
    }

    /// Q3_K: the third bits, two bits of each number, scales of six bits for each 16, the multiple.
    /// A third bit that is not set takes four away.
    fn three_bits(&mut self, bytes: &[u8]) {
        let mut fields = Fields(bytes);
        let (third, low): (&[u8; 32], &[u8; 64]) = (fields.next(), fields.next());
        let packed: &[u8; 12] = fields.next();
        let scale = fields.half();
        for (g, to) in self.scales.iter_mut().enumerate() {
            let four = packed[g % 8] >> (4 * (g / 8)) & 15;
            let two = packed[8 + g % 4] >> (2 * (g / 4)) & 3;
            *to = scale * f32::from((four | two << 4) as i8 - 32);
        }
        for (i, q) in self.q.iter_mut().enumerate() {
            let is_set = third[i % 32] >> (i / 32) & 1;
            *q = crumb(low, i) as i8 - if is_set == 1 { 0 } else { 4 };
        }
    }

    /// Q4_K: the two multiples, scales and minima of six bits for each 32, nibbles.
    fn four_bits(&mut self, bytes: &[u8]) {
        let mut fields = Fields(bytes);
        self.six_bit_scales(&mut fields);
        let low: &[u8; 128] = fields.next();
        for (i, q) in self.q.iter_mut().enumerate() {
            *q = nibble(low, i) as i8;
        }
    }

    /// Q5_K: as Q4_K, with the fifth bits before the nibbles.
    fn five_bits(&mut self, bytes: &[u8]) {
        let mut fields = Fields(bytes);
        self.six_bit_scales(&mut fields);
        let (fifth, low): (&[u8; 32], &[u8; 128]) = (fields.next(), fields.next());
        for (i, q) in self.q.iter_mut().enumerate() {
            let bit = fifth[i % 32] >> (i / 32) & 1;
            *q = (nibble(low, i) | bit << 4) as i8;
        }
    }

    /// What Q4_K and Q5_K begin with. Of the first four groups, scale and minimum have a byte each,
    /// of which the upper two bits belong to the last four, whose lower bits are nibbles.
    fn six_bit_scales(&mut self, fields: &mut Fields<'_>) {
        let (scale, minimum) = (fields.half(), fields.half());
        let packed: &[u8; 12] = fields.next();
        for g in 0..8 {
            let (s, m) = match g {
                0..4 => (packed[g] & 63, packed[g + 4] & 63),
                _ => {
                    let upper = |byte: u8| byte >> 6 << 4;
                    let (low, high) = (packed[g + 4] & 15, packed[g + 4] >> 4);
                    (low | upper(packed[g - 4]), high | upper(packed[g]))
                }
            };
            self.scales[g] = scale * f32::from(s);
            self.minima[g] = -(minimum * f32::from(m));
        }
    }

    /// Q6_K: nibbles, two upper bits of each number, a scale of a byte for each 16, the multiple.
    fn six_bits(&mut self, bytes: &[u8]) {
        let mut fields = Fields(bytes);
        let (low, high): (&[u8; 128], &[u8; 64]) = (fields.next(), fields.next());
        let groups: &[u8; 16] = fields.next();
        let scale = fields.half();
        for (to, group) in self.scales.iter_mut().zip(groups) {
            *to = scale * f32::from(*group as i8);
        }
        for (i, q) in self.q.iter_mut().enumerate() {
            // Of each 128 numbers, the first 64 are low nibbles, the others high ones.
            let byte = low[i / 128 * 64 + i % 64];
            let four = byte >> (4 * (i / 64 % 2)) & 15;
            *q = (four | crumb(high, i) << 4) as i8 - 32;
        }
    }
}

/// Two bits of number `i`: each 32 bytes hold 128 numbers, 32 of them in each two bits.
fn crumb(bytes: &[u8; 64], i: usize) -> u8 {
    bytes[i / 128 * 32 + i % 32] >> (2 * (i / 32 % 4)) & 3
}

/// Four bits of number `i`: each 32 bytes hold 64 numbers, 32 of them in each nibble.
fn nibble(bytes: &[u8; 128], i: usize) -> u8 {
    bytes[i / 64 * 32 + i % 32] >> (4 * (i / 32 % 2)) & 15
}

/// The fields of a block, one after the other.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn next<const N: usize>(&mut self) -> &'a [u8; N] {
        let Some((field, rest)) = self.0.split_first_chunk() else {
            unreachable!("a block has all of its bytes")
        };
        self.0 = rest;
        field
    }

    fn half(&mut self) -> f32 {
        f16::from_le_bytes(*self.next()).to_f32()
    }
}

/// The numbers that `bytes` are, which are whole blocks of a type.
pub(crate) fn dequantize(kind: TensorType, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(bytes.len() / kind.block_bytes() * kind.block_len(), out.len(), "whole blocks");
    let Some(Grouping { group, has_minimum }) = kind.grouping() else {
        return widen(kind, bytes, out);
    };
    let mut block = Unpacked::new();
    let blocks = bytes.chunks_exact(kind.block_bytes());
    for (bytes, out) in blocks.zip(out.chunks_exact_mut(kind.block_len())) {
        block.unpack(kind, bytes);
        for (g, (out, q)) in out.chunks_mut(group).zip(block.q.chunks(group)).enumerate() {
            let (scale, minimum) = (block.scales[g], block.minima[g]);
            for (x, &q) in out.iter_mut().zip(q) {
                let product = scale * f32::from(q);
                // Not `+ 0`, which would turn a negative zero.
                *x = if has_minimum { product + minimum } else { product };
            }
        }
    }
}

fn widen(kind: TensorType, bytes: &[u8], out: &mut [f32]) {
    match kind {
        TensorType::F32 => {
            for (x, bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
                *x = f32::from_le_bytes(*bytes);
            }
        }
        TensorType::F16 => {
            for (x, bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
                *x = f16::from_le_bytes(*bytes).to_f32();
            }
        }
        _ => {
            for (x, bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
                *x = bf16::from_le_bytes(*bytes).to_f32();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use candle_core::quantized::{GgmlDType, QStorage, QTensor};
    use rand::rngs::StdRng;
    use rand::{RngCore, SeedableRng};
    use std::borrow::Cow;

    const KINDS: [(TensorType, GgmlDType); 10] = [
        (TensorType::Q4_0, GgmlDType::Q4_0),
        (TensorType::Q4_1, GgmlDType::Q4_1),
        (TensorType::Q5_0, GgmlDType::Q5_0),
        (TensorType::Q5_1, GgmlDType::Q5_1),
        (TensorType::Q8_0, GgmlDType::Q8_0),
        (TensorType::Q2K, GgmlDType::Q2K),
        (TensorType::Q3K, GgmlDType::Q3K),
        (TensorType::Q4K, GgmlDType::Q4K),
        (TensorType::Q5K, GgmlDType::Q5K),
        (TensorType::Q6K, GgmlDType::Q6K),
    ];

    fn bits(numbers: &[f32]) -> Vec<u32> {
        numbers.iter().map(|x| x.to_bits()).collect()
    }

    /// A block of random bits whose numbers are all finite.
    fn random_block(kind: TensorType, random: &mut StdRng) -> Vec<u8> {
        let mut bytes = vec![0; kind.block_bytes()];
        let mut numbers = vec![0f32; kind.block_len()];
        loop {
            random.fill_bytes(&mut bytes);
            dequantize(kind, &bytes, &mut numbers);
            if numbers.iter().all(|x| x.is_finite()) {
                return bytes;
            }
        }
    }

    /// Random bits are a block of any type, and make every bit count.
    #[test]
    fn blocks_of_random_bits_are_the_numbers_that_candle_makes_of_them() {
        let mut random = StdRng::seed_from_u64(30);
        for (kind, theirs) in KINDS {
            let bytes: Vec<u8> = (0..64).flat_map(|_| random_block(kind, &mut random)).collect();
            let mut ours = vec![0f32; 64 * kind.block_len()];
            dequantize(kind, &bytes, &mut ours);
            let storage = QStorage::from_data(Cow::Borrowed(&bytes), &Device::Cpu, theirs);
            let tensor = QTensor::new(storage.unwrap(), ours.len()).unwrap();
            let want = tensor.dequantize(&Device::Cpu).unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(bits(&ours), bits(&want), "{kind:?}");
        }
    }
}
