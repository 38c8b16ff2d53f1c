//! The decoder on a GPU: the same composition as on the processor, in the device's own operations.
//!
//! Between operations activations have the dtype of the weights, the residual stream is f32.
//! Nothing here takes memory, waits, or depends on more than a step's [`Pass`], so that a pass can
//! be recorded. Biases of products are added by what follows.

use super::keep::Device;
use super::step::Pass;
use super::workspace::{MoeSpace, Workspace};
use crate::candle::decoder::{Decoder, FeedForward, Layer};
use crate::candle::layers::{Attention, Mlp, Norm, QkWeight};
use crate::candle::moe::Moe;
use crate::candle::spec::{NormKind, Wiring};
use millstream_kernels::KernelError;
use millstream_kernels::activation::cuda as activation;
use millstream_kernels::cuda::{Array, Gpu};
use millstream_kernels::embedding::cuda::{Table, embedding};
use millstream_kernels::heads::cuda as heads;
use millstream_kernels::linear::cuda::Linear as Products;
use millstream_kernels::logits::cuda::bend;
use millstream_kernels::moe::cuda as moe;
use millstream_kernels::norm;
use millstream_kernels::paged_attention::cuda as attention;
use millstream_kernels::residual::cuda as residual;

type Result<T, E = KernelError> = std::result::Result<T, E>;

/// What computes a pass: the device, and the memory that a step computes in.
pub(crate) struct Engine {
    pub(crate) gpu: Gpu,
    pub(crate) products: Products,
    pub(crate) space: Workspace,
    pub(crate) hidden: usize,
    pub(crate) vocab: usize,
}

/// One layer's keys and values.
#[derive(Debug)]
pub(crate) struct LayerCache {
    /// Index of the group whose block tables and slot mapping apply.
    pub(crate) group: usize,
    /// `[N, K, B, D]`.
    pub(crate) k: Array,
    /// `[N, K, B, D]`.
    pub(crate) v: Array,
    /// `B`.
    pub(crate) block_size: usize,
}

/// The first elements of an array.
fn first(array: &Array, len: usize) -> Array {
    array.slice(0..len)
}

impl Decoder<Device> {
    /// Runs the tokens of a pass, writes their keys and values to the cache, and leaves the residual
    /// stream after the last layer, `[T, hidden]`, in the workspace.
    pub(crate) fn run(&self, on: &Engine, pass: &Pass, cache: &[LayerCache]) -> Result<()> {
        let stream = first(&on.space.stream, pass.tokens * on.hidden);
        let table = self.embed.as_ref().unwrap_or(&self.head);
        let table = Table { rows: &table.elements, hidden: on.hidden };
        embedding(&on.gpu, &table, &pass.ids, self.embed_scale, &stream)?;
        pass.plan(&on.gpu)?;
        let mut given = None;
        for (layer, cache) in self.layers.iter().zip(cache) {
            given = Some(layer.run(on, pass, cache, given)?);
        }
        given.map_or(Ok(()), |given| given.join(on, pass, None))
    }

    /// Logits of the tokens at `rows` `[R]` u32 of the stream of a pass of so many tokens:
    /// `[R, V]` f32, in the workspace. A row that is no token has the logits of zeros.
    pub(crate) fn logits_of(&self, on: &Engine, tokens: usize, rows: &Array) -> Result<Array> {
        let stream = first(&on.space.stream, tokens * on.hidden);
        let last = first(&on.space.last, rows.len() * on.hidden);
        let normed = residual::Normed { pre: Some(self.final_norm.device()), out: &last };
        residual::norm_rows(&on.gpu, &stream, [tokens, on.hidden], rows, &normed)?;
        let logits = first(&on.space.logits, rows.len() * on.vocab);
        on.products.linear(&last, &self.head, &logits)?;
        bend(&on.gpu, &logits, self.head_spec.scale, self.head_spec.softcap)?;
        Ok(logits)
    }
}

/// What half a layer gave, and how it joins the residual stream.
struct Joining<'a> {
    /// `[T, hidden]`, in the workspace.
    y: Array,
    bias: Option<&'a Array>,
    post: Option<&'a Norm<Device>>,
    scale: Option<f32>,
}

impl Joining<'_> {
    /// Adds itself to the stream, which is then written, normalised or as it is, to `normed`.
    fn join(&self, on: &Engine, pass: &Pass, normed: Option<&residual::Normed<'_>>) -> Result<()> {
        let stream = first(&on.space.stream, pass.tokens * on.hidden);
        let given = residual::Given {
            y: &self.y,
            bias: self.bias,
            post: self.post.map(Norm::device),
            scale: self.scale,
        };
        residual::residual(&on.gpu, &stream, [pass.tokens, on.hidden], Some(&given), normed)
    }
}

impl Layer<Device> {
    /// As on the processor: each half joins the stream in the pass that prepares what is next.
    fn run<'a>(
        &'a self,
        on: &Engine,
        pass: &Pass,
        cache: &LayerCache,
        given: Option<Joining<'a>>,
    ) -> Result<Joining<'a>> {
        let scale = self.residual_scale;
        joined(on, pass, given, self.pre_mix.as_ref())?;
        let (y, bias) = self.mixer.run(on, pass, cache)?;
        let mixed = Joining { y, bias, post: self.post_mix.as_ref(), scale };
        match self.wiring {
            Wiring::Sequential => joined(on, pass, Some(mixed), self.pre_ffn.as_ref())?,
            // The feed-forward reads what the mixer read, which is still there.
            Wiring::Parallel => mixed.join(on, pass, None)?,
        }
        let (y, bias) = match &self.ffn {
            FeedForward::Dense(mlp) => mlp.run(on, pass, &on.space.given)?,
            FeedForward::Moe(moe) => (moe.run(on, pass)?, None),
        };
        Ok(Joining { y, bias, post: self.post_ffn.as_ref(), scale })
    }
}

/// Lets `given` join the stream, and leaves the stream's norm in the workspace: the stream as it is
/// where there is no norm.
fn joined(
    on: &Engine,
    pass: &Pass,
    given: Option<Joining<'_>>,
    norm: Option<&Norm<Device>>,
) -> Result<()> {
    let out = first(&on.space.normed, pass.tokens * on.hidden);
    let normed = residual::Normed { pre: norm.map(Norm::device), out: &out };
    match given {
        Some(given) => given.join(on, pass, Some(&normed)),
        None => {
            let stream = first(&on.space.stream, pass.tokens * on.hidden);
            residual::residual(&on.gpu, &stream, [pass.tokens, on.hidden], None, Some(&normed))
        }
    }
}

impl Norm<Device> {
    fn device(&self) -> residual::Norm<'_> {
        let kind = match self.spec.kind {
            NormKind::Rms => norm::NormKind::Rms,
            NormKind::Layer => norm::NormKind::Layer,
        };
        residual::Norm { kind, eps: self.spec.eps, weight: &self.weight }
    }
}

/// The norm of queries and keys: of one kind, with a weight for each.
fn head_norms([q, k]: &[QkWeight<Device>; 2]) -> heads::Norms<'_> {
    let residual::Norm { kind, eps, .. } = q.norm.device();
    heads::Norms { kind, scope: q.scope, eps, weights: [&q.norm.weight, &k.norm.weight] }
}

impl Attention<Device> {
    /// Attention of the normalised stream; what it gives is in the workspace, its bias still to be
    /// added.
    fn run(&self, on: &Engine, pass: &Pass, cache: &LayerCache) -> Result<(Array, Option<&Array>)> {
        let (spec, tokens) = (&self.spec, pass.tokens);
        let normed = first(&on.space.normed, tokens * on.hidden);
        let qkv = first(&on.space.qkv, tokens * self.qkv.weight.out_features);
        on.products.linear(&normed, &self.qkv.weight, &qkv)?;
        // Every row's keys and values are in the cache before any row attends: a row may read
        // blocks that another row of the same step fills.
        self.prepare(on, pass, cache, &qkv)?;
        let mixed = first(&on.space.mixed, tokens * spec.q_width());
        self.attend(on, pass, cache, &qkv, &mixed)?;
        let given = first(&on.space.given, tokens * on.hidden);
        on.products.linear(&mixed, &self.output.weight, &given)?;
        Ok((given, self.output.bias.as_ref()))
    }

    /// Normalises and rotates queries and keys, and writes keys and values to the cache.
    fn prepare(&self, on: &Engine, pass: &Pass, cache: &LayerCache, qkv: &Array) -> Result<()> {
        let rope = self.rope.as_deref().zip(self.spec.rope.as_ref());
        let call = heads::Heads {
            heads: self.spec.heads,
            kv_heads: self.spec.kv_heads,
            head_size: self.spec.head_dim,
            bias: self.qkv.bias.as_ref(),
            norms: self.qk_norm.as_ref().map(head_norms),
            rope: rope.map(|(table, spec)| (table, spec.style)),
            query_scale: self.query_scale.as_deref(),
        };
        let places = heads::Places {
            positions: &pass.positions,
            slot_mapping: &pass.groups[cache.group].slot_mapping,
        };
        let caches = heads::Cache { k: &cache.k, v: &cache.v, block_size: cache.block_size };
        heads::heads(&on.gpu, qkv, &call, &places, &caches)
    }

    fn attend(
        &self,
        on: &Engine,
        pass: &Pass,
        cache: &LayerCache,
        qkv: &Array,
        mixed: &Array,
    ) -> Result<()> {
        let (spec, group) = (&self.spec, &pass.groups[cache.group]);
        let call = attention::Attention {
            q: attention::Queries {
                values: qkv,
                stride: self.qkv.weight.out_features,
                heads: spec.heads,
                head_size: spec.head_dim,
            },
            cache: attention::Cache {
                k: &cache.k,
                v: &cache.v,
                kv_heads: spec.kv_heads,
                block_size: cache.block_size,
                tables: &group.tables,
                max_blocks: group.max_blocks,
            },
            params: attention::Params {
                scale: spec.scale,
                window: spec.window,
                softcap: spec.softcap,
                sinks: self.sinks.as_ref(),
            },
            out: mixed,
        };
        if !attention::takes(qkv.dtype(), spec.head_dim) {
            return attention::simple(&on.gpu, &call, &pass.token_rows());
        }
        if let (Some(plan), Some(items)) = (&group.plan, pass.max_items()) {
            let bytes = attention::workspace_bytes(items, spec.heads, spec.head_dim);
            attention::decode(&on.gpu, &call, plan, &first(&on.space.partials, bytes))?;
        }
        if let Some(chunks) = &pass.chunks {
            attention::prefill(&on.gpu, &call, &chunks.rows(), &chunks.tiles)?;
        }
        Ok(())
    }
}

impl Mlp<Device> {
    /// The feed-forward block of the normalised stream, written to `to`, its bias still to be added.
    fn run(&self, on: &Engine, pass: &Pass, to: &Array) -> Result<(Array, Option<&Array>)> {
        let (tokens, both) = (pass.tokens, self.gate_up.weight.out_features);
        let normed = first(&on.space.normed, tokens * on.hidden);
        let gate_up = first(&on.space.gate_up, tokens * both);
        on.products.linear(&normed, &self.gate_up.weight, &gate_up)?;
        let inner = first(&on.space.inner, tokens * both / 2);
        let bias = self.gate_up.bias.as_ref().map(activation::Bias::One);
        let gated = activation::Gated { gate_up: &gate_up, half: both / 2, bias, act: self.act };
        activation::gated(&on.gpu, &gated, &inner)?;
        let out = first(to, tokens * on.hidden);
        on.products.linear(&inner, &self.down.weight, &out)?;
        Ok((out, self.down.bias.as_ref()))
    }
}

impl Moe<Device> {
    /// The experts of the normalised stream's tokens.
    fn run(&self, on: &Engine, pass: &Pass) -> Result<Array> {
        let Some(space) = &on.space.moe else {
            unreachable!("a model with experts has room for them")
        };
        let (tokens, spec) = (pass.tokens, &self.spec);
        let shape = moe::Shape { tokens, top_k: spec.routing.top_k, num_experts: spec.experts };
        let normed = first(&on.space.normed, tokens * on.hidden);
        let weights = first(&space.weights, shape.choices());
        let grouping = self.group(on, pass, (space, shape), (&normed, &weights))?;
        let rows = self.experts(on, (space, shape), &normed, &grouping)?;
        let shared = match &self.shared {
            Some(shared) => Some(self.shared_of(on, pass, shared, &space.shared)?),
            None => None,
        };
        let given = first(&on.space.given, tokens * on.hidden);
        moe::combine(&on.gpu, (&rows, &grouping), &weights, shared.as_ref(), &given)?;
        Ok(given)
    }

    /// Chooses experts, and brings the rows together by them.
    fn group(
        &self,
        on: &Engine,
        pass: &Pass,
        (space, shape): (&MoeSpace, moe::Shape),
        (normed, weights): (&Array, &Array),
    ) -> Result<moe::Grouping> {
        let logits = first(&space.logits, shape.tokens * shape.num_experts);
        on.products.linear(normed, &self.router.weight, &logits)?;
        let experts = first(&space.experts, shape.choices());
        let router = moe::Router {
            routing: &self.spec.routing,
            logits_bias: self.router.bias.as_ref(),
            select_bias: self.select_bias.as_ref(),
        };
        moe::route(&on.gpu, shape, &logits, &router, [&experts, weights])?;
        let grouping = moe::Grouping::new(&space.grouping, shape)?;
        grouping.fill(&on.gpu, &experts, Some(&pass.groups[0].slot_mapping))?;
        Ok(grouping)
    }

    /// Each row through its expert: `[T * k, hidden]`.
    fn experts(
        &self,
        on: &Engine,
        (space, shape): (&MoeSpace, moe::Shape),
        normed: &Array,
        grouping: &moe::Grouping,
    ) -> Result<Array> {
        let (inter, choices) = (self.spec.expert.inter, shape.choices());
        let gate_up = first(&space.gate_up, choices * 2 * inter);
        let experts = self.gate_up.device();
        moe::linear(&on.gpu, (normed, moe::Rows::Tokens), &experts, grouping, &gate_up)?;
        let inner = first(&space.inner, choices * inter);
        let act = self.spec.expert.act;
        let gated = activation::Gated { gate_up: &gate_up, half: inter, bias: None, act };
        activation::gated(&on.gpu, &gated, &inner)?;
        let rows = first(&space.rows, choices * on.hidden);
        let experts = self.down.device();
        moe::linear(&on.gpu, (&inner, moe::Rows::Grouped), &experts, grouping, &rows)?;
        Ok(rows)
    }

    fn shared_of(
        &self,
        on: &Engine,
        pass: &Pass,
        shared: &Mlp<Device>,
        to: &Array,
    ) -> Result<Array> {
        let (out, bias) = shared.run(on, pass, to)?;
        assert!(bias.is_none(), "shared experts have no bias: the spec has none");
        Ok(out)
    }
}

impl crate::candle::moe::Experts<Device> {
    fn device(&self) -> moe::Experts {
        let bias = self.bias.clone();
        moe::Experts { bias, ..self.weights.weights.clone() }
    }
}
