use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Array, Numbers, Rankings, Tensors, Texts, Tolerance, Triplets};

mod mixed;

/// One golden case as a gate sees it: its name, the right answer and the slices it belongs to; not its input.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    /// Unique within the golden set.
    pub id: String,
    /// The right answer.
    pub expected: Expected,
    /// Named subsets the case belongs to.
    pub slices: Vec<String>,
    /// Whether one wrong answer here fails the gate, whatever the statistics say.
    pub must_pass: bool,
    /// What the case was drawn from; cases that share a source are resampled together. Two equal numbers for a case of
    /// its own source, two different ones for a pair of texts that other pairs use too.
    pub sources: [usize; 2],
    /// How much it counts beside the others: above 0, finite; 1 unless told.
    pub weight: f64,
}

/// The right answer to a golden case.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub enum Expected {
    /// A label.
    Label(String),
    /// How similar people find two texts, or the number a regression should give.
    Number(f64),
    /// How relevant each document of a query is, 0 for not at all.
    Relevances(Vec<u32>),
    /// Texts that a generated one may equal or should be like; none where only a program or a judge decides.
    References(Vec<String>),
    /// Every label that holds, in any order; where none does, none. In JSON a list as the one above, which the input tells apart.
    Labels(Vec<String>),
    /// The right tensors of a program, by output: `{"tensors": {"y": [[1.5]]}, "tolerances": {"y": {"atol": 0.1}}}` in JSON.
    Tensors {
        /// At least one, each with its shape.
        tensors: BTreeMap<String, Array>,
        /// How far an output may be off in a right answer; the case is never just right where there is none.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        tolerances: BTreeMap<String, Tolerance>,
    },
    /// The case says it by itself: of a triplet, that the positive text is the closer one.
    Implied,
}

/// The answers of one model on golden cases, beside the right ones.
#[derive(Clone, Debug, PartialEq)]
pub enum Observed {
    /// Of a classifier.
    Classes(Classes),
    /// Of an embedding model, compared pair by pair.
    Similarities(Similarities),
    /// Of an embedding model: two texts compared with an anchor.
    Triplets(Triplets),
    /// Of an embedding model or a reranker: documents ordered for queries.
    Rankings(Rankings),
    /// Of a regression.
    Numbers(Numbers),
    /// Of a model that writes.
    Texts(Texts),
    /// Of a program of any inputs and outputs.
    Tensors(Tensors),
}

/// What a classifier answered: `n` cases, `L` labels.
#[derive(Clone, Debug, PartialEq)]
pub struct Classes {
    labels: Vec<String>,
    expected: Vec<usize>,
    predicted: Vec<usize>,
    /// `[n, L]`, row-major.
    scores: Vec<f64>,
}

/// Cosine similarities beside human ones, both of length `n`.
#[derive(Clone, Debug, PartialEq)]
pub struct Similarities {
    /// Of people.
    pub expected: Vec<f64>,
    /// Of the model.
    pub predicted: Vec<f64>,
}

/// The answers do not fit the cases.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum ObservedError {
    #[error("label `{label}` is not one of the model's labels: {labels}")]
    UnknownLabel { label: String, labels: String },
    #[error("case {case_idx} has {n_scores} scores for {n_labels} labels")]
    Scores { case_idx: usize, n_scores: usize, n_labels: usize },
    #[error("a number of case {case_idx} is not finite")]
    NotFinite { case_idx: usize },
    #[error("case {case_idx} {problem}")]
    Tensors { case_idx: usize, problem: String },
    #[error("case {case_idx} {problem}")]
    Text { case_idx: usize, problem: &'static str },
    #[error("{n_expected} expected answers but {n_answers} given ones")]
    Lengths { n_expected: usize, n_answers: usize },
}

impl Observed {
    /// Number of cases.
    pub fn n_cases(&self) -> usize {
        match self {
            Self::Classes(classes) => classes.expected.len(),
            Self::Similarities(similarities) => similarities.expected.len(),
            Self::Triplets(triplets) => triplets.similarities().len(),
            Self::Rankings(rankings) => rankings.n_cases(),
            Self::Numbers(numbers) => numbers.expected().len(),
            Self::Texts(texts) => texts.n_cases(),
            Self::Tensors(tensors) => tensors.n_cases(),
        }
    }

    /// Whether each case was answered rightly: with the right label, with a most relevant document in the first place, with
    /// the positive text closer, with a text that equals a reference, or with tensors within their tolerance, where a case has
    /// one. `None` for numbers and tensors without, which are never just right.
    pub fn right(&self) -> Option<Vec<Option<bool>>> {
        let all = |right: Vec<bool>| Some(right.into_iter().map(Some).collect());
        match self {
            Self::Classes(classes) => all(classes.correct()),
            Self::Rankings(rankings) => {
                all((0..rankings.n_cases()).map(|idx| rankings.best_rank(idx) == Some(1)).collect())
            }
            Self::Triplets(triplets) => all(triplets.right()),
            Self::Texts(texts) => all(texts.right()),
            Self::Tensors(tensors) => {
                Some(tensors.within_tolerance()).filter(|right| right.iter().any(Option::is_some))
            }
            Self::Similarities(_) | Self::Numbers(_) => None,
        }
    }

    /// The same for the cases at `case_idxs` only.
    pub fn subset(&self, case_idxs: &[usize]) -> Self {
        let pick = |values: &[f64]| case_idxs.iter().map(|&idx| values[idx]).collect();
        match self {
            Self::Classes(classes) => Self::Classes(classes.subset(case_idxs)),
            Self::Similarities(Similarities { expected, predicted }) => {
                Self::Similarities(Similarities { expected: pick(expected), predicted: pick(predicted) })
            }
            Self::Triplets(triplets) => Self::Triplets(triplets.subset(case_idxs)),
            Self::Rankings(rankings) => Self::Rankings(rankings.subset(case_idxs)),
            Self::Numbers(numbers) => Self::Numbers(numbers.subset(case_idxs)),
            Self::Texts(texts) => Self::Texts(texts.subset(case_idxs)),
            Self::Tensors(tensors) => Self::Tensors(tensors.subset(case_idxs)),
        }
    }
}

impl Classes {
    /// `answers` holds the predicted label and the score of each label for each case, in the order of `labels`; labels
    /// are sorted here so that two models that number them differently compare.
    pub fn new<'a>(
        labels: &[String],
        expected: impl IntoIterator<Item = &'a str>,
        answers: impl IntoIterator<Item = (&'a str, &'a [f32])>,
    ) -> Result<Self, ObservedError> {
        let mut order: Vec<usize> = (0..labels.len()).collect();
        order.sort_by_key(|&idx| &labels[idx]);
        let sorted: Vec<String> = order.iter().map(|&idx| labels[idx].clone()).collect();
        let position: BTreeMap<&str, usize> =
            sorted.iter().enumerate().map(|(idx, name)| (name.as_str(), idx)).collect();
        let find = |label: &str| {
            position
                .get(label)
                .copied()
                .ok_or_else(|| ObservedError::UnknownLabel { label: label.to_owned(), labels: sorted.join(", ") })
        };
        let expected = expected.into_iter().map(find).collect::<Result<Vec<_>, _>>()?;
        let (mut predicted, mut scores) = (Vec::new(), Vec::new());
        for (case_idx, (label, row)) in answers.into_iter().enumerate() {
            if row.len() != labels.len() {
                return Err(ObservedError::Scores { case_idx, n_scores: row.len(), n_labels: labels.len() });
            }
            if row.iter().any(|score| !score.is_finite()) {
                return Err(ObservedError::NotFinite { case_idx });
            }
            predicted.push(find(label)?);
            scores.extend(order.iter().map(|&idx| f64::from(row[idx])));
        }
        if predicted.len() != expected.len() {
            return Err(ObservedError::Lengths { n_expected: expected.len(), n_answers: predicted.len() });
        }
        Ok(Self { labels: sorted, expected, predicted, scores })
    }

    /// The trivial baseline: always the most frequent expected label (the first by name among equals), with the labels'
    /// frequencies as scores.
    pub fn majority(&self) -> Self {
        self.weighted_majority(&vec![1.0; self.expected.len()])
    }

    /// The same where case `i` counts `weights[i]`.
    pub(crate) fn weighted_majority(&self, weights: &[f64]) -> Self {
        let n_cases = self.expected.len();
        let mut counts = vec![0.0; self.labels.len()];
        self.expected.iter().zip(weights).for_each(|(&label, weight)| counts[label] += weight);
        let most = (0..counts.len()).rev().max_by(|&a, &b| f64::total_cmp(&counts[a], &counts[b])).unwrap_or(0);
        let total = if n_cases == 0 { 1.0 } else { weights.iter().sum::<f64>() };
        let frequencies: Vec<f64> = counts.iter().map(|count| count / total).collect();
        Self {
            labels: self.labels.clone(),
            expected: self.expected.clone(),
            predicted: vec![most; n_cases],
            scores: frequencies.repeat(n_cases),
        }
    }

    /// Labels, sorted.
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// Index of the right label of each case.
    pub fn expected(&self) -> &[usize] {
        &self.expected
    }

    /// Index of the answered label of each case.
    pub fn predicted(&self) -> &[usize] {
        &self.predicted
    }

    /// Whether each case was answered rightly.
    pub fn correct(&self) -> Vec<bool> {
        self.expected.iter().zip(&self.predicted).map(|(expected, predicted)| expected == predicted).collect()
    }

    /// The score of label `label` for each case.
    pub fn scores_of(&self, label: usize) -> Vec<f64> {
        self.scores.iter().skip(label).step_by(self.labels.len()).copied().collect()
    }

    /// The score of each label for case `case_idx`.
    pub fn scores_at(&self, case_idx: usize) -> &[f64] {
        &self.scores[case_idx * self.labels.len()..(case_idx + 1) * self.labels.len()]
    }

    /// Number of cases in which `label` is expected.
    pub fn n_of(&self, label: &str) -> usize {
        self.expected.iter().filter(|&&expected| self.labels[expected] == label).count()
    }

    /// Number of cases of the rarest label that is expected at all.
    pub fn n_rarest(&self) -> usize {
        let count = |label| self.expected.iter().filter(|&&expected| expected == label).count();
        (0..self.labels.len()).map(count).filter(|&count| count > 0).min().unwrap_or(0)
    }

    fn subset(&self, case_idxs: &[usize]) -> Self {
        Self {
            labels: self.labels.clone(),
            expected: case_idxs.iter().map(|&idx| self.expected[idx]).collect(),
            predicted: case_idxs.iter().map(|&idx| self.predicted[idx]).collect(),
            scores: case_idxs.iter().flat_map(|&idx| self.scores_at(idx)).copied().collect(),
        }
    }
}
