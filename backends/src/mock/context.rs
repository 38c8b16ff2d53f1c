//! What the mock sees at a position: of each cache group, the fingerprints within its window.
//!
//! The cell of a token is a hash of the token, its position and everything that the position sees
//! of the earlier cells, in all groups. So it depends on its whole prefix, as the keys and values
//! of a deep layer do, although a group with a window is read no further back than that. The state
//! after a token is a hash of what it sees, its own cells counted in.
//!
//! This module knows fingerprints and positions. It does not know blocks or where cells are kept.

/// Before anything was seen.
const EMPTY: u64 = 0x6d69_6c6c_7374_7265;

/// What a walk over the positions of one sequence sees, from its first position on.
pub(super) struct Context {
    groups: Vec<Sight>,
    /// The position to compute next.
    next: usize,
}

/// What is seen of one group.
struct Sight {
    window: usize,
    /// Position of the first cell that the walk has read.
    first: usize,
    /// Everything read, also what the window has passed meanwhile.
    cells: Vec<u64>,
    /// Of the visible cells, each hashed with its position; any order gives the same.
    sum: u64,
}

impl Context {
    /// The context of the position `start`. `read(group, position)` yields the cells of earlier
    /// positions; it is asked for exactly those that `start` sees.
    pub(super) fn new(
        windows: impl Iterator<Item = Option<u32>>,
        start: usize,
        mut read: impl FnMut(usize, usize) -> u64,
    ) -> Self {
        let sight = |(group, window): (usize, Option<u32>)| {
            let window = window.map_or(usize::MAX, |window| window as usize);
            let first = (start + 1).saturating_sub(window);
            let mut sight = Sight { window, first, cells: Vec::new(), sum: 0 };
            (first..start).for_each(|position| sight.see(read(group, position)));
            sight
        };
        Self { groups: windows.enumerate().map(sight).collect(), next: start }
    }

    /// Computes the next position, which holds `token`.
    pub(super) fn compute(&mut self, token: u32) {
        self.groups.iter_mut().for_each(|sight| sight.pass(self.next));
        let before = mix(self.state(), u64::from(token) << 32 | self.next as u64);
        for (group, sight) in self.groups.iter_mut().enumerate() {
            sight.see(mix(before, group as u64));
        }
        self.next += 1;
    }

    /// The cells of the position computed last, of each group.
    pub(super) fn cells(&self) -> impl Iterator<Item = u64> {
        self.groups.iter().map(|sight| *sight.cells.last().expect("it was just computed"))
    }

    /// The fingerprint of what the position computed last sees.
    pub(super) fn state(&self) -> u64 {
        self.groups.iter().fold(EMPTY, |state, sight| mix(state, sight.sum))
    }
}

impl Sight {
    fn see(&mut self, cell: u64) {
        let position = self.first + self.cells.len();
        self.sum = self.sum.wrapping_add(mix(cell, position as u64));
        self.cells.push(cell);
    }

    /// Forgets the cell that `position` is the first not to see.
    fn pass(&mut self, position: usize) {
        let Some(passed) = position.checked_sub(self.window) else { return };
        if passed >= self.first {
            let cell = mix(self.cells[passed - self.first], passed as u64);
            self.sum = self.sum.wrapping_sub(cell);
        }
    }
}

/// What a trusting mock knows of a context.
pub(super) fn last_token(token: u32) -> u64 {
    mix(EMPTY, u64::from(token))
}

/// Combines two values so that either, and their order, changes the result: the finaliser of
/// SplitMix64 (Steele, Lea and Flood, 2014) over their combination.
pub(super) fn mix(a: u64, b: u64) -> u64 {
    let mut z = a.rotate_left(23).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ b;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
