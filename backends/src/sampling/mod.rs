//! From logits to a token, by filters that each say which tokens stay.
//!
//! In this order:
//! 1. ids from the vocabulary's size on do not exist;
//! 2. `bias` is added;
//! 3. before `min_tokens` output tokens, the stop tokens are banned;
//! 4. the penalties: repetition, then frequency and presence (see `penalties.rs`);
//! 5. the tokens that the sequence's grammar does not allow are banned (see below);
//! 6. temperature 0 takes the likeliest token, the smallest id among equals; otherwise the logits
//!    are divided by the temperature, and of the tokens that are left
//! 7. `top_k` keeps the k likeliest: exactly k, the smaller ids among equals (Transformers and vLLM
//!    keep all that equal the k-th);
//! 8. `top_p` keeps the smallest set of likeliest tokens whose mass is at least p of what `top_k`
//!    left, at least one token;
//! 9. `min_p` keeps those at least min_p times as likely as the likeliest;
//! 10. `typical_p` keeps the smallest set of most typical tokens whose mass is at least p of what
//!     the others left, at least one token (see `typical.rs`).
//!
//! The order is that of Transformers' generation (`_get_logits_processor` in generation/utils.py:
//! sequence bias, repetition penalty, temperature, top-k, top-p, min-p, typical-p) and, as far as
//! it has these, of vLLM (v1/sample/sampler.py: bias and min_tokens, then the penalties, then the
//! temperature), whose `min_p` comes before `top_k`: that differs only in the mass that `top_p` is
//! a share of. TGI, which has no bias and no min-p, has the same order.
//!
//! A grammar allows the stop tokens where the text is complete. Where nothing else may follow, they
//! are not banned by `min_tokens`: an answer that is whole ends.
//!
//! The draw is the inverse of the cumulative distribution over the tokens kept, *in the order of
//! their ids*, at 64 random bits that are a function of (seed, choice, position). The order of ids
//! costs no sort, and when rounding swaps two neighbours in likelihood no interval moves. Weights
//! are whole numbers (see `weights.rs`), so sums are exact: a token depends on its own logits,
//! parameters and text so far, and on nothing else. No path sorts the vocabulary.

mod params;
mod penalties;
mod philox;
mod rank;
#[cfg(test)]
mod tests;
mod typical;
mod weights;

pub use params::SamplingParams;
pub use penalties::{Penalties, TokenCounts};

use crate::grammar::Mask;
use crate::model::{RowFailure, SampledLogprobs, SampledToken};
use crate::slots::Sequence;
use typical::Typicality;

/// Draws tokens from logits. It holds scratch memory only: a token depends on nothing but the
/// arguments of [`Sampler::sample`].
#[derive(Debug)]
pub struct Sampler {
    vocab_size: usize,
    /// What the logits were before bias, bans and penalties, in the order of the changes.
    changed: Vec<(u32, f32)>,
    /// What they were before the grammar's bans, where log-probabilities are asked for.
    unmasked: Vec<f32>,
    /// Rank keys of the most likely tokens.
    top: Vec<u64>,
    /// (rank key, weight) of the tokens among which `top_p` or `typical_p` cuts.
    candidates: Vec<(u64, u64)>,
    /// Weight of each token, by id; 0 for those that were filtered out.
    weights: Vec<u64>,
}

impl Sampler {
    /// A sampler of ids below `vocab_size`, which is at least 1 and below 2^24.
    pub fn new(vocab_size: usize) -> Self {
        assert!((1..1 << 24).contains(&vocab_size), "a vocabulary of {vocab_size} tokens");
        Sampler {
            vocab_size,
            changed: Vec::new(),
            unmasked: Vec::new(),
            top: Vec::new(),
            candidates: Vec::new(),
            weights: Vec::new(),
        }
    }

    /// Draws the token at `position`, the absolute position it will take in `sequence`.
    ///
    /// `logits` is `[V]` with `V >= vocab_size`, and is used as scratch: ids from `vocab_size` on
    /// are neither sampled nor counted in any sum. A logit of -inf is a token that cannot follow;
    /// NaN, +inf, or -inf for every token that may be sampled, is a numeric failure.
    pub fn sample(
        &mut self,
        logits: &mut [f32],
        sequence: &Sequence,
        position: usize,
    ) -> Result<SampledToken, RowFailure> {
        let params = &sequence.sampling;
        let logits = &mut logits[..self.vocab_size];
        check_numbers(logits)?;
        for (token, bias) in &params.bias {
            self.change(logits, *token, |logit| (logit + bias).min(f32::MAX));
        }
        let grammar = sequence.grammar.as_ref();
        let is_early = position.saturating_sub(sequence.prompt_len) < params.min_tokens;
        if is_early && !grammar.map_or(Ok(false), |grammar| grammar.with_mask(Mask::must_end))? {
            for stop in &sequence.stop_token_ids {
                self.change(logits, *stop, |_| f32::NEG_INFINITY);
            }
        }
        debug_assert_eq!(
            sequence.counts,
            TokenCounts::of(&params.penalties, sequence.prompt_len, &sequence.tokens),
            "the counts are those of the sequence's tokens"
        );
        for (token, num_outputs) in sequence.counts.iter() {
            self.change(logits, token, |logit| params.penalties.apply(logit, num_outputs));
        }
        self.unmasked.clear();
        if let Some(grammar) = grammar {
            if params.logprobs.is_some() {
                self.unmasked.extend_from_slice(logits);
            }
            grammar.with_mask(|mask| mask.apply(logits, &sequence.stop_token_ids))?;
        }
        let max = largest(logits);
        if max == f32::NEG_INFINITY {
            self.changed.clear();
            return Err(match grammar {
                Some(_) => RowFailure::grammar("no token may follow, and none may end the text"),
                None => RowFailure::numeric("no token can be sampled: every logit is -inf"),
            });
        }
        let token = if params.temperature == 0.0 {
            logits.iter().position(|logit| *logit == max).expect("one is the largest") as u32
        } else {
            self.filter(logits, max, params);
            self.draw(philox::draw(sequence.seed, sequence.choice, position as u64))
        };
        if !self.unmasked.is_empty() {
            logits.copy_from_slice(&self.unmasked);
        }
        for (token, logit) in self.changed.drain(..).rev() {
            logits[token as usize] = logit;
        }
        let logprobs = params.logprobs.map(|num_top| self.logprobs(logits, token, num_top));
        Ok(SampledToken { token, logprobs })
    }

    /// Log-probabilities of a token that was not sampled, but is known to follow, and of the
    /// `num_top` most likely ones. `logits` are as for [`Sampler::sample`], and NaN or infinity is
    /// a numeric failure as there.
    pub fn score(
        &mut self,
        logits: &[f32],
        token: u32,
        num_top: usize,
    ) -> Result<SampledLogprobs, RowFailure> {
        let logits = &logits[..self.vocab_size];
        check_numbers(logits)?;
        Ok(self.logprobs(logits, token, num_top))
    }

    /// Changes a logit so that it can be undone. Ids beyond the vocabulary are nobody's.
    fn change(&mut self, logits: &mut [f32], token: u32, changed: impl Fn(f32) -> f32) {
        if let Some(logit) = logits.get_mut(token as usize) {
            self.changed.push((token, *logit));
            *logit = changed(*logit);
        }
    }

    /// Fills `weights` with the weights of the tokens that the filters keep. `max` is the largest
    /// logit; the temperature is above 0.
    fn filter(&mut self, logits: &[f32], max: f32, params: &SamplingParams) {
        let beta = 1.0 / f64::from(params.temperature);
        let weight = |logit: f32| weights::weight(logit, max, beta);
        self.weights.clear();
        if (1..logits.len()).contains(&params.top_k) {
            rank::select_top(logits, params.top_k, &mut self.top);
            self.weights.resize(logits.len(), 0);
            for key in &self.top {
                let id = rank::id(*key) as usize;
                self.weights[id] = weight(logits[id]);
            }
        } else {
            self.weights.extend(logits.iter().map(|logit| weight(*logit)));
        }
        if params.top_p < 1.0 {
            let cut = self.top_p_cut(logits, params.top_p);
            for (id, (weight, logit)) in self.weights.iter_mut().zip(logits).enumerate() {
                if rank::key(*logit, id as u32) < cut {
                    *weight = 0;
                }
            }
        }
        if params.min_p > 0.0 {
            let least = (f64::from(params.min_p) * weights::ONE as f64).ceil() as u64;
            for weight in self.weights.iter_mut().filter(|weight| **weight < least) {
                *weight = 0;
            }
        }
        if params.typical_p < 1.0 {
            let ranks = Typicality::of(logits, &self.weights, max, beta);
            let cut = self.typical_cut(logits, &ranks, params.typical_p);
            for (id, (weight, logit)) in self.weights.iter_mut().zip(logits).enumerate() {
                if *weight > 0 && ranks.key(*logit, id as u32) < cut {
                    *weight = 0;
                }
            }
        }
    }

    /// The key of the least typical token that `typical_p` keeps of those in `weights`.
    fn typical_cut(&mut self, logits: &[f32], ranks: &Typicality, typical_p: f32) -> u64 {
        let (_, mass) = self.mass(typical_p);
        self.candidates.clear();
        for (id, (weight, logit)) in self.weights.iter().zip(logits).enumerate() {
            if *weight > 0 {
                self.candidates.push((ranks.key(*logit, id as u32), *weight));
            }
        }
        rank::cut_by_mass(&mut self.candidates, mass)
    }

    /// What all of `weights` weigh, and the least that a share of it weighs, which is at least 1.
    fn mass(&self, share: f32) -> (u64, u64) {
        let total: u64 = self.weights.iter().sum();
        (total, ((f64::from(share) * total as f64).ceil() as u64).clamp(1, total))
    }

    /// The rank key of the least likely token that `top_p` keeps of those in `weights`.
    fn top_p_cut(&mut self, logits: &[f32], top_p: f32) -> u64 {
        let (total, mass) = self.mass(top_p);
        // The tokens lighter than (total - mass) / V together weigh less than total - mass. So the
        // others, all likelier, weigh more than the mass, and the cut lies among these few.
        let light = (total - mass) / self.weights.len() as u64;
        self.candidates.clear();
        for (id, (weight, logit)) in self.weights.iter().zip(logits).enumerate() {
            if *weight > 0 && *weight >= light {
                self.candidates.push((rank::key(*logit, id as u32), *weight));
            }
        }
        rank::cut_by_mass(&mut self.candidates, mass)
    }

    /// The token at share `random / 2^64` of the total weight, in the order of ids.
    fn draw(&self, random: u64) -> u32 {
        let total: u64 = self.weights.iter().sum();
        let target = ((u128::from(random) * u128::from(total)) >> 64) as u64;
        let mut sum = 0;
        let drawn = self.weights.iter().position(|weight| {
            sum += weight;
            sum > target
        });
        drawn.expect("one token always stays, so the total is above the target") as u32
    }

    /// Log-probabilities of a token and of the most likely ones, over the whole vocabulary.
    fn logprobs(&mut self, logits: &[f32], token: u32, num_top: usize) -> SampledLogprobs {
        let max = largest(logits);
        let sum: f64 =
            logits.iter().map(|logit| weights::exp(f64::from(*logit) - f64::from(max))).sum();
        let log_sum = f64::from(max) + sum.ln();
        let logprob = |token: u32| (f64::from(logits[token as usize]) - log_sum) as f32;
        rank::select_top(logits, num_top, &mut self.top);
        self.top.sort_unstable_by(|a, b| b.cmp(a));
        let top = self.top.iter().map(|key| (rank::id(*key), logprob(rank::id(*key)))).collect();
        SampledLogprobs { logprob: logprob(token), top }
    }
}

/// Refuses NaN and +inf.
fn check_numbers(logits: &[f32]) -> Result<(), RowFailure> {
    // The comparison fails for both.
    match logits.iter().fold(true, |fine, logit| fine & (*logit < f32::INFINITY)) {
        true => Ok(()),
        false => Err(RowFailure::numeric("the logits hold NaN or infinity")),
    }
}

/// The largest of numbers none of which is NaN; -inf of none.
fn largest(logits: &[f32]) -> f32 {
    /// Independent maxima, which the compiler keeps in vector registers.
    const LANES: usize = 16;
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = logits.chunks_exact(LANES);
    let rest = chunks.remainder().iter().copied().fold(f32::NEG_INFINITY, larger);
    for chunk in chunks {
        for (lane, logit) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, *logit);
        }
    }
    lanes.into_iter().fold(rest, larger)
}
