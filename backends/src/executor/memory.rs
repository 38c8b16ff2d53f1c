//! How much memory the host has left, for the router's metrics.

use std::time::{Duration, Instant};

/// A figure this old is good enough, and reading it anew costs as much as a small step.
const MAX_AGE: Duration = Duration::from_secs(1);

/// The last reading.
#[derive(Debug, Default)]
pub(super) struct FreeMemory {
    last: Option<(Instant, u64)>,
}

impl FreeMemory {
    /// Bytes that can be had without swapping, read at most once a second; 0 where the system does
    /// not say.
    pub(super) fn bytes(&mut self) -> u64 {
        match self.last {
            Some((read_at, bytes)) if read_at.elapsed() < MAX_AGE => bytes,
            _ => {
                let bytes = std::fs::read_to_string("/proc/meminfo")
                    .ok()
                    .and_then(|text| mem_available(&text))
                    .unwrap_or(0);
                self.last = Some((Instant::now(), bytes));
                bytes
            }
        }
    }
}

/// `MemAvailable` of Linux's `/proc/meminfo`, in bytes; the file says KiB, and calls them kB.
fn mem_available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_read_from_the_right_line() {
        let text = "MemTotal:       16307708 kB\nMemFree:  1 kB\nMemAvailable:   12 kB\n";
        assert_eq!(mem_available(text), Some(12 * 1024));
        assert_eq!(mem_available("MemTotal: 5 kB\n"), None);
    }
}
