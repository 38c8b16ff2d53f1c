//! Sampling on the device, as rows ask for it: what the host says of each row, and what it reads of
//! what was drawn.

use crate::grammar::{Constrained, Mask};
use crate::{Batch, BatchRow, RowFailure, SampledLogprobs, SampledToken};
use millstream_kernels::sampling::{Failure, Lists, MAX_TOP, NONE, Outcome, Row, Span, outcome};
use millstream_proto::{MAX_BIASES, MAX_STOP_TOKENS};

/// Words of the lists that a row may have at most.
pub(crate) const MAX_LIST_WORDS: usize = 3 * MAX_BIASES + MAX_STOP_TOKENS;

/// How each row of a batch that samples does so.
pub(crate) fn rows(batch: &Batch<'_>, lists: &mut Lists) -> Vec<Row> {
    lists.clear();
    let mut masks = 0..;
    let sampling = batch.rows.iter().filter(|row| row.sample);
    sampling.map(|row| one(row, lists, &mut masks)).collect()
}

fn one(row: &BatchRow<'_>, lists: &mut Lists, masks: &mut impl Iterator<Item = u32>) -> Row {
    let (sequence, params) = (row.sequence, &row.sequence.sampling);
    let constrained = sequence.grammar.is_some();
    // A mask has the bans in it: only where the grammar stands decides about them.
    let bans = match is_early(row) && !constrained {
        true => lists.tokens(&sequence.stop_token_ids),
        false => Span::default(),
    };
    Row {
        slot: row.slot,
        position: row.end() as u32,
        seed: sequence.seed,
        choice: sequence.choice,
        temperature: params.temperature,
        top_k: u32::try_from(params.top_k).unwrap_or(u32::MAX),
        top_p: params.top_p,
        min_p: params.min_p,
        typical_p: params.typical_p,
        repetition_penalty: params.penalties.repetition,
        presence_penalty: params.penalties.presence,
        frequency_penalty: params.penalties.frequency,
        num_top: params.logprobs.map_or(NONE, num_top),
        biases: lists.biases(&params.bias),
        bans,
        mask: if constrained { masks.next().unwrap_or(NONE) } else { NONE },
    }
}

/// Whether the stop tokens are banned because the text is too short.
fn is_early(row: &BatchRow<'_>) -> bool {
    row.end().saturating_sub(row.sequence.prompt_len) < row.sequence.sampling.min_tokens
}

/// How many of the likeliest tokens the device reports of as many that are asked for.
pub(crate) fn num_top(asked: usize) -> u32 {
    asked.min(MAX_TOP) as u32
}

/// The constrained rows of a batch that sample, each with its number among all that sample.
pub(crate) fn constrained<'a>(
    batch: &'a Batch<'_>,
) -> impl Iterator<Item = (usize, &'a BatchRow<'a>, &'a Constrained)> {
    let sampling = batch.rows.iter().filter(|row| row.sample).enumerate();
    sampling.filter_map(|(index, row)| Some((index, row, row.sequence.grammar.as_ref()?)))
}

/// Writes what may follow in a constrained row, a bit for each token; waits until that is known.
pub(crate) fn write_mask(
    row: &BatchRow<'_>,
    grammar: &Constrained,
    words: &mut [u32],
) -> Result<(), RowFailure> {
    let stop = &row.sequence.stop_token_ids;
    grammar.with_mask(|mask: &Mask| {
        let bans = is_early(row) && !mask.must_end();
        mask.write(words, stop, bans);
    })
}

/// What a row that sampled came to.
pub(crate) fn sampled(
    words: &[u32],
    wants_logprobs: bool,
    is_constrained: bool,
) -> Result<SampledToken, RowFailure> {
    let found = outcome(words).map_err(|failure| explained(failure, is_constrained))?;
    let Outcome { token, logprob, top } = found;
    let logprobs = wants_logprobs.then_some(SampledLogprobs { logprob, top });
    Ok(SampledToken { token, logprobs })
}

/// What a prompt's token was given.
pub(crate) fn scored(words: &[u32]) -> Result<SampledLogprobs, RowFailure> {
    let Outcome { logprob, top, .. } =
        outcome(words).map_err(|failure| explained(failure, false))?;
    Ok(SampledLogprobs { logprob, top })
}

/// In the words of the processor's sampler.
fn explained(failure: Failure, is_constrained: bool) -> RowFailure {
    match failure {
        Failure::NoNumber => RowFailure::numeric("the logits hold NaN or infinity"),
        Failure::NoToken if is_constrained => {
            RowFailure::grammar("no token may follow, and none may end the text")
        }
        Failure::NoToken => RowFailure::numeric("no token can be sampled: every logit is -inf"),
    }
}
