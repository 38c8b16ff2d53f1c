//! Route as its formula says, in f64, by sorting.

use super::{Groups, Order, Routing, Score};

fn score(kind: Score, x: &[f64]) -> Vec<f64> {
    let total: f64 = x.iter().map(|x| x.exp()).sum();
    match kind {
        Score::Softmax => x.iter().map(|x| x.exp() / total).collect(),
        Score::Sigmoid => x.iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect(),
    }
}

/// `ids` by falling value; of equals, the first one first.
fn sorted(ids: impl Iterator<Item = usize>, value: impl Fn(usize) -> f64) -> Vec<usize> {
    let mut ids: Vec<usize> = ids.collect();
    ids.sort_by(|&a, &b| value(b).total_cmp(&value(a)));
    ids
}

/// The experts and weights of one token.
pub(super) fn route(logits: &[f32], bias: &[f32], routing: &Routing) -> (Vec<u32>, Vec<f32>) {
    let logits: Vec<f64> = logits.iter().map(|&x| f64::from(x)).collect();
    let scores = match routing.order {
        Order::ScoreThenTopK => score(routing.score, &logits),
        Order::TopKThenScore => logits,
    };
    let choice = |e: usize| scores[e] + f64::from(bias[e]);
    let Groups { num, keep } = routing.groups.unwrap_or(Groups { num: 1, keep: 1 });
    let size = scores.len() / num;
    let worth = |group: usize| {
        let members = sorted(group * size..(group + 1) * size, choice);
        members.into_iter().take(2).map(choice).sum()
    };
    let kept = &sorted(0..num, worth)[..keep];
    let allowed = (0..scores.len()).filter(|e| kept.contains(&(e / size)));
    let chosen = &sorted(allowed, choice)[..routing.top_k];
    let mut weights: Vec<f64> = chosen.iter().map(|&e| scores[e]).collect();
    if routing.order == Order::TopKThenScore {
        weights = score(routing.score, &weights);
    }
    if routing.renormalize {
        let total: f64 = weights.iter().sum();
        weights.iter_mut().for_each(|weight| *weight /= total);
    }
    let weights = weights.iter().map(|weight| (weight * f64::from(routing.scale)) as f32);
    (chosen.iter().map(|&e| e as u32).collect(), weights.collect())
}
