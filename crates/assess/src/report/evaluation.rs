use highroad_eval::{Expected, Measured, Observed, Summary};
use serde::Serialize;

use super::shown::MOST_CHARS;
use super::{Fact, MustPass, asked, fact, hosted_facts, in_words, must_pass, numerics, picture, remarks, text, wanted};
use crate::verdict::right;
use crate::{AssessError, GoldenInput, GoldenSet, Results, Ruled};

/// Most worst cases that a report lists, however many are asked for.
const MOST_WORST: usize = 200;

/// What a person reads of an evaluation: the main number, the worst cases, the metrics.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EvalReport {
    /// The main metric in one sentence.
    pub headline: String,
    /// Broken promises and cut texts.
    pub remarks: Vec<String>,
    /// The cases answered worst, worst first.
    pub worst: Vec<WorstCase>,
    /// What makes a case worse than another, in a sentence.
    pub worst_first: &'static str,
    /// Every metric on all cases, then on each slice.
    pub metrics: Vec<MetricRow>,
    /// The cases that must be right.
    pub must_pass: Vec<MustPass>,
    /// What was asked, by what.
    pub facts: Vec<Fact>,
}

/// A metric with its interval.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct MetricRow {
    /// `all`, or the slice.
    pub cases: String,
    /// Whether it is about all cases.
    pub whole: bool,
    /// Whether it is the first row of its cases.
    pub first: bool,
    pub n_cases: usize,
    pub metric: String,
    pub value: String,
    pub interval: String,
}

/// A case that was answered badly.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct WorstCase {
    pub case: String,
    pub slices: Vec<String>,
    pub must_pass: bool,
    pub input: String,
    /// A small copy of an image, as a `data:` address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub picture: Option<String>,
    pub expected: String,
    pub answered: String,
}

impl EvalReport {
    /// What to read of `results` and of their metrics; `n_worst` cases are listed. `ruled` is there where rules were.
    pub fn of(
        results: &Results,
        golden: &GoldenSet,
        summaries: &[Summary],
        n_worst: usize,
        ruled: Option<Ruled<'_>>,
    ) -> Result<Self, AssessError> {
        let observed = results.observed(golden, &[])?;
        let right = right(ruled, golden, &observed);
        let worst = worst(&observed, results, &right).into_iter().take(n_worst.min(MOST_WORST));
        Ok(Self {
            headline: headline(summaries, &golden.name),
            remarks: remarks(results),
            worst: worst.map(|idx| worst_case(results, golden, &observed, idx)).collect::<Result<_, _>>()?,
            worst_first: worst_first(&observed),
            metrics: summaries.iter().flat_map(metric_rows).collect(),
            must_pass: must_pass(results, golden, &observed, &right)?,
            facts: facts(results),
        })
    }
}

/// A metric's name with the label it belongs to.
pub(super) fn metric_name(measured: &Measured) -> String {
    match &measured.label {
        Some(label) => format!("{} of \"{label}\"", measured.metric),
        None => measured.metric.to_string(),
    }
}

fn headline(summaries: &[Summary], golden: &str) -> String {
    let Some((all, main)) = summaries.first().and_then(|all| Some((all, all.metrics.first()?))) else {
        return format!("no metric is defined on `{golden}`");
    };
    let [low, high] = main.interval;
    let name = metric_name(main);
    let weighted = all.n_effective.map(|n| format!(", which count as {n:.0} by their weights")).unwrap_or_default();
    let (value, n_cases) = (main.value, all.n_cases);
    format!("{name} {value:.4} (95 % interval {low:.4} to {high:.4}) on {n_cases} cases of `{golden}`{weighted}")
}

fn metric_rows(summary: &Summary) -> impl Iterator<Item = MetricRow> {
    summary.metrics.iter().enumerate().map(|(idx, measured)| MetricRow {
        cases: summary.slice.clone().unwrap_or_else(|| "all".to_owned()),
        whole: summary.slice.is_none(),
        first: idx == 0,
        n_cases: summary.n_cases,
        metric: metric_name(measured),
        value: format!("{:.4}", measured.value),
        interval: format!("{:.4} to {:.4}", measured.interval[0], measured.interval[1]),
    })
}

fn facts(results: &Results) -> Vec<Fact> {
    let (set, latency) = (&results.golden_set, results.latency());
    let percentiles =
        format!("p50 {:.1} ms, p90 {:.1} ms, p99 {:.1} ms", latency.p50_ms, latency.p90_ms, latency.p99_ms);
    let mut facts = vec![
        fact("package", results.package.to_string()),
        fact("golden set", format!("{} ({} cases), {}", set.name, set.n_cases, set.digest)),
        numerics(&results.numerics_id, results.evidence),
        fact("answers", results.checked.in_words()),
        fact("latency", format!("{percentiles}; {}", throughput(results))),
        fact("measured", latency.measured),
    ];
    facts.extend(results.hosted.iter().flat_map(hosted_facts));
    facts
}

fn throughput(results: &Results) -> String {
    let per_s = results.speed.inputs_per_s;
    match &results.hosted {
        Some(_) => format!("{per_s:.1} answers/s"),
        None => format!("{per_s:.0} inputs/s in batches"),
    }
}

fn worst_first(observed: &Observed) -> &'static str {
    match observed {
        Observed::Classes(_) => "Wrong answers, that with the lowest score of the right label first.",
        Observed::Similarities(_) => "Pairs whose rank among all pairs is furthest from the one people gave it.",
        Observed::Rankings(_) => "Queries whose most relevant document comes last.",
        Observed::Triplets(_) => "Triplets whose negative text is closest beside the positive one.",
        Observed::Numbers(_) | Observed::Tensors(_) => "The largest errors.",
        Observed::Texts(_) => "Texts that equal no reference, or that a program found wrong.",
    }
}

/// The cases by how badly they were answered, worst first; those that are right are left out.
fn worst(observed: &Observed, results: &Results, right: &[Option<bool>]) -> Vec<usize> {
    let mut order: Vec<(f64, usize)> = match observed {
        Observed::Classes(classes) => {
            let wrong = (0..results.cases.len()).filter(|&idx| classes.expected()[idx] != classes.predicted()[idx]);
            let scores: Vec<Vec<f64>> = (0..classes.labels().len()).map(|label| classes.scores_of(label)).collect();
            wrong.map(|idx| (-scores[classes.expected()[idx]][idx], idx)).collect()
        }
        Observed::Similarities(pairs) => {
            let (human, model) = (ranks(&pairs.expected), ranks(&pairs.predicted));
            (0..human.len()).map(|idx| (human[idx].abs_diff(model[idx]) as f64, idx)).collect()
        }
        Observed::Rankings(rankings) => {
            let rank = |idx: usize| rankings.best_rank(idx).filter(|&rank| rank > 1);
            (0..rankings.n_cases()).filter_map(|idx| Some((rank(idx)? as f64, idx))).collect()
        }
        Observed::Triplets(triplets) => {
            let lead = triplets.similarities().iter().map(|[positive, negative]| negative - positive);
            lead.zip(0..).filter(|(lead, _)| *lead >= 0.0).collect()
        }
        Observed::Numbers(numbers) => {
            let errors = numbers.expected().iter().zip(numbers.predicted());
            errors.map(|(expected, predicted)| (expected - predicted).abs()).zip(0..).collect()
        }
        Observed::Tensors(tensors) => {
            let error = |idx| tensors.case(idx, None).map(|(expected, predicted)| (expected - predicted).abs());
            (0..tensors.n_cases()).map(|idx| (error(idx).fold(0.0, f64::max), idx)).collect()
        }
        Observed::Texts(_) => {
            let wrong = right.iter().enumerate().filter(|(_, right)| **right == Some(false));
            wrong.map(|(idx, _)| (0.0, idx)).collect()
        }
    };
    order.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    order.into_iter().map(|(_, idx)| idx).collect()
}

fn ranks(values: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0; values.len()];
    order.into_iter().enumerate().for_each(|(rank, idx)| ranks[idx] = rank);
    ranks
}

fn worst_case(
    results: &Results,
    golden: &GoldenSet,
    observed: &Observed,
    idx: usize,
) -> Result<WorstCase, AssessError> {
    let (case, input) = (&golden.cases[idx].case, golden.input(idx)?);
    Ok(WorstCase {
        case: case.id.clone(),
        slices: case.slices.clone(),
        must_pass: case.must_pass,
        input: asked(&input, MOST_CHARS),
        picture: picture(&input),
        expected: right_answer(&case.expected, &input),
        answered: in_words(results, &input, observed, idx),
    })
}

/// The right answer: of a ranking a most relevant document itself.
fn right_answer(expected: &Expected, input: &GoldenInput) -> String {
    let (Expected::Relevances(relevances), GoldenInput::Ranking { documents, .. }) = (expected, input) else {
        return wanted(expected);
    };
    let most = (0..relevances.len()).rev().max_by_key(|&idx| relevances[idx]);
    let document = most.and_then(|idx| documents.get(idx)).map_or("", String::as_str);
    format!("{}: {}", wanted(expected), text(document, MOST_CHARS))
}
