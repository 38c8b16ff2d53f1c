//! Products with bf16 weights in AMX: sixteen rows of x, times 32 elements of sixteen columns, in
//! one instruction.
//!
//! What `tdpbf16ps` adds to a sum (Intel's manual): the products of the even and those of the odd
//! elements of its 32 k are each summed in f32 from zero on, by rising k; the two are added, and
//! that to the sum. Subnormals are zero. So a sum depends on its row and its column, and on
//! nothing else that the instruction computes.
//!
//! Linux gives a process the tile registers when it asks for them.
#![allow(unsafe_code)] // Assembly: the intrinsics are not stable.

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count};
use std::sync::OnceLock;

use half::bf16;

use super::pairs::{Line, Sums, TILE_PAIRS};
use super::x86_bf16::Avx512Bf16;

/// Rows of x that one call of [`Amx::multiply`] can take: two tiles of them.
pub(crate) const MAX_ROWS: usize = 32;

/// The proof that the processor has AMX for bf16, that the process may use it, and what
/// [`Avx512Bf16`] proves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Amx(Avx512Bf16);

impl Amx {
    pub(super) fn detect() -> Option<Self> {
        static FOUND: OnceLock<Option<Amx>> = OnceLock::new();
        *FOUND.get_or_init(|| {
            let dots = Avx512Bf16::detect()?;
            (has_amx() && is_permitted()).then_some(Self(dots))
        })
    }

    /// What rounds x.
    pub(crate) fn dots(self) -> Avx512Bf16 {
        self.0
    }

    /// Adds to the sums of each row of x its products with the columns of `panel`. `x` holds
    /// `sums.len()` rows, `stride` pairs apart.
    ///
    /// Meanwhile, for more than sixteen rows, `next` is brought into the second-level cache, at most
    /// as many lines as the panel has.
    pub(crate) fn multiply(
        self,
        (x, stride): (&[[bf16; 2]], usize),
        panel: &[Line],
        next: &[Line],
        sums: &mut [Sums],
    ) {
        let (rows, pairs) = (sums.len(), panel.len());
        assert!((1..=MAX_ROWS).contains(&rows), "1 to {MAX_ROWS} rows, not {rows}");
        assert!(pairs.is_multiple_of(TILE_PAIRS), "whole tiles of pairs, not {pairs}");
        assert!((rows - 1) * stride + pairs <= x.len(), "rows of x outside of it");
        if pairs == 0 {
            return;
        }
        // SAFETY: `self` comes from `detect`. Each of the rows of x has the pairs, by the third
        // assertion; the panel has them by its type, and the sums as many rows as are configured.
        unsafe {
            let x = (x.as_ptr(), stride);
            match (rows <= 16, 2 * next.len().div_ceil(pairs / TILE_PAIRS)) {
                (true, _) => one_tile(x, panel, sums),
                (false, 0) => two_tiles::<0>(x, panel, next, sums),
                (false, 1..=4) => two_tiles::<4>(x, panel, next, sums),
                (false, 5..=16) => two_tiles::<16>(x, panel, next, sums),
                (false, _) => two_tiles::<32>(x, panel, next, sums),
            }
        }
    }
}

impl Amx {
    /// Four independent products of whole tiles `rounds` times, all of them zero: what the units
    /// can do at most. Gives the number of multiplications and additions.
    pub(crate) fn spin(self, rounds: usize) -> usize {
        if rounds == 0 {
            return 0;
        }
        // SAFETY: `self` comes from `detect`. Tiles are zero from their configuration on, and no
        // memory is touched.
        unsafe {
            asm!(
                "ldtilecfg [{config}]",
                "2:",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "dec {rounds}",
                "jnz 2b",
                "tilerelease",
                config = in(reg) &Config::new([16, 16]),
                rounds = inout(reg) rounds => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
        4 * rounds * 2 * 16 * 16 * 2 * TILE_PAIRS
    }
}

/// `palette_id`, `start_row`, reserved to byte 16; bytes of a row of each tile (u16), to byte 48;
/// rows of each tile.
#[repr(C, align(64))]
struct Config([u8; 64]);

impl Config {
    /// Tiles 0 and 1 hold the sums of `rows[0]` rows, 2 and 3 of `rows[1]`; 4 and 5 those rows of
    /// x; 6 and 7 pairs of the panel. A row has 64 bytes in each.
    fn new(rows: [usize; 2]) -> Self {
        let mut config = [0; 64];
        config[0] = 1;
        let used = [rows[0], rows[0], rows[1], rows[1], rows[0], rows[1], TILE_PAIRS, TILE_PAIRS];
        for (tile, rows) in used.into_iter().enumerate().filter(|(_, rows)| *rows > 0) {
            config[16 + 2 * tile] = 64;
            config[48 + tile] = rows as u8;
        }
        Self(config)
    }
}

/// At most sixteen rows.
///
/// # Safety
/// The processor has AMX for bf16 and the process may use it. `panel.len()` is a multiple of
/// [`TILE_PAIRS`] and not 0, and that many pairs can be read at `x` and at each further of the
/// `sums.len()` rows, `stride` pairs on.
unsafe fn one_tile((x, stride): (*const [bf16; 2], usize), panel: &[Line], sums: &mut [Sums]) {
    let config = Config::new([sums.len(), 0]);
    // SAFETY: the caller's. The loop reads 64 bytes of each row of x and 16 rows of the panel a
    // turn; no other code uses the tiles between the first line and the last.
    unsafe {
        asm!(
            "ldtilecfg [{config}]",
            "tileloadd tmm0, [{sums} + {bytes}]",
            "tileloadd tmm1, [{sums} + {bytes} + 64]",
            "2:",
            "tileloadd tmm4, [{x} + {stride}]",
            "tileloadd tmm6, [{panel} + {bytes}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{panel} + {bytes} + 64]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            // The lines of the next turn: alone, the loads of tiles leave memory idle.
            ".rept 32",
            "prefetcht1 [{next}]",
            "add {next}, 64",
            ".endr",
            "add {x}, 64",
            "add {panel}, 2048",
            "dec {turns}",
            "jnz 2b",
            "tilestored [{sums} + {bytes}], tmm0",
            "tilestored [{sums} + {bytes} + 64], tmm1",
            "tilerelease",
            config = in(reg) &config,
            sums = in(reg) sums.as_mut_ptr(),
            bytes = in(reg) size_of::<Sums>(),
            x = inout(reg) x => _,
            stride = in(reg) stride * size_of::<[bf16; 2]>(),
            panel = inout(reg) panel.as_ptr() => _,
            next = inout(reg) panel.as_ptr().wrapping_add(TILE_PAIRS) => _,
            turns = inout(reg) panel.len() / TILE_PAIRS => _,
            out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// More than sixteen rows, at most 32.
///
/// # Safety
/// That of [`one_tile`].
unsafe fn two_tiles<const LINES: usize>(
    (x, stride): (*const [bf16; 2], usize),
    panel: &[Line],
    next: &[Line],
    sums: &mut [Sums],
) {
    let config = Config::new([16, sums.len() - 16]);
    let (first, second) = sums.split_at_mut(16);
    // SAFETY: that of `one_tile`; the second tile of x begins sixteen rows on, and there are more.
    unsafe {
        asm!(
            "ldtilecfg [{config}]",
            "tileloadd tmm0, [{first} + {bytes}]",
            "tileloadd tmm1, [{first} + {bytes} + 64]",
            "tileloadd tmm2, [{second} + {bytes}]",
            "tileloadd tmm3, [{second} + {bytes} + 64]",
            "2:",
            "tileloadd tmm4, [{x0} + {stride}]",
            "tileloadd tmm6, [{panel} + {bytes}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{panel} + {bytes} + 64]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{x1} + {stride}]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            ".rept {lines}",
            "prefetcht1 [{next}]",
            "add {next}, 64",
            ".endr",
            "add {x0}, 64",
            "add {x1}, 64",
            "add {panel}, 2048",
            "dec {turns}",
            "jnz 2b",
            "tilestored [{first} + {bytes}], tmm0",
            "tilestored [{first} + {bytes} + 64], tmm1",
            "tilestored [{second} + {bytes}], tmm2",
            "tilestored [{second} + {bytes} + 64], tmm3",
            "tilerelease",
            config = in(reg) &config,
            first = in(reg) first.as_mut_ptr(),
            second = in(reg) second.as_mut_ptr(),
            bytes = in(reg) size_of::<Sums>(),
            x0 = inout(reg) x => _,
            x1 = inout(reg) x.add(16 * stride) => _,
            stride = in(reg) stride * size_of::<[bf16; 2]>(),
            panel = inout(reg) panel.as_ptr() => _,
            next = inout(reg) next.as_ptr() => _,
            lines = const LINES,
            turns = inout(reg) panel.len() / TILE_PAIRS => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// Leaf 7: AMX-BF16 and AMX-TILE.
fn has_amx() -> bool {
    #[allow(unused_unsafe)] // Safe calls in newer compilers.
    // SAFETY: every processor of this architecture has the instruction; leaf 7 is read if it is.
    let edx = unsafe { if __cpuid(0).eax < 7 { 0 } else { __cpuid_count(7, 0).edx } };
    edx & (1 << 22) != 0 && edx & (1 << 24) != 0
}

/// Asks the system for the tile registers, for every thread of the process.
#[cfg(target_os = "linux")]
fn is_permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_ulong = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_ulong = 18;
    // SAFETY: this call of the system reads and writes no memory of the process.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn is_permitted() -> bool {
    false
}
