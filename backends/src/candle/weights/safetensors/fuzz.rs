//! Thousands of broken files, the same in every run: whatever the bytes are, reading a header
//! does not panic, allocates no more than a small multiple of the file, and what it accepts
//! agrees with itself and with the file.

use super::header::{self, Header};
use super::parse_index;
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// Broken files per test.
const NUM_CASES: usize = 6000;

/// What reading may allocate, in bytes, for a file of this length: a tensor of a few dozen bytes
/// of JSON becomes a name, a shape and its place in a map, and an error repeats the file's words.
fn allowance(file_len: usize) -> usize {
    16 * file_len + 4096
}

/// The system's allocator, which counts what the current thread asks of it.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

thread_local! {
    static ALLOCATED: Cell<usize> = const { Cell::new(0) };
}

#[allow(unsafe_code, reason = "only an allocator sees what is allocated; this one is for tests")]
// SAFETY: every call goes to the system's allocator as it came. Counting neither allocates nor
// panics: the cell is const-initialised, needs no drop, and the sum wraps.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATED.try_with(|sum| sum.set(sum.get().wrapping_add(layout.size())));
        // SAFETY: the caller's promises are those that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: `pointer` came from `System` with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// All that `task` allocates on this thread, in bytes, freed or not.
pub(crate) fn allocated<T>(task: impl FnOnce() -> T) -> (T, usize) {
    let before = ALLOCATED.get();
    let result = task();
    (result, ALLOCATED.get().wrapping_sub(before))
}

const HEADER: &str = r#"{"__metadata__":{"format":"pt"},
"model.embed.weight":{"dtype":"BF16","shape":[4,3],"data_offsets":[0,24]},
"model.norm.weight":{"dtype":"F32","shape":[3],"data_offsets":[24,36]},
"blocks":{"dtype":"U8","shape":[2,2,2],"data_offsets":[36,44]},
"empty":{"dtype":"I64","shape":[0,9],"data_offsets":[44,44]},
"scalar":{"dtype":"F16","shape":[],"data_offsets":[44,46]}}  "#;

/// Numbers at which arithmetic goes wrong.
const NUMBERS: [&str; 12] = [
    "0",
    "1",
    "-1",
    "44",
    "46",
    "255",
    "4294967296",
    "9223372036854775807",
    "18446744073709551615",
    "18446744073709551616",
    "1e99",
    "0.5",
];

fn file(header: &[u8]) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    file.extend(0..46_u8);
    file
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
        4 => replace_number(bytes, at, random),
        _ => {
            let noise = (0..below(random, 9)).map(|_| random.next_u32() as u8);
            let noise: Vec<u8> = noise.collect();
            bytes.splice(at..at, noise);
        }
    }
}

/// Writes another number over the first one behind `at`.
fn replace_number(bytes: &mut Vec<u8>, at: usize, random: &mut StdRng) {
    let is_digit = |byte: &u8| byte.is_ascii_digit();
    let Some(start) = bytes[at..].iter().position(is_digit).map(|offset| at + offset) else {
        return;
    };
    let len = bytes[start..].iter().take_while(|byte| is_digit(byte)).count();
    let number = NUMBERS[below(random, NUMBERS.len())];
    bytes.splice(start..start + len, number.bytes());
}

/// The rules of the format, said a second time and in another way.
fn check_accepted(file: &[u8], header: &Header) {
    let mut covered = vec![false; file.len()];
    let header_len = u64::from_le_bytes(*file.first_chunk().unwrap()) as usize;
    covered[..8 + header_len].fill(true);
    for (name, tensor) in header {
        let bits = tensor.shape.iter().product::<usize>() * tensor.dtype.bitsize();
        assert_eq!(tensor.range.len() * 8, bits, "{name}");
        for byte in &mut covered[tensor.range.clone()] {
            assert!(!*byte, "{name} shares a byte");
            *byte = true;
        }
    }
    assert!(covered.iter().all(|byte| *byte), "bytes belong to no tensor");
}

/// Reads a broken file; true: it was accepted.
fn check(file: &[u8]) -> bool {
    let (result, allocated) = allocated(|| header::read(file));
    assert!(allocated <= allowance(file.len()), "{allocated} bytes for {}", file.len());
    match result {
        Ok(header) => {
            check_accepted(file, &header);
            true
        }
        Err(reason) => {
            assert!(reason.len() <= 4 * file.len() + 200, "{reason}");
            false
        }
    }
}

#[test]
fn a_broken_file_is_refused_or_agrees_with_itself() {
    let whole = file(HEADER.as_bytes());
    assert!(check(&whole));
    let mut random = StdRng::seed_from_u64(20);
    let mut num_accepted = 0;
    for _ in 0..NUM_CASES {
        let mut broken = whole.clone();
        for _ in 0..random.random_range(1..4) {
            mutate(&mut broken, &mut random);
        }
        num_accepted += usize::from(check(&broken));
    }
    // A flipped bit in the data, or in a name, leaves a valid file: both outcomes are tested.
    assert!((100..NUM_CASES / 2).contains(&num_accepted), "{num_accepted}");
}

#[test]
fn a_broken_header_of_the_right_length_is_refused_or_agrees_with_itself() {
    let mut random = StdRng::seed_from_u64(21);
    let mut num_accepted = 0;
    for _ in 0..NUM_CASES {
        let mut header = HEADER.as_bytes().to_vec();
        for _ in 0..random.random_range(1..4) {
            mutate(&mut header, &mut random);
        }
        num_accepted += usize::from(check(&file(&header)));
    }
    assert!((100..NUM_CASES / 2).contains(&num_accepted), "{num_accepted}");
}

#[test]
fn a_dense_header_allocates_no_more_than_its_share() {
    let dimensions = ["0"; 32].join(",");
    let tensor =
        |i: usize| format!(r#""{i}":{{"dtype":"U8","shape":[{dimensions}],"data_offsets":[0,0]}}"#);
    let many: Vec<String> = (0..2000).map(tensor).collect();
    let unknown = format!(r#"{{"a":{{"x":[{}]}}}}"#, ["[]"; 20_000].join(","));
    let escaped = format!(r#"{{"{}":1}}"#, r"\u0041".repeat(10_000));
    let long_shape = format!(r#"{{"a":{{"shape":[{}]}}}}"#, ["1"; 50_000].join(","));
    for header in [format!("{{{}}}", many.join(",")), unknown, escaped, long_shape] {
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.as_bytes());
        check(&file);
    }
}

#[test]
fn a_broken_index_is_refused_or_names_files_beside_it() {
    let index = br#"{"metadata":{"total_size":46},"weight_map":{"a":"m-1.safetensors",
"b":"m-2.safetensors","c":"m-2.safetensors"}}"#;
    let mut random = StdRng::seed_from_u64(22);
    for _ in 0..NUM_CASES {
        let mut broken = index.to_vec();
        for _ in 0..random.random_range(1..4) {
            mutate(&mut broken, &mut random);
        }
        for file in
            parse_index(&broken).into_iter().flat_map(std::collections::BTreeMap::into_values)
        {
            assert!(file.ends_with(".safetensors") && !file.contains(['/', '\\']), "{file}");
        }
    }
}
