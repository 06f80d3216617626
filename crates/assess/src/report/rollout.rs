use highroad_eval::{CheckResult, Outcome};
use serde::Serialize;

use super::Fact;

/// Where a rollout stands, or how it ended, with the answers that were furthest apart.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RolloutReport {
    /// Fail where it was aborted, pass where it passed or was promoted, inconclusive while it goes on.
    pub outcome: Outcome,
    /// The same in one sentence.
    pub headline: String,
    /// Each rule and how it stands.
    pub checks: Vec<CheckResult>,
    /// Requests whose answers were furthest apart, worst first.
    pub worst: Vec<ApartRow>,
    /// Of how many that were written down.
    pub n_pairs: usize,
    /// What was tried, and how.
    pub facts: Vec<Fact>,
}

/// The answers of two versions to one request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ApartRow {
    /// Its id.
    pub request_id: String,
    /// How far apart the answers are, in words.
    pub apart: String,
    /// What the stable version answered.
    pub stable: String,
    /// What the candidate answered.
    pub candidate: String,
    /// What was asked: a text where the server keeps it, else its digest.
    pub input: String,
}
