use highroad_eval::Outcome;
use serde::Serialize;

use super::{Chart, Fact};

/// What members of a server meet, for people.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MonitorReport {
    /// Fail where something differs, pass where nothing does, inconclusive where nothing can be judged.
    pub outcome: Outcome,
    /// The same in one sentence.
    pub headline: String,
    /// Each member.
    pub members: Vec<MonitoredMember>,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MonitoredMember {
    /// Its name and version.
    pub name: String,
    /// Where it stands, in a sentence.
    pub message: String,
    /// Sentences about what differs.
    pub findings: Vec<String>,
    /// Each signal.
    pub signals: Vec<SignalRow>,
    /// Baseline, times, counts, quality.
    pub facts: Vec<Fact>,
    /// Distributions and how effects went.
    pub charts: Vec<Chart>,
}

/// A signal and how it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct SignalRow {
    pub outcome: Outcome,
    pub signal: String,
    pub n: String,
    pub statistic: String,
    pub p: String,
    pub effect: String,
    pub evidence: String,
}
