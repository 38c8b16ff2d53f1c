//! Which of several texts is the best: the one whose tokens were the likeliest, on average.

use super::chunks::WholeChoice;
use crate::generate::{FinishKind, StopCause};

/// The same choices, the best first.
pub(crate) fn best_first(mut choices: Vec<WholeChoice>) -> Vec<WholeChoice> {
    choices.sort_by(|a, b| mean_logprob(b).total_cmp(&mean_logprob(a)));
    choices
}

/// The best `num_returned` of every `num_generated` choices, those of one prompt.
pub(crate) fn best_of_each(
    choices: Vec<WholeChoice>,
    num_generated: usize,
    num_returned: usize,
) -> Vec<WholeChoice> {
    if num_generated == num_returned {
        return choices;
    }
    let mut left = choices.into_iter();
    let mut best = Vec::new();
    while left.len() > 0 {
        let choices = left.by_ref().take(num_generated).collect();
        best.extend(best_first(choices).into_iter().take(num_returned));
    }
    best
}

/// Counts the token that ended the text too. Below everything where no token was reported.
fn mean_logprob(choice: &WholeChoice) -> f64 {
    let ending = match choice.finish.as_ref().map(|finish| &finish.kind) {
        Some(FinishKind::Stop(StopCause::Token { logprobs: Some(logprobs), .. })) => {
            Some(logprobs.logprob)
        }
        _ => None,
    };
    let all = choice.tokens.iter().filter_map(|token| token.logprob).chain(ending);
    let (count, sum) = all.fold((0_u32, 0.0), |(n, sum), one| (n + 1, sum + f64::from(one)));
    if count == 0 { f64::NEG_INFINITY } else { sum / f64::from(count) }
}
