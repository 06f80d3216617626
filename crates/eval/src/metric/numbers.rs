use super::{Evaluate, Measure, Metric, MetricError, TieGroups, of_sums};
use crate::Numbers;

/// Fewer cases than this have no correlation worth the name.
const FEWEST_CORRELATED: usize = 3;

/// A metric of a regression.
pub(super) fn measure(metric: Metric, numbers: &Numbers) -> Result<Measure, MetricError> {
    let (expected, predicted) = (numbers.expected(), numbers.predicted());
    let errors = || expected.iter().zip(predicted).map(|(expected, predicted)| predicted - expected);
    Ok(match metric {
        Metric::Mae => Measure::Mean(errors().map(f64::abs).collect()),
        Metric::Rmse => of_sums(errors().map(|error| [error * error, 1.0]).collect(), |&[sum, n]| (sum / n).sqrt()),
        Metric::R2 => Measure::Of(r2(expected.to_vec(), errors().map(|error| error * error).collect())),
        _ => return correlated(metric, expected, predicted),
    })
}

/// A correlation of two numbers a case.
pub(super) fn correlated(metric: Metric, expected: &[f64], predicted: &[f64]) -> Result<Measure, MetricError> {
    let of: fn(&[f64], &[f64]) -> Evaluate = match metric {
        Metric::Pearson => pearson,
        Metric::Spearman => spearman,
        _ => return Err(metric.of_other_answers()),
    };
    if expected.len() < FEWEST_CORRELATED {
        return Err(MetricError::TooFew { metric, least: FEWEST_CORRELATED });
    }
    Ok(Measure::Of(of(expected, predicted)))
}

fn pearson(expected: &[f64], predicted: &[f64]) -> Evaluate {
    let (expected, predicted) = (expected.to_vec(), predicted.to_vec());
    Box::new(move |counts| correlation(&expected, &predicted, counts))
}

fn spearman(expected: &[f64], predicted: &[f64]) -> Evaluate {
    let (n_cases, expected, predicted) = (expected.len(), TieGroups::of(expected), TieGroups::of(predicted));
    Box::new(move |counts| correlation(&ranks(&expected, counts, n_cases), &ranks(&predicted, counts, n_cases), counts))
}

/// Mean ranks of cases counted `counts` times, up to a constant.
fn ranks(groups: &TieGroups, counts: &[f64], n_cases: usize) -> Vec<f64> {
    let (mut ranks, mut n_below) = (vec![0.0; n_cases], 0.0);
    for group in groups.iter() {
        let n_here: f64 = group.iter().map(|&idx| counts[idx as usize]).sum();
        group.iter().for_each(|&idx| ranks[idx as usize] = n_below + 0.5 * n_here);
        n_below += n_here;
    }
    ranks
}

/// Pearson's correlation with case counts; 0 where one side is constant, as such a side explains nothing.
fn correlation(left: &[f64], right: &[f64], counts: &[f64]) -> f64 {
    let (left_spread, right_spread) = (Spread::of(left, counts), Spread::of(right, counts));
    if left_spread.is_constant() || right_spread.is_constant() {
        return 0.0;
    }
    let deviations =
        left.iter().zip(right).map(|(left, right)| (left - left_spread.mean) * (right - right_spread.mean));
    let product: f64 = deviations.zip(counts).map(|(product, count)| product * count).sum();
    (product / (left_spread.squares.sqrt() * right_spread.squares.sqrt())).clamp(-1.0, 1.0)
}

/// 1 − residual / total sum of squares, as scikit-learn takes it: where the expected numbers are constant, 1 for answers
/// without an error and 0 otherwise.
fn r2(expected: Vec<f64>, squared_errors: Vec<f64>) -> Evaluate {
    Box::new(move |counts| {
        let spread = Spread::of(&expected, counts);
        let residual: f64 = squared_errors.iter().zip(counts).map(|(square, count)| square * count).sum();
        match residual == 0.0 {
            true if spread.n_cases == 0.0 => f64::NAN,
            true => 1.0,
            false if spread.is_constant() => 0.0,
            false => 1.0 - residual / spread.squares,
        }
    })
}

/// How far values lie from their mean, with case counts.
struct Spread {
    n_cases: f64,
    mean: f64,
    squares: f64,
}

impl Spread {
    fn of(values: &[f64], counts: &[f64]) -> Self {
        let counted = || values.iter().zip(counts).map(|(&value, &count)| (value, count));
        let n_cases: f64 = counted().map(|(_, count)| count).sum();
        let mean = counted().map(|(value, count)| value * count).sum::<f64>() / n_cases;
        let squares = counted().map(|(value, count)| count * (value - mean) * (value - mean)).sum();
        Self { n_cases, mean, squares }
    }

    /// Rounding leaves constant values a square of about (eps * mean)^2 a case rather than 0.
    fn is_constant(&self) -> bool {
        self.squares <= self.n_cases * (4.0 * f64::EPSILON * self.mean).powi(2)
    }
}
