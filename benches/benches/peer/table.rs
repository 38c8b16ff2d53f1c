//! What was measured on both sides, round after round, as a table.

use std::fmt;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum What {
    /// Tokens per second of the engine, all sequences together.
    Decode {
        /// Sequences at once.
        batch: usize,
        /// Tokens that each has before.
        context: usize,
    },
    /// Tokens per second of the engine.
    Prefill {
        /// Of the prompt.
        tokens: usize,
    },
    /// Generated tokens per second over HTTP.
    Served {
        /// At once.
        streams: u32,
    },
    /// Milliseconds to the first token over HTTP; half are sooner.
    FirstToken {
        /// At once.
        streams: u32,
    },
    /// Milliseconds between two tokens of a stream over HTTP.
    BetweenTokens {
        /// At once.
        streams: u32,
        /// So many of a hundred are at most this.
        percentile: u32,
    },
}

/// One measurement.
pub(crate) type Sample = (What, f64);

impl What {
    fn is_time(self) -> bool {
        matches!(self, What::FirstToken { .. } | What::BetweenTokens { .. })
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            What::Decode { batch, context } if *context < 1000 => {
                write!(f, "engine: decode, batch {batch}, tokens/s")
            }
            What::Decode { batch, context } => {
                write!(f, "engine: decode, batch {batch} after {context} tokens each, tokens/s")
            }
            What::Prefill { tokens } => write!(f, "engine: prefill of {tokens} tokens, tokens/s"),
            What::Served { streams } => write!(f, "server: {streams} streams, tokens/s"),
            What::FirstToken { streams } => {
                write!(f, "server: {streams} streams, first token p50, ms")
            }
            What::BetweenTokens { streams, percentile } => {
                write!(f, "server: {streams} streams, between tokens p{percentile}, ms")
            }
        }
    }
}

/// Who was measured.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Side {
    Ours,
    Peer,
}

/// What two engines reach with weights in comparable formats.
#[derive(Debug)]
pub(crate) struct Table {
    title: String,
    lines: Vec<Line>,
}

#[derive(Debug)]
struct Line {
    what: What,
    /// Of each side, in the order of `Side`.
    values: [Vec<f64>; 2],
}

impl Table {
    pub(crate) fn new(title: String) -> Self {
        Table { title, lines: Vec::new() }
    }

    pub(crate) fn add(&mut self, side: Side, samples: Vec<Sample>) {
        for (what, value) in samples {
            let line = match self.lines.iter().position(|line| line.what == what) {
                Some(known) => &mut self.lines[known],
                None => {
                    self.lines.push(Line { what, values: [Vec::new(), Vec::new()] });
                    self.lines.last_mut().expect("one was pushed")
                }
            };
            line.values[side as usize].push(value);
        }
    }

    /// In Markdown. `limit` is what the machine's memory and multipliers allow at most, where that
    /// is known.
    pub(crate) fn markdown(&self, limit: impl Fn(What) -> Option<f64>) -> String {
        let mut text = format!("## {}\n\n", self.title);
        text += "| | ours, best | median | llama.cpp, best | median | ours is better by \
                 | of the roofline: ours | llama.cpp |\n|---|---|---|---|---|---|---|---|\n";
        for line in &self.lines {
            let [ours, peer] = line.values.each_ref().map(|values| summary(line.what, values));
            let ratio = match (ours, peer) {
                (Some((_, ours)), Some((_, peer))) if line.what.is_time() => Some(peer / ours),
                (Some((_, ours)), Some((_, peer))) => Some(ours / peer),
                _ => None,
            };
            let ratio = ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2} x"));
            let [ours_share, peer_share] = [ours, peer].map(|side| {
                let share = side.zip(limit(line.what)).map(|((best, _), limit)| best / limit);
                share.map_or("-".to_owned(), |share| format!("{:.0} %", 100.0 * share))
            });
            let [ours, peer] = [ours, peer].map(|side| {
                side.map_or("- | -".to_owned(), |(best, median)| format!("{best:.1} | {median:.1}"))
            });
            text += &format!(
                "| {} | {ours} | {peer} | {ratio} | {ours_share} | {peer_share} |\n",
                line.what
            );
        }
        text
    }
}

/// The best and the median.
fn summary(what: What, values: &[f64]) -> Option<(f64, f64)> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let best = if what.is_time() { sorted.first() } else { sorted.last() };
    let middle = [(sorted.len() - 1) / 2, sorted.len() / 2].map(|i| sorted[i]);
    Some((*best?, middle.iter().sum::<f64>() / 2.0))
}
