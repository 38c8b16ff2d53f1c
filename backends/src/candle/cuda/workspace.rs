//! The device's memory for the activations of a step, taken once for the largest step that is
//! served: no step takes any.

use super::cuda_error;
use crate::LoadError;
use crate::candle::spec::{Ffn, Mixer, ModelSpec};
use candle_core::DType;
use millstream_kernels::cuda::{Array, Gpu};
use millstream_kernels::moe::cuda::Shape;
use millstream_kernels::paged_attention::cuda as attention;

/// How large steps are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Tokens of a step.
    pub(crate) tokens: usize,
    /// Rows of a step, and rows whose logits are computed at once.
    pub(crate) rows: usize,
}

/// The activations. Each array is as long as the largest step needs it; what a step uses of it are
/// its first elements.
#[derive(Debug)]
pub(crate) struct Workspace {
    /// `[T, hidden]` f32: the residual stream.
    pub(crate) stream: Array,
    /// `[T, hidden]`: the stream, normalised.
    pub(crate) normed: Array,
    /// `[T, (H + 2K) * D]`.
    pub(crate) qkv: Array,
    /// `[T, H * D]`: what attention gives.
    pub(crate) mixed: Array,
    /// `[T, hidden]`: what half a layer gives.
    pub(crate) given: Array,
    /// `[T, 2I]`.
    pub(crate) gate_up: Array,
    /// `[T, I]`.
    pub(crate) inner: Array,
    /// `[R, hidden]`: the rows that go through the head, normalised.
    pub(crate) last: Array,
    /// `[R, V]` f32.
    pub(crate) logits: Array,
    /// What attention keeps between its kernels, u8.
    pub(crate) partials: Array,
    pub(crate) moe: Option<MoeSpace>,
}

/// What mixtures of experts need beside.
#[derive(Debug)]
pub(crate) struct MoeSpace {
    /// `[T, E]` f32.
    pub(crate) logits: Array,
    /// `[T, k]` u32.
    pub(crate) experts: Array,
    /// `[T, k]` f32.
    pub(crate) weights: Array,
    /// u32, see [`Shape::words`].
    pub(crate) grouping: Array,
    /// `[T * k, 2I]`.
    pub(crate) gate_up: Array,
    /// `[T * k, I]`.
    pub(crate) inner: Array,
    /// `[T * k, hidden]`.
    pub(crate) rows: Array,
    /// `[T, hidden]`: what the shared expert gives.
    pub(crate) shared: Array,
}

impl Workspace {
    /// Takes the memory for steps within `limits`.
    pub(crate) fn new(
        gpu: &Gpu,
        spec: &ModelSpec,
        dtype: DType,
        limits: Limits,
    ) -> Result<Self, LoadError> {
        let Limits { tokens, rows } = limits;
        let take = |dtype, len| gpu.uninitialized(dtype, len).map_err(cuda_error);
        let largest = |size: &dyn Fn(&crate::candle::spec::LayerSpec) -> usize| {
            spec.layers.iter().map(size).max().unwrap_or(0)
        };
        let q_width = largest(&|layer| {
            let Mixer::Attention(attention) = &layer.mixer;
            attention.q_width()
        });
        let qkv_width = largest(&|layer| {
            let Mixer::Attention(attention) = &layer.mixer;
            attention.q_width() + 2 * attention.kv_width()
        });
        let inter = largest(&|layer| match &layer.ffn {
            Ffn::Dense(mlp) => mlp.inter,
            Ffn::Moe(moe) => moe.shared.as_ref().map_or(0, |shared| shared.inter),
        });
        let partials = largest(&|layer| {
            let Mixer::Attention(it) = &layer.mixer;
            match attention::takes(dtype, it.head_dim) {
                true => attention::workspace_bytes(max_items(rows), it.heads, it.head_dim),
                false => 0,
            }
        });
        Ok(Workspace {
            stream: take(DType::F32, tokens * spec.hidden)?,
            normed: take(dtype, tokens * spec.hidden)?,
            qkv: take(dtype, tokens * qkv_width)?,
            mixed: take(dtype, tokens * q_width)?,
            given: take(dtype, tokens * spec.hidden)?,
            gate_up: take(dtype, tokens * 2 * inter)?,
            inner: take(dtype, tokens * inter)?,
            last: take(dtype, rows * spec.hidden)?,
            logits: take(DType::F32, rows * spec.vocab)?,
            partials: take(DType::U8, partials)?,
            moe: MoeSpace::new(gpu, spec, dtype, tokens)?,
        })
    }
}

impl MoeSpace {
    /// What the largest of the model's mixtures needs; nothing if it has none.
    fn new(
        gpu: &Gpu,
        spec: &ModelSpec,
        dtype: DType,
        tokens: usize,
    ) -> Result<Option<Self>, LoadError> {
        let mixtures = spec.layers.iter().filter_map(|layer| match &layer.ffn {
            Ffn::Moe(moe) => Some(moe),
            Ffn::Dense(_) => None,
        });
        let mixtures: Vec<_> = mixtures.collect();
        if mixtures.is_empty() {
            return Ok(None);
        }
        let take = |dtype, len| gpu.uninitialized(dtype, len).map_err(cuda_error);
        let largest = |size: &dyn Fn(&crate::candle::spec::Moe) -> usize| {
            mixtures.iter().map(|moe| size(moe)).max().unwrap_or(0)
        };
        let experts = largest(&|moe| moe.experts);
        let top_k = largest(&|moe| moe.routing.top_k);
        let words = largest(&|moe| {
            let (top_k, num_experts) = (moe.routing.top_k, moe.experts);
            Shape { tokens, top_k, num_experts }.words()
        });
        let inter = largest(&|moe| moe.routing.top_k * moe.expert.inter);
        Ok(Some(MoeSpace {
            logits: take(DType::F32, tokens * experts)?,
            experts: take(DType::U32, tokens * top_k)?,
            weights: take(DType::F32, tokens * top_k)?,
            grouping: take(DType::U32, words)?,
            gate_up: take(dtype, tokens * 2 * inter)?,
            inner: take(dtype, tokens * inter)?,
            rows: take(dtype, tokens * top_k * spec.hidden)?,
            shared: take(dtype, tokens * spec.hidden)?,
        }))
    }
}

/// Items that a plan of `rows` rows that decode has room for.
pub(crate) fn max_items(rows: usize) -> usize {
    attention::Plan::max_items(rows)
}
