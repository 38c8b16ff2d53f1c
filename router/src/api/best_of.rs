//! Which of several texts is the best: the one whose tokens were the likeliest, on average.

use super::chunks::WholeChoice;
use crate::generate::{FinishKind, StopCause};

/// The same choices, the best first.
pub(crate) fn best_first(mut choices: Vec<WholeChoice>) -> Vec<WholeChoice> {
    choices.sort_by(|a, b| mean_logprob(b).total_cmp(&mean_logprob(a)));
    choices
}

/// Counts the token that ended the text too. Below everything where no token was reported.
fn mean_logprob(choice: &WholeChoice) -> f64 {
    let ending = match choice.finish.as_ref().map(|finish| &finish.kind) {
        Some(FinishKind::Stop(StopCause::Token { logprobs: Some(logprobs), .. })) => {
            Some(logprobs.logprob)
        }
        _ => None,
    };
    let all = choice.tokens.iter().map(|token| token.logprob).chain(ending);
    let (count, sum) = all.fold((0_u32, 0.0), |(n, sum), one| (n + 1, sum + f64::from(one)));
    if count == 0 { f64::NEG_INFINITY } else { sum / f64::from(count) }
}
