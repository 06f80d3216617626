use std::collections::BTreeSet;

use serde::Serialize;

use crate::gate::{FEWEST_UNITS, bounds};
use crate::weights::{effective_size_of_rarest, kish, uneven};
use crate::{
    About, Bootstrap, Case, Cutoff, Metric, Observed, Parameter, Resamples, Statistic, Texts, Units, fisher_z, wilson,
};

/// One metric with its interval.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measured {
    /// What was measured.
    pub metric: Metric,
    /// The label it belongs to, the judge, or the output.
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
    /// How many cases that count alike they amount to, where they have different weights (Kish 1965).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n_effective: Option<f64>,
    /// Those that are defined on these cases.
    pub metrics: Vec<Measured>,
}

const LEVEL: f64 = 0.95;

impl Measured {
    /// A metric that comes from outside: in closed form where it is a share of independent cases, else bootstrapped.
    pub(crate) fn given(
        metric: Metric,
        label: &str,
        statistic: &Statistic,
        units: &Units,
        resamples: Resamples,
    ) -> Self {
        let (interval, method) = match statistic.right().filter(|_| !units.are_shared()) {
            Some(right) => {
                let [k, n] = n_right_of(right);
                (wilson(k, n, LEVEL), Method::Wilson)
            }
            None => (interval(metric, &statistic.resample(units, resamples), units.len()), Method::Bca),
        };
        Self { metric, label: Some(label.to_owned()), value: statistic.observed(), interval, method }
    }
}

/// Up to this many labels each has its own precision, recall, F1, AUROC and AUPRC.
const MOST_LABELS: usize = 20;

/// Of more labels than that only so many are shown, those with the lowest F1 …
const WORST_LABELS: usize = 10;

/// … among the labels with at least this many cases: the F1 of fewer says little.
const FEWEST_OF_A_SHOWN_LABEL: usize = 5;

/// Metrics with 95 % intervals on all cases, then on every slice by name. Precision, recall, F1, AUROC and AUPRC are given
/// for the labels in `of_labels`, or, where those are more than 20, for the ten with the lowest F1 on all cases among those
/// with at least five cases; metrics that a slice leaves undefined are left out.
///
/// # Panics
/// If `cases` and `observed` differ in length.
pub fn summarise(cases: &[Case], observed: &Observed, of_labels: &[String], resamples: Resamples) -> Vec<Summary> {
    assert_eq!(cases.len(), observed.n_cases(), "answers to other cases");
    let of_labels = shown_labels(observed, of_labels);
    let slices: BTreeSet<&str> = cases.iter().flat_map(|case| &case.slices).map(String::as_str).collect();
    let all_and_slices = std::iter::once(None).chain(slices.into_iter().map(Some));
    let summary = |slice: Option<&str>| {
        let in_slice = |case: &Case| slice.is_none_or(|slice| case.slices.iter().any(|name| name == slice));
        let idxs: Vec<usize> = (0..cases.len()).filter(|&idx| in_slice(&cases[idx])).collect();
        let sources: Vec<[usize; 2]> = idxs.iter().map(|&idx| cases[idx].sources).collect();
        let (observed, units) = (observed.subset(&idxs), Units::sources(&sources));
        let weights = uneven(idxs.iter().map(|&idx| cases[idx].weight));
        let drawn = Drawn { observed: &observed, units: &units, weights: weights.as_deref() };
        let metrics = drawn.measure_all(metrics_of(&observed, &of_labels), resamples);
        let n_effective = weights.map(|weights| kish(weights.into_iter()));
        Summary { slice: slice.map(str::to_owned), n_cases: idxs.len(), n_effective, metrics }
    };
    all_and_slices.map(summary).collect()
}

fn metrics_of<'a>(observed: &'a Observed, of_labels: &[&'a str]) -> Vec<(Metric, Option<&'a str>)> {
    match observed {
        Observed::Similarities(_) => return vec![(Metric::Spearman, None), (Metric::Pearson, None)],
        Observed::Triplets(_) => return vec![(Metric::PairAccuracy, None)],
        Observed::Numbers(_) => {
            let metrics = [Metric::Mae, Metric::Rmse, Metric::R2, Metric::Pearson, Metric::Spearman];
            return metrics.map(|metric| (metric, None)).to_vec();
        }
        Observed::Tensors(tensors) => {
            let outputs: Vec<&str> = tensors.outputs().take(MOST_LABELS).collect();
            let each = if outputs.len() > 1 { outputs } else { Vec::new() };
            let abouts = std::iter::once(None).chain(each.into_iter().map(Some));
            return abouts.flat_map(|output| Metric::OF_TENSORS.map(|metric| (metric, output))).collect();
        }
        Observed::Texts(texts) => {
            let judges = judges(texts).into_iter().map(|judge| (Metric::Judged, Some(judge)));
            return metrics_of_texts(texts).into_iter().map(|metric| (metric, None)).chain(judges).collect();
        }
        Observed::Rankings(_) => {
            let ten = Cutoff::new(10).expect("10 is not 0");
            let first = Cutoff::MIN;
            let metrics =
                [Metric::Ndcg(ten), Metric::Mrr(ten), Metric::RecallAt(first), Metric::RecallAt(ten), Metric::Map];
            return metrics.map(|metric| (metric, None)).to_vec();
        }
        Observed::Classes(_) => {}
    }
    let per_label = [Metric::Precision, Metric::Recall, Metric::F1, Metric::Auroc, Metric::Auprc];
    let of_label = |label: &&'a str| per_label.map(|metric| (metric, Some(*label)));
    let overall = [
        Metric::Accuracy,
        Metric::BalancedAccuracy,
        Metric::F1Macro,
        Metric::Mcc,
        Metric::LogLoss,
        Metric::Brier,
        Metric::Ece,
    ];
    overall.map(|metric| (metric, None)).into_iter().chain(of_labels.iter().flat_map(of_label)).collect()
}

/// Who judged every text.
fn judges(texts: &Texts) -> Vec<&str> {
    let Some(last) = texts.n_cases().checked_sub(1) else { return Vec::new() };
    let judged_all = |judge: &&String| (0..last).all(|idx| texts.generated(idx).judged.contains_key(*judge));
    texts.generated(last).judged.keys().filter(judged_all).map(String::as_str).collect()
}

/// Those of single texts and of all together; perplexity and the chance of a right sample where the answers allow.
fn metrics_of_texts(texts: &Texts) -> Vec<Metric> {
    let of_text = [Metric::ExactMatch, Metric::TokenF1, Metric::RougeL, Metric::Chrf, Metric::Bleu, Metric::Perplexity];
    let fewest_samples = (0..texts.n_cases()).map(|idx| texts.generated(idx).texts.len()).min().unwrap_or(0);
    let most = u16::try_from(fewest_samples).ok().and_then(Cutoff::new).filter(|most| most.get() > 1);
    let of_samples = most.map(|most| [Metric::PassAt(Cutoff::MIN), Metric::PassAt(most)]);
    of_text.into_iter().chain(of_samples.into_iter().flatten()).collect()
}

/// The labels that get metrics of their own.
fn shown_labels<'a>(observed: &Observed, of_labels: &'a [String]) -> Vec<&'a str> {
    let all = || of_labels.iter().map(String::as_str);
    let Observed::Classes(classes) = observed else { return Vec::new() };
    if of_labels.len() <= MOST_LABELS {
        return all().collect();
    }
    let f1 = |label| Metric::F1.of(observed, Some(label)).ok().map(|statistic| statistic.observed());
    let is_frequent = |label: &&str| classes.n_of(label) >= FEWEST_OF_A_SHOWN_LABEL;
    let mut by_f1: Vec<(f64, &str)> = all().filter(is_frequent).filter_map(|label| Some((f1(label)?, label))).collect();
    by_f1.sort_by(|left, right| left.0.total_cmp(&right.0));
    by_f1.into_iter().take(WORST_LABELS).map(|(_, label)| label).collect()
}

/// Answers, what a bootstrap draws of them, and how much each counts where that differs.
#[derive(Clone, Copy)]
struct Drawn<'a> {
    observed: &'a Observed,
    units: &'a Units,
    weights: Option<&'a [f64]>,
}

impl Drawn<'_> {
    /// Those of `metrics` that are defined here.
    fn measure_all(self, metrics: Vec<(Metric, Option<&str>)>, resamples: Resamples) -> Vec<Measured> {
        let defined = metrics.into_iter().filter_map(|about| Some((about, self.statistic(about)?)));
        let (about, statistics): (Vec<_>, Vec<_>) = defined.unzip();
        let found: Vec<_> = about.iter().zip(&statistics).map(|(about, of)| self.in_closed_form(*about, of)).collect();
        let drawn: Vec<&Statistic> =
            statistics.iter().zip(&found).filter(|(_, found)| found.is_none()).map(|(of, _)| of).collect();
        let mut samples = Statistic::resample_all(&drawn, self.units, resamples).into_iter();
        let n_scarcest = self.n_scarcest();
        let measured = |(((metric, label), statistic), found): ((_, &Statistic), Option<_>)| {
            let of_sample =
                || (interval(metric, &samples.next().expect("one for each that needs it"), n_scarcest), Method::Bca);
            let (interval, method) = found.unwrap_or_else(of_sample);
            Measured { metric, label: Option::map(label, str::to_owned), value: statistic.observed(), interval, method }
        };
        about.into_iter().zip(&statistics).zip(found).map(measured).collect()
    }

    fn statistic(self, (metric, label): (Metric, Option<&str>)) -> Option<Statistic> {
        let about = match metric.parameter() {
            Some(Parameter::Judge) => About { judge: label, ..About::default() },
            None if matches!(self.observed, Observed::Tensors(_)) => About { output: label, ..About::default() },
            _ => label.into(),
        };
        let statistic = metric.of(self.observed, about).ok()?;
        match self.weights {
            Some(weights) => statistic.weighted(weights).ok(),
            None => Some(statistic),
        }
    }

    /// An interval that needs no resamples, where there is one.
    fn in_closed_form(
        self,
        (metric, label): (Metric, Option<&str>),
        statistic: &Statistic,
    ) -> Option<([f64; 2], Method)> {
        let Self { observed, units, weights } = self;
        if units.are_shared() || weights.is_some() {
            return None;
        }
        if let Some([k, n]) = share(metric, label, statistic, observed) {
            return Some((wilson(k, n, LEVEL), Method::Wilson));
        }
        let n_cases = observed.n_cases();
        let is_correlation = matches!(metric, Metric::Pearson | Metric::Spearman);
        let is_small = units.len() < FEWEST_UNITS && units.len() == n_cases;
        (is_correlation && is_small).then(|| (fisher_z(statistic.observed(), n_cases, LEVEL), Method::FisherZ))
    }

    /// Cases of the rarest label, or things drawn; with weights, as many as they amount to.
    fn n_scarcest(self) -> usize {
        match (self.observed, self.weights) {
            (Observed::Classes(classes), None) => classes.n_rarest(),
            (Observed::Classes(classes), Some(weights)) => {
                effective_size_of_rarest(weights, classes.expected()) as usize
            }
            (_, None) => self.units.len(),
            (_, Some(weights)) => self.units.len().min(kish(weights.iter().copied()) as usize),
        }
    }
}

/// Numerator and denominator of the metrics that are shares of cases.
fn share(metric: Metric, label: Option<&str>, statistic: &Statistic, observed: &Observed) -> Option<[u64; 2]> {
    if let Some(right) = statistic.right() {
        return Some(n_right_of(right));
    }
    let (Observed::Classes(classes), Metric::Precision) = (observed, metric) else { return None };
    let is_label = |answer: &usize| Some(classes.labels()[*answer].as_str()) == label;
    let named = classes.predicted().iter().zip(classes.correct()).filter(|(predicted, _)| is_label(predicted));
    Some(n_right_of(&named.map(|(_, right)| right).collect::<Vec<_>>()))
}

/// How many are right, of how many.
fn n_right_of(right: &[bool]) -> [u64; 2] {
    [right.iter().filter(|&&right| right).count() as u64, right.len() as u64]
}

fn interval(metric: Metric, sample: &Bootstrap, n_scarcest: usize) -> [f64; 2] {
    let [low, high] = bounds(sample, (1.0 - LEVEL) / 2.0, n_scarcest);
    let (least, most) = metric.range();
    [low.max(least), high.min(most)]
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{Classes, Expected};

    #[test]
    fn metrics_that_share_their_resamples_have_the_bits_of_those_that_do_not() {
        let labels = ["a", "b", "c"].map(str::to_owned);
        let name = |idx: usize| labels[idx].as_str();
        let scores: Vec<[f32; 3]> = (0..200).map(|idx| [(idx % 7) as f32, (idx * 31 % 11) as f32, 3.0]).collect();
        let answers = scores.iter().enumerate().map(|(idx, scores)| (name(idx * 13 % 3), scores.as_slice()));
        let expected = (0..200).map(|idx| name(idx * idx % 5 % 3));
        let observed = Observed::Classes(Classes::new(&labels, expected.clone(), answers).unwrap());
        let weights: Vec<f64> = (0..200).map(|idx| 0.5 + f64::from(idx % 4)).collect();
        let resamples = Resamples { n: 100, seed: 3 };
        for weights in [None, Some(weights)] {
            let case = |(idx, expected): (usize, &str)| Case {
                id: idx.to_string(),
                expected: Expected::Label(expected.to_owned()),
                slices: Vec::new(),
                must_pass: false,
                sources: [idx / 2; 2],
                weight: weights.as_ref().map_or(1.0, |weights| weights[idx]),
            };
            let cases: Vec<Case> = expected.clone().enumerate().map(case).collect();
            let units = Units::sources(&cases.iter().map(|case| case.sources).collect::<Vec<_>>());
            let drawn = Drawn { observed: &observed, units: &units, weights: weights.as_deref() };
            let [all] = &summarise(&cases, &observed, &labels, resamples)[..] else { panic!("there are no slices") };
            assert!(all.metrics.len() > 15);
            for measured in &all.metrics {
                let statistic = drawn.statistic((measured.metric, measured.label.as_deref())).unwrap();
                let sample = statistic.resample(&units, resamples);
                let alone = interval(measured.metric, &sample, drawn.n_scarcest());
                assert_eq!((measured.interval, measured.method), (alone, Method::Bca), "{:?}", measured.metric);
            }
        }
    }
}
