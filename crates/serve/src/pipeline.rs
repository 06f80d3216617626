//! Pipelines: several members answer one request, each step reading what earlier ones gave.
//!
//! A step names its input by reference (`$input`, `$NAME`), so the references are the graph: steps that do not read each other run at
//! the same time. What a step gives has a kind, checked when the file is read; which member can give it, when members have loaded.

mod composition;
mod config;
mod definition;
mod indexes;
mod replay;
mod run;
mod shown;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use highroad_package::{Digest, TaskKind};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use composition::{Composition, Part};
pub use config::PipelineConfig;
pub(crate) use config::{index_configs, pipeline_configs};
pub use definition::{DefinedIndex, Definition};
pub(crate) use indexes::{IndexPlaces, Indexes, Missing};
pub use replay::{Replay, Wants};
pub(crate) use run::Request;
pub use run::{Finished, PipelineError, StepReport, Stopped, Value};
pub(crate) use shown::{IndexShown, PipelineShown};

use crate::error::DeployError;
use crate::index::IndexError;
use crate::index::lance::LanceConfig;
use crate::portfolio::{Portfolio, Served};

/// Where an index is and who embeds the queries to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexConfig {
    /// Its folder.
    pub path: PathBuf,
    /// The member that embeds queries; its package must be the one that embedded the documents.
    pub embedder: String,
    /// How it is searched where it lies in LanceDB; as usual unless told, and nothing may be told of another.
    pub lance: Option<LanceConfig>,
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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "DefinedStep")]
pub struct Step {
    /// Its name, by which later steps refer to it.
    pub name: String,
    /// What it does.
    pub action: Action,
    /// Earlier steps that it waits for though it does not read them, by position.
    pub after: Vec<usize>,
    /// Longest time it may take; no part of what it is.
    #[serde(skip)]
    pub timeout: Option<Duration>,
    /// Who is asked where the member fails.
    pub fallback: Option<String>,
    /// What happens where nobody answers.
    pub on_error: OnError,
}

/// What happens to a request whose step fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnError {
    /// It fails.
    #[default]
    Fail,
    /// It goes on with the documents as the step got them.
    Skip,
}

/// What a step does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "SearchQuery")]
pub enum Query {
    /// A text, embedded by the index's embedder.
    Text(Template),
    /// The vector of an earlier step, by position.
    Vector(usize),
}

/// A text with references in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Template(Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
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

    /// Most documents that it gives.
    fn most(&self) -> usize {
        match self {
            Self::Search { top, .. } | Self::Rerank { top, .. } => *top,
            Self::Classify { .. } | Self::Embed { .. } | Self::Generate { .. } => 0,
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

    /// Bytes of what it says whatever it reads.
    fn least_bytes(&self) -> usize {
        let literal = |piece: &Piece| if let Piece::Literal(text) = piece { text.len() } else { 0 };
        self.0.iter().map(literal).sum()
    }

    /// The text, where `value` gives what the steps it reads gave; the first of them that gave nothing where one did not.
    fn text<'a>(&self, input: &str, value: impl Fn(usize) -> Option<&'a Value>) -> Result<String, usize> {
        let mut text = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Literal(literal) => text.push_str(literal),
                Piece::Input => text.push_str(input),
                Piece::Step(step) => value(*step).ok_or(*step)?.write(&mut text),
            }
        }
        Ok(text)
    }
}

/// The pipelines of a portfolio, and who embeds the queries to the indexes that they search.
#[derive(Default)]
pub struct Pipelines {
    pipelines: BTreeMap<String, PipelineConfig>,
    indexes: BTreeMap<String, IndexConfig>,
    /// The definitions that are on the disk.
    kept: Mutex<BTreeSet<Digest>>,
}

impl Pipelines {
    /// Those of a configuration.
    pub fn new(pipelines: BTreeMap<String, PipelineConfig>, indexes: BTreeMap<String, IndexConfig>) -> Self {
        Self { pipelines, indexes, kept: Mutex::default() }
    }

    /// What the pipeline `name` is, where `digest_of` gives the digest of the index that a step searches; nothing where it gives none.
    pub fn definition(&self, name: &str, digest_of: impl Fn(&Step, &str) -> Option<Digest>) -> Option<Definition> {
        let pipeline = self.pipelines.get(name)?.clone();
        let searched = pipeline.steps.iter().filter_map(|step| match &step.action {
            Action::Search { index, .. } => Some((step, index)),
            _ => None,
        });
        let defined = |(step, index): (&Step, &String)| {
            let digest = digest_of(step, index)?;
            Some((index.clone(), DefinedIndex { digest, embedder: self.indexes.get(index)?.embedder.clone() }))
        };
        let indexes = searched.map(defined).collect::<Option<_>>()?;
        Some(Definition { highroad_pipeline: 1, name: name.to_owned(), pipeline, indexes })
    }

    /// Digest of the [`Definition`] of `name` with the indexes that a request searched, which is kept for replays. A disk that takes nothing
    /// stops no answer: only replays miss it.
    pub(crate) fn kept(&self, name: &str, finished: &Finished, portfolio: &Portfolio) -> Option<Digest> {
        let searched = |step: &Step, index: &str| {
            let report = finished.steps.iter().find(|report| report.name == step.name);
            let digest = report.and_then(|report| report.index.as_ref()?.parse().ok());
            // A step that did not run would have searched what its embedder has now.
            digest.or_else(|| Some(portfolio.embedded_by(self.embedder(index))?.indexes().get(index)?.digest()))
        };
        let bytes = self.definition(name, searched)?.bytes();
        let digest = Digest::of(&bytes);
        let is_new = self.kept.lock().unwrap_or_else(PoisonError::into_inner).insert(digest);
        if is_new && let Err(error) = portfolio.definitions().keep(&bytes) {
            tracing::warn!("Cannot keep the pipeline `{name}` for replays: {error}");
        }
        Some(digest)
    }

    /// The names of all pipelines.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.pipelines.keys().map(String::as_str)
    }

    /// One of them.
    pub fn get(&self, name: &str) -> Option<&PipelineConfig> {
        self.pipelines.get(name)
    }

    /// The member that embeds queries to an index.
    fn embedder(&self, index: &str) -> &str {
        &self.indexes.get(index).expect("the configuration names only indexes that it has").embedder
    }

    /// What keeps a pipeline from answering, now that members have loaded: a member of another task, a label that no classifier gives.
    pub(crate) fn problems(&self, portfolio: &Served) -> Vec<String> {
        let mut problems = Vec::new();
        for (pipeline, config) in &self.pipelines {
            for step in &config.steps {
                let told = |reason: String| format!("pipeline `{pipeline}`, step `{}`: {reason}", step.name);
                problems.extend(check_step(step, portfolio).into_iter().map(told));
            }
        }
        problems
    }
}

fn check_step(step: &Step, portfolio: &Served) -> Vec<String> {
    let mut problems = Vec::new();
    for member in step.action.member().into_iter().chain(step.fallback.as_deref()) {
        // One that is not there or not ready is told by its own status.
        let Ok(revision) = portfolio.revision(member) else { continue };
        let task = &revision.manifest().task.kind;
        if !step.action.fits(task) {
            problems.push(format!("`{member}` is for another task"));
        } else if revision.manifest().task.image.is_some() {
            problems.push(format!("`{member}` takes pictures, and a step gives it a text"));
        } else if matches!(task, TaskKind::Classify { pairs: true, .. }) {
            problems.push(format!("`{member}` takes pairs of texts, and a step gives it one"));
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
