//! What a pipeline is, by its digest, and what the request log keeps of a request to one.

use std::collections::BTreeMap;

use highroad_package::Digest;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Action, Finished, PipelineConfig, StepReport};
use crate::request_log::{PipelineRecord, StepRecord};

/// A pipeline and what it searches.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "PipelineDefinition")]
pub struct Definition {
    /// Format version, 1.
    pub highroad_pipeline: u32,
    /// Its name.
    pub name: String,
    /// Its steps.
    pub pipeline: PipelineConfig,
    /// The indexes that its steps search, by name.
    pub indexes: BTreeMap<String, DefinedIndex>,
}

/// An index as a pipeline names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DefinedIndex {
    /// Digest of its description.
    pub digest: Digest,
    /// The member that embeds queries.
    pub embedder: String,
}

impl Definition {
    /// The bytes that its digest is of.
    pub fn bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a definition is plain data with text keys")
    }

    /// Reads what [`Definition::bytes`] wrote. Errors, in words, where steps do not read what is above them: it may come from anywhere.
    pub fn read(bytes: &[u8]) -> Result<Self, String> {
        let definition: Self = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        let steps = &definition.pipeline.steps;
        if definition.highroad_pipeline != 1 {
            return Err(format!("highroad_pipeline is {}: this version reads 1", definition.highroad_pipeline));
        }
        if definition.pipeline.output >= steps.len() {
            return Err("its output is none of its steps".to_owned());
        }
        for (step_idx, step) in steps.iter().enumerate() {
            if step.action.reads().iter().any(|&read| read >= step_idx) {
                return Err(format!("step `{}` reads a step that is not above it", step.name));
            }
            if let Action::Search { index, .. } = &step.action
                && !definition.indexes.contains_key(index)
            {
                return Err(format!("step `{}` searches an index that is not named", step.name));
            }
        }
        Ok(definition)
    }
}

impl PipelineRecord {
    /// What a request to the pipeline `name` came to.
    pub(crate) fn of(name: &str, definition: Digest, finished: &Finished) -> Self {
        Self {
            name: name.to_owned(),
            definition,
            steps: finished.steps.iter().map(StepRecord::of).collect(),
            stopped: finished.stopped.as_ref().map(|stopped| stopped.step.clone()),
            streamed: finished.prompt.is_some(),
        }
    }
}

impl StepRecord {
    fn of(report: &StepReport) -> Self {
        let by = report.by.as_ref();
        Self {
            name: report.name.clone(),
            member: by.map(|by| by.member.clone()),
            version: by.map(|by| by.version.clone()),
            package: by.and_then(|by| by.package.parse().ok()),
            evidence: by.map(|by| by.evidence.to_owned()),
            numerics_id: report.asked.as_ref().map(|asked| asked.facts.numerics_id.clone()),
            index: report.index.as_ref().and_then(|digest| digest.parse().ok()),
            outputs: report.asked.as_ref().map(|asked| asked.asked.digests.clone()).unwrap_or_default(),
            value: report.value.digest(),
            fell_back: report.fell_back.is_some(),
            skipped: report.skipped.is_some(),
        }
    }
}
