use highroad_eval::Outcome;
use serde::Serialize;

use super::Fact;
use crate::Drift;

/// What changes where the same weights are exported in another environment.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct UpgradeReport {
    /// Of all checks together.
    pub outcome: Outcome,
    /// The outcome in one sentence.
    pub headline: String,
    /// What the outcome rests on.
    pub checks: Vec<UpgradeCheck>,
    /// From the answers before to those after, on the golden set.
    pub drift: Drift,
    /// The same in a sentence.
    pub drift_in_words: String,
    /// On all cases.
    pub metrics: Vec<MetricChange>,
    /// Single inputs, asked of both in turns.
    pub latency: LatencyChange,
    /// What the lock files pin differently.
    pub packages: Vec<PackageChange>,
    /// What an advisory service says about them; none where it was not asked.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub advisories: Vec<AdvisoryChange>,
    /// The changed lines of the canonical graph with one line around them, as `diff -u` writes them; none where it is the same.
    pub graph_diff: Vec<String>,
    /// Lines of it that are not here.
    pub n_more_lines: usize,
    /// What was compared, in what.
    pub facts: Vec<Fact>,
}

/// Something that must hold.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct UpgradeCheck {
    pub rule: String,
    pub outcome: Outcome,
    pub reason: String,
}

/// A metric on all cases, before and after.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct MetricChange {
    pub metric: String,
    pub before: f64,
    pub after: f64,
}

/// Median service times in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct LatencyChange {
    pub n_inputs: usize,
    pub p50_ms_before: f64,
    pub p50_ms_after: f64,
    /// Median over the inputs of the time after over that before.
    pub ratio: f64,
}

/// A package of the environment; a side that lacks it is absent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PackageChange {
    /// Normalised.
    pub name: String,
    /// Version before.
    pub before: Option<String>,
    /// Version after.
    pub after: Option<String>,
    /// What the installed package declares; absent where it declares none or is not installed.
    pub licence_before: Option<String>,
    /// The same after.
    pub licence_after: Option<String>,
}

impl PackageChange {
    /// Whether the licence is another one than before; a new package's is.
    pub fn changes_licence(&self) -> bool {
        self.after.is_some() && self.licence_before != self.licence_after
    }
}

/// A known vulnerability of a package that changes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AdvisoryChange {
    /// Normalised.
    pub package: String,
    /// The version that has it.
    pub version: String,
    /// As the service names it.
    pub id: String,
    /// Its other names, such as a CVE's.
    pub aliases: Vec<String>,
    /// Versions without it.
    pub fixed_in: Vec<String>,
    /// Which side has it.
    pub kind: AdvisoryKind,
}

/// Which side has a vulnerability.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AdvisoryKind {
    /// The new one alone.
    New,
    /// The new one alone, and a person has looked at it.
    Accepted,
    /// Both.
    Stays,
    /// The old one alone.
    Gone,
}

impl AdvisoryChange {
    /// `torch 2.13.0 has GHSA-… (CVE-…), fixed in 2.13.1`
    pub fn in_words(&self) -> String {
        let Self { package, version, id, aliases, fixed_in, kind } = self;
        let verb = if *kind == AdvisoryKind::Gone { "had" } else { "has" };
        let aliases = if aliases.is_empty() { String::new() } else { format!(" ({})", aliases.join(", ")) };
        let fixed =
            if fixed_in.is_empty() { "no fix yet".to_owned() } else { format!("fixed in {}", fixed_in.join(", ")) };
        format!("{package} {version} {verb} {id}{aliases}, {fixed}")
    }
}

impl UpgradeCheck {
    /// A check of its own words.
    pub fn new(rule: impl Into<String>, outcome: Outcome, reason: impl Into<String>) -> Self {
        Self { rule: rule.into(), outcome, reason: reason.into() }
    }
}

/// Fail if one fails, else inconclusive if one is.
pub fn outcome_of(checks: &[UpgradeCheck]) -> Outcome {
    let any = |outcome| checks.iter().any(|check| check.outcome == outcome);
    match (any(Outcome::Fail), any(Outcome::Inconclusive)) {
        (true, _) => Outcome::Fail,
        (false, true) => Outcome::Inconclusive,
        (false, false) => Outcome::Pass,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_check_that_fails_decides_and_one_that_cannot_tell_comes_second() {
        let checks = |outcomes: &[Outcome]| {
            outcomes.iter().map(|&outcome| UpgradeCheck::new("rule", outcome, "")).collect::<Vec<_>>()
        };
        use Outcome::{Fail, Inconclusive, Pass};
        assert_eq!(outcome_of(&checks(&[Pass, Pass])), Pass);
        assert_eq!(outcome_of(&checks(&[Pass, Inconclusive])), Inconclusive);
        assert_eq!(outcome_of(&checks(&[Inconclusive, Fail, Pass])), Fail);
    }
}
