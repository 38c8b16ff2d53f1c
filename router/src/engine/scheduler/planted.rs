//! Bugs that the simulation must catch. They exist in tests only.

/// One deliberate violation of an invariant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PlantedBug {
    /// A prompt's blocks enter the index before any step computes them.
    UncomputedBlockIndexed,
    /// A slot is reused, but the worker is not told that it was released.
    ReleaseLost,
    /// A token that arrives after a preemption is passed on and not kept, so it is sampled again.
    LateTokenDoubled,
    /// Blocks that a step computes can be hit by sequences admitted in the same step.
    HitWithinStep,
    /// An output is taken for the present epoch's whatever epoch it names.
    OldEpochBelieved,
    /// The first block that a window needs is freed with those behind it.
    FreedTooEarly,
    /// Blocks are freed behind rows in flight, as if each of them would be run.
    FreedOnPlanned,
    /// A prefix hit lacks the first block of its window.
    HoleInWindow,
}

impl PlantedBug {
    /// Whether tables contradict the windows: then the texts must tell, not the check of tables.
    pub(crate) fn is_of_windows(self) -> bool {
        matches!(self, Self::FreedTooEarly | Self::FreedOnPlanned | Self::HoleInWindow)
    }
}
