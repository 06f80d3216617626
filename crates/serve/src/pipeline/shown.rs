//! Pipelines and indexes as a page draws them. Of a step its shape is told, never the texts of its templates.

use std::collections::{BTreeMap, BTreeSet};

use highroad_package::Digest;
use highroad_service::access::Principal;
use schemars::JsonSchema;
use serde::Serialize;

use super::{Action, OnError, PipelineConfig, Pipelines, Step};
use crate::overview::of_pipeline;
use crate::pipeline::IndexConfig;
use crate::portfolio::Portfolio;
use crate::traffic;

impl Pipelines {
    /// The pipelines that the request's key may ask, and the indexes that they search or whose embedder it may ask.
    pub(crate) fn shown(&self, portfolio: &Portfolio) -> (Vec<PipelineShown>, Vec<IndexShown>) {
        let allowed: BTreeMap<_, _> =
            self.pipelines.iter().filter(|(name, _)| Principal::current_may_ask(name)).collect();
        let searched: BTreeSet<&str> =
            allowed.values().flat_map(|pipeline| &pipeline.steps).filter_map(|step| step.action.index()).collect();
        let indexes = self
            .indexes
            .iter()
            .filter(|(name, config)| searched.contains(name.as_str()) || Principal::current_may_ask(&config.embedder));
        (
            allowed.into_iter().map(|(name, config)| pipeline(name, config)).collect(),
            indexes.filter_map(|(name, config)| shown_index(name, config, portfolio)).collect(),
        )
    }
}

impl Action {
    /// One word, as the file has it.
    fn name(&self) -> &'static str {
        match self {
            Self::Classify { .. } => "classify",
            Self::Embed { .. } => "embed",
            Self::Search { .. } => "search",
            Self::Rerank { .. } => "rerank",
            Self::Generate { .. } => "generate",
        }
    }

    /// The member or index that does it.
    fn by(&self) -> &str {
        match self {
            Self::Classify { member, .. }
            | Self::Embed { member, .. }
            | Self::Rerank { member, .. }
            | Self::Generate { member, .. } => member,
            Self::Search { index, .. } => index,
        }
    }

    fn index(&self) -> Option<&str> {
        match self {
            Self::Search { index, .. } => Some(index),
            _ => None,
        }
    }
}

/// A pipeline as a graph.
#[derive(Serialize, JsonSchema)]
pub(crate) struct PipelineShown {
    name: String,
    timeout_ms: u64,
    /// The step whose value is the answer.
    output: Option<String>,
    steps: Vec<StepShown>,
    traffic: traffic::Traffic,
}

/// A step of it.
#[derive(Serialize, JsonSchema)]
struct StepShown {
    name: String,
    /// `classify`, `embed`, `search`, `rerank` or `generate`
    does: &'static str,
    /// The member or the index that does it.
    by: String,
    /// Steps whose values it reads.
    reads: BTreeSet<String>,
    /// Steps that it waits for though it does not read them.
    after: BTreeSet<String>,
    /// Most documents that it gives.
    top: Option<usize>,
    /// Labels that end the request.
    stop_when: Vec<String>,
    /// Who is asked where the member fails.
    fallback: Option<String>,
    /// Whether it is skipped where nobody answers.
    skips: bool,
    timeout_ms: Option<u64>,
}

/// An index.
#[derive(Serialize, JsonSchema)]
pub(crate) struct IndexShown {
    name: String,
    /// The member that embeds queries.
    embedder: String,
    n_documents: usize,
    dimensions: usize,
    /// The package that made its vectors.
    package: Digest,
    /// Of its description.
    digest: Digest,
    /// Why it keeps its embedder from moving on, where it does.
    stale: Option<String>,
}

fn pipeline(name: &str, config: &PipelineConfig) -> PipelineShown {
    PipelineShown {
        name: name.to_owned(),
        timeout_ms: config.timeout.as_millis() as u64,
        output: config.steps.get(config.output).map(|step| step.name.clone()),
        steps: config.steps.iter().map(|each| step(each, &config.steps)).collect(),
        traffic: traffic::of(&of_pipeline(name)),
    }
}

fn step(step: &Step, all: &[Step]) -> StepShown {
    let names = |steps: Vec<usize>| -> BTreeSet<String> {
        steps.into_iter().filter_map(|idx| Some(all.get(idx)?.name.clone())).collect()
    };
    let reads = names(step.action.reads());
    let mut after = names(step.after.clone());
    after.retain(|name| !reads.contains(name));
    let (top, stop_when) = match &step.action {
        Action::Search { top, .. } | Action::Rerank { top, .. } => (Some(*top), Vec::new()),
        Action::Classify { stop_when, .. } => (None, stop_when.clone()),
        Action::Embed { .. } | Action::Generate { .. } => (None, Vec::new()),
    };
    StepShown {
        name: step.name.clone(),
        does: step.action.name(),
        by: step.action.by().to_owned(),
        reads,
        after,
        top,
        stop_when,
        fallback: step.fallback.clone(),
        skips: step.on_error == OnError::Skip,
        timeout_ms: step.timeout.map(|timeout| timeout.as_millis() as u64),
    }
}

/// Nothing where the embedder does not serve, which its own status tells.
fn shown_index(name: &str, config: &IndexConfig, portfolio: &Portfolio) -> Option<IndexShown> {
    // Whether it fits is nothing that a key has to be allowed to see.
    let revision = portfolio.embedded_by(&config.embedder)?;
    let index = revision.indexes().get(name)?;
    let description = index.description();
    // The embedder would move on, and this index has no build by what it would be.
    let failure = portfolio.failure_of(&config.embedder);
    let stale = failure.filter(|reason| reason.starts_with(&format!("index `{name}` is stale")));
    Some(IndexShown {
        name: name.to_owned(),
        embedder: config.embedder.clone(),
        n_documents: description.n_documents,
        dimensions: description.dimensions,
        package: description.embedder.package,
        digest: index.digest(),
        stale,
    })
}
