//! One request through a pipeline.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::HeaderMap;
use futures_util::future::try_join_all;
use highroad_package::Digest;
use highroad_service::Problem;
use highroad_service::trace::{Side, Span};
use highroad_task::{Answer, Input, Prompt, Purpose, apart, ranked};
use schemars::JsonSchema;
use serde::Serialize;
use tokio::sync::SetOnce;

use super::indexes::stale;
use super::{Action, Indexes, OnError, PipelineConfig, Pipelines, Query, Step, Template};
use crate::alerts::watch;
use crate::error::AskError;
use crate::hosted::{Declined, Generation, Text};
use crate::index::{Document, Index, SearchError};
use crate::portfolio::Portfolio;
use crate::request_log::RequestLog;
use crate::revision::{Asked, Facts, Revision, Terms};
use crate::rollout::{Key, Served};
use crate::traffic;

/// What a step gave.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "StepValue")]
pub enum Value {
    /// A text that was generated.
    Text(String),
    /// A label.
    Label {
        /// The label with the highest score.
        label: String,
        /// Its score, from 0 to 1.
        score: f32,
    },
    /// A vector.
    Vector(Vec<f32>),
    /// Documents, best first.
    Documents(Vec<Found>),
}

/// A document and how well it fits.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(rename = "FoundDocument")]
pub struct Found {
    /// How well: a cosine after a search, a relevance from 0 to 1 after a reranking.
    pub score: f32,
    #[serde(flatten)]
    pub(super) document: Arc<Document>,
}

impl Found {
    /// The document's name.
    pub fn id(&self) -> &str {
        &self.document.id
    }
}

/// An answered request.
#[derive(Debug)]
pub struct Finished {
    /// The output step's value; absent where a step ended the request.
    pub output: Option<Value>,
    /// Which step ended it, and by which label.
    pub stopped: Option<Stopped>,
    /// What each step that ran did, in the pipeline's order.
    pub steps: Vec<StepReport>,
    /// What the last step is to be asked, where it was left out to come in events.
    pub prompt: Option<String>,
}

/// A label that ended a request.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Stopped {
    /// The step.
    pub step: String,
    /// Its label.
    pub label: String,
    /// The label's score.
    pub score: f32,
}

/// What a step did.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct StepReport {
    /// Its name.
    pub name: String,
    /// Who answered; the index's embedder for a search.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<Origin>,
    /// Digest of the index that was searched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<String>,
    /// Why the member first asked did not answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fell_back: Option<String>,
    /// Why the step was skipped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skipped: Option<String>,
    /// Inputs that were longer than the member takes and were cut.
    #[serde(skip_serializing_if = "is_zero")]
    pub n_truncated: usize,
    /// From the last value it waited for to its own, in milliseconds.
    pub duration_ms: f64,
    /// What it gave.
    #[serde(skip)]
    pub value: Value,
    /// For the request log: the answers' digests and the tokens read.
    #[serde(skip)]
    pub asked: Option<AskedFacts>,
}

/// Where a step's answer comes from.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(rename = "StepOrigin")]
pub struct Origin {
    /// The member.
    pub member: String,
    /// Its version.
    pub version: String,
    /// Its package.
    pub package: String,
    /// The evidence behind it.
    pub evidence: &'static str,
}

/// What the request log keeps of a step.
#[derive(Clone, Debug)]
pub struct AskedFacts {
    /// Where the answers come from.
    pub facts: Facts,
    /// Digest, tokens and times of the answers, without the answers.
    pub asked: Arc<Asked<Vec<Answer>>>,
    /// The indexes by the package that answered.
    pub(crate) indexes: Indexes,
}

/// A request to a pipeline.
pub(crate) struct Request<'a> {
    pub portfolio: &'a Arc<Portfolio>,
    pub log: &'a RequestLog,
    /// The pipeline's name.
    pub pipeline: &'a str,
    pub input: &'a str,
    /// Decides on which side of a rollout it falls.
    pub key: &'a Key,
    /// Whether a last step that generates is left to [`Pipelines::events`].
    pub streams: bool,
}

/// Why a pipeline did not answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum PipelineError {
    #[error("step `{step}`: {source}")]
    Ask { step: String, source: AskError },
    #[error("step `{step}`: {reason}")]
    Stale { step: String, reason: String },
    #[error("step `{step}`: {source}")]
    Search { step: String, source: SearchError },
    #[error("step `{step}`: {}", problem.message)]
    Hosted { step: String, problem: Problem },
    #[error("step `{step}` took longer than {limit:?}")]
    StepTimeout { step: String, limit: Duration },
    #[error("the pipeline took longer than {limit:?}")]
    Timeout { limit: Duration },
}

impl PipelineError {
    /// The problem in no protocol's words.
    pub fn problem(&self) -> Problem {
        let kind = match self {
            Self::Ask { source, .. } => {
                let problem = source.problem();
                return Problem { message: self.to_string(), ..problem };
            }
            Self::Hosted { problem, .. } => return Problem { message: self.to_string(), ..problem.clone() },
            Self::Stale { .. } | Self::Search { .. } | Self::StepTimeout { .. } | Self::Timeout { .. } => {
                highroad_service::Kind::Unavailable
            }
        };
        Problem::new(kind, self.to_string())
    }
}

/// Why a step's future ended early.
enum Early {
    Stopped(Stopped),
    Failed(PipelineError),
}

struct Run<'a> {
    pipelines: &'a Pipelines,
    config: &'a PipelineConfig,
    request: &'a Request<'a>,
    done: Vec<SetOnce<StepReport>>,
}

impl Pipelines {
    /// Sends a request through a pipeline of this set. Steps run as soon as what they read is there; a label that ends the request and
    /// an error drop what still runs. Members in a rollout answer as the request's key decides.
    pub(crate) async fn run(&self, config: &PipelineConfig, request: &Request<'_>) -> Result<Finished, PipelineError> {
        let run = Run { pipelines: self, config, request, done: config.steps.iter().map(|_| SetOnce::new()).collect() };
        let all = (0..config.steps.len()).filter(|&step_idx| !run.is_left(step_idx));
        let steps = try_join_all(all.map(|step_idx| run.step(step_idx)));
        let ended = match tokio::time::timeout(config.timeout, steps).await {
            Ok(ended) => ended,
            Err(_) => return Err(PipelineError::Timeout { limit: config.timeout }),
        };
        let stopped = match ended {
            Ok(_) => None,
            Err(Early::Stopped(stopped)) => Some(stopped),
            Err(Early::Failed(error)) => return Err(error),
        };
        let output = run.done[config.output].get().map(|report| report.value.clone()).filter(|_| stopped.is_none());
        let prompt = match &config.steps[config.output].action {
            Action::Generate { prompt, .. } if request.streams && stopped.is_none() => Some(run.text(prompt)),
            _ => None,
        };
        let steps = run.done.into_iter().filter_map(SetOnce::into_inner).collect();
        Ok(Finished { output, stopped, steps, prompt })
    }

    /// The last step's text as it comes, after [`Pipelines::run`] has left it out and given its prompt.
    pub(crate) async fn events(
        &self,
        config: &PipelineConfig,
        request: &Request<'_>,
        prompt: &str,
    ) -> Result<(HeaderMap, Body), PipelineError> {
        let step = &config.steps[config.output];
        let Action::Generate { member, system, max_tokens, .. } = &step.action else {
            let problem = Problem::internal(&"only what is generated comes in events");
            return Err(PipelineError::Hosted { step: step.name.clone(), problem });
        };
        let generation = request.generation(step, member, system.as_deref(), prompt, *max_tokens);
        let failed = |declined: Declined| PipelineError::Hosted { step: step.name.clone(), problem: declined.problem };
        generation.events().await.map_err(failed)
    }
}

impl Request<'_> {
    fn generation<'a>(
        &'a self,
        step: &'a Step,
        member: &'a str,
        system: Option<&'a str>,
        prompt: &'a str,
        max_tokens: Option<u64>,
    ) -> Generation<'a> {
        let Self { portfolio, log, pipeline, key, .. } = self;
        Generation { portfolio, log, pipeline, step: &step.name, key, member, system, prompt, max_tokens }
    }
}

/// What a step found out, before it is timed and told.
struct Outcome {
    value: Value,
    by: Option<AskedFacts>,
    /// Who answered, where it is a host, whose answers have their own records.
    host: Option<Origin>,
    index: Option<String>,
    fell_back: Option<String>,
    skipped: Option<String>,
}

impl Run<'_> {
    /// Whether a step is left to [`Pipelines::events`].
    fn is_left(&self, step_idx: usize) -> bool {
        let generates = matches!(self.config.steps[step_idx].action, Action::Generate { .. });
        self.request.streams && generates && step_idx == self.config.output
    }

    async fn step(&self, step_idx: usize) -> Result<(), Early> {
        let step = &self.config.steps[step_idx];
        for earlier in step.action.reads().into_iter().chain(step.after.iter().copied()) {
            self.done[earlier].wait().await;
        }
        let begun = Instant::now();
        let limit = step.timeout.unwrap_or(self.config.timeout);
        let span = Span::within(|| format!("step {}", step.name), Side::Internal);
        let outcome = match tokio::time::timeout(limit, span.scope(self.answer(step))).await {
            Ok(outcome) => outcome,
            Err(_) => Err(PipelineError::StepTimeout { step: step.name.clone(), limit }),
        };
        if outcome.is_err() {
            span.failed("failed");
        }
        drop(span);
        let outcome = outcome.or_else(|error| self.skip(step, error)).map_err(Early::Failed)?;
        let report = StepReport {
            name: step.name.clone(),
            by: outcome.host.or_else(|| outcome.by.as_ref().map(|asked| Origin::of(&asked.facts))),
            index: outcome.index,
            fell_back: outcome.fell_back,
            skipped: outcome.skipped,
            n_truncated: outcome.by.as_ref().map_or(0, |asked| asked.asked.n_truncated),
            duration_ms: (begun.elapsed().as_secs_f64() * 1e6).round() / 1e3,
            asked: outcome.by,
            value: outcome.value.clone(),
        };
        // Each step has a future of its own, so nobody set it before.
        let _first = self.done[step_idx].set(report);
        match (&step.action, outcome.value) {
            (Action::Classify { stop_when, .. }, Value::Label { label, score }) if ends_at(stop_when, &label) => {
                Err(Early::Stopped(Stopped { step: step.name.clone(), label, score }))
            }
            _ => Ok(()),
        }
    }

    /// The documents as they came, where the step may be skipped.
    fn skip(&self, step: &Step, error: PipelineError) -> Result<Outcome, PipelineError> {
        match (&step.action, step.on_error) {
            (Action::Rerank { documents, top, .. }, OnError::Skip) => {
                let mut documents = self.documents(*documents);
                documents.truncate(*top);
                let (value, skipped) = (Value::Documents(documents), Some(error.to_string()));
                Ok(Outcome { skipped, ..Outcome::of(value) })
            }
            _ => Err(error),
        }
    }

    async fn answer(&self, step: &Step) -> Result<Outcome, PipelineError> {
        match &step.action {
            Action::Classify { member, input, .. } => {
                let asked = self.ask(step, member, vec![Input::Text(self.text(input))]).await?;
                Ok(asked.outcome(label))
            }
            // Vectors of a step are for searches.
            Action::Embed { member, input } => {
                let asked = self.ask(step, member, vec![sought(self.text(input))]).await?;
                Ok(asked.outcome(vector))
            }
            Action::Search { index, query, top } => self.search(step, index, query, *top).await,
            Action::Rerank { member, query, documents, top } => {
                let (query, documents) = (self.text(query), self.documents(*documents));
                if documents.is_empty() {
                    return Ok(Outcome::of(Value::Documents(documents)));
                }
                let pair = |found: &Found| Input::Pair { query: query.clone(), document: found.document.text.clone() };
                let asked = self.ask(step, member, documents.iter().map(pair).collect()).await?;
                Ok(asked.outcome(|answers| Value::Documents(reordered(&documents, answers, *top))))
            }
            Action::Generate { member, system, prompt, max_tokens } => {
                let prompt = self.text(prompt);
                let generation = self.request.generation(step, member, system.as_deref(), &prompt, *max_tokens);
                let failed =
                    |declined: Declined| PipelineError::Hosted { step: step.name.clone(), problem: declined.problem };
                let Text { text, facts, passed } = generation.text().await.map_err(failed)?;
                let fell_back = (!passed.is_empty()).then(|| passed.join(", "));
                Ok(Outcome { host: Some(Origin::of(&facts)), fell_back, ..Outcome::of(Value::Text(text)) })
            }
        }
    }

    async fn search(&self, step: &Step, name: &str, query: &Query, top: usize) -> Result<Outcome, PipelineError> {
        let fail = |reason| PipelineError::Stale { step: step.name.clone(), reason };
        let (vector, by, asked) = match query {
            Query::Vector(earlier) => {
                let report = self.done[*earlier].get().expect("a step waits for what it reads");
                let Value::Vector(vector) = &report.value else { return Err(fail("there is no vector".to_owned())) };
                (vector.clone(), None, report.asked.clone())
            }
            Query::Text(text) => {
                let embedder = self.pipelines.embedder(name);
                let asked = self.ask_stable(embedder, vec![sought(self.text(text))]).await;
                let asked = asked.map_err(|source| PipelineError::Ask { step: step.name.clone(), source })?;
                let vector = only(&asked.answers).values().to_vec();
                (vector, Some(asked.facts.clone()), Some(asked.facts))
            }
        };
        let asked = asked.ok_or_else(|| fail("nothing says which package made the vector".to_owned()))?;
        // The index that came with the revision that answered: of whatever package the member is by now, these two fit.
        let Some(index) = asked.indexes.get(name).cloned() else { return Err(fail(self.stale(name, &asked.facts))) };
        let digest = index.digest().to_string();
        let found = find(index, vector, top).await.map_err(|source| match source {
            SearchError::Query => fail(format!("the query's vector does not fit the index `{name}`")),
            source => PipelineError::Search { step: step.name.clone(), source },
        })?;
        Ok(Outcome { by, index: Some(digest), ..Outcome::of(Value::Documents(found)) })
    }

    /// Why there is no index for a vector of whoever answered.
    fn stale(&self, name: &str, answered: &Facts) -> String {
        let revision = self.request.portfolio.revision(self.pipelines.embedder(name));
        let index = revision.ok().and_then(|revision| revision.indexes().get(name).cloned());
        match index {
            Some(index) => {
                let by = &index.description().embedder;
                stale(name, (&by.name, by.package), (&answered.version, answered.package))
            }
            None => format!("the index `{name}` is not there"),
        }
    }

    /// Asks what serves, past any rollout: a candidate's vectors do not fit the index.
    async fn ask_stable(&self, member: &str, inputs: Vec<Input>) -> Result<StepAnswer, AskError> {
        let revision = self.request.portfolio.revision(member)?;
        let begun = Instant::now();
        let asked = revision.ask(inputs, &self.request.portfolio.limits(), Terms::default()).await;
        watched(member, &asked, begun);
        Ok(StepAnswer::of(&revision, asked?))
    }

    /// Asks `member`, and where it fails the step's fallback.
    async fn ask(&self, step: &Step, member: &str, inputs: Vec<Input>) -> Result<StepAnswer, PipelineError> {
        let fail = |source| PipelineError::Ask { step: step.name.clone(), source };
        let Some(fallback) = &step.fallback else { return self.ask_one(member, inputs).await.map_err(fail) };
        match self.ask_one(member, inputs.clone()).await {
            Ok(asked) => Ok(asked),
            // What the request itself is to blame for would fail there too.
            Err(error @ (AskError::Input { .. } | AskError::Limit { .. } | AskError::Tensors { .. })) => {
                Err(fail(error))
            }
            Err(error) => {
                let asked = self.ask_one(fallback, inputs).await.map_err(fail)?;
                Ok(StepAnswer { fell_back: Some(error.to_string()), ..asked })
            }
        }
    }

    async fn ask_one(&self, member: &str, inputs: Vec<Input>) -> Result<StepAnswer, AskError> {
        let assigned = self.request.portfolio.assign(member, self.request.key)?;
        let Served { revision, result, begun, .. } =
            assigned.ask(inputs, &self.request.portfolio.limits(), Terms::default()).await;
        watched(member, &result, begun);
        Ok(StepAnswer::of(&revision, result?))
    }

    fn value(&self, step_idx: usize) -> &Value {
        &self.done[step_idx].get().expect("a step waits for what it reads").value
    }

    fn documents(&self, step_idx: usize) -> Vec<Found> {
        match self.value(step_idx) {
            Value::Documents(documents) => documents.clone(),
            _ => Vec::new(),
        }
    }

    fn text(&self, template: &Template) -> String {
        template.text(self.request.input, |step| Some(self.value(step))).expect("a step waits for what it reads")
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(n: &usize) -> bool {
    *n == 0
}

struct StepAnswer {
    answers: Vec<Answer>,
    facts: AskedFacts,
    fell_back: Option<String>,
}

impl StepAnswer {
    fn of(revision: &Revision, mut asked: Asked<Vec<Answer>>) -> Self {
        let answers = std::mem::take(&mut asked.answers);
        let asked = Arc::new(asked);
        let facts = AskedFacts { facts: revision.facts().clone(), asked, indexes: Arc::clone(revision.indexes()) };
        Self { answers, facts, fell_back: None }
    }

    fn outcome(self, value: impl FnOnce(&[Answer]) -> Value) -> Outcome {
        let value = value(&self.answers);
        Outcome { by: Some(self.facts), fell_back: self.fell_back, ..Outcome::of(value) }
    }
}

impl Outcome {
    fn of(value: Value) -> Self {
        Self { value, by: None, host: None, index: None, fell_back: None, skipped: None }
    }
}

impl Origin {
    fn of(facts: &Facts) -> Self {
        let Facts { member, version, package, evidence, .. } = facts;
        Self { member: member.clone(), version: version.clone(), package: package.to_string(), evidence }
    }
}

impl Value {
    /// In a text: documents one after the other, numbered, as generators are used to.
    pub(super) fn write(&self, text: &mut String) {
        match self {
            Self::Text(generated) => text.push_str(generated),
            Self::Label { label, .. } => text.push_str(label),
            Self::Documents(documents) => {
                for (document_idx, found) in documents.iter().enumerate() {
                    let separator = if document_idx == 0 { "" } else { "\n\n" };
                    let _written = write!(text, "{separator}[{}] {}", document_idx + 1, found.document.text);
                }
            }
            Self::Vector(_) => {}
        }
    }

    /// SHA-256 of what it says, the bits of its scores included: of a text, of a vector as little-endian f32, of a label and
    /// its score, of the names of documents in their order, each with its score. What documents say is told by their index.
    pub fn digest(&self) -> Digest {
        match self {
            Self::Text(text) => Digest::of(text.as_bytes()),
            Self::Vector(vector) => {
                Digest::of(&vector.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>())
            }
            Self::Label { label, score } => Digest::of(&[&score.to_le_bytes(), label.as_bytes()].concat()),
            Self::Documents(documents) => {
                let named: Vec<(&str, u32)> =
                    documents.iter().map(|found| (found.document.id.as_str(), found.score.to_bits())).collect();
                Digest::of(&serde_json::to_vec(&named).expect("names and numbers are JSON"))
            }
        }
    }
}

/// A text that documents are found by.
pub(super) fn sought(text: String) -> Input {
    Input::Prompted { text, prompt: Prompt::For(Purpose::Query) }
}

/// The first of `answers`, where one input was asked about.
pub(super) fn vector(answers: &[Answer]) -> Value {
    Value::Vector(only(answers).values().to_vec())
}

fn only(answers: &[Answer]) -> &Answer {
    answers.first().expect("one input has one answer")
}

/// The label of the one input that was asked about.
pub(super) fn label(answers: &[Answer]) -> Value {
    let answer = only(answers);
    match answer.label() {
        Some(label) => {
            let score = answer.values().iter().copied().fold(0.0, f32::max);
            Value::Label { label: label.into_owned(), score }
        }
        // Members may be promoted to another task after the file was checked.
        None => Value::Label { label: String::new(), score: 0.0 },
    }
}

/// Whether a step's label, or one of several that hold at once, is one that ends the request.
pub(super) fn ends_at(stop_when: &[String], label: &str) -> bool {
    stop_when.iter().any(|end| end == label || apart(label).contains(end))
}

/// The best of `documents`, in the order of `answers`.
pub(super) fn reordered(documents: &[Found], answers: &[Answer], top: usize) -> Vec<Found> {
    let best = ranked(answers).into_iter().take(top);
    best.map(|best| Found { score: best.score, document: Arc::clone(&documents[best.index].document) }).collect()
}

/// Counts a step's answer for who gave it, and for their objectives.
fn watched<A>(member: &str, result: &Result<Asked<A>, AskError>, begun: Instant) {
    let took = begun.elapsed();
    match result {
        Ok(_) => {
            watch::member(member, "ok", took);
            traffic::count(member, "ok", Some(took));
        }
        Err(error) => {
            watch::refused(Some(member), error);
            traffic::count(member, error.outcome(), None);
        }
    }
}

async fn find(index: Arc<Index>, vector: Vec<f32>, top: usize) -> Result<Vec<Found>, SearchError> {
    let place = index.place()?;
    let blocks = index.blocks();
    let search = move || {
        let found = found(&index, &vector, top);
        // Held until it is over, also where nobody waits for it any more.
        drop(place);
        found
    };
    if !blocks {
        return search();
    }
    let panicked = || SearchError::Wrong("the search panicked".to_owned());
    tokio::task::spawn_blocking(search).await.unwrap_or_else(|_| Err(panicked()))
}

/// The documents of `index` nearest to `vector`.
pub(super) fn found(index: &Index, vector: &[f32], top: usize) -> Result<Vec<Found>, SearchError> {
    let nearest = index.find(vector, top)?.into_iter();
    Ok(nearest.map(|nearest| Found { score: nearest.score, document: nearest.document }).collect())
}
