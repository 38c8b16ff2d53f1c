//! Thousands of broken files, the same in every run: whatever the bytes are, reading a header and
//! making files of it does not panic, and what is accepted agrees with itself and with the file.

use super::header::{self, Header, Value};
use super::keys::Keys;
use super::tests::tiny;
use super::tokenizer::Tokenizer;
use super::{architecture, config};
use crate::candle::weights::allocated;
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};

/// Broken files per test.
const NUM_CASES: usize = 6000;

/// What reading may allocate, in bytes, for a file of this length: a key of a dozen bytes becomes
/// a string and its place in a map, and an error repeats the file's words.
fn allowance(file_len: usize) -> usize {
    16 * file_len + 4096
}

fn below(random: &mut StdRng, end: usize) -> usize {
    random.random_range(0..end.max(1))
}

/// One change of the kinds that disks, downloads and malice make.
fn mutate(bytes: &mut Vec<u8>, random: &mut StdRng) {
    let at = below(random, bytes.len());
    match random.random_range(0..6) {
        0 if !bytes.is_empty() => bytes[at] ^= 1 << random.random_range(0..8),
        1 => bytes.truncate(at),
        2 => {
            // A piece of the bytes is lost.
            let end = (at + below(random, 40)).min(bytes.len());
            bytes.drain(at..end);
        }
        3 => {
            // A piece is said again somewhere else.
            let end = (at + below(random, 80)).min(bytes.len());
            let piece = bytes[at..end].to_vec();
            let to = below(random, bytes.len());
            bytes.splice(to..to, piece);
        }
        4 if bytes.len() > 8 => {
            // A number at which arithmetic goes wrong, where a length may stand.
            let numbers = [0, 1, 255, u64::from(u32::MAX), 1 << 32, i64::MAX as u64, u64::MAX];
            let number = numbers[below(random, numbers.len())].to_le_bytes();
            let at = below(random, bytes.len() - 8);
            bytes[at..at + 8].copy_from_slice(&number);
        }
        _ => {
            let noise: Vec<u8> = (0..below(random, 9)).map(|_| random.next_u32() as u8).collect();
            bytes.splice(at..at, noise);
        }
    }
}

/// The rules of the format, said a second time and in another way.
fn check_accepted(file: &[u8], header: &Header) {
    let mut covered = vec![false; file.len()];
    for (name, tensor) in &header.tensors {
        let elements = tensor.shape.iter().product::<usize>();
        let bytes = elements / tensor.kind.block_len() * tensor.kind.block_bytes();
        assert_eq!(tensor.range.len(), bytes, "{name}");
        for byte in &mut covered[tensor.range.clone()] {
            assert!(!*byte, "{name} shares a byte");
            *byte = true;
        }
    }
    for (key, value) in &header.metadata {
        match value {
            Value::String(range) => assert!(file.get(range.clone()).is_some(), "{key}"),
            Value::Array(array) => assert_eq!(array.values(file).count(), array.len, "{key}"),
            _ => {}
        }
    }
}

/// Reads a broken file, and makes files of it; true: the header was accepted.
fn check(file: &[u8]) -> bool {
    let (result, allocated) = allocated(|| header::read(file));
    assert!(allocated <= allowance(file.len()), "{allocated} bytes for {}", file.len());
    let header = match result {
        Ok(header) => header,
        Err(reason) => {
            assert!(reason.len() <= 4 * file.len() + 200, "{reason}");
            return false;
        }
    };
    check_accepted(file, &header);
    let keys = Keys::new(&header, file);
    if let Ok(architecture) = architecture(&keys) {
        let _ = config::config(&keys, architecture);
    }
    if let Ok(tokenizer) = Tokenizer::read(&keys) {
        let _ = (tokenizer.json(), tokenizer.config(), tokenizer.eos_token_ids());
    }
    true
}

#[test]
fn a_broken_file_is_refused_or_agrees_with_itself() {
    let whole = tiny().bytes();
    assert!(check(&whole));
    let mut random = StdRng::seed_from_u64(40);
    let mut num_accepted = 0;
    for _ in 0..NUM_CASES {
        let mut broken = whole.clone();
        for _ in 0..random.random_range(1..4) {
            mutate(&mut broken, &mut random);
        }
        num_accepted += usize::from(check(&broken));
    }
    // A flipped bit in a value, or in the data, leaves a valid file: both outcomes are tested.
    assert!((300..NUM_CASES / 2).contains(&num_accepted), "{num_accepted}");
}

#[test]
fn counts_that_the_file_cannot_hold_allocate_nothing() {
    for (tensors, keys) in [(u64::MAX, 0), (0, u64::MAX), (1 << 40, 1 << 40)] {
        let mut file = b"GGUF\x03\0\0\0".to_vec();
        file.extend(tensors.to_le_bytes());
        file.extend(keys.to_le_bytes());
        assert!(!check(&file));
    }
}
