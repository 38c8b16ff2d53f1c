//! What every later computation takes for granted of a spec; an error names the broken rule.

use super::{Attention, Ffn, Mixer, ModelSpec, Rope, RopeScaling};
use millstream_kernels::activation::Activation;

/// A model with more layers than this is a broken configuration, not a model.
const MAX_LAYERS: usize = 4096;
/// Of experts per layer.
const MAX_EXPERTS: usize = 4096;
/// Of heads, and of the values of a head.
const MAX_HEADS: usize = 1 << 16;
/// Of every other width: what is computed from a few of them still fits a machine's integers.
const MAX_WIDTH: usize = 1 << 28;

type Result<T = (), E = String> = std::result::Result<T, E>;

impl ModelSpec {
    /// Checks what every later computation takes for granted; the error names the broken rule.
    pub fn check(&self) -> Result {
        within("vocab_size", self.vocab, MAX_WIDTH)?;
        within("hidden_size", self.hidden, MAX_WIDTH)?;
        within("max_position_embeddings", self.max_positions, MAX_WIDTH)?;
        within("num_hidden_layers", self.layers.len(), MAX_LAYERS)?;
        for (name, factor) in [
            ("embedding factor", self.embed.scale),
            ("logits factor", self.head.scale),
            ("logits soft cap", self.head.softcap),
        ] {
            optional_positive(name, factor)?;
        }
        for layer in &self.layers {
            let Mixer::Attention(attention) = &layer.mixer;
            attention.check()?;
            layer.ffn.check()?;
            optional_positive("residual factor", layer.residual_scale)?;
        }
        Ok(())
    }
}

impl Ffn {
    fn check(&self) -> Result {
        let moe = match self {
            Self::Dense(mlp) => return within("intermediate_size", mlp.inter, MAX_WIDTH),
            Self::Moe(moe) => moe,
        };
        within("intermediate_size of an expert", moe.expert.inter, MAX_WIDTH)?;
        if let Some(shared) = &moe.shared {
            within("intermediate_size of the shared expert", shared.inter, MAX_WIDTH)?;
        }
        if let Activation::ClampedSwish { alpha, limit } = moe.expert.act {
            positive("swiglu_alpha", f64::from(alpha))?;
            positive("swiglu_limit", f64::from(limit))?;
        }
        let (experts, top_k) = (moe.experts, moe.routing.top_k);
        if experts > MAX_EXPERTS || !(1..=experts).contains(&top_k) {
            return Err(format!("{top_k} of {experts} experts (at most {MAX_EXPERTS}) a token"));
        }
        let Some(groups) = moe.routing.groups else { return Ok(()) };
        let size = experts / groups.num.max(1);
        match groups.num * size == experts && (1..=groups.num).contains(&groups.keep) {
            true if size >= 2 && groups.keep * size >= top_k => Ok(()),
            _ => Err(format!("{groups:?} do not part {experts} experts, {top_k} of which act")),
        }
    }
}

impl Attention {
    fn check(&self) -> Result {
        let Self { heads, kv_heads, head_dim, .. } = *self;
        within("num_attention_heads", heads, MAX_HEADS)?;
        within("num_key_value_heads", kv_heads, MAX_HEADS)?;
        within("head_dim", head_dim, MAX_HEADS)?;
        if heads % kv_heads != 0 {
            return Err(format!("{heads} heads are not a multiple of {kv_heads} KV heads"));
        }
        if self.window == Some(0) {
            return Err("`sliding_window` is 0".into());
        }
        positive("attention factor", f64::from(self.scale))?;
        optional_positive("attention soft cap", self.softcap)?;
        if let Some(scale) = self.query_scale {
            positive("original_max_position_embeddings", scale.original_max_positions)?;
        }
        match &self.rope {
            Some(rope) => rope.check(head_dim),
            None => Ok(()),
        }
    }
}

impl Rope {
    fn check(&self, head_dim: usize) -> Result {
        let Self { dims, theta, .. } = *self;
        if dims == 0 || dims % 2 != 0 || dims > head_dim {
            return Err(format!("rope rotates {dims} of {head_dim} values of a head"));
        }
        positive("rope's theta", theta)?;
        match &self.scaling {
            RopeScaling::None => Ok(()),
            RopeScaling::Linear { factor } => positive("rope's factor", *factor),
            RopeScaling::Llama3 { factor, low, high, original_max_positions } => {
                positive("rope's factor", *factor)?;
                positive("rope's low_freq_factor", *low)?;
                positive("rope's high_freq_factor less low_freq_factor", high - low)?;
                positive("rope's original_max_position_embeddings", *original_max_positions)
            }
            RopeScaling::Yarn { factor, original_max_positions, fast, slow, .. } => {
                positive("rope's factor", *factor)?;
                positive("rope's original_max_position_embeddings", *original_max_positions)?;
                positive("rope's beta_fast", *fast)?;
                positive("rope's beta_slow", *slow)?;
                positive("rope's theta less one", theta - 1.0)
            }
            RopeScaling::Long { short, long, .. } => {
                self.check_factors("short_factor", short)?;
                self.check_factors("long_factor", long)
            }
            RopeScaling::PerPair { factors, .. } => self.check_factors("factors", factors),
        }
    }

    fn check_factors(&self, name: &str, factors: &[f64]) -> Result {
        let pairs = self.dims / 2;
        if factors.len() != pairs {
            let found = factors.len();
            return Err(format!("rope's {name} has {found} values for {pairs} pairs"));
        }
        factors.iter().try_for_each(|factor| positive(&format!("rope's {name}"), *factor))
    }
}

fn within(name: &str, value: usize, max: usize) -> Result {
    match (1..=max).contains(&value) {
        true => Ok(()),
        false => Err(format!("`{name}` must be 1 to {max}, not {value}")),
    }
}

fn positive(name: &str, value: f64) -> Result {
    match value.is_finite() && value > 0.0 {
        true => Ok(()),
        false => Err(format!("{name} must be positive, not {value}")),
    }
}

fn optional_positive(name: &str, value: Option<f32>) -> Result {
    value.map_or(Ok(()), |value| positive(name, f64::from(value)))
}
