//! Route on the CPU: token by token, with short sorted lists of the best so far.

use crate::dot::sum;
use crate::parallel;
use crate::simd::math::{exp, sigmoid};
use crate::simd::{Level, Simd, Task};
use crate::view::Rows;

use super::{Groups, Order, Routes, Routing, Score};

/// Tokens that one thread takes at a time.
const PIECE: usize = 16;

/// `logits [T, E]`, `select_bias [E]`, a checked routing.
pub(super) fn route(logits: Rows<'_>, select_bias: Option<&[f32]>, routing: &Routing) -> Routes {
    let (level, top_k) = (Level::current(), routing.top_k);
    let mut experts = vec![0; logits.count * top_k];
    let mut weights = vec![0.0; logits.count * top_k];
    let parts = experts.chunks_mut(PIECE * top_k).zip(weights.chunks_mut(PIECE * top_k));
    let piece = |(i, (experts, weights))| Piece {
        logits,
        first: i * PIECE,
        select_bias,
        routing,
        experts,
        weights,
    };
    let pieces: Vec<Piece<'_>> = parts.enumerate().map(piece).collect();
    // Some 4 nanoseconds per logit.
    parallel::for_each(pieces, logits.count * logits.len * 4, |piece| level.run(piece));
    Routes { experts, weights, top_k }
}

/// The tokens from `first` on, as many as there are results.
struct Piece<'a> {
    logits: Rows<'a>,
    first: usize,
    select_bias: Option<&'a [f32]>,
    routing: &'a Routing,
    experts: &'a mut [u32],
    weights: &'a mut [f32],
}

impl Task for Piece<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Routing { top_k, score, order, .. } = *self.routing;
        let results =
            self.experts.chunks_exact_mut(top_k).zip(self.weights.chunks_exact_mut(top_k));
        for (t, (experts, weights)) in results.enumerate() {
            let mut scores = self.logits.row(self.first + t).to_vec();
            if order == Order::ScoreThenTopK {
                apply(s, score, &mut scores);
            }
            let chosen = choose(&scores, self.select_bias, self.routing);
            for ((expert, weight), id) in experts.iter_mut().zip(&mut *weights).zip(chosen) {
                (*expert, *weight) = (id, scores[id as usize]);
            }
            if order == Order::TopKThenScore {
                apply(s, score, weights);
            }
            if self.routing.renormalize {
                // Where the scores of all are too small for f32, nothing is divided by 0.
                let total = sum(s, weights) + 1e-20;
                weights.iter_mut().for_each(|weight| *weight /= total);
            }
            weights.iter_mut().for_each(|weight| *weight *= self.routing.scale);
        }
    }
}

/// From logits to scores.
#[inline(always)]
fn apply<S: Simd>(s: S, score: Score, x: &mut [f32]) {
    match score {
        Score::Softmax => {
            let max = x.iter().fold(f32::NEG_INFINITY, |max, &x| if x > max { x } else { max });
            x.iter_mut().for_each(|x| *x = exp::<S>(*x - max));
            let total = sum(s, x);
            x.iter_mut().for_each(|x| *x /= total);
        }
        Score::Sigmoid => x.iter_mut().for_each(|x| *x = sigmoid::<S>(*x)),
    }
}

/// The experts that a token with these `scores` goes to. Comparisons of one number with another: a
/// wide instruction set has nothing to add, so this and [`top`] are not inlined into the task.
fn choose(
    scores: &[f32],
    select_bias: Option<&[f32]>,
    routing: &Routing,
) -> impl Iterator<Item = u32> {
    let choice = |id: usize| scores[id] + select_bias.map_or(0.0, |bias| bias[id]);
    let all = 0..scores.len();
    let chosen = match routing.groups {
        None => top(all.map(|id| (id, choice(id))), routing.top_k),
        Some(Groups { num, keep }) => {
            let size = scores.len() / num;
            let worth = |group: usize| {
                let members = group * size..(group + 1) * size;
                top(members.map(|id| (id, choice(id))), 2).iter().map(|(_, choice)| choice).sum()
            };
            let kept = top((0..num).map(|group| (group, worth(group))), keep);
            let is_kept = |id: &usize| kept.iter().any(|&(group, _)| group == id / size);
            top(all.filter(is_kept).map(|id| (id, choice(id))), routing.top_k)
        }
    };
    chosen.into_iter().map(|(id, _)| id as u32)
}

/// The `count` largest values, not 0 of them, with their ids; the largest first, and of equals the
/// one that came first.
fn top(values: impl Iterator<Item = (usize, f32)>, count: usize) -> Vec<(usize, f32)> {
    let mut best: Vec<(usize, f32)> = Vec::with_capacity(count);
    for (id, value) in values {
        // A NaN is larger than any number.
        let is_larger = |other: f32| value > other || value.is_nan() && !other.is_nan();
        let at = best.iter().rposition(|&(_, other)| !is_larger(other)).map_or(0, |last| last + 1);
        if at < count {
            best.truncate(count - 1);
            best.insert(at, (id, value));
        }
    }
    best
}
