//! Pipelines and indexes as a page draws them. Of a step its shape is told, never the texts of its templates.

use std::collections::{BTreeMap, BTreeSet};

use highroad_service::access::Principal;
use serde_json::{Value, json};

use super::{Action, OnError, PipelineConfig, Pipelines, Step};
use crate::overview::of_pipeline;
use crate::pipeline::IndexConfig;
use crate::portfolio::Portfolio;
use crate::traffic;

impl Pipelines {
    /// The pipelines that the request's key may ask, and the indexes that they search or whose embedder it may ask.
    pub(crate) fn shown(&self, portfolio: &Portfolio) -> (Vec<Value>, Vec<Value>) {
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

fn pipeline(name: &str, config: &PipelineConfig) -> Value {
    let steps: Vec<Value> = config.steps.iter().map(|each| step(each, &config.steps)).collect();
    json!({
        "name": name,
        "timeout_ms": config.timeout.as_millis() as u64,
        "output": config.steps.get(config.output).map(|step| &step.name),
        "steps": steps,
        "traffic": traffic::of(&of_pipeline(name)),
    })
}

fn step(step: &Step, all: &[Step]) -> Value {
    let names = |steps: Vec<usize>| -> BTreeSet<&str> {
        steps.into_iter().filter_map(|idx| Some(all.get(idx)?.name.as_str())).collect()
    };
    let reads = names(step.action.reads());
    let mut after = names(step.after.clone());
    after.retain(|name| !reads.contains(name));
    let (top, stop_when) = match &step.action {
        Action::Search { top, .. } | Action::Rerank { top, .. } => (Some(*top), Vec::new()),
        Action::Classify { stop_when, .. } => (None, stop_when.clone()),
        Action::Embed { .. } | Action::Generate { .. } => (None, Vec::new()),
    };
    json!({
        "name": step.name, "does": step.action.name(), "by": step.action.by(),
        "reads": reads, "after": after, "top": top, "stop_when": stop_when,
        "fallback": step.fallback, "skips": step.on_error == OnError::Skip,
        "timeout_ms": step.timeout.map(|timeout| timeout.as_millis() as u64),
    })
}

/// Nothing where the embedder does not serve, which its own status tells.
fn shown_index(name: &str, config: &IndexConfig, portfolio: &Portfolio) -> Option<Value> {
    // Whether it fits is nothing that a key has to be allowed to see.
    let revision = portfolio.embedded_by(&config.embedder)?;
    let index = revision.indexes().get(name)?;
    let description = index.description();
    // The embedder would move on, and this index has no build by what it would be.
    let failure = portfolio.failure_of(&config.embedder);
    let stale = failure.filter(|reason| reason.starts_with(&format!("index `{name}` is stale")));
    Some(json!({
        "name": name, "embedder": config.embedder, "n_documents": description.n_documents,
        "dimensions": description.dimensions, "package": description.embedder.package, "digest": index.digest(),
        "stale": stale,
    }))
}
