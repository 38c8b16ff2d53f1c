//! What was measured: a table for people, JSON for programs.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::load::{Load, Measured};

/// Times in milliseconds; percentiles by nearest rank. All zero where nothing was measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Distribution {
    /// The arithmetic mean.
    pub mean: f64,
    /// Half of all are at most this.
    pub p50: f64,
    /// Nine of ten are at most this.
    pub p90: f64,
    /// 99 of 100 are at most this.
    pub p99: f64,
    /// The largest.
    pub max: f64,
}

/// The outcome of a load.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What was asked.
    pub load: Load,
    /// From the first request to the end of the last, in seconds.
    pub duration_s: f64,
    /// Requests that were answered in full.
    pub num_answered: usize,
    /// Requests that failed.
    pub num_errors: u64,
    /// What the first failure said.
    pub first_error: Option<String>,
    /// Answers whose length is not the one that was asked for.
    pub num_other_length: usize,
    /// Of all answers, as the server counted.
    pub prompt_tokens: u64,
    /// Of all answers, as the server counted.
    pub output_tokens: u64,
    /// Events that brought text; fewer than the tokens where the server sent several in one.
    pub text_events: u64,
    /// Generated tokens per second.
    pub output_tokens_per_s: f64,
    /// Prompt and generated tokens per second.
    pub total_tokens_per_s: f64,
    /// Answers per second.
    pub requests_per_s: f64,
    /// From the request to its first text.
    pub ttft_ms: Distribution,
    /// Between two events with text of one stream.
    pub inter_token_ms: Distribution,
    /// Per answer: first text to last, over the tokens after the first.
    pub tpot_ms: Distribution,
    /// From the request to the end of its stream.
    pub e2e_ms: Distribution,
}

impl Report {
    pub(crate) fn new(load: &Load, measured: Measured, duration: Duration) -> Report {
        let Measured { answers, gaps_us, num_errors, first_error } = measured;
        let prompt_tokens: u64 = answers.iter().map(|answer| answer.prompt_tokens).sum();
        let output_tokens: u64 = answers.iter().map(|answer| answer.output_tokens).sum();
        let text_events: u64 = answers.iter().map(|answer| answer.text_events).sum();
        let asked = u64::from(load.output_tokens);
        let per_s = |count: u64| count as f64 / duration.as_secs_f64().max(1e-9);
        let tpot = answers.iter().filter(|answer| answer.output_tokens > 1);
        let tpot = tpot.map(|answer| answer.text_us as f64 / (answer.output_tokens - 1) as f64);
        Report {
            load: load.clone(),
            duration_s: duration.as_secs_f64(),
            num_answered: answers.len(),
            num_errors,
            first_error,
            num_other_length: answers.iter().filter(|answer| answer.output_tokens != asked).count(),
            prompt_tokens,
            output_tokens,
            text_events,
            output_tokens_per_s: per_s(output_tokens),
            total_tokens_per_s: per_s(prompt_tokens + output_tokens),
            requests_per_s: per_s(answers.len() as u64),
            ttft_ms: distribution(answers.iter().map(|answer| answer.ttft_us as f64).collect()),
            inter_token_ms: distribution(gaps_us.into_iter().map(f64::from).collect()),
            tpot_ms: distribution(tpot.collect()),
            e2e_ms: distribution(answers.iter().map(|answer| answer.e2e_us as f64).collect()),
        }
    }
}

/// Of times in microseconds.
pub(crate) fn distribution(mut times_us: Vec<f64>) -> Distribution {
    if times_us.is_empty() {
        return Distribution::default();
    }
    times_us.sort_unstable_by(f64::total_cmp);
    let rank = |percent: usize| (times_us.len() * percent).div_ceil(100).max(1) - 1;
    let percentile = |percent| times_us[rank(percent)] / 1e3;
    Distribution {
        mean: times_us.iter().sum::<f64>() / times_us.len() as f64 / 1e3,
        p50: percentile(50),
        p90: percentile(90),
        p99: percentile(99),
        max: percentile(100),
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let load = &self.load;
        writeln!(
            f,
            "{} requests to {} ({:?}), {} at a time, prompts of {}, answers of {} tokens",
            load.requests,
            load.url,
            load.endpoint,
            load.concurrency,
            load.prompt_tokens,
            load.output_tokens
        )?;
        writeln!(f)?;
        writeln!(f, "answered          {:>12}   failed {}", self.num_answered, self.num_errors)?;
        writeln!(f, "duration          {:>12.2} s", self.duration_s)?;
        writeln!(
            f,
            "output tokens     {:>12}   {:>10.1} /s",
            self.output_tokens, self.output_tokens_per_s
        )?;
        let per_s = self.text_events as f64 / self.duration_s.max(1e-9);
        writeln!(f, "text events       {:>12}   {per_s:>10.1} /s", self.text_events)?;
        let total_tokens = self.prompt_tokens + self.output_tokens;
        writeln!(
            f,
            "all tokens        {:>12}   {:>10.1} /s",
            total_tokens, self.total_tokens_per_s
        )?;
        writeln!(
            f,
            "requests          {:>12}   {:>10.2} /s",
            self.num_answered, self.requests_per_s
        )?;
        writeln!(f)?;
        writeln!(f, "milliseconds              mean        p50        p90        p99        max")?;
        for (name, times) in [
            ("first token", self.ttft_ms),
            ("between tokens", self.inter_token_ms),
            ("per output token", self.tpot_ms),
            ("whole request", self.e2e_ms),
        ] {
            let Distribution { mean, p50, p90, p99, max } = times;
            writeln!(f, "{name:<18} {mean:>11.2}{p50:>11.2}{p90:>11.2}{p99:>11.2}{max:>11.2}")?;
        }
        if self.num_other_length > 0 {
            writeln!(f, "\n{} answers have another length than asked for", self.num_other_length)?;
        }
        if let Some(error) = &self.first_error {
            writeln!(f, "\nfirst failure: {error}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Answer;

    #[test]
    fn percentiles_are_values_that_occurred() {
        let times = (1..=200).map(|ms| f64::from(ms) * 1e3).rev().collect();
        let expected = Distribution { mean: 100.5, p50: 100.0, p90: 180.0, p99: 198.0, max: 200.0 };
        assert_eq!(distribution(times), expected);
        let one = distribution(vec![7e3]);
        assert_eq!(one, Distribution { mean: 7.0, p50: 7.0, p90: 7.0, p99: 7.0, max: 7.0 });
        assert_eq!(distribution(vec![]), Distribution::default());
    }

    fn report(answers: Vec<Answer>) -> Report {
        let load = Load { output_tokens: 5, api_key: Some("s3cret".into()), ..Load::default() };
        let measured = Measured {
            answers,
            gaps_us: vec![],
            num_errors: 1,
            first_error: Some("503: loading".into()),
        };
        Report::new(&load, measured, Duration::from_secs(2))
    }

    #[test]
    fn rates_are_over_the_whole_duration_and_a_token_time_leaves_the_first_out() {
        let answer =
            Answer { text_us: 8000, prompt_tokens: 3, output_tokens: 5, ..Answer::default() };
        let other = Answer { output_tokens: 1, ..answer.clone() };
        let report = report(vec![answer, other]);
        assert_eq!(report.output_tokens_per_s, 3.0);
        assert_eq!(report.total_tokens_per_s, 6.0);
        assert_eq!(report.requests_per_s, 1.0);
        assert_eq!(report.tpot_ms.max, 2.0);
        assert_eq!(report.num_other_length, 1);
    }

    #[test]
    fn the_first_failure_is_shown_and_the_key_is_not() {
        let report = report(vec![]);
        let json = serde_json::to_string(&report).unwrap();
        for text in [report.to_string(), json] {
            assert!(text.contains("503: loading") && !text.contains("s3cret"), "{text}");
        }
    }
}
