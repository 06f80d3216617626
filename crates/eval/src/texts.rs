use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use crate::ObservedError;

/// Longest text that is compared: metrics of words are quick, but not free.
const MAX_TEXT_BYTES: usize = 1 << 20;

/// Texts that a model generated, beside the texts it may have.
#[derive(Clone, Debug, PartialEq)]
pub struct Texts {
    /// None for a case that nothing but a program or a judge decides.
    pub(crate) references: Vec<Vec<String>>,
    pub(crate) generated: Vec<Generated>,
}

/// What a model generated for one case.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Generated {
    /// At least one; the first is *the* answer, and only `pass_at_K` looks at the others.
    pub texts: Vec<String>,
    /// How many of the texts passed the case's own check, such as its unit tests; those that equal a reference if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n_passed: Option<u32>,
    /// How likely the model found a text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub likelihood: Option<Likelihood>,
    /// The score of each judge that was asked, from 0 to 1, by its name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub judged: BTreeMap<String, f64>,
}

/// How likely a model found a text, token by token.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Likelihood {
    /// The sum of the natural logarithms of the tokens' probabilities, 0 or less.
    pub log_probability: f64,
    /// How many tokens there were, at least 1.
    pub n_tokens: u32,
}

impl Generated {
    /// One text and nothing else.
    pub fn text(text: impl Into<String>) -> Self {
        Self::texts(vec![text.into()])
    }

    /// Samples and nothing else.
    pub fn texts(texts: Vec<String>) -> Self {
        Self { texts, n_passed: None, likelihood: None, judged: BTreeMap::new() }
    }

    fn check(&self) -> Result<(), &'static str> {
        let is_likely =
            |of: &Likelihood| of.n_tokens > 0 && of.log_probability.is_finite() && of.log_probability <= 0.0;
        if self.texts.is_empty() {
            return Err("has no text");
        }
        if self.texts.iter().any(|text| text.len() > MAX_TEXT_BYTES) {
            return Err("has a text of over 1 MiB");
        }
        if self.n_passed.is_some_and(|n_passed| n_passed as usize > self.texts.len()) {
            return Err("has more texts that passed than texts");
        }
        if self.likelihood.as_ref().is_some_and(|likelihood| !is_likely(likelihood)) {
            return Err("has a log-probability above 0 or of no token");
        }
        if self.judged.values().any(|score| !(0.0..=1.0).contains(score)) {
            return Err("has a judge's score outside 0 to 1");
        }
        Ok(())
    }
}

impl Texts {
    /// One answer a case, with references where there are some.
    pub fn new(references: Vec<Vec<String>>, generated: Vec<Generated>) -> Result<Self, ObservedError> {
        if references.len() != generated.len() {
            return Err(ObservedError::Lengths { n_expected: references.len(), n_answers: generated.len() });
        }
        for (case_idx, (references, generated)) in references.iter().zip(&generated).enumerate() {
            let wrong = |problem| ObservedError::Text { case_idx, problem };
            if references.iter().any(|text| text.len() > MAX_TEXT_BYTES) {
                return Err(wrong("has a reference of over 1 MiB"));
            }
            generated.check().map_err(wrong)?;
        }
        Ok(Self { references, generated })
    }

    /// Number of cases.
    pub fn n_cases(&self) -> usize {
        self.references.len()
    }

    /// What a case may be answered with; nothing where a text cannot be right by equality.
    pub fn references(&self, case_idx: usize) -> &[String] {
        &self.references[case_idx]
    }

    /// What it was answered with.
    pub fn generated(&self, case_idx: usize) -> &Generated {
        &self.generated[case_idx]
    }

    /// The answer to a case.
    pub fn answer(&self, case_idx: usize) -> &str {
        &self.generated[case_idx].texts[0]
    }

    /// Whether `text` equals a reference of the case, but for white space at its ends.
    pub fn is_exact(&self, case_idx: usize, text: &str) -> bool {
        self.references[case_idx].iter().any(|reference| reference.trim() == text.trim())
    }

    /// Whether each answer equals a reference.
    pub fn right(&self) -> Vec<bool> {
        (0..self.n_cases()).map(|idx| self.is_exact(idx, self.answer(idx))).collect()
    }

    /// The trivial baseline: always the first reference that is the first of most cases.
    pub fn most_frequent(&self) -> Self {
        let mut counts: HashMap<&str, usize> = HashMap::new();
        let firsts = || self.references.iter().filter_map(|references| references.first().map(String::as_str));
        firsts().for_each(|first| *counts.entry(first).or_default() += 1);
        // Of equals the first in the file: `max_by_key` takes the last.
        let most = firsts().rev().max_by_key(|first| counts[first]).unwrap_or_default();
        Self { references: self.references.clone(), generated: vec![Generated::text(most); self.n_cases()] }
    }

    /// The first case without a reference.
    pub(crate) fn first_without_reference(&self) -> Option<usize> {
        self.references.iter().position(Vec::is_empty)
    }

    /// Whether no case has a reference, so that there is no trivial answer either.
    pub(crate) fn have_no_references(&self) -> bool {
        self.references.iter().all(Vec::is_empty)
    }

    /// The value of each case: of its answer and its references.
    pub(crate) fn each<T>(&self, of: impl Fn(&str, &[String]) -> T) -> Vec<T> {
        (0..self.n_cases()).map(|idx| of(self.answer(idx), self.references(idx))).collect()
    }

    pub(crate) fn subset(&self, case_idxs: &[usize]) -> Self {
        Self {
            references: case_idxs.iter().map(|&idx| self.references[idx].clone()).collect(),
            generated: case_idxs.iter().map(|&idx| self.generated[idx].clone()).collect(),
        }
    }
}
