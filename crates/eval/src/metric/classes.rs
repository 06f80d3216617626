use std::collections::BTreeMap;

use super::{Measure, Metric, MetricError, TieGroups};
use crate::{About, Classes, Costs, Cutoff};

/// Bins of the expected calibration error, as Guo et al. (2017) have them.
const N_BINS: usize = 15;

/// A metric of a classifier's answers.
pub(super) fn measure(metric: Metric, classes: &Classes, about: About<'_>) -> Result<Measure, MetricError> {
    let label = about.label.map(|name| find_label(metric, classes, name)).transpose()?;
    let all = |flags: Vec<bool>| Measure::Right(flags.into_iter().map(Some).collect());
    Ok(match (metric, label) {
        (Metric::Accuracy, _) => all(classes.correct()),
        (Metric::AccuracyAt(k), _) => all(among_first(classes, k)),
        (Metric::Recall, Some(label)) => Measure::Right(right_of_label(classes, label)),
        (Metric::Precision, Some(label)) => confusion(classes, move |confusion| confusion.precision(label)),
        (Metric::F1, Some(label)) => confusion(classes, move |confusion| confusion.f1(label)),
        (Metric::BalancedAccuracy, _) => confusion(classes, Confusion::balanced_accuracy),
        (Metric::PrecisionMacro, _) => confusion(classes, |confusion| confusion.mean(Confusion::precision)),
        (Metric::RecallMacro, _) => confusion(classes, |confusion| confusion.mean(Confusion::recall)),
        (Metric::F1Macro, _) => confusion(classes, |confusion| confusion.mean(Confusion::f1)),
        (Metric::Mcc, _) => confusion(classes, Confusion::matthews),
        (Metric::Auroc, Some(label)) => auroc(classes, label),
        (Metric::Auprc, Some(label)) => average_precision(classes, label),
        (Metric::LogLoss, _) => log_loss(classes),
        (Metric::Brier, _) => brier(classes),
        (Metric::Ece, _) => calibration_error(classes),
        (Metric::Cost, _) => cost(classes, about.costs.expect("parameters were checked"))?,
        _ => return Err(metric.of_other_answers()),
    })
}

fn find_label(metric: Metric, classes: &Classes, name: &str) -> Result<usize, MetricError> {
    let label = position(classes, name)?;
    let n_of_label = classes.expected().iter().filter(|&&expected| expected == label).count();
    let needs_others = metric == Metric::Auroc;
    let one_sided = n_of_label == 0 || (needs_others && n_of_label == classes.expected().len());
    if one_sided { Err(MetricError::OneSided { metric, label: name.to_owned() }) } else { Ok(label) }
}

fn position(classes: &Classes, name: &str) -> Result<usize, MetricError> {
    let unknown = || MetricError::UnknownLabel { label: name.to_owned(), labels: classes.labels().join(", ") };
    classes.labels().iter().position(|label| label == name).ok_or_else(unknown)
}

fn right_of_label(classes: &Classes, label: usize) -> Vec<Option<bool>> {
    let of_label = |(&expected, right): (&usize, bool)| (expected == label).then_some(right);
    classes.expected().iter().zip(classes.correct()).map(of_label).collect()
}

/// Whether fewer than `k` labels score higher than the right one; of equal scores that of the first label is higher.
fn among_first(classes: &Classes, k: Cutoff) -> Vec<bool> {
    let n_before = |(idx, &label): (usize, &usize)| {
        let scores = classes.scores_at(idx);
        let is_before =
            |&other: &usize| scores[other] > scores[label] || (scores[other] == scores[label] && other < label);
        (0..scores.len()).filter(is_before).count()
    };
    classes.expected().iter().enumerate().map(|case| n_before(case) < usize::from(k.get())).collect()
}

/// Counts by label, or sums of weights: how often it was expected, answered, and both.
struct Confusion {
    right: Vec<f64>,
    expected: Vec<f64>,
    predicted: Vec<f64>,
}

/// Cases with the same two labels count alike, so a resample costs one sum of them and not three additions a case.
fn confusion(classes: &Classes, of: impl Fn(&Confusion) -> f64 + Send + Sync + 'static) -> Measure {
    let n_labels = classes.labels().len();
    let mut cells: BTreeMap<[usize; 2], Vec<u32>> = BTreeMap::new();
    for (idx, (&expected, &predicted)) in classes.expected().iter().zip(classes.predicted()).enumerate() {
        cells.entry([expected, predicted]).or_default().push(short(idx));
    }
    Measure::Of(Box::new(move |counts| {
        let none = || vec![0.0; n_labels];
        let mut confusion = Confusion { right: none(), expected: none(), predicted: none() };
        for (&[expected, predicted], cases) in &cells {
            let count = sum_of(cases, counts);
            confusion.expected[expected] += count;
            confusion.predicted[predicted] += count;
            confusion.right[expected] += if expected == predicted { count } else { 0.0 };
        }
        of(&confusion)
    }))
}

/// The sum of `counts` at `cases`, in eight sums that do not wait for each other.
fn sum_of(cases: &[u32], counts: &[f64]) -> f64 {
    let mut sums = [0.0; 8];
    let chunks = cases.chunks_exact(sums.len());
    let rest: f64 = chunks.remainder().iter().map(|&idx| counts[idx as usize]).sum();
    for chunk in chunks {
        sums.iter_mut().zip(chunk).for_each(|(sum, &idx)| *sum += counts[idx as usize]);
    }
    sums.iter().sum::<f64>() + rest
}

fn short(idx: usize) -> u32 {
    u32::try_from(idx).expect("more than four billion cases do not fit in memory")
}

impl Confusion {
    fn precision(&self, label: usize) -> f64 {
        share(self.right[label], self.predicted[label])
    }

    fn recall(&self, label: usize) -> f64 {
        share(self.right[label], self.expected[label])
    }

    fn f1(&self, label: usize) -> f64 {
        share(2.0 * self.right[label], self.expected[label] + self.predicted[label])
    }

    /// Over the labels that are expected or predicted at all, as scikit-learn's `average="macro"`.
    fn mean(&self, of: fn(&Self, usize) -> f64) -> f64 {
        self.mean_where(|label| self.expected[label] + self.predicted[label] > 0.0, of)
    }

    /// Mean recall over the labels that are expected, as scikit-learn's `balanced_accuracy_score`.
    fn balanced_accuracy(&self) -> f64 {
        self.mean_where(|label| self.expected[label] > 0.0, Self::recall)
    }

    fn mean_where(&self, counts: impl Fn(usize) -> bool, of: fn(&Self, usize) -> f64) -> f64 {
        let values: Vec<f64> =
            (0..self.right.len()).filter(|&label| counts(label)).map(|label| of(self, label)).collect();
        values.iter().sum::<f64>() / values.len() as f64
    }

    /// The covariance of expected and predicted labels over the product of their deviations; 0 where either side names
    /// one label only.
    fn matthews(&self) -> f64 {
        let product =
            |left: &[f64], right: &[f64]| left.iter().zip(right).map(|(left, right)| left * right).sum::<f64>();
        let n_cases = self.expected.iter().sum::<f64>();
        let n_right = self.right.iter().sum::<f64>();
        let covariance = n_right * n_cases - product(&self.expected, &self.predicted);
        let of_expected = n_cases * n_cases - product(&self.expected, &self.expected);
        let of_predicted = n_cases * n_cases - product(&self.predicted, &self.predicted);
        let deviations = (of_expected * of_predicted).sqrt();
        if deviations == 0.0 { 0.0 } else { (covariance / deviations).clamp(-1.0, 1.0) }
    }
}

/// 0 where nothing was counted, as scikit-learn's `zero_division=0`.
fn share(part: f64, whole: f64) -> f64 {
    if whole == 0.0 { 0.0 } else { part / whole }
}

fn log_loss(classes: &Classes) -> Measure {
    // A score of 0 would make the mean infinite; scikit-learn clips at the same place.
    let loss = |(idx, &label): (usize, &usize)| -classes.scores_at(idx)[label].max(f64::EPSILON).ln();
    Measure::Mean(classes.expected().iter().enumerate().map(loss).collect())
}

/// Half the squared distance, so that two labels give Brier's score of one of them, as scikit-learn's `scale_by_half`.
fn brier(classes: &Classes) -> Measure {
    let distance = |(idx, &label): (usize, &usize)| {
        let wanted = |other: usize| f64::from(u8::from(other == label));
        let scores = classes.scores_at(idx).iter().enumerate();
        0.5 * scores.map(|(other, score)| (score - wanted(other)).powi(2)).sum::<f64>()
    };
    Measure::Mean(classes.expected().iter().enumerate().map(distance).collect())
}

/// The mean over cases of |share of right answers − mean score of the answered label| in the bin of that score; bins of
/// equal width, closed above.
fn calibration_error(classes: &Classes) -> Measure {
    let answers = classes.predicted().iter().zip(classes.correct()).enumerate();
    let cases: Vec<(usize, f64)> = answers
        .map(|(idx, (&label, right))| {
            let score = classes.scores_at(idx)[label];
            let bin = ((score * N_BINS as f64).ceil() as usize).clamp(1, N_BINS) - 1;
            (bin, f64::from(u8::from(right)) - score)
        })
        .collect();
    Measure::Of(Box::new(move |counts| {
        let (mut gaps, mut n_cases) = ([0.0; N_BINS], 0.0);
        for (&(bin, gap), &count) in cases.iter().zip(counts) {
            gaps[bin] += count * gap;
            n_cases += count;
        }
        gaps.iter().map(|gap| gap.abs()).sum::<f64>() / n_cases
    }))
}

fn cost(classes: &Classes, costs: &Costs) -> Result<Measure, MetricError> {
    costs.labels().try_for_each(|label| position(classes, label).map(|_| ()))?;
    let name = |label: usize| classes.labels()[label].as_str();
    let answers = classes.expected().iter().zip(classes.predicted());
    Ok(Measure::Mean(answers.map(|(&expected, &predicted)| costs.of(name(expected), name(predicted))).collect()))
}

/// The rank-sum form with half credit for ties (Hanley and McNeil 1982), over cases sorted once by score.
fn auroc(classes: &Classes, label: usize) -> Measure {
    #[derive(Default)]
    struct Below {
        n_label: f64,
        n_others: f64,
        wins: f64,
    }
    let add = |below: &mut Below, label_here: f64, others_here: f64| {
        below.wins += label_here * (below.n_others + 0.5 * others_here);
        below.n_label += label_here;
        below.n_others += others_here;
    };
    by_score(classes, label, Order::Ascending, add, |all| all.wins / (all.n_label * all.n_others))
}

/// The sum over distinct scores, highest first, of precision down to that score times the recall it adds: scikit-learn's
/// `average_precision_score`.
fn average_precision(classes: &Classes, label: usize) -> Measure {
    #[derive(Default)]
    struct Above {
        n_label: f64,
        n_others: f64,
        total: f64,
    }
    let add = |above: &mut Above, label_here: f64, others_here: f64| {
        above.n_label += label_here;
        above.n_others += others_here;
        if label_here > 0.0 {
            above.total += label_here * above.n_label / (above.n_label + above.n_others);
        }
    };
    by_score(classes, label, Order::Descending, add, |all| all.total / all.n_label)
}

enum Order {
    Ascending,
    Descending,
}

/// What `add` makes of how many cases of `label` and of others there are at each distinct score of it.
fn by_score<S: Default>(
    classes: &Classes,
    label: usize,
    order: Order,
    add: impl Fn(&mut S, f64, f64) + Send + Sync + 'static,
    value: impl Fn(&S) -> f64 + Send + Sync + 'static,
) -> Measure {
    let of_label: Vec<f64> =
        classes.expected().iter().map(|&expected| f64::from(u8::from(expected == label))).collect();
    let groups = TieGroups::of(&classes.scores_of(label));
    Measure::Of(Box::new(move |counts| {
        let mut all = S::default();
        let mut add_group = |group: &[u32]| {
            let (mut label_here, mut others_here) = (0.0, 0.0);
            for &idx in group {
                // A product and no branch: which case is whose is as random as the labels.
                let (count, of_label) = (counts[idx as usize], of_label[idx as usize]);
                label_here += count * of_label;
                others_here += count * (1.0 - of_label);
            }
            add(&mut all, label_here, others_here);
        };
        match order {
            Order::Ascending => groups.iter().for_each(&mut add_group),
            Order::Descending => groups.iter().rev().for_each(&mut add_group),
        }
        value(&all)
    }))
}
