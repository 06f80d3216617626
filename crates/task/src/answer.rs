use std::borrow::Cow;

use highroad_package::Digest;
use serde::{Deserialize, Serialize};

use crate::OutputTensor;

/// Between labels that hold at once; no label of a multi-label classifier has a comma.
const BETWEEN_LABELS: &str = ", ";

/// What a model answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// One label of several.
    Class {
        /// The label with the highest score; the first of them where several tie.
        label: String,
        /// Softmax of the logits, in the order of the package's labels; they sum to 1 within rounding.
        scores: Vec<f32>,
    },
    /// Any number of labels.
    Labels {
        /// Those whose score reaches their threshold, in the order of the package's labels.
        labels: Vec<String>,
        /// The logistic function of each label's own logit, in the order of the package's labels.
        scores: Vec<f32>,
    },
    /// A point in the model's space.
    Embedding {
        /// Its coordinates; of length 1 within rounding where the package says `normalized`.
        vector: Vec<f32>,
    },
    /// How relevant a document is to a query.
    Relevance {
        /// Higher is more relevant; documents are ordered by it. [`Answer::score`] maps it to 0 … 1.
        logit: f32,
    },
    /// What a program gave, in its order.
    Tensors(Vec<OutputTensor>),
}

impl Answer {
    /// The scores, the vector or the logit; none of tensors, which are [`OutputTensor::values`].
    pub fn values(&self) -> &[f32] {
        match self {
            Self::Class { scores, .. } | Self::Labels { scores, .. } => scores,
            Self::Embedding { vector } => vector,
            Self::Relevance { logit } => std::slice::from_ref(logit),
            Self::Tensors(_) => &[],
        }
    }

    /// What a classifier says, in words: the label, or those that hold with `, ` between them; nothing where none does. `None` of
    /// other answers.
    pub fn label(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Class { label, .. } => Some(Cow::Borrowed(label)),
            Self::Labels { labels, .. } => Some(Cow::Owned(joined(labels))),
            Self::Embedding { .. } | Self::Relevance { .. } | Self::Tensors(_) => None,
        }
    }

    /// The logistic function of a relevance's logit, which is what rerank protocols call the relevance score; `None` for
    /// other answers.
    pub fn score(&self) -> Option<f32> {
        let Self::Relevance { logit } = self else { return None };
        Some(logistic(*logit))
    }

    /// SHA-256 of [`Answer::values`] as little-endian f32, or of the bytes of tensors: two answers of one package with one digest have the same bits.
    pub fn digest(&self) -> Digest {
        let bytes: Vec<u8> = match self {
            Self::Tensors(outputs) => outputs.iter().flat_map(|output| &*output.bytes).copied().collect(),
            _ => self.values().iter().flat_map(|value| value.to_le_bytes()).collect(),
        };
        Digest::of(&bytes)
    }
}

/// Several labels in words, as [`Answer::label`] says them.
pub fn joined(labels: &[String]) -> String {
    labels.join(BETWEEN_LABELS)
}

/// The labels that stand in words of [`joined`].
pub fn apart(words: &str) -> Vec<String> {
    words.split(BETWEEN_LABELS).filter(|label| !label.is_empty()).map(ToOwned::to_owned).collect()
}

/// A document beside a query.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ranked {
    /// Its place among the documents given, from 0.
    pub index: usize,
    /// What it is ordered by.
    pub logit: f32,
    /// [`Answer::score`], 0 … 1.
    pub score: f32,
}

/// The documents that `answers` are about, in the order of their relevance, best first; those of one logit in the order they
/// came in. Answers of another kind are left out.
pub fn ranked(answers: &[Answer]) -> Vec<Ranked> {
    let document = |(index, answer): (usize, &Answer)| match answer {
        Answer::Relevance { logit } => Some(Ranked { index, logit: *logit, score: answer.score()? }),
        _ => None,
    };
    let mut documents: Vec<Ranked> = answers.iter().enumerate().filter_map(document).collect();
    documents.sort_by(|left, right| right.logit.total_cmp(&left.logit));
    documents
}

/// The label and the scores that a row of logits means; `None` unless there is one finite logit for each of `labels`.
pub fn class_of_logits(labels: &[String], logits: &[f32]) -> Option<Answer> {
    let fits = !labels.is_empty() && labels.len() == logits.len() && logits.iter().all(|logit| logit.is_finite());
    fits.then(|| decide(labels, logits))
}

/// The label of the highest of `logits` and their softmax. `labels` and `logits` have one length, at least 1, and all
/// logits are finite.
///
/// Maximum, exponentials and sum are taken in order and in f64, with an exponential that is code rather than the
/// system's library, so the bits depend on the logits alone.
pub(crate) fn decide(labels: &[String], logits: &[f32]) -> Answer {
    let mut best = 0;
    for (i, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = i;
        }
    }
    let highest = f64::from(logits[best]);
    let weights: Vec<f64> = logits.iter().map(|&logit| libm::exp(f64::from(logit) - highest)).collect();
    let total: f64 = weights.iter().sum();
    let scores = weights.iter().map(|weight| (weight / total) as f32).collect();
    Answer::Class { label: labels[best].clone(), scores }
}

/// The labels whose score reaches their threshold, and the scores: the logistic function of each of `logits`, which are finite. All three
/// have one length.
pub(crate) fn hold(labels: &[String], thresholds: &[f64], logits: &[f32]) -> Answer {
    let scores: Vec<f32> = logits.iter().map(|&logit| logistic(logit)).collect();
    // The score as it is told, so that who reads it comes to the same labels.
    let holds = labels.iter().zip(thresholds).zip(&scores).filter(|((_, least), score)| f64::from(**score) >= **least);
    Answer::Labels { labels: holds.map(|((label, _), _)| label.clone()).collect(), scores }
}

/// In f64, with an exponential that is code, as the softmax of a label's scores.
fn logistic(logit: f32) -> f32 {
    (1.0 / (1.0 + libm::exp(-f64::from(logit)))) as f32
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn labels(names: &[&str]) -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    }

    fn class(label: &str, scores: &[f32]) -> Answer {
        Answer::Class { label: label.to_owned(), scores: scores.to_vec() }
    }

    #[test]
    fn scores_are_the_softmax_of_the_logits() {
        // scipy.special.softmax([1, 2, 3], in float64) rounded to f32
        let expected = class("c", &[0.090_030_57, 0.244_728_48, 0.665_240_94]);
        assert_eq!(decide(&labels(&["a", "b", "c"]), &[1.0, 2.0, 3.0]), expected);
    }

    #[test]
    fn huge_logits_do_not_overflow() {
        assert_eq!(decide(&labels(&["a", "b"]), &[f32::MAX, -f32::MAX]), class("a", &[1.0, 0.0]));
    }

    #[test]
    fn a_tie_goes_to_the_first_label() {
        assert_eq!(decide(&labels(&["a", "b"]), &[0.5, 0.5]), class("a", &[0.5, 0.5]));
    }

    #[test]
    fn a_relevance_score_is_the_logistic_function_of_the_logit() {
        // scipy.special.expit, in float64, rounded to f32
        for (logit, expected) in [(0.0, 0.5), (2.0, 0.880_797_1), (-3.5, 0.029_312_23), (-200.0, 0.0), (200.0, 1.0)] {
            assert_eq!(Answer::Relevance { logit }.score(), Some(expected));
        }
        assert_eq!(class("a", &[1.0]).score(), None);
    }

    #[test]
    fn every_label_that_reaches_its_threshold_holds_and_none_may() {
        let names = labels(&["insult", "threat", "spam"]);
        let answer = hold(&names, &[0.5, 0.9, 0.5], &[0.0, 2.0, -3.5]);
        // scipy.special.expit, in float64, rounded to f32
        let scores = vec![0.5, 0.880_797_1, 0.029_312_23];
        assert_eq!(answer, Answer::Labels { labels: labels(&["insult"]), scores });
        assert_eq!(hold(&names, &[0.5; 3], &[1.0, 2.0, -1.0]).label().unwrap(), "insult, threat");
        assert_eq!(hold(&names, &[0.5; 3], &[-1.0; 3]).label().unwrap(), "");
    }

    #[test]
    fn a_digest_tells_one_bit() {
        let one = Answer::Embedding { vector: vec![1.0, 2.0] };
        let other = Answer::Embedding { vector: vec![1.0, f32::from_bits(2.0f32.to_bits() + 1)] };
        assert_ne!(one.digest(), other.digest());
        assert_eq!(one.digest(), Answer::Embedding { vector: vec![1.0, 2.0] }.digest());
    }

    #[test]
    fn an_answer_survives_json_bit_for_bit() {
        let answer = decide(&labels(&["a", "b", "c"]), &[0.1, 0.7, -3.3]);
        let back: Answer = serde_json::from_str(&serde_json::to_string(&answer).unwrap()).unwrap();
        assert_eq!(back.digest(), answer.digest());
    }
}
