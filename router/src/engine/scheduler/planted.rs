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
}
