use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::gate::in_slice;
use crate::rules::in_range;
use crate::{Case, GatesError, Measured, Metric, MetricError, Resamples, Statistic, Summary, Units};

const MOST_SECONDS: f64 = 86_400.0;

/// A program of the user's own that gives each answer a value, as `gates.toml` declares it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CustomRule {
    /// The program and its arguments, run beside `gates.toml`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// Instead of a program a Python function of one case: `FILE:FUNCTION`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub python: Option<String>,
    /// Whether a smaller value is better.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lower_is_better: bool,
    /// Whether it decides each case: its values are 1 for right and 0 for wrong.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub decides: bool,
    /// How long it may take for all cases.
    #[serde(default = "default_timeout_s")]
    pub timeout_s: f64,
}

/// What took a metric that Highroad does not know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CustomEvidence {
    /// What `gates.toml` calls it.
    pub name: String,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// The digest of each argument that is a file beside `gates.toml`.
    pub files: BTreeMap<String, String>,
}

/// What such a program gave each case, in file order.
#[derive(Clone, Debug, PartialEq)]
pub struct Given {
    /// For the candidate's answers.
    pub candidate: Vec<f64>,
    /// For the baseline's, if it is a model.
    pub baseline: Option<Vec<f64>>,
}

fn default_timeout_s() -> f64 {
    600.0
}

impl CustomRule {
    pub(crate) fn check(&self, name: &str) -> Result<(), GatesError> {
        let wrong = |problem: &str| Err(GatesError::Custom { name: name.to_owned(), problem: problem.to_owned() });
        match (&self.command[..], &self.python) {
            ([], None) => wrong("needs a `command` or a `python` function"),
            ([_, ..], Some(_)) => wrong("takes a `command` or a `python` function, not both"),
            (_, Some(python))
                if python.rsplit_once(':').is_none_or(|(file, function)| file.is_empty() || function.is_empty()) =>
            {
                wrong("`python` is not FILE:FUNCTION, such as \"metrics.py:politeness\"")
            }
            _ if self.decides && self.lower_is_better => {
                wrong("`decides` says that 1 is right, so `lower_is_better` contradicts it")
            }
            _ => in_range("timeout_s", self.timeout_s, 0.001..=MOST_SECONDS, "a positive number, at most a day"),
        }
    }

    /// Which way is better.
    pub fn metric(&self) -> Metric {
        match (self.decides, self.lower_is_better) {
            (true, _) => Metric::CustomShare,
            (false, true) => Metric::CustomLoss,
            (false, false) => Metric::Custom,
        }
    }
}

/// Adds the mean of `values`, one a case, to the summary of all cases and of each slice.
///
/// Errors if a value of a share is neither 0 nor 1.
///
/// # Panics
/// If `cases` and `values` differ in length.
pub fn add_to_summaries(
    summaries: &mut [Summary],
    cases: &[Case],
    (metric, name): (Metric, &str),
    values: &[f64],
    resamples: Resamples,
) -> Result<(), MetricError> {
    assert_eq!(cases.len(), values.len(), "values of other cases");
    for summary in summaries {
        let Ok(idxs) = in_slice(cases, summary.slice.as_deref()) else { continue };
        let statistic = Statistic::given(metric, idxs.iter().map(|&idx| values[idx]).collect())?;
        let weights: Vec<f64> = idxs.iter().map(|&idx| cases[idx].weight).collect();
        let Ok(statistic) = statistic.weighted(&weights) else { continue };
        let units = Units::sources(&idxs.iter().map(|&idx| cases[idx].sources).collect::<Vec<_>>());
        summary.metrics.push(Measured::given(metric, name, &statistic, &units, resamples));
    }
    Ok(())
}
