//! The machine: what it is called, what it can do at most, and whether it was quiet.

use std::time::{Duration, Instant};

use millstream_kernels::peak;

use crate::roofline;

/// What is worth knowing of a processor's flags.
const FLAGS: [&str; 8] = [
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx_vnni",
    "amx_bf16",
    "amx_int8",
    "asimddp",
];

/// The best of some rounds.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Peaks {
    /// Bytes read from memory in a second.
    pub(crate) read: f64,
    /// bf16 multiplications and additions in a second.
    pub(crate) bf16: f64,
    /// The same of bytes.
    pub(crate) int8: f64,
}

impl Peaks {
    /// Measures for a second or two, and keeps what was better than before.
    pub(crate) fn measure(&mut self) {
        let memory = roofline::memory();
        self.read = self.read.max(best(|| {
            roofline::read(&memory);
            roofline::READ_BYTES
        }));
        self.bf16 = self.bf16.max(best(|| roofline::multiply(peak::multiply_bf16)));
        self.int8 = self.int8.max(best(|| roofline::multiply(peak::multiply_i8)));
    }
}

/// What `run` says it did, per second, the best time of half a second.
fn best(mut run: impl FnMut() -> usize) -> f64 {
    run();
    let (begin, mut best) = (Instant::now(), 0f64);
    while begin.elapsed() < Duration::from_millis(500) {
        let start = Instant::now();
        let done = run();
        best = best.max(done as f64 / start.elapsed().as_secs_f64());
    }
    best
}

/// The processor, its cores and memory, in a sentence.
pub(crate) fn describe() -> String {
    let processor = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |names: [&str; 2]| {
        let line = processor.lines().find(|line| names.iter().any(|name| line.starts_with(name)));
        line.and_then(|line| line.split_once(':')).map_or("", |(_, value)| value.trim()).to_owned()
    };
    let flags = field(["flags", "Features"]);
    let flags: Vec<_> = flags.split(' ').filter(|flag| FLAGS.contains(flag)).collect();
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = memory.split_whitespace().nth(1).and_then(|kib| kib.parse::<f64>().ok());
    format!(
        "{}, {} threads, {:.0} GiB of memory ({})",
        field(["model name", "CPU part"]),
        roofline::threads(),
        kib.unwrap_or(0.0) / (1 << 20) as f64,
        flags.join(", ")
    )
}

/// Processes that wanted to run, the mean of the last minute; that of others, if nothing was
/// measured in it.
pub(crate) fn load() -> String {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split(' ').next().unwrap_or("unknown").to_owned()
}
