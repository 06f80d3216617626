use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Bootstrap, Resamples, Units};

/// How agreement of a judge with people is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AgreementMeasure {
    /// Cohen's kappa (1960): two raters, every disagreement alike.
    Kappa,
    /// Weighted kappa (Cohen 1968): a disagreement counts by the steps between two scores, …
    LinearKappa,
    /// … or by their square.
    QuadraticKappa,
    /// Krippendorff's alpha (2011) for categories: any number of raters, …
    AlphaNominal,
    /// … for ranks, …
    AlphaOrdinal,
    /// … and for scores whose distances mean something.
    AlphaInterval,
}

/// The least agreement with people at which a judge may judge.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct AgreementRule {
    pub measure: AgreementMeasure,
    pub floor: f64,
}

/// How well a judge agreed with people.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Agreement {
    /// What was measured.
    pub measure: AgreementMeasure,
    /// 1 for agreement in everything, 0 for that of chance.
    pub value: f64,
    /// At two-sided confidence 95 %, by the bootstrap over labelled answers.
    pub interval: [f64; 2],
    /// The least that is accepted, where it is declared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub floor: Option<f64>,
    /// Answers that people scored.
    pub n_labelled: usize,
    /// Digest of the file that holds them.
    pub labels: String,
}

impl AgreementMeasure {
    /// Whether it is of exactly two raters.
    pub fn is_of_two(self) -> bool {
        matches!(self, Self::Kappa | Self::LinearKappa | Self::QuadraticKappa)
    }

    /// The agreement in `ratings`: for each answer the scores of all who rated it. `None` where it is undefined: nobody ever
    /// rated otherwise, or, for a kappa, there are not exactly two scores everywhere.
    pub fn of(self, ratings: &[Vec<f64>]) -> Option<f64> {
        Some(self.weighted(ratings, &vec![1; ratings.len()])).filter(|value| value.is_finite())
    }

    /// The same with its 95 % interval.
    pub fn with_interval(self, ratings: &[Vec<f64>], resamples: Resamples) -> Option<(f64, [f64; 2])> {
        let value = self.of(ratings)?;
        let each: Vec<[usize; 2]> = (0..ratings.len()).map(|idx| [idx; 2]).collect();
        let sample = Bootstrap::new(&Units::sources(&each), resamples, |counts| self.weighted(ratings, counts));
        let [low, high] = if sample.standard_error() > 0.0 { sample.bca(0.95) } else { [value; 2] };
        Some((value, [low.max(-1.0), high.min(1.0)]))
    }

    /// With answer `i` counted `counts[i]` times; NaN where that leaves it undefined.
    fn weighted(self, ratings: &[Vec<f64>], counts: &[u32]) -> f64 {
        if self.is_of_two() && ratings.iter().any(|scores| scores.len() != 2) {
            return f64::NAN;
        }
        let scores = Scores::of(ratings);
        match self {
            Self::Kappa => kappa(&scores, counts, |left, right| f64::from(u8::from(left != right))),
            Self::LinearKappa => kappa(&scores, counts, |left, right| left.abs_diff(right) as f64),
            Self::QuadraticKappa => kappa(&scores, counts, |left, right| (left.abs_diff(right) as f64).powi(2)),
            Self::AlphaNominal => alpha(&scores, counts, |_, left, right| f64::from(u8::from(left != right))),
            Self::AlphaOrdinal => alpha(&scores, counts, ordinal),
            Self::AlphaInterval => {
                alpha(&scores, counts, |_, left, right| (scores.values[left] - scores.values[right]).powi(2))
            }
        }
    }
}

impl fmt::Display for AgreementMeasure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kappa => "Cohen's kappa",
            Self::LinearKappa => "Cohen's kappa, linear weights",
            Self::QuadraticKappa => "Cohen's kappa, quadratic weights",
            Self::AlphaNominal => "Krippendorff's alpha of categories",
            Self::AlphaOrdinal => "Krippendorff's alpha of ranks",
            Self::AlphaInterval => "Krippendorff's alpha of scores",
        })
    }
}

/// Ratings as places among the sorted different scores.
struct Scores {
    values: Vec<f64>,
    places: Vec<Vec<usize>>,
}

impl Scores {
    fn of(ratings: &[Vec<f64>]) -> Self {
        let mut values: Vec<f64> = ratings.iter().flatten().copied().collect();
        values.sort_by(f64::total_cmp);
        values.dedup();
        let place = |score: &f64| values.partition_point(|value| value < score);
        let places = ratings.iter().map(|scores| scores.iter().map(place).collect()).collect();
        Self { values, places }
    }
}

/// 1 minus the observed disagreement over that of two raters who scored as often as these but by chance.
fn kappa(scores: &Scores, counts: &[u32], weight: impl Fn(usize, usize) -> f64) -> f64 {
    let n = scores.values.len();
    let (mut first, mut second, mut observed, mut total) = (vec![0.0; n], vec![0.0; n], 0.0, 0.0);
    for (places, &count) in scores.places.iter().zip(counts) {
        let (left, right, count) = (places[0], places[1], f64::from(count));
        first[left] += count;
        second[right] += count;
        observed += count * weight(left, right);
        total += count;
    }
    let pairs = (0..n).flat_map(|left| (0..n).map(move |right| (left, right)));
    let expected: f64 = pairs.map(|(left, right)| first[left] * second[right] * weight(left, right)).sum();
    1.0 - observed * total / expected
}

/// 1 minus the disagreement within answers over that between all scores. Answers with one score say nothing and are left out.
fn alpha(scores: &Scores, counts: &[u32], distance: impl Fn(&[f64], usize, usize) -> f64) -> f64 {
    let n = scores.values.len();
    let paired = || scores.places.iter().zip(counts).filter(|(places, _)| places.len() > 1);
    let mut totals = vec![0.0; n];
    paired().for_each(|(places, &count)| places.iter().for_each(|&place| totals[place] += f64::from(count)));
    let within = |places: &[usize]| {
        let pairs = places.iter().flat_map(|&left| places.iter().map(move |&right| (left, right)));
        pairs.map(|(left, right)| distance(&totals, left, right)).sum::<f64>() / (places.len() - 1) as f64
    };
    let observed: f64 = paired().map(|(places, &count)| f64::from(count) * within(places)).sum();
    let pairs = (0..n).flat_map(|left| (0..n).map(move |right| (left, right)));
    let expected: f64 = pairs.map(|(left, right)| totals[left] * totals[right] * distance(&totals, left, right)).sum();
    1.0 - (totals.iter().sum::<f64>() - 1.0) * observed / expected
}

/// The square of how many scores lie between two ranks, half of each included.
fn ordinal(totals: &[f64], left: usize, right: usize) -> f64 {
    let (low, high) = (left.min(right), left.max(right));
    let between: f64 = totals[low..=high].iter().sum();
    (between - (totals[low] + totals[high]) / 2.0).powi(2)
}

/// Most frequent of `scores`, the smallest of several; `None` of none.
pub fn majority(scores: &[f64]) -> Option<f64> {
    let count = |score: f64| scores.iter().filter(|&&other| other == score).count();
    let mut largest_first = scores.to_vec();
    largest_first.sort_by(|a, b| b.total_cmp(a));
    // Of equals `max_by_key` takes the last.
    largest_first.into_iter().max_by_key(|&score| count(score))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_majority_is_the_smallest_of_equals() {
        assert_eq!((majority(&[4.0, 5.0, 4.0]), majority(&[5.0, 3.0]), majority(&[])), (Some(4.0), Some(3.0), None));
    }

    #[test]
    fn agreement_is_undefined_where_nobody_ever_rated_otherwise() {
        let same = vec![vec![3.0, 3.0]; 5];
        for measure in [AgreementMeasure::Kappa, AgreementMeasure::AlphaOrdinal] {
            assert_eq!(measure.of(&same), None);
            assert_eq!(measure.of(&[]), None);
        }
        assert_eq!(AgreementMeasure::Kappa.of(&[vec![1.0], vec![2.0]]), None);
    }
}
