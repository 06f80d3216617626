use std::collections::BTreeMap;

use crate::{Array, ObservedError, Tolerance};

/// Tensors that a model answered beside the right ones, output by output.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensors {
    n_cases: usize,
    /// By name, at least one; every case has all of them.
    outputs: Vec<Output>,
}

/// One output over all cases.
#[derive(Clone, Debug, PartialEq)]
struct Output {
    name: String,
    /// Where each case's numbers end.
    ends: Vec<usize>,
    expected: Vec<f64>,
    predicted: Vec<f64>,
    /// Of each case, where it has one.
    tolerances: Vec<Option<Tolerance>>,
}

/// The number of an answer that is farthest beyond its tolerance.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Beyond<'a> {
    pub output: &'a str,
    /// Row-major, from 0.
    pub position: usize,
    pub predicted: f64,
    pub error: f64,
    pub allowed: f64,
}

impl Output {
    fn case(&self, idx: usize) -> std::ops::Range<usize> {
        idx.checked_sub(1).map_or(0, |before| self.ends[before])..self.ends[idx]
    }
}

impl Tensors {
    /// The right tensors of each case by output, and the answered ones, which may have more outputs than are asked for.
    ///
    /// Errors if a case has other outputs than the first one, no number in one, or an answer that lacks one or has it in another shape.
    pub fn new(
        expected: &[&BTreeMap<String, Array>],
        predicted: &[&BTreeMap<String, Array>],
    ) -> Result<Self, ObservedError> {
        if expected.len() != predicted.len() {
            return Err(ObservedError::Lengths { n_expected: expected.len(), n_answers: predicted.len() });
        }
        let names: Vec<&String> = expected.first().map(|first| first.keys().collect()).unwrap_or_default();
        let output = |name: &&String| {
            let (name, tolerances) = ((*name).clone(), vec![None; expected.len()]);
            Output { name, ends: vec![], expected: vec![], predicted: vec![], tolerances }
        };
        let mut outputs: Vec<Output> = names.iter().map(output).collect();
        for (case_idx, (expected, predicted)) in expected.iter().zip(predicted).enumerate() {
            let wrong = |problem: String| ObservedError::Tensors { case_idx, problem };
            if !expected.keys().eq(names.iter().copied()) {
                return Err(wrong("expects other outputs than the first case".to_owned()));
            }
            for (output, right) in outputs.iter_mut().zip(expected.values()) {
                let name = &output.name;
                let given = predicted.get(name).ok_or_else(|| wrong(format!("has no answer for output `{name}`")))?;
                if right.values().is_empty() || right.shape() != given.shape() {
                    let (right, given) = (right.shape(), given.shape());
                    return Err(wrong(format!(
                        "expects output `{name}` of shape {right:?}, and the answer has {given:?}"
                    )));
                }
                output.expected.extend(right.values());
                output.predicted.extend(given.values());
                output.ends.push(output.expected.len());
            }
        }
        Ok(Self { n_cases: expected.len(), outputs })
    }

    /// The same, judged by how far each output of each case may be off, in their order.
    ///
    /// Errors if there is a tolerance of an output that the cases do not expect, or of more or fewer cases.
    pub fn with_tolerances(mut self, of_cases: &[&BTreeMap<String, Tolerance>]) -> Result<Self, ObservedError> {
        if of_cases.len() != self.n_cases {
            return Err(ObservedError::Lengths { n_expected: of_cases.len(), n_answers: self.n_cases });
        }
        for (case_idx, tolerances) in of_cases.iter().enumerate() {
            for (name, tolerance) in *tolerances {
                let output = self.outputs.iter_mut().find(|output| output.name == *name).ok_or_else(|| {
                    let problem = format!("has a tolerance of `{name}`, which it does not expect");
                    ObservedError::Tensors { case_idx, problem }
                })?;
                output.tolerances[case_idx] = Some(*tolerance);
            }
        }
        Ok(self)
    }

    /// Number of cases.
    pub fn n_cases(&self) -> usize {
        self.n_cases
    }

    /// Whether each case has every number within its tolerance, as `numpy.allclose` says it; `None` for one without any.
    pub fn within_tolerance(&self) -> Vec<Option<bool>> {
        let is_judged = |idx: usize| self.outputs.iter().any(|of| of.tolerances[idx].is_some());
        (0..self.n_cases).map(|idx| is_judged(idx).then(|| self.beyond(idx).is_none())).collect()
    }

    /// The number of a case that is farthest beyond its tolerance, if any is.
    pub(crate) fn beyond(&self, idx: usize) -> Option<Beyond<'_>> {
        let judged = self.outputs.iter().filter_map(|of| Some((of, of.tolerances[idx]?)));
        let wrong = judged.flat_map(|(of, tolerance)| {
            let pairs = of.case(idx).map(|place| (of.expected[place], of.predicted[place])).enumerate();
            let wrong = pairs.filter(move |(_, (right, given))| !tolerance.admits(*right, *given));
            wrong.map(move |(position, (right, predicted))| {
                let (error, allowed) = ((predicted - right).abs(), tolerance.allowed(right));
                Beyond { output: &of.name, position, predicted, error, allowed }
            })
        });
        wrong.max_by(|left, right| f64::total_cmp(&(left.error - left.allowed), &(right.error - right.allowed)))
    }

    /// The outputs, by name.
    pub fn outputs(&self) -> impl Iterator<Item = &str> {
        self.outputs.iter().map(|output| output.name.as_str())
    }

    /// The right and the answered numbers of a case, of all outputs or of one; none where there is no such output.
    pub fn case(&self, idx: usize, output: Option<&str>) -> impl Iterator<Item = (f64, f64)> {
        let asked = self.outputs.iter().filter(move |of| output.is_none_or(|name| name == of.name));
        asked.flat_map(move |of| {
            let place = of.case(idx);
            of.expected[place.clone()].iter().copied().zip(of.predicted[place].iter().copied())
        })
    }

    /// How many numbers every case has, of all outputs or of one; `None` where they have not as many.
    pub(crate) fn width(&self, output: Option<&str>) -> Option<usize> {
        let asked = || self.outputs.iter().filter(|of| output.is_none_or(|name| name == of.name));
        let width = |idx| asked().map(|of| of.case(idx).len()).sum();
        let first: usize = (self.n_cases > 0).then(|| width(0))?;
        (1..self.n_cases).all(|idx| width(idx) == first).then_some(first)
    }

    /// The trivial baseline where case `i` counts `weights[i]`: always the mean of what is right in a place of an output, or of the
    /// output where shapes differ.
    pub(crate) fn weighted_mean(&self, weights: &[f64]) -> Self {
        let output = |of: &Output| {
            let width = self.width(Some(&of.name)).unwrap_or(0);
            let mut sums = vec![0.0; width.max(1)];
            let mut total = vec![0.0; width.max(1)];
            for (idx, weight) in weights.iter().enumerate() {
                for (place, value) in of.expected[of.case(idx)].iter().enumerate() {
                    let place = if width == 0 { 0 } else { place };
                    sums[place] += weight * value;
                    total[place] += weight;
                }
            }
            let means: Vec<f64> = sums.iter().zip(&total).map(|(sum, total)| sum / total).collect();
            let predicted = means.iter().copied().cycle().take(of.expected.len()).collect();
            Output { predicted, ..of.clone() }
        };
        Self { n_cases: self.n_cases, outputs: self.outputs.iter().map(output).collect() }
    }

    pub(crate) fn subset(&self, case_idxs: &[usize]) -> Self {
        let output = |of: &Output| {
            let pick = |values: &[f64]| case_idxs.iter().flat_map(|&idx| &values[of.case(idx)]).copied().collect();
            let mut end = 0;
            let ends = case_idxs.iter().map(|&idx| {
                end += of.case(idx).len();
                end
            });
            let ends = ends.collect();
            let tolerances = case_idxs.iter().map(|&idx| of.tolerances[idx]).collect();
            let (expected, predicted) = (pick(&of.expected), pick(&of.predicted));
            Output { name: of.name.clone(), ends, expected, predicted, tolerances }
        };
        Self { n_cases: case_idxs.len(), outputs: self.outputs.iter().map(output).collect() }
    }

    /// These answers to case `i`, or those that `of` gives for it, which have the same shapes.
    pub(crate) fn with_answers<'a>(&'a self, of: impl Fn(usize) -> (&'a Self, usize)) -> Self {
        let output = |(position, mine): (usize, &Output)| {
            let predicted = (0..self.n_cases).flat_map(|idx| {
                let (from, case) = of(idx);
                let theirs = &from.outputs[position];
                let place = theirs.case(case);
                // Of another shape: what is there is no answer here.
                let place = if place.len() == mine.case(idx).len() { (theirs, place) } else { (mine, mine.case(idx)) };
                place.0.predicted[place.1].iter().copied()
            });
            Output { predicted: predicted.collect(), ..mine.clone() }
        };
        Self { n_cases: self.n_cases, outputs: self.outputs.iter().enumerate().map(output).collect() }
    }

    /// What a case takes in memory, in numbers.
    pub(crate) fn n_values_per_case(&self) -> usize {
        self.outputs.iter().map(|of| of.expected.len()).sum::<usize>().div_ceil(self.n_cases.max(1)).max(1)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Of each case an output `y` of this width, and what was answered.
    fn tensors(cases: &[(&[f64], &[f64])]) -> Tensors {
        let named = |values: &[f64]| {
            BTreeMap::from([("y".to_owned(), Array::new(vec![values.len()], values.to_vec()).unwrap())])
        };
        let sides: Vec<_> = cases.iter().map(|(expected, predicted)| [named(expected), named(predicted)]).collect();
        let (expected, predicted): (Vec<_>, Vec<_>) =
            sides.iter().map(|[expected, predicted]| (expected, predicted)).unzip();
        Tensors::new(&expected, &predicted).unwrap()
    }

    fn predicted(tensors: &Tensors) -> Vec<Vec<f64>> {
        (0..tensors.n_cases()).map(|idx| tensors.case(idx, None).map(|(_, predicted)| predicted).collect()).collect()
    }

    #[test]
    fn the_trivial_answer_is_the_mean_in_each_place_or_of_all_where_shapes_differ() {
        let fixed = tensors(&[(&[1.0, 10.0], &[0.0, 0.0]), (&[3.0, 40.0], &[0.0, 0.0])]);
        assert_eq!(predicted(&fixed.weighted_mean(&[1.0, 1.0])), [[2.0, 25.0], [2.0, 25.0]]);
        assert_eq!(predicted(&fixed.weighted_mean(&[3.0, 1.0]))[0], [1.5, 17.5]);
        let other = tensors(&[(&[1.0], &[0.0]), (&[3.0, 5.0], &[0.0, 0.0])]);
        assert_eq!(predicted(&other.weighted_mean(&[1.0, 1.0])), [vec![3.0], vec![3.0, 3.0]]);
        assert_eq!((fixed.width(None), other.width(None)), (Some(2), None));
    }

    #[test]
    fn cases_are_picked_and_answers_exchanged_where_they_have_one_shape() {
        let these = tensors(&[(&[1.0], &[1.5]), (&[3.0, 5.0], &[3.5, 5.5]), (&[7.0], &[7.5])]);
        let picked = these.subset(&[2, 1, 2]);
        assert_eq!(predicted(&picked), [vec![7.5], vec![3.5, 5.5], vec![7.5]]);
        assert_eq!((picked.n_cases(), picked.n_values_per_case()), (3, 2));
        let exchanged = these.with_answers(|idx| (&these, 2 - idx));
        assert_eq!(predicted(&exchanged), [vec![7.5], vec![3.5, 5.5], vec![1.5]]);
        // Another shape answers nothing here.
        assert_eq!(predicted(&these.with_answers(|_| (&these, 1))), predicted(&these));
    }
}
