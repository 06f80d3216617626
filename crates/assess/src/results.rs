use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Write as _};
use std::path::Path;

use highroad_eval::{
    Array, Classes, Evidence, Expected, Generated, HostedEvidence, Latency, Numbers, Observed, Rankings, Similarities,
    Tensors, Texts, Triplets, quantile,
};
use highroad_package::Digest;
use highroad_task::joined;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{AssessError, GoldenKind, GoldenSet};

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
    /// Labels in the order of the scores; empty where the model has none.
    pub labels: Vec<String>,
    /// In the golden set's order.
    pub cases: Vec<CaseAnswer>,
    /// See [`answers_digest`].
    pub answers: Digest,
    /// Whether batches gave the bits that single inputs gave.
    pub batch_invariant: bool,
    /// How the answers came to be.
    #[serde(default)]
    pub checked: Checked,
    /// How fast it went.
    pub speed: Speed,
    /// What it took to ask, where somebody else hosts the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hosted: Option<HostedEvidence>,
}

/// Which answers are new, and which bits were compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checked {
    /// Different inputs that the cases ask.
    pub n_inputs: usize,
    /// Those whose answers were kept from an earlier run.
    pub n_kept: usize,
    /// Those that were also asked alone in this run, to time them and to compare their bits with those of the answer that
    /// counts.
    pub n_alone: usize,
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
    /// For each document of a query, what it is ordered by: the cosine of its vector and the query's, or the logit of a
    /// reranker. Of a search the rank with a minus, or [`Rankings::NOT_FOUND`]; then the same of what it found that the case does
    /// not name, none of it relevant.
    Scores(Vec<f64>),
    /// The cosine of the anchor's vector and the positive text's, then of the anchor's and the negative one's.
    Triplet([f64; 2]),
    /// A regression's. No task of a package gives one yet; results written elsewhere may hold it, as with texts.
    Number(f64),
    /// Of a model that writes.
    Generated(Generated),
    /// The outputs that the case expects, by name; of integers beyond 2^53 the nearest f64.
    Tensors(BTreeMap<String, Array>),
}

/// Service time of single inputs and throughput of batches.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Speed {
    /// Milliseconds from input to answer, tokenisation included, one input at a time, in order of asking.
    pub single_ms: Vec<f64>,
    /// Inputs a second when they are asked in batches.
    pub inputs_per_s: f64,
    /// Seconds that a GPU works for 1,000 inputs asked in batches; absent where none does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_s_per_1000: Option<f64>,
    /// Method and machine, in words.
    pub measured: String,
}

/// SHA-256 over the answers of a golden set: the digest of each answer as text, one a line, in the order of the cases (for
/// a pair that of `a`, then that of `b`). Equal digests mean equal bits in every answer.
pub fn answers_digest(answers: impl IntoIterator<Item = Digest>) -> Digest {
    let mut all = AnswersDigest::default();
    answers.into_iter().for_each(|digest| all.add(digest));
    all.finish()
}

/// [`answers_digest`], one answer after the other.
#[derive(Default)]
pub(crate) struct AnswersDigest(Sha256);

impl AnswersDigest {
    pub(crate) fn add(&mut self, answer: Digest) {
        self.0.update(format!("{answer}\n"));
    }

    pub(crate) fn finish(self) -> Digest {
        Digest::finish(self.0)
    }
}

impl Checked {
    /// The same in a sentence.
    pub fn in_words(&self) -> String {
        let Self { n_inputs, n_kept, n_alone } = *self;
        let percent = 100.0 * n_alone as f64 / n_inputs.max(1) as f64;
        let kept = if n_kept > 0 { format!(", {n_kept} of them answered in an earlier run") } else { String::new() };
        if n_alone == 0 {
            return format!("{n_inputs} inputs{kept}");
        }
        format!(
            "{n_inputs} inputs{kept}; {n_alone} ({percent:.0} %) were asked alone in this run and compared bit by bit"
        )
    }
}

impl Results {
    /// Reads an `eval.json`.
    pub fn read(path: &Path) -> Result<Self, AssessError> {
        read_json(path)
    }

    /// Writes an `eval.json`.
    pub fn write(&self, path: &Path) -> Result<(), AssessError> {
        write_json(self, path)
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
        match golden.kind() {
            GoldenKind::Labels => self.classes(golden, more_labels),
            GoldenKind::LabelSets => self.label_sets(golden),
            GoldenKind::Similarities => self.similarities(golden),
            GoldenKind::Triplets => self.triplets(),
            GoldenKind::Rankings => self.rankings(golden),
            GoldenKind::Numbers => self.numbers(golden),
            GoldenKind::Texts => self.texts(golden),
            GoldenKind::Tensors => self.tensors(golden),
        }
    }

    fn triplets(&self) -> Result<Observed, AssessError> {
        let similarities = self.values(|value| if let Value::Triplet(pair) = value { Some(*pair) } else { None })?;
        Ok(Observed::Triplets(Triplets::new(similarities)?))
    }

    fn numbers(&self, golden: &GoldenSet) -> Result<Observed, AssessError> {
        let predicted = self.values(|value| if let Value::Number(number) = value { Some(*number) } else { None })?;
        let expected =
            expected(golden, |expected| if let Expected::Number(number) = expected { Some(*number) } else { None });
        Ok(Observed::Numbers(Numbers::new(expected, predicted)?))
    }

    fn tensors(&self, golden: &GoldenSet) -> Result<Observed, AssessError> {
        let predicted = self.values(|value| if let Value::Tensors(tensors) = value { Some(tensors) } else { None })?;
        let expected = golden.cases.iter().filter_map(|case| match &case.case.expected {
            Expected::Tensors { tensors, tolerances } => Some((tensors, tolerances)),
            _ => None,
        });
        let (expected, tolerances): (Vec<_>, Vec<_>) = expected.unzip();
        Ok(Observed::Tensors(Tensors::new(&expected, &predicted)?.with_tolerances(&tolerances)?))
    }

    fn texts(&self, golden: &GoldenSet) -> Result<Observed, AssessError> {
        let generated =
            self.values(|value| if let Value::Generated(generated) = value { Some(generated.clone()) } else { None })?;
        let references = expected(golden, |expected| match expected {
            Expected::References(references) => Some(references.clone()),
            _ => None,
        });
        Ok(Observed::Texts(Texts::new(references, generated)?))
    }

    /// Sets of labels as texts: the labels of the answer beside those expected, both in the order of the package. Errors if a case expects a
    /// label that the package does not have.
    fn label_sets(&self, golden: &GoldenSet) -> Result<Observed, AssessError> {
        let generated =
            self.values(|value| if let Value::Generated(generated) = value { Some(generated.clone()) } else { None })?;
        let mut references = Vec::with_capacity(generated.len());
        for case in &golden.cases {
            let Expected::Labels(expected) = &case.case.expected else { continue };
            if let Some(label) = expected.iter().find(|label| !self.labels.contains(label)) {
                let (case, label) = (case.case.id.clone(), label.clone());
                return Err(AssessError::UnknownLabel { case, label });
            }
            let in_order: Vec<String> = self.labels.iter().filter(|label| expected.contains(label)).cloned().collect();
            references.push(vec![joined(&in_order)]);
        }
        Ok(Observed::Texts(Texts::new(references, generated)?))
    }

    fn similarities(&self, golden: &GoldenSet) -> Result<Observed, AssessError> {
        let predicted =
            self.values(|value| if let Value::Similarity(similarity) = value { Some(*similarity) } else { None })?;
        let expected = expected(golden, |expected| match expected {
            Expected::Number(similarity) => Some(*similarity),
            _ => None,
        });
        Ok(Observed::Similarities(Similarities { expected, predicted }))
    }

    fn rankings(&self, golden: &GoldenSet) -> Result<Observed, AssessError> {
        let predicted =
            self.values(|value| if let Value::Scores(scores) = value { Some(scores.clone()) } else { None })?;
        let mut expected = expected(golden, |expected| match expected {
            Expected::Relevances(relevances) => Some(relevances.clone()),
            _ => None,
        });
        for (relevances, scores) in expected.iter_mut().zip(&predicted) {
            relevances.resize(scores.len().max(relevances.len()), 0);
        }
        Ok(Observed::Rankings(Rankings::new(expected, predicted)?))
    }

    /// What `of` finds in each case; an error if a case was answered with something else.
    fn values<'a, T>(&'a self, of: impl Fn(&'a Value) -> Option<T>) -> Result<Vec<T>, AssessError> {
        let value =
            |case: &'a CaseAnswer| of(&case.value).ok_or_else(|| AssessError::OtherAnswer { case: case.id.clone() });
        self.cases.iter().map(value).collect()
    }

    fn classes(&self, golden: &GoldenSet, more_labels: &[String]) -> Result<Observed, AssessError> {
        let unknown = more_labels.iter().filter(|label| !self.labels.contains(label));
        let labels: Vec<String> = self.labels.iter().chain(unknown).cloned().collect();
        let padding = labels.len() - self.labels.len();
        let answers: Vec<(&str, Cow<'_, [f32]>)> = self.values(|value| match value {
            Value::Class { label, scores } if padding == 0 => Some((label.as_str(), Cow::Borrowed(scores.as_slice()))),
            Value::Class { label, scores } => {
                let padded = scores.iter().copied().chain(std::iter::repeat_n(0.0, padding)).collect();
                Some((label.as_str(), Cow::Owned(padded)))
            }
            _ => None,
        })?;
        let expected = golden.cases.iter().filter_map(|case| match &case.case.expected {
            Expected::Label(label) => Some(label.as_str()),
            _ => None,
        });
        let answers = answers.iter().map(|(label, scores)| (*label, scores.as_ref()));
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

/// Reads JSON as it comes.
pub(crate) fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, AssessError> {
    let file = File::open(path).map_err(|source| AssessError::Io { path: path.to_owned(), source })?;
    let read = serde_json::from_reader(BufReader::with_capacity(1 << 20, file));
    read.map_err(|source| AssessError::Json { path: path.to_owned(), source })
}

/// Writes pretty JSON as it is made.
pub(crate) fn write_json(value: &impl Serialize, path: &Path) -> Result<(), AssessError> {
    let io = |source: io::Error| AssessError::Io { path: path.to_owned(), source };
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path).map_err(io)?);
    serde_json::to_writer_pretty(&mut file, value).map_err(|error| io(error.into()))?;
    file.flush().map_err(io)
}

/// The right answers of one kind, which a golden set's cases all have.
fn expected<T>(golden: &GoldenSet, of: impl Fn(&Expected) -> Option<T>) -> Vec<T> {
    golden.cases.iter().filter_map(|case| of(&case.case.expected)).collect()
}
