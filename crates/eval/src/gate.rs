use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::bootstrap::Draws;
use crate::deciders::deciders;
use crate::interval::{clopper_pearson, quantile, quantile_interval};
use crate::power::normal_power;
use crate::tensors::Beyond;
use crate::weights::{effective_size_of_rarest, kish, uneven};
use crate::{
    Bootstrap, Case, CheckResult, Discordance, Flip, FloorPower, Gates, Given, Inconclusive, JudgeEvidence,
    LatencyRule, McNemarPower, Metric, MetricError, NonInferiority, Observed, Outcome, Resamples, Rule, Sides,
    SignFlips, Similarities, Statistic, Test, Units, Waiver, holm, outcome, to_accept,
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
    /// The answer that needs no model: the most frequent label or text, one similarity for every pair, a coin for triplets,
    /// documents in the order they came in, or the mean of the right numbers.
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
    #[error("rule `{metric}` is about each slice in turn (slice = \"*\"), and no golden case is in any")]
    NoSlices { metric: Metric },
    #[error("the candidate answered {n_candidate} cases, the baseline {n_baseline}, and the golden set has {n_cases}")]
    Lengths { n_cases: usize, n_candidate: usize, n_baseline: usize },
    #[error("candidate and baseline do not answer the same kind of question")]
    Kinds,
    #[error("a first version needs a rule with a `floor` or a `ceiling`, as there is no champion to compare with")]
    NoAbsoluteLimit,
    #[error(
        "a first version needs a rule with a `margin` or an `improvement` on all cases, on a metric that the trivial baseline cannot win \
         (not precision, recall, calibration or the form of a text)"
    )]
    NoTrivialComparison,
    #[error(
        "case `{case}` must pass, and nothing decides whether it does: it has no reference, and no rule is about it whose program \
         decides"
    )]
    Undecided { case: String },
    #[error("there is a [[latency]] rule but no measured latency")]
    NoLatency,
    #[error("no [[rule]] has a `margin` or an `improvement`, so there is no promise to test")]
    NothingToTest,
    #[error(
        "the two packages answer every case alike, so they do not show how models of one recipe differ; name one that was \
         trained with another seed, or suppose a share of the cases instead"
    )]
    NothingDiffers,
    #[error("rule `{rule}`: not even a model with every answer spoilt is worse by {size}")]
    DropOutOfReach { rule: String, size: f64 },
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
    #[error(
        "this candidate lost cases that the undecided rules are about, and each is accepted by name or not at all: {cases}"
    )]
    CasesLost { cases: String },
    #[error("case `{case}` must pass and cannot be accepted")]
    MustPass { case: String },
    #[error("case `{case}` is accepted twice")]
    Twice { case: String },
}

/// Applies every rule of `gates`. Deterministic: the bootstrap's seed is in the rules.
pub fn decide(gates: &Gates, comparison: &Comparison<'_>) -> Result<Decision, GateError> {
    decide_with(gates, comparison, &BTreeMap::new(), &[])
}

/// The same with what programs of the user's own gave each case, by what `gates` calls them, and with what is known of the judges.
/// A check on a judge of whom there is a [doubt](JudgeEvidence::doubt) is inconclusive.
pub fn decide_with(
    gates: &Gates,
    comparison: &Comparison<'_>,
    given: &BTreeMap<String, Given>,
    judges: &[JudgeEvidence],
) -> Result<Decision, GateError> {
    decide_again(gates, comparison, given, judges, &Known::default())
}

/// What those who judge with the same rules many times need not find again.
#[derive(Default)]
pub(crate) struct Known {
    /// What exact paired comparisons showed: few pairs of counts make up most simulated golden sets, and each takes milliseconds.
    exact: Mutex<HashMap<ExactKey, Estimate>>,
    /// What a bootstrap draws, of as many units as the first golden set had: simulated ones mostly have as many.
    draws: Option<OnceLock<Option<Arc<Draws>>>>,
}

/// Counts, needed gain and supposed share of flips, the latter two by their bits.
type ExactKey = (Discordance, u64, Option<u64>);

/// The same, remembering in `known`, which must have seen `gates` only.
pub(crate) fn decide_again(
    gates: &Gates,
    comparison: &Comparison<'_>,
    given: &BTreeMap<String, Given>,
    judges: &[JudgeEvidence],
    known: &Known,
) -> Result<Decision, GateError> {
    let trivial = trivial_answers(comparison.candidate, comparison.cases);
    let baseline = match comparison.baseline {
        Side::Package(answers) => answers,
        Side::Trivial => &trivial,
    };
    let judge =
        Judge { gates, cases: comparison.cases, candidate: comparison.candidate, baseline, given, judges, known };
    judge.check_kinds()?;
    let mut checks: Vec<CheckResult> = must_pass(&judge)?.into_iter().collect();
    match comparison.baseline {
        Side::Package(_) => judge.compare_with_package(&mut checks)?,
        Side::Trivial => judge.compare_with_trivial(&mut checks)?,
    }
    // At declared traffic latency is judged by `judge_load`.
    for rule in gates.latency.iter().filter(|_| gates.traffic.is_none()) {
        let check = latency(rule, comparison.latencies_ms, gates.alpha)?;
        checks.extend(check.map(|check| check.settled(gates.inconclusive)));
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

    /// The decision once named persons accept regressions. It passes if every one is accepted that the undecided rules are
    /// about; a waiver with an empty case accepts a golden set that is too small although none of these regressed.
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

    /// Regressions that have to be accepted and that no waiver names yet.
    pub fn unaccepted(&self) -> impl Iterator<Item = &Flip> {
        let accepted = |flip: &Flip| self.waivers.iter().any(|waiver| waiver.case == flip.case);
        to_accept(&self.checks, &self.flips).into_iter().filter(move |flip| !accepted(flip))
    }

    fn check_waiver(&self, case: &str) -> Result<(), WaiverError> {
        let case_name = || case.to_owned();
        if case.is_empty() {
            let lost: Vec<&str> =
                to_accept(&self.checks, &self.flips).into_iter().map(|flip| flip.case.as_str()).collect();
            return match lost.as_slice() {
                [] => Ok(()),
                lost => Err(WaiverError::CasesLost { cases: named(lost) }),
            };
        }
        let mut regressions = self.flips.iter().filter(|flip| flip.regression);
        match regressions.find(|flip| flip.case == case) {
            None => Err(WaiverError::NotARegression { case: case_name() }),
            Some(flip) if flip.must_pass => Err(WaiverError::MustPass { case: case_name() }),
            Some(_) => Ok(()),
        }
    }
}

/// The first few of these names, and how many more there are.
fn named(cases: &[&str]) -> String {
    const MOST: usize = 10;
    let shown: Vec<String> = cases.iter().take(MOST).map(|case| format!("`{case}`")).collect();
    let more = if cases.len() > MOST { format!(" and {} more", cases.len() - MOST) } else { String::new() };
    shown.join(", ") + &more
}

/// The slices that a rule is about in turn, `None` for all cases; an error if it is about each and there are none.
pub(crate) fn slices_of<'a>(rule: &'a Rule, cases: &'a [Case]) -> Result<Vec<Option<&'a str>>, GateError> {
    if rule.slice.as_deref() != Some("*") {
        return Ok(vec![rule.slice.as_deref()]);
    }
    let each: Vec<Option<&str>> = slices(cases).into_iter().map(Some).collect();
    if each.is_empty() { Err(GateError::NoSlices { metric: rule.metric }) } else { Ok(each) }
}

/// Every slice of the golden set, by name.
pub(crate) fn slices(cases: &[Case]) -> BTreeSet<&str> {
    cases.iter().flat_map(|case| &case.slices).map(String::as_str).collect()
}

/// Positions of the cases in a slice, all without one; errors if there are none.
pub(crate) fn in_slice(cases: &[Case], slice: Option<&str>) -> Result<Vec<usize>, GateError> {
    let is_in = |case: &Case| slice.is_none_or(|slice| case.slices.iter().any(|name| name == slice));
    let idxs: Vec<usize> = (0..cases.len()).filter(|&idx| is_in(&cases[idx])).collect();
    match slice.filter(|_| idxs.is_empty()) {
        Some(slice) => {
            let known = slices(cases).into_iter().collect::<Vec<_>>().join(", ");
            Err(GateError::EmptySlice { slice: slice.to_owned(), known })
        }
        None => Ok(idxs),
    }
}

impl Known {
    /// For many golden sets.
    pub(crate) fn of_many() -> Self {
        Self { draws: Some(OnceLock::new()), ..Self::default() }
    }

    fn draws(&self, n_units: usize, resamples: Resamples) -> Option<Arc<Draws>> {
        let kept = self.draws.as_ref()?.get_or_init(|| Draws::of_units(n_units, resamples).map(Arc::new));
        kept.clone()
    }

    fn exact_or(
        &self,
        pairs: Discordance,
        rule: &Rule,
        needed: f64,
        find: impl FnOnce(Discordance) -> Estimate,
    ) -> Estimate {
        let key = (pairs, needed.to_bits(), rule.discordant.map(f64::to_bits));
        let lock = || self.exact.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = lock().get(&key) {
            return known.clone();
        }
        let found = find(pairs);
        lock().insert(key, found.clone());
        found
    }
}

fn trivial_answers(candidate: &Observed, cases: &[Case]) -> Observed {
    let weights: Vec<f64> = cases.iter().map(|case| case.weight).collect();
    match candidate {
        Observed::Classes(classes) => Observed::Classes(classes.weighted_majority(&weights)),
        Observed::Similarities(Similarities { expected, .. }) => {
            Observed::Similarities(Similarities { expected: expected.clone(), predicted: vec![0.0; expected.len()] })
        }
        Observed::Triplets(triplets) => Observed::Triplets(triplets.coin()),
        Observed::Rankings(rankings) => Observed::Rankings(rankings.as_given()),
        Observed::Numbers(numbers) => Observed::Numbers(numbers.weighted_mean(&weights)),
        Observed::Texts(texts) => Observed::Texts(texts.most_frequent()),
        Observed::Tensors(tensors) => Observed::Tensors(tensors.weighted_mean(&weights)),
    }
}

struct Judge<'a> {
    gates: &'a Gates,
    cases: &'a [Case],
    candidate: &'a Observed,
    baseline: &'a Observed,
    given: &'a BTreeMap<String, Given>,
    judges: &'a [JudgeEvidence],
    known: &'a Known,
}

/// Whose answers.
#[derive(Clone, Copy)]
enum Of {
    Candidate,
    Baseline,
}

/// One rule on the cases it is about.
struct Scope<'a> {
    rule: &'a Rule,
    /// `accuracy` or `recall of "spam", slice "short"`.
    name: String,
    /// Positions of its cases in the golden set.
    idxs: Vec<usize>,
    candidate: Observed,
    baseline: Observed,
    units: Units,
    /// How much each case counts, where that differs.
    weights: Option<Vec<f64>>,
}

/// How far the candidate is from what it is compared with, as bounds that each err with probability alpha.
#[derive(Clone)]
struct Estimate {
    candidate: f64,
    baseline: f64,
    bounds: [f64; 2],
    n_cases: usize,
    n_effective: Option<f64>,
    p_value: Option<f64>,
    test: Option<Test>,
    adjusted_p_value: Option<f64>,
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
        for scopes in self.scopes()?.chunk_by(|left, right| std::ptr::eq(left.rule, right.rule)) {
            let estimates = self.estimates(scopes)?;
            for (scope, estimate) in scopes.iter().zip(estimates) {
                let compared = estimate.zip(scope.rule.needed_gain());
                let compared = compared.map(|(found, needed)| self.better_by(scope, found, needed));
                let both = compared.into_iter().chain(self.limit(scope)?);
                checks.extend(both.map(|check| self.settle(scope.rule, check)));
            }
        }
        Ok(())
    }

    /// How far the candidate is off in each scope of one rule, if the rule compares. Which of several slices dropped is
    /// a question of its own, asked of all at once, so its p-values are adjusted; the release logic needs no adjustment.
    fn estimates(&self, scopes: &[Scope<'_>]) -> Result<Vec<Option<Estimate>>, GateError> {
        let of = |scope: &Scope<'_>| scope.rule.needed_gain().map(|needed| self.difference(scope, needed)).transpose();
        let mut estimates = scopes.iter().map(of).collect::<Result<Vec<_>, _>>()?;
        let tested = || estimates.iter().flatten().filter_map(|estimate| estimate.p_value);
        if scopes.len() > 1 {
            let adjusted = holm(&tested().collect::<Vec<_>>());
            let tested = estimates.iter_mut().flatten().filter(|estimate| estimate.p_value.is_some());
            tested.zip(adjusted).for_each(|(estimate, p)| estimate.adjusted_p_value = Some(p));
        }
        Ok(estimates)
    }

    fn compare_with_trivial(&self, checks: &mut Vec<CheckResult>) -> Result<(), GateError> {
        if !self.gates.has_absolute_limits() {
            return Err(GateError::NoAbsoluteLimit);
        }
        let n_before = checks.len();
        for scope in self.scopes()? {
            // A slice of one label, or the recall of the most frequent one, is won by the trivial baseline.
            let is_fair = !scope.rule.metric.trivial_can_win();
            if let Some(needed) = scope.rule.needed_gain().filter(|_| scope.rule.slice.is_none() && is_fair) {
                let check = self.better_than_trivial(&scope, needed.max(0.0))?;
                checks.insert(n_before, self.settle(scope.rule, check));
            }
            checks.extend(self.limit(&scope)?.map(|check| self.settle(scope.rule, check)));
        }
        // Where no text is expected there is no trivial answer: floors alone decide.
        let has_none = matches!(self.baseline, Observed::Texts(texts) if texts.have_no_references());
        let compared = checks.iter().any(|check| check.baseline.is_some());
        if compared || has_none { Ok(()) } else { Err(GateError::NoTrivialComparison) }
    }

    fn scopes(&self) -> Result<Vec<Scope<'_>>, GateError> {
        let mut scopes = Vec::new();
        for rule in &self.gates.rules {
            for slice in slices_of(rule, self.cases)? {
                scopes.push(self.scope(rule, slice)?);
            }
        }
        Ok(scopes)
    }

    /// A check of `rule` as it counts. What a judge says of whom there is a doubt decides nothing, and no rule lets that pass: there
    /// the cases are not too few, nothing was measured.
    fn settle(&self, rule: &Rule, check: CheckResult) -> CheckResult {
        let policy = rule.inconclusive.unwrap_or(self.gates.inconclusive);
        let judge = rule.judge.as_ref().and_then(|name| self.judges.iter().find(|judge| judge.name == *name));
        match judge.and_then(|judge| judge.doubt(self.gates.alpha)) {
            None => check.settled(policy),
            Some(doubt) => {
                let reason = format!("{doubt}; {}", check.reason);
                let (outcome, waivable, regressions, improved) = (Outcome::Inconclusive, false, None, false);
                let doubted = CheckResult { outcome, waivable, regressions, improved, reason, ..check };
                doubted.settled(if policy == Inconclusive::Pass { Inconclusive::Ask } else { policy })
            }
        }
    }

    fn scope<'r>(&self, rule: &'r Rule, slice: Option<&str>) -> Result<Scope<'r>, GateError> {
        let idxs = in_slice(self.cases, slice)?;
        let sources: Vec<[usize; 2]> = idxs.iter().map(|&idx| self.cases[idx].sources).collect();
        let about = rule.label.as_ref().map(|label| format!(" of \"{label}\""));
        let about = about.or_else(|| rule.output.as_ref().map(|output| format!(" of \"{output}\"")));
        let about = about.or_else(|| rule.judge.as_ref().map(|judge| format!(" \"{judge}\"")));
        let about = about.or_else(|| rule.custom.as_ref().map(|custom| format!(" \"{custom}\"")));
        let about = about.or_else(|| Some(format!(" \"{}\"", rule.regex.as_ref()?.as_str()))).unwrap_or_default();
        let place = slice.map(|slice| format!(", slice \"{slice}\"")).unwrap_or_default();
        Ok(Scope {
            rule,
            name: format!("{}{about}{place}", rule.metric),
            candidate: self.candidate.subset(&idxs),
            baseline: self.baseline.subset(&idxs),
            units: Units::sources(&sources),
            weights: uneven(idxs.iter().map(|&idx| self.cases[idx].weight)),
            idxs,
        })
    }

    /// Whether the candidate is better by `needed`, or not worse by more than that if it is below 0.
    fn better_by(&self, scope: &Scope<'_>, estimate: Estimate, needed: f64) -> CheckResult {
        let metric = scope.rule.metric;
        let outcome = estimate.outcome(metric, needed);
        let rule = if needed < 0.0 {
            format!("{}: not worse by more than {}", scope.name, amount(metric, -needed))
        } else {
            format!("{}: better than the baseline{}", scope.name, by_at_least(metric, needed))
        };
        let under_power = estimate.pass_power.is_some_and(|chance| chance < self.gates.power);
        let waivable = outcome == Outcome::Inconclusive && under_power && metric.is_decided_by_labels();
        let reason = estimate.reason(metric, needed, outcome, self.gates.alpha);
        let note = estimate.power_note(metric, needed, self.gates.power);
        let improved = estimate.outcome(metric, 0.0) == Outcome::Pass;
        let regressions = waivable.then(|| self.regressions(scope));
        let power_note = Some(note);
        CheckResult { power_note, waivable, regressions, improved, ..estimate.into_check(rule, outcome, reason) }
    }

    /// Ids of the cases that the candidate lost and the scope's metric counts: those of its slice and, where it is about a
    /// label, those of this label or newly given it.
    fn regressions(&self, scope: &Scope<'_>) -> Vec<String> {
        let right = |of| match scope.rule.metric {
            // Every value of a share has been found to be 0 or 1.
            Metric::CustomShare => {
                self.statistic(scope, of).ok()?.of_case().map(|of| of.iter().map(|&v| Some(v == 1.0)).collect())
            }
            _ => match of {
                Of::Candidate => scope.candidate.right(),
                Of::Baseline => scope.baseline.right(),
            },
        };
        let (Some(was_right), Some(is_right)) = (right(Of::Baseline), right(Of::Candidate)) else {
            return Vec::new();
        };
        let lost =
            was_right.into_iter().zip(is_right).enumerate().filter(|(_, sides)| *sides == (Some(true), Some(false)));
        let counts = |idx: &usize| match (&scope.rule.label, &scope.candidate) {
            (Some(label), Observed::Classes(classes)) => {
                let is_label = |of: &[usize]| classes.labels()[of[*idx]] == *label;
                is_label(classes.expected()) || (scope.rule.metric != Metric::Recall && is_label(classes.predicted()))
            }
            _ => true,
        };
        lost.map(|(idx, _)| idx).filter(counts).map(|idx| self.cases[scope.idxs[idx]].id.clone()).collect()
    }

    fn better_than_trivial(&self, scope: &Scope<'_>, needed: f64) -> Result<CheckResult, GateError> {
        let metric = scope.rule.metric;
        let estimate = self.difference(scope, needed)?;
        let outcome = estimate.outcome(metric, needed);
        let rule = format!("{}: better than {}{}", scope.name, self.trivial_in_words(), by_at_least(metric, needed));
        let reason = estimate.reason(metric, needed, outcome, self.gates.alpha);
        let note = estimate.power_note(metric, needed, self.gates.power);
        let improved = outcome == Outcome::Pass;
        Ok(CheckResult { power_note: Some(note), improved, ..estimate.into_check(rule, outcome, reason) })
    }

    fn trivial_in_words(&self) -> String {
        match self.baseline {
            Observed::Classes(classes) => {
                let label = classes.predicted().first().map_or("", |&label| &classes.labels()[label]);
                format!("always answering \"{label}\"")
            }
            Observed::Similarities(_) => "one similarity for every pair".to_owned(),
            Observed::Triplets(_) => "a coin".to_owned(),
            Observed::Rankings(_) => "the order the documents came in".to_owned(),
            Observed::Numbers(_) | Observed::Tensors(_) => "always answering the mean".to_owned(),
            Observed::Texts(_) => "always answering the most frequent reference".to_owned(),
        }
    }

    fn difference(&self, scope: &Scope<'_>, needed: f64) -> Result<Estimate, GateError> {
        let [candidate, baseline] = self.statistics(scope)?;
        let right = |statistic: &Statistic| scope.right(statistic);
        let mut estimate = match (right(&candidate), right(&baseline)) {
            (Some(of_candidate), Some(of_baseline)) => {
                self.known.exact_or(Discordance::of(&of_baseline, &of_candidate), scope.rule, needed, |pairs| {
                    self.exact_difference(pairs, scope.rule, needed)
                })
            }
            _ => self.bootstrap_difference(scope, [&candidate, &baseline], needed),
        };
        (estimate.candidate, estimate.baseline) = (candidate.observed(), baseline.observed());
        Ok(estimate)
    }

    fn statistics(&self, scope: &Scope<'_>) -> Result<[Statistic; 2], GateError> {
        Ok([self.statistic(scope, Of::Candidate)?, self.statistic(scope, Of::Baseline)?])
    }

    fn statistic(&self, scope: &Scope<'_>, of: Of) -> Result<Statistic, GateError> {
        let observed = match of {
            Of::Candidate => &scope.candidate,
            Of::Baseline => &scope.baseline,
        };
        let statistic = match scope.rule.custom.as_ref().and_then(|custom| self.given.get(custom)) {
            Some(given) => self.statistic_given(scope, given, of),
            None => scope.rule.metric.of(observed, scope.rule.about()),
        };
        let statistic = statistic.and_then(|statistic| match &scope.weights {
            Some(weights) => statistic.weighted(weights),
            None => Ok(statistic),
        });
        statistic.map_err(|source| GateError::Metric { rule: scope.name.clone(), source })
    }

    /// What the programs gave the cases of one side.
    fn values(&self, of: Of) -> BTreeMap<&str, &[f64]> {
        let values = self.given.iter().filter_map(|(name, given)| {
            let values = match of {
                Of::Candidate => Some(given.candidate.as_slice()),
                Of::Baseline => given.baseline.as_deref(),
            };
            Some((name.as_str(), values?))
        });
        values.collect()
    }

    fn statistic_given(&self, scope: &Scope<'_>, given: &Given, of: Of) -> Result<Statistic, MetricError> {
        let values = match of {
            Of::Candidate => Some(&given.candidate),
            Of::Baseline => given.baseline.as_ref(),
        };
        let values = values.filter(|values| values.len() == self.cases.len());
        let values = values.ok_or(MetricError::NotGiven { metric: scope.rule.metric })?;
        Statistic::given(scope.rule.metric, scope.idxs.iter().map(|&idx| values[idx]).collect())
    }

    fn exact_difference(&self, pairs: Discordance, rule: &Rule, needed: f64) -> Estimate {
        let Gates { alpha, power, .. } = *self.gates;
        let (n_cases, discordant) = (pairs.n_cases(), rule.discordant.unwrap_or_else(|| pairs.share()));
        let mcnemar = McNemarPower { n_cases, discordant, alpha, sides: Sides::One };
        let non_inferiority = NonInferiority { n_cases, discordant, margin: -needed, alpha };
        let (p_value, test, detectable) = if needed < 0.0 {
            (pairs.mcnemar_worse(), Test::ExactMcnemar, mcnemar.minimum_detectable_effect(power))
        } else if needed > 0.0 {
            // Those who judge many golden sets look at outcomes, and this takes the longest.
            let is_told = self.known.draws.is_none();
            let smallest = is_told.then(|| non_inferiority.smallest_gain_passed(power)).flatten();
            (pairs.p_better_by(needed), Test::ExactUnconditional, smallest)
        } else {
            (pairs.mcnemar_better(), Test::ExactMcnemar, mcnemar.minimum_detectable_effect(power))
        };
        Estimate {
            candidate: f64::NAN,
            baseline: f64::NAN,
            bounds: pairs.exact_bounds(alpha),
            n_cases: n_cases as usize,
            n_effective: None,
            p_value: Some(p_value),
            test: Some(test),
            adjusted_p_value: None,
            minimum_detectable_effect: detectable,
            pass_power: (needed < 0.0).then(|| non_inferiority.pass_power(0.0)),
            cases_needed: non_inferiority.cases_needed(power),
            too_few: false,
        }
    }

    fn bootstrap_difference(&self, scope: &Scope<'_>, sides: [&Statistic; 2], needed: f64) -> Estimate {
        let Gates { alpha, power, .. } = *self.gates;
        let [candidate, baseline] = sides;
        let differences = differences_of_case(sides);
        let drawn = self.known.draws(scope.units.len(), self.resamples());
        let units = scope.units.clone().with_draws(drawn);
        let sample = match &differences {
            Some(differences) => {
                Bootstrap::of_weighted_mean(&units, self.resamples(), differences, scope.weights.as_deref())
            }
            None => Bootstrap::new(&units, self.resamples(), |counts| candidate.value(counts) - baseline.value(counts)),
        };
        let metric = scope.rule.metric;
        // A difference that is to be above the needed gain: take that off each case and ask whether the rest is above 0.
        let shift = if metric.lower_is_better() { -needed.max(0.0) } else { needed.max(0.0) };
        let shifted = differences.map(|all| all.into_iter().map(|difference| difference - shift).collect::<Vec<_>>());
        let swaps = shifted.and_then(|differences| scope.units.sums(&differences, scope.weights.as_deref()));
        let swaps = swaps.map(|sums| SignFlips::of(&sums, self.resamples()));
        let n_cases = scope.candidate.n_cases();
        let bounds = bounds(&sample, alpha, scope.n_scarcest());
        let seen = normal_power(standard_error(&sample, bounds), (-needed).max(0.0), alpha, power);
        let detectable = needed.max(0.0) + seen.minimum_detectable_effect;
        Estimate {
            candidate: f64::NAN,
            baseline: f64::NAN,
            bounds,
            n_cases,
            n_effective: scope.n_effective(),
            p_value: swaps.map(|swaps| {
                // A gain is a sum above 0, or below 0 for a metric that is better when smaller.
                let wants_above = (needed >= 0.0) != metric.lower_is_better();
                if wants_above { swaps.above } else { swaps.below }
            }),
            test: swaps.map(|swaps| if swaps.is_exact { Test::ExactSignFlips } else { Test::SignFlips }),
            adjusted_p_value: None,
            minimum_detectable_effect: (detectable <= room(metric, baseline.observed(), needed)).then_some(detectable),
            pass_power: (needed < 0.0).then_some(seen.pass_power),
            cases_needed: seen.growth_needed.map(|growth| (growth * n_cases as f64).ceil() as u64),
            too_few: scope.is_too_few(),
        }
    }

    fn resamples(&self) -> Resamples {
        Resamples { n: self.gates.resamples, seed: self.gates.seed }
    }

    /// The absolute limit of a rule, if it has one.
    fn limit(&self, scope: &Scope<'_>) -> Result<Option<CheckResult>, GateError> {
        let metric = scope.rule.metric;
        let Some(limit) = scope.rule.floor.or(scope.rule.ceiling) else { return Ok(None) };
        let candidate = self.statistic(scope, Of::Candidate)?;
        let Gates { alpha, power, .. } = *self.gates;
        let (bounds, n_cases, too_few, found) = match scope.right(&candidate) {
            Some(right) => {
                let (n_right, n_cases) = (right.iter().filter(|&&right| right).count() as u64, right.len() as u64);
                let found = FloorPower { n_cases, floor: limit, alpha }.largest_share_found(power);
                (clopper_pearson(n_right, n_cases, 1.0 - 2.0 * alpha), right.len(), false, found)
            }
            None => {
                let sample = candidate.resample(&scope.units, self.resamples());
                let bounds = bounds(&sample, alpha, scope.n_scarcest());
                let detectable =
                    normal_power(standard_error(&sample, bounds), 0.0, alpha, power).minimum_detectable_effect;
                let found = if metric.lower_is_better() { limit + detectable } else { limit - detectable };
                let [least, most] = metric.range().into();
                let found = (least..=most).contains(&found).then_some(found);
                (bounds, scope.candidate.n_cases(), scope.is_too_few(), found)
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
            test: None,
            adjusted_p_value: None,
            minimum_detectable_effect: found.map(|value| (limit - value).abs()),
            pass_power: None,
            cases_needed: None,
            power_note: Some(
                limit_power_note(metric, found, n_cases, power) + &in_effect(n_cases, scope.n_effective()),
            ),
            waivable: false,
            regressions: None,
            undecided: false,
            improved: false,
            reason,
        }))
    }
}

impl Scope<'_> {
    /// Right or wrong, case by case, where the metric is a share of right answers over fixed, independent cases. `None` where
    /// cases share a source: the exact tests would take copies of one document for so many observations.
    fn right(&self, statistic: &Statistic) -> Option<Vec<bool>> {
        statistic.right().filter(|_| !self.units.are_shared()).map(<[bool]>::to_vec)
    }

    /// How many cases that count alike these amount to, where they have different weights.
    fn n_effective(&self) -> Option<f64> {
        self.weights.as_ref().map(|weights| kish(weights.iter().copied()))
    }

    /// Things drawn, or as many as their weights amount to, if those are fewer.
    fn n_units(&self) -> usize {
        let n_units = self.units.len();
        self.n_effective().map_or(n_units, |n_effective| n_units.min(n_effective as usize))
    }

    /// Cases of the rarest label, or things drawn: what limits how much a bootstrap can have seen.
    fn n_scarcest(&self) -> usize {
        match (&self.candidate, &self.weights) {
            (Observed::Classes(classes), None) => classes.n_rarest().min(self.units.len()),
            (Observed::Classes(classes), Some(weights)) => {
                (effective_size_of_rarest(weights, classes.expected()) as usize).min(self.units.len())
            }
            _ => self.n_units(),
        }
    }

    fn is_too_few(&self) -> bool {
        let is_classes = matches!(self.candidate, Observed::Classes(_));
        self.n_units() < FEWEST_UNITS || (is_classes && self.n_scarcest() < FEWEST_OF_A_LABEL)
    }
}

impl Estimate {
    /// Bounds of the gain: the difference, or its opposite for a metric that is better when smaller.
    fn gain(&self, metric: Metric) -> [f64; 2] {
        let [low, high] = self.bounds;
        if metric.lower_is_better() { [-high, -low] } else { [low, high] }
    }

    fn outcome(&self, metric: Metric, needed: f64) -> Outcome {
        let [low, high] = self.gain(metric);
        three_way(low > needed && !self.too_few, high < needed && !self.too_few)
    }

    fn reason(&self, metric: Metric, needed: f64, outcome: Outcome, alpha: f64) -> String {
        let [low, high] = self.gain(metric);
        let values = format!("{} against {}", show(metric, self.candidate), show(metric, self.baseline));
        let [at_worst, at_best] = [low, high].map(|gain| change(metric, gain));
        let (may_drop, size) = (needed < 0.0, amount(metric, needed.abs()));
        let p_value = self.adjusted_p_value.or(self.p_value);
        let is_significant_drop = p_value.map_or(high < 0.0, |p| p <= alpha && may_drop);
        let [drop, undecided_drop] = match is_significant_drop {
            true => ["; a real drop, though a small one", "; a real drop, of a size that is open"],
            false => ["", ""],
        };
        match outcome {
            Outcome::Pass if may_drop => format!("{values}: {at_worst} at worst, so within {size}{drop}"),
            Outcome::Pass => format!("{values}: {at_worst} at worst, so better{}", by_more_than(metric, needed)),
            Outcome::Fail if may_drop => format!("{values}: {at_best} at best, so worse by more than {size}"),
            Outcome::Fail if needed > 0.0 => format!("{values}: {at_best} at best, so not better by {size}"),
            Outcome::Fail => format!("{values}: {at_best} at best, so worse"),
            Outcome::Inconclusive => format!(
                "{values}: between {at_worst} and {at_best}, which {} cases are too few to tell from {}{}{undecided_drop}",
                self.n_cases,
                if may_drop {
                    format!("a drop of {size}")
                } else if needed > 0.0 {
                    format!("a gain below {size}")
                } else {
                    "no gain".to_owned()
                },
                self.cases_needed.map(|n| format!("; about {} would do", round_up(n))).unwrap_or_default(),
            ),
        }
    }

    fn power_note(&self, metric: Metric, needed: f64, power: f64) -> String {
        let percent = 100.0 * power;
        let kind = if needed < 0.0 { "drop" } else { "gain" };
        let seen = match self.minimum_detectable_effect.map(|size| amount(metric, size)) {
            Some(size) if needed > 0.0 => format!("a true gain of {size} passes with {percent:.0} % power"),
            Some(size) => format!("could have detected a {kind} of {size} with {percent:.0} % power"),
            None if needed > 0.0 => format!("{} cases let no true gain pass with {percent:.0} % power", self.n_cases),
            None => format!("{} cases cannot show any {kind} with {percent:.0} % power", self.n_cases),
        };
        let passes = self.pass_power.map(|chance| format!("; an equal candidate passes with {:.0} %", 100.0 * chance));
        seen + &passes.unwrap_or_default() + &in_effect(self.n_cases, self.n_effective)
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
            test: self.test,
            adjusted_p_value: self.adjusted_p_value,
            minimum_detectable_effect: self.minimum_detectable_effect,
            pass_power: self.pass_power,
            cases_needed: self.cases_needed,
            power_note: None,
            waivable: false,
            regressions: None,
            undecided: false,
            improved: false,
            reason,
        }
    }
}

/// How far a metric can fall from `value`, or rise where a gain is needed. No true change is larger.
fn room(metric: Metric, value: f64, needed: f64) -> f64 {
    let (least, most) = metric.range();
    let can_rise = (needed >= 0.0) != metric.lower_is_better();
    if can_rise { most - value } else { value - least }
}

/// ` by at least 2.0 points`, of a needed gain; nothing where any will do.
fn by_at_least(metric: Metric, needed: f64) -> String {
    if needed > 0.0 { format!(" by at least {}", amount(metric, needed)) } else { String::new() }
}

fn by_more_than(metric: Metric, needed: f64) -> String {
    if needed > 0.0 { format!(" by more than {}", amount(metric, needed)) } else { String::new() }
}

/// How much weights cost, in words; nothing where there are none.
fn in_effect(n_cases: usize, n_effective: Option<f64>) -> String {
    n_effective.map(|n| format!("; by their weights the {n_cases} cases count as {n:.0}")).unwrap_or_default()
}

/// What each case adds to the difference, candidate minus baseline, where both sides are means of that.
fn differences_of_case([candidate, baseline]: [&Statistic; 2]) -> Option<Vec<f64>> {
    let pairs = candidate.of_case()?.iter().zip(baseline.of_case()?);
    Some(pairs.map(|(candidate, baseline)| candidate - baseline).collect())
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

/// That of the resamples. A sample that never varied still leaves the exact bound for an event not seen in that many
/// cases.
fn standard_error(sample: &Bootstrap, [low, high]: [f64; 2]) -> f64 {
    sample.standard_error().max((high - low) / 6.0)
}

/// Which true value an absolute limit would have caught.
fn limit_power_note(metric: Metric, found: Option<f64>, n_cases: usize, power: f64) -> String {
    let percent = 100.0 * power;
    match found {
        Some(value) => format!("a true value of {} would have failed with {percent:.0} % power", show(metric, value)),
        None => format!("{n_cases} cases cannot show any shortfall with {percent:.0} % power"),
    }
}

pub(crate) fn three_way(holds: bool, breaks: bool) -> Outcome {
    match (holds, breaks) {
        (true, _) => Outcome::Pass,
        (_, true) => Outcome::Fail,
        _ => Outcome::Inconclusive,
    }
}

fn must_pass(judge: &Judge<'_>) -> Result<Option<CheckResult>, GateError> {
    let right = crate::right(Some(judge.gates), judge.cases, judge.candidate, &judge.values(Of::Candidate));
    let pinned = || judge.cases.iter().zip(&right).filter(|(case, _)| case.must_pass);
    if judge.candidate.right().is_some()
        && let Some((case, _)) = pinned().find(|(_, right)| right.is_none())
    {
        return Err(GateError::Undecided { case: case.id.clone() });
    }
    let pinned = || pinned().filter_map(|(case, right)| Some((case, (*right)?)));
    let wrong: Vec<&str> = pinned().filter(|(_, right)| !right).map(|(case, _)| case.id.as_str()).collect();
    let n_cases = pinned().count();
    Ok((n_cases > 0).then(|| CheckResult {
        rule: "must-pass cases: every one right".to_owned(),
        outcome: if wrong.is_empty() { Outcome::Pass } else { Outcome::Fail },
        n_cases,
        candidate: 1.0 - wrong.len() as f64 / n_cases as f64,
        baseline: None,
        interval: None,
        p_value: None,
        test: None,
        adjusted_p_value: None,
        minimum_detectable_effect: None,
        pass_power: None,
        cases_needed: None,
        power_note: None,
        waivable: false,
        regressions: None,
        undecided: false,
        improved: false,
        reason: match wrong.as_slice() {
            [] => format!("all {n_cases} are right"),
            [first] => format!("`{first}` is answered wrongly"),
            [first, rest @ ..] => format!("`{first}` and {} more are answered wrongly", rest.len()),
        },
    }))
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
        test: None,
        adjusted_p_value: None,
        minimum_detectable_effect: None,
        pass_power: None,
        cases_needed: None,
        power_note: None,
        waivable: false,
        regressions: None,
        undecided: false,
        improved: false,
        reason: format!(
            "{value:.1} ms over {n_cases} single cases; the true percentile lies within {} to {}",
            if low.is_finite() { format!("{low:.1}") } else { "no lower bound".to_owned() },
            if high.is_finite() { format!("{high:.1} ms") } else { "no upper bound, from so few cases".to_owned() },
        ),
    }))
}

/// Cases that one decider finds right on one side only, each time.
fn flips(judge: &Judge<'_>) -> Vec<Flip> {
    let of = |observed, side| deciders(Some(judge.gates), judge.cases, observed, &judge.values(side));
    let (were, are) = (of(judge.baseline, Of::Baseline), of(judge.candidate, Of::Candidate));
    let both = are.iter().filter_map(|is| Some((were.iter().find(|was| was.name == is.name)?, is)));
    let mut flips: Vec<Flip> = both.flat_map(|(was, is)| flips_of(judge, is.name, &was.right, &is.right)).collect();
    flips.sort_by_key(|flip| (!flip.regression, !flip.must_pass));
    flips
}

fn flips_of<'a>(
    judge: &'a Judge<'_>,
    program: Option<&'a str>,
    were_right: &'a [Option<bool>],
    are_right: &'a [Option<bool>],
) -> impl Iterator<Item = Flip> + 'a {
    let decided =
        were_right.iter().zip(are_right).enumerate().filter_map(|(idx, (was, is))| Some((idx, (*was)?, (*is)?)));
    decided.filter(|(_, was_right, is_right)| was_right != is_right).map(move |(idx, regression, _)| Flip {
        case: judge.cases[idx].id.clone(),
        expected: program.map_or_else(|| wanted(judge.candidate, idx), |name| format!("1 from \"{name}\"")),
        baseline: answered(judge.baseline, idx),
        candidate: answered(judge.candidate, idx),
        regression,
        must_pass: judge.cases[idx].must_pass,
    })
}

/// The right answer to a case, in a word.
fn wanted(observed: &Observed, idx: usize) -> String {
    match observed {
        Observed::Classes(classes) => classes.labels()[classes.expected()[idx]].clone(),
        Observed::Rankings(_) => "rank 1".to_owned(),
        Observed::Similarities(pairs) => format!("{:.3}", pairs.expected[idx]),
        Observed::Triplets(_) => "the positive text".to_owned(),
        Observed::Numbers(numbers) => decimal(numbers.expected()[idx]),
        Observed::Tensors(tensors) => several(tensors.case(idx, None).map(|(expected, _)| expected)),
        Observed::Texts(texts) => texts.references(idx).first().map(|text| brief(text)).unwrap_or_default(),
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
        Observed::Triplets(triplets) => {
            let [positive, negative] = triplets.similarities()[idx];
            format!("{positive:.3} against {negative:.3}")
        }
        Observed::Numbers(numbers) => decimal(numbers.predicted()[idx]),
        Observed::Tensors(tensors) => match tensors.beyond(idx) {
            Some(Beyond { output, position, predicted, error, allowed }) => format!(
                "{} (number {position} of \"{output}\"), off by {} where {} is allowed",
                decimal(predicted),
                decimal(error),
                decimal(allowed)
            ),
            None => several(tensors.case(idx, None).map(|(_, predicted)| predicted)),
        },
        Observed::Texts(texts) => brief(texts.answer(idx)),
    }
}

/// The first few of a case's numbers.
fn several(numbers: impl Iterator<Item = f64>) -> String {
    const MOST: usize = 4;
    let shown: Vec<String> = numbers.take(MOST + 1).map(decimal).collect();
    let more = if shown.len() > MOST { ", …" } else { "" };
    shown[..shown.len().min(MOST)].join(", ") + more
}

/// The beginning of a text: a verdict is no place for all of it.
fn brief(text: &str) -> String {
    const MOST_CHARS: usize = 80;
    let mut beginning: String = text.trim().chars().take(MOST_CHARS).collect();
    if beginning.len() < text.trim().len() {
        beginning.push('…');
    }
    beginning
}

fn show(metric: Metric, value: f64) -> String {
    if metric.is_in_percent() { format!("{:.1} %", 100.0 * value) } else { decimal(value) }
}

/// Three decimals, or as many as show three digits of a number that is close to 0.
fn decimal(value: f64) -> String {
    let leading_zeros = if value == 0.0 { 0.0 } else { -value.abs().log10().ceil() };
    let decimals = if (2.0..12.0).contains(&leading_zeros) { leading_zeros as usize + 3 } else { 3 };
    format!("{value:.decimals$}")
}

fn amount(metric: Metric, value: f64) -> String {
    let points = 100.0 * value;
    if metric.is_in_percent() { format!("{points:.1} points") } else { decimal(value) }
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
