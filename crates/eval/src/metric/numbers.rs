use super::{Evaluate, Measure, Metric, MetricError, TieGroups, of_sums};
use crate::{Numbers, Tensors};

/// Fewer cases than this have no correlation worth the name.
const FEWEST_CORRELATED: usize = 3;

/// Most numbers, over all cases, that R² of several columns is taken of: each resample walks them all.
const MAX_OF_R2: usize = 1 << 20;

/// A metric of a regression.
pub(super) fn measure(metric: Metric, numbers: &Numbers) -> Result<Measure, MetricError> {
    let (expected, predicted) = (numbers.expected(), numbers.predicted());
    let case = |idx: usize| std::iter::once((expected[idx], predicted[idx]));
    match metric {
        Metric::R2 => Ok(Measure::Of(r2(expected.to_vec(), of_cases(expected.len(), case, squares)))),
        Metric::Pearson | Metric::Spearman => correlated(metric, expected, predicted),
        _ => of_errors(metric, expected.len(), case),
    }
}

/// The same of tensors: of all outputs side by side, or of one.
pub(super) fn of_tensors(metric: Metric, tensors: &Tensors, output: Option<&str>) -> Result<Measure, MetricError> {
    if let Some(output) = output.filter(|output| tensors.outputs().all(|known| known != *output)) {
        let outputs = tensors.outputs().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        return Err(MetricError::UnknownOutput { output: output.to_owned(), outputs });
    }
    let n_cases = tensors.n_cases();
    let case = |idx: usize| tensors.case(idx, output);
    let side_by_side = || (0..n_cases).flat_map(case);
    match (metric, tensors.width(output)) {
        (Metric::WithinTolerance, _) => match tensors.within_tolerance() {
            right if right.iter().all(Option::is_none) => Err(metric.of_other_answers()),
            right => Ok(Measure::Right(right)),
        },
        (Metric::R2 | Metric::Pearson | Metric::Spearman, Some(1)) => {
            let (expected, predicted): (Vec<f64>, Vec<f64>) = side_by_side().unzip();
            measure(metric, &Numbers { expected, predicted })
        }
        (Metric::Pearson | Metric::Spearman, _) => Err(MetricError::SeveralNumbers { metric }),
        (Metric::R2, None) => Err(MetricError::OtherShapes { metric }),
        (Metric::R2, Some(width)) if n_cases.saturating_mul(width) > MAX_OF_R2 => {
            Err(MetricError::TooManyNumbers { metric, limit: MAX_OF_R2 })
        }
        (Metric::R2, Some(width)) => {
            let expected = side_by_side().map(|(expected, _)| expected).collect();
            Ok(Measure::Of(r2_of_columns(expected, width, of_cases(n_cases, case, squares))))
        }
        _ => of_errors(metric, n_cases, case),
    }
}

/// Metrics that take the right and the answered numbers of one case after the other.
fn of_errors<I: Iterator<Item = (f64, f64)>>(
    metric: Metric,
    n_cases: usize,
    case: impl Fn(usize) -> I,
) -> Result<Measure, MetricError> {
    let error = |(expected, predicted): (f64, f64)| (predicted - expected).abs();
    let share = |(expected, predicted): (f64, f64)| {
        if expected == 0.0 { f64::NAN } else { error((expected, predicted)) / expected.abs() }
    };
    let found = match metric {
        Metric::Mae => of_cases(n_cases, case, |of| mean(of.map(error))),
        Metric::MaxError => of_cases(n_cases, case, |of| of.map(error).fold(0.0, f64::max)),
        Metric::Mape => of_cases(n_cases, case, |of| mean(of.map(share))),
        Metric::RelativeL2 => of_cases(n_cases, case, relative_l2),
        Metric::Rmse => {
            let squares = of_cases(n_cases, case, |of| mean(of.map(|pair| error(pair) * error(pair))));
            let rows = squares.into_iter().map(|square| [square, 1.0]).collect();
            return Ok(of_sums(rows, |&[sum, n]| (sum / n).sqrt()));
        }
        _ => return Err(metric.of_other_answers()),
    };
    // Errors of finite numbers are no NaN; a division by 0 is.
    match found.iter().position(|value| value.is_nan()) {
        Some(case_idx) => Err(MetricError::ZeroExpected { metric, case_idx }),
        None => Ok(Measure::Mean(found)),
    }
}

fn of_cases<I: Iterator<Item = (f64, f64)>>(
    n_cases: usize,
    case: impl Fn(usize) -> I,
    of: impl Fn(&mut dyn Iterator<Item = (f64, f64)>) -> f64,
) -> Vec<f64> {
    (0..n_cases).map(|idx| of(&mut case(idx))).collect()
}

/// A case has at least one number.
fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, n) = values.fold((0.0, 0.0), |(sum, n), value| (sum + value, n + 1.0));
    sum / n
}

fn squares(case: &mut dyn Iterator<Item = (f64, f64)>) -> f64 {
    case.map(|(expected, predicted)| (predicted - expected).powi(2)).sum()
}

fn relative_l2(case: &mut dyn Iterator<Item = (f64, f64)>) -> f64 {
    let [error, right] = case.fold([0.0, 0.0], |[error, right], (expected, predicted)| {
        [error + (predicted - expected).powi(2), right + expected * expected]
    });
    // What overflows is as far off as can be told.
    if right == 0.0 { f64::NAN } else { (error / right).sqrt().min(f64::MAX) }
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

/// [`r2`] of `width` columns together: 1 − the residuals over the total sum of squares, both summed over columns, which is the mean of
/// the columns' R² weighted by their variance (scikit-learn's `multioutput="variance_weighted"`).
fn r2_of_columns(mut expected: Vec<f64>, width: usize, squared_errors: Vec<f64>) -> Evaluate {
    // Sums of squares about 0 are then about the means, up to what a resample moves those.
    for column in 0..width {
        let values = || expected.iter().skip(column).step_by(width);
        let mean = values().sum::<f64>() / squared_errors.len() as f64;
        let rounding = 4.0 * f64::EPSILON * mean.abs();
        let centred = |value: f64| if (value - mean).abs() <= rounding { 0.0 } else { value - mean };
        expected.iter_mut().skip(column).step_by(width).for_each(|value| *value = centred(*value));
    }
    let of_case: Vec<f64> = expected.chunks(width).map(|row| row.iter().map(|value| value * value).sum()).collect();
    let square_of_sum = square_of_sum(expected, width);
    Box::new(move |counts| {
        let (mut about_0, mut residual, mut n) = (0.0, 0.0, 0.0);
        for (idx, &count) in counts.iter().enumerate() {
            about_0 += count * of_case[idx];
            residual += count * squared_errors[idx];
            n += count;
        }
        let squares = about_0 - square_of_sum(counts) / n;
        match residual == 0.0 {
            true if n == 0.0 => f64::NAN,
            true => 1.0,
            false if squares <= 1e-12 * about_0 => 0.0,
            false => 1.0 - residual / squares,
        }
    })
}

/// The squared length of the sum of the rows of `[n_cases, width]`, each counted so often: by columns, or where there are fewer cases than
/// columns by the products of the rows with each other, which are taken once.
fn square_of_sum(rows: Vec<f64>, width: usize) -> Evaluate {
    let n_cases = rows.len() / width;
    if n_cases >= width {
        return Box::new(move |counts| {
            let mut sums = vec![0.0; width];
            for (row, &count) in rows.chunks(width).zip(counts).filter(|(_, count)| **count > 0.0) {
                sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += count * value);
            }
            sums.iter().map(|sum| sum * sum).sum()
        });
    }
    let product = |left: &[f64], right: &[f64]| left.iter().zip(right).map(|(left, right)| left * right).sum::<f64>();
    let of_row = |row: &[f64]| rows.chunks(width).map(|other| product(row, other)).collect::<Vec<f64>>();
    let products: Vec<f64> = rows.chunks(width).flat_map(of_row).collect();
    Box::new(move |counts| {
        let counted = products.chunks(n_cases).zip(counts).filter(|(_, count)| **count > 0.0);
        counted.map(|(row, count)| count * product(row, counts)).sum()
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
