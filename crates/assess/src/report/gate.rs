use std::collections::{BTreeMap, HashMap};

use highroad_eval::{CheckResult, Flip, Outcome, Verdict, Waiver, to_accept};
use highroad_package::Digest;
use serde::Serialize;

use super::shown::MOST_CHARS;
use super::{
    Fact, MustPass, asked, custom_fact, fact, hosted_facts, in_words, judge_fact, must_pass, numerics, one_line,
    picture, remarks, traffic_facts,
};
use crate::verdict::right;
use crate::{AssessError, GoldenCase, Judged, Ruled};

/// Most flips of one slice that a report lists; the verdict holds all.
const MOST_FLIPS_OF_A_SLICE: usize = 20;
/// Most flips that a report lists in all.
const MOST_FLIPS: usize = 200;
/// Most slices whose flips a report counts.
const MOST_SLICES: usize = 100;
/// Cases that the way out names.
const MOST_NAMED: usize = 10;

/// What a person reads of a gate: the verdict, then the flips by slice, then the numbers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GateReport {
    /// Pass, fail or inconclusive.
    pub outcome: Outcome,
    /// The outcome in one sentence.
    pub headline: String,
    /// What can be done about an inconclusive one.
    pub way_out: Option<String>,
    /// Broken promises and cut texts.
    pub remarks: Vec<String>,
    /// Cases the candidate lost.
    pub n_lost: usize,
    /// Cases the candidate won.
    pub n_won: usize,
    /// The flips, each under the first slice of its case, slices with the most lost cases first, cases without one last.
    pub slices: Vec<SliceFlips>,
    /// Every rule and how it went.
    pub checks: Vec<CheckRow>,
    /// What a named person accepted.
    pub waivers: Vec<Waiver>,
    /// The cases that must be right.
    pub must_pass: Vec<MustPass>,
    /// What was judged, by what, when.
    pub facts: Vec<Fact>,
}

/// The flips of one slice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SliceFlips {
    /// Its name; `None` for cases without a slice.
    pub slice: Option<String>,
    /// Cases of the slice.
    pub n_cases: usize,
    /// Those the candidate lost, listed here or under another slice.
    pub n_lost: usize,
    /// Those it won.
    pub n_won: usize,
    /// Lost ones first, must-pass ones first among them.
    pub flips: Vec<FlipRow>,
    /// How many more of its own the verdict holds.
    pub n_more: usize,
}

/// A case that one side got right and the other wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct FlipRow {
    pub case: String,
    pub must_pass: bool,
    pub regression: bool,
    /// By whom the regression is accepted.
    pub accepted_by: Option<String>,
    /// The other slices of the case.
    pub also_in: Vec<String>,
    pub input: String,
    /// A small copy of an image, as a `data:` address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub picture: Option<String>,
    pub expected: String,
    pub before: String,
    pub after: String,
}

/// One rule and how it went, in the words and digits that every rendering shows.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct CheckRow {
    pub rule: String,
    pub outcome: Outcome,
    /// Inconclusive, but accepted by named persons.
    pub accepted: bool,
    pub reason: String,
    /// The test, and what the check could have seen.
    pub note: String,
    pub n_cases: usize,
    pub candidate: String,
    pub baseline: String,
    /// Of the difference, or of the candidate's value for an absolute limit.
    pub interval: String,
    /// The smallest drop the check would have found.
    pub detectable: String,
}

impl GateReport {
    /// What to read of `verdict`, kept as `digest`, on `judged`.
    pub fn of(verdict: &Verdict, digest: &Digest, judged: &Judged<'_>, ruled: Ruled<'_>) -> Result<Self, AssessError> {
        let baseline = judged.baseline;
        let candidate = judged.candidate.observed(judged.golden, baseline.map_or(&[], |baseline| &baseline.labels))?;
        let right = right(Some(ruled), judged.golden, &candidate);
        let n_lost = verdict.flips.iter().filter(|flip| flip.regression).count();
        Ok(Self {
            outcome: verdict.outcome,
            headline: headline(verdict),
            way_out: (verdict.outcome == Outcome::Inconclusive).then(|| way_out(verdict, n_lost)),
            remarks: remarks_on(verdict, judged),
            n_lost,
            n_won: verdict.flips.len() - n_lost,
            slices: slices(verdict, judged)?,
            checks: verdict.checks.iter().map(|check| check_row(check, verdict.outcome)).collect(),
            waivers: verdict.waivers.clone(),
            must_pass: must_pass(judged.candidate, judged.golden, &candidate, &right)?,
            facts: facts(verdict, digest, judged),
        })
    }
}

fn remarks_on(verdict: &Verdict, judged: &Judged<'_>) -> Vec<String> {
    let n = verdict.flips_left_out;
    let left_out = (n > 0).then(|| format!("{n} more cases flipped than the verdict lists and this report counts"));
    let unproven = verdict.judges.iter().filter(|judge| judge.agreement.is_none()).map(|judge| {
        format!(
            "judge `{}` was never compared with people, so what its scores are worth is not known: give it `labels`",
            judge.name
        )
    });
    let unheard = verdict.judges.iter().filter(|judge| judge.n_unreadable > 0).map(|judge| {
        format!("{} replies of judge `{}` hold no score, and count nowhere", judge.n_unreadable, judge.name)
    });
    remarks(judged.candidate).into_iter().chain(left_out).chain(unproven).chain(unheard).collect()
}

/// The word for an outcome.
pub(super) fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Pass => "PASS",
        Outcome::Fail => "FAIL",
        Outcome::Inconclusive => "INCONCLUSIVE",
    }
}

/// The outcome in one sentence a person understands.
fn headline(verdict: &Verdict) -> String {
    let named = |outcome| {
        let checks = verdict.checks.iter().filter(move |check| check.outcome == outcome);
        checks.map(|check| format!("{} ({})", check.rule, check.reason)).collect::<Vec<_>>()
    };
    let told = match verdict.outcome {
        Outcome::Pass => match verdict.waivers.first() {
            None => match verdict.checks.iter().filter(|check| check.undecided).count() {
                0 => format!("all {} checks hold", verdict.checks.len()),
                n => format!("{} checks hold, {n} undecided, which the rules let pass", verdict.checks.len() - n),
            },
            Some(Waiver { by, expires_at, .. }) => {
                format!("{by} accepted what the golden set is too small to tell, until {expires_at}")
            }
        },
        Outcome::Fail => match named(Outcome::Fail).as_slice() {
            [] => "the candidate lost a case that must pass".to_owned(),
            [only] => only.clone(),
            [first, rest @ ..] => format!("{first}; and {} more", rest.len()),
        },
        Outcome::Inconclusive => match named(Outcome::Inconclusive).as_slice() {
            [] => "no check is decided, and that the rules let each pass shows nothing".to_owned(),
            open => open.join("; "),
        },
    };
    format!("{}: {}", word(verdict.outcome), one_line(&told, MOST_CHARS))
}

fn way_out(verdict: &Verdict, n_lost: usize) -> String {
    let mut open = verdict.checks.iter().filter(|check| check.outcome == Outcome::Inconclusive).peekable();
    if open.peek().is_none() || !open.all(|check| check.waivable) {
        return "add cases to the golden set, or state a rule it can decide".to_owned();
    }
    let wanted = to_accept(&verdict.checks, &verdict.flips);
    match wanted.len() {
        0 => "add cases, or a named person accepts the small set: --accept-small-set --by NAME --why TEXT".to_owned(),
        n if n == n_lost => {
            format!("add cases, or a named person accepts each of the {n} lost: --accept CASE … --by NAME --why TEXT")
        }
        n => {
            let named: Vec<&str> = wanted.iter().take(MOST_NAMED).map(|flip| flip.case.as_str()).collect();
            let more = if n > MOST_NAMED { format!(" and {} more", n - MOST_NAMED) } else { String::new() };
            format!(
                "add cases, or a named person accepts the {n} of the {n_lost} lost that the undecided rules are about ({}{more}): \
                 --accept CASE … --by NAME --why TEXT",
                named.join(", ")
            )
        }
    }
}

fn check_row(check: &CheckResult, outcome: Outcome) -> CheckRow {
    let number = |value: f64| format!("{value:.4}");
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "–".to_owned());
    let shown = |p: f64| if p < 0.001 { "< 0.001".to_owned() } else { format!("= {p:.3}") };
    let name = check.test.map(|test| format!("{test} ")).unwrap_or_default();
    let adjusted = check.adjusted_p_value.map(|p| format!(" ({} by Holm over the slices)", shown(p)));
    let test = check.p_value.map(|p| format!("{name}p {}{}", shown(p), adjusted.unwrap_or_default()));
    CheckRow {
        rule: check.rule.clone(),
        outcome: check.outcome,
        accepted: check.outcome == Outcome::Inconclusive && outcome == Outcome::Pass,
        reason: check.reason.clone(),
        note: test.into_iter().chain(check.power_note.clone()).collect::<Vec<_>>().join("; "),
        n_cases: check.n_cases,
        candidate: number(check.candidate),
        baseline: or_dash(check.baseline.map(number)),
        interval: or_dash(check.interval.map(|[low, high]| format!("{low:.4} to {high:.4}"))),
        detectable: or_dash(check.minimum_detectable_effect.map(number)),
    }
}

fn facts(verdict: &Verdict, digest: &Digest, judged: &Judged<'_>) -> Vec<Fact> {
    let set = &verdict.golden_set;
    let baseline = match judged.baseline {
        Some(baseline) => baseline.package.to_string(),
        None => "trivial, as a first version has no champion".to_owned(),
    };
    let mut facts = vec![
        fact("candidate", &verdict.package),
        fact("baseline", baseline),
        fact("golden set", format!("{} ({} cases), {}", set.name, set.n_cases, set.digest)),
        fact("rules", &verdict.gates),
        numerics(&verdict.numerics_id, verdict.evidence),
        fact("answers", judged.candidate.checked.in_words()),
    ];
    if let Some(latency) = &verdict.latency {
        let percentiles =
            format!("p50 {:.1} ms, p90 {:.1} ms, p99 {:.1} ms", latency.p50_ms, latency.p90_ms, latency.p99_ms);
        facts.push(fact("latency", format!("{percentiles}; {}", latency.measured)));
    }
    facts.extend(verdict.hosted.iter().flat_map(hosted_facts));
    facts.extend(verdict.judges.iter().map(judge_fact));
    facts.extend(verdict.custom.iter().map(custom_fact));
    facts.extend(verdict.traffic.iter().flat_map(traffic_facts));
    facts.push(fact("judged", format!("{} by {}", verdict.created_at, verdict.created_by)));
    facts.push(fact("verdict", digest.to_string()));
    facts
}

/// The flips of every slice, within the limits.
fn slices(verdict: &Verdict, judged: &Judged<'_>) -> Result<Vec<SliceFlips>, AssessError> {
    let mut rows = Rows::new(verdict, judged)?;
    let mut slices: BTreeMap<Option<&str>, SliceFlips> = BTreeMap::new();
    for flip in &verdict.flips {
        let Some(&idx) = rows.place.get(flip.case.as_str()) else { continue };
        let names = &judged.golden.cases[idx].case.slices;
        let own = names.first().map(String::as_str);
        for name in std::iter::once(own).chain(names.iter().skip(1).map(|name| Some(name.as_str()))) {
            let slice = slices.entry(name).or_insert_with(|| none_yet(name, judged));
            *(if flip.regression { &mut slice.n_lost } else { &mut slice.n_won }) += 1;
        }
        let slice = slices.get_mut(&own).expect("its own slice was just entered");
        if slice.flips.len() < MOST_FLIPS_OF_A_SLICE && rows.n_left > 0 {
            slice.flips.push(rows.row(flip, idx)?);
        } else {
            slice.n_more += 1;
        }
    }
    let mut slices: Vec<SliceFlips> = slices.into_values().collect();
    slices.sort_by_key(|slice| (slice.slice.is_none(), usize::MAX - slice.n_lost, usize::MAX - slice.n_won));
    slices.truncate(MOST_SLICES);
    Ok(slices)
}

fn none_yet(slice: Option<&str>, judged: &Judged<'_>) -> SliceFlips {
    let in_slice = |case: &&GoldenCase| match slice {
        Some(name) => case.case.slices.iter().any(|slice| slice == name),
        None => case.case.slices.is_empty(),
    };
    let n_cases = judged.golden.cases.iter().filter(in_slice).count();
    let slice = slice.map(str::to_owned);
    SliceFlips { slice, n_cases, n_lost: 0, n_won: 0, flips: Vec::new(), n_more: 0 }
}

/// What turns flips into rows.
struct Rows<'a> {
    judged: &'a Judged<'a>,
    waivers: &'a [Waiver],
    place: HashMap<&'a str, usize>,
    observed: [highroad_eval::Observed; 2],
    n_left: usize,
}

impl<'a> Rows<'a> {
    fn new(verdict: &'a Verdict, judged: &'a Judged<'a>) -> Result<Self, AssessError> {
        let Judged { golden, candidate, baseline } = *judged;
        let baseline = baseline.unwrap_or(candidate);
        let observed = [baseline.observed(golden, &candidate.labels)?, candidate.observed(golden, &baseline.labels)?];
        let place = golden.cases.iter().enumerate().map(|(idx, case)| (case.case.id.as_str(), idx)).collect();
        Ok(Self { judged, waivers: &verdict.waivers, place, observed, n_left: MOST_FLIPS })
    }

    fn row(&mut self, flip: &Flip, idx: usize) -> Result<FlipRow, AssessError> {
        self.n_left -= 1;
        let Judged { golden, candidate, baseline } = *self.judged;
        let [of_baseline, of_candidate] = &self.observed;
        let waiver = self.waivers.iter().find(|waiver| waiver.case == flip.case);
        let input = golden.input(idx)?;
        let before = baseline.map(|baseline| in_words(baseline, &input, of_baseline, idx));
        Ok(FlipRow {
            case: flip.case.clone(),
            must_pass: flip.must_pass,
            regression: flip.regression,
            accepted_by: waiver.map(|waiver| waiver.by.clone()),
            also_in: golden.cases[idx].case.slices.iter().skip(1).cloned().collect(),
            input: asked(&input, MOST_CHARS),
            picture: picture(&input),
            expected: flip.expected.clone(),
            before: before.unwrap_or_else(|| flip.baseline.clone()),
            after: in_words(candidate, &input, of_candidate, idx),
        })
    }
}
