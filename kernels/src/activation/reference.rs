//! Gated activation as its formula says, in f64.

use super::Activation;

/// `gate_up [T, 2 * half]`; gives `[T, half]`.
pub(super) fn gated(gate_up: &[f32], half: usize, act: Activation) -> Vec<f32> {
    let mut out = Vec::new();
    for row in gate_up.chunks_exact(2 * half) {
        for i in 0..half {
            let (gate, up) = (f64::from(row[i]), f64::from(row[half + i]));
            let activated = match act {
                Activation::Silu => gate / (1.0 + (-gate).exp()),
                Activation::ClampedSwish { alpha, limit } => {
                    let gate = gate.min(f64::from(limit));
                    gate / (1.0 + (-f64::from(alpha) * gate).exp())
                }
                Activation::GeluTanh => {
                    let inner = gate + 0.044715 * gate.powi(3);
                    let tanh = ((2.0 / std::f64::consts::PI).sqrt() * inner).tanh();
                    gate / 2.0 * (1.0 + tanh)
                }
            };
            let factor = match act {
                Activation::ClampedSwish { limit, .. } => {
                    up.clamp(-f64::from(limit), f64::from(limit)) + 1.0
                }
                _ => up,
            };
            out.push((activated * factor) as f32);
        }
    }
    out
}
