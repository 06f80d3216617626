//! A served answer computed again: whether it has the same bits, and what stands behind it.

use std::collections::BTreeMap;

use highroad_eval::Verdict;
use highroad_package::{Digest, Manifest, Provenance, TaskKind};
use highroad_service::Problem;
use highroad_task::raw::{RunOptions, row_major_bytes, tensors_digest};
use highroad_task::{Answer, Predictor};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Value, json};

use crate::case;
use crate::protocol::oip::Query;
use crate::request_log::Record;

/// What one package answers to a case, each input alone.
#[derive(Clone, Debug, PartialEq)]
pub struct Answers {
    /// What decided the bits.
    pub numerics_id: String,
    /// The digest of each answer and the answer; of program tensors one digest over all, and their shapes.
    pub rows: Vec<(Digest, Value)>,
}

impl Answers {
    /// Asks `predictor` what the case asks, with the prompts, and the texts that are too long cut, as `asked` says they were; see
    /// [`case::query_on`]. Blocks while the program runs. Errors if the case cannot be read or is
    /// not for this program.
    pub fn of(predictor: &Predictor, case: &[u8], asked: &Record) -> Result<Self, Problem> {
        let fail = |error: &dyn std::fmt::Display| Problem::invalid(error.to_string());
        let embeds = matches!(predictor.manifest().task.kind, TaskKind::Embed { .. });
        let query = match (case::query_on(case, predictor.program().inputs(), &asked.route)?, asked.document_tokens) {
            (Query::Rows(rows), Some(most)) => {
                let rows = case::with_documents_cut(rows, |document| predictor.first_tokens(document, most));
                Query::Rows(rows.map_err(|error| fail(&error))?)
            }
            (query, _) => query,
        };
        let query = match query {
            Query::Pairs(pairs) => Query::Rows(pairs.asked(embeds)?),
            // An embedder that reranked was asked the query once, and each document by itself.
            Query::Rows(inputs) if embeds => Query::Rows(case::for_embedder(inputs)),
            query => query,
        };
        let rows = match query {
            Query::Pairs(_) => Vec::new(),
            Query::Rows(inputs) => {
                // Another version may have other prompts than the one that answered; one without any has to be asked without.
                let has_prompts = !predictor.manifest().task.prompts.is_empty();
                let inputs = if has_prompts { case::with_logged_prompt(inputs, &asked.prompts) } else { inputs };
                let mut rows = Vec::with_capacity(inputs.len());
                for input in &inputs {
                    let prepared = predictor.prepare_cut(input, asked.cut).map_err(|error| fail(&error))?;
                    let answers = predictor.predict_prepared(&[prepared]).map_err(|error| fail(&error))?;
                    rows.extend(answers.iter().map(row));
                }
                rows
            }
            Query::Program(tensors) => {
                let outputs = predictor.program().run(&tensors, &RunOptions::default());
                let outputs = outputs.map_err(|error| fail(&error))?;
                let shapes: Vec<Value> = outputs
                    .iter()
                    .map(|output| json!({ "dtype": output.dtype().name(), "shape": output.shape(), "bytes": row_major_bytes(output).len() }))
                    .collect();
                vec![(tensors_digest(&outputs), json!({ "tensors": shapes }))]
            }
        };
        Ok(Self { numerics_id: predictor.numerics_id(), rows })
    }

    /// The same, to be told.
    pub fn told(&self) -> Vec<ReplayedAnswer> {
        let row = |(digest, answer): &(Digest, Value)| ReplayedAnswer { answer: answer.clone(), digest: *digest };
        self.rows.iter().map(row).collect()
    }
}

/// An answer that was computed again.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct ReplayedAnswer {
    /// What its task gives, as `{"class": {"label": …, "scores": …}}`.
    pub answer: Value,
    /// Of it.
    pub digest: Digest,
}

fn row(answer: &Answer) -> (Digest, Value) {
    (answer.digest(), serde_json::to_value(answer).unwrap_or_default())
}

/// Whether a replay gave the served bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Comparison {
    /// Whether it did.
    pub same_bits: bool,
    /// In words; where it did not, why that may be.
    pub why: String,
}

impl Comparison {
    /// Compares by digests alone: the log keeps no answers.
    pub fn of(record: &Record, answers: &Answers) -> Self {
        let replayed: Vec<Digest> = answers.rows.iter().map(|(digest, _)| *digest).collect();
        // A case may hold the one interesting input of a longer request.
        let same_bits = match replayed.as_slice() {
            [one] => record.outputs.contains(one),
            all => all == record.outputs.as_slice(),
        };
        let why = if same_bits {
            "the same bits".to_owned()
        } else if record.numerics_id != answers.numerics_id {
            format!(
                "other bits: this machine computes on `{}`, the server on `{}`, so bits may differ for the same input",
                answers.numerics_id, record.numerics_id
            )
        } else if replayed.len() > 1 && replayed.len() != record.outputs.len() {
            format!("the case has {} inputs, the request had {}", replayed.len(), record.outputs.len())
        } else {
            "other bits from the same package on the same numerics: the case is not the input that was served"
                .to_owned()
        };
        Self { same_bits, why }
    }
}

/// From the answer back to the data, as far as it is known here.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Chain {
    /// Id of the request.
    answer: String,
    verdict: ChainVerdict,
    /// The override that let it serve without a verdict.
    #[serde(rename = "override")]
    overridden: Option<Digest>,
    package: ChainPackage,
    run: ChainRun,
    /// Of the training code.
    commit: Option<String>,
    /// Digest of the environment's lock file.
    environment: Option<Digest>,
    /// Digest of every data file that trained it, by name; nothing where the package is not known here.
    data: Option<BTreeMap<String, Digest>>,
}

#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
struct ChainVerdict {
    digest: Option<Digest>,
    /// The verdict, where its file is here.
    file: Option<Verdict>,
}

#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
struct ChainPackage {
    digest: Digest,
    version: String,
    owner: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
struct ChainRun {
    id: Option<String>,
    /// What the tracking server has of it, where it was asked.
    tracked: Option<Value>,
}

impl Chain {
    /// Of an answer: `manifest` of the package, the verdict's file, the tracked run.
    pub fn of(record: &Record, manifest: Option<&Manifest>, verdict: Option<Verdict>, run: Option<Value>) -> Self {
        let provenance = manifest.map(|manifest| manifest.provenance.clone());
        let of = |provenance: Provenance| {
            let Provenance { run_id, git_commit, environment, data, .. } = provenance;
            (run_id, git_commit, environment, Some(data))
        };
        let (run_id, commit, environment, data) = provenance.map(of).unwrap_or_default();
        Self {
            answer: record.request_id.clone(),
            verdict: ChainVerdict { digest: record.verdict, file: verdict },
            overridden: record.overridden,
            package: ChainPackage {
                digest: record.package,
                version: record.version.clone(),
                owner: manifest.map(|manifest| manifest.owner.clone()),
            },
            run: ChainRun { id: run_id, tracked: run },
            commit,
            environment,
            data,
        }
    }
}
