use highroad_eval::{CheckResult, Outcome, Percentile};
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
    /// What both versions took and cost, where that was measured.
    pub times: Option<TimesReport>,
    /// What was tried, and how.
    pub facts: Vec<Fact>,
}

/// What both versions took for the same requests, and what these cost.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TimesReport {
    /// What was measured, and of how many requests.
    pub how: String,
    /// Latency, tokens and cost.
    pub rows: Vec<TimesRow>,
    /// The candidate's percentiles as multiples of the stable version's.
    pub ratios: Vec<Percentile>,
}

/// One thing that was measured of both versions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TimesRow {
    /// Which.
    pub what: String,
    /// Of the stable version, with its unit.
    pub stable: String,
    /// Of the candidate.
    pub candidate: String,
    /// The candidate's as a multiple of the stable version's, with its bounds where there are any.
    pub ratio: String,
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
