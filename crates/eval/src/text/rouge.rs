//! ROUGE-L as rouge-score computes it without a stemmer.

use std::collections::HashMap;

use super::f1;

/// F1 of the longest common subsequence of words. A word is a run of ASCII letters and digits, so that text in other
/// scripts has none and scores 0: a limit of the reference implementation, kept so that values compare.
pub(crate) fn rouge_l(text: &str, reference: &str) -> f64 {
    let (text, reference) = (text.to_lowercase(), reference.to_lowercase());
    let (text, reference) = (words(&text), words(&reference));
    if text.is_empty() || reference.is_empty() {
        return 0.0;
    }
    let length = common_subsequence(&reference, &text) as f64;
    f1(length / text.len() as f64, length / reference.len() as f64)
}

fn words(lower: &str) -> Vec<&str> {
    let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    lower.split(|c| !is_part(c)).filter(|word| !word.is_empty()).collect()
}

/// Length of the longest common subsequence, 64 words of `left` at a time (Hyyrö 2004): a zero bit of `row` says that the
/// subsequence with the words of `right` so far grows at that word of `left`.
fn common_subsequence(left: &[&str], right: &[&str]) -> usize {
    let mut positions: HashMap<&str, Vec<usize>> = HashMap::new();
    left.iter().enumerate().for_each(|(idx, word)| positions.entry(word).or_default().push(idx));
    let mut row = vec![u64::MAX; left.len().div_ceil(64)];
    let mut matches = vec![0u64; row.len()];
    for positions in right.iter().filter_map(|word| positions.get(word)) {
        positions.iter().for_each(|idx| matches[idx / 64] |= 1 << (idx % 64));
        let mut carry = false;
        for (bits, matches) in row.iter_mut().zip(&matches) {
            let (sum, first) = bits.overflowing_add(*bits & matches);
            let (sum, second) = sum.overflowing_add(u64::from(carry));
            carry = first || second;
            *bits = sum | (*bits & !matches);
        }
        positions.iter().for_each(|idx| matches[idx / 64] = 0);
    }
    (0..left.len()).filter(|idx| row[idx / 64] >> (idx % 64) & 1 == 0).count()
}

#[cfg(test)]
mod tests {
    use rand::{RngExt as _, SeedableRng as _};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// The table of the definition.
    fn by_table(left: &[&str], right: &[&str]) -> usize {
        let mut table = vec![vec![0; right.len() + 1]; left.len() + 1];
        for (i, a) in left.iter().enumerate() {
            for (j, b) in right.iter().enumerate() {
                table[i + 1][j + 1] = if a == b { table[i][j] + 1 } else { table[i][j + 1].max(table[i + 1][j]) };
            }
        }
        table[left.len()][right.len()]
    }

    #[test]
    fn the_longest_common_subsequence_is_that_of_the_table() {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        for n_words in [2, 5, 40] {
            for _ in 0..200 {
                let mut draw = || -> Vec<&str> {
                    let words = "a b c d e f g h i j k l m n o p q r s t u v w x y z 0 1 2 3 4 5 6 7 8 9 aa bb cc dd";
                    let words: Vec<&str> = words.split(' ').take(n_words).collect();
                    (0..rng.random_range(0..200)).map(|_| words[rng.random_range(0..words.len())]).collect()
                };
                let (left, right) = (draw(), draw());
                assert_eq!(common_subsequence(&left, &right), by_table(&left, &right));
            }
        }
    }
}
