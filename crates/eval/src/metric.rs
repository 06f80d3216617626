use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::ranking::{average_precision, ndcg, recall, reciprocal_rank};
use crate::{Bootstrap, Classes, Cutoff, Observed, Rankings, Resamples, Similarities, Units};

/// What is measured. All but [`Metric::LogLoss`] are better when larger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Metric {
    /// Share of right answers; the same number as micro-averaged precision, recall and F1, as each case has one label.
    Accuracy,
    /// Share of right answers among those that name the label.
    Precision,
    /// Share of right answers among the cases of the label.
    Recall,
    /// Harmonic mean of precision and recall of the label.
    F1,
    /// Mean precision over the labels that occur.
    PrecisionMacro,
    /// Mean recall over the labels that occur.
    RecallMacro,
    /// Mean F1 over the labels that occur.
    F1Macro,
    /// Chance that a case of the label scores higher than one of another; ties count half.
    Auroc,
    /// Mean negative natural logarithm of the score of the right label.
    LogLoss,
    /// Linear correlation with the human similarities.
    Pearson,
    /// Rank correlation with the human similarities.
    Spearman,
    /// Mean over queries of the discounted cumulative gain of the first k documents over that of the best order.
    Ndcg(Cutoff),
    /// Mean over queries of 1 / rank of the first relevant document, 0 where it is not among the first k.
    Mrr(Cutoff),
    /// Mean over queries of the share of relevant documents that are among the first k.
    RecallAt(Cutoff),
    /// Mean over queries of the average precision of all documents.
    Map,
}

/// Metrics by the names that `gates.toml` and reports use.
const NAMES: [(&str, Metric); 12] = [
    ("accuracy", Metric::Accuracy),
    ("precision", Metric::Precision),
    ("recall", Metric::Recall),
    ("f1", Metric::F1),
    ("precision_macro", Metric::PrecisionMacro),
    ("recall_macro", Metric::RecallMacro),
    ("f1_macro", Metric::F1Macro),
    ("auroc", Metric::Auroc),
    ("log_loss", Metric::LogLoss),
    ("pearson", Metric::Pearson),
    ("spearman", Metric::Spearman),
    ("map", Metric::Map),
];
/// A metric of the first k documents.
type OfFirst = fn(Cutoff) -> Metric;
/// Metrics of the first k documents by what stands before the k.
const NAMES_WITH_K: [(&str, OfFirst); 3] =
    [("ndcg_at_", Metric::Ndcg), ("mrr_at_", Metric::Mrr), ("recall_at_", Metric::RecallAt)];
/// The same number as accuracy, as each case has one label.
const ACCURACY_TOO: &str = "f1_micro";

/// No metric has this name.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is no metric: there are {known}, and `ndcg_at_K`, `mrr_at_K` and `recall_at_K`", known = known())]
pub struct UnknownMetric(String);

fn known() -> String {
    NAMES.map(|(name, _)| format!("`{name}`")).join(", ")
}

/// A metric cannot be taken from these answers.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum MetricError {
    #[error("`{0}` needs a classifier's answers")]
    NotClasses(Metric),
    #[error("`{0}` needs similarities of pairs")]
    NotSimilarities(Metric),
    #[error("`{0}` needs documents ranked for queries")]
    NotRankings(Metric),
    #[error("`{0}` needs a `label`")]
    NoLabel(Metric),
    #[error("`{metric}` takes no label, but `{label}` was given")]
    NeedlessLabel { metric: Metric, label: String },
    #[error("label `{label}` is not one of: {labels}")]
    UnknownLabel { label: String, labels: String },
    #[error("`{metric}` of `{label}` is undefined here: every case or none has that label")]
    OneSided { metric: Metric, label: String },
    #[error("`{0}` is undefined on fewer than 3 cases")]
    TooFew(Metric),
}

/// From how often each case counts to the value.
type Evaluate = Box<dyn Fn(&[u32]) -> f64 + Send + Sync>;

/// How a metric comes about.
enum Measure {
    /// As the mean of one value a case.
    Mean(Vec<f64>),
    /// In any other way.
    Of(Evaluate),
}

/// A metric over fixed cases that can be taken again with each case counted any number of times, which is what a
/// bootstrap does. Sorting happens once, here; each evaluation is linear in the number of cases.
pub struct Statistic {
    n_cases: usize,
    measure: Measure,
}

impl Statistic {
    /// The metric with case `i` counted `counts[i]` times; NaN where that leaves it undefined.
    pub fn value(&self, counts: &[u32]) -> f64 {
        match &self.measure {
            Measure::Mean(of_case) => mean(of_case, counts),
            Measure::Of(evaluate) => evaluate(counts),
        }
    }

    /// What each case adds, where the metric is the mean of that.
    pub fn of_case(&self) -> Option<&[f64]> {
        match &self.measure {
            Measure::Mean(of_case) => Some(of_case),
            Measure::Of(_) => None,
        }
    }

    /// The metric on resamples of `units`.
    pub fn resample(&self, units: &Units, resamples: Resamples) -> Bootstrap {
        match &self.measure {
            Measure::Mean(of_case) => Bootstrap::of_mean(units, resamples, of_case),
            Measure::Of(evaluate) => Bootstrap::new(units, resamples, evaluate),
        }
    }

    /// The metric with every case counted once.
    pub fn observed(&self) -> f64 {
        self.value(&vec![1; self.n_cases])
    }
}

impl fmt::Debug for Statistic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Statistic over {} cases", self.n_cases)
    }
}

impl Metric {
    /// Whether the metric belongs to one label, which must be named.
    pub fn needs_label(self) -> bool {
        matches!(self, Self::Precision | Self::Recall | Self::F1 | Self::Auroc)
    }

    /// Whether smaller is better.
    pub fn lower_is_better(self) -> bool {
        self == Self::LogLoss
    }

    /// Whether the metric is decided by the answered labels alone, so that a list of flips shows all that changed.
    pub fn is_decided_by_labels(self) -> bool {
        !matches!(self, Self::Auroc | Self::LogLoss | Self::Pearson | Self::Spearman) && !self.is_of_rankings()
    }

    /// Whether the metric is about documents ranked for queries.
    pub fn is_of_rankings(self) -> bool {
        matches!(self, Self::Ndcg(_) | Self::Mrr(_) | Self::RecallAt(_) | Self::Map)
    }

    /// What `gates.toml` and reports call it.
    pub fn name(self) -> String {
        let with_k = |prefix: &str, k: Cutoff| format!("{prefix}{k}");
        match self {
            Self::Ndcg(k) => with_k(NAMES_WITH_K[0].0, k),
            Self::Mrr(k) => with_k(NAMES_WITH_K[1].0, k),
            Self::RecallAt(k) => with_k(NAMES_WITH_K[2].0, k),
            plain => {
                let found = NAMES.iter().find(|(_, metric)| *metric == plain);
                found.expect("every metric without a k is in NAMES").0.to_owned()
            }
        }
    }

    /// The least and the largest value there is.
    pub fn range(self) -> (f64, f64) {
        match self {
            Self::LogLoss => (0.0, f64::INFINITY),
            Self::Pearson | Self::Spearman => (-1.0, 1.0),
            _ => (0.0, 1.0),
        }
    }

    /// The metric of `observed`, for `label` where it belongs to one, ready to be resampled.
    pub fn of(self, observed: &Observed, label: Option<&str>) -> Result<Statistic, MetricError> {
        let measure = match (self, observed) {
            (Self::Pearson | Self::Spearman, Observed::Similarities(pairs)) => {
                self.check_label(label)?;
                if observed.n_cases() < 3 {
                    return Err(MetricError::TooFew(self));
                }
                Measure::Of(if self == Self::Pearson { pearson(pairs) } else { spearman(pairs) })
            }
            (Self::Pearson | Self::Spearman, _) => return Err(MetricError::NotSimilarities(self)),
            (metric, Observed::Rankings(rankings)) if metric.is_of_rankings() => {
                self.check_label(label)?;
                Measure::Mean(self.of_each(rankings))
            }
            (metric, _) if metric.is_of_rankings() => return Err(MetricError::NotRankings(self)),
            (_, Observed::Similarities(_) | Observed::Rankings(_)) => return Err(MetricError::NotClasses(self)),
            (_, Observed::Classes(classes)) => self.of_classes(classes, label)?,
        };
        Ok(Statistic { n_cases: observed.n_cases(), measure })
    }

    /// The metric of each query.
    fn of_each(self, rankings: &Rankings) -> Vec<f64> {
        rankings.each(|ordered| match self {
            Self::Ndcg(k) => ndcg(ordered, k),
            Self::Mrr(k) => reciprocal_rank(ordered, k),
            Self::RecallAt(k) => recall(ordered, k),
            _ => average_precision(ordered),
        })
    }

    fn of_classes(self, classes: &Classes, label: Option<&str>) -> Result<Measure, MetricError> {
        self.check_label(label)?;
        let label = label.map(|name| self.find_label(classes, name)).transpose()?;
        let table = ConfusionTable::new(classes);
        let evaluate: Evaluate = match (self, label) {
            (Self::Precision, Some(label)) => Box::new(move |counts| table.at(counts).precision(label)),
            (Self::Recall, Some(label)) => Box::new(move |counts| table.at(counts).recall(label)),
            (Self::F1, Some(label)) => Box::new(move |counts| table.at(counts).f1(label)),
            (Self::Auroc, Some(label)) => auroc(classes, label),
            (Self::PrecisionMacro, _) => Box::new(move |counts| table.at(counts).mean(Confusion::precision)),
            (Self::RecallMacro, _) => Box::new(move |counts| table.at(counts).mean(Confusion::recall)),
            (Self::F1Macro, _) => Box::new(move |counts| table.at(counts).mean(Confusion::f1)),
            (Self::LogLoss, _) => return Ok(Measure::Mean(losses(classes))),
            _ => return Ok(Measure::Mean(right(classes))),
        };
        Ok(Measure::Of(evaluate))
    }

    fn check_label(self, label: Option<&str>) -> Result<(), MetricError> {
        match (self.needs_label(), label) {
            (true, None) => Err(MetricError::NoLabel(self)),
            (false, Some(label)) => Err(MetricError::NeedlessLabel { metric: self, label: label.to_owned() }),
            _ => Ok(()),
        }
    }

    fn find_label(self, classes: &Classes, name: &str) -> Result<usize, MetricError> {
        let found = classes.labels().iter().position(|label| label == name);
        let label = found
            .ok_or_else(|| MetricError::UnknownLabel { label: name.to_owned(), labels: classes.labels().join(", ") })?;
        let n_of_label = classes.expected().iter().filter(|&&expected| expected == label).count();
        let needs_others = self == Self::Auroc;
        let one_sided = n_of_label == 0 || (needs_others && n_of_label == classes.expected().len());
        if one_sided { Err(MetricError::OneSided { metric: self, label: name.to_owned() }) } else { Ok(label) }
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ndcg(k) => return write!(f, "nDCG@{k}"),
            Self::Mrr(k) => return write!(f, "MRR@{k}"),
            Self::RecallAt(k) => return write!(f, "recall@{k}"),
            Self::Map => "MAP",
            Self::Accuracy => "accuracy",
            Self::Precision => "precision",
            Self::Recall => "recall",
            Self::F1 => "F1",
            Self::PrecisionMacro => "macro precision",
            Self::RecallMacro => "macro recall",
            Self::F1Macro => "macro F1",
            Self::Auroc => "AUROC",
            Self::LogLoss => "log loss",
            Self::Pearson => "Pearson correlation",
            Self::Spearman => "Spearman correlation",
        })
    }
}

impl FromStr for Metric {
    type Err = UnknownMetric;

    fn from_str(name: &str) -> Result<Self, UnknownMetric> {
        let plain = || NAMES.iter().find(|(known, _)| *known == name).map(|(_, metric)| *metric);
        let with_k = || {
            NAMES_WITH_K.iter().find_map(|(prefix, of)| {
                let digits = name.strip_prefix(prefix)?;
                let k: Cutoff = digits.parse().ok()?;
                // One metric has one name: no sign, no leading zero.
                (k.to_string() == digits).then(|| of(k))
            })
        };
        if name == ACCURACY_TOO {
            return Ok(Self::Accuracy);
        }
        plain().or_else(with_k).ok_or_else(|| UnknownMetric(name.to_owned()))
    }
}

impl Serialize for Metric {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.name())
    }
}

impl<'de> Deserialize<'de> for Metric {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// Expected and predicted label of each case.
struct ConfusionTable {
    n_labels: usize,
    cells: Vec<usize>,
}

/// Counts by expected label (row) and predicted label (column).
struct Confusion {
    n_labels: usize,
    counts: Vec<u64>,
}

impl ConfusionTable {
    fn new(classes: &Classes) -> Self {
        let n_labels = classes.labels().len();
        let cell = |(expected, predicted): (&usize, &usize)| expected * n_labels + predicted;
        Self { n_labels, cells: classes.expected().iter().zip(classes.predicted()).map(cell).collect() }
    }

    fn at(&self, case_counts: &[u32]) -> Confusion {
        let mut counts = vec![0; self.n_labels * self.n_labels];
        self.cells.iter().zip(case_counts).for_each(|(&cell, &count)| counts[cell] += u64::from(count));
        Confusion { n_labels: self.n_labels, counts }
    }
}

impl Confusion {
    fn right(&self, label: usize) -> u64 {
        self.counts[label * self.n_labels + label]
    }

    fn expected(&self, label: usize) -> u64 {
        self.counts[label * self.n_labels..(label + 1) * self.n_labels].iter().sum()
    }

    fn predicted(&self, label: usize) -> u64 {
        self.counts.iter().skip(label).step_by(self.n_labels).sum()
    }

    fn precision(&self, label: usize) -> f64 {
        share(self.right(label), self.predicted(label))
    }

    fn recall(&self, label: usize) -> f64 {
        share(self.right(label), self.expected(label))
    }

    fn f1(&self, label: usize) -> f64 {
        share(2 * self.right(label), self.expected(label) + self.predicted(label))
    }

    /// Over the labels that are expected or predicted at all, as scikit-learn's `average="macro"`.
    fn mean(&self, of: fn(&Self, usize) -> f64) -> f64 {
        let occurs = |label: &usize| self.expected(*label) + self.predicted(*label) > 0;
        let values: Vec<f64> = (0..self.n_labels).filter(occurs).map(|label| of(self, label)).collect();
        values.iter().sum::<f64>() / values.len() as f64
    }
}

/// 0 where nothing was counted, as scikit-learn's `zero_division=0`.
fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

fn mean(of_case: &[f64], counts: &[u32]) -> f64 {
    let total: f64 = of_case.iter().zip(counts).map(|(value, &count)| value * f64::from(count)).sum();
    total / counts.iter().map(|&count| f64::from(count)).sum::<f64>()
}

/// 1 for a right answer, 0 for a wrong one.
fn right(classes: &Classes) -> Vec<f64> {
    classes.correct().into_iter().map(|right| f64::from(u8::from(right))).collect()
}

fn losses(classes: &Classes) -> Vec<f64> {
    let by_label: Vec<Vec<f64>> = (0..classes.labels().len()).map(|label| classes.scores_of(label)).collect();
    // A score of 0 would make the mean infinite; scikit-learn clips at the same place.
    let loss = |(idx, &label): (usize, &usize)| -by_label[label][idx].max(f64::EPSILON).ln();
    classes.expected().iter().enumerate().map(loss).collect()
}

/// The rank-sum form with half credit for ties (Hanley and McNeil 1982), over cases sorted once by score.
fn auroc(classes: &Classes, label: usize) -> Evaluate {
    let is_label: Vec<bool> = classes.expected().iter().map(|&expected| expected == label).collect();
    let groups = tie_groups(&classes.scores_of(label));
    Box::new(move |counts| {
        let (mut n_label, mut n_below, mut wins) = (0.0, 0.0, 0.0);
        for group in &groups {
            let (mut label_here, mut others_here) = (0.0, 0.0);
            for &idx in group {
                *(if is_label[idx] { &mut label_here } else { &mut others_here }) += f64::from(counts[idx]);
            }
            wins += label_here * (n_below + 0.5 * others_here);
            n_label += label_here;
            n_below += others_here;
        }
        wins / (n_label * n_below)
    })
}

/// Case indices by ascending value; equal values share a group.
fn tie_groups(values: &[f64]) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&left, &right| values[left].total_cmp(&values[right]));
    order.chunk_by(|&left, &right| values[left] == values[right]).map(<[usize]>::to_vec).collect()
}

fn pearson(pairs: &Similarities) -> Evaluate {
    let Similarities { expected, predicted } = pairs.clone();
    Box::new(move |counts| correlation(&expected, &predicted, counts))
}

fn spearman(pairs: &Similarities) -> Evaluate {
    let (n_cases, expected, predicted) =
        (pairs.expected.len(), tie_groups(&pairs.expected), tie_groups(&pairs.predicted));
    Box::new(move |counts| correlation(&ranks(&expected, counts, n_cases), &ranks(&predicted, counts, n_cases), counts))
}

/// Mean ranks of cases counted `counts` times, up to a constant.
fn ranks(groups: &[Vec<usize>], counts: &[u32], n_cases: usize) -> Vec<f64> {
    let (mut ranks, mut n_below) = (vec![0.0; n_cases], 0.0);
    for group in groups {
        let n_here: f64 = group.iter().map(|&idx| f64::from(counts[idx])).sum();
        group.iter().for_each(|&idx| ranks[idx] = n_below + 0.5 * n_here);
        n_below += n_here;
    }
    ranks
}

/// Pearson's correlation with case counts; 0 where one side is constant, as such a side explains nothing.
fn correlation(left: &[f64], right: &[f64], counts: &[u32]) -> f64 {
    let total: f64 = counts.iter().map(|&count| f64::from(count)).sum();
    let mean = |values: &[f64]| values.iter().zip(counts).map(|(v, &c)| v * f64::from(c)).sum::<f64>() / total;
    let (mean_left, mean_right) = (mean(left), mean(right));
    let (mut product, mut square_left, mut square_right) = (0.0, 0.0, 0.0);
    for ((left, right), &count) in left.iter().zip(right).zip(counts) {
        let (left, right, count) = (left - mean_left, right - mean_right, f64::from(count));
        product += count * left * right;
        square_left += count * left * left;
        square_right += count * right * right;
    }
    // Rounding leaves a constant side a square of about (eps * mean)^2 per case rather than 0.
    let is_constant = |square: f64, mean: f64| square <= total * (4.0 * f64::EPSILON * mean).powi(2);
    if is_constant(square_left, mean_left) || is_constant(square_right, mean_right) {
        return 0.0;
    }
    (product / (square_left.sqrt() * square_right.sqrt())).clamp(-1.0, 1.0)
}
