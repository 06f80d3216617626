use crate::ObservedError;

/// Numbers that a model answered beside the right ones.
#[derive(Clone, Debug, PartialEq)]
pub struct Numbers {
    pub(crate) expected: Vec<f64>,
    pub(crate) predicted: Vec<f64>,
}

/// How close a model finds two texts to an anchor: case by case one that belongs to it and one that does not.
#[derive(Clone, Debug, PartialEq)]
pub struct Triplets {
    /// Cosine of the anchor and the positive text, then that of the anchor and the negative one.
    pub(crate) similarities: Vec<[f64; 2]>,
}

impl Numbers {
    /// One finite number a case on both sides.
    pub fn new(expected: Vec<f64>, predicted: Vec<f64>) -> Result<Self, ObservedError> {
        if expected.len() != predicted.len() {
            return Err(ObservedError::Lengths { n_expected: expected.len(), n_answers: predicted.len() });
        }
        let mut both = expected.iter().zip(&predicted);
        match both.position(|(expected, predicted)| !expected.is_finite() || !predicted.is_finite()) {
            Some(case_idx) => Err(ObservedError::NotFinite { case_idx }),
            None => Ok(Self { expected, predicted }),
        }
    }

    /// The right number of each case.
    pub fn expected(&self) -> &[f64] {
        &self.expected
    }

    /// The answered number of each case.
    pub fn predicted(&self) -> &[f64] {
        &self.predicted
    }

    /// The trivial baseline: always the mean of the right numbers.
    pub fn mean(&self) -> Self {
        self.weighted_mean(&vec![1.0; self.expected.len()])
    }

    /// The same where case `i` counts `weights[i]`.
    pub(crate) fn weighted_mean(&self, weights: &[f64]) -> Self {
        let n_cases = self.expected.len();
        let total = if n_cases == 0 { 1.0 } else { weights.iter().sum::<f64>() };
        let mean = self.expected.iter().zip(weights).map(|(expected, weight)| expected * weight).sum::<f64>() / total;
        Self { expected: self.expected.clone(), predicted: vec![mean; n_cases] }
    }

    pub(crate) fn subset(&self, case_idxs: &[usize]) -> Self {
        let pick = |values: &[f64]| case_idxs.iter().map(|&idx| values[idx]).collect();
        Self { expected: pick(&self.expected), predicted: pick(&self.predicted) }
    }
}

impl Triplets {
    /// The similarities of each case to the positive and to the negative text, all finite.
    pub fn new(similarities: Vec<[f64; 2]>) -> Result<Self, ObservedError> {
        match similarities.iter().position(|pair| pair.iter().any(|similarity| !similarity.is_finite())) {
            Some(case_idx) => Err(ObservedError::NotFinite { case_idx }),
            None => Ok(Self { similarities }),
        }
    }

    /// Of each case, to the positive and to the negative text.
    pub fn similarities(&self) -> &[[f64; 2]] {
        &self.similarities
    }

    /// Whether the positive text is the closer one; equally close is wrong.
    pub fn right(&self) -> Vec<bool> {
        self.similarities.iter().map(|[positive, negative]| positive > negative).collect()
    }

    /// The trivial baseline: a coin, which is right in every other case.
    pub fn coin(&self) -> Self {
        let toss = |idx| if idx % 2 == 0 { [1.0, 0.0] } else { [0.0, 1.0] };
        Self { similarities: (0..self.similarities.len()).map(toss).collect() }
    }

    pub(crate) fn subset(&self, case_idxs: &[usize]) -> Self {
        Self { similarities: case_idxs.iter().map(|&idx| self.similarities[idx]).collect() }
    }
}
