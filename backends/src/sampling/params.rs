//! How a sequence wants its tokens drawn, checked once when it arrives.

use millstream_proto::Sampling;

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
        if !(wire.temperature.is_finite() && wire.temperature >= 0.0) {
            return refuse(format!("temperature must be at least 0, is {}", wire.temperature));
        }
        if !(0.0..=1.0).contains(&wire.top_p) {
            return refuse(format!("top_p must be in 0..=1, is {}", wire.top_p));
        }
        if !(0.0..=1.0).contains(&wire.min_p) {
            return refuse(format!("min_p must be in 0..=1, is {}", wire.min_p));
        }
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
            bias: wire.bias_token.iter().copied().zip(wire.bias.iter().copied()).collect(),
            logprobs: wire.logprobs.then_some(wire.top_logprobs as usize),
            min_tokens: wire.min_tokens as usize,
        })
    }
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
            ("top_p", Sampling { top_p: 1.5, ..valid.clone() }),
            ("min_p", Sampling { min_p: f32::NAN, ..valid.clone() }),
            ("bias", Sampling { bias_token: vec![1], ..valid.clone() }),
            ("bias", Sampling { bias_token: vec![1], bias: vec![f32::INFINITY], ..valid.clone() }),
        ];
        for (name, wire) in broken {
            let failure = SamplingParams::parse(&wire).unwrap_err();
            assert!(failure.message.starts_with(name), "{failure}");
        }
    }
}
