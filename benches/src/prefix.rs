//! The second turn of a conversation: how soon it begins where the first turn's keys and values are
//! still there, and where they are not.

use std::fmt;

use anyhow::bail;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::Serialize;
use serde_json::json;

use crate::client::{Client, Target};
use crate::report::{Distribution, distribution};

/// Conversations of two turns to hold, one after the other.
#[derive(Clone, Debug, Serialize)]
pub struct Turns {
    /// `http://host:port`
    pub url: String,
    /// Tokens before the second turn.
    pub history_tokens: u32,
    /// Tokens that the second turn adds.
    pub turn_tokens: u32,
    /// Conversations.
    pub rounds: u32,
    /// Token ids are below this.
    pub vocab_size: u32,
    /// Equal seeds send equal prompts.
    pub seed: u64,
}

/// From the request of a second turn to its first text, in milliseconds.
#[derive(Clone, Debug, Serialize)]
pub struct SecondTurn {
    /// What was asked.
    pub turns: Turns,
    /// Under the `cache_salt` of the first turn.
    pub reused_ms: Distribution,
    /// Under a `cache_salt` of its own, which finds nothing.
    pub computed_ms: Distribution,
}

impl Turns {
    /// Holds the conversations, and reports how soon their second turns began. Both kinds of
    /// second turn are asked alike in each of them.
    pub async fn run(self) -> anyhow::Result<SecondTurn> {
        let mut client = Client::new(Target::new(&self.url, None)?);
        let Some(model) = client.models().await?.into_iter().next() else {
            bail!("the server lists no model")
        };
        let mut random = StdRng::seed_from_u64(self.seed);
        let (mut reused_us, mut computed_us) = (Vec::new(), Vec::new());
        for round in 0..self.rounds {
            let tokens = self.history_tokens + self.turn_tokens;
            let ids: Vec<u32> =
                (0..tokens).map(|_| random.random_range(0..self.vocab_size)).collect();
            let history = &ids[..self.history_tokens as usize];
            let (own, other) =
                (format!("{}-{round}", self.seed), format!("{}-{round}-other", self.seed));
            first_text_us(&mut client, &model, (history, &own)).await?;
            reused_us.push(first_text_us(&mut client, &model, (&ids, &own)).await?);
            computed_us.push(first_text_us(&mut client, &model, (&ids, &other)).await?);
        }
        Ok(SecondTurn {
            turns: self,
            reused_ms: distribution(reused_us),
            computed_ms: distribution(computed_us),
        })
    }
}

async fn first_text_us(
    client: &mut Client,
    model: &str,
    (prompt, salt): (&[u32], &str),
) -> anyhow::Result<f64> {
    let body = json!({
        "model": model,
        "prompt": prompt,
        "cache_salt": salt,
        "max_tokens": 4,
        "ignore_eos": true,
        "skip_special_tokens": false,
        "temperature": 0,
        "stream": true,
    });
    let answer = client.stream("/v1/completions", body.to_string(), &mut Vec::new()).await?;
    Ok(answer.ttft_us as f64)
}

impl fmt::Display for SecondTurn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Turns { history_tokens, turn_tokens, rounds, .. } = self.turns;
        writeln!(
            f,
            "second turns of {turn_tokens} tokens after {history_tokens}, {rounds} of each kind"
        )?;
        writeln!(f, "\nfirst token, ms            p50        max")?;
        for (name, times) in [("reused", self.reused_ms), ("computed", self.computed_ms)] {
            writeln!(f, "{name:<18} {:>11.2}{:>11.2}", times.p50, times.max)?;
        }
        let ratio = self.computed_ms.p50 / self.reused_ms.p50.max(1e-3);
        writeln!(f, "\nreuse is {ratio:.1} times as fast")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_is_that_of_the_medians() {
        let turns = Turns {
            url: "http://host".into(),
            history_tokens: 2000,
            turn_tokens: 32,
            rounds: 3,
            vocab_size: 10,
            seed: 0,
        };
        let reused_ms = distribution(vec![40e3, 50e3, 900e3]);
        let computed_ms = distribution(vec![1000e3, 1500e3, 1600e3]);
        let shown = SecondTurn { turns, reused_ms, computed_ms }.to_string();
        assert!(shown.contains("reuse is 30.0 times as fast"), "{shown}");
    }
}
