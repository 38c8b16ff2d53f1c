//! The rotation, from whichever keys a file has for it.
//!
//! `rope_theta` and `rope_scaling`, or `rope_parameters`, which Transformers 5 writes instead of
//! the two; there, layers of different kinds may have parameters of their own. Precedence is that
//! of Transformers' `modeling_rope_utils`.

use super::super::spec::{Rope, RopeScaling};
use super::{HfConfig, Result};
use millstream_kernels::rope::RopeStyle;
use serde_json::{Value, json};

/// Kinds of layers that may have parameters of their own.
pub(super) const FULL: &str = "full_attention";
pub(super) const SLIDING: &str = "sliding_attention";

/// The rotation of the layers of one kind.
pub(super) fn rope(
    config: &HfConfig,
    kind: &str,
    head_dim: usize,
    style: RopeStyle,
) -> Result<Rope> {
    let mut theta = config.optional_f64("rope_theta")?.unwrap_or(10_000.0);
    let mut partial = config.optional_f64("partial_rotary_factor")?.unwrap_or(1.0);
    let mut stretch = RopeScaling::None;
    if let Some(parameters) = parameters(config, kind)? {
        theta = parameters.optional_f64("rope_theta")?.unwrap_or(theta);
        partial = parameters.optional_f64("partial_rotary_factor")?.unwrap_or(partial);
        stretch = scaling(config, &parameters)?;
        parameters.refuse_rest(&["llama_4_scaling_beta", "max_position_embeddings"])?;
    }
    let dims = (head_dim as f64 * partial) as usize;
    Ok(Rope { dims, theta, style, scaling: stretch })
}

/// The rotation of the layers with a window, in families where parameters that are not told apart
/// by kind are those of the other layers.
pub(super) fn local_rope(config: &HfConfig, head_dim: usize, theta: f64) -> Result<Rope> {
    let (is_new, is_flat) = (config.has("rope_parameters"), parameters(config, "")?.is_some());
    match (is_new, is_flat) {
        (true, false) => rope(config, SLIDING, head_dim, RopeStyle::Half),
        // Transformers takes such a file for one that says nothing of either kind.
        (true, true) if !config.has("rope_scaling") => {
            let rule = format!("an object with `{FULL}` and `{SLIDING}`");
            Err(config.wrong("rope_parameters", &rule, &json!("one for all layers")))
        }
        _ => {
            let (style, scaling) = (RopeStyle::Half, RopeScaling::None);
            Ok(Rope { dims: head_dim, theta, style, scaling })
        }
    }
}

/// The object that says how layers of this kind rotate.
pub(super) fn parameters(config: &HfConfig, kind: &str) -> Result<Option<HfConfig>> {
    let old = config.object("rope_scaling")?;
    let new = config.object("rope_parameters")?;
    match old.or(new) {
        Some(all) if all.has(FULL) || all.has(SLIDING) => all.object(kind),
        other => Ok(other),
    }
}

fn scaling(config: &HfConfig, rope: &HfConfig) -> Result<RopeScaling> {
    // Older files say `type`; some say both.
    let key = if rope.has("rope_type") { "rope_type" } else { "type" };
    rope.get("type");
    let known = ["default", "mrope", "linear", "llama3", "yarn", "longrope", "su"];
    rope.only(key, &known.map(Value::from))?;
    match rope.get(key).and_then(Value::as_str) {
        Some("linear") => Ok(RopeScaling::Linear { factor: rope.f64("factor")? }),
        Some("llama3") => Ok(RopeScaling::Llama3 {
            factor: rope.f64("factor")?,
            low: rope.f64("low_freq_factor")?,
            high: rope.f64("high_freq_factor")?,
            original_max_positions: original_max_positions(config, rope)? as f64,
        }),
        Some("yarn") => yarn(config, rope),
        Some("longrope" | "su") => longrope(config, rope),
        // Positions of images have three parts; those of text are all alike, so nothing changes.
        _ => {
            rope.get("mrope_section");
            rope.get("mrope_interleaved");
            Ok(RopeScaling::None)
        }
    }
}

fn yarn(config: &HfConfig, rope: &HfConfig) -> Result<RopeScaling> {
    let original = original_max_positions(config, rope)? as f64;
    let factor = match rope.optional_f64("factor")? {
        Some(factor) => factor,
        None => config.f64("max_position_embeddings")? / original,
    };
    let mscale = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
    let mscales = (rope.optional_f64("mscale")?, rope.optional_f64("mscale_all_dim")?);
    let attention_factor = match (rope.optional_f64("attention_factor")?, mscales) {
        (Some(stated), _) => stated,
        (None, (Some(one), Some(all))) if one != 0.0 && all != 0.0 => mscale(one) / mscale(all),
        _ => mscale(1.0),
    };
    // Zero means the default, as in the reference.
    let or = |stated: Option<f64>, default| stated.filter(|&value| value != 0.0).unwrap_or(default);
    // In parameters per kind of layer the reference never sees this key.
    let per_kind = config.object("rope_parameters")?.is_some_and(|all| all.has(FULL));
    let truncate = rope.get("truncate").is_none_or(|value| *value != json!(false)) || per_kind;
    Ok(RopeScaling::Yarn {
        factor,
        original_max_positions: original,
        fast: or(rope.optional_f64("beta_fast")?, 32.0),
        slow: or(rope.optional_f64("beta_slow")?, 1.0),
        truncate,
        attention_factor,
    })
}

fn longrope(config: &HfConfig, rope: &HfConfig) -> Result<RopeScaling> {
    let original = original_max_positions(config, rope)?;
    let factor = match rope.optional_f64("factor")? {
        Some(factor) => factor,
        None => config.f64("max_position_embeddings")? / original as f64,
    };
    let attention_factor = match rope.optional_f64("attention_factor")? {
        Some(stated) => stated,
        None if factor <= 1.0 => 1.0,
        None => (1.0 + factor.ln() / (original as f64).ln()).sqrt(),
    };
    Ok(RopeScaling::Long {
        short: rope.numbers("short_factor")?,
        long: rope.numbers("long_factor")?,
        original_max_positions: original,
        attention_factor,
    })
}

/// The context before it was stretched. At the top of a file it counts more than inside.
pub(super) fn original_max_positions(config: &HfConfig, rope: &HfConfig) -> Result<usize> {
    let key = "original_max_position_embeddings";
    let inside = rope.optional_usize(key)?;
    match config.optional_usize(key)?.or(inside) {
        Some(original) => Ok(original),
        None => config.usize("max_position_embeddings"),
    }
}
