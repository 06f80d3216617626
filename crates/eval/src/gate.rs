use std::collections::BTreeSet;

use crate::interval::{clopper_pearson, quantile, quantile_interval};
use crate::power::normal_power;
use crate::{
    Bootstrap, Case, CheckResult, Classes, Discordance, Flip, Gates, LatencyRule, McNemarPower, Metric, MetricError,
    NonInferiority, Observed, Outcome, Resamples, Rule, Sides, Similarities, Statistic, Units, Waiver, outcome,
};

/// Fewer cases (or sources of cases) than this, or fewer than [`FEWEST_OF_A_LABEL`] of the rarest label, are too few for
/// a bootstrap interval: it draws from what was seen, and so little was.
pub(crate) const FEWEST_UNITS: usize = 30;
const FEWEST_OF_A_LABEL: usize = 10;

/// Everything a gate looks at.
#[derive(Clone, Copy, Debug)]
pub struct Comparison<'a> {
    /// The golden cases, in file order.
    pub cases: &'a [Case],
    /// The candidate's answers to them.
    pub candidate: &'a Observed,
    /// What they are compared with.
    pub baseline: Side<'a>,
    /// The candidate's service time of single cases in milliseconds, in any order; empty if none was measured.
    pub latencies_ms: &'a [f64],
}

/// What the candidate is compared with.
#[derive(Clone, Copy, Debug)]
pub enum Side<'a> {
    /// The answers of another package to the same cases.
    Package(&'a Observed),
    /// The answer that needs no model: the most frequent label, one similarity for every pair, or documents in the order
    /// they came in.
    Trivial,
}

/// What a gate decided and why, before it is bound to digests in a [`Verdict`](crate::Verdict).
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// Pass, fail or inconclusive.
    pub outcome: Outcome,
    /// Every rule and how it went.
    pub checks: Vec<CheckResult>,
    /// Cases that only one side got right: regressions first, must-pass cases first among them.
    pub flips: Vec<Flip>,
    /// Flips a named person accepted.
    pub waivers: Vec<Waiver>,
}

/// The rules cannot be applied to these answers.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum GateError {
    #[error("rule `{rule}`: {source}")]
    Metric { rule: String, source: MetricError },
    #[error("no golden case is in slice `{slice}`; there are: {known}")]
    EmptySlice { slice: String, known: String },
    #[error("the candidate answered {n_candidate} cases, the baseline {n_baseline}, and the golden set has {n_cases}")]
    Lengths { n_cases: usize, n_candidate: usize, n_baseline: usize },
    #[error("candidate and baseline do not answer the same kind of question")]
    Kinds,
    #[error("a first version needs a rule with a `floor` or a `ceiling`, as there is no champion to compare with")]
    NoAbsoluteLimit,
    #[error(
        "a first version needs a rule with a `margin` on all cases, on a metric that the trivial baseline cannot win \
         (not precision or recall)"
    )]
    NoTrivialComparison,
    #[error("there is a [[latency]] rule but no measured latency")]
    NoLatency,
}

/// A flip cannot be accepted.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum WaiverError {
    #[error("the gate is not inconclusive but {0:?}, so there is nothing to accept")]
    NothingToAccept(Outcome),
    #[error("`{rule}` is inconclusive for another reason than a small golden set, so accepting flips cannot pass it")]
    NotWaivable { rule: String },
    #[error("case `{case}` is not a regression of this comparison")]
    NotARegression { case: String },
    #[error("case `{case}` must pass and cannot be accepted")]
    MustPass { case: String },
    #[error("case `{case}` is accepted twice")]
    Twice { case: String },
}

/// Applies every rule of `gates`. Deterministic: the bootstrap's seed is in the rules.
pub fn decide(gates: &Gates, comparison: &Comparison<'_>) -> Result<Decision, GateError> {
    let trivial = trivial_answers(comparison.candidate);
    let baseline = match comparison.baseline {
        Side::Package(answers) => answers,
        Side::Trivial => &trivial,
    };
    let judge = Judge { gates, cases: comparison.cases, candidate: comparison.candidate, baseline };
    judge.check_kinds()?;
    let mut checks: Vec<CheckResult> = must_pass(&judge).into_iter().collect();
    match comparison.baseline {
        Side::Package(_) => judge.compare_with_package(&mut checks)?,
        Side::Trivial => judge.compare_with_trivial(&mut checks)?,
    }
    // At declared traffic latency is judged by `judge_load`.
    for rule in gates.latency.iter().filter(|_| gates.traffic.is_none()) {
        checks.extend(latency(rule, comparison.latencies_ms, gates.alpha)?);
    }
    let flips = match comparison.baseline {
        Side::Package(_) => flips(&judge),
        Side::Trivial => Vec::new(),
    };
    let outcome = outcome(&checks, &flips, &[]);
    Ok(Decision { outcome, checks, flips, waivers: Vec::new() })
}

impl Decision {
    /// The decision with `more` checks, such as those of a load test.
    pub fn with_checks(mut self, more: Vec<CheckResult>) -> Self {
        self.checks.extend(more);
        let outcome = outcome(&self.checks, &self.flips, &self.waivers);
        Self { outcome, ..self }
    }

    /// The decision once named persons accept regressions. It passes if every regression is accepted; a waiver with an
    /// empty case accepts a golden set that is too small although nothing regressed.
    pub fn accept(self, waivers: Vec<Waiver>) -> Result<Self, WaiverError> {
        if self.outcome != Outcome::Inconclusive {
            return Err(WaiverError::NothingToAccept(self.outcome));
        }
        let stubborn = |check: &&CheckResult| check.outcome == Outcome::Inconclusive && !check.waivable;
        if let Some(check) = self.checks.iter().find(stubborn) {
            return Err(WaiverError::NotWaivable { rule: check.rule.clone() });
        }
        let mut seen = BTreeSet::new();
        for Waiver { case, .. } in &waivers {
            self.check_waiver(case)?;
            if !seen.insert(case) {
                return Err(WaiverError::Twice { case: case.clone() });
            }
        }
        let outcome = outcome(&self.checks, &self.flips, &waivers);
        Ok(Self { outcome, waivers, ..self })
    }

    /// Regressions no waiver names yet.
    pub fn unaccepted(&self) -> impl Iterator<Item = &Flip> {
        let accepted = |flip: &Flip| self.waivers.iter().any(|waiver| waiver.case == flip.case);
        self.flips.iter().filter(move |flip| flip.regression && !accepted(flip))
    }

    fn check_waiver(&self, case: &str) -> Result<(), WaiverError> {
        let case_name = || case.to_owned();
        let mut regressions = self.flips.iter().filter(|flip| flip.regression).peekable();
        if case.is_empty() && regressions.peek().is_none() {
            return Ok(());
        }
        match regressions.find(|flip| flip.case == case) {
            None => Err(WaiverError::NotARegression { case: case_name() }),
            Some(flip) if flip.must_pass => Err(WaiverError::MustPass { case: case_name() }),
            Some(_) => Ok(()),
        }
    }
}

fn trivial_answers(candidate: &Observed) -> Observed {
    match candidate {
        Observed::Classes(classes) => Observed::Classes(classes.majority()),
        Observed::Similarities(Similarities { expected, .. }) => {
            Observed::Similarities(Similarities { expected: expected.clone(), predicted: vec![0.0; expected.len()] })
        }
        Observed::Rankings(rankings) => Observed::Rankings(rankings.as_given()),
    }
}

struct Judge<'a> {
    gates: &'a Gates,
    cases: &'a [Case],
    candidate: &'a Observed,
    baseline: &'a Observed,
}

/// One rule on the cases it is about.
struct Scope<'a> {
    rule: &'a Rule,
    /// `accuracy` or `recall of "spam", slice "short"`.
    name: String,
    candidate: Observed,
    baseline: Observed,
    units: Units,
}

/// How far the candidate is from what it is compared with, as bounds that each err with probability alpha.
struct Estimate {
    candidate: f64,
    baseline: f64,
    bounds: [f64; 2],
    n_cases: usize,
    p_value: Option<f64>,
    minimum_detectable_effect: Option<f64>,
    pass_power: Option<f64>,
    cases_needed: Option<u64>,
    too_few: bool,
}

impl Judge<'_> {
    fn check_kinds(&self) -> Result<(), GateError> {
        let (n_cases, n_candidate, n_baseline) = (self.cases.len(), self.candidate.n_cases(), self.baseline.n_cases());
        if n_candidate != n_cases || n_baseline != n_cases {
            return Err(GateError::Lengths { n_cases, n_candidate, n_baseline });
        }
        let same = std::mem::discriminant(self.candidate) == std::mem::discriminant(self.baseline);
        if same { Ok(()) } else { Err(GateError::Kinds) }
    }

    fn compare_with_package(&self, checks: &mut Vec<CheckResult>) -> Result<(), GateError> {
        for scope in self.scopes()? {
            if let Some(margin) = scope.rule.margin {
                checks.push(self.not_worse(&scope, margin)?);
            }
            checks.extend(self.limit(&scope)?);
        }
        Ok(())
    }

    fn compare_with_trivial(&self, checks: &mut Vec<CheckResult>) -> Result<(), GateError> {
        if !self.gates.has_absolute_limits() {
            return Err(GateError::NoAbsoluteLimit);
        }
        let n_before = checks.len();
        for scope in self.scopes()? {
            // A slice of one label, or the recall of the most frequent one, is won by the trivial baseline.
            let is_fair = !matches!(scope.rule.metric, Metric::Precision | Metric::Recall | Metric::PrecisionMacro);
            if scope.rule.slice.is_none() && scope.rule.margin.is_some() && is_fair {
                checks.insert(n_before, self.better_than_trivial(&scope)?);
            }
            checks.extend(self.limit(&scope)?);
        }
        let compared = checks.iter().any(|check| check.baseline.is_some());
        if compared { Ok(()) } else { Err(GateError::NoTrivialComparison) }
    }

    fn scopes(&self) -> Result<Vec<Scope<'_>>, GateError> {
        let known: BTreeSet<&str> = self.cases.iter().flat_map(|case| &case.slices).map(String::as_str).collect();
        let mut scopes = Vec::new();
        for rule in &self.gates.rules {
            match rule.slice.as_deref() {
                Some("*") => scopes.extend(known.iter().map(|slice| self.scope(rule, Some(slice)))),
                Some(slice) if !known.contains(slice) => {
                    let known = known.iter().copied().collect::<Vec<_>>().join(", ");
                    return Err(GateError::EmptySlice { slice: slice.to_owned(), known });
                }
                slice => scopes.push(self.scope(rule, slice)),
            }
        }
        Ok(scopes)
    }

    fn scope<'r>(&self, rule: &'r Rule, slice: Option<&str>) -> Scope<'r> {
        let in_slice = |case: &Case| slice.is_none_or(|slice| case.slices.iter().any(|name| name == slice));
        let idxs: Vec<usize> = (0..self.cases.len()).filter(|&idx| in_slice(&self.cases[idx])).collect();
        let sources: Vec<[usize; 2]> = idxs.iter().map(|&idx| self.cases[idx].sources).collect();
        let label = rule.label.as_ref().map(|label| format!(" of \"{label}\"")).unwrap_or_default();
        let place = slice.map(|slice| format!(", slice \"{slice}\"")).unwrap_or_default();
        Scope {
            rule,
            name: format!("{}{label}{place}", rule.metric),
            candidate: self.candidate.subset(&idxs),
            baseline: self.baseline.subset(&idxs),
            units: Units::sources(&sources),
        }
    }

    fn not_worse(&self, scope: &Scope<'_>, margin: f64) -> Result<CheckResult, GateError> {
        let metric = scope.rule.metric;
        let estimate = self.difference(scope, margin)?;
        let outcome = estimate.outcome(metric, margin);
        let rule = match margin {
            0.0 => format!("{}: better than the baseline", scope.name),
            _ => format!("{}: not worse by more than {}", scope.name, amount(metric, margin)),
        };
        let under_power = estimate.pass_power.is_some_and(|chance| chance < self.gates.power);
        let waivable = outcome == Outcome::Inconclusive && under_power && metric.is_decided_by_labels();
        let reason = estimate.reason(metric, margin, outcome, self.gates.alpha);
        let note = estimate.power_note(metric, self.gates.power);
        Ok(CheckResult { power_note: Some(note), waivable, ..estimate.into_check(rule, outcome, reason) })
    }

    fn better_than_trivial(&self, scope: &Scope<'_>) -> Result<CheckResult, GateError> {
        let metric = scope.rule.metric;
        let estimate = self.difference(scope, 0.0)?;
        let outcome = estimate.outcome(metric, 0.0);
        let rule = format!("{}: better than {}", scope.name, self.trivial_in_words());
        let reason = estimate.reason(metric, 0.0, outcome, self.gates.alpha);
        Ok(estimate.into_check(rule, outcome, reason))
    }

    fn trivial_in_words(&self) -> String {
        match self.baseline {
            Observed::Classes(classes) => {
                let label = classes.predicted().first().map_or("", |&label| &classes.labels()[label]);
                format!("always answering \"{label}\"")
            }
            Observed::Similarities(_) => "one similarity for every pair".to_owned(),
            Observed::Rankings(_) => "the order the documents came in".to_owned(),
        }
    }

    fn difference(&self, scope: &Scope<'_>, margin: f64) -> Result<Estimate, GateError> {
        let [candidate, baseline] = self.statistics(scope)?;
        let mut estimate = match (scope.right_answers(), margin) {
            (Some([of_candidate, of_baseline]), _) => {
                self.exact_difference(Discordance::of(&of_baseline, &of_candidate), scope.rule, margin)
            }
            (None, margin) => self.bootstrap_difference(scope, [&candidate, &baseline], margin),
        };
        (estimate.candidate, estimate.baseline) = (candidate.observed(), baseline.observed());
        Ok(estimate)
    }

    fn statistics(&self, scope: &Scope<'_>) -> Result<[Statistic; 2], GateError> {
        let of = |observed: &Observed| {
            let statistic = scope.rule.metric.of(observed, scope.rule.label.as_deref());
            statistic.map_err(|source| GateError::Metric { rule: scope.name.clone(), source })
        };
        Ok([of(&scope.candidate)?, of(&scope.baseline)?])
    }

    fn exact_difference(&self, pairs: Discordance, rule: &Rule, margin: f64) -> Estimate {
        let Gates { alpha, power, .. } = *self.gates;
        let (n_cases, discordant) = (pairs.n_cases(), rule.discordant.unwrap_or_else(|| pairs.share()));
        let mcnemar = McNemarPower { n_cases, discordant, alpha, sides: Sides::One };
        let non_inferiority = NonInferiority { n_cases, discordant, margin, alpha };
        let demands_gain = margin == 0.0;
        Estimate {
            candidate: f64::NAN,
            baseline: f64::NAN,
            bounds: pairs.exact_bounds(alpha),
            n_cases: n_cases as usize,
            p_value: Some(if demands_gain { pairs.mcnemar_better() } else { pairs.mcnemar_worse() }),
            minimum_detectable_effect: mcnemar.minimum_detectable_effect(power),
            pass_power: (!demands_gain).then(|| non_inferiority.pass_power(0.0)),
            cases_needed: non_inferiority.cases_needed(power),
            too_few: false,
        }
    }

    fn bootstrap_difference(&self, scope: &Scope<'_>, sides: [&Statistic; 2], margin: f64) -> Estimate {
        let Gates { alpha, power, .. } = *self.gates;
        let [candidate, baseline] = sides;
        let sample = self.bootstrap(&scope.units, |counts| candidate.value(counts) - baseline.value(counts));
        let n_cases = scope.candidate.n_cases();
        let bounds = bounds(&sample, alpha, scope.n_scarcest());
        // A sample that never varied still leaves the exact bound for an event not seen in that many cases.
        let error = sample.standard_error().max(half_width(bounds) / 3.0);
        let seen = normal_power(error, margin, alpha, power);
        Estimate {
            candidate: f64::NAN,
            baseline: f64::NAN,
            bounds,
            n_cases,
            p_value: None,
            minimum_detectable_effect: Some(seen.minimum_detectable_effect),
            pass_power: (margin > 0.0).then_some(seen.pass_power),
            cases_needed: seen.growth_needed.map(|growth| (growth * n_cases as f64).ceil() as u64),
            too_few: scope.is_too_few(),
        }
    }

    fn bootstrap(&self, units: &Units, statistic: impl Fn(&[u32]) -> f64) -> Bootstrap {
        Bootstrap::new(units, Resamples { n: self.gates.resamples, seed: self.gates.seed }, statistic)
    }

    /// The absolute limit of a rule, if it has one.
    fn limit(&self, scope: &Scope<'_>) -> Result<Option<CheckResult>, GateError> {
        let metric = scope.rule.metric;
        let Some(limit) = scope.rule.floor.or(scope.rule.ceiling) else { return Ok(None) };
        let [candidate, _] = self.statistics(scope)?;
        let alpha = self.gates.alpha;
        let (bounds, n_cases, too_few) = match scope.right_answers() {
            Some([right, _]) => {
                let n_right = right.iter().filter(|&&right| right).count() as u64;
                (clopper_pearson(n_right, right.len() as u64, 1.0 - 2.0 * alpha), right.len(), false)
            }
            None => {
                let sample = self.bootstrap(&scope.units, |counts| candidate.value(counts));
                (bounds(&sample, alpha, scope.n_scarcest()), scope.candidate.n_cases(), scope.is_too_few())
            }
        };
        let [low, high] = bounds;
        let (holds, breaks) =
            if metric.lower_is_better() { (high <= limit, low > limit) } else { (low >= limit, high < limit) };
        let outcome = three_way(holds && !too_few, breaks && !too_few);
        let value = candidate.observed();
        let side = if metric.lower_is_better() { "at most" } else { "at least" };
        let reason = format!(
            "{} on {n_cases} cases; the true value {} {} to {}{}",
            show(metric, value),
            "lies within",
            show(metric, low),
            show(metric, high),
            if too_few { ", from too few cases to judge by" } else { "" },
        );
        Ok(Some(CheckResult {
            rule: format!("{}: {side} {}", scope.name, show(metric, limit)),
            outcome,
            n_cases,
            candidate: value,
            baseline: None,
            interval: Some(bounds),
            p_value: None,
            minimum_detectable_effect: None,
            pass_power: None,
            cases_needed: None,
            power_note: None,
            waivable: false,
            reason,
        }))
    }
}

impl Scope<'_> {
    /// Right or wrong, case by case, for candidate and baseline, where the metric is a share of right answers over fixed
    /// cases: accuracy, and recall on the cases of its label.
    fn right_answers(&self) -> Option<[Vec<bool>; 2]> {
        let (Observed::Classes(candidate), Observed::Classes(baseline)) = (&self.candidate, &self.baseline) else {
            return None;
        };
        let label = self.rule.label.as_deref();
        let counts = |classes: &Classes, idx: usize| match self.rule.metric {
            Metric::Recall => Some(classes.labels()[classes.expected()[idx]].as_str()) == label,
            _ => true,
        };
        let right = |classes: &Classes| {
            let correct = classes.correct().into_iter().enumerate();
            correct.filter(|&(idx, _)| counts(classes, idx)).map(|(_, right)| right).collect()
        };
        matches!(self.rule.metric, Metric::Accuracy | Metric::Recall).then(|| [right(candidate), right(baseline)])
    }

    /// Cases of the rarest label, or things drawn: what limits how much a bootstrap can have seen.
    fn n_scarcest(&self) -> usize {
        match &self.candidate {
            Observed::Classes(classes) => classes.n_rarest(),
            Observed::Similarities(_) | Observed::Rankings(_) => self.units.len(),
        }
    }

    fn is_too_few(&self) -> bool {
        let is_classes = matches!(self.candidate, Observed::Classes(_));
        self.units.len() < FEWEST_UNITS || (is_classes && self.n_scarcest() < FEWEST_OF_A_LABEL)
    }
}

impl Estimate {
    /// Bounds of the gain: the difference, or its opposite for a metric that is better when smaller.
    fn gain(&self, metric: Metric) -> [f64; 2] {
        let [low, high] = self.bounds;
        if metric.lower_is_better() { [-high, -low] } else { [low, high] }
    }

    fn outcome(&self, metric: Metric, margin: f64) -> Outcome {
        let [low, high] = self.gain(metric);
        three_way(low > -margin && !self.too_few, high < -margin && !self.too_few)
    }

    fn reason(&self, metric: Metric, margin: f64, outcome: Outcome, alpha: f64) -> String {
        let [low, high] = self.gain(metric);
        let values = format!("{} against {}", show(metric, self.candidate), show(metric, self.baseline));
        let [at_worst, at_best] = [low, high].map(|gain| change(metric, gain));
        let allowed = amount(metric, margin);
        let is_significant_drop = self.p_value.map_or(high < 0.0, |p| p <= alpha && margin > 0.0);
        let drop = if is_significant_drop { "; a real drop, though a small one" } else { "" };
        match outcome {
            Outcome::Pass if margin > 0.0 => format!("{values}: {at_worst} at worst, so within {allowed}{drop}"),
            Outcome::Pass => format!("{values}: {at_worst} at worst, so better"),
            Outcome::Fail if margin > 0.0 => format!("{values}: {at_best} at best, so worse by more than {allowed}"),
            Outcome::Fail => format!("{values}: {at_best} at best, so worse"),
            Outcome::Inconclusive => format!(
                "{values}: between {at_worst} and {at_best}, which {} cases are too few to tell from {}{}",
                self.n_cases,
                if margin > 0.0 { format!("a drop of {allowed}") } else { "no gain".to_owned() },
                self.cases_needed.map(|n| format!("; about {} would do", round_up(n))).unwrap_or_default(),
            ),
        }
    }

    fn power_note(&self, metric: Metric, power: f64) -> String {
        let percent = 100.0 * power;
        let seen = match self.minimum_detectable_effect {
            Some(drop) => format!("could have detected a drop of {} with {percent:.0} % power", amount(metric, drop)),
            None => format!("{} cases cannot show any drop with {percent:.0} % power", self.n_cases),
        };
        let passes = self.pass_power.map(|chance| format!("; an equal candidate passes with {:.0} %", 100.0 * chance));
        seen + &passes.unwrap_or_default()
    }

    fn into_check(self, rule: String, outcome: Outcome, reason: String) -> CheckResult {
        CheckResult {
            rule,
            outcome,
            n_cases: self.n_cases,
            candidate: self.candidate,
            baseline: Some(self.baseline),
            interval: Some(self.bounds),
            p_value: self.p_value,
            minimum_detectable_effect: self.minimum_detectable_effect,
            pass_power: self.pass_power,
            cases_needed: self.cases_needed,
            power_note: None,
            waivable: false,
            reason,
        }
    }
}

/// BCa bounds that each err with probability `alpha`, never tighter than the exact bound for an event that was not seen
/// in `n_scarcest` cases where the resamples do not vary at all.
pub(crate) fn bounds(sample: &Bootstrap, alpha: f64, n_scarcest: usize) -> [f64; 2] {
    if sample.standard_error() > 0.0 {
        return sample.bca(1.0 - 2.0 * alpha);
    }
    let unseen = 1.0 - alpha.powf(1.0 / n_scarcest.max(1) as f64);
    [sample.observed - unseen, sample.observed + unseen]
}

fn half_width([low, high]: [f64; 2]) -> f64 {
    (high - low) / 2.0
}

pub(crate) fn three_way(holds: bool, breaks: bool) -> Outcome {
    match (holds, breaks) {
        (true, _) => Outcome::Pass,
        (_, true) => Outcome::Fail,
        _ => Outcome::Inconclusive,
    }
}

fn must_pass(judge: &Judge<'_>) -> Option<CheckResult> {
    let right = judge.candidate.right()?;
    let pinned = || judge.cases.iter().zip(&right).filter(|(case, _)| case.must_pass);
    let wrong: Vec<&str> = pinned().filter(|(_, right)| !**right).map(|(case, _)| case.id.as_str()).collect();
    let n_cases = pinned().count();
    (n_cases > 0).then(|| CheckResult {
        rule: "must-pass cases: every one right".to_owned(),
        outcome: if wrong.is_empty() { Outcome::Pass } else { Outcome::Fail },
        n_cases,
        candidate: 1.0 - wrong.len() as f64 / n_cases as f64,
        baseline: None,
        interval: None,
        p_value: None,
        minimum_detectable_effect: None,
        pass_power: None,
        cases_needed: None,
        power_note: None,
        waivable: false,
        reason: match wrong.as_slice() {
            [] => format!("all {n_cases} are right"),
            [first] => format!("`{first}` is answered wrongly"),
            [first, rest @ ..] => format!("`{first}` and {} more are answered wrongly", rest.len()),
        },
    })
}

fn latency(rule: &LatencyRule, latencies_ms: &[f64], alpha: f64) -> Result<Option<CheckResult>, GateError> {
    let Some(max_ms) = rule.max_ms else { return Ok(None) };
    if latencies_ms.is_empty() {
        return Err(GateError::NoLatency);
    }
    let mut sorted = latencies_ms.to_vec();
    sorted.sort_by(f64::total_cmp);
    let share = f64::from(rule.percentile) / 100.0;
    let [low, high] = quantile_interval(&sorted, share, 1.0 - 2.0 * alpha);
    let (value, n_cases) = (quantile(&sorted, share), sorted.len());
    let limits = [low.max(sorted[0]), high.min(sorted[n_cases - 1])];
    Ok(Some(CheckResult {
        rule: format!("latency p{}: at most {:.1} ms", rule.percentile, max_ms),
        outcome: three_way(high <= max_ms, low > max_ms),
        n_cases,
        candidate: value,
        baseline: None,
        interval: Some(limits),
        p_value: None,
        minimum_detectable_effect: None,
        pass_power: None,
        cases_needed: None,
        power_note: None,
        waivable: false,
        reason: format!(
            "{value:.1} ms over {n_cases} single cases; the true percentile lies within {} to {}",
            if low.is_finite() { format!("{low:.1}") } else { "no lower bound".to_owned() },
            if high.is_finite() { format!("{high:.1} ms") } else { "no upper bound, from so few cases".to_owned() },
        ),
    }))
}

fn flips(judge: &Judge<'_>) -> Vec<Flip> {
    let (Some(was_right), Some(is_right)) = (judge.baseline.right(), judge.candidate.right()) else {
        return Vec::new();
    };
    let pairs = was_right.into_iter().zip(is_right).enumerate();
    let mut flips: Vec<Flip> = pairs
        .filter(|(_, (was_right, is_right))| was_right != is_right)
        .map(|(idx, (regression, _))| Flip {
            case: judge.cases[idx].id.clone(),
            expected: wanted(judge.candidate, idx),
            baseline: answered(judge.baseline, idx),
            candidate: answered(judge.candidate, idx),
            regression,
            must_pass: judge.cases[idx].must_pass,
        })
        .collect();
    flips.sort_by_key(|flip| (!flip.regression, !flip.must_pass));
    flips
}

/// The right answer to a case, in a word.
fn wanted(observed: &Observed, idx: usize) -> String {
    match observed {
        Observed::Classes(classes) => classes.labels()[classes.expected()[idx]].clone(),
        Observed::Rankings(_) => "rank 1".to_owned(),
        Observed::Similarities(pairs) => format!("{:.3}", pairs.expected[idx]),
    }
}

/// What was answered, in a word.
fn answered(observed: &Observed, idx: usize) -> String {
    match observed {
        Observed::Classes(classes) => classes.labels()[classes.predicted()[idx]].clone(),
        Observed::Rankings(rankings) => {
            rankings.best_rank(idx).map_or_else(|| "none is relevant".to_owned(), |rank| format!("rank {rank}"))
        }
        Observed::Similarities(pairs) => format!("{:.3}", pairs.predicted[idx]),
    }
}

/// Whether people read the metric in percent.
fn is_share(metric: Metric) -> bool {
    metric.is_decided_by_labels()
}

fn show(metric: Metric, value: f64) -> String {
    if is_share(metric) { format!("{:.1} %", 100.0 * value) } else { format!("{value:.3}") }
}

fn amount(metric: Metric, value: f64) -> String {
    let points = 100.0 * value;
    if is_share(metric) { format!("{points:.1} points") } else { format!("{value:.3}") }
}

/// A gain in words, so that nobody has to know which sign is good.
fn change(metric: Metric, gain: f64) -> String {
    let direction = if gain < 0.0 { "worse" } else { "better" };
    format!("{} {direction}", amount(metric, gain.abs()))
}

/// To two significant digits, as the number is an approximation.
fn round_up(n: u64) -> u64 {
    let unit = 10u64.pow(n.max(1).ilog10().saturating_sub(1));
    n.div_ceil(unit) * unit
}
