//! What plots of a classifier are drawn from: pure functions of right or wrong and of scores.

/// Cases whose confidence falls into one range.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ReliabilityBin {
    /// How many there are; at least 1.
    pub n_cases: usize,
    /// Their mean confidence.
    pub confidence: f64,
    /// The share of them that was right.
    pub right: f64,
}

/// What one threshold on the score gives.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CurvePoint {
    /// The false positive rate of a ROC curve; the recall of a precision-recall curve.
    pub x: f64,
    /// The true positive rate of a ROC curve; the precision of a precision-recall curve.
    pub y: f64,
}

/// Cases by confidence in `n_bins` ranges of one width over 0 … 1, those without a case left out, as scikit-learn's
/// `calibration_curve(strategy="uniform")`: a confidence on the border of two ranges belongs to the lower one.
///
/// `right` and `confidence` are of one length; a confidence outside 0 … 1 counts in the nearest range.
pub fn reliability(right: &[bool], confidence: &[f64], n_bins: usize) -> Vec<ReliabilityBin> {
    let mut bins = vec![(0usize, 0.0, 0usize); n_bins.max(1)];
    for (&right, &confidence) in right.iter().zip(confidence) {
        // The borders of `numpy.linspace`, so that a confidence of 0.3 lands where NumPy puts it.
        let border = |bin: usize| bin as f64 * (1.0 / n_bins as f64);
        let bin = (1..n_bins).take_while(|&bin| confidence > border(bin)).count();
        let (n_cases, total, n_right) = &mut bins[bin];
        *n_cases += 1;
        *total += confidence;
        *n_right += usize::from(right);
    }
    let filled = bins.into_iter().filter(|(n_cases, ..)| *n_cases > 0);
    filled
        .map(|(n_cases, total, n_right)| ReliabilityBin {
            n_cases,
            confidence: total / n_cases as f64,
            right: n_right as f64 / n_cases as f64,
        })
        .collect()
}

/// The ROC curve from (0, 0) to (1, 1), a point a distinct score, as scikit-learn's
/// `roc_curve(drop_intermediate=False)`. Empty unless there are cases of both kinds.
pub fn roc_curve(is_label: &[bool], scores: &[f64]) -> Vec<CurvePoint> {
    let steps = steps(is_label, scores);
    let Some(&[n_label, n_others]) = steps.last().filter(|[n_label, n_others]| n_label * n_others > 0) else {
        return Vec::new();
    };
    let point = |[hits, alarms]: [usize; 2]| CurvePoint { x: share(alarms, n_others), y: share(hits, n_label) };
    std::iter::once([0, 0]).chain(steps).map(point).collect()
}

/// The precision-recall curve from (recall 0, precision 1), a point a distinct score, up to a recall of 1: scikit-learn's
/// `precision_recall_curve` read from its end. Empty unless there is a case of the label.
pub fn precision_recall_curve(is_label: &[bool], scores: &[f64]) -> Vec<CurvePoint> {
    let steps = steps(is_label, scores);
    let Some(&[n_label, _]) = steps.last().filter(|[n_label, _]| *n_label > 0) else { return Vec::new() };
    let point = |[hits, alarms]: [usize; 2]| CurvePoint { x: share(hits, n_label), y: share(hits, hits + alarms) };
    std::iter::once(CurvePoint { x: 0.0, y: 1.0 }).chain(steps.into_iter().map(point)).collect()
}

/// At most `n_most` of `points` (but never fewer than 2), evenly spaced among them, the first and the last included.
pub fn thin<T: Clone>(points: &[T], n_most: usize) -> Vec<T> {
    let n_kept = n_most.max(2);
    if points.len() <= n_kept {
        return points.to_vec();
    }
    (0..n_kept).map(|kept| points[kept * (points.len() - 1) / (n_kept - 1)].clone()).collect()
}

/// From the highest score down, how many cases of the label and how many others score at least that much.
fn steps(is_label: &[bool], scores: &[f64]) -> Vec<[usize; 2]> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&left, &right| scores[right].total_cmp(&scores[left]));
    let mut counts = [0; 2];
    let groups = order.chunk_by(|&left, &right| scores[left] == scores[right]);
    groups
        .map(|group| {
            group.iter().for_each(|&idx| counts[usize::from(!is_label[idx])] += 1);
            counts
        })
        .collect()
}

fn share(part: usize, whole: usize) -> f64 {
    part as f64 / whole as f64
}
