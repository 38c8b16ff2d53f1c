//! The order of tokens by likelihood, and cuts through it, without sorting a vocabulary.
//!
//! A token's *rank key* is a number that is larger the likelier the token is; among equal logits
//! the smaller id has the larger key. No two tokens have the same key, so every cut is exact: the
//! tokens kept are those whose key is at least the cut.

/// The rank key of a token. The logit is not NaN.
pub(super) fn key(logit: f32, id: u32) -> u64 {
    // -0 and 0 are equal logits.
    let bits = (logit + 0.0).to_bits();
    // Of negative numbers a larger pattern is a smaller number: turn them around, below the others.
    let ordered = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    u64::from(ordered) << 32 | u64::from(!id)
}

/// The token of a rank key.
pub(super) fn id(key: u64) -> u32 {
    !(key as u32)
}

/// Leaves in `top` the `n` largest keys of the logits, or all of them if there are fewer, in no
/// particular order. The time is linear in the number of logits.
pub(super) fn select_top(logits: &[f32], n: usize, top: &mut Vec<u64>) {
    top.clear();
    if n == 0 {
        return;
    }
    // Candidates gather above a threshold, which rises each time that twice as many as needed are
    // there: the n best of them stay.
    let (capacity, mut threshold) = ((2 * n).max(64), 0);
    for (id, logit) in logits.iter().enumerate() {
        let key = key(*logit, id as u32);
        if key <= threshold {
            continue;
        }
        top.push(key);
        if top.len() == capacity {
            threshold = keep_largest(top, n);
        }
    }
    if top.len() > n {
        keep_largest(top, n);
    }
}

/// Cuts `keys` down to its `n` largest, `1 <= n <= keys.len()`, and returns the smallest of these.
fn keep_largest(keys: &mut Vec<u64>, n: usize) -> u64 {
    let (_, smallest, _) = keys.select_nth_unstable_by(n - 1, |a, b| b.cmp(a));
    let smallest = *smallest;
    keys.truncate(n);
    smallest
}

/// The cut that keeps the fewest tokens, likeliest first, whose weights sum to at least `mass`.
///
/// `tokens` are (rank key, weight), at least one, and sum to `mass` or more; their order changes.
/// Linear in their number on average: each round halves the tokens among which the cut lies.
pub(super) fn cut_by_mass(tokens: &mut [(u64, u64)], mut mass: u64) -> u64 {
    let mut tokens = tokens;
    while tokens.len() > 1 {
        let middle = (tokens.len() - 1) / 2;
        tokens.select_nth_unstable_by(middle, |a, b| b.0.cmp(&a.0));
        let (likelier, others) = tokens.split_at_mut(middle + 1);
        let sum: u64 = likelier.iter().map(|(_, weight)| weight).sum();
        if sum >= mass {
            tokens = likelier;
        } else {
            mass -= sum;
            tokens = others;
        }
    }
    tokens[0].0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_order_tokens_by_logit_and_then_by_id() {
        let ordered = [
            (f32::INFINITY, 9),
            (3.5, 2),
            (f32::MIN_POSITIVE, 4),
            (0.0, 1),
            (-0.0, 2),
            (0.0, 3),
            (-1.0, 0),
            (f32::MIN, 5),
            (f32::NEG_INFINITY, 6),
        ];
        let keys = ordered.map(|(logit, id)| key(logit, id));
        assert!(keys.is_sorted_by(|likelier, other| likelier > other));
        assert_eq!(keys.map(id), ordered.map(|(_, id)| id));
    }

    #[test]
    fn the_top_is_that_of_a_sorted_vocabulary_in_any_order() {
        let rising: Vec<f32> = (0..500).map(|i| i as f32 - 250.0).collect();
        let falling: Vec<f32> = rising.iter().rev().copied().collect();
        let equal = vec![1.5; 500];
        let zigzag: Vec<f32> = (0..500).map(|i| ((i * 7919) % 97) as f32).collect();
        for logits in [rising, falling, equal, zigzag] {
            let mut sorted: Vec<u64> =
                logits.iter().enumerate().map(|(id, logit)| key(*logit, id as u32)).collect();
            sorted.sort_unstable_by(|a, b| b.cmp(a));
            for n in [0, 1, 2, 31, 32, 33, 250, 499, 500, 501, 5000] {
                let mut top = Vec::new();
                select_top(&logits, n, &mut top);
                top.sort_unstable_by(|a, b| b.cmp(a));
                assert_eq!(top, sorted[..n.min(500)]);
            }
        }
    }

    #[test]
    fn the_cut_keeps_the_fewest_tokens_with_the_mass() {
        let weights = [50, 20, 20, 5, 3, 1, 1, 0];
        let cases =
            [(1, 1), (50, 1), (51, 2), (70, 2), (71, 3), (90, 3), (98, 5), (99, 6), (100, 7)];
        for (mass, num_kept) in cases {
            for rotation in 0..weights.len() {
                let mut tokens: Vec<(u64, u64)> =
                    weights.iter().enumerate().map(|(rank, w)| (100 - rank as u64, *w)).collect();
                tokens.rotate_left(rotation);
                assert_eq!(cut_by_mass(&mut tokens, mass), 101 - num_kept, "mass {mass}");
            }
        }
    }
}
