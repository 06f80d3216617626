//! Every routine against SciPy, statsmodels, scikit-learn, sacrebleu and others or a brute-force reference; see
//! conformance/make_statistics.py.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use highroad_eval::{
    About, Array, Bootstrap, Classes, Costs, Discordance, Generated, Likelihood, McNemarPower, Metric, NonInferiority,
    Numbers, Observed, Rankings, Sides, Similarities, Tensors, Texts, Tolerance, clopper_pearson, fisher_z, quantile,
    quantile_interval, wilson,
};
use serde::Deserialize;

const CLOSED_FORM: f64 = 1e-9;

#[track_caller]
fn assert_close(ours: f64, reference: f64, tolerance: f64) {
    assert!((ours - reference).abs() <= tolerance, "{ours} is not within {tolerance} of {reference}");
}

#[track_caller]
fn assert_all_close(ours: [f64; 2], reference: [f64; 2], tolerance: f64) {
    assert_close(ours[0], reference[0], tolerance);
    assert_close(ours[1], reference[1], tolerance);
}

#[derive(Deserialize)]
struct Goldens {
    proportions: Vec<Proportion>,
    mcnemar: Vec<McNemar>,
    paired: Vec<Paired>,
    exact_paired: Vec<ExactPaired>,
    better_by: Vec<BetterBy>,
    power_of_gain: Vec<PowerOfGain>,
    power: Vec<Power>,
    classifiers: Vec<Classifier>,
    correlations: Vec<Correlation>,
    bootstraps: Vec<Resampled>,
    quantiles: Vec<Quantile>,
    rankings: Vec<Ranking>,
    regressions: Vec<Regression>,
    texts: Vec<Corpus>,
    samples: Vec<Sampled>,
    weighted: Vec<Weighted>,
    counts: Vec<Counts>,
    kernels: Vec<Kernel>,
    tensors: Vec<OfTensors>,
}

fn goldens() -> Goldens {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../conformance/statistics.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[derive(Deserialize)]
struct Proportion {
    k: u64,
    n: u64,
    level: f64,
    wilson: [f64; 2],
    clopper_pearson: [f64; 2],
}

#[test]
fn intervals_of_shares_are_those_of_statsmodels() {
    for golden in goldens().proportions {
        assert_all_close(wilson(golden.k, golden.n, golden.level), golden.wilson, CLOSED_FORM);
        assert_all_close(clopper_pearson(golden.k, golden.n, golden.level), golden.clopper_pearson, CLOSED_FORM);
    }
}

#[derive(Deserialize)]
struct McNemar {
    n: u64,
    regressions: u64,
    improvements: u64,
    two_sided: f64,
    worse: f64,
    better: f64,
}

#[test]
fn exact_mcnemar_is_that_of_statsmodels() {
    for golden in goldens().mcnemar {
        let pairs = Discordance::from_counts(golden.n, golden.regressions, golden.improvements).unwrap();
        assert_close(pairs.mcnemar(), golden.two_sided, CLOSED_FORM);
        assert_close(pairs.mcnemar_worse(), golden.worse, CLOSED_FORM);
        assert_close(pairs.mcnemar_better(), golden.better, CLOSED_FORM);
    }
}

#[derive(Deserialize)]
struct Paired {
    n: u64,
    regressions: u64,
    improvements: u64,
    score_bounds: [f64; 2],
}

#[test]
fn score_bounds_are_where_the_score_test_stops_rejecting() {
    for golden in goldens().paired {
        let pairs = Discordance::from_counts(golden.n, golden.regressions, golden.improvements).unwrap();
        assert_all_close(pairs.score_bounds(0.05), golden.score_bounds, CLOSED_FORM);
    }
}

#[derive(Deserialize)]
struct ExactPaired {
    n: u64,
    regressions: u64,
    improvements: u64,
    exact_bounds: [f64; 2],
}

#[test]
fn exact_bounds_are_those_of_full_enumeration() {
    for golden in goldens().exact_paired {
        let pairs = Discordance::from_counts(golden.n, golden.regressions, golden.improvements).unwrap();
        // Both sides maximise over the share of flips numerically.
        assert_all_close(pairs.exact_bounds(0.05), golden.exact_bounds, 1e-6);
    }
}

#[derive(Deserialize)]
struct BetterBy {
    n: u64,
    regressions: u64,
    improvements: u64,
    gain: f64,
    p: f64,
}

#[test]
fn the_p_value_of_a_gain_is_that_of_full_enumeration() {
    for golden in goldens().better_by {
        let pairs = Discordance::from_counts(golden.n, golden.regressions, golden.improvements).unwrap();
        assert_close(pairs.p_better_by(golden.gain), golden.p, 1e-6);
    }
}

#[derive(Deserialize)]
struct PowerOfGain {
    n: u64,
    needed: f64,
    discordant: f64,
    gain: f64,
    power: f64,
}

#[test]
fn the_smallest_gain_that_passes_is_that_of_full_enumeration() {
    for PowerOfGain { n: n_cases, needed, discordant, gain, power } in goldens().power_of_gain {
        let superiority = NonInferiority { n_cases, discordant, margin: -needed, alpha: 0.05 };
        assert_close(superiority.smallest_gain_passed(power).unwrap(), gain, 1e-5);
    }
    // Four cases show no gain of a half with any power, 400 show one a little above it.
    let of = |n_cases| NonInferiority { n_cases, discordant: 0.1, margin: -0.5, alpha: 0.05 }.smallest_gain_passed(0.8);
    assert_eq!(of(4), None);
    assert!((0.53..0.58).contains(&of(400).unwrap()), "{:?}", of(400));
}

#[derive(Deserialize)]
struct Power {
    n: u64,
    discordant: f64,
    drop: f64,
    sides: u8,
    power: f64,
}

#[test]
fn power_of_mcnemar_is_that_of_full_enumeration() {
    for golden in goldens().power {
        let sides = if golden.sides == 1 { Sides::One } else { Sides::Two };
        let test = McNemarPower { n_cases: golden.n, discordant: golden.discordant, alpha: 0.05, sides };
        assert_close(test.power(golden.drop), golden.power, CLOSED_FORM);
    }
}

#[derive(Deserialize)]
struct Classifier {
    labels: Vec<String>,
    expected: Vec<usize>,
    predicted: Vec<usize>,
    scores: Vec<Vec<f32>>,
    accuracy: f64,
    f1_micro: f64,
    precision: Vec<f64>,
    recall: Vec<f64>,
    f1: Vec<f64>,
    precision_macro: f64,
    recall_macro: f64,
    f1_macro: f64,
    balanced_accuracy: f64,
    accuracy_at_2: f64,
    mcc: f64,
    auroc: Vec<f64>,
    auprc: Vec<f64>,
    log_loss: f64,
    brier: f64,
    ece: f64,
    /// By expected, then by predicted label.
    costs: Vec<Vec<f64>>,
    cost: f64,
}

#[test]
fn classification_metrics_are_those_of_scikit_learn() {
    for golden in goldens().classifiers {
        let name = |&idx: &usize| golden.labels[idx].as_str();
        let answers = golden.predicted.iter().map(name).zip(golden.scores.iter().map(Vec::as_slice));
        let classes = Classes::new(&golden.labels, golden.expected.iter().map(name), answers).unwrap();
        let observed = Observed::Classes(classes);
        let value = |metric: Metric, label| metric.of(&observed, label).unwrap().observed();
        for (metric, reference) in [
            (Metric::Accuracy, golden.accuracy),
            (Metric::Accuracy, golden.f1_micro),
            (Metric::PrecisionMacro, golden.precision_macro),
            (Metric::RecallMacro, golden.recall_macro),
            (Metric::F1Macro, golden.f1_macro),
            (Metric::BalancedAccuracy, golden.balanced_accuracy),
            ("accuracy_at_2".parse().unwrap(), golden.accuracy_at_2),
            (Metric::Mcc, golden.mcc),
            (Metric::LogLoss, golden.log_loss),
            (Metric::Brier, golden.brier),
            (Metric::Ece, golden.ece),
        ] {
            assert_close(value(metric, None), reference, CLOSED_FORM);
        }
        for (idx, label) in golden.labels.iter().enumerate() {
            assert_close(value(Metric::Precision, Some(label)), golden.precision[idx], CLOSED_FORM);
            assert_close(value(Metric::Recall, Some(label)), golden.recall[idx], CLOSED_FORM);
            assert_close(value(Metric::F1, Some(label)), golden.f1[idx], CLOSED_FORM);
            assert_close(value(Metric::Auroc, Some(label)), golden.auroc[idx], CLOSED_FORM);
            assert_close(value(Metric::Auprc, Some(label)), golden.auprc[idx], CLOSED_FORM);
        }
        let row = |row: &Vec<f64>| golden.labels.iter().cloned().zip(row.iter().copied()).collect::<BTreeMap<_, _>>();
        let table: BTreeMap<_, _> = golden.labels.iter().cloned().zip(golden.costs.iter().map(row)).collect();
        let costs = Costs::try_from(table).unwrap();
        let about = About { costs: Some(&costs), ..About::default() };
        assert_close(Metric::Cost.of(&observed, about).unwrap().observed(), golden.cost, CLOSED_FORM);
    }
}

#[derive(Deserialize)]
struct Correlation {
    x: Vec<f64>,
    y: Vec<f64>,
    pearson: f64,
    spearman: f64,
    fisher_z: [f64; 2],
}

#[test]
fn correlations_and_fisher_intervals_are_those_of_scipy() {
    for golden in goldens().correlations {
        let n_cases = golden.x.len();
        let observed = Observed::Similarities(Similarities { expected: golden.x, predicted: golden.y });
        assert_close(Metric::Pearson.of(&observed, None).unwrap().observed(), golden.pearson, CLOSED_FORM);
        assert_close(Metric::Spearman.of(&observed, None).unwrap().observed(), golden.spearman, CLOSED_FORM);
        assert_all_close(fisher_z(golden.pearson, n_cases, 0.95), golden.fisher_z, CLOSED_FORM);
    }
}

#[derive(Deserialize)]
struct Regression {
    expected: Vec<f64>,
    predicted: Vec<f64>,
    mae: f64,
    rmse: f64,
    r2: f64,
}

#[test]
fn regression_metrics_are_those_of_scikit_learn() {
    for golden in goldens().regressions {
        let scale = golden.expected.iter().fold(1.0f64, |scale, value| scale.max(value.abs()));
        let observed = Observed::Numbers(Numbers::new(golden.expected, golden.predicted).unwrap());
        for (metric, reference, unit) in
            [(Metric::Mae, golden.mae, scale), (Metric::Rmse, golden.rmse, scale), (Metric::R2, golden.r2, 1.0)]
        {
            assert_close(metric.of(&observed, None).unwrap().observed(), reference, CLOSED_FORM * unit);
        }
    }
}

#[derive(Deserialize)]
struct OfTensors {
    expected: BTreeMap<String, Vec<Array>>,
    predicted: BTreeMap<String, Vec<Array>>,
    weights: Vec<f64>,
    /// By output, by metric; of all outputs side by side under no name.
    metrics: BTreeMap<String, BTreeMap<String, f64>>,
    within: Vec<Within>,
}

#[derive(Deserialize)]
struct Within {
    tolerances: BTreeMap<String, Tolerance>,
    right: Vec<bool>,
}

#[test]
fn tensors_are_within_their_tolerance_where_numpy_finds_them_close() {
    let mut n_right = [0, 0];
    for golden in goldens().tensors {
        let n_cases = golden.weights.len();
        let [expected, predicted] = [&golden.expected, &golden.predicted].map(|side| by_case(side, n_cases));
        let (expected, predicted): (Vec<_>, Vec<_>) = expected.iter().zip(&predicted).unzip();
        let tensors = Tensors::new(&expected, &predicted).unwrap();
        for Within { tolerances, right } in &golden.within {
            let judged = tensors.clone().with_tolerances(&vec![tolerances; n_cases]).unwrap();
            assert_eq!(judged.within_tolerance(), right.iter().copied().map(Some).collect::<Vec<_>>());
            right.iter().for_each(|&right| n_right[usize::from(right)] += 1);
            let share = right.iter().filter(|&&right| right).count() as f64 / n_cases as f64;
            let statistic = Metric::WithinTolerance.of(&Observed::Tensors(judged), None).unwrap();
            assert_close(statistic.observed(), share, CLOSED_FORM);
        }
    }
    assert!(n_right.iter().all(|&n| n > 20), "{n_right:?}");
}

/// Of each case its tensors by name.
fn by_case(of: &BTreeMap<String, Vec<Array>>, n_cases: usize) -> Vec<BTreeMap<String, Array>> {
    let case = |idx: usize| of.iter().map(|(name, arrays)| (name.clone(), arrays[idx].clone())).collect();
    (0..n_cases).map(case).collect()
}

#[test]
fn metrics_of_tensors_are_those_of_scikit_learn() {
    let mut n_compared = 0;
    for golden in goldens().tensors {
        let [expected, predicted] =
            [&golden.expected, &golden.predicted].map(|side| by_case(side, golden.weights.len()));
        let (expected, predicted): (Vec<_>, Vec<_>) = expected.iter().zip(&predicted).unzip();
        let observed = Observed::Tensors(Tensors::new(&expected, &predicted).unwrap());
        for (output, metrics) in &golden.metrics {
            let about = About { output: Some(output.as_str()).filter(|name| !name.is_empty()), ..About::default() };
            for (name, &reference) in metrics {
                let statistic = name.parse::<Metric>().unwrap().of(&observed, about).unwrap();
                let statistic = statistic.weighted(&golden.weights).unwrap();
                assert_close(statistic.observed(), reference, CLOSED_FORM * reference.abs().max(1.0));
                n_compared += 1;
            }
        }
    }
    assert_eq!(n_compared, 3 * 3 * 6 + 2 * 2);
}

#[derive(Deserialize)]
struct Corpus {
    answers: Vec<String>,
    references: Vec<Vec<String>>,
    exact_match: f64,
    token_f1: f64,
    rouge_l: f64,
    chrf: f64,
    bleu: f64,
}

#[test]
fn metrics_of_texts_are_those_of_sacrebleu_rouge_score_and_squad() {
    for golden in goldens().texts {
        let generated = golden.answers.iter().map(Generated::text).collect();
        let observed = Observed::Texts(Texts::new(golden.references, generated).unwrap());
        for (metric, reference) in [
            (Metric::ExactMatch, golden.exact_match),
            (Metric::TokenF1, golden.token_f1),
            (Metric::RougeL, golden.rouge_l),
            (Metric::Chrf, golden.chrf),
            (Metric::Bleu, golden.bleu),
        ] {
            assert_close(metric.of(&observed, None).unwrap().observed(), reference, CLOSED_FORM);
        }
    }
}

#[derive(Deserialize)]
struct Sampled {
    n_samples: usize,
    n_passed: Vec<u32>,
    k: u16,
    log_probabilities: Vec<Vec<f64>>,
    pass_at_k: f64,
    perplexity: f64,
}

#[test]
fn chances_of_a_right_sample_are_those_of_every_way_to_draw() {
    for golden in goldens().samples {
        let generated = golden.n_passed.iter().zip(&golden.log_probabilities).map(|(&n_passed, tokens)| Generated {
            texts: vec!["x".to_owned(); golden.n_samples],
            n_passed: Some(n_passed),
            likelihood: Some(Likelihood { log_probability: tokens.iter().sum(), n_tokens: tokens.len() as u32 }),
            ..Generated::default()
        });
        let references = vec![vec![String::new()]; golden.n_passed.len()];
        let observed = Observed::Texts(Texts::new(references, generated.collect()).unwrap());
        let pass: Metric = format!("pass_at_{}", golden.k).parse().unwrap();
        assert_close(pass.of(&observed, None).unwrap().observed(), golden.pass_at_k, CLOSED_FORM);
        assert_close(Metric::Perplexity.of(&observed, None).unwrap().observed(), golden.perplexity, CLOSED_FORM);
    }
}

#[derive(Deserialize)]
struct Ranking {
    expected: Vec<Vec<u32>>,
    scores: Vec<Vec<f64>>,
    /// Means over the queries, by trec_eval's names.
    measures: BTreeMap<String, f64>,
}

#[test]
fn ranking_metrics_are_those_of_trec_eval() {
    for golden in goldens().rankings {
        let observed = Observed::Rankings(Rankings::new(golden.expected, golden.scores).unwrap());
        for (theirs, ours) in [
            ("ndcg_cut_3", "ndcg_at_3"),
            ("ndcg_cut_10", "ndcg_at_10"),
            ("recip_rank", "mrr_at_65535"),
            ("recall_1", "recall_at_1"),
            ("recall_3", "recall_at_3"),
            ("recall_10", "recall_at_10"),
            ("map", "map"),
        ] {
            let metric: Metric = ours.parse().unwrap();
            assert_close(metric.of(&observed, None).unwrap().observed(), golden.measures[theirs], CLOSED_FORM);
        }
    }
}

#[test]
fn a_metric_has_one_name() {
    for name in ["accuracy", "log_loss", "map", "ndcg_at_10", "mrr_at_1", "recall_at_100"] {
        let metric: Metric = name.parse().unwrap();
        assert_eq!(metric.name(), name);
        assert_eq!(serde_json::to_string(&metric).unwrap(), format!("\"{name}\""));
        assert_eq!(serde_json::from_str::<Metric>(&format!("\"{name}\"")).unwrap(), metric);
    }
    for wrong in ["ndcg", "ndcg_at_", "ndcg_at_0", "ndcg_at_010", "ndcg_at_+1", "recall_at_99999", "Accuracy"] {
        let error = wrong.parse::<Metric>().unwrap_err().to_string();
        assert!(error.starts_with(&format!("`{wrong}` is no metric: there are `accuracy`")), "{error}");
    }
}

#[derive(Deserialize)]
struct Resampled {
    statistic: String,
    x: Vec<f64>,
    y: Vec<f64>,
    level: f64,
    counts: Vec<Vec<u32>>,
    bca: [f64; 2],
    percentile: [f64; 2],
    standard_error: f64,
}

impl Resampled {
    fn value(&self, counts: &[u32]) -> f64 {
        if self.statistic == "pearson" {
            let pairs = Similarities { expected: self.x.clone(), predicted: self.y.clone() };
            return Metric::Pearson.of(&Observed::Similarities(pairs), None).unwrap().value(counts);
        }
        let total: f64 = self.x.iter().zip(counts).map(|(value, &count)| value * f64::from(count)).sum();
        total / f64::from(counts.iter().sum::<u32>())
    }
}

#[test]
fn bootstrap_intervals_are_those_of_scipy_on_the_same_resamples() {
    for golden in goldens().bootstraps {
        let n_cases = golden.x.len();
        let everything = vec![1; n_cases];
        let without = |idx: usize| (0..n_cases).map(|other| u32::from(other != idx)).collect::<Vec<_>>();
        let resampled = golden.counts.iter().map(|counts| golden.value(counts)).collect();
        let jackknife = (0..n_cases).map(|idx| golden.value(&without(idx))).collect();
        let bootstrap = Bootstrap::from_values(golden.value(&everything), resampled, jackknife);
        assert_all_close(bootstrap.bca(golden.level), golden.bca, CLOSED_FORM);
        assert_all_close(bootstrap.percentile(golden.level), golden.percentile, CLOSED_FORM);
        assert_close(bootstrap.standard_error(), golden.standard_error, CLOSED_FORM);
    }
}

#[derive(Deserialize)]
struct Quantile {
    x: Vec<f64>,
    q: f64,
    level: f64,
    quantile: f64,
    interval: [f64; 2],
}

#[test]
fn quantiles_and_their_intervals_are_those_of_numpy_and_scipy() {
    for mut golden in goldens().quantiles {
        golden.x.sort_by(f64::total_cmp);
        assert_close(quantile(&golden.x, golden.q), golden.quantile, CLOSED_FORM);
        assert_all_close(quantile_interval(&golden.x, golden.q, golden.level), golden.interval, 0.0);
    }
}

/// The table of smallest true drops, in points, by number of cases and share of discordant cases; rounded up to half
/// points, one-sided at 0.05 with power 0.8.
#[test]
fn minimum_detectable_effects_are_those_of_the_table() {
    const SHARES: [f64; 4] = [0.05, 0.1, 0.2, 0.3];
    let table = [
        (50, [None, None, Some(16.5), Some(20.0)]),
        (100, [None, Some(8.5), Some(12.0), Some(14.5)]),
        (200, [Some(4.5), Some(6.0), Some(8.5), Some(10.0)]),
        (400, [Some(3.0), Some(4.5), Some(6.0), Some(7.5)]),
        (800, [Some(2.5), Some(3.0), Some(4.5), Some(5.0)]),
    ];
    for (n_cases, row) in table {
        for (discordant, expected) in SHARES.into_iter().zip(row) {
            let test = McNemarPower { n_cases, discordant, alpha: 0.05, sides: Sides::One };
            let half_points = |drop: f64| (200.0 * drop - 1e-9).ceil() / 2.0;
            let ours = test.minimum_detectable_effect(0.8).map(half_points);
            assert_eq!(ours, expected, "n = {n_cases}, {discordant} discordant");
        }
    }
}

#[test]
fn five_flips_one_way_are_needed_before_a_one_sided_test_can_reject() {
    let flips = |n| Discordance::from_counts(100, n, 0).unwrap();
    assert!(flips(4).mcnemar_worse() > 0.05 && flips(5).mcnemar_worse() <= 0.05);
    assert!(flips(5).mcnemar() > 0.05 && flips(6).mcnemar() <= 0.05);
}

/// Cases that count differently: of a classifier or of a regression.
#[derive(Deserialize)]
struct Weighted {
    kind: String,
    #[serde(default)]
    labels: Vec<String>,
    #[serde(default)]
    expected: Vec<usize>,
    #[serde(default)]
    predicted: Vec<usize>,
    #[serde(default)]
    scores: Vec<Vec<f32>>,
    #[serde(default)]
    expected_numbers: Vec<f64>,
    #[serde(default)]
    predicted_numbers: Vec<f64>,
    weights: Vec<f64>,
    metrics: BTreeMap<String, f64>,
    #[serde(default)]
    of_labels: BTreeMap<String, Vec<f64>>,
}

impl Weighted {
    fn observed(&self) -> Observed {
        if self.kind == "numbers" {
            return Observed::Numbers(
                Numbers::new(self.expected_numbers.clone(), self.predicted_numbers.clone()).unwrap(),
            );
        }
        let name = |label: &usize| self.labels[*label].as_str();
        let answers = self.predicted.iter().map(name).zip(self.scores.iter().map(Vec::as_slice));
        Observed::Classes(Classes::new(&self.labels, self.expected.iter().map(name), answers).unwrap())
    }
}

#[test]
fn weighted_metrics_are_those_of_scikit_learn_with_sample_weights() {
    let mut n_compared = 0;
    for golden in goldens().weighted {
        let observed = golden.observed();
        let mut check = |name: &str, label: Option<&str>, expected: f64| {
            let statistic = name.parse::<Metric>().unwrap().of(&observed, label).unwrap();
            let weighted = statistic.weighted(&golden.weights).unwrap();
            assert!((weighted.observed() - expected).abs() < 1e-9, "{name}: {} {expected}", weighted.observed());
            assert!(weighted.right().is_none());
            n_compared += 1;
        };
        golden.metrics.iter().for_each(|(name, &value)| check(name, None, value));
        for (name, values) in &golden.of_labels {
            golden.labels.iter().zip(values).for_each(|(label, &value)| check(name, Some(label), value));
        }
    }
    assert_eq!(n_compared, 2 * 9 + 5 * 5 + 2 * 4);
}

#[derive(Deserialize)]
struct Counts {
    left: Vec<u64>,
    right: Vec<u64>,
    ks: f64,
    ks_p: f64,
    chi2: f64,
    chi2_p: f64,
    g: f64,
    g_p: f64,
    freedom: u64,
    js: f64,
    psi: f64,
    psi_95: f64,
    evidence: f64,
}

#[test]
fn two_samples_of_counts_are_compared_as_scipy_does() {
    use highroad_eval::drift::{
        chi_square, drift_evidence, g_test, jensen_shannon, kolmogorov_smirnov, psi, psi_excess, psi_under_null,
    };
    for golden in goldens().counts {
        let (left, right) = (&golden.left, &golden.right);
        let ks = kolmogorov_smirnov(left, right);
        assert_close(ks.distance, golden.ks, CLOSED_FORM);
        assert_close(ks.p, golden.ks_p, 1e-7);
        let (chi, g) = (chi_square(left, right), g_test(left, right));
        assert_eq!((chi.freedom, g.freedom), (golden.freedom, golden.freedom));
        assert_close(chi.statistic, golden.chi2, 1e-8);
        assert_close(chi.p, golden.chi2_p, CLOSED_FORM);
        assert_close(g.statistic, golden.g, 1e-8);
        assert_close(g.p, golden.g_p, CLOSED_FORM);
        assert_close(jensen_shannon(left, right), golden.js, 1e-8);
        assert_close(psi(left, right), golden.psi, CLOSED_FORM);
        let (n, m) = (left.iter().sum(), right.iter().sum());
        assert_close(psi_under_null(left.len(), n, m, 0.95), golden.psi_95, 1e-7);
        assert!(psi_excess(left, right) <= golden.psi);
        assert_close(drift_evidence(left, right), golden.evidence, 1e-6);
    }
}

#[derive(Deserialize)]
struct Kernel {
    left: Vec<Vec<f32>>,
    right: Vec<Vec<f32>>,
    bandwidth: f64,
    squared: f64,
}

#[test]
fn a_kernel_test_is_what_its_definition_says() {
    use highroad_eval::drift::mmd;
    let resamples = highroad_eval::Resamples { n: 199, seed: 1 };
    let found: Vec<_> = goldens()
        .kernels
        .iter()
        .map(|golden| {
            let test = mmd(&golden.left, &golden.right, resamples).unwrap();
            assert_close(test.bandwidth, golden.bandwidth, 1e-6);
            assert_close(test.squared, golden.squared, 1e-6);
            test.p
        })
        .collect();
    assert!(found[0] > 0.05 && found[1] < 0.01, "{found:?}");
    assert_eq!(mmd(&[vec![0.0]], &[vec![0.0]], resamples), None);
}
