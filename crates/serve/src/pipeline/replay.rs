//! A request to a pipeline once more, step by step: what each step asks, from what the steps above it gave.
//!
//! It asks nobody itself: who replays has the packages, and takes what they answer from here to the next step.

use highroad_task::{Answer, Input};

use super::run::{Found, ends_at, found, label, reordered, sought, vector};
use super::{Action, Definition, Query, Value};
use crate::index::{Index, SearchError};

/// A replay of one request.
pub struct Replay<'a> {
    definition: &'a Definition,
    input: &'a str,
    values: Vec<Option<Value>>,
}

/// What a step asks.
#[derive(Clone, Debug)]
pub enum Wants {
    /// A package, about these inputs.
    Answers(Vec<Input>),
    /// The named index, for this vector.
    Found {
        /// Its name in the definition.
        index: String,
        /// The query.
        vector: Vec<f32>,
    },
    /// A hosted model.
    Text {
        /// What it is told.
        system: Option<String>,
        /// What it is asked.
        prompt: String,
        /// How long its answer may get.
        max_tokens: Option<u64>,
    },
    /// Nobody: there is nothing to order.
    Nothing,
    /// Nobody, because the step of this name gave nothing here.
    Missing(String),
}

impl<'a> Replay<'a> {
    /// Of a request with the text `input`.
    pub fn new(definition: &'a Definition, input: &'a str) -> Self {
        Self { definition, input, values: vec![None; definition.pipeline.steps.len()] }
    }

    /// What a step asks of whom, once those it reads are put. A search by text asks its embedder first.
    pub fn wants(&self, step_idx: usize) -> Wants {
        self.wanted(step_idx)
            .unwrap_or_else(|missing| Wants::Missing(self.definition.pipeline.steps[missing].name.clone()))
    }

    fn wanted(&self, step_idx: usize) -> Result<Wants, usize> {
        let text = |template: &super::Template| template.text(self.input, |step| self.value(step));
        Ok(match &self.definition.pipeline.steps[step_idx].action {
            Action::Classify { input, .. } => Wants::Answers(vec![Input::Text(text(input)?)]),
            Action::Embed { input, .. } => Wants::Answers(vec![sought(text(input)?)]),
            Action::Search { query: Query::Text(query), .. } => Wants::Answers(vec![sought(text(query)?)]),
            Action::Search { index, query: Query::Vector(step), .. } => match self.value(*step).ok_or(*step)? {
                Value::Vector(vector) => Wants::Found { index: index.clone(), vector: vector.clone() },
                _ => return Err(*step),
            },
            Action::Rerank { query, documents, .. } => {
                let (query, documents) = (text(query)?, self.documents(*documents)?);
                let pair = |found: &Found| Input::Pair { query: query.clone(), document: found.document.text.clone() };
                match documents {
                    [] => Wants::Nothing,
                    documents => Wants::Answers(documents.iter().map(pair).collect()),
                }
            }
            Action::Generate { system, prompt, max_tokens, .. } => {
                Wants::Text { system: system.clone(), prompt: text(prompt)?, max_tokens: *max_tokens }
            }
        })
    }

    /// What a step gives when a package has answered what it wants; a search by text wants its index then.
    pub fn answered(&self, step_idx: usize, answers: &[Answer]) -> Result<Value, Wants> {
        let step = &self.definition.pipeline.steps[step_idx];
        match &step.action {
            _ if answers.is_empty() => Err(Wants::Nothing),
            Action::Classify { .. } => Ok(label(answers)),
            Action::Embed { .. } => Ok(vector(answers)),
            Action::Search { index, .. } => {
                Err(Wants::Found { index: index.clone(), vector: answers[0].values().to_vec() })
            }
            Action::Rerank { documents, top, .. } => match self.documents(*documents) {
                Ok(documents) if documents.len() == answers.len() => {
                    Ok(Value::Documents(reordered(documents, answers, *top)))
                }
                _ => Err(Wants::Nothing),
            },
            Action::Generate { .. } => Err(Wants::Nothing),
        }
    }

    /// What a search gives; `None` where the vector does not fit the index, or the step is none.
    pub fn found(&self, step_idx: usize, index: &Index, vector: &[f32]) -> Result<Option<Value>, SearchError> {
        let top = match &self.definition.pipeline.steps[step_idx].action {
            Action::Search { top, .. } => *top,
            _ => return Ok(None),
        };
        match found(index, vector, top) {
            Ok(found) => Ok(Some(Value::Documents(found))),
            Err(SearchError::Query) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What a reranking gives that was skipped: the documents as they came.
    pub fn skipped(&self, step_idx: usize) -> Option<Value> {
        let Action::Rerank { documents, top, .. } = &self.definition.pipeline.steps[step_idx].action else {
            return None;
        };
        let documents = self.documents(*documents).ok()?;
        Some(Value::Documents(documents.iter().take(*top).cloned().collect()))
    }

    /// Takes what a step gave.
    pub fn put(&mut self, step_idx: usize, value: Value) {
        self.values[step_idx] = Some(value);
    }

    /// What a step gave.
    pub fn value(&self, step_idx: usize) -> Option<&Value> {
        self.values.get(step_idx).and_then(Option::as_ref)
    }

    /// Whether a step's label ends the request.
    pub fn stops(&self, step_idx: usize) -> bool {
        match (&self.definition.pipeline.steps[step_idx].action, self.value(step_idx)) {
            (Action::Classify { stop_when, .. }, Some(Value::Label { label, .. })) => ends_at(stop_when, label),
            _ => false,
        }
    }

    /// The steps that a step reads, by position.
    pub fn reads(&self, step_idx: usize) -> Vec<usize> {
        self.definition.pipeline.steps[step_idx].action.reads()
    }

    fn documents(&self, step_idx: usize) -> Result<&[Found], usize> {
        match self.value(step_idx).ok_or(step_idx)? {
            Value::Documents(documents) => Ok(documents),
            _ => Err(step_idx),
        }
    }
}
