//! How far the answers of two runs on one golden set are apart, whatever is right.

use serde::Serialize;

use crate::{AssessError, Results, Value};

/// Flips that are listed by name.
const MOST_FLIPS: usize = 20;

/// What changed from one run to another on the same cases.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Drift {
    /// Cases that both answered.
    pub n_cases: usize,
    /// Those with equal values, every bit.
    pub n_same: usize,
    /// Cases whose label changed, or the document that comes first, or which text is the closer one.
    pub n_flips: usize,
    /// The first of them.
    pub flips: Vec<String>,
    /// Root mean square of the difference over that of the values before, of the case where it is largest.
    pub max_relative_rms: f64,
    /// That case; none where nothing differs.
    pub worst: Option<String>,
}

impl Drift {
    /// From `before` to `after`. Errors unless they answer the same cases with values of one kind.
    pub fn between(before: &Results, after: &Results) -> Result<Self, AssessError> {
        let same_cases = before.golden_set.digest == after.golden_set.digest
            && before.cases.len() == after.cases.len()
            && before.cases.iter().zip(&after.cases).all(|(before, after)| before.id == after.id);
        if !same_cases || before.labels != after.labels {
            return Err(AssessError::OtherCases);
        }
        let mut drift = Self {
            n_cases: before.cases.len(),
            n_same: 0,
            n_flips: 0,
            flips: Vec::new(),
            max_relative_rms: 0.0,
            worst: None,
        };
        for (before, after) in before.cases.iter().zip(&after.cases) {
            let (was, is) = (numbers(&before.value), numbers(&after.value));
            if was.len() != is.len() || decision(&before.value).is_some() != decision(&after.value).is_some() {
                return Err(AssessError::OtherAnswer { case: before.id.clone() });
            }
            if decision(&before.value) != decision(&after.value) {
                drift.n_flips += 1;
                if drift.flips.len() < MOST_FLIPS {
                    drift.flips.push(before.id.clone());
                }
            }
            let rms = relative_rms(&was, &is);
            drift.n_same += usize::from(rms == 0.0);
            if rms > drift.max_relative_rms {
                (drift.max_relative_rms, drift.worst) = (rms, Some(before.id.clone()));
            }
        }
        Ok(drift)
    }

    /// In a sentence.
    pub fn in_words(&self) -> String {
        let Self { n_cases, n_same, n_flips, max_relative_rms, .. } = self;
        let worst = self.worst.as_ref().map(|case| format!(" (case `{case}`)")).unwrap_or_default();
        let flips = if self.flips.is_empty() { String::new() } else { format!(": {}", self.flips.join(", ")) };
        format!(
            "{n_flips} of {n_cases} decisions flip{flips}; {n_same} have the same bits; relative rms {max_relative_rms:.1e} at \
             most{worst}"
        )
    }
}

/// What a case was answered with, as numbers.
fn numbers(value: &Value) -> Vec<f64> {
    match value {
        Value::Class { scores, .. } => scores.iter().map(|&score| f64::from(score)).collect(),
        Value::Similarity(number) | Value::Number(number) => vec![*number],
        Value::Scores(scores) => scores.clone(),
        Value::Triplet(pair) => pair.to_vec(),
        Value::Generated(_) => Vec::new(),
        Value::Tensors(tensors) => tensors.values().flat_map(|array| array.values()).copied().collect(),
    }
}

/// What follows from the numbers: a label's name, or a position; none where the number is the answer.
fn decision(value: &Value) -> Option<String> {
    match value {
        Value::Class { label, .. } => Some(label.clone()),
        Value::Scores(scores) => {
            let best = (0..scores.len()).max_by(|&a, &b| scores[a].total_cmp(&scores[b]).then(b.cmp(&a)));
            best.map(|idx| idx.to_string())
        }
        Value::Triplet([positive, negative]) => Some((positive > negative).to_string()),
        Value::Generated(generated) => Some(generated.texts.first().cloned().unwrap_or_default()),
        Value::Similarity(_) | Value::Number(_) | Value::Tensors(_) => None,
    }
}

fn relative_rms(was: &[f64], is: &[f64]) -> f64 {
    let differences: f64 = was.iter().zip(is).map(|(was, is)| (is - was).powi(2)).sum();
    let before: f64 = was.iter().map(|was| was.powi(2)).sum();
    if differences == 0.0 { 0.0 } else { (differences / before).sqrt() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_that_comes_first_is_the_decision_and_the_first_of_equals_wins() {
        let first = |scores: &[f64]| decision(&Value::Scores(scores.to_vec()));
        assert_eq!(first(&[1.0, 3.0, 3.0]), Some("1".to_owned()));
        assert_eq!(decision(&Value::Similarity(0.5)), None);
    }

    #[test]
    fn a_distance_is_relative_to_what_was() {
        assert_eq!(relative_rms(&[3.0, 4.0], &[3.0, 4.5]), 0.1);
        assert_eq!(relative_rms(&[0.0], &[0.0]), 0.0);
        assert_eq!(relative_rms(&[0.0], &[1.0]), f64::INFINITY);
    }
}
