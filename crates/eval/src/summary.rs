use std::collections::BTreeSet;

use serde::Serialize;

use crate::gate::{FEWEST_UNITS, bounds};
use crate::{Bootstrap, Case, Classes, Cutoff, Metric, Observed, Resamples, Statistic, Units, fisher_z, wilson};

/// One metric with its interval.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measured {
    /// What was measured.
    pub metric: Metric,
    /// The label it belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// On the cases.
    pub value: f64,
    /// At two-sided confidence 95 %.
    pub interval: [f64; 2],
    /// How the interval was found.
    pub method: Method,
}

/// How an interval was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// [`wilson`], for shares of cases.
    Wilson,
    /// [`fisher_z`], for correlations of a few independent pairs.
    FisherZ,
    /// [`Bootstrap::bca`], over cases or over the texts they share.
    Bca,
}

/// Metrics on all cases or on one slice.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// `None` for all cases.
    pub slice: Option<String>,
    /// How many cases there are.
    pub n_cases: usize,
    /// Those that are defined on these cases.
    pub metrics: Vec<Measured>,
}

const LEVEL: f64 = 0.95;

/// Metrics with 95 % intervals on all cases, then on every slice by name. Precision, recall, F1 and AUROC are given for
/// the labels in `of_labels`; metrics that a slice leaves undefined are left out.
///
/// # Panics
/// If `cases` and `observed` differ in length.
pub fn summarise(cases: &[Case], observed: &Observed, of_labels: &[String], resamples: Resamples) -> Vec<Summary> {
    assert_eq!(cases.len(), observed.n_cases(), "answers to other cases");
    let slices: BTreeSet<&str> = cases.iter().flat_map(|case| &case.slices).map(String::as_str).collect();
    let all_and_slices = std::iter::once(None).chain(slices.into_iter().map(Some));
    let summary = |slice: Option<&str>| {
        let in_slice = |case: &Case| slice.is_none_or(|slice| case.slices.iter().any(|name| name == slice));
        let idxs: Vec<usize> = (0..cases.len()).filter(|&idx| in_slice(&cases[idx])).collect();
        let sources: Vec<[usize; 2]> = idxs.iter().map(|&idx| cases[idx].sources).collect();
        let (observed, units) = (observed.subset(&idxs), Units::sources(&sources));
        let measure = |(metric, label)| measure(metric, label, &observed, &units, resamples);
        let metrics = metrics_of(&observed, of_labels).into_iter().filter_map(measure).collect();
        Summary { slice: slice.map(str::to_owned), n_cases: idxs.len(), metrics }
    };
    all_and_slices.map(summary).collect()
}

fn metrics_of<'a>(observed: &Observed, of_labels: &'a [String]) -> Vec<(Metric, Option<&'a str>)> {
    match observed {
        Observed::Similarities(_) => return vec![(Metric::Spearman, None), (Metric::Pearson, None)],
        Observed::Rankings(_) => {
            let ten = Cutoff::new(10).expect("10 is not 0");
            let first = Cutoff::MIN;
            let metrics =
                [Metric::Ndcg(ten), Metric::Mrr(ten), Metric::RecallAt(first), Metric::RecallAt(ten), Metric::Map];
            return metrics.map(|metric| (metric, None)).to_vec();
        }
        Observed::Classes(_) => {}
    }
    let per_label = [Metric::Precision, Metric::Recall, Metric::F1, Metric::Auroc];
    let of_label = |label: &'a String| per_label.map(|metric| (metric, Some(label.as_str())));
    let overall = [Metric::Accuracy, Metric::F1Macro, Metric::LogLoss].map(|metric| (metric, None));
    overall.into_iter().chain(of_labels.iter().flat_map(of_label)).collect()
}

fn measure(
    metric: Metric,
    label: Option<&str>,
    observed: &Observed,
    units: &Units,
    resamples: Resamples,
) -> Option<Measured> {
    let statistic = metric.of(observed, label).ok()?;
    let value = statistic.observed();
    let (interval, method) = match observed {
        Observed::Classes(classes) => match share(metric, label, classes).filter(|_| !units.are_shared()) {
            Some([k, n]) => (wilson(k, n, LEVEL), Method::Wilson),
            None => (bootstrapped(metric, &statistic, units, classes.n_rarest(), resamples), Method::Bca),
        },
        Observed::Similarities(pairs) if units.len() < FEWEST_UNITS && units.len() == pairs.expected.len() => {
            (fisher_z(value, pairs.expected.len(), LEVEL), Method::FisherZ)
        }
        Observed::Similarities(_) | Observed::Rankings(_) => {
            (bootstrapped(metric, &statistic, units, units.len(), resamples), Method::Bca)
        }
    };
    Some(Measured { metric, label: label.map(str::to_owned), value, interval, method })
}

/// Numerator and denominator of the metrics that are shares of cases.
fn share(metric: Metric, label: Option<&str>, classes: &Classes) -> Option<[u64; 2]> {
    let is_label = |answer: &usize| Some(classes.labels()[*answer].as_str()) == label;
    let cases = || classes.expected().iter().zip(classes.predicted());
    let counts = |case: &(&usize, &usize)| match metric {
        Metric::Precision => is_label(case.1),
        Metric::Recall => is_label(case.0),
        _ => true,
    };
    let is_share = matches!(metric, Metric::Accuracy | Metric::Precision | Metric::Recall);
    let n_right = cases().filter(counts).filter(|(expected, predicted)| expected == predicted).count();
    is_share.then(|| [n_right as u64, cases().filter(counts).count() as u64])
}

fn bootstrapped(
    metric: Metric,
    statistic: &Statistic,
    units: &Units,
    n_scarcest: usize,
    resamples: Resamples,
) -> [f64; 2] {
    let sample = Bootstrap::new(units, resamples, |counts| statistic.value(counts));
    let [low, high] = bounds(&sample, (1.0 - LEVEL) / 2.0, n_scarcest);
    let (least, most) = metric.range();
    [low.max(least), high.min(most)]
}
