use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{CustomEvidence, HostedEvidence, Inconclusive, JudgeEvidence, TrafficEvidence};

/// What a gate decided about one package, and everything the decision rests on.
///
/// Digests are written `sha256:…` and times as RFC 3339 in UTC. Which of several verdicts is the newest [`Verdict::recency`]
/// says: their times have milliseconds or, from before, none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Verdict {
    /// Format version, 1.
    pub highroad_verdict: u32,
    /// The decision.
    pub outcome: Outcome,
    /// Digest of the package that was judged.
    pub package: String,
    /// What it was compared with.
    pub baseline: Baseline,
    /// The golden set both sides answered.
    pub golden_set: GoldenSet,
    /// Digest of the gate rules.
    pub gates: String,
    /// What decides the bits of the candidate's answers: kernel set, instruction path and precision.
    pub numerics_id: String,
    /// What the evidence is worth.
    pub evidence: Evidence,
    /// Digest of the candidate's answers on the golden set, in case order; a server replays them on a new numerics id.
    pub answers: String,
    /// Every rule and how it went.
    pub checks: Vec<CheckResult>,
    /// Cases that one side got right and the other wrong, lost ones first, must-pass cases first among them.
    pub flips: Vec<Flip>,
    /// How many more flips there are: of very many the last are left out.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub flips_left_out: usize,
    /// Flips a person accepted.
    #[serde(default)]
    pub waivers: Vec<Waiver>,
    /// Candidate's service time per case as it was measured, where the gate has a latency rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency: Option<Latency>,
    /// What was measured at the declared traffic, where the gate declares one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic: Option<TrafficEvidence>,
    /// What it took to ask the candidate, where somebody else hosts it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hosted: Option<HostedEvidence>,
    /// Who judged texts, and how far that can be relied on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub judges: Vec<JudgeEvidence>,
    /// Programs that gave values no metric of ours gives.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub custom: Vec<CustomEvidence>,
    /// Of what the candidate is made, where it is a pipeline; [`Verdict::package`] is the digest of all of it together then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pipeline: Option<PipelineEvidence>,
    /// When the gate ran.
    pub created_at: String,
    /// Who ran it.
    pub created_by: String,
}

/// A pipeline by content: a verdict is about these members and indexes, and about no others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PipelineEvidence {
    /// Its name.
    pub name: String,
    /// Digest of the package that each member served.
    pub members: BTreeMap<String, String>,
    /// Digest of each index that was searched.
    pub indexes: BTreeMap<String, String>,
}

fn is_zero(n: &usize) -> bool {
    *n == 0
}

/// The decision of a gate or of one rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Outcome {
    Pass,
    Fail,
    Inconclusive,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::Inconclusive => "inconclusive",
        })
    }
}

/// What a candidate was compared with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[schemars(rename = "BaselineEvidence")]
pub enum Baseline {
    /// Another package.
    Package {
        /// Its digest.
        package: String,
        /// The reference it was found by, such as `moderation@champion`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reference: Option<String>,
    },
    /// An answer that needs no model, for a first version: `majority`.
    Trivial {
        /// Which one.
        name: String,
    },
}

impl Baseline {
    /// In words.
    pub fn in_words(&self) -> String {
        match self {
            Self::Package { package, reference: Some(reference) } => format!("{reference} ({package})"),
            Self::Package { package, reference: None } => package.clone(),
            Self::Trivial { name } => format!("the trivial baseline ({name})"),
        }
    }

    /// What has to be told where `package`, compared with this, takes the place of package `champion`, which is called
    /// `label`; nothing where it was compared with that.
    pub fn caution(&self, package: &str, label: &str, champion: &str) -> Option<String> {
        let is_champion = matches!(self, Self::Package { package, .. } if package == champion);
        (package != champion && !is_champion).then(|| {
            format!(
                "its verdict compares it with {}, not with {label} ({champion}), which it replaces",
                self.in_words()
            )
        })
    }
}

/// A golden set by content.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
#[schemars(rename = "GoldenSetFacts")]
pub struct GoldenSet {
    pub name: String,
    pub digest: String,
    pub n_cases: usize,
}

/// How strongly the verdict binds what is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Evidence {
    /// The native runtime: production answers with the same bits.
    BitExact,
    /// A PyTorch worker running the same package.
    SameEngine,
    /// A hosted API: compared, not promised.
    Observed,
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BitExact => "bit-exact",
            Self::SameEngine => "same-engine",
            Self::Observed => "observed",
        })
    }
}

/// One rule of a gate and how it went.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CheckResult {
    /// The rule in words a person understands: `accuracy, slice "multilingual": not worse by more than 2 points`.
    pub rule: String,
    /// How it went.
    pub outcome: Outcome,
    /// Number of golden cases it looked at.
    pub n_cases: usize,
    /// Value for the candidate.
    pub candidate: f64,
    /// Value for the baseline, where the rule compares.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline: Option<f64>,
    /// Confidence interval of the difference (or of the candidate's value, for an absolute floor).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<[f64; 2]>,
    /// One-sided p-value of the paired test, where there is one: that the candidate is worse, or better (by more than the
    /// required improvement) where the rule demands a gain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p_value: Option<f64>,
    /// The test the p-value comes from; absent in verdicts from before it was written down, when all were exact McNemar.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test: Option<Test>,
    /// The p-value after Holm's adjustment over the slices of a rule for each slice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adjusted_p_value: Option<f64>,
    /// The smallest true drop this check would have found with the power it was asked for, of a required improvement the
    /// smallest true gain that passes; absent where none is large enough for that on so few cases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum_detectable_effect: Option<f64>,
    /// The chance that a candidate exactly as good as the baseline passes this check.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pass_power: Option<f64>,
    /// About how many cases would give that chance the power the gate was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cases_needed: Option<u64>,
    /// What the check could have seen, in one sentence with units.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power_note: Option<String>,
    /// Whether the check is inconclusive only because the golden set is too small for it, so that named persons may
    /// accept the flips.
    #[serde(default)]
    pub waivable: bool,
    /// Ids of the regressions among the cases that the check is about, where it is waivable: those a person has to accept.
    /// Absent in verdicts from before they were listed, where every regression has to be accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub regressions: Option<Vec<String>>,
    /// Whether the evidence leaves it open, and the outcome is what the rules' `inconclusive` makes of that.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub undecided: bool,
    /// Whether the candidate is certainly better than the baseline: the interval of the difference leaves no other reading.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub improved: bool,
    /// Why, in one sentence.
    pub reason: String,
}

/// A paired test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Test {
    /// [`Discordance::mcnemar_worse`](crate::Discordance::mcnemar_worse) and its opposite.
    ExactMcnemar,
    /// [`Discordance::p_better_by`](crate::Discordance::p_better_by).
    ExactUnconditional,
    /// [`SignFlips`](crate::SignFlips) with every swap counted.
    ExactSignFlips,
    /// [`SignFlips`](crate::SignFlips) with drawn swaps.
    SignFlips,
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ExactMcnemar => "exact McNemar",
            Self::ExactUnconditional => "exact unconditional",
            Self::ExactSignFlips => "exact permutation",
            Self::SignFlips => "permutation",
        })
    }
}

/// How long one case took, one case at a time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
#[schemars(rename = "LatencyEvidence")]
pub struct Latency {
    pub p50_ms: f64,
    pub p90_ms: f64,
    pub p99_ms: f64,
    pub n_samples: usize,
    /// Machine and method, in words.
    pub measured: String,
}

/// A golden case the two sides answer differently in a way that matters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub struct Flip {
    pub case: String,
    pub expected: String,
    pub baseline: String,
    pub candidate: String,
    /// Whether the candidate lost a case that the baseline had right.
    pub regression: bool,
    pub must_pass: bool,
}

/// A named person's acceptance of one flip.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Waiver {
    /// The case whose flip is accepted.
    pub case: String,
    /// Who accepts it.
    pub by: String,
    /// Why.
    pub why: String,
    /// From when on the acceptance is void.
    pub expires_at: String,
}

/// Most open checks that a refusal names.
const MAX_OPEN_TOLD: usize = 3;

/// Why a verdict does not admit a package to production.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum Refusal {
    #[error("the verdict is about package {judged}, not {asked}")]
    OtherPackage { judged: String, asked: String },
    #[error("the verdict is {outcome}, not pass: {open}")]
    NotPassed { outcome: Outcome, open: String },
    #[error(
        "the verdict compares the package with itself, which says nothing: run `highroad gate` against another one"
    )]
    WithItself,
    #[error("the verdict says pass, which its own checks do not support: {0}")]
    Inconsistent(String),
    #[error("{by} accepted the flip of case `{case}` only until {expires_at}")]
    WaiverExpired { case: String, by: String, expires_at: String },
}

/// Orders verdicts on one package: the largest is the newest, the one that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Recency {
    at: Option<Timestamp>,
    /// Of two made at the same time the worse one counts.
    severity: u8,
}

impl Verdict {
    /// Its place among verdicts on the same package. One without a readable time is older than all others.
    pub fn recency(&self) -> Recency {
        let severity = match self.outcome {
            Outcome::Pass => 0,
            Outcome::Inconclusive => 1,
            Outcome::Fail => 2,
        };
        Recency { at: self.created_at.parse().ok(), severity }
    }

    /// Whether `package` may go to production at `now` (RFC 3339, UTC, whole seconds, ending in `Z`) on the strength of
    /// this verdict.
    ///
    /// The outcome is derived again from the checks, flips and waivers: a file that only claims to pass is refused.
    pub fn admits(&self, package: &str, now: &str) -> Result<(), Refusal> {
        if self.package != package {
            return Err(Refusal::OtherPackage { judged: self.package.clone(), asked: package.to_owned() });
        }
        if self.outcome != Outcome::Pass {
            return Err(Refusal::NotPassed { outcome: self.outcome, open: self.open() });
        }
        self.supports_a_pass()?;
        match self.waivers.iter().find(|waiver| waiver.expires_at.as_str() <= now) {
            Some(Waiver { case, by, expires_at, .. }) => {
                Err(Refusal::WaiverExpired { case: case.clone(), by: by.clone(), expires_at: expires_at.clone() })
            }
            None => Ok(()),
        }
    }

    /// Errors if the baseline is the package itself: every margin holds then, so that nothing new may rest on it.
    pub fn compares(&self) -> Result<(), Refusal> {
        match &self.baseline {
            Baseline::Package { package, .. } if *package == self.package => Err(Refusal::WithItself),
            _ => Ok(()),
        }
    }

    /// What keeps it from a pass, in words: broken checks before undecided ones, then lost must-pass cases.
    fn open(&self) -> String {
        let of = |wanted: Outcome| self.checks.iter().filter(move |check| check.outcome == wanted);
        let checks = of(Outcome::Fail).chain(of(Outcome::Inconclusive));
        let checks = checks.map(|check| format!("{} ({})", check.rule, check.reason));
        let lost = self.flips.iter().filter(|flip| flip.must_pass && flip.regression);
        let mut open: Vec<String> =
            checks.chain(lost.map(|flip| format!("the must-pass case `{}` was lost", flip.case))).collect();
        let n_more = open.len().saturating_sub(MAX_OPEN_TOLD);
        open.truncate(MAX_OPEN_TOLD);
        match n_more {
            _ if open.is_empty() => "it does not say why".to_owned(),
            0 => open.join("; "),
            n => format!("{}; and {n} more", open.join("; ")),
        }
    }

    fn supports_a_pass(&self) -> Result<(), Refusal> {
        if self.checks.is_empty() {
            return Err(Refusal::Inconsistent("it has no checks".to_owned()));
        }
        let regressions = regressions(&self.flips);
        let listed =
            self.checks.iter().flat_map(|check| check.regressions.iter().flatten().map(move |case| (check, case)));
        if let Some((check, case)) = listed.into_iter().find(|(_, case)| !regressions.contains(case.as_str())) {
            return Err(Refusal::Inconsistent(format!("{}: `{case}` did not regress", check.rule)));
        }
        if outcome(&self.checks, &self.flips, &self.waivers) == Outcome::Pass {
            return Ok(());
        }
        let open = self.checks.iter().find(|check| check.outcome != Outcome::Pass);
        let rule = open.map_or("a must-pass case flipped", |check| &check.rule);
        Err(Refusal::Inconsistent(rule.to_owned()))
    }
}

impl CheckResult {
    /// The check as a policy for what is undecided counts it.
    pub(crate) fn settled(self, policy: Inconclusive) -> Self {
        let (outcome, told) = match policy {
            _ if self.outcome != Outcome::Inconclusive => return self,
            Inconclusive::Ask => return self,
            Inconclusive::Fail => (Outcome::Fail, "undecided, which the rules count as failed"),
            Inconclusive::Pass => (Outcome::Pass, "undecided, which the rules let pass"),
        };
        let reason = format!("{told}: {}", self.reason);
        Self { outcome, undecided: true, waivable: false, regressions: None, reason, ..self }
    }
}

/// The outcome of a gate: release needs every check (an intersection-union test, Berger 1982), so no correction for
/// their number is due.
///
/// A failed check or a lost must-pass case fails. An inconclusive check leaves the gate inconclusive, unless all
/// inconclusive checks are waivable and waivers name every regression of [`to_accept`]; a failed check cannot be waived.
/// It is inconclusive as well where nothing was shown: without checks, or with none but undecided ones that the rules let pass.
pub fn outcome(checks: &[CheckResult], flips: &[Flip], waivers: &[Waiver]) -> Outcome {
    let must_pass_lost = flips.iter().any(|flip| flip.must_pass && flip.regression);
    if must_pass_lost || checks.iter().any(|check| check.outcome == Outcome::Fail) {
        return Outcome::Fail;
    }
    let mut open = checks.iter().filter(|check| check.outcome == Outcome::Inconclusive).peekable();
    if open.peek().is_none() {
        let is_shown = checks.iter().any(|check| !check.undecided);
        return if is_shown { Outcome::Pass } else { Outcome::Inconclusive };
    }
    let accepted: BTreeSet<&str> = waivers.iter().map(|waiver| waiver.case.as_str()).collect();
    let mut wanted = to_accept(checks, flips).into_iter();
    let all_accepted = !waivers.is_empty() && wanted.all(|flip| accepted.contains(flip.case.as_str()));
    if all_accepted && open.all(|check| check.waivable) { Outcome::Pass } else { Outcome::Inconclusive }
}

/// The regressions that named persons have to accept before a gate passes which a small golden set left inconclusive: those
/// among the cases that its undecided checks are about. All of them where such a check does not say which those are.
pub fn to_accept<'a>(checks: &[CheckResult], flips: &'a [Flip]) -> Vec<&'a Flip> {
    let open = checks.iter().filter(|check| check.outcome == Outcome::Inconclusive);
    let listed = open.map(|check| check.regressions.as_ref()).collect::<Option<Vec<_>>>();
    let listed = listed.map(|lists| lists.into_iter().flatten().map(String::as_str).collect::<BTreeSet<_>>());
    let is_wanted = |flip: &&Flip| listed.as_ref().is_none_or(|cases| cases.contains(flip.case.as_str()));
    flips.iter().filter(|flip| flip.regression).filter(is_wanted).collect()
}

fn regressions(flips: &[Flip]) -> BTreeSet<&str> {
    flips.iter().filter(|flip| flip.regression).map(|flip| flip.case.as_str()).collect()
}
