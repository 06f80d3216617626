use std::path::Path;

use highroad_eval::{Classes, Evidence, Expected, Latency, Observed, Similarities, quantile};
use highroad_package::Digest;
use serde::{Deserialize, Serialize};

use crate::{AssessError, GoldenSet};

/// What one package answered on one golden set: the content of `eval.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Results {
    /// Format version, 1.
    pub highroad_results: u32,
    /// The package.
    pub package: Digest,
    /// The golden set's file name and digest.
    pub golden_set: highroad_eval::GoldenSet,
    /// What decided the bits.
    pub numerics_id: String,
    /// What the answers are evidence of.
    pub evidence: Evidence,
    /// Labels in the order of the scores; empty for an embedding model.
    pub labels: Vec<String>,
    /// In the golden set's order.
    pub cases: Vec<CaseAnswer>,
    /// See [`answers_digest`].
    pub answers: Digest,
    /// Whether batches gave the bits that single inputs gave.
    pub batch_invariant: bool,
    /// How fast it went.
    pub speed: Speed,
}

/// The answer to one golden case.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaseAnswer {
    /// Id of the case.
    pub id: String,
    /// What was answered.
    pub value: Value,
    /// Whether a text was too long and lost its end.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
}

/// What was answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Value {
    /// A label, with the score of each of [`Results::labels`].
    Class {
        /// The label with the highest score.
        label: String,
        /// In the order of the labels.
        scores: Vec<f32>,
    },
    /// The cosine of the two texts' vectors.
    Similarity(f64),
}

/// Service time of single inputs and throughput of batches.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Speed {
    /// Milliseconds from input to answer, tokenisation included, one input at a time, in order of asking.
    pub single_ms: Vec<f64>,
    /// Inputs a second when they are asked in batches.
    pub inputs_per_s: f64,
    /// Method and machine, in words.
    pub measured: String,
}

/// SHA-256 over the answers of a golden set: the digest of each answer as text, one a line, in the order of the cases (for
/// a pair that of `a`, then that of `b`). Equal digests mean equal bits in every answer.
pub fn answers_digest(answers: impl IntoIterator<Item = Digest>) -> Digest {
    let lines: String = answers.into_iter().map(|digest| format!("{digest}\n")).collect();
    Digest::of(lines.as_bytes())
}

impl Results {
    /// Reads an `eval.json`.
    pub fn read(path: &Path) -> Result<Self, AssessError> {
        let bytes = std::fs::read(path).map_err(|source| AssessError::Io { path: path.to_owned(), source })?;
        serde_json::from_slice(&bytes).map_err(|source| AssessError::Json { path: path.to_owned(), source })
    }

    /// Writes an `eval.json`.
    pub fn write(&self, path: &Path) -> Result<(), AssessError> {
        let bytes = serde_json::to_vec_pretty(self).expect("results are plain data with text keys");
        std::fs::write(path, bytes).map_err(|source| AssessError::Io { path: path.to_owned(), source })
    }

    /// Errors unless these are answers to exactly the cases of `golden`, in order.
    pub fn check_golden(&self, golden: &GoldenSet) -> Result<(), AssessError> {
        let found: Digest = self.golden_set.digest.parse().map_err(|_| AssessError::OtherCases)?;
        if found != golden.digest {
            return Err(AssessError::OtherGolden { expected: golden.digest, found });
        }
        let same = self.cases.len() == golden.cases.len()
            && self.cases.iter().zip(&golden.cases).all(|(answer, case)| answer.id == case.case.id);
        if same { Ok(()) } else { Err(AssessError::OtherCases) }
    }

    /// The answers beside the right ones. `more_labels` are labels these answers may be compared with that the model does
    /// not know: they score 0.
    pub fn observed(&self, golden: &GoldenSet, more_labels: &[String]) -> Result<Observed, AssessError> {
        self.check_golden(golden)?;
        let expected = || golden.cases.iter().map(|case| &case.case.expected);
        if self.labels.is_empty() {
            let predicted = self.cases.iter().map(|case| match case.value {
                Value::Similarity(similarity) => Ok(similarity),
                Value::Class { .. } => Err(AssessError::OtherAnswer { case: case.id.clone() }),
            });
            let expected = expected().filter_map(|expected| match expected {
                Expected::Similarity(similarity) => Some(*similarity),
                Expected::Label(_) => None,
            });
            let (expected, predicted) = (expected.collect(), predicted.collect::<Result<_, _>>()?);
            return Ok(Observed::Similarities(Similarities { expected, predicted }));
        }
        let unknown = more_labels.iter().filter(|label| !self.labels.contains(label));
        let labels: Vec<String> = self.labels.iter().chain(unknown).cloned().collect();
        let answer = |case: &CaseAnswer| match &case.value {
            Value::Class { label, scores } => {
                let padding = labels.len() - self.labels.len();
                Ok((label.clone(), scores.iter().copied().chain(std::iter::repeat_n(0.0, padding)).collect::<Vec<_>>()))
            }
            Value::Similarity(_) => Err(AssessError::OtherAnswer { case: case.id.clone() }),
        };
        let answers = self.cases.iter().map(answer).collect::<Result<Vec<_>, _>>()?;
        let expected = golden.cases.iter().filter_map(|case| match &case.case.expected {
            Expected::Label(label) => Some(label.as_str()),
            Expected::Similarity(_) => None,
        });
        let answers = answers.iter().map(|(label, scores)| (label.as_str(), scores.as_slice()));
        Ok(Observed::Classes(Classes::new(&labels, expected, answers)?))
    }

    /// Percentiles of the service time.
    pub fn latency(&self) -> Latency {
        let mut sorted = self.speed.single_ms.clone();
        sorted.sort_by(f64::total_cmp);
        let at = |q| if sorted.is_empty() { 0.0 } else { quantile(&sorted, q) };
        Latency {
            p50_ms: at(0.5),
            p90_ms: at(0.9),
            p99_ms: at(0.99),
            n_samples: sorted.len(),
            measured: self.speed.measured.clone(),
        }
    }
}
