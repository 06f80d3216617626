use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Sequential, SequentialFlips, wilson};

/// Labels of one set of answers; more share a place.
const MAX_LABELS: usize = 1000;
/// Where they go.
const OTHER: &str = "(other)";

/// Right labels against answered ones, as counts that add up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Confusion {
    /// By right label, then by answered one.
    counts: BTreeMap<String, BTreeMap<String, u64>>,
}

/// A share with its intervals.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Rate {
    /// The share.
    pub value: f64,
    /// Of how many.
    pub n: u64,
    /// Wilson's interval at 95 %, for one look.
    pub interval: [f64; 2],
}

/// How one label is met.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LabelQuality {
    /// The label.
    pub label: String,
    /// Of the answers with this label, those that were right.
    pub precision: Rate,
    /// Of the inputs with this label, those that were answered so.
    pub recall: Rate,
    /// Their harmonic mean. Its interval is exact in the sense of Wilson's: F1 is 2J / (1 + J) of the share J of inputs that are in
    /// both sets among those that are in either.
    pub f1: Rate,
}

impl Rate {
    fn of(k: u64, n: u64) -> Self {
        Self { value: k as f64 / n.max(1) as f64, n, interval: wilson(k, n, 0.95) }
    }

    fn map(self, with: impl Fn(f64) -> f64) -> Self {
        Self { value: with(self.value), n: self.n, interval: self.interval.map(with) }
    }
}

impl Confusion {
    /// Counts an answer.
    pub fn add(&mut self, right: &str, answered: &str) {
        let right = if self.counts.contains_key(right) || self.counts.len() < MAX_LABELS { right } else { OTHER };
        let row = self.counts.entry(right.to_owned()).or_default();
        let answered = if row.contains_key(answered) || row.len() < MAX_LABELS { answered } else { OTHER };
        let count = row.entry(answered.to_owned()).or_default();
        *count = count.saturating_add(1);
    }

    /// Takes an answer back that was counted.
    pub fn remove(&mut self, right: &str, answered: &str) {
        if let Some(count) = self.counts.get_mut(right).and_then(|row| row.get_mut(answered)) {
            *count = count.saturating_sub(1);
        }
    }

    /// Adds what another counted.
    pub fn merge(&mut self, other: &Self) {
        for (right, row) in &other.counts {
            for (answered, n) in row {
                let count = self.counts.entry(right.clone()).or_default().entry(answered.clone()).or_default();
                *count = count.saturating_add(*n);
            }
        }
    }

    /// Every right label, answered one and count.
    pub fn cells(&self) -> impl Iterator<Item = (&str, &str, u64)> {
        self.counts
            .iter()
            .flat_map(|(right, row)| row.iter().map(move |(answered, &n)| (right.as_str(), answered.as_str(), n)))
            .filter(|(_, _, n)| *n > 0)
    }

    /// `[wrong, right]` answers.
    pub fn wrong_and_right(&self) -> [u64; 2] {
        self.cells().fold([0, 0], |mut sum, (right, answered, n)| {
            sum[usize::from(right == answered)] += n;
            sum
        })
    }

    /// The share of right answers.
    pub fn accuracy(&self) -> Rate {
        let [wrong, right] = self.wrong_and_right();
        Rate::of(right, wrong + right)
    }

    /// Bounds of the true accuracy that are *ever* wrong with probability at most 5 %, however often they are looked at.
    pub fn accuracy_always(&self) -> [f64; 2] {
        let [wrong, right] = self.wrong_and_right();
        SequentialFlips { n_regressions: right, n_improvements: wrong }.share_bounds(0.05)
    }

    /// Of every label that was right or answered, in their order.
    pub fn by_label(&self) -> Vec<LabelQuality> {
        let mut labels: Vec<&str> = self.cells().flat_map(|(right, answered, _)| [right, answered]).collect();
        labels.sort_unstable();
        labels.dedup();
        labels.into_iter().map(|label| self.of_label(label)).collect()
    }

    fn of_label(&self, label: &str) -> LabelQuality {
        let (mut both, mut answered_so, mut is_so) = (0, 0, 0);
        for (right, answered, n) in self.cells() {
            both += if right == label && answered == label { n } else { 0 };
            answered_so += if answered == label { n } else { 0 };
            is_so += if right == label { n } else { 0 };
        }
        LabelQuality {
            label: label.to_owned(),
            precision: Rate::of(both, answered_so),
            recall: Rate::of(both, is_so),
            f1: Rate::of(both, answered_so + is_so - both).map(|jaccard| 2.0 * jaccard / (1.0 + jaccard)),
        }
    }
}

/// Where the first relevant document stood in a reranker's order, as counts that add up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ranks {
    /// By rank, from 1.
    counts: BTreeMap<u32, u64>,
}

impl Ranks {
    /// Counts a request whose relevant document stood at `rank`, from 1.
    pub fn add(&mut self, rank: u32) {
        let count = self.counts.entry(rank.clamp(1, 1000)).or_default();
        *count = count.saturating_add(1);
    }

    /// Takes a request back that was counted.
    pub fn remove(&mut self, rank: u32) {
        if let Some(count) = self.counts.get_mut(&rank.clamp(1, 1000)) {
            *count = count.saturating_sub(1);
        }
    }

    /// Adds what another counted.
    pub fn merge(&mut self, other: &Self) {
        for (rank, n) in &other.counts {
            let count = self.counts.entry(*rank).or_default();
            *count = count.saturating_add(*n);
        }
    }

    /// How many requests.
    pub fn n(&self) -> u64 {
        self.counts.values().sum()
    }

    /// Mean reciprocal rank, with bounds that are ever wrong with probability at most 5 %.
    pub fn reciprocal(&self) -> Rate {
        self.mean(|rank| 1.0 / f64::from(rank))
    }

    /// Mean nDCG over the first ten of requests with one relevant document, with the same bounds.
    pub fn ndcg_10(&self) -> Rate {
        self.mean(|rank| if rank <= 10 { 1.0 / f64::from(rank + 1).log2() } else { 0.0 })
    }

    fn mean(&self, of: impl Fn(u32) -> f64) -> Rate {
        let n = self.n();
        let sum: f64 = self.counts.iter().map(|(&rank, &n)| n as f64 * of(rank)).sum();
        let mut always = Sequential::new(0.025, 0.0).expect("the level is between 0 and 1");
        self.counts
            .iter()
            .for_each(|(&rank, &n)| always.observe_times(of(rank), n).expect("the value is between 0 and 1"));
        let interval = always.bounds().map(|bound| bound.clamp(0.0, 1.0));
        Rate { value: sum / n.max(1) as f64, n, interval }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quality_of_counts_is_that_of_the_answers() {
        let mut confusion = Confusion::default();
        for (right, answered, n) in [("a", "a", 40), ("a", "b", 10), ("b", "a", 5), ("b", "b", 45)] {
            (0..n).for_each(|_| confusion.add(right, answered));
        }
        let accuracy = confusion.accuracy();
        assert_eq!((accuracy.value, accuracy.n), (0.85, 100));
        let of_a = &confusion.by_label()[0];
        assert_eq!((of_a.precision.value, of_a.recall.value), (40.0 / 45.0, 0.8));
        let f1 = 2.0 * 0.8 * (40.0 / 45.0) / (0.8 + 40.0 / 45.0);
        assert!((of_a.f1.value - f1).abs() < 1e-12 && of_a.f1.interval[0] < f1 && f1 < of_a.f1.interval[1]);
        let [low, high] = confusion.accuracy_always();
        assert!(low < accuracy.interval[0] && high > accuracy.interval[1], "looking always costs width: {low} {high}");
        let mut twice = confusion.clone();
        twice.merge(&confusion);
        assert_eq!(twice.wrong_and_right(), [30, 170]);
        twice.remove("a", "b");
        assert_eq!(twice.wrong_and_right(), [29, 170]);
    }

    #[test]
    fn ranks_give_reciprocals_and_gains() {
        let mut ranks = Ranks::default();
        [1, 1, 2, 4].into_iter().for_each(|rank| ranks.add(rank));
        let mrr = ranks.reciprocal();
        assert!((mrr.value - (1.0 + 1.0 + 0.5 + 0.25) / 4.0).abs() < 1e-12);
        assert!(mrr.interval[0] <= mrr.value && mrr.value <= mrr.interval[1]);
        assert!((ranks.ndcg_10().value - (2.0 + 1.0 / 3f64.log2() + 1.0 / 5f64.log2()) / 4.0).abs() < 1e-12);
    }

    #[test]
    fn more_labels_than_can_be_held_share_a_place() {
        let mut confusion = Confusion::default();
        (0..2 * MAX_LABELS).for_each(|at| confusion.add(&at.to_string(), "x"));
        assert_eq!(confusion.wrong_and_right(), [2 * MAX_LABELS as u64, 0]);
        assert!(confusion.by_label().len() <= MAX_LABELS + 2);
    }
}
