//! chrF as sacrebleu computes it by default: character n-grams up to 6 without white space, beta 2.

use super::{is_space, n_grams};

/// Longest n-gram.
const MAX_N: usize = 6;

/// Recall counts this many times as much as precision, squared.
const BETA_SQUARED: f64 = 4.0;

/// What a case adds to the corpus, for each n: its n-grams, those of the reference, those both have.
pub(crate) type Sums = [f64; 3 * MAX_N];

/// Compares `text` with the reference that it scores highest with.
pub(crate) fn sums(text: &str, references: &[String]) -> Sums {
    let text = characters(text);
    let mut best = ([0.0; 3 * MAX_N], -1.0);
    for reference in references {
        let sums = shared(&text, &characters(reference));
        let score = score(&sums);
        if score > best.1 {
            best = (sums, score);
        }
    }
    best.0
}

/// chrF of the sums over all cases, from 0 to 1: precision and recall are means over the n that both sides have.
pub(crate) fn score(sums: &Sums) -> f64 {
    let (mut precision, mut recall, mut n_orders) = (0.0, 0.0, 0.0);
    for order in sums.chunks_exact(3).filter(|order| order[0] > 0.0 && order[1] > 0.0) {
        precision += order[2] / order[0];
        recall += order[2] / order[1];
        n_orders += 1.0;
    }
    if precision + recall == 0.0 {
        return 0.0;
    }
    let (precision, recall) = (precision / n_orders, recall / n_orders);
    ((1.0 + BETA_SQUARED) * precision * recall / (BETA_SQUARED * precision + recall)).min(1.0)
}

fn shared(text: &[char], reference: &[char]) -> Sums {
    let mut sums = [0.0; 3 * MAX_N];
    for (idx, order) in sums.chunks_exact_mut(3).enumerate() {
        let (ours, theirs) = (n_grams(text, idx + 1), n_grams(reference, idx + 1));
        let both = ours.iter().filter_map(|(n_gram, &count)| Some(count.min(*theirs.get(n_gram)?)));
        order[2] = both.sum::<u64>() as f64;
        order[1] = theirs.values().sum::<u64>() as f64;
        // A reference too short for any n-gram of this length asks for none.
        order[0] = if theirs.is_empty() { 0.0 } else { ours.values().sum::<u64>() as f64 };
    }
    sums
}

fn characters(text: &str) -> Vec<char> {
    text.chars().filter(|&c| !is_space(c)).collect()
}
