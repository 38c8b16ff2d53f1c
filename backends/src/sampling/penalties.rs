//! Penalties for tokens that are already there, and the counts that they need.
//!
//! - `repetition` (N. Keskar et al., "CTRL", 2019, as in Transformers and vLLM): the logit of a
//!   token in the prompt or the output is divided by it if it is above 0, multiplied otherwise;
//! - `frequency` and `presence` (OpenAI, as in vLLM): the logit of a token that stands `n > 0`
//!   times in the output, the prompt left aside, loses `n * frequency + presence`.
//!
//! Repetition comes first, as in vLLM. The arithmetic is f64, rounded once.
//!
//! Counting anew for every token would cost a pass over the text each time. So a sequence carries
//! its [`TokenCounts`]: one entry per *distinct* token that matters, 8 bytes, ascending. Adding
//! a sequence sorts its tokens once: 5 ms for 128,000 of them. A token drawn costs a binary search
//! and, if it is a new one, a move of the entries behind it: 2 microseconds where there are 20,000.
//! Penalising touches one logit per entry, of a vocabulary that every draw reads as a whole: with
//! 4,000 entries, no difference that shows. A sequence without penalties counts nothing.
//!
//! The counts are a function of (`prompt_len`, tokens): a sequence that was preempted and added
//! again, or moved to another worker, has the same.

/// What a token that is already there loses. The default takes nothing off.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Penalties {
    /// Divides logits above 0 and multiplies others, of tokens in prompt or output. Finite, above
    /// 0; 1 is off, below 1 rewards.
    pub repetition: f32,
    /// Taken off once for tokens in the output. In `-2..=2`; 0 is off.
    pub presence: f32,
    /// Taken off for every time that a token stands in the output. In `-2..=2`; 0 is off.
    pub frequency: f32,
}

impl Default for Penalties {
    fn default() -> Self {
        Penalties { repetition: 1.0, presence: 0.0, frequency: 0.0 }
    }
}

impl Penalties {
    /// Whether no token loses anything.
    pub fn is_off(&self) -> bool {
        *self == Penalties::default()
    }

    /// The logit of a token that is already there, `num_outputs` times in the output. What is
    /// finite stays finite, and -inf stays.
    pub(super) fn apply(&self, logit: f32, num_outputs: u32) -> f32 {
        if logit == f32::NEG_INFINITY {
            return logit;
        }
        let (logit, repetition) = (f64::from(logit), f64::from(self.repetition));
        let mut changed = if logit > 0.0 { logit / repetition } else { logit * repetition };
        if num_outputs > 0 {
            changed -= f64::from(num_outputs) * f64::from(self.frequency);
            changed -= f64::from(self.presence);
        }
        changed.clamp(f64::from(f32::MIN), f64::from(f32::MAX)) as f32
    }
}

/// Which tokens a sequence holds, and how often in its output; only what its penalties ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenCounts {
    /// (token, times in the output), one per token, ascending.
    entries: Vec<(u32, u32)>,
}

impl TokenCounts {
    /// The counts of a sequence whose first `prompt_len` tokens are the prompt.
    pub fn of(penalties: &Penalties, prompt_len: usize, tokens: &[u32]) -> Self {
        if penalties.is_off() {
            return TokenCounts::default();
        }
        let (prompt, output) = tokens.split_at(prompt_len.min(tokens.len()));
        // The prompt matters to the repetition penalty alone.
        let prompt = if penalties.repetition == 1.0 { &[] } else { prompt };
        let mut entries: Vec<(u32, u32)> = prompt.iter().map(|token| (*token, 0)).collect();
        entries.extend(output.iter().map(|token| (*token, 1)));
        entries.sort_unstable_by_key(|(token, _)| *token);
        entries.dedup_by(|(token, count), (kept, kept_count)| {
            let is_same = token == kept;
            *kept_count += if is_same { *count } else { 0 };
            is_same
        });
        TokenCounts { entries }
    }

    /// Counts one more token of the output. `penalties` are those of [`of`](Self::of).
    pub fn push(&mut self, penalties: &Penalties, token: u32) {
        if penalties.is_off() {
            return;
        }
        match self.entries.binary_search_by_key(&token, |(counted, _)| *counted) {
            Ok(index) => self.entries[index].1 += 1,
            Err(index) => self.entries.insert(index, (token, 1)),
        }
    }

    /// (token, times in the output) of each token counted, ascending.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, u32)> {
        self.entries.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    const REPETITION: Penalties = Penalties { repetition: 1.3, presence: 0.0, frequency: 0.0 };
    const FREQUENCY: Penalties = Penalties { repetition: 1.0, presence: 0.0, frequency: 0.5 };

    #[test]
    fn counts_that_grew_token_by_token_are_those_of_the_whole_from_any_place_on() {
        let mut rng = StdRng::seed_from_u64(1);
        for penalties in [REPETITION, FREQUENCY, Penalties::default()] {
            for len in [1, 2, 50, 700] {
                let tokens: Vec<u32> = (0..len).map(|_| rng.random_range(0..90)).collect();
                let prompt_len = rng.random_range(1..=len);
                let whole = TokenCounts::of(&penalties, prompt_len, &tokens);
                // A resumption begins at any place: prompt and what had been drawn by then.
                for start in prompt_len..=len {
                    let mut grown = TokenCounts::of(&penalties, prompt_len, &tokens[..start]);
                    tokens[start..].iter().for_each(|token| grown.push(&penalties, *token));
                    assert_eq!(grown, whole, "{prompt_len} of {len} from {start}");
                }
            }
        }
    }

    #[test]
    fn only_what_the_penalties_ask_for_is_counted() {
        // Prompt 7 3 7, output 5 3 5.
        let tokens = [7, 3, 7, 5, 3, 5];
        for (penalties, expected) in [
            (REPETITION, &[(3, 1), (5, 2), (7, 0)][..]),
            (FREQUENCY, &[(3, 1), (5, 2)]),
            (Penalties { presence: -1.0, ..Penalties::default() }, &[(3, 1), (5, 2)]),
            (Penalties::default(), &[]),
        ] {
            let counts = TokenCounts::of(&penalties, 3, &tokens);
            assert_eq!(counts.iter().collect::<Vec<_>>(), expected, "{penalties:?}");
        }
    }

    #[test]
    fn a_penalty_is_the_published_formula() {
        let all = Penalties { repetition: 2.0, presence: 0.25, frequency: 0.5 };
        for (logit, num_outputs, expected) in [
            // In the prompt alone: repetition, nothing else.
            (3.0, 0, 1.5),
            (-3.0, 0, -6.0),
            (0.0, 0, 0.0),
            (3.0, 1, 1.5 - 0.75),
            (-3.0, 4, -6.0 - 2.25),
            (f32::NEG_INFINITY, 4, f32::NEG_INFINITY),
            (f32::MIN, 1, f32::MIN),
        ] {
            assert_eq!(all.apply(logit, num_outputs), expected, "{logit} {num_outputs}");
        }
        let reward = Penalties { repetition: f32::MIN_POSITIVE, presence: -2.0, frequency: -2.0 };
        assert_eq!(reward.apply(f32::MAX, 9), f32::MAX);
        assert_eq!(reward.apply(f32::NEG_INFINITY, 9), f32::NEG_INFINITY);
    }
}
