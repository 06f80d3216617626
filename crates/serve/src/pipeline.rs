//! Pipelines: several members answer one request, each step reading what earlier ones gave.
//!
//! A step names its input by reference (`$input`, `$NAME`), so the references are the graph: steps that do not read each other run at
//! the same time. What a step gives has a kind, checked when the file is read; which member can give it, when members have loaded.

mod config;
mod run;
mod shown;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use highroad_package::TaskKind;

pub use config::PipelineConfig;
pub(crate) use config::{index_configs, pipeline_configs};
pub(crate) use run::Request;
pub use run::{Finished, PipelineError, StepReport, Stopped, Value};

use crate::error::DeployError;
use crate::index::{Index, IndexError};
use crate::portfolio::Served;
use crate::revision::Facts;

/// Where an index is and who embeds the queries to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexConfig {
    /// Its folder.
    pub path: PathBuf,
    /// The member that embeds queries; its package must be the one that embedded the documents.
    pub embedder: String,
}

/// What a step gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A text: the request's input, or one that was generated.
    Text,
    /// A label with its score.
    Label,
    /// A vector.
    Vector,
    /// Documents in an order.
    Documents,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Text => "a text",
            Self::Label => "a label",
            Self::Vector => "a vector",
            Self::Documents => "documents",
        }
    }
}

/// One step.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// Its name, by which later steps refer to it.
    pub name: String,
    /// What it does.
    pub action: Action,
    /// Earlier steps that it waits for though it does not read them, by position.
    pub after: Vec<usize>,
    /// Longest time it may take.
    pub timeout: Option<Duration>,
    /// Who is asked where the member fails.
    pub fallback: Option<String>,
    /// What happens where nobody answers.
    pub on_error: OnError,
}

/// What happens to a request whose step fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnError {
    /// It fails.
    #[default]
    Fail,
    /// It goes on with the documents as the step got them.
    Skip,
}

/// What a step does.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Action {
    /// Puts a label on a text; some labels end the request.
    Classify { member: String, input: Template, stop_when: Vec<String> },
    /// Makes a vector of a text.
    Embed { member: String, input: Template },
    /// Finds documents near a text or a vector.
    Search { index: String, query: Query, top: usize },
    /// Orders documents by how well they answer a text.
    Rerank { member: String, query: Template, documents: usize, top: usize },
    /// Writes a text.
    Generate { member: String, system: Option<String>, prompt: Template, max_tokens: Option<u64> },
}

/// What is sought in an index.
#[derive(Clone, Debug, PartialEq)]
pub enum Query {
    /// A text, embedded by the index's embedder.
    Text(Template),
    /// The vector of an earlier step, by position.
    Vector(usize),
}

/// A text with references in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Literal(String),
    Input,
    /// An earlier step, by position.
    Step(usize),
}

impl Step {
    /// Whether it may end the request.
    fn may_stop(&self) -> bool {
        matches!(&self.action, Action::Classify { stop_when, .. } if !stop_when.is_empty())
    }
}

impl Action {
    fn gives(&self) -> Kind {
        match self {
            Self::Classify { .. } => Kind::Label,
            Self::Embed { .. } => Kind::Vector,
            Self::Search { .. } | Self::Rerank { .. } => Kind::Documents,
            Self::Generate { .. } => Kind::Text,
        }
    }

    fn member(&self) -> Option<&str> {
        match self {
            Self::Classify { member, .. } | Self::Embed { member, .. } | Self::Rerank { member, .. } => Some(member),
            // Of hosted members is known what they are for before they are ready.
            Self::Search { .. } | Self::Generate { .. } => None,
        }
    }

    /// The earlier steps it reads.
    fn reads(&self) -> Vec<usize> {
        match self {
            Self::Classify { input, .. } | Self::Embed { input, .. } => input.reads(),
            Self::Search { query: Query::Text(query), .. } => query.reads(),
            Self::Search { query: Query::Vector(step), .. } => vec![*step],
            Self::Rerank { query, documents, .. } => query.reads().into_iter().chain([*documents]).collect(),
            Self::Generate { prompt, .. } => prompt.reads(),
        }
    }

    fn fits(&self, task: &TaskKind) -> bool {
        match self {
            Self::Classify { .. } => matches!(task, TaskKind::Classify { .. }),
            Self::Embed { .. } => matches!(task, TaskKind::Embed { .. }),
            Self::Rerank { .. } => matches!(task, TaskKind::Rerank),
            Self::Search { .. } | Self::Generate { .. } => true,
        }
    }
}

impl Template {
    fn reads(&self) -> Vec<usize> {
        self.0.iter().filter_map(|piece| if let Piece::Step(step) = piece { Some(*step) } else { None }).collect()
    }
}

/// The pipelines of a portfolio and the indexes they search, all of it in memory.
#[derive(Default)]
pub struct Pipelines {
    pipelines: BTreeMap<String, PipelineConfig>,
    indexes: BTreeMap<String, (IndexConfig, Arc<Index>)>,
}

impl Pipelines {
    /// Reads the indexes, but for those that `before` has as they are on the disk. Blocks for as long as that takes.
    pub fn open(
        pipelines: &BTreeMap<String, PipelineConfig>,
        indexes: &BTreeMap<String, IndexConfig>,
        before: Option<&Self>,
    ) -> Result<Self, IndexError> {
        let open = |(name, config): (&String, &IndexConfig)| {
            let known = before.and_then(|before| before.indexes.get(name)).filter(|(was, _)| was.path == config.path);
            let known = known.filter(|(_, index)| index.is_still_in(&config.path)).map(|(_, index)| Arc::clone(index));
            let index = known.map_or_else(|| Index::open(&config.path).map(Arc::new), Ok)?;
            Ok((name.clone(), (config.clone(), index)))
        };
        Ok(Self { pipelines: pipelines.clone(), indexes: indexes.iter().map(open).collect::<Result<_, IndexError>>()? })
    }

    /// The names of all pipelines.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.pipelines.keys().map(String::as_str)
    }

    /// One of them.
    pub fn get(&self, name: &str) -> Option<&PipelineConfig> {
        self.pipelines.get(name)
    }

    fn index(&self, name: &str) -> Option<&(IndexConfig, Arc<Index>)> {
        self.indexes.get(name)
    }

    /// What keeps a pipeline from answering, now that members have loaded: a member of another task, a label that no classifier gives,
    /// an index whose documents another package embedded.
    pub(crate) fn problems(&self, portfolio: &Served) -> Vec<String> {
        let mut problems = Vec::new();
        for (name, (config, index)) in &self.indexes {
            if let Err(reason) = check_index(name, config, index, portfolio) {
                problems.push(reason);
            }
        }
        for (pipeline, config) in &self.pipelines {
            for step in &config.steps {
                let told = |reason: String| format!("pipeline `{pipeline}`, step `{}`: {reason}", step.name);
                problems.extend(check_step(step, portfolio).into_iter().map(told));
            }
        }
        problems
    }
}

fn check_index(name: &str, config: &IndexConfig, index: &Index, portfolio: &Served) -> Result<(), String> {
    let revision = portfolio.revision(&config.embedder).map_err(|error| format!("index `{name}`: {error}"))?;
    check_package(name, index, revision.facts())
}

/// Vectors of two models are not comparable, however alike they look.
fn check_package(name: &str, index: &Index, serves: &Facts) -> Result<(), String> {
    let built_by = &index.description().embedder;
    if built_by.package == serves.package {
        return Ok(());
    }
    Err(format!(
        "index `{name}` is stale: its documents were embedded by {} ({}), queries would be by {} ({}); `highroad index` builds it anew",
        built_by.name,
        built_by.package.short(),
        serves.version,
        serves.package.short()
    ))
}

fn check_step(step: &Step, portfolio: &Served) -> Vec<String> {
    let mut problems = Vec::new();
    for member in step.action.member().into_iter().chain(step.fallback.as_deref()) {
        // One that is not there or not ready is told by its own status.
        let Ok(revision) = portfolio.revision(member) else { continue };
        let task = &revision.manifest().task.kind;
        if !step.action.fits(task) {
            problems.push(format!("`{member}` is for another task"));
        }
        if let (Action::Classify { stop_when, .. }, TaskKind::Classify { labels, .. }) = (&step.action, task) {
            let unknown = stop_when.iter().filter(|label| !labels.contains(label));
            problems.extend(unknown.map(|label| format!("`{member}` has no label `{label}`")));
        }
    }
    problems
}

impl From<IndexError> for DeployError {
    fn from(error: IndexError) -> Self {
        Self::Index(error)
    }
}
