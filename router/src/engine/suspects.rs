//! Which sequence keeps killing workers.
//!
//! What was in flight when a worker died is suspect for its next 16 tokens. After a second death
//! suspects run one at a time beside the rest, so that a third death names one of them. Moves that
//! were planned are no deaths and never come here.
//!
//! This module knows deaths and counts tokens. It does not know sequences or workers.

/// Tokens after which a suspect is cleared.
const SUSPECT_TOKENS: usize = 16;

/// Deaths in a row at which the one that ran alone is guilty.
const GUILTY_DEATHS: u32 = 3;

/// Deaths that nobody survives, however far apart.
const MAX_DEATHS: u32 = 6;

/// What one sequence is suspected of.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Suspicion {
    /// Deaths since it was last cleared.
    recent_deaths: u32,
    /// Tokens to go until it is cleared; 0 when it is no suspect.
    tokens_left: usize,
    /// All deaths it was in flight at.
    deaths: u32,
}

impl Suspicion {
    /// A worker died with this sequence in flight. Returns whether the sequence must end.
    pub(super) fn witness_death(&mut self) -> bool {
        self.recent_deaths += 1;
        self.deaths += 1;
        self.tokens_left = SUSPECT_TOKENS;
        self.recent_deaths >= GUILTY_DEATHS || self.deaths >= MAX_DEATHS
    }

    /// The sequence received tokens and nobody died.
    pub(super) fn receive(&mut self, num_tokens: usize) {
        if self.tokens_left > 0 {
            self.tokens_left = self.tokens_left.saturating_sub(num_tokens);
            if self.tokens_left == 0 {
                self.recent_deaths = 0;
            }
        }
    }

    /// Whether no other such sequence may be in flight beside this one.
    pub(super) fn runs_alone(&self) -> bool {
        self.recent_deaths + 1 >= GUILTY_DEATHS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suspect_runs_alone_after_two_deaths_and_is_guilty_after_three() {
        let mut suspicion = Suspicion::default();
        assert!(!suspicion.witness_death() && !suspicion.runs_alone());
        assert!(!suspicion.witness_death() && suspicion.runs_alone());
        assert!(suspicion.witness_death());
    }

    #[test]
    fn sixteen_tokens_clear_a_suspect_but_six_deaths_end_it_in_any_case() {
        let mut suspicion = Suspicion::default();
        for death in 1..=5 {
            assert!(!suspicion.witness_death(), "death {death}");
            suspicion.receive(15);
            suspicion.receive(1);
            assert!(!suspicion.runs_alone());
        }
        assert!(suspicion.witness_death());
    }

    #[test]
    fn fifteen_tokens_do_not_clear_a_suspect() {
        let mut suspicion = Suspicion::default();
        suspicion.witness_death();
        suspicion.receive(15);
        suspicion.witness_death();
        assert!(suspicion.runs_alone());
    }
}
