//! The one decoder: embedding, layers, norm, head, as the spec composes them.
//!
//! It holds weights and no state: what a sequence has seen is in the cache, which it is given.

use super::asked::Asked;
use super::cache::KvCache;
use super::clock::Part;
use super::layers::{Attention, LayerPass, Mlp, Norm, Pass};
use super::moe::Moe;
use super::spec::{Embed, Ffn, Head, LayerSpec, Mixer, ModelSpec, PositionScale, Rope, Wiring};
use super::weights::keep::{Host, Keep};
use super::weights::layer::LayerWeights;
use super::weights::names::NormRole;
use super::weights::{Role, Weights, rows};
use super::workspace::Workspace;
use crate::LoadError;
use candle_core::{DType, Tensor};
use half::{bf16, f16};
use millstream_kernels::embedding::{Table, embedding_into};
use millstream_kernels::linear::linear_into;
use millstream_kernels::norm::norm_rows;
use millstream_kernels::residual::{Given, residual};
use millstream_kernels::rope::RopeTable;
use millstream_kernels::rows::keep_rows;
use millstream_kernels::{KernelError, logits};
use std::sync::Arc;

type Result<T, E = KernelError> = std::result::Result<T, E>;

/// A model's weights, ready to compute where `K` keeps them.
pub(crate) struct Decoder<K: Keep> {
    /// `[vocab, hidden]`; none where the head is the same matrix.
    pub(crate) embed: Option<K::Table>,
    pub(crate) embed_scale: Option<f32>,
    pub(crate) layers: Vec<Layer<K>>,
    pub(crate) final_norm: Norm<K>,
    pub(crate) head: K::Matrix,
    pub(crate) head_spec: Head,
}

pub(crate) struct Layer<K: Keep> {
    pub(crate) pre_mix: Option<Norm<K>>,
    pub(crate) mixer: Attention<K>,
    pub(crate) post_mix: Option<Norm<K>>,
    pub(crate) pre_ffn: Option<Norm<K>>,
    pub(crate) ffn: FeedForward<K>,
    pub(crate) post_ffn: Option<Norm<K>>,
    pub(crate) wiring: Wiring,
    pub(crate) residual_scale: Option<f32>,
}

pub(crate) enum FeedForward<K: Keep> {
    Dense(Mlp<K>),
    Moe(Box<Moe<K>>),
}

impl<K: Keep> Decoder<K> {
    /// Takes every tensor of the spec from `weights`. Positions go up to `max_model_len`.
    pub(crate) fn load(
        spec: &ModelSpec,
        weights: &mut Weights<K>,
        max_model_len: usize,
    ) -> Result<Self, LoadError> {
        let (vocab, hidden) = (spec.vocab, spec.hidden);
        let names = weights.names(spec.layout, spec.layers.len());
        // A tied head serves as the table, too.
        let embed = match spec.head.tied {
            true => None,
            false => Some(weights.table(names.embed(), [vocab, hidden])?),
        };
        let head = if spec.head.tied { names.embed() } else { names.head() };
        let head = weights.matrix(&[rows::Part::whole(head, vocab)], hidden, Role::Head)?;
        let mut tables = PositionTables::new(max_model_len);
        let mut layers = Vec::with_capacity(spec.layers.len());
        for (index, layer) in spec.layers.iter().enumerate() {
            let mut from = LayerWeights { weights, names: &names, index, hidden };
            layers.push(Layer::load(&mut from, layer, &mut tables)?);
        }
        let final_norm = weights.vector(&[(names.final_norm(), hidden)])?;
        let final_norm = Norm::new(weights, final_norm, spec.final_norm)?;
        Ok(Self {
            embed,
            embed_scale: embed_scale(&spec.embed, weights.dtype()),
            layers,
            final_norm,
            head,
            head_spec: spec.head.clone(),
        })
    }
}

impl Decoder<Host> {
    /// Runs the tokens of a pass, writes their keys and values to the cache, and returns the
    /// residual stream after the last layer of those at `rows`, which rise: `[R, hidden]`, which is
    /// the workspace's.
    pub(crate) fn forward(
        &self,
        (ids, rows): (&[u32], &[u32]),
        pass: &Pass<'_>,
        cache: &KvCache,
        space: &mut Workspace,
    ) -> Result<Tensor> {
        let table = self.embed.as_ref().map_or(Table::Packed(&self.head), Table::Stored);
        let x = space.stream.matrix(ids.len(), self.head.in_features())?; // [T,hidden]
        embedding_into(table, ids, self.embed_scale, &x)?;
        pass.clock.lap(Part::Embedding);
        let (mut x, mut given) = (x, None);
        for (index, (layer, cache)) in self.layers.iter().zip(&cache.layers).enumerate() {
            let is_last = index + 1 == self.layers.len();
            let narrows = is_last && rows.len() < ids.len();
            let asked = narrows.then(|| Asked::new(rows, pass, cache.group));
            let half = layer.forward(&mut x, given, &LayerPass { pass, cache, asked }, space)?;
            given = Some(half);
        }
        if let Some(given) = given {
            given.join(&x, None)?;
        }
        pass.clock.lap(Part::Norms);
        Ok(x)
    }

    /// Logits of the tokens at `rows` of the residual stream: `[rows, vocab]`, which are the
    /// workspace's.
    pub(crate) fn logits(&self, x: &Tensor, rows: &[u32], space: &mut Workspace) -> Result<Tensor> {
        let last = space.last.matrix(rows.len(), self.head.in_features())?; // [rows,hidden]
        norm_rows(x, rows, &self.final_norm.op(), &last)?;
        let logits = space.logits.matrix(rows.len(), self.head.out_features())?; // [rows,vocab]
        linear_into(&last, &self.head, None, &logits)?;
        logits::bend(&logits, self.head_spec.scale, self.head_spec.softcap)?;
        Ok(logits)
    }
}

/// What half a layer gave, and how it joins the residual stream.
struct Joining<'a> {
    /// `[T, hidden]`.
    y: Tensor,
    post: Option<&'a Norm<Host>>,
    scale: Option<f32>,
}

impl Joining<'_> {
    /// Adds itself to the stream `x`, whose norm goes to the second of `normed`.
    fn join(&self, x: &Tensor, normed: Option<(&Norm<Host>, &Tensor)>) -> Result<()> {
        let given = Given { y: &self.y, post: self.post.map(Norm::op), scale: self.scale };
        residual(x, Some(&given), normed.map(|(norm, out)| (norm.op(), out)))
    }
}

impl<K: Keep> Layer<K> {
    fn load(
        from: &mut LayerWeights<'_, K>,
        spec: &LayerSpec,
        tables: &mut PositionTables<K>,
    ) -> Result<Self, LoadError> {
        let Mixer::Attention(attention) = &spec.mixer;
        let norms = &spec.norms;
        Ok(Self {
            pre_mix: Norm::load(from, NormRole::PreMix, norms.pre_mix)?,
            mixer: Attention::load(from, attention, tables)?,
            post_mix: Norm::load(from, NormRole::PostMix, norms.post_mix)?,
            pre_ffn: Norm::load(from, NormRole::PreFfn, norms.pre_ffn)?,
            ffn: FeedForward::load(from, &spec.ffn)?,
            post_ffn: Norm::load(from, NormRole::PostFfn, norms.post_ffn)?,
            wiring: spec.wiring,
            residual_scale: spec.residual_scale,
        })
    }
}

impl Layer<Host> {
    /// Lets what the layer before gave join the stream `x` `[T, hidden]`, and the first half of this
    /// layer's, too; gives what the second half gave. So each joins in one pass with the norm that
    /// follows it. Where some tokens are asked for, `x` becomes theirs after the first half.
    fn forward<'a>(
        &'a self,
        x: &mut Tensor,
        given: Option<Joining<'a>>,
        at: &LayerPass<'_>,
        space: &mut Workspace,
    ) -> Result<Joining<'a>> {
        let clock = at.pass.clock;
        let mut h = joined(x, given, self.pre_mix.as_ref(), space)?; // [T,hidden]
        clock.lap(Part::Norms);
        let y = self.mixer.forward(&h, at, space)?; // [R,hidden]
        if let Some(asked) = &at.asked {
            *x = keep_rows(x, asked.rows)?; // [R,hidden]
        }
        let mixed = Joining { y, post: self.post_mix.as_ref(), scale: self.residual_scale };
        h = match self.wiring {
            Wiring::Sequential => joined(x, Some(mixed), self.pre_ffn.as_ref(), space)?,
            Wiring::Parallel => {
                // What the feed-forward reads is not what is added to.
                h = match (&self.pre_mix, &at.asked) {
                    (None, _) => x.copy()?,
                    (Some(_), None) => h,
                    (Some(_), Some(asked)) => keep_rows(&h, asked.rows)?,
                };
                mixed.join(x, None)?;
                h
            }
        }; // [R,hidden]
        clock.lap(Part::Norms);
        let y = self.ffn.forward(&h, space)?; // [R,hidden]
        clock.lap(Part::Mlp);
        Ok(Joining { y, post: self.post_ffn.as_ref(), scale: self.residual_scale })
    }
}

impl<K: Keep> FeedForward<K> {
    fn load(from: &mut LayerWeights<'_, K>, spec: &Ffn) -> Result<Self, LoadError> {
        match spec {
            Ffn::Dense(mlp) => Ok(Self::Dense(Mlp::load(from, "mlp", mlp)?)),
            Ffn::Moe(moe) => Ok(Self::Moe(Box::new(Moe::load(from, moe)?))),
        }
    }
}

impl FeedForward<Host> {
    /// `x` and the result are `[T, hidden]`.
    fn forward(&self, x: &Tensor, space: &mut Workspace) -> Result<Tensor> {
        match self {
            Self::Dense(mlp) => mlp.forward(x, space),
            Self::Moe(moe) => moe.forward(x, space),
        }
    }
}

/// The stream `x` after `given` has joined it, normalised; the stream itself where there is no norm.
fn joined(
    x: &Tensor,
    given: Option<Joining<'_>>,
    norm: Option<&Norm<Host>>,
    space: &mut Workspace,
) -> Result<Tensor> {
    let Some(norm) = norm else {
        given.map_or(Ok(()), |given| given.join(x, None))?;
        return Ok(x.clone());
    };
    let (tokens, hidden) = x.dims2()?;
    let h = space.normed.matrix(tokens, hidden)?;
    match given {
        Some(given) => given.join(x, Some((norm, &h)))?,
        None => residual(x, None, Some((norm.op(), &h)))?,
    }
    Ok(h)
}

/// The factor on the embedding, as it was in training.
fn embed_scale(spec: &Embed, dtype: DType) -> Option<f32> {
    spec.scale.map(|scale| match (spec.round_scale, dtype) {
        (true, DType::BF16) => bf16::from_f32(scale).to_f32(),
        (true, DType::F16) => f16::from_f32(scale).to_f32(),
        _ => scale,
    })
}

/// What depends on positions: one table per distinct rotation or factor, which layers that are alike
/// share.
pub(crate) struct PositionTables<K: Keep> {
    ropes: Vec<(Rope, Arc<K::Rope>)>,
    factors: Vec<(PositionScale, Arc<K::Factors>)>,
    max_model_len: usize,
}

impl<K: Keep> PositionTables<K> {
    fn new(max_model_len: usize) -> Self {
        Self { ropes: Vec::new(), factors: Vec::new(), max_model_len }
    }

    pub(crate) fn rope(&mut self, rope: &Rope, keep: &mut K) -> Result<Arc<K::Rope>, LoadError> {
        if let Some((_, table)) = self.ropes.iter().find(|(known, _)| known == rope) {
            return Ok(table.clone());
        }
        let table = RopeTable::new(&rope.inv_freq(), rope.attention_factor(), self.max_model_len);
        let table = Arc::new(keep.rope(table)?);
        self.ropes.push((rope.clone(), table.clone()));
        Ok(table)
    }

    pub(crate) fn factors(
        &mut self,
        scale: PositionScale,
        keep: &mut K,
    ) -> Result<Arc<K::Factors>, LoadError> {
        if let Some((_, factors)) = self.factors.iter().find(|(known, _)| *known == scale) {
            return Ok(factors.clone());
        }
        let factors = Arc::new(keep.factors(scale, self.max_model_len)?);
        self.factors.push((scale, factors.clone()));
        Ok(factors)
    }
}
