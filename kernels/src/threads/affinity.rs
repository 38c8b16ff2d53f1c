//! Which processor a thread runs on.
#![allow(unsafe_code)] // Calls of the system.

use std::io;

/// Keeps the calling thread on one of the processors that the process may use: number `index` of
/// them, counted around.
#[cfg(target_os = "linux")]
pub(super) fn pin(index: usize) -> io::Result<()> {
    // SAFETY: a set of processors is plain bits, and no bits are a valid set.
    let mut allowed: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    let size = size_of_val(&allowed);
    // SAFETY: 0 is the calling thread; the set is as large as said, and borrowed for writing.
    if unsafe { libc::sched_getaffinity(0, size, &mut allowed) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: every number is below the size of the set.
    let is_allowed = |cpu: &usize| unsafe { libc::CPU_ISSET(*cpu, &allowed) };
    let cpus: Vec<usize> = (0..libc::CPU_SETSIZE as usize).filter(is_allowed).collect();
    let Some(&cpu) = cpus.get(index % cpus.len().max(1)) else { return Ok(()) };
    // SAFETY: as above.
    let mut one: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `cpu` is below the size of the set, and the set is as large as said.
    let refused = unsafe {
        libc::CPU_SET(cpu, &mut one);
        libc::sched_setaffinity(0, size, &one)
    };
    if refused == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Elsewhere the system decides.
#[cfg(not(target_os = "linux"))]
pub(super) fn pin(_: usize) -> io::Result<()> {
    Ok(())
}
