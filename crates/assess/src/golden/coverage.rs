use std::collections::{BTreeMap, BTreeSet};

use highroad_eval::{Expected, McNemarPower, Sides, effective_size};
use serde::Serialize;

use super::{GoldenCase, GoldenSet};

/// Shares of cases on which two models may differ, for which the detectable drop is told.
pub const ASSUMED_DISCORDANCE: [f64; 3] = [0.05, 0.1, 0.2];

/// How well a slice, a label, or a label within a slice is covered.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Coverage {
    /// The slice; all cases if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slice: Option<String>,
    /// The expected label; every one if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Number of cases.
    pub n_cases: usize,
    /// Number of things they come from that are independent of each other.
    pub n_sources: usize,
    /// How many cases that count alike they amount to, where they have different weights (Kish 1965).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n_effective: Option<f64>,
    /// Cases that must pass among them.
    pub n_must_pass: usize,
    /// The smallest true drop in the share of right answers, from 0 to 1, that exact McNemar finds if two models differ on each of
    /// [`ASSUMED_DISCORDANCE`] of the cases; absent where not even losing all of those would be found, or no answer is just
    /// right. Cases of one source count once, which is the most that is certain, and weighted ones as many as they amount to.
    pub detectable: Vec<Option<f64>>,
}

/// All cases, then each slice, with each expected label where there are several.
///
/// `alpha` is the risk of a false alarm, one-sided; `power` the chance of finding the drop.
pub fn coverage(golden: &GoldenSet, alpha: f64, power: f64) -> Vec<Coverage> {
    let slices: BTreeSet<&str> = golden.cases.iter().flat_map(|case| &case.case.slices).map(String::as_str).collect();
    let mut rows = Vec::new();
    for slice in std::iter::once(None).chain(slices.into_iter().map(Some)) {
        let in_slice = |case: &&GoldenCase| slice.is_none_or(|slice| case.case.slices.iter().any(|name| name == slice));
        let cases: Vec<&GoldenCase> = golden.cases.iter().filter(in_slice).collect();
        let mut row = |label: Option<&str>, cases: &[&GoldenCase]| {
            rows.push(Coverage {
                slice: slice.map(str::to_owned),
                label: label.map(str::to_owned),
                ..covered(cases, alpha, power)
            });
        };
        row(None, &cases);
        let by_label = by_label(&cases);
        if by_label.len() > 1 {
            by_label.iter().for_each(|(label, cases)| row(Some(label), cases));
        }
    }
    rows
}

fn by_label<'a>(cases: &[&'a GoldenCase]) -> BTreeMap<&'a str, Vec<&'a GoldenCase>> {
    let mut labels: BTreeMap<&str, Vec<&GoldenCase>> = BTreeMap::new();
    for case in cases {
        if let Expected::Label(label) = &case.case.expected {
            labels.entry(label).or_default().push(case);
        }
    }
    labels
}

/// Whether an answer can be just right, rather than near or far.
pub fn can_be_right(expected: &Expected) -> bool {
    match expected {
        Expected::Number(_) => false,
        Expected::Tensors { tolerances, .. } => !tolerances.is_empty(),
        _ => true,
    }
}

fn covered(cases: &[&GoldenCase], alpha: f64, power: f64) -> Coverage {
    let sources: BTreeSet<usize> = cases.iter().flat_map(|case| case.case.sources).collect();
    // Pairs draw texts, of which there are not more than what is independent among the pairs.
    let n_sources = sources.len();
    let is_just_right = cases.iter().all(|case| can_be_right(&case.case.expected));
    let n_effective = effective_size(cases.iter().map(|case| case.case.weight));
    let n = n_sources.min(cases.len()).min(n_effective.map_or(usize::MAX, |n| n as usize)) as u64;
    let detectable = |discordant| {
        let test = McNemarPower { n_cases: n, discordant, alpha, sides: Sides::One };
        if is_just_right { test.minimum_detectable_effect(power) } else { None }
    };
    Coverage {
        slice: None,
        label: None,
        n_cases: cases.len(),
        n_sources,
        n_effective,
        n_must_pass: cases.iter().filter(|case| case.case.must_pass).count(),
        detectable: ASSUMED_DISCORDANCE.map(detectable).to_vec(),
    }
}
