use highroad_package::Digest;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the request log has of a request to a pipeline beside what it has of every answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PipelineRecord {
    /// The pipeline's name.
    pub name: String,
    /// Digest of its [definition](crate::pipeline::Definition).
    pub definition: Digest,
    /// The steps that ran to their end, in the pipeline's order.
    pub steps: Vec<StepRecord>,
    /// The step whose label ended the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped: Option<String>,
    /// Whether the last step's text came in events, after this was written: the record `ID.STEP` has its digest.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub streamed: bool,
}

/// What is kept of one step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StepRecord {
    /// Its name.
    pub name: String,
    /// The member that answered; of a search by text the embedder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<String>,
    /// Its version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Its package, or of a hosted member its description.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub package: Option<Digest>,
    /// What stands behind it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence: Option<String>,
    /// What decided the bits, of a package.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub numerics_id: Option<String>,
    /// The index that was searched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<Digest>,
    /// One digest for each answer of the package.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outputs: Vec<Digest>,
    /// Digest of what the step gave: [`Value::digest`](crate::pipeline::Value::digest).
    pub value: Digest,
    /// Whether the step's fallback answered.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fell_back: bool,
    /// Whether nobody did, and the step was skipped.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub skipped: bool,
}
