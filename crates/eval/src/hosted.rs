use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What it took to ask a model that somebody else hosts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HostedEvidence {
    /// What the host calls the model.
    pub model: String,
    /// Where it was asked.
    pub base_url: String,
    /// Models and builds that the host said answered; more than one if it changed them meanwhile.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub served_by: Vec<String>,
    /// Different questions.
    pub n_questions: usize,
    /// Those whose answers were kept from an earlier run.
    pub n_kept: usize,
    /// Tries beyond the first of each question.
    pub n_retries: u64,
    /// Answers that ended at the most tokens an answer may have.
    #[serde(default)]
    pub n_cut: usize,
    /// Tokens that were sent, as the host counted them.
    pub input_tokens: u64,
    /// Tokens that were written.
    pub output_tokens: u64,
    /// Answers whose tokens the host did not count.
    #[serde(default)]
    pub n_uncounted: usize,
    /// What these answers cost when they were asked, where prices are declared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<HostedCost>,
}

/// Money for answers, at declared prices.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HostedCost {
    /// What prices are in.
    pub currency: String,
    /// Of all answers, kept ones as they were asked.
    pub of_answers: f64,
    /// Of those that were asked in this run; tries that failed without anybody knowing what they cost are not in it.
    pub of_this_run: f64,
}
