use schemars::JsonSchema;
use serde::Serialize;

/// Something that differs from the baseline now, for people and for alerting.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Finding {
    /// `member/version/signal`: the same for as long as it differs.
    pub id: String,
    /// The member.
    pub member: String,
    /// The version that it is about.
    pub version: String,
    /// `language`, `n_tokens`, `label`, …, or `quality`.
    pub signal: String,
    /// What it is about.
    pub kind: FindingKind,
    /// Since when, RFC 3339 in UTC.
    pub since: String,
    /// Requests that speak for it.
    pub n: u64,
    /// How far: a population stability index, or points of accuracy.
    pub effect: f64,
    /// Logarithm of the evidence, and what it took.
    pub evidence: f64,
    /// The same for all findings of a member.
    pub threshold: f64,
    /// The same in a sentence.
    pub message: String,
}

/// What a finding is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FindingKind {
    /// What is asked.
    InputDrift,
    /// What is answered.
    PredictionDrift,
    /// How sure the model is.
    ConfidenceDrift,
    /// How often it is right.
    Quality,
}
