//! What a step brings back: tokens, ends, and rows that were not run.
//!
//! Each row is read against the plan that asked for it. A row of a sequence that has ended is an
//! overrun and is dropped; a row of a run that was preempted still brings its tokens, but pays no
//! debt, because that run's debts went with its blocks.

use std::time::Duration;

use millstream_proto::row_error::Kind;
use millstream_proto::{Logprobs, RowError, StepOutput};

#[cfg(test)]
use super::planted::PlantedBug;
use super::{Plan, PlannedRow, Scheduler, Trusted};
use crate::engine::sequence::Sequence;
use crate::engine::{Event, FinishReason, SequenceId, TokenLogprobs};

/// One row's part of an output.
struct RowOutput<'a> {
    tokens: &'a [u32],
    /// Index of the first token within the output.
    first_token: usize,
    /// Of the prompt.
    scored: Vec<TokenLogprobs>,
    error: Option<&'a RowError>,
}

/// Walks over packed log-probabilities, in the order of their indices.
struct LogprobsReader<'a> {
    packed: Option<&'a Logprobs>,
    entry: usize,
    top: usize,
}

impl Scheduler {
    /// Reads the output of the oldest step in flight.
    ///
    /// An output that contradicts its plan is refused in words, and nothing has changed: the
    /// worker cannot be believed any more.
    pub fn update(&mut self, output: &StepOutput, now: Duration) -> Result<Vec<Event>, String> {
        let plan = self.in_flight.front().ok_or("an output came while no step was in flight")?;
        check_shape(plan, output)?;
        let plan = self.in_flight.pop_front().expect("there is a plan");
        let Plan { sent_at, rows, trusted, .. } = plan;
        self.step_time = now.saturating_sub(sent_at.max(self.last_output_at));
        self.last_output_at = now;
        let mut events = std::mem::take(&mut self.pending);
        events.reserve(rows.len());
        let mut logprobs = LogprobsReader::new(output.logprobs.as_ref());
        let mut of_prompts = LogprobsReader::new(output.prompt_logprobs.as_ref());
        let mut first_token = 0;
        let num_live = self.sequences.len();
        for (place, (row, &count)) in rows.iter().zip(&output.row_count).enumerate() {
            let tokens = &output.tokens[first_token..first_token + count as usize];
            let error = output.row_error.iter().find(|error| error.row as usize == place);
            if error.is_some() || (row.samples && tokens.is_empty()) {
                self.distrust(row.id, &trusted);
            }
            let scored = std::iter::from_fn(|| of_prompts.read(place)).collect();
            let row_output = RowOutput { tokens, first_token, scored, error };
            events.extend(self.read_row(row, row_output, &mut logprobs));
            first_token += count as usize;
        }
        if self.sequences.len() < num_live {
            self.forget_ended();
        }
        self.spare_rows = rows;
        Ok(events)
    }

    /// Applies one row's output; the news it makes, if any.
    fn read_row(
        &mut self,
        row: &PlannedRow,
        output: RowOutput<'_>,
        logprobs: &mut LogprobsReader<'_>,
    ) -> Option<Event> {
        let live = self.sequences.find_mut(row.index, row.id).filter(|_| !row.is_void);
        let Some(sequence) = live else {
            self.stats.overruns += 1;
            return None;
        };
        sequence.num_in_flight -= 1;
        let is_this_run = row.run == sequence.run;
        if is_this_run {
            sequence.num_unconfirmed -= row.len;
        }
        if let Some(error) = output.error {
            return Some(self.fail(row, error));
        }
        let scored = sequence.score(row.first_scored, output.scored);
        if !row.samples {
            let report = |sequence: &mut Sequence| sequence.event(Vec::new(), None);
            let event = (!scored.is_empty()).then(|| report(sequence))?;
            return Some(Event { prompt_logprobs: scored, ..event });
        }
        let count = output.tokens.len();
        if is_this_run {
            sequence.num_promised -= 1;
            sequence.num_computed -= if count == 0 { row.len } else { 1 - count };
        }
        if count == 0 {
            if is_this_run {
                let first = row.start / self.limits.block_size as usize;
                sequence.num_indexed = sequence.num_indexed.min(first);
            }
            return None;
        }
        let (mut tokens, mut reported, mut finish) = (Vec::with_capacity(count), Vec::new(), None);
        for (i, &token) in output.tokens.iter().enumerate() {
            if sequence.request.sampling.logprobs {
                reported.extend(logprobs.read(output.first_token + i));
            }
            tokens.push(token);
            finish = sequence.receive(token);
            if finish.is_some() {
                break;
            }
            #[cfg(test)]
            if self.planted == Some(PlantedBug::LateTokenDoubled) && !is_this_run {
                sequence.tokens.pop();
            }
        }
        self.stats.generated_tokens += tokens.len() as u64;
        if sequence.request.sampling.logprobs && reported.len() != tokens.len() {
            let reason = "the worker did not report the log-probabilities asked for".to_owned();
            finish = Some(FinishReason::Error(reason));
        }
        if sequence.is_scored() {
            let reason = "the worker did not report the prompt's log-probabilities".to_owned();
            finish = Some(FinishReason::Error(reason));
        }
        let mut event = sequence.event(tokens, finish);
        event.logprobs = reported;
        event.prompt_logprobs = scored;
        self.settle(row, event.finish.is_some());
        Some(event)
    }

    /// After new tokens: indexes the blocks they complete, and ends the sequence if it is over.
    fn settle(&mut self, row: &PlannedRow, is_over: bool) {
        let sequence = self.sequences.get_mut(row.index);
        if is_over {
            // A row in flight may have been meant to compute the last token. The worker, which
            // knows the stop tokens, does not run it.
            sequence.num_computed = sequence.num_confirmed();
            sequence.num_unconfirmed = 0;
        }
        let known = sequence.tokens.len().min(sequence.num_computed);
        if sequence.num_indexed < known / self.limits.block_size as usize {
            let next = self.in_flight.front_mut().map(|plan| &mut plan.trusted);
            let mut trusted = next.map(std::mem::take).unwrap_or_default();
            self.index_blocks(row.index, &mut trusted);
            if let Some(plan) = self.in_flight.front_mut() {
                plan.trusted = trusted;
            }
        }
        if is_over {
            self.end(row.index);
        }
    }

    /// The sequence of a broken row ends alone. None of its blocks is reused: what broke may have
    /// been in any of them.
    fn fail(&mut self, row: &PlannedRow, error: &RowError) -> Event {
        self.forget_blocks(row.index);
        let reason = match error.kind() {
            Kind::Numeric => "the model produced no usable numbers for this request",
            Kind::Grammar => "no token satisfies the grammar of this request",
            Kind::Protocol | Kind::Unspecified => "the worker could not run this request",
        };
        let reason = match error.message.as_str() {
            "" => reason.to_owned(),
            message => format!("{reason}: {message}"),
        };
        let mut sequence = self.end(row.index);
        sequence.event(Vec::new(), Some(FinishReason::Error(reason)))
    }

    /// A row was not computed as planned: the blocks it was to complete leave the index, even when
    /// its sequence is gone, and whoever has hit them since begins again. That can only be
    /// sequences admitted by the one step that was sent meanwhile; their rows there read what was
    /// never written, so they count for nothing.
    fn distrust(&mut self, id: SequenceId, trusted: &[Trusted]) {
        for found in trusted.iter().filter(|found| found.id == id) {
            // The block may have been handed out again, and hold something else.
            let blocks = &mut self.groups[found.group].blocks;
            let holds = blocks.indexed_content(found.block).map(|(key, _)| key);
            if holds == Some(found.key) {
                blocks.unindex(found.block);
            }
            self.restart_sharers(found);
        }
    }

    fn restart_sharers(&mut self, found: &Trusted) {
        let Trusted { id: owner, group, place, block, key } = *found;
        let block_size = self.limits.block_size as usize;
        for index in self.running.clone() {
            if !self.sequences.is_live(index) {
                // Another row of this output has ended it.
                continue;
            }
            let sequence = self.sequences.get_mut(index);
            let holds = sequence.tables[group].get(place) == Some(block);
            let is_known = sequence.tokens.len() / block_size > place;
            if sequence.id == owner || !holds || !is_known || sequence.key(place, block_size) != key
            {
                continue;
            }
            for later in &mut self.in_flight {
                for row in later.rows.iter_mut().filter(|row| row.id == sequence.id) {
                    row.is_void = true;
                }
            }
            sequence.num_in_flight = 0;
            for (group, table) in self.groups.iter_mut().zip(&sequence.tables) {
                for (_, block) in table.enumerate().filter(|(at, _)| *at >= place) {
                    group.blocks.unindex(block);
                }
            }
            self.stats.preemptions += 1;
            self.stop_running(index);
            self.running.retain(|&other| other != index);
            self.wait_again(index);
        }
    }
}

impl<'a> LogprobsReader<'a> {
    fn new(packed: Option<&'a Logprobs>) -> Self {
        LogprobsReader { packed, entry: 0, top: 0 }
    }

    /// The next entry of an index, or `None` if it has no more. Indices are asked for in order.
    fn read(&mut self, index: usize) -> Option<TokenLogprobs> {
        let packed = self.packed?;
        while *packed.index.get(self.entry)? < index as u32 {
            self.top += packed.top_count[self.entry] as usize;
            self.entry += 1;
        }
        if packed.index[self.entry] != index as u32 {
            return None;
        }
        let tops = self.top..self.top + packed.top_count[self.entry] as usize;
        let top = packed.top_token[tops.clone()].iter().copied();
        let top = top.zip(packed.top_logprob[tops.clone()].iter().copied()).collect();
        let logprob = packed.logprob[self.entry];
        self.top = tops.end;
        self.entry += 1;
        Some(TokenLogprobs { logprob, top })
    }
}

/// Refuses an output whose columns do not fit each other or the plan.
fn check_shape(plan: &Plan, output: &StepOutput) -> Result<(), String> {
    let (num_rows, num_counts) = (plan.rows.len(), output.row_count.len());
    if num_counts != num_rows {
        return Err(format!("a step of {num_rows} rows was answered with {num_counts}"));
    }
    let too_many = |(row, &count): (&PlannedRow, &u32)| count > u32::from(row.samples);
    if let Some(row) = plan.rows.iter().zip(&output.row_count).position(too_many) {
        return Err(format!("row {row} returned more tokens than it was to sample"));
    }
    let total: usize = output.row_count.iter().map(|&count| count as usize).sum();
    if total != output.tokens.len() {
        let found = output.tokens.len();
        return Err(format!("the rows returned {total} tokens, the output holds {found}"));
    }
    if let Some(error) = output.row_error.iter().find(|error| error.row as usize >= num_rows) {
        return Err(format!("row {} of {num_rows} failed", error.row));
    }
    check_columns(output.logprobs.as_ref())?;
    check_columns(output.prompt_logprobs.as_ref())
}

/// Refuses log-probabilities whose columns do not fit each other.
fn check_columns(packed: Option<&Logprobs>) -> Result<(), String> {
    let Some(packed) = packed else { return Ok(()) };
    let entries = packed.index.len();
    let tops: usize = packed.top_count.iter().map(|&count| count as usize).sum();
    let lengths = [packed.logprob.len(), packed.top_count.len()];
    let top_lengths = [packed.top_token.len(), packed.top_logprob.len()];
    if lengths != [entries; 2] || top_lengths != [tops; 2] {
        return Err("the columns of the log-probabilities differ in length".to_owned());
    }
    Ok(())
}
