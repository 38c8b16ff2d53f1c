//! How a sequence wants its tokens drawn, checked once when it arrives.

use millstream_proto::Sampling;

use super::Penalties;
use crate::model::RowFailure;

/// Checked sampling parameters. The default is greedy.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Finite, at least 0; 0 is greedy.
    pub temperature: f32,
    /// Keep this many most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the smallest set of most likely tokens with this mass, in `0..=1`; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens at least this likely relative to the most likely one, in `0..=1`; 0 keeps all.
    pub min_p: f32,
    /// Keep the smallest set of most typical tokens with this mass, in `0..=1`; 1 keeps all.
    pub typical_p: f32,
    /// What tokens of the sequence lose.
    pub penalties: Penalties,
    /// Added to the logits of these tokens; `-inf` bans one.
    pub bias: Vec<(u32, f32)>,
    /// Report log-probabilities of the sampled token and of this many most likely ones.
    pub logprobs: Option<usize>,
    /// The stop tokens cannot be sampled before this many output tokens.
    pub min_tokens: usize,
}

impl Default for SamplingParams {
    fn default() -> Self {
        SamplingParams {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            typical_p: 1.0,
            penalties: Penalties::default(),
            bias: Vec::new(),
            logprobs: None,
            min_tokens: 0,
        }
    }
}

impl SamplingParams {
    /// Checks what came over the wire. The router has done so before: what fails here is a bug.
    pub fn parse(wire: &Sampling) -> Result<Self, RowFailure> {
        let refuse = |rule: String| Err(RowFailure::protocol(rule));
        // No comparison holds for NaN.
        if !(0.0..=f32::MAX).contains(&wire.temperature) {
            let rule = "must be a finite number of at least 0";
            return refuse(format!("temperature {rule}, is {}", wire.temperature));
        }
        for (name, value) in
            [("top_p", wire.top_p), ("min_p", wire.min_p), ("typical_p", wire.typical_p)]
        {
            if !(0.0..=1.0).contains(&value) {
                return refuse(format!("{name} must be in 0..=1, is {value}"));
            }
        }
        let penalties = parse_penalties(wire)?;
        if wire.bias_token.len() != wire.bias.len() {
            return refuse(format!(
                "bias_token and bias must be equally long, are {} and {}",
                wire.bias_token.len(),
                wire.bias.len()
            ));
        }
        if let Some(bias) = wire.bias.iter().find(|bias| bias.is_nan() || **bias == f32::INFINITY) {
            return refuse(format!("bias must be a number below infinity, is {bias}"));
        }
        Ok(SamplingParams {
            temperature: wire.temperature,
            top_k: wire.top_k as usize,
            top_p: wire.top_p,
            min_p: wire.min_p,
            typical_p: if wire.typical_p == 0.0 { 1.0 } else { wire.typical_p },
            penalties,
            bias: wire.bias_token.iter().copied().zip(wire.bias.iter().copied()).collect(),
            logprobs: wire.logprobs.then_some(wire.top_logprobs as usize),
            min_tokens: wire.min_tokens as usize,
        })
    }
}

fn parse_penalties(wire: &Sampling) -> Result<Penalties, RowFailure> {
    let (repetition, presence, frequency) =
        (wire.repetition_penalty, wire.presence_penalty, wire.frequency_penalty);
    if !(0.0..=f32::MAX).contains(&repetition) {
        return Err(RowFailure::protocol(format!(
            "repetition_penalty must be a finite number above 0, or 0 for none, is {repetition}"
        )));
    }
    for (name, value) in [("presence_penalty", presence), ("frequency_penalty", frequency)] {
        if !(-2.0..=2.0).contains(&value) {
            return Err(RowFailure::protocol(format!("{name} must be in -2..=2, is {value}")));
        }
    }
    let repetition = if repetition == 0.0 { 1.0 } else { repetition };
    Ok(Penalties { repetition, presence, frequency })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_out_of_range_are_refused_by_name() {
        let valid = Sampling { temperature: 0.7, top_p: 0.9, min_p: 0.1, ..Sampling::default() };
        assert!(SamplingParams::parse(&valid).is_ok());
        let broken = [
            ("temperature", Sampling { temperature: -1.0, ..valid.clone() }),
            ("temperature", Sampling { temperature: f32::NAN, ..valid.clone() }),
            ("temperature", Sampling { temperature: f32::INFINITY, ..valid.clone() }),
            ("top_p", Sampling { top_p: 1.5, ..valid.clone() }),
            ("min_p", Sampling { min_p: f32::NAN, ..valid.clone() }),
            ("typical_p", Sampling { typical_p: 1.1, ..valid.clone() }),
            ("typical_p", Sampling { typical_p: f32::NAN, ..valid.clone() }),
            ("repetition_penalty", Sampling { repetition_penalty: -1.0, ..valid.clone() }),
            ("repetition_penalty", Sampling { repetition_penalty: f32::NAN, ..valid.clone() }),
            ("repetition_penalty", Sampling { repetition_penalty: f32::INFINITY, ..valid.clone() }),
            ("presence_penalty", Sampling { presence_penalty: 2.1, ..valid.clone() }),
            ("presence_penalty", Sampling { presence_penalty: f32::NAN, ..valid.clone() }),
            ("frequency_penalty", Sampling { frequency_penalty: -2.1, ..valid.clone() }),
            (
                "frequency_penalty",
                Sampling { frequency_penalty: f32::NEG_INFINITY, ..valid.clone() },
            ),
            ("bias", Sampling { bias_token: vec![1], ..valid.clone() }),
            ("bias", Sampling { bias_token: vec![1], bias: vec![f32::INFINITY], ..valid.clone() }),
        ];
        for (name, wire) in broken {
            let failure = SamplingParams::parse(&wire).unwrap_err();
            assert!(failure.message.starts_with(name), "{failure}");
            assert!(failure.message.contains(", is ") || name == "bias", "{failure}");
        }
    }

    #[test]
    fn what_the_wire_leaves_out_changes_nothing() {
        let absent = Sampling { top_p: 1.0, ..Sampling::default() };
        assert_eq!(SamplingParams::parse(&absent), Ok(SamplingParams::default()));
        let neutral = Sampling { repetition_penalty: 1.0, typical_p: 1.0, ..absent };
        assert_eq!(SamplingParams::parse(&neutral), Ok(SamplingParams::default()));
    }
}
