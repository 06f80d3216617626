//! What texts have in common, as the reference implementations of each metric count it.

pub(crate) mod bleu;
pub(crate) mod chrf;
pub(crate) mod rouge;
pub(crate) mod squad;

use std::collections::HashMap;
use std::hash::Hash;

/// White space as Python's `str.split` takes it: Unicode's, and the four separators of ASCII.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// How often each run of `n` items occurs.
fn n_grams<T: Eq + Hash>(items: &[T], n: usize) -> HashMap<&[T], u64> {
    let mut counts = HashMap::new();
    items.windows(n).for_each(|run| *counts.entry(run).or_default() += 1);
    counts
}

/// Harmonic mean; 0 where both are.
fn f1(precision: f64, recall: f64) -> f64 {
    if precision + recall > 0.0 { 2.0 * precision * recall / (precision + recall) } else { 0.0 }
}

/// The largest value over the references; the closest one counts.
pub(crate) fn best(references: &[String], value: impl Fn(&str) -> f64) -> f64 {
    references.iter().map(|reference| value(reference)).fold(0.0, f64::max)
}
